//! The kernel path with the daemon: which probes take it, and what happens to them when the daemon hangs.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kernel::exemption::{Family as Rules, TABLE};
use nix::sys::signal::Signal;

use crate::app::AppSpec;
use crate::app::tls::Certificate;
use crate::command;
use crate::kubelet::Probe;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::suite::env::Env;
use crate::suite::pod_pair::{Family, declare, grpc_of, http_get, https_get, tcp_socket};
use crate::wait;

const HTTP: u16 = 8080;
const HTTPS: u16 = 8443;
const GRPC: u16 = 9090;
const OPEN: u16 = 5432;
const CLOSED: u16 = 5433;
/// Both httpGet and tcpSocket are declared.
const BOTH: u16 = 8081;

/// How soon the kernel path must serve a pod.
const SOON: Duration = Duration::from_secs(5);

pub(super) fn run(cases: &mut Cases) -> Result<()> {
    if cases.wants("daemon/") {
        with(cases, "daemon", &["--kernel-path"], false)?;
    }
    if cases.wants("daemon-http/") {
        let args = ["--kernel-path", "--http", "kernel"];
        with(cases, "daemon-http", &args, true)?;
    }
    Ok(())
}

fn with(cases: &mut Cases, name: &str, args: &[&str], http_by_kernel: bool) -> Result<()> {
    let env = Env::start(cases, args)?;
    let pod = env.pod(spec(name))?;
    by_kernel(&env, &pod)?;
    for family in Family::ALL {
        let case = |what: &str| format!("{name}/{}/{what}", family.name());
        let ip = family.ip(&pod.ns);
        let form = |probe| family.form(probe);
        cases.case(&case("tcp-https-and-grpc-by-the-kernel"), || {
            exempt(&env, || tcp_https_and_grpc(&env, ip, &form))
        });
        cases.case(&case("http"), || {
            let probe = || {
                let _passed = env.passes(&form(Probe::http(ip, HTTP, "/healthy")))?;
                let failed = env.fails(&form(Probe::http(ip, HTTP, "/failing")))?;
                ensure!(failed.status == Some(503), "{failed:?}");
                Ok(())
            };
            match http_by_kernel {
                true => exempt(&env, probe),
                false => redirected(&env, probe),
            }
        });
        cases.case(&case("several-kinds-on-one-port-by-the-handler"), || {
            redirected(&env, || {
                let _http = env.passes(&form(Probe::http(ip, BOTH, "/healthy")))?;
                env.passes(&form(Probe::tcp(ip, BOTH))).map(drop)
            })
        });
        cases.case(&case("others-are-captured"), || {
            let got = env.bystander.probe(&Probe::http(ip, HTTP, "/healthy"))?;
            ensure!(!got.passed(), "{got:?}");
            let got = env.bystander.probe(&Probe::tcp(ip, CLOSED))?;
            ensure!(got.passed(), "{got:?}");
            Ok(())
        });
    }
    cases.case(&format!("{name}/status-says-which-path"), || {
        let text = env.daemon.status_command(&["-o", "wide"])?;
        let line = text.lines().find(|line| line.contains("uid-"));
        let line = line.context("no line of the pod")?;
        ensure!(line.trim_end().ends_with("kernel"), "{line}");
        Ok(())
    });
    cases.case(&format!("{name}/rules-that-are-gone-are-put-again"), || {
        put_again(&env, name)
    });
    cases.case(&format!("{name}/a-hung-daemon-is-not-missed"), || {
        hung(&env, &pod)
    });
    Ok(())
}

fn spec(name: &str) -> PodSpec {
    let app = AppSpec::new()
        .http(HTTP)
        .http(BOTH)
        .https(HTTPS, Certificate::SelfSigned)
        .grpc(GRPC)
        .tcp(OPEN);
    let spec = PodSpec::new(name).rules(RuleSet::IstioRedirect).app(app);
    declare(
        spec,
        [
            http_get(HTTP, "/healthy"),
            http_get(HTTP, "/failing"),
            https_get(HTTPS, "/healthy"),
            https_get(HTTPS, "/failing"),
            grpc_of(GRPC, "ok"),
            grpc_of(GRPC, "down"),
            tcp_socket(OPEN),
            tcp_socket(CLOSED),
            http_get(BOTH, "/healthy"),
            tcp_socket(BOTH),
        ],
    )
}

