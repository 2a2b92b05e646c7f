//! When the registry receives messages: at once after a quiet time, then at most one per [`PACE`].

use tokio::time::{Instant, advance};

use super::*;
use crate::kube::index::{Index, Mark, PodRecord, namespace_item, pod_item};
use crate::kube::object::Resource;
use crate::kube::watch::Change;
use crate::kube::watch_error::WatchError;
use crate::kube::{Feed, NAMESPACES_WAIT, PACE, Reason, WatchState};

struct Fed {
    pods: mpsc::Sender<Change<PodRecord>>,
    namespaces: mpsc::Sender<Change<Mark>>,
    events: mpsc::Receiver<SourceEvent>,
}

fn feed() -> Fed {
    let (pods, from_pods) = mpsc::channel(64);
    let (namespaces, from_namespaces) = mpsc::channel(64);
    let (tx, events) = mpsc::channel(64);
    let feed = Feed {
        index: Index::default(),
        node: "node-1".to_owned(),
        health: Arc::new(Health::default()),
        tx,
        listed: Some(()),
        last_sent: None,
        known_before: 0,
        pods: WatchState::default(),
        namespaces: WatchState::default(),
        problems: Vec::new(),
        pods_changed: false,
        troubles_changed: false,
    };
    drop(tokio::spawn(feed.run(from_pods, from_namespaces)));
    Fed {
        pods,
        namespaces,
        events,
    }
}

fn record(name: &str, version: u64) -> crate::kube::table::Item<PodRecord> {
    let object = with(
        pod(name),
        "/metadata/resourceVersion",
        json!(version.to_string()),
    );
    pod_item(serde_json::from_value(object).unwrap(), Scope::Meshed)
}

fn mark(name: &str, exempt: Option<&str>) -> crate::kube::table::Item<Mark> {
    namespace_item(serde_json::from_value(namespace(name, exempt)).unwrap())
}

/// The problem of a node without any pod.
const NO_POD: &str = "has no pods for node node-1";

impl Fed {
    /// The number of pods in the next message, and when it came.
    async fn next(&mut self) -> (usize, Instant) {
        loop {
            match self.events.recv().await.expect("it runs") {
                SourceEvent::Replace(pods) => return (pods.len(), Instant::now()),
                SourceEvent::Problems(problems) => {
                    assert!(
                        problems.iter().all(|one| one.contains(NO_POD)),
                        "{problems:?}"
                    );
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_change_is_sent_at_once_and_the_following_ones_together() {
    let mut fed = feed();
    fed.namespaces
        .send(Change::Reset("1".to_owned(), Vec::new()))
        .await
        .unwrap();
    let start = Instant::now();
    fed.pods
        .send(Change::Reset("1".to_owned(), Vec::new()))
        .await
        .unwrap();
    assert_eq!(fed.next().await, (0, start));
    advance(PACE * 10).await;
    let start = Instant::now();
    fed.pods
        .send(Change::Apply(record("b-0", 2)))
        .await
        .unwrap();
    assert_eq!(fed.next().await, (1, start), "at once");
    for number in 1..4_u32 {
        fed.pods
            .send(Change::Apply(record(&format!("b-{number}"), 2)))
            .await
            .unwrap();
        advance(PACE / 5).await;
    }
    let (pods, at) = fed.next().await;
    assert_eq!(pods, 4, "the rest together");
    assert!((PACE..PACE * 2).contains(&(at - start)), "{:?}", at - start);
}

#[tokio::test(start_paused = true)]
async fn pods_wait_for_namespaces_but_not_for_long() {
    let mut fed = feed();
    let start = Instant::now();
    let pods = vec![record("a", 1)];
    fed.pods
        .send(Change::Reset("1".to_owned(), pods))
        .await
        .unwrap();
    let (pods, at) = fed.next().await;
    assert_eq!(pods, 1);
    let waited = at - start;
    assert!(
        (NAMESPACES_WAIT..NAMESPACES_WAIT * 2).contains(&waited),
        "{waited:?}"
    );

    let mut fed = feed();
    let start = Instant::now();
    let pods = vec![record("a", 1)];
    fed.pods
        .send(Change::Reset("1".to_owned(), pods))
        .await
        .unwrap();
    advance(PACE).await;
    let marks = vec![mark("shop", Some("false"))];
    fed.namespaces
        .send(Change::Reset("1".to_owned(), marks))
        .await
        .unwrap();
    let (_, at) = fed.next().await;
    assert!(at - start < PACE * 2, "no longer than needed");
}

#[tokio::test(start_paused = true)]
async fn the_same_failure_is_reported_once() {
    let mut fed = feed();
    let trouble = || Change::WatchError(Some(WatchError::new(Reason::Unreachable, "no route")));
    fed.pods.send(trouble()).await.unwrap();
    let sent = fed.events.recv().await.unwrap();
    let text = "no route; no pod is served until it answers".to_owned();
    assert_eq!(sent, SourceEvent::Problems(vec![text]));
    fed.pods.send(trouble()).await.unwrap();
    fed.pods.send(trouble()).await.unwrap();
    fed.pods.send(Change::WatchError(None)).await.unwrap();
    let sent = fed.events.recv().await.unwrap();
    assert_eq!(sent, SourceEvent::Problems(Vec::new()));
}

#[test]
fn every_resource_has_its_health() {
    let health = Health::default();
    health.of(Resource::Pods).up();
    assert!(health.of(Resource::Pods).is_up());
    assert!(!health.of(Resource::Namespaces).is_up());
}

#[tokio::test(start_paused = true)]
async fn a_node_without_any_pod_may_be_a_wrong_name() {
    let mut fed = feed();
    for items in [Vec::new(), vec![record("a", 2)]] {
        let empty = items.is_empty();
        let reset = Change::Reset("1".to_owned(), items);
        fed.pods.send(reset).await.expect("it runs");
        let problems = loop {
            if let SourceEvent::Problems(problems) = fed.events.recv().await.expect("it runs") {
                break problems;
            }
        };
        assert_eq!(problems.iter().any(|one| one.contains(NO_POD)), empty);
    }
}
