//! A double of the API server: HTTP/1.1 on a loopback port, with or without TLS, with lists, watches and
//! refusals as kube-apiserver has them (kubernetes staging/src/k8s.io/apiserver/pkg/{endpoints/handlers,storage}).
//! The tests of `probe-handler` run its source of pods against it, the testbed runs the whole daemon.
//!
//! It has one store with one counter of revisions, as etcd is. Each write is an event that watches from
//! an older revision see; revisions up to a compaction are gone, and with them the way to go on from there.
//!
//! It is a double, not a server: it knows the resources that probe-handler asks for, and who orders something
//! impossible of it ends with a panic.

mod answer;
mod feeding;
mod object;
mod rbac;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use answer::answer;
use rbac::Rule;

pub use rcgen::Certificate;

type Body = BoxBody<Bytes, std::io::Error>;

/// How many events are kept at most; the oldest half of more is compacted away.
const EVENTS: usize = 20_000;

/// How a request goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// An error with the usual body: code, reason, message.
    Status(u16, &'static str, &'static str),
    /// An error as a proxy in front of the server writes it: no Status at all.
    Plain(u16, &'static str),
    /// Answered only after [`ApiServer::release`].
    Hang,
    /// A body that is no JSON.
    Garbage,
    /// The connection is closed before an answer.
    Hangup,
}

/// How a watch that stands ends.
#[derive(Clone, Debug)]
pub enum Cut {
    /// As after its timeout.
    End,
    /// The connection breaks in the middle of a line.
    MidLine,
    /// An event ERROR: code, reason, message.
    Error(u16, &'static str, &'static str),
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// As RBAC names it: `get`, `list`, `watch`, `create`, `update`, `patch`.
    pub verb: String,
    /// The resource's group; empty for the core's.
    pub group: String,
    /// As `pods`.
    pub resource: String,
    /// The namespace, if only objects of one are wanted.
    pub namespace: Option<String>,
    /// The object's name, if only one is wanted.
    pub name: Option<String>,
    /// The query's parameters.
    pub query: BTreeMap<String, String>,
    /// Header `Accept`.
    pub accept: String,
    /// Header `Authorization`.
    pub authorization: String,
}

impl Asked {
    /// Whether it is a watch.
    pub fn is_watch(&self) -> bool {
        self.verb == "watch"
    }

    /// The parameter, empty if it is not there.
    pub fn param(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }
}

#[derive(Clone)]
struct Event {
    revision: u64,
    resource: String,
    before: Option<Value>,
    after: Option<Value>,
}

#[derive(Default)]
struct State {
    revision: u64,
    compacted: u64,
    objects: BTreeMap<(String, String, String), Value>,
    events: Vec<Event>,
    /// Snapshots of lists that are read in pages, by token.
    pages: HashMap<String, (u64, Vec<Value>)>,
    faults: HashMap<(String, bool), VecDeque<Fault>>,
    /// The only bearer token accepted; none: nobody is asked for one.
    token: Option<String>,
    /// Resources of which RBAC allows nobody anything.
    forbidden: BTreeSet<String>,
    /// All that RBAC allows; none: whatever is not forbidden.
    allowed: Option<Vec<Rule>>,
    /// Writes that clients made, by verb.
    writes: BTreeMap<String, usize>,
    asked: Vec<Asked>,
    streams_initial: bool,
    watching: HashMap<String, usize>,
}

impl State {
    fn new() -> Self {
        Self {
            revision: 100,
            streams_initial: true,
            ..Self::default()
        }
    }

    /// Writes `object`, which is given a new revision; returns that.
    fn write(&mut self, resource: &str, mut object: Value) -> u64 {
        self.revision += 1;
        let revision = self.revision;
        let (version, kind) = kind(resource);
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        object["apiVersion"] = json!(version);
        object["kind"] = json!(kind);
        let before = self.objects.insert(key(resource, &object), object.clone());
        self.note(Event {
            revision,
            resource: resource.to_owned(),
            before,
            after: Some(object),
        });
        revision
    }

    fn note(&mut self, event: Event) {
        self.events.push(event);
        if self.events.len() > EVENTS {
            let kept = self.events.split_off(EVENTS / 2);
            self.compacted = self.events.last().map_or(0, |event| event.revision);
            self.events = kept;
        }
    }
}

