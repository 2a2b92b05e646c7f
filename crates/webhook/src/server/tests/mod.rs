//! The real server on loopback, with well-behaved and hostile clients.

mod client;
mod hostile;
mod leaving;
mod serving;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::Rewriting;
use crate::certificates::Serving;
use crate::certificates::authority::{Lifetimes, Made, make};
use crate::certificates::pair::Pair;
use crate::metrics::Metrics;
use support::readiness::Readiness;

/// The name on the certificate.
const NAME: &str = "probe-handler-webhook.probe-handler-system.svc";
/// No step of a test takes this long.
const LATE: Duration = Duration::from_secs(20);

/// A server under test, stopped when dropped.
struct Webhook {
    address: SocketAddr,
    serving: Arc<Serving>,
    authority: Vec<u8>,
    phase: watch::Sender<Phase>,
    readiness: Readiness,
    connections: Box<dyn Fn() -> usize + Send + Sync>,
    task: JoinHandle<()>,
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn made() -> Made {
    make(&[NAME.to_owned()], &Lifetimes::default(), SystemTime::now()).expect("made")
}

fn install(serving: &Serving, made: &Made) {
    let pair = Pair::from_pem(
        made.certificate.as_bytes(),
        made.key.as_bytes(),
        SystemTime::now(),
    );
    serving.install(&pair.expect("a pair"));
}

impl Webhook {
    fn start() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let made = made();
        let serving = Arc::new(Serving::default());
        install(&serving, &made);
        let (_, rewriting) = watch::channel(Arc::new(Rewriting::default()));
        let readiness = Readiness::default();
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        let admission = Admission::new(rewriting, readiness.clone(), metrics, &limits);
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let resolver = Arc::clone(&serving);
        let server = Server::admission(loopback, resolver, admission, limits).expect("listens");
        let (phase, phases) = watch::channel(Phase::Serving);
        Self {
            address: server.address(),
            serving,
            authority: made.authority.into_bytes(),
            phase,
            readiness,
            connections: Box::new(server.connections()),
            task: tokio::spawn(server.serve(phases)),
        }
    }
}

/// A review of a pod with one probe.
fn review() -> Vec<u8> {
    review_of(json!([{"name": "web", "image": "web",
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}}}]))
}

fn review_of(containers: Value) -> Vec<u8> {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "operation": "CREATE",
            "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
                "spec": {"containers": containers}},
        },
    })
    .to_string()
    .into_bytes()
}
