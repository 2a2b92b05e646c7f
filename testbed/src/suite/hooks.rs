//! Lifecycle hooks: the kubelet treats any status as a success, and only a transport error as a failure.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::cases::Cases;
use super::env::{Env, HANDLER_PATH};
use super::pod_pair::{Family, PodPair, http_get, https_get};
use crate::app::AppSpec;
use crate::app::tls::Certificate;
use crate::kubelet::{Action, Probe, Scheme};
use crate::pace;
use crate::pod::PodSpec;
use crate::rules::RuleSet;
use crate::wait;

const PORT: u16 = 8080;
const CLOSED: u16 = 8081;
const TLS: u16 = 8443;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

const ANSWERED: [(&str, u16); 9] = [
    ("/healthy", 200),
    ("/failing", 503),
    ("/status/204", 204),
    ("/status/304", 304),
    ("/status/404", 404),
    ("/status/500", 500),
    ("/redirect/same", 200),
    ("/redirect/failing", 503),
    // The kubelet reads only the head.
    ("/cut-body", 200),
];
const NOT_ANSWERED: [&str; 3] = ["/early-close", "/reset", "/garbage"];
/// Time limit for an expected event.
const SOON: Duration = Duration::from_secs(5);
const SLOW: &str = "/slow?ms=1500";
const HANG: &str = "/hang";
const BOTH: &str = "/status/500";
/// Declared only with scheme HTTPS, on a plaintext port.
const FALLBACK: &str = "/fallback";

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[])?;
    let pods = PodPair::start(&env, "hooks", spec)?;
    cases.case("mesh-is-strict", || pods.mesh_is_strict(PORT));
    for (path, status) in ANSWERED {
        cases.case(&format!("any-status-passes{path}"), || {
            for family in FAMILIES {
                let pair = pods.both_pass(family, |ip| Probe::hook(ip, PORT, path))?;
                ensure!(pair.ours.status == Some(status), "{pair:?}");
            }
            Ok(())
        });
    }
    for path in NOT_ANSWERED {
        cases.case(&format!("transport-error{path}"), || {
            transport_error(&pods, |ip| Probe::hook(ip, PORT, path))
        });
    }
    cases.case("transport-error/closed-port", || {
        transport_error(&pods, |ip| Probe::hook(ip, CLOSED, "/healthy"))
    });
    cases.case("no-timeout", || {
        let pair = pods.both_pass(Family::V4, |ip| Probe::hook(ip, PORT, SLOW))?;
        ensure!(
            pair.ours.latency >= pace::stretch(Duration::from_millis(1500)),
            "{pair:?}"
        );
        Ok(())
    });
    cases.case("kubelet-gives-up", || {
        // As when the grace period ends before a preStop hook.
        let _before = pods.meshed.app.take_recorded()?;
        let ip = pods.meshed.ns.ipv4();
        let hook = Probe::hook(ip, PORT, HANG).timeout(Duration::from_millis(200));
        let result = env.kubelet.probe(&hook)?;
        ensure!(!result.passed(), "no answer: {result:?}");
        wait::until("the app to be hung up on", SOON, || {
            let seen = pods.meshed.app.take_recorded().ok()?;
            seen.iter()
                .any(|one| one.protocol == "hung-up")
                .then_some(())
        })?;
        let reason = pods.reason(PORT, HANG)?;
        ensure!(reason == "cancelled", "{reason}");
        Ok(())
    });
    cases.case("requests-are-the-same", || {
        for family in FAMILIES {
            let recorded = pods.same_requests(family, |ip| {
                Probe::hook(ip, PORT, "/healthy").header("X-Custom", "1")
            })?;
            ensure!(recorded[0].head.contains("kube-lifecycle/"), "{recorded:?}");
        }
        Ok(())
    });
    cases.case("a-probe-of-the-same-target-is-a-probe", || {
        let _passed = pods.both_pass(Family::V4, |ip| Probe::hook(ip, PORT, BOTH))?;
        let failed = |ip| Probe::http(ip, PORT, BOTH);
        pods.both_fail(Family::V4, failed).map(drop)
    });
    cases.case("https", || {
        let pair = pods.both_pass(Family::V4, |ip| https_hook(ip, TLS, "/failing"))?;
        ensure!(pair.ours.status == Some(503), "{pair:?}");
        Ok(())
    });
    cases.case("https-falls-back-to-plaintext", || {
        // "server gave HTTP response to HTTPS client": the kubelet tries again without TLS.
        let pair = pods.both_pass(Family::V4, |ip| https_hook(ip, PORT, FALLBACK))?;
        ensure!(pair.ours.status == Some(200), "{pair:?}");
        Ok(())
    });
    cases.case_in("idle-connection-does-not-delay-the-end", idle_at_the_end);
    Ok(())
}

