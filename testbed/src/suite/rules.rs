//! Each mesh's rules: the kubelet gets the app's answer, all other clients are subject to the mesh.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::cases::Cases;
use super::env::Env;
use crate::app::AppSpec;
use crate::kubelet::Probe;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::sidecar::Refusal;

const HTTP: u16 = 8080;
const GRPC: u16 = 9090;
const OPEN: u16 = 5432;
const CLOSED: u16 = 5433;
/// With DNS capture, the port whose traffic goes to the mesh's resolver.
const DNS: u16 = 53;

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[])?;
    for (index, rules) in RuleSet::all().iter().enumerate() {
        let rules = *rules;
        let name = rules.name();
        if !cases.wants(name) && !cases.wants(&format!("{name}/")) {
            continue;
        }
        // A failed start fails the case, or skips it if the machine lacks the rules' tools.
        let pod = env.pod(spec(&format!("rules{index}"), rules));
        let pod = match pod {
            Ok(pod) => pod,
            Err(error) => {
                cases.case(name, || Err(error));
                continue;
            }
        };
        one(cases, &env, &pod, name, rules)?;
    }
    Ok(())
}

fn spec(name: &str, rules: RuleSet) -> PodSpec {
    let mut app = AppSpec::new().http(HTTP).grpc(GRPC).tcp(OPEN);
    let container = |name: &str, liveness: Value, readiness: Value| json!({"name": name, "image": "app", "livenessProbe": liveness, "readinessProbe": readiness});
    let http = |port: u16, path: &str| json!({"httpGet": {"port": port, "path": path}});
    let tcp = |port: u16| json!({"tcpSocket": {"port": port}});
    let grpc = |service: &str| json!({"grpc": {"port": GRPC, "service": service}});
    let mut spec = PodSpec::new(name).rules(rules);
    if rules.captures_dns() {
        app = app.http(DNS);
        spec = spec.container(container(
            "dns",
            http(DNS, "/healthy"),
            http(DNS, "/failing"),
        ));
    }
    spec.app(app)
        .container(container(
            "web",
            http(HTTP, "/healthy"),
            http(HTTP, "/failing"),
        ))
        .container(container("api", grpc("ok"), grpc("down")))
        .container(container("db", tcp(OPEN), tcp(CLOSED)))
}

fn one(cases: &mut Cases, env: &Env, pod: &Pod, name: &str, rules: RuleSet) -> Result<()> {
    let families: [(&str, IpAddr); 2] =
        [("v4", pod.ns.ipv4().into()), ("v6", pod.ns.ipv6().into())];
    for (family, ip) in families {
        let case = |what: &str| format!("{name}/{family}/{what}");
        cases.case(&case("http-healthy"), || {
            env.passes(&Probe::http(ip, HTTP, "/healthy")).map(drop)
        });
        cases.case(&case("http-failing"), || {
            let result = env.fails(&Probe::http(ip, HTTP, "/failing"))?;
            ensure!(
                result.status == Some(503),
                "the app's own status is kept: {result:?}"
            );
            Ok(())
        });
        cases.case(&case("tcp-open"), || {
            env.passes(&Probe::tcp(ip, OPEN)).map(drop)
        });
        cases.case(&case("tcp-closed"), || {
            env.fails(&Probe::tcp(ip, CLOSED)).map(drop)
        });
        cases.case(&case("grpc-serving"), || {
            env.passes(&Probe::grpc(ip, GRPC, "ok")).map(drop)
        });
        cases.case(&case("grpc-not-serving"), || {
            env.fails(&Probe::grpc(ip, GRPC, "down")).map(drop)
        });
        if rules.captures_dns() {
            cases.case(&case("app-on-port-53"), || {
                let _healthy = env.passes(&Probe::http(ip, DNS, "/healthy"))?;
                env.fails(&Probe::http(ip, DNS, "/failing")).map(drop)
            });
        }
        cases.case(&case("others-are-captured"), || captured(env, ip, rules));
    }
    Ok(())
}

/// Connections of a process outside the kubelet's cgroup go to the mesh: plaintext is refused, a closed port
/// seems open.
fn captured(env: &Env, ip: IpAddr, rules: RuleSet) -> Result<()> {
    let answers = rules
        .proxy()
        .is_some_and(|proxy| proxy.refusal == Refusal::Deny);
    let http = env.bystander.probe(&Probe::http(ip, HTTP, "/healthy"))?;
    ensure!(
        !http.passed() && http.status == answers.then_some(403),
        "not refused as by this mesh: {http:?}"
    );
    if answers {
        let grpc = env.bystander.probe(&Probe::grpc(ip, GRPC, "ok"))?;
        ensure!(
            !grpc.passed() && grpc.message.contains("health rpc probe failed"),
            "not refused as by this mesh: {grpc:?}"
        );
    }
    let tcp = env.bystander.probe(&Probe::tcp(ip, CLOSED))?;
    ensure!(
        tcp.passed(),
        "the mesh's sidecar does not capture the closed port: {tcp:?}"
    );
    Ok(())
}
