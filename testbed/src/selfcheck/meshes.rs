//! Checks that each mesh's rules capture the expected connections, its sidecar accepts the mesh's clients, and
//! a dial from inside the pod passes exactly where it passes in a cluster.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use socket2::{Domain, Protocol, Socket, Type};

use super::Report;
use crate::app::AppSpec;
use crate::kubelet::{Ended, Kubelet, Outcome, Probe};
use crate::pod::{Pod, PodSpec, unavailable};
use crate::rules::RuleSet;
use crate::run::Run;
use crate::sidecar::Refusal;

const OPEN: u16 = 8080;
const CLOSED: u16 = 8081;
const DNS: u16 = 53;
const REQUEST: &str = "GET /healthy HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n";

/// Every rule set, over both families.
pub(super) fn check(run: &Run, report: &mut Report) -> Result<()> {
    let bystander = Kubelet::bystander()?;
    for rules in RuleSet::all() {
        let spec = PodSpec::new(rules.name())
            .rules(*rules)
            .app(AppSpec::new().http(OPEN).http(DNS));
        let pod = match spec.start(run) {
            Ok(pod) => pod,
            Err(error) => match unavailable(&error) {
                Some(reason) => {
                    report.skip(rules.name(), &reason.to_string());
                    continue;
                }
                None => return Err(error),
            },
        };
        for ip in pod.ns.ips() {
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let subject = format!("{} {family}", rules.name());
            for Cell {
                what,
                expected,
                found,
            } in cells(run, &pod, *rules, &bystander, ip)?
            {
                report.cell(&subject, what, expected, found);
            }
        }
    }
    Ok(())
}

struct Cell {
    what: &'static str,
    expected: &'static str,
    found: &'static str,
}

fn cells(
    run: &Run,
    pod: &Pod,
    rules: RuleSet,
    bystander: &Kubelet,
    ip: IpAddr,
) -> Result<Vec<Cell>> {
    let plain = bystander.probe(&Probe::raw(ip, OPEN, REQUEST.as_bytes()))?;
    let closed = bystander.probe(&Probe::tcp(ip, CLOSED))?;
    let http = bystander.probe(&Probe::http(ip, OPEN, "/healthy"))?;
    let mesh = run.mesh().request(ip, OPEN, REQUEST);
    let proxy_uid = rules.proxy().map_or(0, |proxy| proxy.uid);
    let inside = |port, passthrough, uid| {
        pod.ns
            .run(|| dial(SocketAddr::new(ip, port), passthrough, uid))
    };
    let consul = rules == RuleSet::Consul;
    let at_random = rules
        .proxy()
        .is_some_and(|proxy| proxy.refusal == Refusal::CloseOrReset);
    let loopback_range = rules == RuleSet::IstioLoopbackRange;
    let dns = rules.captures_dns();
    Ok(vec![
        Cell {
            what: "plaintext from the node",
            expected: match rules.proxy().map(|proxy| proxy.refusal) {
                None | Some(Refusal::Reset) => "reset",
                Some(Refusal::Close) => "closed",
                Some(Refusal::CloseOrReset) => "closed or reset",
                Some(Refusal::Deny) => "403",
            },
            found: match plain.ended {
                Some(Ended::Reset | Ended::Closed) if plain.body.is_empty() && at_random => {
                    "closed or reset"
                }
                _ if plain.body.starts_with("HTTP/1.1 403 ") => "403",
                Some(Ended::Reset) => "reset",
                Some(Ended::Closed) if plain.body.is_empty() => "closed",
                Some(Ended::Refused) => "refused",
                _ => "answered",
            },
        },
        Cell {
            what: "the kubelet's HTTP probe of a healthy app",
            expected: "failure",
            found: name(http.outcome),
        },
        Cell {
            what: "the kubelet's TCP probe of a closed port",
            expected: "success",
            found: name(closed.outcome),
        },
        Cell {
            what: "a client of the mesh",
            expected: "app",
            found: match mesh {
                Ok(answer) if answer.contains("X-App") => "app",
                _ => "no answer",
            },
        },
        Cell {
            what: "root inside the pod, no source",
            expected: if consul || loopback_range {
                "captured"
            } else {
                "app"
            },
            found: inside(OPEN, false, 0)?,
        },
        Cell {
            what: "root inside the pod, source 127.0.0.6 or ::6",
            expected: if consul { "captured" } else { "app" },
            found: inside(OPEN, true, 0)?,
        },
        Cell {
            what: "root inside the pod, no source, closed port",
            expected: if consul || loopback_range {
                "captured"
            } else {
                "refused"
            },
            found: inside(CLOSED, false, 0)?,
        },
        Cell {
            what: "root inside the pod, no source, port 53",
            expected: if consul || loopback_range || dns {
                "captured"
            } else {
                "app"
            },
            found: inside(DNS, false, 0)?,
        },
        Cell {
            what: "the proxy's user inside the pod, no source",
            expected: match rules.proxy() {
                Some(proxy) if proxy.passthrough_source => "captured",
                _ => "app",
            },
            found: inside(OPEN, false, proxy_uid)?,
        },
    ])
}

const fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Success => "success",
        Outcome::Warning => "warning",
        Outcome::Failure => "failure",
        Outcome::Discarded => "discarded",
    }
}

/// One dial on a thread that is inside the pod's namespace.
fn dial(to: SocketAddr, passthrough: bool, uid: u32) -> Result<&'static str> {
    // The rules match the socket's owner; fsuid applies to this thread only.
    let before = nix::unistd::setfsuid(nix::unistd::Uid::from_raw(uid));
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP));
    let _uid = nix::unistd::setfsuid(before);
    let socket = socket?;
    if passthrough {
        let source: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 6).into(),
            SocketAddr::V6(_) => Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into(),
        };
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    let limit = Duration::from_secs(2);
    socket.set_read_timeout(Some(limit))?;
    match socket.connect_timeout(&to.into(), limit) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            return Ok("refused");
        }
        Err(_) => return Ok("no route"),
        Ok(()) => {}
    }
    let mut stream = std::net::TcpStream::from(socket);
    let mut answer = String::new();
    let exchanged = stream
        .write_all(REQUEST.as_bytes())
        .and_then(|()| stream.read_to_string(&mut answer));
    Ok(match exchanged {
        Ok(_) if answer.contains("X-App") => "app",
        _ => "captured",
    })
}
