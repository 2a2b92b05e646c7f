//! The API server is down, loses its history, refuses requests, or is slow: the daemon serves the last known
//! pods, `status`, metrics and log report it, and the watches are restored.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api_server_double::{Cut, Fault};

use super::env::{Env, SOON};
use crate::daemon::{DaemonSpec, SERVICE_ACCOUNT};
use crate::suite::cases::Cases;
use crate::suite::env::GRACE;
use crate::suite::sample_pod::{self, Probing};
use crate::wait;

/// A watch waits at most 20 s before it retries; in these cases it fails only a few times.
const BACK: Duration = Duration::from_secs(15);
/// The missing rule, in the form that can be pasted into a role.
const VERBS: &str = "verbs: [\"get\", \"list\", \"watch\"]";

pub fn run(cases: &mut Cases) {
    // Each case has its own node: a daemon whose watches have failed recently waits longer, and the state of
    // one case's API server must not affect another case.
    let mut case = |name: &str, body: fn(&mut Env) -> Result<()>| {
        cases.case_in(name, |cases| body(&mut Env::start(cases)?));
    };
    case("api/away-and-back", |env| away(env));
    case("api/gone", |env| gone(env));
    case("api/token-expired", |env| {
        // The kubelet normally replaces it in time.
        refused(
            env,
            "does not accept our token",
            "unauthorized",
            |expired| {
                if expired {
                    let api = &env.node.api;
                    return api.order(|server| server.require_token(Some("another")));
                }
                Ok(std::fs::write(env.node.api.token(), "another")?)
            },
        )
    });
    case("api/pods-forbidden", |env| {
        refused(env, VERBS, "forbidden", |forbidden| {
            env.node
                .api
                .order(|server| server.forbid("pods", forbidden))
        })
    });
    case("api/slow", |env| slow(env));
    case("daemon-restarted", restarted);
    case("api/namespaces-forbidden", namespaces_forbidden);
    case("api/away-at-start", away_at_start);
    case("api/away-at-a-restart", away_at_a_restart);
    case("api/in-cluster", in_cluster);
}

fn up(env: &Env, resource: &str) -> Option<f64> {
    let scrape = env.daemon.metrics().ok()?;
    Some(scrape.sum("probe_handler_watch_up", &[("resource", resource)]))
}

/// Waits until the watch of `resource` is open, or no longer is.
fn watch(env: &Env, resource: &str, stands: bool, patience: Duration) -> Result<()> {
    let wanted = f64::from(u8::from(stands));
    wait::until(
        &format!("watch_up of {resource} to be {wanted}"),
        patience,
        || {
            let up = up(env, resource)?;
            ((up - wanted).abs() < f64::EPSILON).then_some(())
        },
    )
}

fn ready(env: &Env) -> Result<()> {
    let (status, body) = env.daemon.get("/readyz")?;
    ensure!(status == 200, "/readyz answers {status}: {body}");
    Ok(())
}

fn away(env: &Env) -> Result<()> {
    let pod = env.pod(sample_pod::pod("kept"))?;
    env.node.api.stop()?;
    watch(env, "pods", false, SOON)?;
    let _said = env.problem(&["can't watch pods", "the last known pods are served"])?;
    // It still serves: probes work although the API server is down.
    ready(env)?;
    env.check_verdicts(&pod)?;
    env.node.api.start_again()?;
    watch(env, "pods", true, BACK)?;
    watch(env, "namespaces", true, BACK)?;
    env.no_problem()?;
    let new = env.pod(sample_pod::pod("new-after-that"))?;
    env.check_verdicts(&new)?;
    env.check_verdicts(&pod)
}

/// 410: everything is sent again, and no pod is dropped meanwhile.
fn gone(env: &Env) -> Result<()> {
    let pod = env.pod(sample_pod::pod("uninterrupted"))?;
    let ip = pod.ns()?.ipv4();
    let lists = || env.daemon.metric("probe_handler_watch_lists_total");
    let before = lists()?;
    let probing = Probing::start(
        &env.kubelet,
        sample_pod::probes(ip.into())
            .into_iter()
            .map(|case| case.probe)
            .collect(),
    );
    env.node.api.order(|server| {
        server.compact();
        for resource in ["pods", "namespaces"] {
            server.cut(
                resource,
                Cut::Error(410, "Expired", "too old resource version"),
            );
        }
    })?;
    wait::until("everything to be listed again", BACK, || {
        (lists().ok()? >= before + 2.0).then_some(())
    })?;
    let cases = sample_pod::probes(ip.into());
    for made in probing.stop()? {
        let case = cases.iter().find(|case| case.probe == made.probe);
        ensure!(
            case.is_some_and(|case| case.matches(&made.result)),
            "wrong result: {made:?}"
        );
    }
    watch(env, "pods", true, BACK)
}

