//! The kubelet ends, restarts, or moves to another cgroup: its probes are soon exempt again.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::cases::Cases;
use super::sample_pod::{self, HTTP};
use crate::bpf::LegacyProgram;
use crate::cgroup::Cgroup;
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::{Ended, Kubelet, Probe};
use crate::pace;
use crate::pod::Pod;
use crate::run::Run;
use crate::{bpf, cgroup, wait};

const SOON: Duration = Duration::from_secs(5);
/// Longer than a busy machine needs.
const LIMIT: Duration = Duration::from_secs(2);
/// A new kubelet's probes must be exempt within this time. On a busy machine the fastest of several attempts counts.
const AIM: Duration = Duration::from_millis(100);

pub fn run(cases: &mut Cases) -> Result<()> {
    let run = Run::new()?;
    // At most 15 characters (comm), and unique.
    let name = format!("kl{}", run.id());
    by_name(cases, &run, &name)?;
    let program = cases.daemon().map(Path::to_owned);
    cases.case("found-from-a-container", || {
        from_a_container(&run, program.as_deref())
    });
    cases.case("another-process-of-its-name-while-it-is-away", || {
        decoy(&run, program.as_deref())
    });
    cases.case("part-of-k3s", || shared_process(&run, program.as_deref()));
    by_path(cases, &run)
}

/// The kubelet's process is also an API server: a request that it proxies to a probed path is not a probe.
fn shared_process(run: &Run, program: Option<&Path>) -> Result<()> {
    let cgroup = Cgroup::new(run, "k3s")?;
    let k3s = Kubelet::start(run, &cgroup, "k3s-server")?;
    let daemon = DaemonSpec::new("k3s")
        .program(program)
        .kubelet_cgroup(&cgroup)
        .start(run)?;
    let mut pod = sample_pod::pod("k3s").start(run)?;
    daemon.serve(&mut pod)?;
    let ip = pod.ns.ipv4();
    sample_pod::check_verdicts(&k3s, ip.into())?;
    let proxied = b"GET /healthy HTTP/1.1\r\nHost: app\r\nUser-Agent: kubectl/v1.36.0\r\n\r\n";
    let result = k3s.probe(&Probe::raw(ip, HTTP, proxied))?;
    ensure!(
        result.ended == Some(Ended::Reset),
        "it did not meet the mesh: {result:?}"
    );
    Ok(())
}

/// A container sees the rest of the node's cgroups as `/../..`.
fn from_a_container(run: &Run, program: Option<&Path>) -> Result<()> {
    let name = format!("kc{}", run.id());
    let kubelets = Cgroup::new(run, "contained-kubelet")?;
    let kubelet = Kubelet::start(run, &kubelets, &name)?;
    // At the depth of a container's cgroup, and not below the kubelet's.
    let container = Cgroup::new(run, "container")?;
    let host = run.dir().join("host-cgroup");
    let daemon = DaemonSpec::new("contained")
        .program(program)
        .in_container(&container, &host, &cgroup::mount()?)
        .arg("--kubelet-name")
        .arg(&name)
        .start(run)?;
    let attached = attached_to(&daemon)?;
    ensure!(
        attached.starts_with(&host.display().to_string())
            && attached.ends_with("contained-kubelet"),
        "attached to {attached}"
    );
    let mut pod = sample_pod::pod("contained").start(run)?;
    daemon.serve(&mut pod)?;
    sample_pod::check_verdicts(&kubelet, pod.ns.ipv4().into())
}

/// During a restart of the kubelet, another user's process may be the only one with its name.
fn decoy(run: &Run, program: Option<&Path>) -> Result<()> {
    let name = format!("kd{}", run.id());
    let home = Cgroup::new(run, "home")?;
    let mut kubelet = Kubelet::start(run, &home, &name)?;
    let daemon = DaemonSpec::new("decoy")
        .program(program)
        .arg("--kubelet-name")
        .arg(&name)
        .start(run)?;
    let mut pod = sample_pod::pod("decoy").start(run)?;
    daemon.serve(&mut pod)?;
    let elsewhere = Cgroup::new(run, "elsewhere")?;
    let _decoy = Kubelet::start(run, &elsewhere, &name)?;
    kubelet.kill()?;
    let _line = daemon.wait_logged(&["is in a different cgroup than the kubelet was"])?;
    kubelet = Kubelet::start(run, &home, &name)?;
    let _took = comes_back(&daemon, &kubelet, &pod, &home)?;
    ensure!(
        bpf::attached(elsewhere.path())? == 0,
        "programs are left on the other process's cgroup"
    );
    Ok(())
}