/// The kubelet's client keeps a hook's connection open for reuse, for 90 s. The daemon must not wait for it until its
/// `--drain-timeout`.
fn idle_at_the_end(cases: &mut Cases) -> Result<()> {
    let mut env = Env::start(cases, &[HANDLER_PATH, "--drain-timeout", "3600"])?;
    let app = AppSpec::new().https(TLS, Certificate::SelfSigned);
    let hook = json!({"preStop": https_get(TLS, "/healthy")});
    let pod = env.pod(
        PodSpec::new("idle")
            .rules(RuleSet::IstioRedirect)
            .app(app)
            .container(json!({"name": "app", "image": "app", "lifecycle": hook})),
    )?;
    let passed = env.passes(&https_hook(pod.ns.ipv4().into(), TLS, "/healthy"))?;
    ensure!(passed.status == Some(200), "{passed:?}");
    let open = || {
        let seen = pod.ns.run(|| Ok(established(TLS)?));
        seen.map(|number| number > 0)
    };
    ensure!(open()?, "the kubelet has not kept the connection open");
    env.stop_daemon()?;
    wait::until("the connection to be closed", SOON, || {
        (!open().ok()?).then_some(())
    })
}

/// The number of established connections to `port` in the thread's network namespace.
fn established(port: u16) -> std::io::Result<usize> {
    let mut number = 0;
    for table in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
        number += table
            .lines()
            .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
            // Columns "local_address" and "st": TCP_ESTABLISHED of include/net/tcp_states.h.
            .filter(|row| {
                row.get(1)
                    .is_some_and(|at| at.ends_with(&format!(":{port:04X}")))
                    && row.get(3) == Some(&"01")
            })
            .count();
    }
    Ok(number)
}

fn spec(name: &str) -> PodSpec {
    let app = AppSpec::new()
        .http(PORT)
        .https(TLS, Certificate::SelfSigned);
    let mut hooks: Vec<_> = ANSWERED
        .map(|(path, _)| path)
        .into_iter()
        .chain(NOT_ANSWERED)
        .chain([SLOW, HANG])
        .map(|path| http_get(PORT, path))
        .collect();
    hooks.push(http_get(CLOSED, "/healthy"));
    hooks.push(https_get(TLS, "/failing"));
    hooks.push(https_get(PORT, FALLBACK));
    let mut spec = PodSpec::new(name).app(app);
    for (index, two) in hooks.chunks(2).enumerate() {
        let mut lifecycle = json!({"postStart": two[0]});
        if let Some(second) = two.get(1) {
            lifecycle["preStop"] = second.clone();
        }
        let name = format!("app{index}");
        spec = spec.container(json!({"name": name, "image": "app", "lifecycle": lifecycle}));
    }
    let probe = http_get(PORT, BOTH);
    spec.container(json!({"name": "probed", "image": "app", "livenessProbe": probe}))
}

/// In both cases there is no HTTP answer.
fn transport_error(
    pods: &PodPair<'_>,
    hook: impl Fn(std::net::IpAddr) -> Probe + Copy,
) -> Result<()> {
    for family in FAMILIES {
        let pair = pods.both_fail(family, hook)?;
        ensure!(
            pair.ours.status.is_none() && pair.plain.status.is_none(),
            "a transport error: {pair:?}"
        );
    }
    Ok(())
}

fn https_hook(ip: std::net::IpAddr, port: u16, path: &str) -> Probe {
    let mut probe = Probe::hook(ip, port, path);
    if let Action::Hook { scheme, .. } = &mut probe.action {
        *scheme = Scheme::Https;
    }
    probe
}
