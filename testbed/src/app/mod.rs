//! Apps: child processes in a pod's namespace; port and path select their behaviour.
//!
//! | path | answer |
//! |---|---|
//! | `/healthy`, anything else not below | 200, body `ok` |
//! | `/failing` | 503 |
//! | `/status/NNN` | that status |
//! | `/slow?ms=` | 200 after that time |
//! | `/slow-headers?ms=`, `/slow-body?ms=` | one byte per interval |
//! | `/endless-headers`, `/endless-body` | endless, until the client closes |
//! | `/large-headers?kb=` | 200 with that many KiB of headers |
//! | `/large-body?kb=` | 200 with that many KiB of body |
//! | `/early-close`, `/reset` | the connection ends before any answer, normally or by RST |
//! | `/cut-body` | fewer bytes than Content-Length |
//! | `/chunked` | 200, chunked |
//! | `/http10` | an HTTP/1.0 answer without Content-Length |
//! | `/continue` | 100 first, then 200 |
//! | `/garbage` | bytes that are not HTTP |
//! | `/redirect/same`, `/other`, `/loop`, `/none`, `/failing` | 302 (or `?status=`) to `/healthy`, to another host, to itself, without Location, to `/failing` |
//! | `/redirect/relative`, `/absolute?port=`, `/https?port=` | the same to `../healthy`, `http://<own IP>:<port>/healthy`, the same with TLS |
//! | `/redirect/long?kb=` | the same to itself, with a Location of that many KiB |
//! | `/redirect/bad`, `/ftp` | the same with a Location that is not a URL, or has another scheme |
//! | `/hang` | no answer; records when the client closes the connection (`hung-up`) |
//! | `/echo` | 200, the request's head as body |
//!
//! gRPC: services `""` and `ok` are SERVING, `down` is NOT_SERVING, others NOT_FOUND.

mod grpc;
mod http1;
mod http2;
pub mod process;
pub mod tls;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::netns::NetNs;
use crate::worker::{Worker, testbed_program};

/// Which addresses a listener is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bind {
    /// `0.0.0.0`.
    AnyV4,
    /// `::`, which takes IPv4 too.
    DualStack,
    /// `::`, IPv6 only.
    V6Only,
    /// The pod's own addresses, one listener each.
    PodIps,
    /// `127.0.0.1`, which probes cannot reach.
    Loopback,
    /// One address.
    Address(IpAddr),
}

/// The protocol of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// HTTP/1.
    Http,
    /// TLS, then HTTP/1 or, if `h2` is set and the client agrees, HTTP/2.
    Https {
        /// Its certificate.
        certificate: tls::Certificate,
        /// Whether ALPN offers h2 in addition to http/1.1.
        h2: bool,
    },
    /// The gRPC health service, HTTP/2 without TLS.
    Grpc,
    /// A gRPC server without that service.
    GrpcWithoutHealth,
    /// Accepts, reads, never writes.
    Tcp,
    /// Listens and never accepts.
    Deaf,
    /// Echoes received bytes, and records them (`heard`) at the end of the connection.
    Echo,
}

/// One listening port of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its addresses.
    pub bind: Bind,
    /// Port; 0 picks a free one.
    pub port: u16,
}

/// The settings of an app to start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AppSpec {
    /// In the order in which [`App::ports`] names their ports.
    pub listeners: Vec<Listener>,
    /// Initial statuses of paths that differ from the default.
    #[serde(default)]
    pub statuses: HashMap<String, u16>,
}

impl AppSpec {
    /// An app without listeners.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the initial status of `path`.
    #[must_use]
    pub fn status(mut self, path: &str, status: u16) -> Self {
        let _old = self.statuses.insert(path.to_owned(), status);
        self
    }

    /// Adds a listener on `port`.
    #[must_use]
    pub fn listen(mut self, protocol: Protocol, bind: Bind, port: u16) -> Self {
        self.listeners.push(Listener {
            protocol,
            bind,
            port,
        });
        self
    }

    /// HTTP on both families.
    #[must_use]
    pub fn http(self, port: u16) -> Self {
        self.listen(Protocol::Http, Bind::DualStack, port)
    }

    /// HTTPS on both families, ALPN h2 and http/1.1.
    #[must_use]
    pub fn https(self, port: u16, certificate: tls::Certificate) -> Self {
        let protocol = Protocol::Https {
            certificate,
            h2: true,
        };
        self.listen(protocol, Bind::DualStack, port)
    }