/// A daemon that finds its kubelet by the process's name.
fn by_name(cases: &mut Cases, run: &Run, name: &str) -> Result<()> {
    // Removed with its case, or after the kubelet if that case is not selected.
    let mut first = Some(Cgroup::new(run, "first")?);
    let first_cgroup = first.as_ref().context("it was just made")?;
    let old = first_cgroup.path().to_owned();
    let mut kubelet = Kubelet::start(run, first_cgroup, name)?;
    let daemon = DaemonSpec::new("by-name")
        .program(cases.daemon())
        .arg("--kubelet-name")
        .arg(name)
        .start(run)?;
    cases.show_on_failure(daemon.log_path());
    let mut pod = sample_pod::pod("restart").start(run)?;
    daemon.serve(&mut pod)?;
    cases.case("found-by-name", || {
        ensure!(
            attached_to(&daemon)? == old.display().to_string(),
            "attached elsewhere"
        );
        sample_pod::check_verdicts(&kubelet, pod.ns.ipv4().into())
    });
    cases.case("dies-and-comes-back-in-a-new-cgroup", || {
        kubelet.kill()?;
        drop(first.take());
        ensure!(!old.exists(), "the old cgroup can't be removed");
        wait_unattached(&daemon)?;
        let second = Cgroup::new(run, "second")?;
        kubelet = Kubelet::start(run, &second, name)?;
        let _took = comes_back(&daemon, &kubelet, &pod, &second)?;
        // Once more, with the new one started before the old one ends.
        let third = Cgroup::new(run, "third")?;
        kubelet.kill()?;
        kubelet = Kubelet::start(run, &third, name)?;
        let _took = comes_back(&daemon, &kubelet, &pod, &third)?;
        ensure!(
            bpf::attached(second.path())? == 0,
            "programs are left on the old cgroup"
        );
        kubelet.kill()
    });
    cases.case("comes-back-in-the-same-cgroup", || {
        kubelet.kill()?;
        let cgroup = Cgroup::new(run, "same")?;
        let mut took = Vec::new();
        for _ in 0..3 {
            let mut kubelet = Kubelet::start(run, &cgroup, name)?;
            took.push(comes_back(&daemon, &kubelet, &pod, &cgroup)?);
            kubelet.kill()?;
        }
        prompt(&took)
    });
    let program = cases.daemon().map(Path::to_owned);
    cases.case("a-pods-process-takes-its-name", || {
        kubelet.kill()?;
        let cgroup = Cgroup::new(run, "true")?;
        let _pods = Cgroup::new(run, "kubepods")?;
        let in_pod = Cgroup::new(run, "kubepods/pod1")?;
        let mut kubelet = Kubelet::start(run, &cgroup, name)?;
        let mut impostor = Kubelet::start(run, &in_pod, name)?;
        let _took = comes_back(&daemon, &kubelet, &pod, &cgroup)?;
        let new = DaemonSpec::new("among-impostors")
            .program(program.as_deref())
            .arg("--kubelet-name")
            .arg(name)
            .start(run)?;
        ensure!(
            attached_to(&new)? == cgroup.path().display().to_string(),
            "the new daemon is attached elsewhere"
        );
        kubelet.kill()?;
        for daemon in [&daemon, &new] {
            wait_unattached(daemon)?;
        }
        let probe = Probe::http(pod.ns.ipv4(), HTTP, "/healthy");
        ensure!(!impostor.probe(&probe)?.passed(), "the impostor is exempt");
        ensure!(
            bpf::attached(in_pod.path())? == 0,
            "programs are attached to the impostor's cgroup"
        );
        kubelet = Kubelet::start(run, &cgroup, name)?;
        let _took = comes_back(&daemon, &kubelet, &pod, &cgroup)?;
        kubelet.kill()?;
        impostor.kill()
    });
    cases.case("comes-back-where-nothing-can-be-attached", || {
        kubelet.kill()?;
        let above = Cgroup::new(run, "above")?;
        let below = Cgroup::new(run, "above/below")?;
        let legacy = LegacyProgram::connect4(above.path())?;
        let mut kubelet = Kubelet::start(run, &below, name)?;
        // The process runs, and the daemon is not attached to its cgroup.
        let probe = Probe::http(pod.ns.ipv4(), HTTP, "/healthy");
        wait::until("the daemon to have tried", SOON, || {
            let problems = daemon.status().ok()?["source"]["problems"].to_string();
            problems.contains("BPF_F_ALLOW_MULTI").then_some(())
        })?;
        wait_unattached(&daemon)?;
        ensure!(attached_to(&daemon)? == "nowhere", "status says otherwise");
        ensure!(!kubelet.probe(&probe)?.passed(), "exempt all the same");
        drop(legacy);
        wait::until("the first exempt probe", SOON, || {
            kubelet.probe(&probe).ok()?.passed().then_some(())
        })?;
        kubelet.kill()
    });
    cases.case("moved-while-running", || {
        kubelet.kill()?;
        let [from, to] = [Cgroup::new(run, "from")?, Cgroup::new(run, "to")?];
        let mut kubelet = Kubelet::start(run, &from, name)?;
        let _took = comes_back(&daemon, &kubelet, &pod, &from)?;
        to.add(kubelet.pid())?;
        let _took = comes_back(&daemon, &kubelet, &pod, &to)?;
        ensure!(
            bpf::attached(from.path())? == 0,
            "programs are left on the old cgroup"
        );
        kubelet.kill()
    });
    Ok(())
}

