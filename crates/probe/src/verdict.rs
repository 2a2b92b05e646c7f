//! The result of a check.

use std::time::Duration;

use serde::Serialize;

/// Why a check ended as it did. A closed set: it is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The app is healthy: HTTP 200 to 399, TCP connected, gRPC SERVING.
    Healthy,
    /// The app answered HTTP with a status below 200 or above 399.
    HttpStatus,
    /// The app refused the connection.
    Refused,
    /// The app did not answer within the probe's timeout.
    TimedOut,
    /// The app closed or reset the connection before its answer was complete.
    ConnectionClosed,
    /// The app sent a status, but not the whole body. The kubelet takes that as an error of its own prober: it
    /// tries again at once, twice at most, and then discards the result (kubernetes pkg/probe/http/http.go,
    /// `DoHTTPProbe`; pkg/kubelet/prober/worker.go, `doProbe`).
    BodyIncomplete,
    /// The app's answer is not a valid response of the probe's protocol, or exceeds a limit.
    BadResponse,
    /// More requests than the kubelet makes for one probe: ten, redirects included.
    TooManyRedirects,
    /// The TLS handshake failed.
    Tls,
    /// gRPC: the app answered with a status other than SERVING.
    NotServing,
    /// gRPC: the call failed (unimplemented, unknown service, ...).
    GrpcStatus,
    /// The pod could not be dialled because of the node (namespace gone, no memory, ...).
    Dial,
    /// The pod has reached its limit of checks in flight.
    Overloaded,
    /// The kubelet closed its connection before there was a verdict.
    Cancelled,
    /// Bytes were spliced both ways. HTTPS is encrypted end to end and gRPC is not parsed, so the result is unknown.
    Spliced,
    /// The kubelet's own connection reached the app on the kernel path, so the result is unknown.
    Connected,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 16] = [
        Self::Healthy,
        Self::HttpStatus,
        Self::Refused,
        Self::TimedOut,
        Self::ConnectionClosed,
        Self::BodyIncomplete,
        Self::BadResponse,
        Self::TooManyRedirects,
        Self::Tls,
        Self::NotServing,
        Self::GrpcStatus,
        Self::Dial,
        Self::Overloaded,
        Self::Cancelled,
        Self::Spliced,
        Self::Connected,
    ];

    /// Name in metrics and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::HttpStatus => "http_status",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::ConnectionClosed => "connection_closed",
            Self::BodyIncomplete => "body_incomplete",
            Self::BadResponse => "bad_response",
            Self::TooManyRedirects => "too_many_redirects",
            Self::Tls => "tls",
            Self::NotServing => "not_serving",
            Self::GrpcStatus => "grpc_status",
            Self::Dial => "dial",
            Self::Overloaded => "overloaded",
            Self::Cancelled => "cancelled",
            Self::Spliced => "spliced",
            Self::Connected => "connected",
        }
    }

    /// Whether the app was reached and answered. A lifecycle hook fails only if it was not.
    pub const fn reached_app(self) -> bool {
        matches!(
            self,
            Self::Healthy
                | Self::HttpStatus
                | Self::NotServing
                | Self::GrpcStatus
                | Self::Spliced
                | Self::Connected
        )
    }
}

/// The class of a verdict, as the kubelet sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Probe passed.
    Success,
    /// Probe failed.
    Failure,
    /// Not known (spliced, relayed, or the kubelet closed its connection first), or discarded by the kubelet.
    Unknown,
}

impl Outcome {
    /// Name in metrics and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Unknown => "unknown",
        }
    }
}

/// The result of one check.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Why the check ended as it did.
    pub reason: Reason,
    /// The status code for the kubelet, 100 to 999: the app's own if it answered, 500 if it could not be
    /// reached, 504 if it was too slow.
    pub status: u16,
    /// A text for people. Contains nothing from the body of the app's answer.
    pub detail: String,
    /// From accepting the kubelet's connection to the verdict; on the kernel path from the SYN;
    /// none if an eBPF program refused the connection.
    pub latency: Option<Duration>,
}

impl Verdict {
    /// How the kubelet judges it: a probe by its status, a lifecycle hook (`hook`) by whether the app was
    /// reached.
    pub fn outcome(&self, hook: bool) -> Outcome {
        match self.reason {
            // If the pod cannot be dialled, the connection is relayed: the kubelet gets another answer.
            Reason::Cancelled
            | Reason::Spliced
            | Reason::Connected
            | Reason::Dial
            | Reason::BodyIncomplete => Outcome::Unknown,
            reason if hook && reason.reached_app() => Outcome::Success,
            _ if hook => Outcome::Failure,
            _ if (200..400).contains(&self.status) => Outcome::Success,
            _ => Outcome::Failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(reason: Reason, status: u16) -> Verdict {
        Verdict {
            reason,
            status,
            detail: String::new(),
            latency: None,
        }
    }

    #[test]
    fn a_probe_passes_with_200_to_399_as_in_the_kubelet() {
        for (status, outcome) in [
            (199, Outcome::Failure),
            (200, Outcome::Success),
            (399, Outcome::Success),
            (400, Outcome::Failure),
            (599, Outcome::Failure),
        ] {
            assert_eq!(
                verdict(Reason::HttpStatus, status).outcome(false),
                outcome,
                "{status}"
            );
        }
    }

    #[test]
    fn a_hook_passes_with_any_status_and_fails_if_the_app_cannot_be_reached() {
        assert_eq!(
            verdict(Reason::HttpStatus, 500).outcome(true),
            Outcome::Success
        );
        assert_eq!(
            verdict(Reason::Refused, 500).outcome(true),
            Outcome::Failure
        );
    }
}
