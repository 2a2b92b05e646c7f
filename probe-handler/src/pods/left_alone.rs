//! Probes that we do not serve, and why: the kubelet meets what it would meet without us.

use std::borrow::Cow;
use std::fmt;

use serde::{Serialize, Serializer};

use super::model::ProbeKind;

/// Most probes and hooks that are served of one pod: five for each of 200 containers.
pub const PROBES_LIMIT: usize = 1000;
/// Most bytes of paths, services and User-Agents that are kept of one pod.
pub const TEXT_LIMIT: usize = 64 * 1024;
/// What is kept of one pod.
#[derive(Default)]
pub struct Kept {
    probes: usize,
    text: usize,
}

impl Kept {
    /// Whether one probe more, with so many bytes of text, is kept too.
    pub fn one_more(&mut self, text: usize) -> bool {
        let fits = self.probes < PROBES_LIMIT && self.text + text <= TEXT_LIMIT;
        if fits {
            self.probes += 1;
            self.text += text;
        }
        fits
    }
}

/// Longest text kept where a Pod's author chose it. Bytes.
const CLIPPED: usize = 256;

/// As much of `text`, which a Pod's author chose, as is kept to be shown.
pub fn clipped(text: &str) -> String {
    clipped_to(CLIPPED, text)
}

/// The same, of at most so many bytes.
pub fn clipped_to<'a>(most: usize, text: impl Into<Cow<'a, str>>) -> String {
    let text = text.into();
    match text.len() > most {
        true => format!("{}...", &text[..text.floor_char_boundary(most)]),
        false => text.into_owned(),
    }
}

/// A probe or lifecycle hook that is not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftAlone {
    /// The container that declares it.
    pub container: String,
    /// Which one.
    pub kind: ProbeKind,
    /// Why.
    pub why: Why,
}

impl fmt::Display for LeftAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.kind.field();
        write!(f, "container {:?}, {field}: {}", self.container, self.why)
    }
}

/// Why a probe is left alone. Serialized as its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
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
    #[error(
        "{field} makes a request of {bytes} bytes or too many headers, must be less than 15 KiB and 250 headers"
    )]
    TooLong {
        /// `httpGet` or `grpc.service`.
        field: &'static str,
        /// What the Pod has of it.
        bytes: usize,
    },
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

impl Why {
    /// Whether the manifest is at fault, rather than the probe being none of our business.
    pub const fn is_mistake(&self) -> bool {
        matches!(
            self,
            Self::UnresolvedPort { .. }
                | Self::PortOutOfRange { .. }
                | Self::UnknownScheme(_)
                | Self::TooLong { .. }
                | Self::TooMany
                | Self::TcpHook
                | Self::Actions(_)
                | Self::NoOriginal { .. }
                | Self::MalformedOriginal(_)
        )
    }
}

impl Serialize for Why {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
