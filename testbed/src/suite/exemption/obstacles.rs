//! Pods in which the daemon can't dial: only the kernel path, which does not need the daemon's dials, serves
//! them.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::daemon::exempt;
use super::declared::{self, HTTP, by_kernel, opaque};
use crate::kubelet::Probe;
use crate::pod::Pod;
use crate::suite::cases::Cases;
use crate::suite::env::Env;
use crate::suite::neighbours::make_costly;
use crate::{command, wait};

/// How soon an obstacle is found.
const SOON: Duration = Duration::from_secs(60);

pub(super) fn run(cases: &mut Cases) -> Result<()> {
    if !cases.wants("obstacles/") {
        return Ok(());
    }
    let env = Env::start(cases, &["--kernel-path"])?;
    cases.case("obstacles/lo-is-down", || {
        let pod = env.pod(declared::pod("down"))?;
        alone(&env, &pod, "loopback interface (lo) is down", || {
            pod.ns.ip("link set lo down\n")
        })
    });
    cases.case("obstacles/the-daemons-dials-are-captured", || {
        let pod = env.pod(declared::pod("captive"))?;
        alone(&env, &pod, "canary failed", || {
            pod.ns.run(|| {
                command::run("nft", &["-f", "-"], CAPTURE)?;
                // The next canary dial is due in 30 s, or when an address changes.
                Ok(())
            })?;
            pod.ns.ip("address add 198.18.0.1/32 dev eth0\n")
        })
    });
    if !cases.skip_if_emulated("obstacles/dials-cost-too-much") {
        cases.case("obstacles/dials-cost-too-much", || {
            let pod = env.pod(declared::pod("dear"))?;
            alone(&env, &pod, "netfilter rules cost", || {
                let _cost = make_costly(&pod.ns)?;
                pod.ns.ip("address add 198.18.0.1/32 dev eth0\n")
            })
        });
    }
    Ok(())
}

/// Rules that redirect connections of a process in the pod over its loopback interface to the sidecar.
const CAPTURE: &str = r#"table inet capture {
    chain out {
        type nat hook output priority -150
        oifname "lo" tcp dport != 15006 redirect to :15006
    }
}
"#;

/// Checks that all probes take the kernel path, and are right, once `hinder` has made an obstacle that `status` describes
/// with `why`.
fn alone(env: &Env, pod: &Pod, why: &str, hinder: impl FnOnce() -> Result<()>) -> Result<()> {
    by_kernel(&env.daemon, pod)?;
    hinder()?;
    let expected = format!("{} is served only by the kernel path: ", pod.name());
    wait::until("the obstacle", SOON, || {
        let text = env.daemon.status_command(&[]).ok()?;
        let line = text.lines().find(|line| line.contains(&expected))?;
        line.contains(why).then_some(())
    })?;
    for ip in pod.ns.ips() {
        exempt(env, || {
            opaque(&env.kubelet, ip, &|probe| probe)?;
            let _passed = env.passes(&Probe::http(ip, HTTP, "/healthy"))?;
            let failed = env.fails(&Probe::http(ip, HTTP, "/failing"))?;
            ensure!(failed.status == Some(503), "{failed:?}");
            Ok(())
        })?;
    }
    Ok(())
}