    /// gRPC on both families.
    #[must_use]
    pub fn grpc(self, port: u16) -> Self {
        self.listen(Protocol::Grpc, Bind::DualStack, port)
    }

    /// gRPC without the health service, on both families.
    #[must_use]
    pub fn grpc_without_health(self, port: u16) -> Self {
        self.listen(Protocol::GrpcWithoutHealth, Bind::DualStack, port)
    }

    /// TCP on both families.
    #[must_use]
    pub fn tcp(self, port: u16) -> Self {
        self.listen(Protocol::Tcp, Bind::DualStack, port)
    }
}

/// A request, or a connection without request, as the app received it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recorded {
    /// The port it came to.
    pub port: u16,
    /// The peer address from the app's `accept`.
    pub peer: SocketAddr,
    /// `tcp`, `http/1.1`, `h2`, `grpc`, `echo`, `heard` or `hung-up`.
    pub protocol: String,
    /// The request's head byte for byte for HTTP/1; a line `name: value` per header for HTTP/2,
    /// pseudo headers first; the first bytes of what was `heard`; else empty.
    pub head: String,
}

/// A request to an app's process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Control {
    /// Returns the recorded requests and clears them.
    TakeRecorded,
    /// Sets the status of a path.
    SetStatus { path: String, status: u16 },
    /// Sets the status of all paths on a port.
    SetPortStatus { port: u16, status: u16 },
    /// Closes the listeners of a port; open connections remain.
    Close { port: u16 },
}

/// A response of an app's process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Recorded(Vec<Recorded>),
    Done,
}

/// The first line of an app's process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) ports: Vec<u16>,
}

const ANSWER: Duration = Duration::from_secs(5);

/// A running app, killed on drop.
#[derive(Debug)]
pub struct App {
    worker: Worker,
    ports: Vec<u16>,
}

impl App {
    /// Starts an app inside a namespace and waits until all its ports listen.
    ///
    /// # Errors
    /// When a port cannot be bound, or the child does not start.
    pub fn start(ns: &NetNs, spec: &AppSpec) -> Result<Self> {
        Self::start_in(ns, spec, &[])
    }

    /// Like [`App::start`]; the process starts in these cgroups.
    ///
    /// # Errors
    /// Those of [`App::start`]; also when a cgroup cannot be joined.
    pub fn start_in(ns: &NetNs, spec: &AppSpec, cgroups: &[PathBuf]) -> Result<Self> {
        let mut command = std::process::Command::new(testbed_program()?);
        command
            .arg("app")
            .arg("--netns")
            .arg(ns.path())
            .arg("--pod-ip")
            .arg(ns.ipv4().to_string())
            .arg("--pod-ip")
            .arg(ns.ipv6().to_string())
            .arg("--spec")
            .arg(serde_json::to_string(spec)?)
            .args(cgroup::arguments(cgroups));
        let worker = Worker::start(&format!("app in {}", ns.name()), &mut command)?;
        let Ready { ports } = worker.ready()?;
        Ok(Self { worker, ports })
    }

    /// The ports, in the order of the listeners.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Process id, for tests that locate the pod by it.
    pub fn pid(&self) -> u32 {
        self.worker.pid()
    }

    /// The requests that the app received since the last call.
    ///
    /// # Errors
    /// When the app has ended.
    pub fn take_recorded(&self) -> Result<Vec<Recorded>> {
        match self.worker.ask(&Control::TakeRecorded, ANSWER)? {
            Answer::Recorded(list) => Ok(list),
            Answer::Done => anyhow::bail!("the app's response does not match the request"),
        }
    }

    /// Sets the status of `path`.
    ///
    /// # Errors
    /// When the app has ended.
    pub fn set_status(&self, path: &str, status: u16) -> Result<()> {
        let path = path.to_owned();
        let _done: Answer = self
            .worker
            .ask(&Control::SetStatus { path, status }, ANSWER)?;
        Ok(())
    }

    /// Sets the status of all paths on `port`.
    ///
    /// # Errors
    /// When the app has ended.
    pub fn set_port_status(&self, port: u16, status: u16) -> Result<()> {
        let control = Control::SetPortStatus { port, status };
        let _done: Answer = self.worker.ask(&control, ANSWER)?;
        Ok(())
    }

    /// Stops listening on `port`.
    ///
    /// # Errors
    /// When the app has ended.
    pub fn close(&self, port: u16) -> Result<()> {
        let _done: Answer = self.worker.ask(&Control::Close { port }, ANSWER)?;
        Ok(())
    }

    /// Kills the app.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.worker.kill().map(drop)
    }
}
