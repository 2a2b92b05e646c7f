//! `explain`: why a pod was restarted, also after a restart of the daemon, and why a pod is not served.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cases::Cases;
use super::env::Env;
use super::sample_pod::{self, HTTP};
use crate::app::AppSpec;
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::Probe;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::wait;

const SOON: Duration = Duration::from_secs(10);
/// The last line of `explain` after a failed liveness probe.
const CAUSE: &str = ": liveness http:8080/healthy got HTTP 503 3 times in a row";

pub fn run(cases: &mut Cases) -> Result<()> {
    let mut env = Env::start(cases, &[])?;
    let mut pod = env.pod(
        PodSpec::new("restarted")
            .rules(RuleSet::IstioRedirect)
            .app(AppSpec::new().http(HTTP))
            .container(sample_pod::container(
                "web",
                sample_pod::http(HTTP, "/healthy"),
                sample_pod::http(HTTP, "/failing"),
            )),
    )?;
    cases.case("restart-after-a-failed-liveness-probe", || {
        failed_liveness(&env, &mut pod)
    });
    cases.case("history-survives-the-daemon", || {
        survives(&mut env, &pod, CAUSE)
    });
    cases.case("pods-that-are-not-served", || not_served(&env));
    cases.case_to_the_millisecond("advice", || advised(&env));
    cases.case("pods-that-do-not-exist", || missing(&env));
    Ok(())
}

fn explain(daemon: &Daemon, args: &[&str]) -> Result<Output> {
    Command::new("timeout")
        .arg("20")
        .arg(daemon.program())
        .arg("explain")
        .arg("--admin-socket")
        .arg(daemon.socket())
        .args(args)
        .output()
        .context("starting explain")
}

/// The last line of `explain` once it contains `expected`, and all lines.
fn explained(daemon: &Daemon, pod: &str, expected: &str) -> Result<String> {
    let mut seen = String::new();
    wait::until(&format!("the explanation {expected:?}"), SOON, || {
        let output = explain(daemon, &[pod]).ok()?;
        seen = String::from_utf8_lossy(&output.stdout).into_owned();
        seen.lines().last()?.contains(expected).then_some(())
    })
    .with_context(|| seen.clone())?;
    Ok(seen)
}

fn name(pod: &Pod) -> String {
    let manifest = pod.manifest();
    let namespace = manifest["metadata"]["namespace"].as_str();
    format!("{}/{}", namespace.unwrap_or("default"), pod.name())
}

/// The pod's manifest with the kubelet's view of its container.
fn with_restarts(pod: &Pod, restarts: u32) -> Value {
    let mut manifest = pod.manifest();
    let last = match restarts {
        0 => json!({}),
        _ => json!({"terminated": {"exitCode": 137, "reason": "Error"}}),
    };
    manifest["status"]["containerStatuses"] = json!([{
        "name": "web", "image": "app", "imageID": "", "ready": true, "restartCount": restarts,
        "state": {"running": {}}, "lastState": last,
    }]);
    manifest
}

/// The app fails its liveness probe as often as the threshold, and the kubelet restarts it.
fn failed_liveness(env: &Env, pod: &mut Pod) -> Result<()> {
    let name = name(pod);
    let ip = pod.ns.ipv4();
    let probe = Probe::http(ip, HTTP, "/healthy");
    let manifest = with_restarts(pod, 0);
    pod.publish_as(env.daemon.pods(), &manifest)?;
    let _passed = env.passes(&probe)?;
    let _calm = explained(&env.daemon, &name, "no probe has failed since")?;
    pod.app.set_port_status(HTTP, 503)?;
    for _ in 0..3 {
        let _failed = env.fails(&probe)?;
    }
    let before = explained(&env.daemon, &name, "3 times in a row")?;
    ensure!(
        before.contains("which makes the kubelet restart the container"),
        "{before}"
    );
    // The log has a warning with the threshold.
    let _log = env.daemon.wait_logged(&[
        " WARN ",
        "probe has failed as often as its failureThreshold",
        "path=\"/healthy\"",
        "failures=3 failure_threshold=3",
    ])?;
    let manifest = with_restarts(pod, 1);
    pod.publish_as(env.daemon.pods(), &manifest)?;
    let text = explained(&env.daemon, &name, CAUSE)?;
    let last = text.lines().last().unwrap_or_default();
    ensure!(
        last.starts_with("container web was restarted at "),
        "{last}"
    );
    let failed = "web: liveness http:8080/healthy got HTTP 503";
    let restarted = "the kubelet restarted container web (it had ended with exit code 137)";
    let (failed, restarted) = (text.find(failed), text.find(restarted));
    ensure!(failed.is_some() && failed < restarted, "{text}");
    // The probe passes again, and the sentence does not change.
    pod.app.set_port_status(HTTP, 200)?;
    let _passed = env.passes(&probe)?;
    let _still = explained(&env.daemon, &name, CAUSE)?;
    Ok(())
}

