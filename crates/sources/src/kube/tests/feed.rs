//! When the registry receives messages: at once after a quiet time, then at most one per [`PACE`].

use std::collections::BTreeSet;

use tokio::sync::watch as watch_channel;
use tokio::time::{Instant, advance};

use super::*;
use crate::kube::index::{Index, NamespaceRecord, PodRecord, namespace_item, pod_item};
use crate::kube::namespaces::{NamespaceChange, Progress};
use crate::kube::object::Resource;
use crate::kube::watch::Change;
use crate::kube::watch_error::{Reason, WatchError};
use crate::kube::{Feed, NAMESPACES_WAIT, PACE, WatchState};

struct Fed {
    pods: mpsc::Sender<Change<PodRecord>>,
    namespaces: mpsc::Sender<NamespaceChange>,
    wanted: watch_channel::Receiver<BTreeSet<String>>,
    events: mpsc::Receiver<SourceEvent>,
}

fn feed() -> Fed {
    let (pods, from_pods) = mpsc::channel(64);
    let (namespaces, from_namespaces) = mpsc::channel(64);
    let (namespaces_wanted, wanted) = watch_channel::channel(BTreeSet::new());
    let (tx, events) = mpsc::channel(64);
    let feed = Feed {
        index: Index::default(),
        selection: watch::channel(Selection::default()).1,
        node: "node-1".to_owned(),
        health: Arc::new(Health::default()),
        tx,
        listed: Some(()),
        last_sent: None,
        known_before: 0,
        pods: WatchState::default(),
        namespaces: Progress::default(),
        namespaces_wanted,
        sent: Vec::new(),
        problems: Vec::new(),
        pods_changed: false,
        held_back_until: None,
        troubles_changed: false,
    };
    drop(tokio::spawn(feed.run(from_pods, from_namespaces)));
    Fed {
        pods,
        namespaces,
        wanted,
        events,
    }
}

fn record(name: &str, version: u64) -> crate::kube::table::Item<PodRecord> {
    let object = with(
        pod(name),
        "/metadata/resourceVersion",
        json!(version.to_string()),
    );
    pod_item(serde_json::from_value(object).unwrap())
}

fn mark(name: &str, mode: Option<&str>) -> crate::kube::table::Item<NamespaceRecord> {
    namespace_item(serde_json::from_value(namespace(name, mode)).unwrap())
}

/// The problem of a node without any pod.
const NO_POD: &str = "has no pods for node node-1";

impl Fed {
    async fn shop_is_wanted(&mut self) {
        let wanted = self.wanted.wait_for(|names| names.contains("shop"));
        drop(wanted.await.expect("it runs"));
    }

    /// Namespace `shop`, where all pods are, was read; it has this mode.
    async fn shop_is_read(&mut self, mode: Option<&str>) {
        let found = vec![mark("shop", mode)];
        let read = Change::Reset("1".to_owned(), found);
        self.namespaces
            .send(("shop".to_owned(), read))
            .await
            .unwrap();
    }

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
    let start = Instant::now();
    fed.pods
        .send(Change::Reset("1".to_owned(), Vec::new()))
        .await
        .unwrap();
    assert_eq!(fed.next().await, (0, start));
    fed.pods
        .send(Change::Apply(record("b-0", 2)))
        .await
        .unwrap();
    fed.shop_is_wanted().await;
    advance(PACE * 10).await;
    let start = Instant::now();
    fed.shop_is_read(None).await;
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
    fed.shop_is_wanted().await;
    advance(PACE).await;
    fed.shop_is_read(Some("off")).await;
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
    let mut pods = health.of(Resource::Pods).register();
    let _namespace = health.of(Resource::Namespaces).register();
    pods.up();
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

#[tokio::test(start_paused = true)]
async fn only_pods_of_a_new_namespace_wait_for_it() {
    let mut fed = feed();
    let pods = Change::Reset("1".to_owned(), vec![record("a", 1)]);
    fed.pods.send(pods).await.unwrap();
    fed.shop_is_wanted().await;
    fed.shop_is_read(None).await;
    assert_eq!(fed.next().await.0, 1);

    let elsewhere = |name: &str, version: u64| {
        let mut item = record(name, version);
        item.name.namespace = "other".to_owned();
        item
    };
    let start = Instant::now();
    fed.pods
        .send(Change::Apply(elsewhere("b", 2)))
        .await
        .unwrap();
    fed.pods.send(Change::Apply(record("c", 3))).await.unwrap();
    let (pods, at) = fed.next().await;
    assert_eq!(pods, 2, "without b");
    assert!(at - start <= PACE * 2, "{:?}", at - start);
    // Nobody answers for the other namespace.
    let (pods, at) = fed.next().await;
    assert_eq!(pods, 3);
    let waited = at - start;
    assert!(
        (NAMESPACES_WAIT..NAMESPACES_WAIT * 2).contains(&waited),
        "{waited:?}"
    );
    // Its last pod ends.
    let deleted = Change::Delete(elsewhere("b", 4));
    fed.pods.send(deleted).await.unwrap();
    assert_eq!(fed.next().await.0, 2);
    assert!(!fed.wanted.borrow().contains("other"));
}
