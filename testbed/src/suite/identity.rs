//! The handler answers only the kubelet, and the programs redirect only the kubelet's probes.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::cases::Cases;
use super::env::Env;
use super::sample_pod::{self, CLOSED, HTTP, OPEN};
use crate::app::AppSpec;
use crate::kubelet::{Ended, Kubelet, Probe};
use crate::pace;
use crate::pod::Pod;
use crate::wait;

/// A port of the app that no probe declares.
const UNDECLARED: u16 = 7070;
const SOON: Duration = Duration::from_secs(5);
/// TCP states of include/net/tcp_states.h, as in /proc/net/tcp.
const LISTEN: &str = "0A";
const TIME_WAIT: &str = "06";

/// Bytes that a local attacker may send.
const WORDS: [&[u8]; 5] = [
    b"",
    b"GET /healthy HTTP/1.1\r\nHost: a\r\nUser-Agent: kube-probe/1.36\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x00\x05hello",
    b"anything",
];

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[])?;
    let app = AppSpec::new().http(HTTP).grpc(sample_pod::GRPC).tcp(OPEN);
    let mut spec = sample_pod::pod("identity").app(app.http(UNDECLARED));
    // The sample pod's probes, and an app that also listens on a port without a probe.
    spec = spec.with_status();
    let pod = env.pod(spec)?;
    for (family, loopback) in [
        ("v4", IpAddr::V4(Ipv4Addr::LOCALHOST)),
        ("v6", IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ] {
        cases.case(&format!("by-hand/{family}"), || {
            by_hand(&env, &env.bystander, loopback)
        });
        cases.case(&format!("by-hand-from-the-kubelet/{family}"), || {
            by_hand(&env, &env.kubelet, loopback)
        });
        cases.case(&format!("port-used-again/{family}"), || {
            used_again(&env, &pod, loopback)
        });
    }
    cases.case("other-process-of-the-cgroup", || other_process(&env, &pod));
    cases.case("other-servers-are-untouched", || other_servers(&env));
    cases.case("undeclared-port-meets-the-mesh", || undeclared(&env, &pod));
    Ok(())
}

/// The sockets of /proc/net/tcp and tcp6: local address, remote address, state.
fn sockets(family: IpAddr) -> Result<Vec<(SocketAddr, SocketAddr, String)>> {
    let path = match family {
        IpAddr::V4(_) => "/proc/net/tcp",
        IpAddr::V6(_) => "/proc/net/tcp6",
    };
    let text = fs::read_to_string(path)?;
    text.lines()
        .skip(1)
        .map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let mut next = || fields.next().context("a line of /proc/net/tcp is short");
            let (local, remote) = (address(next()?)?, address(next()?)?);
            Ok((local, remote, next()?.to_owned()))
        })
        .collect()
}

