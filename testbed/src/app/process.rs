//! The app's process.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol as IpProtocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::{Answer, AppSpec, Bind, Control, Listener, Protocol, Ready, Recorded};
use super::{grpc, http1, http2, tls};
use crate::{cgroup, netns, rpc};

/// Maximum number of recorded requests, so that a benchmark does not fill the memory.
const KEPT: usize = 10_000;
const BACKLOG: i32 = 1024;
/// Maximum number of recorded bytes per connection to an echo port.
const HEARD: usize = 4096;

/// Arguments of `testbed app`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Network namespace to enter
    #[arg(long)]
    netns: Option<PathBuf>,
    /// Address of the pod, for listeners bound to it
    #[arg(long)]
    pod_ip: Vec<IpAddr>,
    /// Listeners, as JSON
    #[arg(long)]
    spec: String,
    /// Serve until SIGTERM instead of the end of standard input, as a container does
    #[arg(long)]
    until_terminated: bool,
    /// Cgroups to move into before anything else
    #[arg(long)]
    cgroup: Vec<PathBuf>,
}

/// Runs the app until standard input ends, or SIGTERM.
///
/// # Errors
/// When the namespace cannot be entered or a port cannot be bound.
pub fn main(args: &Args) -> Result<()> {
    for path in &args.cgroup {
        cgroup::join(path, 0)?;
    }
    if let Some(path) = &args.netns {
        netns::enter(path)?;
    }
    let spec: AppSpec = serde_json::from_str(&args.spec).context("--spec")?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(async {
            serve(spec, &args.pod_ip).await?;
            match args.until_terminated {
                true => rpc::terminated().await,
                false => Ok(()),
            }
        })
}

/// State shared by all listeners of an app.
#[derive(Debug, Default)]
pub(super) struct State {
    recorded: Mutex<Vec<Recorded>>,
    statuses: Mutex<HashMap<String, u16>>,
    port_statuses: Mutex<HashMap<u16, u16>>,
}

impl State {
    pub(super) fn record(&self, recorded: Recorded) {
        let mut list = lock(&self.recorded);
        if list.len() < KEPT {
            list.push(recorded);
        }
    }

    /// The status set for a path, or for a port.
    pub(super) fn status(&self, port: u16, path: &str) -> Option<u16> {
        let of_path = lock(&self.statuses).get(path).copied();
        of_path.or_else(|| lock(&self.port_statuses).get(&port).copied())
    }
}

async fn serve(spec: AppSpec, pod_ips: &[IpAddr]) -> Result<()> {
    let state = Arc::new(State {
        statuses: Mutex::new(spec.statuses),
        ..State::default()
    });
    let mut tasks: Vec<(u16, JoinHandle<()>)> = Vec::new();
    let mut ports = Vec::new();
    for listener in spec.listeners {
        ports.push(listen(listener, pod_ips, &state, &mut tasks)?);
    }
    let tasks = Arc::new(Mutex::new(tasks));
    rpc::serve(&Ready { ports }, move |control| {
        let state = Arc::clone(&state);
        let tasks = Arc::clone(&tasks);
        async move {
            match control {
                Control::TakeRecorded => {
                    Answer::Recorded(std::mem::take(&mut lock(&state.recorded)))
                }
                Control::SetStatus { path, status } => {
                    let _old = lock(&state.statuses).insert(path, status);
                    Answer::Done
                }
                Control::SetPortStatus { port, status } => {
                    let _old = lock(&state.port_statuses).insert(port, status);
                    Answer::Done
                }
                Control::Close { port } => {
                    let closing: Vec<_> =
                        lock(&tasks).extract_if(.., |(of, _)| *of == port).collect();
                    for (_, task) in closing {
                        task.abort();
                        let _cancelled = task.await;
                    }
                    Answer::Done
                }
            }
        }
    })
    .await
}