/// Waits until the kernel path serves the pod.
fn by_kernel(env: &Env, pod: &Pod) -> Result<()> {
    wait::until("the kernel path", SOON, || {
        let status = env.daemon.pod_status(pod.name()).ok()??;
        (status["path"] == "kernel").then_some(())
    })
    .with_context(|| format!("{:?}", env.daemon.pod_status(pod.name())))
}

fn tcp_https_and_grpc(env: &Env, ip: IpAddr, form: &dyn Fn(Probe) -> Probe) -> Result<()> {
    let _https = env.passes(&form(Probe::https(ip, HTTPS, "/healthy")))?;
    let _https = env.fails(&form(Probe::https(ip, HTTPS, "/failing")))?;
    let _grpc = env.passes(&form(Probe::grpc(ip, GRPC, "ok")))?;
    let _grpc = env.fails(&form(Probe::grpc(ip, GRPC, "down")))?;
    let _tcp = env.passes(&form(Probe::tcp(ip, OPEN)))?;
    let closed = env.fails(&form(Probe::tcp(ip, CLOSED)))?;
    ensure!(closed.message.contains("refused"), "{closed:?}");
    Ok(())
}

/// Checks that all connections of `probes` match our rules, and none reaches the handler.
fn exempt(env: &Env, probes: impl FnOnce() -> Result<()>) -> Result<()> {
    let counts = || counts(env);
    let before = counts()?;
    probes()?;
    let after = counts()?;
    ensure!(
        after.exempt - before.exempt == after.seen - before.seen
            && after.seen > before.seen
            && after.redirected == before.redirected,
        "{before:?}, {after:?}"
    );
    Ok(())
}

/// Checks that all connections of `probes` go to the handler.
fn redirected(env: &Env, probes: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = counts(env)?;
    probes()?;
    let after = counts(env)?;
    ensure!(
        after.redirected - before.redirected == after.seen - before.seen
            && after.exempt == before.exempt,
        "{before:?}, {after:?}"
    );
    Ok(())
}

#[derive(Debug)]
struct Counts {
    seen: u64,
    redirected: u64,
    exempt: u64,
}

fn counts(env: &Env) -> Result<Counts> {
    Ok(Counts {
        seen: env.daemon.counter("seen")?,
        redirected: env.daemon.counter("redirected")?,
        exempt: env.daemon.counter("exempt")?,
    })
}

/// The next trial detects that another process has removed a pod's rules. Another pod is tried first.
fn put_again(env: &Env, name: &str) -> Result<()> {
    let pod = env.pod(spec(&format!("{name}-again")))?;
    by_kernel(env, &pod)?;
    pod.ns.run(|| {
        for family in Rules::ALL {
            let _done = command::run("nft", &["delete", "table", family.name(), TABLE], "")?;
        }
        Ok(())
    })?;
    // A change of its addresses triggers a check at once.
    pod.ns.ip("address add 10.255.255.254/32 dev eth0\n")?;
    wait::until("rules", SOON, || {
        let result = env.kubelet.probe(&Probe::tcp(pod.ns.ipv4(), CLOSED)).ok()?;
        (!result.passed()).then_some(())
    })
}

/// While the daemon is stopped the kernel path still works, and HTTP takes it as soon as the heartbeat is too old.
fn hung(env: &Env, pod: &Pod) -> Result<()> {
    env.daemon.signal(Signal::SIGSTOP)?;
    let probes = || -> Result<()> {
        for family in Family::ALL {
            let ip = family.ip(&pod.ns);
            tcp_https_and_grpc(env, ip, &|probe| family.form(probe))?;
        }
        let http = |ip: IpAddr| {
            wait::until("the kernel path for HTTP", SOON, || {
                let result = env.kubelet.probe(&Probe::http(ip, HTTP, "/healthy"));
                result.ok()?.passed().then_some(())
            })
        };
        pod.ns.ips().into_iter().try_for_each(http)
    };
    let probed = probes();
    env.daemon.signal(Signal::SIGCONT)?;
    probed
}