/// Parses `0100007F:1F90` as 127.0.0.1:8080: words in the machine's byte order.
fn address(text: &str) -> Result<SocketAddr> {
    let (ip, port) = text.split_once(':').context("no address")?;
    let words: Vec<u32> = (0..ip.len() / 8)
        .map(|word| u32::from_str_radix(&ip[word * 8..word * 8 + 8], 16))
        .collect::<Result<_, _>>()?;
    let ip = match words[..] {
        [v4] => IpAddr::from(v4.to_ne_bytes()),
        [a, b, c, d] => {
            let mut bytes = [0; 16];
            for (slot, word) in bytes.chunks_exact_mut(4).zip([a, b, c, d]) {
                slot.copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::from(bytes)
        }
        _ => bail!("no address: {text}"),
    };
    Ok(SocketAddr::new(ip, u16::from_str_radix(port, 16)?))
}

/// The handler's addresses on `loopback`, from the listeners that every process can see.
fn handlers(env: &Env, loopback: IpAddr) -> Result<Vec<SocketAddr>> {
    let own = env.daemon.handler()?;
    let listening: Vec<SocketAddr> = sockets(loopback)?
        .into_iter()
        .filter(|(local, _, state)| {
            local.ip() == loopback && state == LISTEN && own.contains(local)
        })
        .map(|(local, _, _)| local)
        .collect();
    ensure!(
        !listening.is_empty(),
        "none of the handler's {own:?} listens on {loopback}"
    );
    Ok(listening)
}

/// The first of [`handlers`].
fn handler(env: &Env, loopback: IpAddr) -> Result<SocketAddr> {
    handlers(env, loopback)?.first().copied().context("none")
}

fn unknown_peers(env: &Env) -> Result<f64> {
    env.daemon.metric("probe_handler_unknown_peers_total")
}

fn by_hand(env: &Env, who: &Kubelet, loopback: IpAddr) -> Result<()> {
    let handler = handler(env, loopback)?;
    let before = unknown_peers(env)?;
    for words in WORDS {
        let result = who.probe(&Probe::raw(loopback, handler.port(), words))?;
        // A reset may arrive so soon that connect() reports it.
        let reset = match result.ended {
            Some(Ended::Reset) => true,
            Some(Ended::Refused) => result.message.contains("reset"),
            _ => false,
        };
        ensure!(reset && result.body.is_empty(), "no bare reset: {result:?}");
    }
    let counted = unknown_peers(env)? - before;
    let made = WORDS.len() as f64;
    ensure!(
        (counted - made).abs() < f64::EPSILON,
        "{made} connections of other processes, {counted} counted"
    );
    Ok(())
}

/// The source address and port of an answered probe give no access once they are free.
fn used_again(env: &Env, pod: &Pod, loopback: IpAddr) -> Result<()> {
    let handlers = handlers(env, loopback)?;
    let ip: IpAddr = match loopback {
        IpAddr::V4(_) => pod.ns.ipv4().into(),
        IpAddr::V6(_) => pod.ns.ipv6().into(),
    };
    let before = peers(&handlers)?;
    // An HTTP probe: the handler closes first, so that the kubelet's port is free at once.
    let (source, mut stream, unknown) = wait::until("a port to use again", SOON, || {
        let _passed = env.passes(&Probe::http(ip, HTTP, "/healthy")).ok()?;
        let mut used = peers(&handlers).ok()?;
        used.retain(|peer| !before.contains(peer));
        let unknown = unknown_peers(env).ok()?;
        used.into_iter().find_map(|(handler, source)| {
            match connect_from(source, handler).map_err(|error| error.kind()) {
                Ok(stream) => Some((source, Some(stream), unknown)),
                // The reset may arrive so soon that connect() reports it.
                Err(ErrorKind::ConnectionReset) => Some((source, None, unknown)),
                Err(_) => None,
            }
        })
    })?;
    let mut answer = Vec::new();
    let ended = match &mut stream {
        None => Err(ErrorKind::ConnectionReset),
        Some(stream) => {
            stream.set_read_timeout(Some(pace::stretch(SOON)))?;
            // A reset is reported only once: to the write, not to the read after it.
            let ended = stream
                .write_all(WORDS[1])
                .and_then(|()| stream.read_to_end(&mut answer));
            ended.map_err(|error| error.kind())
        }
    };
    let reset = matches!(
        ended,
        Err(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
    );
    ensure!(
        reset && answer.is_empty(),
        "no bare reset from the kubelet's old {source}: {ended:?}, {}",
        String::from_utf8_lossy(&answer)
    );
    let counted = unknown_peers(env)? - unknown;
    ensure!(
        counted >= 1.0,
        "one connection of another process, {counted} counted"
    );
    Ok(())
}

/// Connections to one of the `handlers`: peer and handler, as far as the peer's socket shows them.
fn peers(handlers: &[SocketAddr]) -> Result<Vec<(SocketAddr, SocketAddr)>> {
    let family = handlers.first().context("no handler")?.ip();
    let sockets = sockets(family)?.into_iter();
    Ok(sockets
        .filter(|(local, _, state)| handlers.contains(local) && state == TIME_WAIT)
        .map(|(local, peer, _)| (local, peer))
        .collect())
}

fn connect_from(source: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(source),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())?;
    socket.connect_timeout(&to.into(), pace::stretch(Duration::from_secs(1)))?;
    Ok(socket.into())
}

/// The programs compare the process with the kubelet's: other processes in its cgroup are subject to the mesh.
fn other_process(env: &Env, pod: &Pod) -> Result<()> {
    let filter = env.daemon.status()?["kubelet"]["process_filter"].as_u64();
    ensure!(
        filter == Some(env.kubelet.pid().into()),
        "the kubelet is process {}, the filter {filter:?}",
        env.kubelet.pid()
    );
    let other = Kubelet::start(&env.run, &env.cgroup, "not-the-kubelet")?;
    let (seen, others) = (
        env.daemon.counter("seen")?,
        env.daemon.counter("other_process")?,
    );
    for ip in pod.ns.ips() {
        sample_pod::check_mesh_only(&other, ip)?;
    }
    ensure!(
        env.daemon.counter("seen")? == seen,
        "it was taken for the kubelet"
    );
    let counted = env.daemon.counter("other_process")? - others;
    let least = 2 * sample_pod::probes(pod.ns.ipv4().into()).len() as u64;
    ensure!(counted >= least, "{least} connections, {counted} counted");
    // The kubelet itself is still served.
    sample_pod::check_verdicts(&env.kubelet, pod.ns.ipv4().into())
}

/// The kubelet also connects to the API server, the container runtime and its own health port.
fn other_servers(env: &Env) -> Result<()> {
    let (node4, _) = env.run.node_ips();
    for ip in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(node4),
    ] {
        let server = TcpListener::bind((ip, 0)).with_context(|| format!("listening on {ip}"))?;
        let address = server.local_addr()?;
        let seen = env.daemon.counter("seen")?;
        let served = thread::spawn(move || -> Result<()> {
            let (mut client, _) = server.accept()?;
            let mut request = [0; 4];
            client.read_exact(&mut request)?;
            client.write_all(b"served ")?;
            Ok(client.write_all(&request)?)
        });
        let result = env
            .kubelet
            .probe(&Probe::raw(ip, address.port(), b"ping"))?;
        match served.join() {
            Ok(served) => served?,
            Err(_) => bail!("the server panicked"),
        }
        ensure!(
            result.body == "served ping" && result.peer == Some(address),
            "not the server's answer: {result:?}"
        );
        ensure!(
            env.daemon.counter("seen")? == seen,
            "a connection to {address} was seen"
        );
    }
    Ok(())
}

/// The handler does not handle connections to the app's other ports, not even the kubelet's.
fn undeclared(env: &Env, pod: &Pod) -> Result<()> {
    let seen = env.daemon.counter("seen")?;
    for ip in pod.ns.ips() {
        let _refused = env.fails(&Probe::http(ip, UNDECLARED, "/healthy"))?;
    }
    ensure!(env.daemon.counter("seen")? == seen, "it was seen");
    // A request on a declared port that is not a declared probe is subject to the mesh too.
    let ip = pod.ns.ipv4();
    let result = env.fails(&Probe::http(ip, HTTP, "/secret"))?;
    ensure!(result.status.is_none(), "an answer: {result:?}");
    let received = pod.app.take_recorded()?;
    let got_in = received.iter().any(|request| {
        request.port == UNDECLARED || request.head.contains("/secret") || request.port == CLOSED
    });
    ensure!(!got_in, "it reached the app: {received:?}");
    Ok(())
}