/// Requests that the API server refuses for a while.
fn refused(env: &Env, says: &str, reason: &str, refuse: impl Fn(bool) -> Result<()>) -> Result<()> {
    let failures = || -> Result<f64> {
        let labels = [("resource", "pods"), ("reason", reason)];
        Ok(env
            .daemon
            .metrics()?
            .sum("probe_handler_watch_failures_total", &labels))
    };
    let before = failures()?;
    let pod = env.pod(sample_pod::pod("meanwhile"))?;
    refuse(true)?;
    env.node.api.order(|server| server.cut("pods", Cut::End))?;
    let _said = env.problem(&[says, "the last known pods are served"])?;
    ensure!(failures()? > before, "no metric says so");
    watch(env, "pods", false, SOON)?;
    ready(env)?;
    env.check_verdicts(&pod)?;
    refuse(false)?;
    watch(env, "pods", true, BACK)?;
    env.no_problem()?;
    let new = env.pod(sample_pod::pod("allowed-again"))?;
    env.check_verdicts(&new)
}

/// A server that does not answer for a while only delays changes.
fn slow(env: &Env) -> Result<()> {
    let pod = env.pod(sample_pod::pod("patient"))?;
    let asked = || {
        let asked = env
            .node
            .api
            .order(api_server_double::ApiServer::asked)
            .ok()?;
        Some(
            asked
                .iter()
                .filter(|asked| asked.resource == "pods")
                .count(),
        )
    };
    let before = asked().context("the API server is away")?;
    env.node.api.order(|server| {
        server.fail("pods", true, Fault::Hang);
        server.cut("pods", Cut::End);
    })?;
    wait::until("the request that hangs", BACK, || {
        (asked()? > before).then_some(())
    })?;
    watch(env, "pods", false, SOON)?;
    let mut new = env.node.bind(sample_pod::pod("late"))?;
    new.run()?;
    env.check_verdicts(&pod)?;
    ensure!(env.daemon.pod_status("late")?.is_none(), "known already");
    env.node.api.order(api_server_double::ApiServer::release)?;
    env.served(&new)?;
    env.check_verdicts(&new)
}

/// The daemon ends and another starts, during probes: without a daemon the mesh handles the probes; once the
/// new one is ready all results are correct.
fn restarted(env: &mut Env) -> Result<()> {
    let pod = env.pod(sample_pod::pod("outliving"))?;
    let ip = pod.ns()?.ipv4();
    let probing = Probing::start(
        &env.kubelet,
        sample_pod::probes(ip.into())
            .into_iter()
            .map(|case| case.probe)
            .collect(),
    );
    again(env, "daemon-again")?;
    let ready = std::time::Instant::now();
    wait::until("some probes", SOON, || {
        let after = probing
            .so_far()
            .iter()
            .filter(|made| made.begun > ready)
            .count();
        (after > 20).then_some(())
    })?;
    let cases = sample_pod::probes(ip.into());
    for made in probing.stop()? {
        let case = cases.iter().find(|case| case.probe == made.probe);
        let as_expected = case.is_some_and(|case| case.matches(&made.result));
        ensure!(as_expected || made.begun < ready, "wrong result: {made:?}");
    }
    env.check_verdicts(&pod)
}

/// RBAC allows access to pods but not to namespaces: the daemon reports the missing rule, and serves pods.
fn namespaces_forbidden(env: &mut Env) -> Result<()> {
    env.node
        .api
        .order(|server| server.forbid("namespaces", true))?;
    let pod = env.pod(sample_pod::pod("unexempted"))?;
    again(env, "daemon-without-namespaces")?;
    let said = env.problem(&["namespaces", "HTTP 403", "are ignored"])?;
    ensure!(
        said.contains("verbs: [\"get\", \"list\", \"watch\"]"),
        "no rule: {said}"
    );
    env.served(&pod)?;
    env.check_verdicts(&pod)?;
    env.node
        .api
        .order(|server| server.forbid("namespaces", false))?;
    watch(env, "namespaces", true, BACK)?;
    env.no_problem()
}

