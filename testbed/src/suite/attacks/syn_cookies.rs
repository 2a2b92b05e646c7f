//! A kernel that answers every SYN with a cookie does not save the SYN. So the daemon cannot determine whose connection
//! it has accepted, and the handler is not used.

use std::fs;

use anyhow::{Result, ensure};

use super::port_space::on_a_node_of_its_own;
use crate::kubelet::Probe;
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::suite::env::{Env, HANDLER_PATH};
use crate::suite::sample_pod::{self, HTTP};

pub fn run(cases: &mut Cases) -> Result<()> {
    cases.case_in("syn-cookies", |cases| {
        on_a_node_of_its_own(|| {
            fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")?;
            plain_networking(cases)
        })
    });
    Ok(())
}

fn plain_networking(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &["--scope", "all", HANDLER_PATH])?;
    let pod = env.pod(sample_pod::pod("cookies").rules(RuleSet::None))?;
    let ip = pod.ns.ipv4();
    let _passed = env.passes(&Probe::http(ip, HTTP, "/healthy"))?;
    let _failed = env.fails(&Probe::http(ip, HTTP, "/failing"))?;
    ensure!(
        env.daemon.counter("redirected")? == 0 && env.daemon.counter("no_heartbeat")? >= 2,
        "the handler was used"
    );
    let status = env.daemon.status()?;
    let why = status["missing"][0]["why"].as_str().unwrap_or_default();
    ensure!(
        status["missing"][0]["part"] == "handler" && why.contains("tcp_syncookies"),
        "status does not say so: {}",
        status["missing"]
    );
    Ok(())
}
