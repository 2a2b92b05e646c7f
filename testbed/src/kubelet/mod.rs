//! A stand-in kubelet: a separate process in its own cgroup that probes exactly like Kubernetes 1.36
//! (kubernetes pkg/probe, pkg/kubelet/prober, pkg/kubelet/lifecycle).
//!
//! The calls block; any number can run concurrently.

mod control_socket;
mod dial;
mod execute;
mod grpc;
mod http;
mod http1;
mod http2;
pub mod process;
mod raw;
mod tls;

pub use self::control_socket::{ControlSocket, request_probe};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::pace;
use crate::run::Run;
use crate::worker::{Pending, Worker, testbed_program};

pub(crate) use dial::Dialer;
pub(crate) use execute::execute;

/// Limit for what the kubelet's timeout does not cover: a hook, or a child that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// `httpGet.scheme`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Plaintext.
    Http,
    /// TLS, whose certificate is not verified.
    Https,
}

/// The action of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// `httpGet` of a probe.
    Http {
        /// TLS or not.
        scheme: Scheme,
        /// Path and query.
        path: String,
        /// `httpHeaders`.
        headers: Vec<(String, String)>,
    },
    /// `httpGet` of a lifecycle hook.
    Hook {
        /// TLS or not.
        scheme: Scheme,
        /// Path and query.
        path: String,
        /// `httpHeaders`.
        headers: Vec<(String, String)>,
    },
    /// `tcpSocket`.
    Tcp,
    /// `grpc`.
    Grpc {
        /// `service`.
        service: String,
    },
    /// Not a probe, but a connection of the kubelet's process: sends these bytes and collects the answer
    /// until the connection ends or the timeout.
    Raw {
        /// What to send.
        #[serde(with = "latin1")]
        send: Vec<u8>,
        /// Whether to end this side once it is sent.
        finish: bool,
    },
    /// Like [`Action::Raw`], in two parts: the first, a pause, then the rest and the end of this side, or a
    /// reset instead.
    Halves {
        /// What to send first.
        #[serde(with = "latin1")]
        first: Vec<u8>,
        /// What to send after the pause; `None` for a reset.
        rest: Option<Vec<u8>>,
        /// How long to wait between them.
        pause: Duration,
    },
    /// Not a probe either: a UDP socket of the kubelet's process connects and sends this.
    Datagram {
        /// What to send.
        #[serde(with = "latin1")]
        send: Vec<u8>,
    },
}

/// One probe to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The action.
    pub action: Action,
    /// The pod's address.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// `timeoutSeconds`; none for hooks.
    pub timeout: Option<Duration>,
    /// Dial an IPv4 address from an IPv6 socket, as an IPv4-mapped address.
    pub mapped: bool,
    /// Dial with Multipath TCP, as a kubelet with `GODEBUG=multipathtcp=1` does.
    pub multipath: bool,
}

impl Probe {
    fn new(ip: impl Into<IpAddr>, port: u16, action: Action) -> Self {
        let timeout = match action {
            Action::Hook { .. } => None,
            _ => Some(pace::stretch(Duration::from_secs(1))),
        };
        Self {
            action,
            ip: ip.into(),
            port,
            timeout,
            mapped: false,
            multipath: false,
        }
    }

    /// An `httpGet` probe.
    pub fn http(ip: impl Into<IpAddr>, port: u16, path: &str) -> Self {
        let (scheme, path, headers) = (Scheme::Http, path.to_owned(), Vec::new());
        Self::new(
            ip,
            port,
            Action::Http {
                scheme,
                path,
                headers,
            },
        )
    }

    /// An `httpGet` probe with scheme HTTPS.
    pub fn https(ip: impl Into<IpAddr>, port: u16, path: &str) -> Self {
        let (scheme, path, headers) = (Scheme::Https, path.to_owned(), Vec::new());
        Self::new(
            ip,
            port,
            Action::Http {
                scheme,
                path,
                headers,
            },
        )
    }

