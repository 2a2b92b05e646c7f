//! The benchmarks' prober: a process in the kubelet's cgroup that probes with blocking sockets, one connection
//! after the other, so that its own cost is small compared to what it measures.
//!
//! It alternates between targets, so that noise affects all of them alike. A sample is a complete probe, from
//! `socket()` to `close()`.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use testbed::cgroup::{self, Cgroup};
use testbed::netns;
use testbed::rpc;
use testbed::worker::Worker;

/// The kubelet's SO_LINGER (kubernetes pkg/probe/dialer_others.go).
const LINGER: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(600);
const HEAD_LIMIT: usize = 4096;

/// A target of probes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Target {
    /// `GET path`, which must be answered with 200.
    Http { address: SocketAddr, path: String },
    /// The same from within a pod's network namespace, from `source`.
    HttpInside {
        netns: PathBuf,
        source: IpAddr,
        address: SocketAddr,
        path: String,
    },
    /// A connect that must succeed.
    Open { address: SocketAddr },
    /// A connect that must be refused.
    Closed { address: SocketAddr },
}

/// A number of rounds, each with one probe of each target.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    targets: Vec<Target>,
    rounds: usize,
}

/// Arguments of `bench prober`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Cgroup to move into before anything else
    #[arg(long)]
    cgroup: PathBuf,
}

/// Probes on request until standard input ends.
///
/// # Errors
/// When the cgroup cannot be joined.
pub fn main(args: &Args) -> Result<()> {
    cgroup::join(&args.cgroup, 0)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(rpc::serve(&"ready", |order: Order| async move {
            match tokio::task::spawn_blocking(move || run(&order)).await {
                Ok(samples) => samples,
                Err(error) => Err(error.to_string()),
            }
        }))
}

fn run(order: &Order) -> Result<Vec<Vec<u64>>, String> {
    let mut samples = vec![Vec::with_capacity(order.rounds); order.targets.len()];
    for _ in 0..order.rounds {
        for (target, samples) in order.targets.iter().zip(&mut samples) {
            let took = timed(target).map_err(|error| format!("{target:?}: {error:#}"))?;
            samples.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
    }
    Ok(samples)
}

/// Duration of the probe, without entering the namespace.
fn timed(target: &Target) -> Result<Duration> {
    let inside = match target {
        Target::HttpInside { netns, .. } => Some(netns),
        _ => None,
    };
    if let Some(netns) = inside {
        netns::enter(netns)?;
    }
    let begun = Instant::now();
    let probed = probe(target);
    let took = begun.elapsed();
    if inside.is_some() {
        // The process's namespace is that of its first thread; this is another thread.
        netns::enter(Path::new("/proc/self/ns/net"))?;
    }
    probed?;
    Ok(took)
}

fn probe(target: &Target) -> io::Result<()> {
    match target {
        Target::Http { address, path } => get(*address, path, None),
        Target::HttpInside {
            source,
            address,
            path,
            ..
        } => get(*address, path, Some(*source)),
        Target::Open { address } => connect(*address, None).map(drop),
        Target::Closed { address } => match connect(*address, None) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("connected, which it should not")),
        },
    }
}

fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_linger(Some(LINGER))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&address.into())?;
    Ok(socket.into())
}

/// Sends the kubelet's request and reads the response up to the last byte of the body.
fn get(address: SocketAddr, path: &str, source: Option<IpAddr>) -> io::Result<()> {
    let mut stream = connect(address, source)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-probe/1.36\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::with_capacity(HEAD_LIMIT);
    let mut buffer = [0; HEAD_LIMIT];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..length]);
        if is_whole(&answer)? {
            return Ok(());
        }
    }
}

/// Whether a response with a Content-Length is complete.
fn is_whole(answer: &[u8]) -> io::Result<bool> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Ok(false);
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200 ") {
        let line = head.lines().next().unwrap_or_default();
        return Err(io::Error::other(format!("answered: {line}")));
    }
    let length: usize = head
        .split_once("content-length:")
        .and_then(|(_, rest)| rest.split("\r\n").next()?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("an answer without Content-Length"))?;
    Ok(answer.len() >= end + 4 + length)
}

/// The benchmark's side of the RPC with a running prober.
pub(crate) struct Prober(Worker);

impl Prober {
    /// Starts one in `cgroup`.
    pub(crate) fn start(cgroup: &Cgroup) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("prober").arg("--cgroup").arg(cgroup.path());
        Worker::start("prober", &mut command).map(Self)
    }

    /// Nanoseconds of each probe, by target.
    ///
    /// # Errors
    /// When a probe does not have the result that its target requires.
    pub(crate) fn measure<const N: usize>(
        &self,
        targets: [Target; N],
        rounds: usize,
    ) -> Result<[Vec<u64>; N]> {
        let order = Order {
            targets: targets.to_vec(),
            rounds,
        };
        let samples: Result<Vec<Vec<u64>>, String> = self.0.ask(&order, PATIENCE)?;
        samples
            .map_err(|error| anyhow!(error))?
            .try_into()
            .ok()
            .context("the prober gave samples of other targets")
    }
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert!(is_whole(answer).expect("an answer"));
        for length in 0..answer.len() {
            assert!(
                !is_whole(&answer[..length]).expect("part of one"),
                "{length}"
            );
        }
        assert!(is_whole(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").is_err());
    }
}
