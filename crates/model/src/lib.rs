//! The daemon's data types for probes and pods. Depends on no other layer.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::inbound::Inbound;

pub mod bounds;
pub mod inbound;
pub mod netns;
pub mod result;
pub mod state;

/// Which of a container's probes or lifecycle hooks this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeKind {
    /// `livenessProbe`.
    Liveness,
    /// `readinessProbe`.
    Readiness,
    /// `startupProbe`.
    Startup,
    /// `lifecycle.postStart`.
    PostStart,
    /// `lifecycle.preStop`.
    PreStop,
}

impl ProbeKind {
    /// Whether this is a lifecycle hook: for the kubelet any HTTP status of a hook is a success, and only a
    /// transport error is a failure (kubernetes pkg/kubelet/lifecycle/handlers.go).
    pub const fn is_hook(self) -> bool {
        matches!(self, Self::PostStart | Self::PreStop)
    }

    /// The field of a container that declares it.
    pub const fn field(self) -> &'static str {
        match self {
            Self::Liveness => "livenessProbe",
            Self::Readiness => "readinessProbe",
            Self::Startup => "startupProbe",
            Self::PostStart => "lifecycle.postStart",
            Self::PreStop => "lifecycle.preStop",
        }
    }

    /// Name in metrics and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
            Self::PostStart => "poststart",
            Self::PreStop => "prestop",
        }
    }
}

/// `httpGet.scheme`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Plaintext; the default.
    Http,
    /// TLS, whose certificate the kubelet does not verify.
    Https,
}

/// What a probe does. All ports are numbers: named ports are already resolved in their container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// `httpGet`.
    Http {
        /// TLS or not.
        scheme: Scheme,
        /// Port, never 0.
        port: u16,
        /// Request target as the kubelet sends it: path and query, beginning with `/`.
        target: String,
        /// `httpHeaders`, name and value, in order.
        headers: Vec<(String, String)>,
    },
    /// `tcpSocket`.
    Tcp {
        /// Port, never 0.
        port: u16,
    },
    /// `grpc`.
    Grpc {
        /// Port, never 0.
        port: u16,
        /// `service` of the HealthCheckRequest, empty by default.
        service: String,
    },
}

impl Action {
    /// The port of the app.
    pub const fn port(&self) -> u16 {
        match self {
            Self::Http { port, .. } | Self::Tcp { port } | Self::Grpc { port, .. } => *port,
        }
    }

    /// Total length of the texts that a Pod's author chose. Bytes.
    pub fn text_len(&self) -> usize {
        match self {
            Self::Http {
                target, headers, ..
            } => {
                let header = |(name, value): &(String, String)| name.len() + value.len();
                target.len() + headers.iter().map(header).sum::<usize>()
            }
            Self::Tcp { .. } => 0,
            Self::Grpc { service, .. } => service.len(),
        }
    }

    /// The User-Agent among `httpHeaders`, without surrounding white space.
    pub fn user_agent(&self) -> Option<&str> {
        let Self::Http { headers, .. } = self else {
            return None;
        };
        let found = headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("user-agent"));
        found.map(|(_, value)| value.trim())
    }

    /// `http`, `https`, `tcp` or `grpc`.
    pub const fn protocol(&self) -> &'static str {
        match self {
            Self::Http {
                scheme: Scheme::Http,
                ..
            } => "http",
            Self::Http {
                scheme: Scheme::Https,
                ..
            } => "https",
            Self::Tcp { .. } => "tcp",
            Self::Grpc { .. } => "grpc",
        }
    }
}

/// One probe or lifecycle hook of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Name of the container that declares it.
    pub container: String,
    /// Which probe or hook it is.
    pub kind: ProbeKind,
    /// What it does.
    pub action: Action,
    /// `timeoutSeconds`, 1 s by default; none for lifecycle hooks, whose client has no timeout.
    pub timeout: Option<Duration>,
    /// How often the kubelet makes it, and how many results in a row count.
    #[serde(default)]
    pub schedule: Schedule,
}

/// How often the kubelet makes a probe, and how many results in a row change what it does. Has no meaning for a lifecycle
/// hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// `periodSeconds`.
    pub period: Duration,
    /// `failureThreshold`.
    pub failure_threshold: u32,
    /// `successThreshold`.
    pub success_threshold: u32,
}

