//! Probes that we do not serve, and why: the kubelet meets what it would meet without us.

use std::fmt;

use serde::{Serialize, Serializer};

use model::ProbeKind;
use model::bounds::{PROBES_LIMIT, REQUEST_HEADERS_LIMIT, REQUEST_LIMIT, TEXT_LIMIT};

/// A probe or lifecycle hook that is not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SkippedProbe {
    /// The container that declares it.
    pub container: String,
    /// Which one.
    pub kind: ProbeKind,
    /// Why.
    pub why: SkipReason,
}

impl fmt::Display for SkippedProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.kind.field();
        write!(f, "container {:?}, {field}: {}", self.container, self.why)
    }
}

/// Why a probe is left alone. Serialized as its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// Runs a command: the mesh is not in its way.
    #[error("exec runs in the container, the mesh is not in its way")]
    Exec,
    /// Waits: nothing is sent.
    #[error("sleep sends nothing")]
    Sleep,
    /// The mesh's own proxy answers its probes itself.
    #[error("the container is the mesh's own proxy")]
    MeshProxy,
    /// `host` is set to something else than the pod.
    #[error("{field} is {host:?}, which is not an address of the pod")]
    ForeignHost {
        /// `httpGet.host` or `tcpSocket.host`.
        field: &'static str,
        /// Its value.
        host: String,
    },
    /// A named port that the container does not have.
    #[error("{field} {name:?} is no port name of this container, nor a number")]
    UnresolvedPort {
        /// `httpGet.port` or `tcpSocket.port`.
        field: &'static str,
        /// Its value.
        name: String,
    },
    /// A port number that does not exist.
    #[error("{field} is {port}, must be 1 to 65535")]
    PortOutOfRange {
        /// `httpGet.port`, `tcpSocket.port` or `grpc.port`.
        field: &'static str,
        /// Its value.
        port: i64,
    },
    /// Neither `HTTP` nor `HTTPS`.
    #[error("httpGet.scheme is {0:?}, must be HTTP or HTTPS")]
    UnknownScheme(String),
    /// We are not sure to build the same request target as the kubelet.
    #[error("httpGet.path {0:?} is no plain path")]
    OddPath(String),
    /// A request of that length would not be read.
    #[error("{field} makes a request of {bytes} bytes, more than {REQUEST_LIMIT}")]
    TooLong {
        /// `httpGet` or `grpc.service`.
        field: &'static str,
        /// What the Pod has of it.
        bytes: usize,
    },
    /// A request with so many headers would not be read.
    #[error("httpGet.httpHeaders are {0}, more than {REQUEST_HEADERS_LIMIT}")]
    TooManyHeaders(usize),
    /// The pod has more probes, or longer ones, than is kept of one pod.
    #[error(
        "the pod's probes are more than {PROBES_LIMIT}, or have more than {TEXT_LIMIT} bytes of paths: no more are served"
    )]
    TooMany,
    /// The kubelet knows no `tcpSocket` lifecycle hooks.
    #[error("the kubelet refuses tcpSocket hooks itself (\"invalid handler\")")]
    TcpHook,
    /// None of exec, httpGet, tcpSocket and grpc, or more than one.
    #[error("has {0} actions, must have exactly one")]
    Actions(usize),
    /// A probe rewritten by someone, whose original is unknown or not usable.
    #[error("was rewritten to {path:?} on port {port}, for which there is no usable original")]
    NoOriginal {
        /// The rewritten probe's path.
        path: String,
        /// The rewritten probe's port.
        port: u16,
    },
    /// Declared for the port to which the pod's other probes were rewritten.
    #[error("probes port {0}, to which the pod's other probes were rewritten")]
    RewritePort(u16),
    /// An entry among the originals of rewritten probes is no valid probe.
    #[error("its original is malformed: {0}")]
    MalformedOriginal(String),
}

impl SkipReason {
    /// Whether the manifest is at fault, rather than the probe being none of our business.
    pub const fn is_mistake(&self) -> bool {
        matches!(
            self,
            Self::UnresolvedPort { .. }
                | Self::PortOutOfRange { .. }
                | Self::UnknownScheme(_)
                | Self::TooLong { .. }
                | Self::TooManyHeaders(_)
                | Self::TooMany
                | Self::TcpHook
                | Self::Actions(_)
                | Self::NoOriginal { .. }
                | Self::MalformedOriginal(_)
        )
    }
}

impl Serialize for SkipReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
