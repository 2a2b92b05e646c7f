//! A test double of the API server: HTTP/1.1 on a loopback port, with or without TLS, with lists, watches and
//! errors like kube-apiserver's (kubernetes staging/src/k8s.io/apiserver/pkg/{endpoints/handlers,storage}).
//! Unit tests use it for the daemon's pod source, and the testbed for the complete daemon.
//!
//! It has one store with one revision counter, like etcd. Each write is an event for watches that start at an
//! older revision. A compaction removes old revisions, and watches can no longer start from them.
//!
//! It supports only the resources that probe-handler requests, and panics if a test uses it in an impossible
//! way.

mod answer;
mod feeding;
mod forward;
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

/// The maximum number of events; beyond it the oldest half is compacted.
const EVENTS: usize = 20_000;

/// How a request fails.
#[derive(Clone, Debug)]
pub enum Fault {
    /// An error with a Status as body: code, reason, message.
    Status(u16, &'static str, &'static str),
    /// An error from a proxy in front of the server, without a Status.
    Plain(u16, &'static str),
    /// Answered only after [`ApiServer::release`].
    Hang,
    /// A body that is not JSON.
    Garbage,
    /// The connection is closed before an answer.
    Hangup,
}

/// How an open watch ends.
#[derive(Clone, Debug)]
pub enum Cut {
    /// Normally, as after its timeout.
    End,
    /// The connection breaks in the middle of a line.
    MidLine,
    /// An event ERROR: code, reason, message.
    Error(u16, &'static str, &'static str),
}

/// A received request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The verb in RBAC: `get`, `list`, `watch`, `create`, `update`, `patch`.
    pub verb: String,
    /// The resource's group; empty for the core's.
    pub group: String,
    /// The resource, and the subresource if there is one, for example `pods` and `nodes/status`.
    pub resource: String,
    /// The namespace, if the request is limited to one.
    pub namespace: Option<String>,
    /// The object's name, if the request is for one object.
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

    /// A query parameter; empty if it is missing.
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
    /// Snapshots of paginated lists, by continue token.
    pages: HashMap<String, (u64, Vec<Value>)>,
    faults: HashMap<(String, bool), VecDeque<Fault>>,
    /// The only accepted bearer token; `None`: no token is required.
    token: Option<String>,
    /// Resources to which RBAC denies all access.
    forbidden: BTreeSet<String>,
    /// The rules of RBAC; `None`: everything is allowed that is not forbidden.
    allowed: Option<Vec<Rule>>,
    /// The number of clients' writes, by verb.
    writes: BTreeMap<String, usize>,
    asked: Vec<Asked>,
    streams_initial: bool,
    watching: HashMap<String, usize>,
    /// The listener behind each port of a pod: namespace, pod and port -> address.
    forwards: HashMap<(String, String, u16), SocketAddr>,
    /// Namespace and pod -> log.
    logs: HashMap<(String, String), String>,
}

impl State {
    fn new() -> Self {
        Self {
            revision: 100,
            streams_initial: true,
            ..Self::default()
        }
    }

    /// Writes `object` with a new revision, and returns the revision.
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

/// Instructions to all watches of a resource.
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
    /// Changes with each request, and with each start and end of a watch.
    progress: watch::Sender<u64>,
    orders: Orders,
    tls: Option<TlsAcceptor>,
}