/// What all watches of a resource are told besides events.
#[derive(Clone)]
enum Order {
    Bookmark,
    Cut(Cut),
}

type Orders = tokio::sync::broadcast::Sender<(String, Order)>;

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    released: watch::Sender<u64>,
    /// Moves on with each request, and each watch that begins or ends.
    progress: watch::Sender<u64>,
    orders: Orders,
    tls: Option<TlsAcceptor>,
}

/// The double. Gone when dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl ApiServer {
    /// An empty one that can begin watches with everything there is (Kubernetes 1.34 and later).
    pub async fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), State::new(), None).await
    }

    /// The same over TLS; with it the certificate to trust.
    pub async fn start_tls() -> (Self, Certificate) {
        let names = vec!["127.0.0.1".to_owned()];
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let tls = TlsAcceptor::from(Arc::new(config));
        let server = Self::start_at(([127, 0, 0, 1], 0).into(), State::new(), Some(tls));
        (server.await, cert)
    }

    async fn start_at(address: SocketAddr, state: State, tls: Option<TlsAcceptor>) -> Self {
        let listener = bound(address).listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
            released: watch::Sender::new(0),
            progress: watch::Sender::new(0),
            orders: tokio::sync::broadcast::Sender::new(64),
            tls,
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self {
            shared,
            address,
            accepting,
        }
    }

    /// Stops it: connections break, and nobody listens at its address any more.
    pub async fn stop(self) -> Stopped {
        let held = bound(self.address);
        self.accepting.abort();
        // Aborted, but maybe still on its way out: the port is free when nobody else has the state.
        while Arc::strong_count(&self.shared) > 1 {
            tokio::task::yield_now().await;
        }
        let state = std::mem::take(&mut *self.shared.state.lock());
        Stopped {
            held,
            address: self.address,
            state,
            tls: self.shared.tls.clone(),
        }
    }

    /// Its URL.
    pub fn url(&self) -> http::Uri {
        let scheme = if self.shared.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address).parse().unwrap()
    }

    /// Has it know nothing of watches that begin with everything, as before Kubernetes 1.27.
    pub fn without_initial_events(self) -> Self {
        self.shared.state.lock().streams_initial = false;
        self
    }

    /// Writes `object` of `resource`, which is given a new revision; returns that.
    pub fn put(&self, resource: &str, object: Value) -> u64 {
        let revision = self.shared.state.lock().write(resource, object);
        self.shared.changed.send_replace(revision);
        revision
    }

    /// The object of that name; in no namespace where that is empty.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.shared.state.lock().objects.get(&key).cloned()
    }

    /// Deletes the object of that name, which must be there; its last state has the revision of its end.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> u64 {
        let mut state = self.shared.state.lock();
        state.revision += 1;
        let revision = state.revision;
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut before = state.objects.remove(&key).expect("it is there");
        before["metadata"]["resourceVersion"] = json!(revision.to_string());
        state.note(Event {
            revision,
            resource: resource.to_owned(),
            before: Some(before),
            after: None,
        });
        drop(state);
        self.shared.changed.send_replace(revision);
        revision
    }

    /// Forgets all events so far.
    pub fn compact(&self) {
        let mut state = self.shared.state.lock();
        state.compacted = state.revision;
        let events = std::mem::take(&mut state.events);
        drop(events);
        state.pages.clear();
    }

    /// Its revisions begin anew, as after a restore from a backup: lists "not older than" what was seen
    /// before can't be had.
    pub fn restore(&self, revision: u64) {
        let mut state = self.shared.state.lock();
        state.revision = revision;
        state.compacted = revision;
        state.events.clear();
        for object in state.objects.values_mut() {
            object["metadata"]["resourceVersion"] = json!(revision.to_string());
        }
    }

    /// The next request for a watch of `resource`, or the next other one, goes wrong.
    pub fn fail(&self, resource: &str, watch: bool, fault: Fault) {
        let mut state = self.shared.state.lock();
        let faults = state.faults.entry((resource.to_owned(), watch));
        faults.or_default().push_back(fault);
    }

    /// From now on requests need this bearer token (401); none: any will do. Watches that stand go on, as
    /// they do in a cluster.
    pub fn require_token(&self, token: Option<&str>) {
        self.shared.state.lock().token = token.map(str::to_owned);
    }

    /// From now on requests for `resource` are forbidden (403), or allowed again. Watches that stand go on,
    /// as they do in a cluster.
    pub fn forbid(&self, resource: &str, forbidden: bool) {
        let mut state = self.shared.state.lock();
        let _ = match forbidden {
            true => state.forbidden.insert(resource.to_owned()),
            false => state.forbidden.remove(resource),
        };
    }

    /// From now on only what these rules allow is (403 for all else): PolicyRules, which count in one namespace or in
    /// all. Rules add up.
    pub fn allow(&self, namespace: Option<&str>, rules: &[Value]) {
        let mut state = self.shared.state.lock();
        let rules = rules.iter().map(|rule| Rule {
            namespace: namespace.map(str::to_owned),
            rule: rule.clone(),
        });
        state.allowed.get_or_insert_default().extend(rules);
    }

    /// Writes that clients made and that were not refused: `create`, `update` or `patch`.
    pub fn written(&self, verb: &str) -> usize {
        let state = self.shared.state.lock();
        state.writes.get(verb).copied().unwrap_or_default()
    }

    /// Requests that hang are answered.
    pub fn release(&self) {
        self.shared.released.send_modify(|count| *count += 1);
    }

    /// Ends all watches of `resource` that stand.
    pub fn cut(&self, resource: &str, cut: Cut) {
        let order = (resource.to_owned(), Order::Cut(cut));
        let _ = self.shared.orders.send(order);
    }

    /// Sends a bookmark on all watches of `resource`.
    pub fn bookmark(&self, resource: &str) {
        let order = (resource.to_owned(), Order::Bookmark);
        let _ = self.shared.orders.send(order);
    }

    /// Waits until `condition` holds.
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let mut progress = self.shared.progress.subscribe();
        while !condition(self) {
            progress.changed().await.expect("we have the sender");
        }
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.state.lock().asked.clone()
    }

    /// Watches of `resource` that stand.
    pub fn watching(&self, resource: &str) -> usize {
        let state = self.shared.state.lock();
        state.watching.get(resource).copied().unwrap_or_default()
    }
}

