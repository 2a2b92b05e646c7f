//! A kubelet that dials with Multipath TCP (`GODEBUG=multipathtcp=1`). connect() concerns its subflow's socket, getpeername()
//! the Multipath socket, which has another cookie.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::cases::Cases;
use super::env::{Env, HANDLER_PATH};
use super::pod_pair::Family;
use super::sample_pod;
use crate::pod::Pod;
use crate::rules::Unavailable;

pub fn run(cases: &mut Cases) -> Result<()> {
    for (path, args) in [
        ("default", [].as_slice()),
        ("handler", [HANDLER_PATH].as_slice()),
    ] {
        if !cases.wants(path) && !cases.wants(&format!("{path}/")) {
            continue;
        }
        let env = Env::start(cases, args)?;
        let pod = env.pod(sample_pod::pod(&format!("multipath-{path}")))?;
        for family in Family::ALL {
            cases.case(&format!("{path}/{}", family.name()), || {
                is_available()?;
                judged(&env, &pod, family)
            });
        }
    }
    Ok(())
}

/// Each probe has the app's result, and its connection the pod's address as its peer.
fn judged(env: &Env, pod: &Pod, family: Family) -> Result<()> {
    for case in sample_pod::probes(family.ip(&pod.ns)) {
        let port = case.probe.port;
        let result = env
            .kubelet
            .probe(&family.form(case.probe.clone()).multipath())?;
        ensure!(case.matches(&result), "{:?}: {result:?}", case.probe);
        let ip = match (family, family.ip(&pod.ns)) {
            (Family::Mapped, IpAddr::V4(ip)) => IpAddr::V6(ip.to_ipv6_mapped()),
            (_, ip) => ip,
        };
        let expected = SocketAddr::new(ip, port);
        ensure!(
            result.peer.is_none_or(|peer| peer == expected),
            "getpeername should return {expected}: {result:?}"
        );
        ensure!(
            result.peer.is_some() || !case.healthy,
            "no peer: {result:?}"
        );
    }
    Ok(())
}

/// Whether the kernel has Multipath TCP.
fn is_available() -> Result<()> {
    match Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) {
        Ok(_) => Ok(()),
        Err(error) => Err(Unavailable(format!(
            "the kernel has no Multipath TCP: {error}"
        )))
        .context("a socket of the kubelet"),
    }
}
