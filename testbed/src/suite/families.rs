//! Address families and the app's bind addresses: the kubelet gets the same results as in plain
//! Kubernetes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::cases::Cases;
use super::env::Env;
use super::pod_pair::{Family, PodPair, declare, grpc_of, http_get, tcp_socket};
use crate::app::{AppSpec, Bind, Protocol};
use crate::kubelet::Probe;
use crate::pod::PodSpec;

/// A short timeout, because a gRPC probe of a closed port takes its whole timeout.
const TIMEOUT: Duration = Duration::from_millis(400);

const BINDS: [(&str, Bind); 5] = [
    ("any-v4", Bind::AnyV4),
    ("dual-stack", Bind::DualStack),
    ("pod-ips", Bind::PodIps),
    ("loopback-only", Bind::Loopback),
    ("v6-only", Bind::V6Only),
];
const PROTOCOLS: [(&str, Protocol); 3] = [
    ("http", Protocol::Http),
    ("tcp", Protocol::Tcp),
    ("grpc", Protocol::Grpc),
];

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[])?;
    for with_v6_source in [true, false] {
        let name = match with_v6_source {
            true => "v6-source",
            false => "no-v6-source",
        };
        if !cases.wants(name) && !cases.wants(&format!("{name}/")) {
            continue;
        }
        let pods = PodPair::start(&env, name, |name| spec(name, with_v6_source))?;
        cases.case(&format!("{name}/mesh-is-strict"), || {
            pods.mesh_is_strict(port(1, 0))
        });
        bindings(cases, &pods, name);
        cases.case(&format!("{name}/source-that-the-app-sees"), || {
            source(&pods, with_v6_source)
        });
    }
    Ok(())
}

const fn port(bind: u16, protocol: u16) -> u16 {
    8000 + 10 * bind + protocol
}

/// Every bind address with every protocol, each on a separate port.
fn listeners() -> impl Iterator<Item = (&'static str, Bind, &'static str, Protocol, u16)> {
    (0..).zip(BINDS).flat_map(|(i, (bind_name, bind))| {
        (0..)
            .zip(PROTOCOLS)
            .map(move |(j, (name, protocol))| (bind_name, bind, name, protocol, port(i, j)))
    })
}

fn spec(name: &str, with_v6_source: bool) -> PodSpec {
    let mut app = AppSpec::new();
    let mut probes = Vec::new();
    for (_, bind, _, protocol, port) in listeners() {
        app = app.listen(protocol, bind, port);
        probes.push(match protocol {
            Protocol::Http => http_get(port, "/healthy"),
            Protocol::Grpc => grpc_of(port, "ok"),
            _ => tcp_socket(port),
        });
    }
    let spec = declare(PodSpec::new(name).app(app), probes);
    match with_v6_source {
        true => spec,
        false => spec.without_v6_passthrough_source(),
    }
}

fn bindings(cases: &mut Cases, pods: &PodPair<'_>, pod: &str) {
    for (bind_name, bind, protocol_name, protocol, port) in listeners() {
        for family in Family::ALL {
            let name = format!("{pod}/{bind_name}/{}/{protocol_name}", family.name());
            cases.case(&name, || {
                let reached = match bind {
                    Bind::AnyV4 => family != Family::V6,
                    Bind::V6Only => family == Family::V6,
                    Bind::DualStack | Bind::PodIps => true,
                    Bind::Loopback | Bind::Address(_) => false,
                };
                let pair = pods.same(family, |ip| match protocol {
                    Protocol::Http => Probe::http(ip, port, "/healthy"),
                    Protocol::Grpc if reached => Probe::grpc(ip, port, "ok"),
                    Protocol::Grpc => Probe::grpc(ip, port, "ok").timeout(TIMEOUT),
                    _ => Probe::tcp(ip, port),
                })?;
                ensure!(
                    pair.ours.passed() == reached,
                    "should {}: {pair:?}",
                    if reached { "pass" } else { "fail" }
                );
                if reached {
                    let peer = peer(family, &pods.meshed.ns, port);
                    ensure!(
                        pair.ours.peer == Some(peer),
                        "getpeername should show {peer}: {pair:?}"
                    );
                }
                Ok(())
            });
        }
    }
}

/// What `getpeername` returns without the daemon.
fn peer(family: Family, ns: &crate::netns::NetNs, port: u16) -> SocketAddr {
    let ip = match family {
        Family::V4 => ns.ipv4().into(),
        Family::Mapped => ns.ipv4().to_ipv6_mapped().into(),
        Family::V6 => ns.ipv6().into(),
    };
    SocketAddr::new(ip, port)
}

/// The source addresses with which the mesh's rules let the daemon's dial pass.
fn source(pods: &PodPair<'_>, with_v6_source: bool) -> Result<()> {
    let own6 = IpAddr::V6(pods.meshed.ns.ipv6());
    let six = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));
    let expected = [
        (Family::V4, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6))),
        (Family::V6, if with_v6_source { six } else { own6 }),
    ];
    for (family, source) in expected {
        let _before = pods.meshed.app.take_recorded()?;
        let _passed = pods.both_pass(family, |ip| Probe::http(ip, port(1, 0), "/healthy"))?;
        let seen = pods.meshed.app.take_recorded()?;
        ensure!(
            seen.len() == 1 && seen[0].peer.ip().to_canonical() == source,
            "one request from {source}: {seen:?}"
        );
    }
    Ok(())
}
