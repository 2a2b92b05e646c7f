//! Several replicas that manage the same certificate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api_server_double::Fault;
use prometheus_client::registry::Registry;

use super::super::Serving;
use super::super::cert_manager::{CertManager, Clock};
use super::super::store::{Names, Store, StoreError};
use super::super::trust::Trust;
use super::cluster::{CONFIGURATION, CONFIGURATIONS, Cluster, SECRET};
use super::*;
use crate::metrics::Metrics;

/// The certificate management of one replica of the webhook.
struct Replica {
    keeper: CertManager,
    serving: Arc<Serving>,
}

/// A clock that tests advance, in seconds from now.
#[derive(Clone, Default)]
struct Hand(Arc<AtomicU64>);

impl Hand {
    fn advance(&self, by: Duration) {
        let _ = self.0.fetch_add(by.as_secs(), Ordering::Relaxed);
    }

    fn clock(&self) -> Clock {
        let (hand, began) = (Arc::clone(&self.0), SystemTime::now());
        Arc::new(move || began + Duration::from_secs(hand.load(Ordering::Relaxed)))
    }
}

impl Replica {
    fn new(server: &Cluster, hand: &Hand) -> Self {
        let names = Names {
            namespace: NAMESPACE.to_owned(),
            service: SERVICE.to_owned(),
            secret: SECRET.to_owned(),
            configuration: CONFIGURATION.to_owned(),
        };
        let serving = Arc::new(Serving::default());
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        let store = Store::new(server.client(), names);
        let keeper = CertManager::new(store, needs(), hand.clock(), Arc::clone(&serving), metrics);
        Self { keeper, serving }
    }

    async fn look(&mut self) {
        self.keeper.look().await.expect("no error");
    }

    /// The leaf certificate that it serves.
    fn leaf(&self) -> Vec<u8> {
        let certified = self.serving.0.read().clone();
        certified.expect("a certificate").cert[0].to_vec()
    }
}

/// Whether a client that trusts the caBundle accepts the served certificate.
fn is_trusted(server: &Cluster, replica: &Replica, now: SystemTime) -> bool {
    let mut data = server.data();
    let bundle = server.bundles()[1].clone().unwrap_or_default();
    let own = |data: &Data| Trust::read(data).and_then(|trust| trust.serving(&needs(), now));
    drop(data.insert(
        "ca.crt".to_owned(),
        k8s_openapi::ByteString(bundle.into_bytes()),
    ));
    let current = own(&data);
    // That the same bundle trusts the previously served certificate was checked before.
    current.is_some_and(|pair| pair.chain()[0].as_ref() == replica.leaf())
}

