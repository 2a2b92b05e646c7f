//! Executes one check as the kubelet would. Independent of Kubernetes objects.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::verdict::{Reason, Verdict};

mod certificate;
pub mod dial;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod go_url;
pub mod grpc;
pub mod http;
pub mod http1;
mod http2;
pub mod kubelet;
mod limited;
pub mod redirect;
pub mod request;
pub mod tcp;
mod tls;
pub mod verdict;

/// How much of the body of a probe's answer the kubelet reads at most (kubernetes pkg/probe/http/http.go,
/// `maxRespBodyLength`). Bytes.
pub const BODY_LIMIT: usize = 10 * 1024;

/// The maximum size of a head: status or request line, and headers. Bytes.
pub use model::bounds::HEAD_LIMIT;

/// How much is read at most of an app's TLS connection, certificates included, and of its HTTP/2 connection, because
/// an app may send window updates, settings and session tickets without end. Bytes.
const WIRE_LIMIT: usize = 192 * 1024;

/// The result of `work`; `None` if `deadline` passes first.
async fn in_time<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}

/// Detail of a verdict about a body that was incomplete at the deadline.
const BODY_LATE: &str = "the body was incomplete at the end of the probe's timeout";

/// The result of a check; [`Finding::verdict`] adds its duration.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Why the check ended as it did.
    pub reason: Reason,
    /// As in [`Verdict::status`].
    pub status: u16,
    /// As in [`Verdict::detail`].
    pub detail: String,
}

impl Finding {
    /// The app answered HTTP with `status`.
    pub fn answered(status: u16) -> Self {
        if (200..400).contains(&status) {
            Self {
                reason: Reason::Healthy,
                status,
                detail: String::new(),
            }
        } else {
            Self {
                reason: Reason::HttpStatus,
                status,
                detail: format!("the app answered HTTP {status}"),
            }
        }
    }

    /// The check passed without an HTTP answer from the app.
    pub fn healthy(detail: impl Into<String>) -> Self {
        Self {
            reason: Reason::Healthy,
            status: 200,
            detail: detail.into(),
        }
    }

    /// The app gave no answer that could be passed on.
    pub fn without_answer(reason: Reason, detail: impl Into<String>) -> Self {
        let status = match reason {
            Reason::Spliced | Reason::Connected => 200,
            Reason::Cancelled => 499,
            Reason::Overloaded => 503,
            Reason::TimedOut => 504,
            _ => 500,
        };
        Self {
            reason,
            status,
            detail: detail.into(),
        }
    }

    /// The app answered HTTP with `status`, but with an incomplete body.
    pub fn body_incomplete(status: u16, detail: impl Into<String>) -> Self {
        Self {
            reason: Reason::BodyIncomplete,
            status,
            detail: detail.into(),
        }
    }

    /// Dialling the app failed with `error`.
    pub fn dial(error: &io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::ConnectionRefused => Reason::Refused,
            io::ErrorKind::TimedOut => Reason::TimedOut,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
                Reason::ConnectionClosed
            }
            _ => Reason::Dial,
        };
        Self::without_answer(reason, format!("dial: {error}"))
    }

    /// The verdict of a check that began at `since`.
    pub fn verdict(self, since: Instant) -> Verdict {
        self.verdict_after(since.elapsed())
    }

    /// The verdict of a check that took `latency`.
    pub fn verdict_after(self, latency: Duration) -> Verdict {
        Verdict {
            reason: self.reason,
            status: self.status,
            detail: self.detail,
            latency: Some(latency),
        }
    }
}
