//! Pods whose own rules redirect a probed port, on which nothing listens: a probe that passes without the daemon passes
//! with it, and the probe of a dead app still fails.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::cases::Cases;
use super::env::Env;
use super::pod_pair::{Family, declare, http_get, tcp_socket};
use crate::app::AppSpec;
use crate::kubelet::Probe;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::{command, wait};

/// The app's port.
const APP: u16 = 8080;
/// The probed port that is redirected.
const PROBED: u16 = 80;
/// A probed port on which nothing listens.
const CLOSED: u16 = 5433;
/// The priority of meshes' chains; a chain with a lower priority runs first.
const MESH: i32 = -100;
/// An additional address of a pod.
const OTHER: &str = "198.18.0.1";

const SOON: Duration = Duration::from_secs(10);

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &["--scope", "all"])?;
    for rules in [RuleSet::IstioRedirect, RuleSet::None] {
        cases.case(&format!("before-the-meshs/{rules:?}"), || {
            let pod = pod(&env, "before", rules, &to_app(MESH - 1))?;
            unchanged(&env, &pod, &Family::ALL)
        });
    }
    cases.case("before-the-meshs/which-captures-by-tproxy", || {
        let pod = pod(&env, "tproxy", RuleSet::IstioTproxy, &to_app(MESH - 1))?;
        refused(&env, &pod, &Family::ALL)
    });
    cases.case("made-while-the-pod-is-served", || {
        let pod = pod(&env, "later", RuleSet::IstioRedirect, "")?;
        refused(&env, &pod, &Family::ALL)?;
        apply(&pod, &to_app(MESH - 1))?;
        for family in Family::ALL {
            wait::until("the redirect to be found", SOON, || {
                let probe = family.form(Probe::http(family.ip(&pod.ns), PROBED, "/healthy"));
                env.kubelet.probe(&probe).ok()?.passed().then_some(())
            })?;
        }
        unchanged(&env, &pod, &Family::ALL)
    });
    cases.case("after-the-meshs", || {
        let pod = pod(&env, "after", RuleSet::IstioRedirect, &to_app(MESH + 1))?;
        refused(&env, &pod, &Family::ALL)
    });
    cases.case("to-another-address-in-one-family", || {
        let rules = format!(
            "table ip own {{ chain pre {{ type nat hook prerouting priority {}; \
             tcp dport {PROBED} dnat to {OTHER}:{APP}; }}; }}\n",
            MESH - 1
        );
        let pod = pod(&env, "elsewhere", RuleSet::IstioRedirect, &rules)?;
        unchanged(&env, &pod, &[Family::V4])?;
        refused(&env, &pod, &[Family::V6])
    });
    cases.case("to-a-port-beside-which-the-app-listens", || {
        let spec = spec("both", RuleSet::IstioRedirect, &[PROBED, APP]).start(&env.run)?;
        apply(&spec, &to_app(MESH - 1))?;
        let mut pod = spec;
        env.daemon.serve(&mut pod)?;
        answers(&env, &pod, &Family::ALL)
    });
    Ok(())
}

/// Rules in a chain of priority `priority` that redirect the probed port to the app's, in both families.
fn to_app(priority: i32) -> String {
    format!(
        "table inet own {{ chain pre {{ type nat hook prerouting priority {priority}; \
         tcp dport {PROBED} redirect to :{APP}; }}; }}\n"
    )
}

fn spec(name: &str, rules: RuleSet, listens: &[u16]) -> PodSpec {
    let name = format!("{name}-{rules:?}").to_lowercase();
    let app = listens
        .iter()
        .fold(AppSpec::new(), |app, port| app.http(*port));
    let spec = PodSpec::new(&name).rules(rules).app(app);
    declare(
        spec,
        [
            http_get(PROBED, "/healthy"),
            http_get(PROBED, "/failing"),
            tcp_socket(PROBED),
            tcp_socket(CLOSED),
        ],
    )
}

/// A served pod that has `own` rules beside those of its mesh, and whose app listens on [`APP`] only.
fn pod(env: &Env, name: &str, rules: RuleSet, own: &str) -> Result<Pod> {
    let mut pod = spec(name, rules, &[APP]).start(&env.run)?;
    pod.ns.ip(&format!("address add {OTHER}/32 dev eth0\n"))?;
    apply(&pod, own)?;
    env.daemon.serve(&mut pod)?;
    Ok(pod)
}

fn apply(pod: &Pod, rules: &str) -> Result<()> {
    pod.ns
        .run(|| command::run("nft", &["-f", "-"], rules).map(drop))
}

/// Whether the connection was refused; before Linux 6.1 the programs can refuse with EPERM only.
fn is_refusal(message: &str) -> bool {
    message.contains("refused") || message.contains("Operation not permitted")
}

/// The app's own answer reaches the kubelet.
fn answers(env: &Env, pod: &Pod, families: &[Family]) -> Result<()> {
    for family in families {
        let ip = family.ip(&pod.ns);
        let form = |probe| family.form(probe);
        let _passed = env.passes(&form(Probe::http(ip, PROBED, "/healthy")))?;
        let failed = env.fails(&form(Probe::http(ip, PROBED, "/failing")))?;
        ensure!(failed.status == Some(503), "{failed:?}");
        let _passed = env.passes(&form(Probe::tcp(ip, PROBED)))?;
    }
    Ok(())
}

/// The daemon leaves the kubelet's connections to the redirected port unchanged, and `status` shows it.
fn unchanged(env: &Env, pod: &Pod, families: &[Family]) -> Result<()> {
    let seen = env.daemon.counter("seen")?;
    answers(env, pod, families)?;
    ensure!(
        env.daemon.counter("seen")? == seen,
        "the programs acted on the kubelet's connections"
    );
    let shown = env.daemon.status_command(&["-o", "wide"])?;
    ensure!(
        shown.contains(&format!("own rules redirect port {PROBED} over")),
        "`status` does not show it:\n{shown}"
    );
    for family in families {
        let ip = family.ip(&pod.ns);
        let closed = env.fails(&family.form(Probe::tcp(ip, CLOSED)))?;
        ensure!(is_refusal(&closed.message), "{closed:?}");
    }
    Ok(())
}

/// Nothing listens on the probed port, and the mesh has all of its connections.
fn refused(env: &Env, pod: &Pod, families: &[Family]) -> Result<()> {
    // The first refusal causes a trial connection.
    for _ in 0..3 {
        for family in families {
            let ip = family.ip(&pod.ns);
            let closed = env.fails(&family.form(Probe::tcp(ip, PROBED)))?;
            ensure!(is_refusal(&closed.message), "{closed:?}");
        }
    }
    Ok(())
}
