//! What came out of a check.

use std::time::Duration;

use serde::Serialize;

/// Why a check ended as it did. A closed set: it is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The app said it is healthy: HTTP 200 to 399, TCP connected, gRPC SERVING.
    Healthy,
    /// The app answered HTTP below 200 or from 400 on.
    HttpStatus,
    /// The app refused the connection.
    Refused,
    /// The app did not answer within the probe's timeout.
    TimedOut,
    /// The app closed or reset the connection before its answer was complete.
    ConnectionClosed,
    /// The app's status came, its body did not come whole. The kubelet takes that for an error of its prober's: it
    /// tries again at once, twice at most, and then throws the result away (kubernetes pkg/probe/http/http.go,
    /// `DoHTTPProbe`; pkg/kubelet/prober/worker.go, `doProbe`).
    BodyIncomplete,
    /// The app's answer is no valid response of the probe's protocol, or is larger than allowed.
    BadResponse,
    /// More requests than the kubelet makes for one probe: ten, redirects included.
    TooManyRedirects,
    /// TLS could not be agreed upon.
    Tls,
    /// gRPC: the app answered, with another status than SERVING.
    NotServing,
    /// gRPC: the call failed (unimplemented, unknown service, ...).
    GrpcStatus,
    /// The pod could not be dialled for a reason on the node (namespace gone, no memory, ...).
    Dial,
    /// More checks in flight than this pod may have.
    Overloaded,
    /// The kubelet hung up first: nobody is there to hear a verdict.
    Cancelled,
    /// Bytes were spliced both ways, end to end encrypted: what was said is not ours to see.
    Spliced,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 15] = [
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
        }
    }

    /// Whether the app could be talked to at all. A lifecycle hook fails only where it could not.
    pub const fn reached_app(self) -> bool {
        matches!(
            self,
            Self::Healthy | Self::HttpStatus | Self::NotServing | Self::GrpcStatus | Self::Spliced
        )
    }
}

/// The class of a verdict, as the kubelet will see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Probe passed.
    Success,
    /// Probe failed.
    Failure,
    /// Not known to us (spliced, or the kubelet hung up), or thrown away by the kubelet.
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
    /// Why.
    pub reason: Reason,
    /// The status code for the kubelet, 100 to 999: the app's own where there is one, 500 where the
    /// app could not be reached, 504 where it was too slow.
    pub status: u16,
    /// For people: what happened, without anything the app said in its body.
    pub detail: String,
    /// From accepting the kubelet's connection to the verdict; none where it was refused in the kernel.
    pub latency: Option<Duration>,
}

impl Verdict {
    /// How the kubelet will take it: by status for a probe; for a lifecycle hook (`hook`) by whether
    /// the app was reached.
    pub fn outcome(&self, hook: bool) -> Outcome {
        match self.reason {
            // A pod that cannot be dialled is relayed to: plain networking gives the answer.
            Reason::Cancelled | Reason::Spliced | Reason::Dial | Reason::BodyIncomplete => {
                Outcome::Unknown
            }
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
    fn a_probe_passes_on_200_to_399_as_in_the_kubelet() {
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
    fn a_hook_passes_on_any_status_and_fails_when_the_app_cannot_be_reached() {
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