/// The double; stops on drop.
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
    /// An empty server whose watches can begin with all existing objects (Kubernetes 1.34 and later).
    pub async fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), State::new(), None).await
    }

    /// The same with TLS; also returns the certificate to trust.
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
        let listener = bound(address).listen(1024).unwrap();
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

    /// Stops it: connections break, and its address is no longer bound.
    pub async fn stop(self) -> Stopped {
        let held = bound(self.address);
        self.accepting.abort();
        // The aborted task may still be running; the port is free when no other task holds the state.
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

    /// Disables watches that begin with all existing objects, as before Kubernetes 1.27.
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

    /// The object with that name; an empty namespace means a cluster-scoped object.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.shared.state.lock().objects.get(&key).cloned()
    }

    /// Deletes the object with that name, which must exist; its last state has the revision of the deletion.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> u64 {
        let mut state = self.shared.state.lock();
        state.revision += 1;
        let revision = state.revision;
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut before = state.objects.remove(&key).expect("the object exists");
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

    /// Removes all events so far.
    pub fn compact(&self) {
        let mut state = self.shared.state.lock();
        state.compacted = state.revision;
        let events = std::mem::take(&mut state.events);
        drop(events);
        state.pages.clear();
    }

    /// Resets its revision, as after a restore from a backup: lists "not older than" an earlier revision
    /// fail.
    pub fn restore(&self, revision: u64) {
        let mut state = self.shared.state.lock();
        state.revision = revision;
        state.compacted = revision;
        state.events.clear();
        for object in state.objects.values_mut() {
            object["metadata"]["resourceVersion"] = json!(revision.to_string());
        }
    }

    /// Makes the next watch request for `resource`, or the next other request, fail.
    pub fn fail(&self, resource: &str, watch: bool, fault: Fault) {
        let mut state = self.shared.state.lock();
        let faults = state.faults.entry((resource.to_owned(), watch));
        faults.or_default().push_back(fault);
    }

    /// From now on requests need this bearer token (else 401); `None`: any token is accepted. Open watches
    /// continue, as in a cluster.
    pub fn require_token(&self, token: Option<&str>) {
        self.shared.state.lock().token = token.map(str::to_owned);
    }

    /// From now on requests for `resource` are forbidden (403), or allowed again. Open watches continue, as
    /// in a cluster.
    pub fn forbid(&self, resource: &str, forbidden: bool) {
        let mut state = self.shared.state.lock();
        let _ = match forbidden {
            true => state.forbidden.insert(resource.to_owned()),
            false => state.forbidden.remove(resource),
        };
    }

    /// From now on only what these PolicyRules allow is permitted (else 403). They apply to one namespace or to all, and
    /// add to earlier rules.
    pub fn allow(&self, namespace: Option<&str>, rules: &[Value]) {
        let mut state = self.shared.state.lock();
        let rules = rules.iter().map(|rule| Rule {
            namespace: namespace.map(str::to_owned),
            rule: rule.clone(),
        });
        state.allowed.get_or_insert_default().extend(rules);
    }

    /// From now on requests of `pods/portforward` for `port` of a pod reach `target`. Other ports refuse the connection.
    pub fn forward(&self, namespace: &str, pod: &str, port: u16, target: SocketAddr) {
        let key = (namespace.to_owned(), pod.to_owned(), port);
        self.shared.state.lock().forwards.insert(key, target);
    }

    /// Sets the log of a pod.
    pub fn log(&self, namespace: &str, pod: &str, text: &str) {
        let key = (namespace.to_owned(), pod.to_owned());
        self.shared.state.lock().logs.insert(key, text.to_owned());
    }

    /// All objects of a resource.
    pub fn all(&self, resource: &str) -> Vec<Value> {
        let state = self.shared.state.lock();
        let of_resource = state.objects.iter().filter(|(key, _)| key.0 == resource);
        of_resource.map(|(_, object)| object.clone()).collect()
    }

    /// The number of accepted writes by clients, for a verb `create`, `update` or `patch`.
    pub fn written(&self, verb: &str) -> usize {
        let state = self.shared.state.lock();
        state.writes.get(verb).copied().unwrap_or_default()
    }

    /// Answers requests that hang.
    pub fn release(&self) {
        self.shared.released.send_modify(|count| *count += 1);
    }

    /// Ends all open watches of `resource`.
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
            progress.changed().await.expect("the sender exists");
        }
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.state.lock().asked.clone()
    }

    /// The number of open watches of `resource`.
    pub fn watching(&self, resource: &str) -> usize {
        let state = self.shared.state.lock();
        state.watching.get(resource).copied().unwrap_or_default()
    }
}

/// A stopped server.
pub struct Stopped {
    /// Reserves the address without listening on it.
    held: TcpSocket,
    address: SocketAddr,
    state: State,
    tls: Option<TlsAcceptor>,
}

impl Stopped {
    /// Restarts it with the same address and objects, but without the old events.
    pub async fn start(mut self) -> ApiServer {
        self.state.compacted = self.state.revision;
        self.state.events.clear();
        self.state.watching.clear();
        let server = ApiServer::start_at(self.address, self.state, self.tls).await;
        drop(self.held);
        server
    }
}

/// A socket bound to `address`, even if other sockets are bound to it.
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
        "events" => ("v1", "Event"),
        "nodes" => ("v1", "Node"),
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
                // Like Go's servers: an event is sent before the previous one is acknowledged.
                stream.set_nodelay(true).unwrap();
                let tls = shared.tls.clone();
                let shared = Arc::clone(&shared);
                let _ = connections.spawn(async move {
                    match tls {
                        None => serve(shared, stream).await,
                        Some(tls) => {
                            // A client that does not trust the certificate closes the connection.
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
    // Errors are expected: the client or a test ends connections.
    drop(
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await,
    );
}
