//! The result of a gRPC probe that is spliced: the app's answer is recorded as it passes, and read at the end.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::observed::{End, Observer};
use super::run::given_up;
use super::table::Route;
use probe::verdict::Reason;
use probe::{Finding, grpc};

/// How many bytes from the app are recorded for a connection: many times the size of an answer to a health check.
const LIMIT: usize = 64 * 1024;

/// What an app has sent on a connection.
pub(super) struct Recording(Mutex<RecordedAnswer>);

struct RecordedAnswer {
    bytes: Vec<u8>,
    is_too_long: bool,
    /// The end that closed first, and when.
    first: Option<(End, Instant)>,
    /// When the last byte was recorded.
    last: Instant,
}

impl Recording {
    pub(super) fn new() -> Self {
        Self(Mutex::new(RecordedAnswer {
            bytes: Vec::new(),
            is_too_long: false,
            first: None,
            last: Instant::now(),
        }))
    }

    /// The finding for `route`, whose probe was accepted at `since`, and how long the probe took.
    pub(super) async fn finding(self, route: &Route, since: Instant) -> (Finding, Duration) {
        let state = self.0.into_inner();
        let unknown = |detail| Finding::without_answer(Reason::Spliced, detail);
        if state.is_too_long {
            let finding = unknown("the app sent more than a health check needs");
            return (finding, since.elapsed());
        }
        if let Some(finding) = grpc::recorded(&state.bytes).await {
            return (finding, state.last - since);
        }
        let (finding, at) = match state.first {
            Some((End::Kubelet, at)) => (given_up(route, at - since), at),
            Some((End::App, at)) => {
                let detail = "the app closed the connection before its answer was complete";
                let finding = Finding::without_answer(Reason::ConnectionClosed, detail);
                (finding, at)
            }
            None => (
                unknown("the splice ended before the answer"),
                Instant::now(),
            ),
        };
        (finding, at - since)
    }
}

impl Observer for Recording {
    fn see(&self, from: End, bytes: &[u8]) {
        let mut state = self.0.lock();
        // What the app sends after the kubelet has closed its side does not affect the result.
        if from == End::Kubelet || state.first.is_some() {
            return;
        }
        state.is_too_long |= state.bytes.len() + bytes.len() > LIMIT;
        if !state.is_too_long {
            state.bytes.extend_from_slice(bytes);
        }
        state.last = Instant::now();
    }

    fn ended(&self, from: End) {
        let _ = self.0.lock().first.get_or_insert((from, Instant::now()));
    }
}