fn survives(env: &mut Env, pod: &Pod, cause: &str) -> Result<()> {
    let name = name(pod);
    let _before = explained(&env.daemon, &name, cause)?;
    let file = env.daemon.socket().with_extension("history");
    wait::until("the history to be written", SOON, || {
        let text = fs::read_to_string(&file).ok()?;
        text.contains("restarted").then_some(())
    })?;
    let _killed = env.daemon.kill()?;
    let next = DaemonSpec::new("daemon")
        .program(Some(env.daemon.program()))
        .kubelet_cgroup(&env.cgroup)
        .start(&env.run)?;
    env.daemon = next;
    env.daemon.wait_served(pod)?;
    let after = explained(&env.daemon, &name, cause)?;
    let starts = after.matches("the daemon was started").count();
    ensure!(starts == 2, "{starts} starts in:\n{after}");
    Ok(())
}

fn not_served(env: &Env) -> Result<()> {
    let manifest = env.daemon.pods().join("host.json");
    let host = json!({
        "kind": "Pod",
        "metadata": {"name": "host", "namespace": "explained", "uid": "host-1"},
        "spec": {"hostNetwork": true, "containers": [{"name": "a"}]},
    });
    fs::write(&manifest, host.to_string())?;
    let shown = explained(
        &env.daemon,
        "explained/host",
        "not served: it is in the node's network namespace (hostNetwork)",
    );
    fs::remove_file(&manifest)?;
    shown.map(drop)
}

/// Nothing listens on a probed port, and the app answers another probe within the last tenth of its timeout.
fn advised(env: &Env) -> Result<()> {
    const CLOSED: u16 = 5433;
    const SLOW: &str = "/slow?ms=850";
    let pod = env.pod(
        PodSpec::new("advised")
            .rules(RuleSet::IstioRedirect)
            .app(AppSpec::new().http(HTTP))
            .container(sample_pod::container(
                "web",
                sample_pod::http(HTTP, SLOW),
                json!({"tcpSocket": {"port": CLOSED}}),
            )),
    )?;
    let ip = pod.ns.ipv4();
    // Of so many in all, at most 16 at the same time.
    for _ in 0..2 {
        let begin = |_| env.kubelet.begin(&Probe::http(ip, HTTP, SLOW));
        let slow: Vec<_> = (0..12).map(begin).collect::<Result<_>>()?;
        for pending in slow {
            let _answer = pending.wait()?;
        }
    }
    for _ in 0..3 {
        let _refused = env.fails(&Probe::tcp(ip, CLOSED))?;
    }
    let name = name(&pod);
    let text = wait::until("the advice", SOON, || {
        let text = env.daemon.status_command(&["--advice", &name]).ok()?;
        (text.contains("nothing has ever listened on port 5433")
            && text.contains("and timeoutSeconds allows 1 s"))
        .then_some(text)
    })?;
    let patch = r#"{"livenessProbe":{"timeoutSeconds":2},"name":"web"}"#;
    ensure!(text.contains(patch), "{text}");
    let json: Value =
        serde_json::from_str(&env.daemon.status_command(&["--advice", "-o", "json"])?)?;
    let about = json.as_array().context("no list")?.iter();
    let about: Vec<_> = about
        .filter(|one| one["pod"] == "advised")
        .map(|one| one["about"].as_str().unwrap_or_default())
        .collect();
    ensure!(about == ["timeout", "no-listener"], "{json}");
    Ok(())
}

fn missing(env: &Env) -> Result<()> {
    for (args, code, words) in [
        (&["none/such"][..], 1, "has no pod none/such"),
        (&["such"], 64, "expected NAMESPACE/POD"),
        (
            &["such", "-n", "none", "-o", "json"],
            1,
            "has no pod none/such",
        ),
    ] {
        let output = explain(&env.daemon, args)?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code), "{args:?}: {output:?}");
        ensure!(error.contains(words), "{args:?}: {error}");
        ensure!(output.stdout.is_empty(), "{args:?}: {output:?}");
    }
    Ok(())
}
