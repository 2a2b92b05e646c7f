//! Checks which privileges the daemon keeps after its start, and that they suffice.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kernel::capabilities::{KEPT, Need};

use super::cases::Cases;
use super::sample_pod;
use crate::cgroup::Cgroup;
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::Kubelet;
use crate::rules::RuleSet;
use crate::run::Run;
use crate::wait;

const SOON: Duration = Duration::from_secs(5);

pub fn run(cases: &mut Cases) -> Result<()> {
    // As with `privileged: true`.
    cases.case_in("all-capabilities", |cases| {
        serves_with_what_it_keeps(cases, "all", |spec| spec, &mask(&KEPT))
    });
    // As with the overlay: the bounding set can't be reduced then.
    cases.case_in("least-capabilities", |cases| {
        let names: Vec<String> = KEPT.iter().map(setpriv_name).collect();
        serves_with_what_it_keeps(
            cases,
            "least",
            |spec| spec.with_capabilities_only(&names),
            &mask(&KEPT),
        )
    });
    Ok(())
}

/// A daemon that has dropped all other capabilities does everything that needs one: it serves pods of a mesh that requires
/// the proxy's user for the dial, and a kubelet that returns in another cgroup.
fn serves_with_what_it_keeps(
    cases: &mut Cases,
    name: &str,
    with: impl FnOnce(DaemonSpec) -> DaemonSpec,
    bounding: &str,
) -> Result<()> {
    let run = Run::new()?;
    let kubelet_name = format!("kp{}", run.id());
    let first = Cgroup::new(&run, "first")?;
    let mut kubelet = Kubelet::start(&run, &first, &kubelet_name)?;
    let spec = DaemonSpec::new(name)
        .program(cases.daemon())
        .arg("--kubelet-name")
        .arg(&kubelet_name);
    let daemon = with(spec).start(&run)?;
    cases.show_on_failure(daemon.log_path());
    only_what_is_kept(&daemon, bounding)?;

    let mut meshed = sample_pod::pod("meshed").start(&run)?;
    daemon.serve(&mut meshed)?;
    let mut consul = sample_pod::pod("consul")
        .rules(RuleSet::Consul)
        .start(&run)?;
    daemon.serve(&mut consul)?;
    let truth = |kubelet: &Kubelet| {
        let mut ips = meshed.ns.ips().into_iter().chain(consul.ns.ips());
        ips.try_for_each(|ip| sample_pod::check_verdicts(kubelet, ip))
    };
    truth(&kubelet)?;

    kubelet.kill()?;
    let second = Cgroup::new(&run, "second")?;
    kubelet = Kubelet::start(&run, &second, &kubelet_name)?;
    wait::until("the daemon to follow the kubelet", SOON, || {
        let status = daemon.status().ok()?;
        (status["kubelet"]["cgroup"] == second.path().display().to_string()).then_some(())
    })?;
    truth(&kubelet)?;
    // Threads that were started since have no more capabilities.
    only_what_is_kept(&daemon, bounding)?;
    kubelet.kill()
}

/// Every thread has exactly the kept capabilities, and cannot get others.
fn only_what_is_kept(daemon: &Daemon, bounding: &str) -> Result<()> {
    let kept = mask(&KEPT);
    let none = mask(&[]);
    let expected = BTreeMap::from([
        ("CapInh", none.as_str()),
        ("CapPrm", kept.as_str()),
        ("CapEff", kept.as_str()),
        ("CapBnd", bounding),
        ("CapAmb", none.as_str()),
        ("NoNewPrivs", "1"),
    ]);
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
        // A thread that has just ended has no status.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else {
            continue;
        };
        let fields = fields(&status);
        let name = *fields.get("Name").context("a thread without a name")?;
        for (key, value) in &expected {
            ensure!(
                fields.get(key) == Some(value),
                "{key} of thread {name} is {:?}, not {value}",
                fields.get(key)
            );
        }
        threads.push(name.to_owned());
    }
    for thread in ["handler", "log"] {
        ensure!(
            threads.iter().any(|name| name == thread),
            "no thread {thread} was looked at, only {threads:?}"
        );
    }
    Ok(())
}

/// Capabilities in the format of /proc/PID/status.
fn mask<'a>(needs: impl IntoIterator<Item = &'a Need>) -> String {
    let bits = needs
        .into_iter()
        .fold(0, |bits, need| bits | need.capability.bitmask());
    format!("{bits:016x}")
}

fn fields(status: &str) -> BTreeMap<&str, &str> {
    status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key, value.trim()))
        .collect()
}

/// Capabilities in the format of setpriv(1).
fn setpriv_name(need: &Need) -> String {
    let name = need.capability.to_string().to_lowercase();
    name.trim_start_matches("cap_").to_owned()
}
