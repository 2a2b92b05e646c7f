//! The source of pods, with the real client, against a double of the API server.

mod connection;
mod feed;
mod index;
mod last_known;
mod watching;

use std::sync::Arc;
use std::time::Duration;

use api_server_double::ApiServer;
use kube::Config;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::health::Health;
use super::{Options, Timeouts, client};
use crate::source::SourceEvent;
use pods::scope::Selection;
use pods::select::SelectedPod;

/// The node whose pods are watched.
const NODE: &str = "node-1";
/// No step takes this long.
const LATE: Duration = Duration::from_secs(20);

/// The source under test.
struct Source {
    events: mpsc::Receiver<SourceEvent>,
    health: Arc<Health>,
    /// Dropped once the first pods have been sent.
    listed: oneshot::Receiver<()>,
    pods: Vec<Arc<SelectedPod>>,
    problems: Vec<String>,
    task: JoinHandle<()>,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Timeouts short enough for tests.
fn timeouts() -> Timeouts {
    Timeouts {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(10),
        ..Timeouts::default()
    }
}

impl Source {
    fn start(server: &ApiServer) -> Self {
        Self::with(Config::new(server.url()), timeouts())
    }

    fn with(config: Config, timeouts: Timeouts) -> Self {
        let client = client::client(config).unwrap();
        let options = Options {
            node: NODE.to_owned(),
            selection: watch::channel(Selection::default()).1,
            timeouts,
            last_known: None,
        };
        Self::with_options(client, options)
    }

    fn with_options(client: ::kube::Client, options: Options) -> Self {
        let (tx, events) = mpsc::channel(64);
        let (guard, listed) = oneshot::channel();
        let health = Arc::new(Health::default());
        let task = tokio::spawn(super::run(client, options, Arc::clone(&health), guard, tx));
        Self {
            events,
            health,
            listed,
            pods: Vec::new(),
            problems: Vec::new(),
            task,
        }
    }

    /// Takes the next event.
    async fn next(&mut self) {
        let event = timeout(LATE, self.events.recv()).await;
        let event = event.unwrap_or_else(|_| {
            panic!("nothing new since {:?}, {:?}", self.names(), self.problems)
        });
        match event.expect("the source runs") {
            SourceEvent::Replace(pods) => self.pods = pods,
            SourceEvent::Problems(problems) => self.problems = problems,
        }
    }

    /// Takes events until `condition` holds; `always` must hold after each.
    async fn until_while(
        &mut self,
        condition: impl Fn(&Self) -> bool,
        always: impl Fn(&Self) -> bool,
    ) {
        while !condition(self) {
            self.next().await;
            assert!(always(self), "{:?} {:?}", self.names(), self.problems);
        }
    }

    async fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        self.until_while(condition, |_| true).await;
    }

    async fn until_pods(&mut self, names: &[&str]) {
        self.until(|source| source.names() == names).await;
    }

    async fn until_problem(&mut self, text: &str) {
        self.until(|source| source.problems.iter().any(|p| p.contains(text)))
            .await;
    }

    /// The pods that are served.
    fn names(&self) -> Vec<&str> {
        let served = self.pods.iter().filter(|pod| pod.pod.is_some());
        served.map(|pod| pod.id.name.as_str()).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.names().contains(&name)
    }

    /// Whether the first pods have been sent.
    fn is_listed(&mut self) -> bool {
        self.listed.try_recv() != Err(oneshot::error::TryRecvError::Empty)
    }
}

/// A meshed pod of our node, with a probe.
fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
        "spec": {
            "nodeName": NODE,
            "containers": [
                {"name": "app", "livenessProbe": {"httpGet": {"path": "/live", "port": 8080}}},
                {"name": "istio-proxy"},
            ],
        },
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
    })
}

/// `object` with `value` at `pointer`, whose parent must exist.
fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[field] = value;
    object
}

fn namespace(name: &str, mode: Option<&str>) -> Value {
    let mut metadata = json!({"name": name, "uid": format!("uid-{name}")});
    if let Some(mode) = mode {
        metadata["labels"] = json!({"probe-handler.io/mode": mode});
    }
    json!({"metadata": metadata, "spec": {"finalizers": ["kubernetes"]}})
}

/// A server with one pod, `a`.
async fn server() -> ApiServer {
    let server = ApiServer::start().await;
    let _ = server.put("namespaces", namespace("shop", None));
    let _ = server.put("pods", pod("a"));
    server
}

/// A server with pod `a`, and a source that has received it and watches.
async fn synced() -> (ApiServer, Source) {
    let server = server().await;
    let mut source = Source::start(&server);
    source.until_pods(&["a"]).await;
    server
        .until(|server| server.watching("pods") == 1 && server.watching("namespaces") == 1)
        .await;
    (server, source)
}
