//! The kernel path with the daemon: which probes take it, and what happens to them when the daemon hangs.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kernel::exemption::Matcher;
use nix::sys::signal::Signal;

use super::declared::{self, BOTH, CLOSED, HTTP, by_kernel, opaque};
use super::results::Results;
use crate::command;
use crate::kubelet::Probe;
use crate::pod::Pod;
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::suite::env::{self, Env};
use crate::suite::pod_pair::Family;
use crate::wait;

/// How soon a change must be visible.
const SOON: Duration = Duration::from_secs(5);

pub(super) fn run(cases: &mut Cases) -> Result<()> {
    if cases.wants("daemon/") {
        with(cases, "daemon", &["--kernel-path"], false)?;
    }
    if cases.wants("daemon-http/") {
        let args = ["--kernel-path", "--http", "kernel"];
        with(cases, "daemon-http", &args, true)?;
    }
    cases.case_in("daemon/annotation", annotated);
    cases.case_in("daemon/addresses-change-at-the-start", addresses_change);
    Ok(())
}

/// A pod gets the kernel path although its addresses change while the rules are installed and tried.
fn addresses_change(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &["--kernel-path"])?;
    let mut pod = declared::pod("changing").start(&env.run)?;
    pod.publish(env.daemon.pods())?;
    for _ in 0..50 {
        pod.ns.ip("address add 198.18.0.1/32 dev eth0\n")?;
        pod.ns.ip("address del 198.18.0.1/32 dev eth0\n")?;
    }
    by_kernel(&env.daemon, &pod)
}

/// A pod's annotation takes precedence over `--http`.
fn annotated(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &["--kernel-path", "--http", "handler"])?;
    let spec = declared::pod("annotated").annotation("probe-handler.io/http", "kernel");
    let pod = env.pod(spec)?;
    by_kernel(&env.daemon, &pod)?;
    exempt(&env, || {
        let probe = Probe::http(pod.ns.ipv4(), HTTP, "/healthy");
        env.passes(&probe).map(drop)
    })
}

fn with(cases: &mut Cases, name: &str, args: &[&str], http_by_kernel: bool) -> Result<()> {
    let env = Env::start(cases, args)?;
    let pod = env.pod(declared::pod(name))?;
    by_kernel(&env.daemon, &pod)?;
    for family in Family::ALL {
        let case = |what: &str| format!("{name}/{}/{what}", family.name());
        let ip = family.ip(&pod.ns);
        let form = |probe| family.form(probe);
        cases.case(&case("tcp-https-and-grpc-by-the-kernel"), || {
            exempt(&env, || opaque(&env.kubelet, ip, &form))
        });
        cases.case(&case("results-are-counted"), || {
            let results = Results::of(&env.daemon, &pod)?;
            opaque(&env.kubelet, ip, &form)?;
            results.grow(declared::OPAQUE)
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
        let path = match env::matcher() {
            Matcher::XtBpf => "kernel",
            Matcher::Tc => "kernel (tc)",
        };
        ensure!(line.trim_end().ends_with(path), "{line}");
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

/// Checks that all connections of `probes` match our rules, and none reaches the handler.
pub(super) fn exempt(env: &Env, probes: impl FnOnce() -> Result<()>) -> Result<()> {
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

/// When a process in the pod removes our rules with all others, as an init container may, they are installed again at once.
fn put_again(env: &Env, name: &str) -> Result<()> {
    let pod = env.pod(declared::pod(&format!("{name}-again")))?;
    by_kernel(&env.daemon, &pod)?;
    for turn in 0..3 {
        pod.ns.run(|| {
            let _done = command::run("nft", &["flush", "ruleset"], "")?;
            RuleSet::IstioRedirect.apply_here()
        })?;
        let flushed = Instant::now();
        wait::until("rules", SOON, || {
            let result = env.kubelet.probe(&Probe::tcp(pod.ns.ipv4(), CLOSED)).ok()?;
            (!result.passed()).then_some(())
        })?;
        println!(
            "     rules that were flushed were back within {:?}",
            flushed.elapsed()
        );
        for ip in pod.ns.ips() {
            opaque(&env.kubelet, ip, &|probe| probe).with_context(|| format!("turn {turn}"))?;
        }
    }
    Ok(())
}

/// While the daemon is stopped the kernel path still works, and HTTP takes it as soon as the heartbeat is too old.
fn hung(env: &Env, pod: &Pod) -> Result<()> {
    env.daemon.signal(Signal::SIGSTOP)?;
    let probes = || -> Result<()> {
        for family in Family::ALL {
            let ip = family.ip(&pod.ns);
            opaque(&env.kubelet, ip, &|probe| family.form(probe))?;
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