/// Binds one listener, at one address or two, and serves it.
fn listen(
    listener: Listener,
    pod_ips: &[IpAddr],
    state: &Arc<State>,
    tasks: &mut Vec<(u16, JoinHandle<()>)>,
) -> Result<u16> {
    let any4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let any6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let addresses = match listener.bind {
        Bind::AnyV4 => vec![any4],
        Bind::DualStack | Bind::V6Only => vec![any6],
        Bind::PodIps => pod_ips.to_vec(),
        Bind::Loopback => vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        Bind::Address(address) => vec![address],
    };
    let mut port = listener.port;
    for address in addresses {
        let only_v6 = listener.bind != Bind::DualStack;
        let socket = bind(SocketAddr::new(address, port), only_v6)
            .with_context(|| format!("listening on {address} port {port}"))?;
        port = socket.local_addr()?.port();
        let acceptor = match listener.protocol {
            Protocol::Https { certificate, h2 } => Some(tls::acceptor(certificate, h2)?),
            _ => None,
        };
        let connection = Connection {
            port,
            protocol: listener.protocol,
            acceptor,
        };
        tasks.push((
            port,
            tokio::spawn(accept(socket, connection, Arc::clone(state))),
        ));
    }
    Ok(port)
}

/// A listening socket, IPv6 with or without IPv4.
pub(crate) fn bind(address: SocketAddr, only_v6: bool) -> Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(IpProtocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into())?)
}

/// Settings of connections to one listener.
#[derive(Clone)]
struct Connection {
    port: u16,
    protocol: Protocol,
    acceptor: Option<TlsAcceptor>,
}

async fn accept(listener: TcpListener, connection: Connection, state: Arc<State>) {
    if connection.protocol == Protocol::Deaf {
        std::future::pending::<()>().await;
    }
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Like servers in Go and in most other languages.
                if let Err(error) = stream.set_nodelay(true) {
                    eprintln!("testbed app: TCP_NODELAY: {error}");
                }
                let (connection, state) = (connection.clone(), Arc::clone(&state));
                // Not an error: some tests close connections early.
                tokio::spawn(async move { drop(connection.serve(stream, peer, &state).await) });
            }
            Err(error) => eprintln!("testbed app: accept: {error}"),
        }
    }
}

impl Connection {
    async fn serve(
        self,
        mut stream: TcpStream,
        peer: SocketAddr,
        state: &Arc<State>,
    ) -> Result<()> {
        let port = self.port;
        match (self.protocol, self.acceptor) {
            (Protocol::Https { .. }, Some(acceptor)) => {
                let stream = acceptor.accept(stream).await?;
                match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => http2::serve(stream, port, peer, state).await,
                    _ => http1::serve(stream, port, peer, state).await,
                }
            }
            (Protocol::Http, _) => http1::serve(stream, port, peer, state).await,
            (Protocol::Grpc, _) => grpc::serve(stream, port, peer, state).await,
            (Protocol::GrpcWithoutHealth, _) => grpc::serve_nothing(stream).await,
            (Protocol::Echo, _) => {
                let (protocol, head) = ("echo".to_owned(), String::new());
                state.record(Recorded {
                    port,
                    peer,
                    protocol,
                    head,
                });
                let mut heard = Vec::new();
                let echoed = echo(&mut stream, &mut heard).await;
                let protocol = "heard".to_owned();
                let head = String::from_utf8_lossy(&heard).into_owned();
                state.record(Recorded {
                    port,
                    peer,
                    protocol,
                    head,
                });
                echoed?;
                Ok(stream.shutdown().await?)
            }
            _ => {
                let (protocol, head) = ("tcp".to_owned(), String::new());
                state.record(Recorded {
                    port,
                    peer,
                    protocol,
                    head,
                });
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await? > 0 {}
                Ok(())
            }
        }
    }
}

/// Echoes received bytes, and records the first ones as `heard`.
async fn echo(stream: &mut TcpStream, heard: &mut Vec<u8>) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        let room = HEARD.saturating_sub(heard.len()).min(length);
        heard.extend_from_slice(&bytes[..room]);
        stream.write_all(bytes).await?;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
