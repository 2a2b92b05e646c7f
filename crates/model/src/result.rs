//! The names of a check's results, and runs of equal ones.

use serde::{Deserialize, Serialize};

/// Why a check ended as it did. A closed set: it is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// Consecutive equal verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Time of the first one, in milliseconds since 1970.
    pub since_ms: u64,
    /// Time of the last one.
    pub until_ms: u64,
    /// How many there are.
    pub count: u32,
    /// Success, failure or unknown.
    pub outcome: Outcome,
    /// Their common reason.
    pub reason: Reason,
    /// Their common status for the kubelet, 100 to 999.
    pub status: u16,
    /// Duration of the last one, in microseconds; 0 if it is not known.
    pub latency_us: u32,
    /// Of the app's answers in the hour before the first one, 99 % took no longer than this, in microseconds; 0 if that is
    /// not known.
    pub p99_us: u32,
}