    /// A `tcpSocket` probe.
    pub fn tcp(ip: impl Into<IpAddr>, port: u16) -> Self {
        Self::new(ip, port, Action::Tcp)
    }

    /// A `grpc` probe; `service` may be empty.
    pub fn grpc(ip: impl Into<IpAddr>, port: u16, service: &str) -> Self {
        Self::new(
            ip,
            port,
            Action::Grpc {
                service: service.to_owned(),
            },
        )
    }

    /// An `httpGet` lifecycle hook.
    pub fn hook(ip: impl Into<IpAddr>, port: u16, path: &str) -> Self {
        let (scheme, path, headers) = (Scheme::Http, path.to_owned(), Vec::new());
        Self::new(
            ip,
            port,
            Action::Hook {
                scheme,
                path,
                headers,
            },
        )
    }

    /// Raw bytes from the kubelet's process.
    pub fn raw(ip: impl Into<IpAddr>, port: u16, send: &[u8]) -> Self {
        Self::new(
            ip,
            port,
            Action::Raw {
                send: send.to_vec(),
                finish: false,
            },
        )
    }

    /// Like [`Probe::raw`], and shuts down its side of the connection after all bytes.
    pub fn raw_to_the_end(ip: impl Into<IpAddr>, port: u16, send: &[u8]) -> Self {
        let (send, finish) = (send.to_vec(), true);
        Self::new(ip, port, Action::Raw { send, finish })
    }

    /// Like [`Probe::raw_to_the_end`], with a pause before all but the `first` bytes.
    pub fn in_halves(
        ip: impl Into<IpAddr>,
        port: u16,
        (first, rest): (&[u8], &[u8]),
        pause: Duration,
    ) -> Self {
        let (first, rest) = (first.to_vec(), Some(rest.to_vec()));
        let pause = pace::stretch(pause);
        Self::new(ip, port, Action::Halves { first, rest, pause })
    }

    /// Sends raw bytes from the kubelet's process, and resets the connection after a pause.
    pub fn raw_then_reset(ip: impl Into<IpAddr>, port: u16, send: &[u8], pause: Duration) -> Self {
        let (first, rest) = (send.to_vec(), None);
        let pause = pace::stretch(pause);
        Self::new(ip, port, Action::Halves { first, rest, pause })
    }

    /// A datagram from the kubelet's process.
    pub fn datagram(ip: impl Into<IpAddr>, port: u16, send: &[u8]) -> Self {
        let send = send.to_vec();
        Self::new(ip, port, Action::Datagram { send })
    }

    /// Adds one of `httpHeaders`; no effect on actions without headers.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Action::Http { headers, .. } | Action::Hook { headers, .. } = &mut self.action {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Sets another timeout than 1 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(pace::stretch(timeout));
        self
    }

    /// Dials an IPv4 address from an IPv6 socket.
    #[must_use]
    pub const fn mapped(mut self) -> Self {
        self.mapped = true;
        self
    }

    /// Dials with Multipath TCP.
    #[must_use]
    pub const fn multipath(mut self) -> Self {
        self.multipath = true;
        self
    }
}

/// Serialises bytes as text, one character each, because a JSON list of millions of numbers takes seconds.
mod latin1 {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&bytes.iter().copied().map(char::from).collect::<String>())
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<u8>, D::Error> {
        String::deserialize(from)?
            .chars()
            .map(|letter| u8::try_from(letter).map_err(D::Error::custom))
            .collect()
    }
}

/// The kubelet's conclusion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The probe passed.
    Success,
    /// It passed, with an event: a redirect that was not followed.
    Warning,
    /// It failed.
    Failure,
    /// Each attempt ended with an error of the prober: the kubelet sends an event and discards the result
    /// (pkg/kubelet/prober/worker.go, `doProbe`).
    Discarded,
}

