//! Probes that the daemon does not serve, and the reasons. The kubelet makes them as it would without the daemon.

use std::fmt;

use serde::{Serialize, Serializer};

use model::ProbeKind;
use model::bounds::{PROBES_LIMIT, REQUEST_HEADERS_LIMIT, REQUEST_LIMIT, TEXT_LIMIT};

/// A probe or lifecycle hook that is not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SkippedProbe {
    /// The container that declares it.
    pub container: String,
    /// The kind of probe or hook.
    pub kind: ProbeKind,
    /// Why it is not served.
    pub why: SkipReason,
}

impl fmt::Display for SkippedProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.kind.field();
        write!(f, "container {:?}, {field}: {}", self.container, self.why)
    }
}

/// Why a probe is not served. Serialized as its message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// It runs a command in the container: the mesh does not affect it.
    #[error("exec runs in the container, out of reach of the mesh")]
    Exec,
    /// It only waits, and sends no request.
    #[error("sleep sends nothing")]
    Sleep,
    /// The container is the mesh's proxy, whose probes the mesh does not redirect.
    #[error("the container is the mesh's own proxy")]
    MeshProxy,
    /// `host` is set, and is not an address of the pod.
    #[error("{field} is {host:?}, which is not an address of the pod")]
    ForeignHost {
        /// `httpGet.host` or `tcpSocket.host`.
        field: &'static str,
        /// Its value.
        host: String,
    },
    /// The container has no port of this name.
    #[error("{field} {name:?} is neither a port name of this container nor a number")]
    UnresolvedPort {
        /// `httpGet.port` or `tcpSocket.port`.
        field: &'static str,
        /// Its value.
        name: String,
    },
    /// The port number is out of range.
    #[error("{field} is {port}, must be 1 to 65535")]
    PortOutOfRange {
        /// `httpGet.port`, `tcpSocket.port` or `grpc.port`.
        field: &'static str,
        /// Its value.
        port: i64,
    },
    /// The scheme is neither `HTTP` nor `HTTPS`.
    #[error("httpGet.scheme is {0:?}, must be HTTP or HTTPS")]
    UnknownScheme(String),
    /// [`crate::target`] does not reproduce the request target that the kubelet builds from this path.
    #[error(
        "httpGet.path {0:?} has a scheme, a host, or spaces or non-ASCII characters in its query"
    )]
    OddPath(String),
    /// The request is longer than the daemon reads.
    #[error("{field} makes the request {bytes} bytes long; at most {REQUEST_LIMIT} are supported")]
    TooLong {
        /// `httpGet` or `grpc.service`.
        field: &'static str,
        /// The length that results from the Pod.
        bytes: usize,
    },
    /// The request has more headers than the daemon reads.
    #[error("httpGet.httpHeaders has {0} headers; at most {REQUEST_HEADERS_LIMIT} are supported")]
    TooManyHeaders(usize),
    /// The pod has more probes, or longer ones, than the daemon keeps for one pod.
    #[error(
        "the pod has more than {PROBES_LIMIT} probes, or more than {TEXT_LIMIT} bytes in their paths: the rest is not served"
    )]
    TooMany,
    /// The kubelet does not support `tcpSocket` lifecycle hooks.
    #[error("the kubelet does not support tcpSocket hooks (\"invalid handler\")")]
    TcpHook,
    /// It has no action, or more than one of exec, httpGet, tcpSocket and grpc.
    #[error("has {0} actions, must have exactly one")]
    Actions(usize),
    /// It is a rewritten probe whose original is missing or unusable.
    #[error("was rewritten to {path:?} on port {port}, but its original is missing or unusable")]
    NoOriginal {
        /// The rewritten probe's path.
        path: String,
        /// The rewritten probe's port.
        port: u16,
    },
    /// It uses the port to which the pod's other probes were rewritten.
    #[error("probes port {0}, to which the pod's other probes were rewritten")]
    RewritePort(u16),
    /// Its entry among the originals of rewritten probes is not a valid probe.
    #[error("its original is malformed: {0}")]
    MalformedOriginal(String),
}

impl SkipReason {
    /// Whether the manifest contains a mistake. Otherwise the probe is valid, but the daemon does not serve
    /// it.
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