#[tokio::test]
async fn the_first_check_issues_a_certificate_and_sets_the_ca_bundle() {
    for exists in [false, true] {
        let server = Cluster::start().await;
        if exists {
            server.put_empty_secret();
        }
        let mut replica = Replica::new(&server, &Hand::default());
        replica.look().await;
        assert!(is_trusted(&server, &replica, SystemTime::now()));
        let bundles = server.bundles();
        assert_eq!(bundles[0], None, "a foreign webhook is unchanged");
        assert_eq!(count(bundles[1].as_ref().expect("ours")), 1);
        // Later checks change nothing.
        let writes = || ["create", "update", "patch"].map(|verb| server.written(verb));
        let before = writes();
        replica.look().await;
        replica.look().await;
        assert_eq!(writes(), before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_use_one_certificate() {
    for exists in [false, true] {
        let server = Cluster::start().await;
        if exists {
            server.put_empty_secret();
        }
        let mut looks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let mut replica = Replica::new(&server, &Hand::default());
            let _ = looks.spawn(async move {
                replica.look().await;
                replica
            });
        }
        let replicas = looks.join_all().await;
        for replica in &replicas {
            assert_eq!(replica.leaf(), replicas[0].leaf());
            assert!(is_trusted(&server, replica, SystemTime::now()));
        }
        let verb = if exists { "update" } else { "create" };
        assert_eq!(server.written(verb), 1, "only one replica writes");
        assert_eq!(server.written("patch"), 1);
    }
}

#[tokio::test]
async fn a_renewal_leaves_no_replica_untrusted_at_any_time() {
    let server = Cluster::start().await;
    let hand = Hand::default();
    let now = hand.clock();
    let mut replicas = [Replica::new(&server, &hand), Replica::new(&server, &hand)];
    for replica in &mut replicas {
        replica.look().await;
    }
    let (first, began) = (
        replicas[0].leaf(),
        server.bundles()[1].clone().expect("ours"),
    );

    hand.advance(61 * DAY);
    for replica in &mut replicas {
        replica.look().await;
        assert_eq!(
            replica.leaf(),
            first,
            "the next one is not served before the caBundle contains it"
        );
    }
    let both = server.bundles()[1].clone().expect("ours");
    assert!(count(&both) == 2 && both.contains(began.trim()));

    hand.advance(Duration::from_secs(30));
    replicas[1].look().await;
    assert_eq!(
        replicas[1].leaf(),
        first,
        "nor before API servers have had time to use the caBundle"
    );
    hand.advance(Duration::from_secs(31));
    replicas[1].look().await;
    assert_ne!(replicas[1].leaf(), first);
    assert!(is_trusted(&server, &replicas[1], now()));
    // The other replica still serves the old certificate, which is trusted too.
    assert_eq!(replicas[0].leaf(), first);
    assert_eq!(server.bundles()[1].as_deref(), Some(both.as_str()));
    replicas[0].look().await;
    assert_eq!(replicas[0].leaf(), replicas[1].leaf());

    hand.advance(30 * DAY);
    for replica in &mut replicas {
        replica.look().await;
        assert!(is_trusted(&server, replica, now()));
    }
    assert_eq!(count(server.bundles()[1].as_ref().expect("ours")), 1);
}

#[tokio::test]
async fn a_removed_ca_bundle_is_restored() {
    let server = Cluster::start().await;
    let hand = Hand::default();
    let mut replica = Replica::new(&server, &hand);
    replica.look().await;
    hand.advance(61 * DAY);
    replica.look().await;
    let (bundle, leaf) = (server.bundles(), replica.leaf());
    server.remove_bundles();
    hand.advance(Duration::from_secs(61));
    replica.look().await;
    assert_eq!(server.bundles(), bundle);
    assert_eq!(
        replica.leaf(),
        leaf,
        "the time for API servers to use the caBundle starts again"
    );
}

#[tokio::test]
async fn the_certificate_is_served_even_without_permission_to_patch() {
    let server = Cluster::start().await;
    let mut replica = Replica::new(&server, &Hand::default());
    server.forbid(CONFIGURATIONS, true);
    let error = replica.keeper.look().await.expect_err("forbidden");
    assert!(matches!(error, StoreError::Forbidden { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("get MutatingWebhookConfiguration 10-probe-handler"),
        "{text}"
    );
    let leaf = replica.leaf();
    server.forbid(CONFIGURATIONS, false);
    replica.look().await;
    assert_eq!(replica.leaf(), leaf);
    assert!(is_trusted(&server, &replica, SystemTime::now()));
}

#[tokio::test]
async fn the_certificate_is_served_while_the_api_server_is_unreachable() {
    let server = Cluster::start().await;
    let mut replica = Replica::new(&server, &Hand::default());
    replica.look().await;
    let leaf = replica.leaf();
    for status in [500, 503, 401, 404] {
        server.fail("secrets", false, Fault::Status(status, "Failed", "failed"));
        if status == 404 {
            // If the Secret does not exist, creating it fails too.
            server.fail("secrets", false, Fault::Status(500, "Failed", "failed"));
        }
        assert!(replica.keeper.look().await.is_err(), "{status}");
        assert_eq!(replica.leaf(), leaf);
    }
}