/// The result of a probe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbeResult {
    /// The kubelet's conclusion.
    pub outcome: Outcome,
    /// HTTP status of the last answer.
    pub status: Option<u16>,
    /// The message of the kubelet's event.
    pub message: String,
    /// Number of attempts: after an error of the prober the kubelet tries again, up to three times in
    /// total.
    pub attempts: u32,
    /// From the first attempt's dial to the end.
    pub latency: Duration,
    /// `getpeername` of the last connection.
    pub peer: Option<SocketAddr>,
    /// The last answer's head, byte for byte where it was HTTP/1.
    pub head: String,
    /// The last answer's body, at most 10 KiB; for raw bytes all received bytes.
    pub body: String,
    /// Raw bytes only: how the connection ended.
    pub ended: Option<Ended>,
}

/// How a raw connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// The other end closed.
    Closed,
    /// The other end reset it.
    Reset,
    /// It was still open at the timeout.
    Open,
    /// It was never made.
    Refused,
}

impl ProbeResult {
    pub(crate) fn new(outcome: Outcome, message: impl Into<String>) -> Self {
        Self {
            outcome,
            status: None,
            message: message.into(),
            attempts: 1,
            latency: Duration::ZERO,
            peer: None,
            head: String::new(),
            body: String::new(),
            ended: None,
        }
    }

    pub(crate) fn failure(message: impl Into<String>) -> Self {
        Self::new(Outcome::Failure, message)
    }

    /// Whether the kubelet regards it as passed.
    pub fn passed(&self) -> bool {
        self.outcome != Outcome::Failure
    }
}

/// A running stand-in kubelet, killed on drop.
#[derive(Debug)]
pub struct Kubelet {
    worker: Worker,
}

/// A probe in progress.
#[derive(Debug)]
pub struct ProbePending {
    pending: Pending,
    patience: Duration,
}

impl Kubelet {
    /// Starts one in `cgroup`, as a process named `name` (`/proc/<pid>/comm`, at most 15 characters).
    ///
    /// # Errors
    /// When it cannot be started there.
    pub fn start(run: &Run, cgroup: &Cgroup, name: &str) -> Result<Self> {
        let program = run.dir().join(name);
        if !program.exists() {
            // comm is the name of the file that was executed, a link's own name too.
            symlink(testbed_program()?, &program)
                .with_context(|| format!("linking {}", program.display()))?;
        }
        let mut command = Command::new(fs::canonicalize(run.dir())?.join(name));
        command.arg("kubelet").arg("--cgroup").arg(cgroup.path());
        let worker = Worker::start(name, &mut command)?;
        Ok(Self { worker })
    }

    /// A prober outside any kubelet's cgroup: another process on the node.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn bystander() -> Result<Self> {
        let mut command = Command::new(testbed_program()?);
        command.arg("kubelet");
        let worker = Worker::start("bystander", &mut command)?;
        Ok(Self { worker })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.worker.pid()
    }

    /// Makes a probe and waits for its result.
    ///
    /// # Errors
    /// When the kubelet's process has ended or hangs; a failing probe is a result.
    pub fn probe(&self, probe: &Probe) -> Result<ProbeResult> {
        self.begin(probe)?.wait()
    }

    /// Makes a probe whose result can be waited for later.
    ///
    /// # Errors
    /// When the kubelet's process has ended.
    pub fn begin(&self, probe: &Probe) -> Result<ProbePending> {
        Ok(ProbePending {
            pending: self.worker.send(probe)?,
            // Three attempts at most.
            patience: probe.timeout.unwrap_or(Duration::ZERO) * 3 + PATIENCE,
        })
    }

    /// Kills it, as a node's init would at a restart.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.worker.kill().map(drop)
    }
}

impl ProbePending {
    /// Waits for the result.
    ///
    /// # Errors
    /// When the kubelet's process has ended or hangs.
    pub fn wait(self) -> Result<ProbeResult> {
        self.pending.wait(self.patience)
    }
}