/// The daemon has no pods yet: it is not ready, and reports why.
fn away_at_start(env: &mut Env) -> Result<()> {
    let pod = env.pod(sample_pod::pod("waiting"))?;
    env.node.api.stop()?;
    let status = env.daemon.stop(GRACE)?;
    ensure!(status.success(), "it ended with {status}");
    let spec = DaemonSpec::new("daemon-alone")
        .program(Some(env.daemon.program()))
        .kubelet_cgroup(&env.cgroup);
    env.daemon = env.node.serve(spec).spawn(&env.run)?;
    let (status, body) = wait::until("an answer of /readyz", SOON, || {
        env.daemon.get("/readyz").ok()
    })?;
    ensure!(
        status == 503 && body.contains("pods listed from the API server"),
        "/readyz answers {status}: {body}"
    );
    let _said = env.problem(&["can't watch pods", "no pod is served until it answers"])?;
    env.check_without_daemon(&pod)?;
    env.node.api.start_again()?;
    env.daemon.wait_ready()?;
    env.served(&pod)?;
    env.check_verdicts(&pod)
}

/// A daemon that is killed and restarted while the API server is down serves the pods that it had.
fn away_at_a_restart(env: &mut Env) -> Result<()> {
    let file = env.run.dir().join("last-known.json");
    let program = env.daemon.program().to_path_buf();
    let keeping = |env: &Env, name: &str| {
        let spec = DaemonSpec::new(name)
            .program(Some(&program))
            .kubelet_cgroup(&env.cgroup)
            .arg("--last-known")
            .arg(&file.display().to_string());
        env.node.serve(spec)
    };
    let status = env.daemon.stop(GRACE)?;
    ensure!(status.success(), "it ended with {status}");
    env.daemon = keeping(env, "daemon-that-is-killed").start(&env.run)?;
    let pod = env.pod(sample_pod::pod("still-known"))?;
    wait::until("the pod to be kept", SOON, || {
        let text = std::fs::read_to_string(&file).ok()?;
        text.contains("still-known").then_some(())
    })?;
    env.node.api.stop()?;
    let _killed = env.daemon.kill()?;
    env.check_without_daemon(&pod)?;

    env.daemon = keeping(env, "daemon-in-the-dark").spawn(&env.run)?;
    wait::until("the pod to be served", SOON, || env.served(&pod).ok())?;
    env.check_verdicts(&pod)?;
    let (status, body) = env.daemon.get("/readyz")?;
    ensure!(
        status == 503 && body.contains("pods listed from the API server"),
        "/readyz answers {status}: {body}"
    );
    let _said = env.problem(&["can't watch pods", "the last known pods are served"])?;
    env.node.api.start_again()?;
    env.daemon.wait_ready()?;
    env.check_verdicts(&pod)
}

/// Access to the API server as in the DaemonSet's pods: address from the environment, token and CA
/// certificate from the ServiceAccount's volume.
fn in_cluster(env: &mut Env) -> Result<()> {
    let pod = env.pod(sample_pod::pod("as-in-life"))?;
    let status = env.daemon.stop(GRACE)?;
    ensure!(status.success(), "it ended with {status}");
    let made = MountPoint::make()?;
    let spec = DaemonSpec::new("daemon-in-cluster")
        .program(Some(env.daemon.program()))
        .kubelet_cgroup(&env.cgroup)
        .in_cluster(
            env.node.name(),
            env.node.api.address()?,
            env.node.api.volume(),
        );
    env.daemon = spec.start(&env.run)?;
    env.served(&pod)?;
    env.check_verdicts(&pod)?;
    let status = env.daemon.stop(GRACE)?;
    ensure!(status.success(), "it ended with {status}");
    drop(made);
    Ok(())
}

/// The directories on which a ServiceAccount's volume is mounted, if they did not exist before; removed on
/// drop.
struct MountPoint(Vec<PathBuf>);

impl MountPoint {
    fn make() -> Result<Self> {
        let path = Path::new(SERVICE_ACCOUNT);
        let missing = path.ancestors().take_while(|path| !path.exists());
        let made = Self(missing.map(Path::to_path_buf).collect());
        std::fs::create_dir_all(path)?;
        Ok(made)
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        for path in &self.0 {
            // Another run may still use them.
            let _not_empty = std::fs::remove_dir(path);
        }
    }
}

fn again(env: &mut Env, name: &str) -> Result<()> {
    let status = env.daemon.stop(GRACE)?;
    ensure!(status.success(), "it ended with {status}");
    let spec = DaemonSpec::new(name)
        .program(Some(env.daemon.program()))
        .kubelet_cgroup(&env.cgroup);
    env.daemon = env.node.serve(spec).start(&env.run)?;
    Ok(())
}