/// A server that was stopped.
pub struct Stopped {
    /// Nobody listens at the address, and nobody else can.
    held: TcpSocket,
    address: SocketAddr,
    state: State,
    tls: Option<TlsAcceptor>,
}

impl Stopped {
    /// Starts it again, at the same address and with the same objects; events of old it no longer has.
    pub async fn start(mut self) -> ApiServer {
        self.state.compacted = self.state.revision;
        self.state.events.clear();
        self.state.watching.clear();
        let server = ApiServer::start_at(self.address, self.state, self.tls).await;
        drop(self.held);
        server
    }
}

/// A socket at `address` beside those that are there.
fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

fn key(resource: &str, object: &Value) -> (String, String, String) {
    let text = |field: &str| {
        let value = object["metadata"][field].as_str();
        value.unwrap_or_default().to_owned()
    };
    (resource.to_owned(), text("namespace"), text("name"))
}

/// Version and kind of a resource's objects.
fn kind(resource: &str) -> (&'static str, &'static str) {
    match resource {
        "pods" => ("v1", "Pod"),
        "namespaces" => ("v1", "Namespace"),
        "configmaps" => ("v1", "ConfigMap"),
        "secrets" => ("v1", "Secret"),
        "mutatingwebhookconfigurations" => (
            "admissionregistration.k8s.io/v1",
            "MutatingWebhookConfiguration",
        ),
        other => panic!("{other} is not served"),
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Connections end with the task that accepts them.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                // As Go's servers have it: an event does not wait for the one before to be acknowledged.
                stream.set_nodelay(true).unwrap();
                let tls = shared.tls.clone();
                let shared = Arc::clone(&shared);
                let _ = connections.spawn(async move {
                    match tls {
                        None => serve(shared, stream).await,
                        Some(tls) => {
                            // A client that does not trust us hangs up.
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(shared, stream).await;
                            }
                        }
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(shared: Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
    // Ends as the client or a test wants it to.
    drop(
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}