impl Default for Schedule {
    /// The defaults of the Kubernetes API.
    fn default() -> Self {
        Self {
            period: Duration::from_secs(10),
            failure_threshold: 3,
            success_threshold: 1,
        }
    }
}

/// How a pod's probes reach the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeMode {
    /// The kubelet probes the app's own ports, as declared.
    Transparent,
    /// Istio's injector rewrote the probes to pilot-agent's status port.
    Takeover,
    /// Our webhook rewrote the probes to the rewrite port.
    Rewrite,
}

impl ProbeMode {
    /// Name in metrics and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transparent => "transparent",
            Self::Takeover => "takeover",
            Self::Rewrite => "rewrite",
        }
    }
}

/// A service mesh, or a mode of one, whose rules in the pod differ from those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mesh {
    /// Istio with a sidecar (regular or native).
    Istio,
    /// Istio ambient mode: ztunnel listens in the pod's network namespace.
    IstioAmbient,
    /// Linkerd.
    Linkerd,
    /// Kuma or Kong Mesh.
    Kuma,
    /// Consul Connect with transparent proxy.
    Consul,
    /// Open Service Mesh.
    Osm,
    /// An unknown mesh, or no mesh.
    Unknown,
}

impl Mesh {
    /// The default port to which the mesh redirects inbound connections; `None` for [`Mesh::Unknown`].
    pub const fn inbound_port(self) -> Option<u16> {
        match self {
            Self::Istio | Self::IstioAmbient | Self::Kuma => Some(15006),
            Self::Linkerd => Some(4143),
            Self::Consul => Some(20000),
            Self::Osm => Some(15003),
            Self::Unknown => None,
        }
    }

    /// Name in metrics and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Istio => "istio",
            Self::IstioAmbient => "istio-ambient",
            Self::Linkerd => "linkerd",
            Self::Kuma => "kuma",
            Self::Consul => "consul",
            Self::Osm => "osm",
            Self::Unknown => "unknown",
        }
    }
}

/// Identifies one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodId {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The pod's UID in the kubelet: `metadata.uid`, or for a static (mirror) pod the
    /// annotation `kubernetes.io/config.hash`.
    pub uid: String,
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Probes that were rewritten to an agent's port before the kubelet saw the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewritten {
    /// [`ProbeMode::Takeover`] or [`ProbeMode::Rewrite`].
    pub mode: ProbeMode,
    /// The port the kubelet now probes: Istio's status port or our rewrite port.
    pub port: u16,
    /// Path of the rewritten probe (`/app-health/<container>/livez`) to the original probe.
    pub originals: Vec<(String, Probe)>,
}

/// Which path serves plaintext HTTP if both can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpBy {
    /// The handler, and the kernel path while the handler does not answer.
    #[default]
    Handler,
    /// Only the kernel path.
    Kernel,
}

impl HttpBy {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Handler => "handler",
            Self::Kernel => "kernel",
        }
    }

    /// The variant with that name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "handler" => Some(Self::Handler),
            "kernel" => Some(Self::Kernel),
            _ => None,
        }
    }
}

/// A pod whose probes the handler serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its identity.
    pub id: PodId,
    /// `status.podIPs`; may be empty until the kubelet has written the status.
    pub ips: Vec<IpAddr>,
    /// Whether `ips` was stored by an earlier daemon: the pod's sandbox may have been recreated since.
    #[serde(skip)]
    pub ips_are_old: bool,
    /// Its mesh.
    pub mesh: Mesh,
    /// Which of its inbound connections the mesh redirects.
    pub inbound: Inbound,
    /// Whether the mesh connects to the app at the pod's loopback address instead of the pod's own. Then the daemon's
    /// checks do too.
    #[serde(default)]
    pub localhost: bool,
    /// What serves its plaintext HTTP probes, if annotations set that.
    #[serde(default)]
    pub http: Option<HttpBy>,
    /// Consul only: the proxy's uid, with which the in-pod dial's socket must be created.
    pub proxy_uid: Option<u32>,
    /// Probes that the kubelet sends to the app's own ports.
    pub probes: Vec<Probe>,
    /// Probes that the kubelet sends to an agent's port.
    pub rewritten: Option<Rewritten>,
    /// Path of its network namespace, if the source provides it.
    pub netns: Option<PathBuf>,
}
