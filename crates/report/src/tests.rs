//! Sending, with the real client, to a double of the API server.

use std::sync::Arc;
use std::time::Duration;

use api_server_double::{ApiServer, Fault};
use kube::Config;
use model::PodId;
use serde_json::Value;
use support::backoff::Timeouts;
use tokio::time::timeout;

use crate::event::{PodEvent, Severity};
use crate::outcome::{Outcome, Outcomes};
use crate::send::{self, Events};

/// No step takes this long.
const LATE: Duration = Duration::from_secs(20);

pub(crate) fn client(server: &ApiServer) -> kube::Client {
    sources::kube::client::client(Config::new(server.url())).expect("client")
}

pub(crate) fn pauses() -> Timeouts {
    Timeouts {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(10),
        ..Timeouts::default()
    }
}

struct Sending {
    events: Events,
    outcomes: Arc<Outcomes>,
}

impl Sending {
    fn to(server: &ApiServer) -> Self {
        let outcomes = Arc::new(Outcomes::default());
        let (events, queue) = send::queue(Arc::clone(&outcomes));
        let sending = send::run(client(server), "node-1".to_owned(), queue, pauses());
        drop(tokio::spawn(sending));
        Self { events, outcomes }
    }

    async fn until(&self, outcome: Outcome, count: u64) {
        let reached = async {
            while self.outcomes.of(outcome) < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LATE, reached)
            .await
            .unwrap_or_else(|_| panic!("{:?}", self.outcomes));
    }
}

fn event(message: &str, at_ms: u64) -> PodEvent {
    PodEvent {
        pod: PodId {
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            uid: "uid-cart".to_owned(),
        },
        container: Some("app".to_owned()),
        severity: Severity::Warning,
        reason: "ProbeFailed",
        message: message.to_owned(),
        at_ms,
    }
}

fn only(server: &ApiServer) -> Value {
    let mut all = server.all("events");
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[tokio::test]
async fn an_event_is_an_object_of_the_pod_and_counts_when_it_happens_again() {
    let server = ApiServer::start().await;
    let sending = Sending::to(&server);
    sending.events.add(event("readiness: HTTP 503", 1_000));
    sending.until(Outcome::Sent, 1).await;
    let written = only(&server);
    let involved = &written["involvedObject"];
    assert_eq!(involved["kind"], "Pod");
    assert_eq!(involved["uid"], "uid-cart");
    assert_eq!(involved["fieldPath"], "spec.containers{app}");
    assert_eq!(written["metadata"]["namespace"], "shop");
    assert_eq!(written["type"], "Warning");
    assert_eq!(written["source"]["host"], "node-1");
    assert_eq!(written["count"], 1);
    assert_eq!(written["firstTimestamp"], "1970-01-01T00:00:01Z");

    sending.events.add(event("readiness: HTTP 503", 9_000));
    sending.until(Outcome::Sent, 2).await;
    let written = only(&server);
    assert_eq!(written["count"], 2);
    assert_eq!(written["firstTimestamp"], "1970-01-01T00:00:01Z");
    assert_eq!(written["lastTimestamp"], "1970-01-01T00:00:09Z");
}

#[tokio::test]
async fn an_event_waits_while_the_api_server_fails() {
    let server = ApiServer::start().await;
    for fault in [
        Fault::Status(500, "InternalError", "etcd"),
        Fault::Plain(429, "slow down"),
        Fault::Hangup,
    ] {
        server.fail("events", false, fault);
    }
    let sending = Sending::to(&server);
    sending.events.add(event("a", 1_000));
    sending.until(Outcome::Sent, 1).await;
    assert_eq!(server.asked().len(), 4);
    let _one = only(&server);
}

#[tokio::test]
async fn an_event_that_has_expired_is_written_again() {
    let server = ApiServer::start().await;
    let sending = Sending::to(&server);
    sending.events.add(event("a", 1_000));
    sending.until(Outcome::Sent, 1).await;
    let name = only(&server)["metadata"]["name"].clone();
    let _ = server.delete("events", "shop", name.as_str().expect("a name"));
    sending.events.add(event("a", 2_000));
    sending.until(Outcome::Sent, 2).await;
    assert_eq!(only(&server)["count"], 2);
}

#[tokio::test]
async fn a_refused_event_holds_up_no_other() {
    let server = ApiServer::start().await;
    server.forbid("events", true);
    let sending = Sending::to(&server);
    sending.events.add(event("a", 1_000));
    sending.until(Outcome::Refused, 1).await;
    server.forbid("events", false);
    sending.events.add(event("b", 2_000));
    sending.until(Outcome::Sent, 1).await;
    assert_eq!(only(&server)["message"], "b");
}

#[tokio::test]
async fn while_the_api_server_does_not_answer_only_so_many_events_wait() {
    let server = ApiServer::start().await;
    server.fail("events", false, Fault::Hang);
    let sending = Sending::to(&server);
    for number in 0..1_000 {
        sending.events.add(event(&format!("{number}"), 1_000));
        tokio::task::yield_now().await;
    }
    let lost = sending.outcomes.of(Outcome::Lost);
    assert!((700..=744).contains(&lost), "{lost}");
    server.release();
    sending.until(Outcome::Sent, 1).await;
}

#[tokio::test]
async fn a_long_message_is_truncated() {
    let server = ApiServer::start().await;
    let sending = Sending::to(&server);
    sending.events.add(event(&"é".repeat(1_000), 1_000));
    sending.until(Outcome::Sent, 1).await;
    let message = only(&server)["message"].as_str().map(str::len);
    assert!(message <= Some(1024), "{message:?}");
}