/// A daemon that was given the cgroup's path.
fn by_path(cases: &mut Cases, run: &Run) -> Result<()> {
    let mut cgroup = Cgroup::new(run, "given")?;
    let mut kubelet = Kubelet::start(run, &cgroup, "kubelet")?;
    let daemon = DaemonSpec::new("by-path")
        .program(cases.daemon())
        .kubelet_cgroup(&cgroup)
        .start(run)?;
    cases.show_on_failure(daemon.log_path());
    let mut pod = sample_pod::pod("given").start(run)?;
    daemon.serve(&mut pod)?;
    cases.case("cgroup-made-anew-at-the-same-path", || {
        sample_pod::check_verdicts(&kubelet, pod.ns.ipv4().into())?;
        for noticed in [true, false] {
            kubelet.kill()?;
            // The old one is removed before the new one is created.
            let name = cgroup.path().to_owned();
            std::fs::remove_dir(&name)
                .or_else(|_| wait_removed(&name))
                .with_context(|| name.display().to_string())?;
            if noticed {
                wait_unattached(&daemon)?;
            }
            let anew = Cgroup::new(run, "given")?;
            // Its drop would remove the new directory, which has the same path.
            std::mem::forget(std::mem::replace(&mut cgroup, anew));
            kubelet = Kubelet::start(run, &cgroup, "kubelet")?;
            let _took = comes_back(&daemon, &kubelet, &pod, &cgroup)?;
        }
        Ok(())
    });
    Ok(())
}

/// A process that was just killed may still be listed.
fn wait_removed(path: &std::path::Path) -> std::io::Result<()> {
    match wait::to_clean_up(SOON, || std::fs::remove_dir(path).is_ok()) {
        true => Ok(()),
        false => std::fs::remove_dir(path),
    }
}

fn attached_to(daemon: &Daemon) -> Result<String> {
    let cgroup = daemon.status()?["kubelet"]["cgroup"].take();
    Ok(cgroup.as_str().unwrap_or("nowhere").to_owned())
}

/// Waits until the daemon reports that there is no kubelet.
fn wait_unattached(daemon: &Daemon) -> Result<()> {
    wait::until("the daemon to miss the kubelet", SOON, || {
        let attached = daemon.metric("probe_handler_attached").ok()?;
        let (ready, pending) = daemon.get("/readyz").ok()?;
        (attached < 0.5 && ready == 503 && pending.contains("kubelet")).then_some(())
    })
}

/// Checks the fastest of several attempts.
fn prompt(took: &[Duration]) -> Result<()> {
    let quickest = took.iter().min().context("none")?;
    ensure!(*quickest < pace::stretch(AIM), "{took:?}");
    Ok(())
}

/// Probes until a probe is exempt; returns how long that took.
fn comes_back(daemon: &Daemon, kubelet: &Kubelet, pod: &Pod, cgroup: &Cgroup) -> Result<Duration> {
    let begun = Instant::now();
    let probe = Probe::http(pod.ns.ipv4(), HTTP, "/healthy");
    wait::until("the first exempt probe", SOON, || {
        kubelet.probe(&probe).ok()?.passed().then_some(())
    })?;
    let took = begun.elapsed();
    println!("     first exempt probe after {took:?}");
    ensure!(took < pace::stretch(LIMIT), "{took:?}");
    for ip in pod.ns.ips() {
        sample_pod::check_verdicts(kubelet, IpAddr::clone(&ip))?;
    }
    wait::until("status to name the new place", SOON, || {
        let status = daemon.status().ok()?;
        let there = status["kubelet"]["cgroup"] == cgroup.path().display().to_string();
        let filter = status["kubelet"]["process_filter"] == kubelet.pid();
        (there && filter && daemon.get("/readyz").ok()?.0 == 200).then_some(())
    })?;
    Ok(took)
}
