//! A daemon in a time namespace: its monotonic clock differs from that of the eBPF programs.

use anyhow::{Result, ensure};

use crate::cgroup::Cgroup;
use crate::command;
use crate::daemon::DaemonSpec;
use crate::kubelet::Kubelet;
use crate::run::Run;
use crate::suite::cases::Cases;
use crate::suite::sample_pod;

pub fn run(cases: &mut Cases) -> Result<()> {
    for (name, seconds) in [("ahead", 86_400), ("behind", -10)] {
        let name = format!("time-namespace/{name}");
        if !cases.wants(&name) {
            continue;
        }
        match command::run("unshare", &["--time", "true"], "") {
            Ok(_) => cases.case_in(&name, |cases| serves(cases, seconds)),
            Err(error) => cases.skip(&name, &format!("no time namespaces: {error:#}")),
        }
    }
    Ok(())
}

fn serves(cases: &mut Cases, seconds: i64) -> Result<()> {
    let run = Run::new()?;
    let cgroup = Cgroup::new(&run, "kubelet")?;
    let kubelet = Kubelet::start(&run, &cgroup, "kubelet")?;
    let daemon = DaemonSpec::new("daemon")
        .program(cases.daemon())
        .kubelet_cgroup(&cgroup)
        .monotonic_clock_ahead(seconds)
        .start(&run)?;
    cases.show_on_failure(daemon.log_path());
    let mut pod = sample_pod::pod("time").start(&run)?;
    daemon.serve(&mut pod)?;
    let before = daemon.counter("redirected")?;
    for ip in pod.ns.ips() {
        sample_pod::check_verdicts(&kubelet, ip)?;
    }
    let redirected = daemon.counter("redirected")? - before;
    ensure!(redirected > 0, "none of it was served by the handler");
    Ok(())
}
