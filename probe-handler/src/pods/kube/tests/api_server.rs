//! A double of the API server: HTTP/1.1 on a loopback port, with lists, watches and refusals as
//! kube-apiserver has them (kubernetes staging/src/k8s.io/apiserver/pkg/{endpoints/handlers,storage}).
//!
//! It has one store with one counter of revisions, as etcd is. Each write is an event that watches from
//! an older revision see; revisions up to a compaction are gone, and with them the way to go on from there.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

type Body = BoxBody<Bytes, std::io::Error>;

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
    /// `pods` or `namespaces`.
    pub resource: String,
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
        self.query.get("watch").map(String::as_str) == Some("true")
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
    pub async fn start_tls() -> (Self, Vec<u8>) {
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
        (server.await, cert.der().to_vec())
    }

    async fn start_at(address: SocketAddr, state: State, tls: Option<TlsAcceptor>) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(64).unwrap();
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
        self.accepting.abort();
        // Aborted, but maybe still on its way out: the port is free when nobody else has the state.
        while Arc::strong_count(&self.shared) > 1 {
            tokio::task::yield_now().await;
        }
        let state = std::mem::take(&mut *self.shared.state.lock());
        Stopped {
            address: self.address,
            state,
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
    pub fn put(&self, resource: &str, mut object: Value) -> u64 {
        let mut state = self.shared.state.lock();
        state.revision += 1;
        let revision = state.revision;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        object["apiVersion"] = json!("v1");
        object["kind"] = json!(if resource == "pods" {
            "Pod"
        } else {
            "Namespace"
        });
        let before = state.objects.insert(key(resource, &object), object.clone());
        state.events.push(Event {
            revision,
            resource: resource.to_owned(),
            before,
            after: Some(object),
        });
        drop(state);
        self.shared.changed.send_replace(revision);
        revision
    }

    /// Deletes the object of that name, which must be there; its last state has the revision of its end.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> u64 {
        let mut state = self.shared.state.lock();
        state.revision += 1;
        let revision = state.revision;
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut before = state.objects.remove(&key).expect("it is there");
        before["metadata"]["resourceVersion"] = json!(revision.to_string());
        state.events.push(Event {
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

    /// The next request for a watch, or for all of `resource`, goes wrong.
    pub fn fail(&self, resource: &str, watch: bool, fault: Fault) {
        let mut state = self.shared.state.lock();
        let faults = state.faults.entry((resource.to_owned(), watch));
        faults.or_default().push_back(fault);
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
    address: SocketAddr,
    state: State,
}

impl Stopped {
    /// Starts it again, at the same address and with the same objects; events of old it no longer has.
    pub async fn start(mut self) -> ApiServer {
        self.state.compacted = self.state.revision;
        self.state.events.clear();
        self.state.watching.clear();
        ApiServer::start_at(self.address, self.state, None).await
    }
}

fn key(resource: &str, object: &Value) -> (String, String, String) {
    let text = |field: &str| {
        let value = object["metadata"][field].as_str();
        value.unwrap_or_default().to_owned()
    };
    (resource.to_owned(), text("namespace"), text("name"))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Connections end with the task that accepts them.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
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

/// A broken connection, on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the double hangs up")]
struct Hangup;

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Hangup> {
    let asked = asked(&request);
    let fault = {
        let mut state = shared.state.lock();
        state.asked.push(asked.clone());
        shared.progress.send_modify(|count| *count += 1);
        let faults = state
            .faults
            .get_mut(&(asked.resource.clone(), asked.is_watch()));
        faults.and_then(VecDeque::pop_front)
    };
    match fault {
        None => {}
        Some(Fault::Status(code, reason, message)) => return Ok(status(code, reason, message)),
        Some(Fault::Plain(code, text)) => {
            let mut response = Response::new(full(text.to_owned()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            return Ok(response);
        }
        Some(Fault::Garbage) => return Ok(Response::new(full("{\"items\": [tru\n".to_owned()))),
        Some(Fault::Hangup) => return Err(Hangup),
        Some(Fault::Hang) => {
            let mut released = shared.released.subscribe();
            released.mark_unchanged();
            let _ = released.changed().await;
        }
    }
    Ok(if asked.is_watch() {
        begin_watch(shared, &asked)
    } else {
        list(&shared, &asked)
    })
}

fn asked(request: &Request<Incoming>) -> Asked {
    let header = |name| {
        let value = request.headers().get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let path = request.uri().path();
    Asked {
        resource: path.strip_prefix("/api/v1/").unwrap_or(path).to_owned(),
        query: url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect(),
        accept: header(http::header::ACCEPT),
        authorization: header(http::header::AUTHORIZATION),
    }
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text))
        .map_err(|never: Infallible| match never {})
        .boxed()
}

fn status_body(code: u16, reason: &str, message: &str) -> Value {
    let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    if message.starts_with("Too large resource version") {
        status["details"] = json!({"retryAfterSeconds": 1, "causes": [
            {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]});
    }
    status
}

fn status(code: u16, reason: &str, message: &str) -> Response<Body> {
    let mut response = Response::new(full(status_body(code, reason, message).to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    let json = http::HeaderValue::from_static("application/json");
    let _ = response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}

/// Whether the field selector, of which only `spec.nodeName` is known, selects `object`.
fn selected(asked: &Asked, object: &Value) -> bool {
    match asked.param("fieldSelector").split_once('=') {
        None => true,
        Some(("spec.nodeName", node)) => object["spec"]["nodeName"].as_str() == Some(node),
        Some(_) => panic!("a field selector that the server would refuse"),
    }
}

/// What is sent of `object`: all, or its metadata only, as asked for.
fn shown(asked: &Asked, object: &Value) -> Value {
    if asked.accept.contains("as=PartialObjectMetadata") {
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"]})
    } else {
        object.clone()
    }
}

/// The version asked for, if the server has got that far.
fn not_older(state: &State, asked: &Asked) -> Result<u64, Box<Response<Body>>> {
    let version = asked.param("resourceVersion");
    let version: u64 = match version {
        "" => 0,
        version => version
            .parse()
            .map_err(|_| Box::new(status(400, "BadRequest", "Invalid value: resourceVersion")))?,
    };
    if version > state.revision {
        let message = format!(
            "Too large resource version: {version}, current: {}",
            state.revision
        );
        return Err(Box::new(status(504, "Timeout", &message)));
    }
    Ok(version)
}

fn list(shared: &Shared, asked: &Asked) -> Response<Body> {
    let mut state = shared.state.lock();
    let version = asked.param("resourceVersion");
    if asked.query.contains_key("resourceVersionMatch") && version.is_empty() {
        return status(
            400,
            "BadRequest",
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        );
    }
    let token = asked.param("continue").to_owned();
    let (revision, mut items) = if token.is_empty() {
        if let Err(refusal) = not_older(&state, asked) {
            return *refusal;
        }
        let items = state
            .objects
            .iter()
            .filter(|(key, object)| key.0 == asked.resource && selected(asked, object))
            .map(|(_, object)| shown(asked, object))
            .collect();
        (state.revision, items)
    } else {
        match state.pages.remove(&token) {
            Some(snapshot) => snapshot,
            None => return status(410, "Expired", "The provided continue parameter is too old"),
        }
    };
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    // Only lists from the store come in pages.
    if let Ok(limit) = asked.param("limit").parse::<usize>()
        && version.is_empty()
        && limit < items.len()
    {
        let rest = items.split_off(limit);
        let token = format!("{}-{revision}-{}", asked.resource, rest.len());
        metadata["continue"] = json!(token);
        metadata["remainingItemCount"] = json!(rest.len());
        let _ = state.pages.insert(token, (revision, rest));
    }
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items});
    Response::new(full(list.to_string()))
}

fn begin_watch(shared: Arc<Shared>, asked: &Asked) -> Response<Body> {
    let state = shared.state.lock();
    let version = asked.param("resourceVersion").to_owned();
    let initial = asked.param("sendInitialEvents") == "true";
    if initial && !state.streams_initial {
        let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return status(422, "Invalid", message);
    }
    let mut lines = Vec::new();
    let from = if initial {
        if let Err(refusal) = not_older(&state, asked) {
            return *refusal;
        }
        for ((resource, ..), object) in &state.objects {
            if *resource == asked.resource && selected(asked, object) {
                lines.push(line("ADDED", &shown(asked, object)));
            }
        }
        lines.push(bookmark(asked, state.revision, true));
        state.revision
    } else {
        let from: u64 = version.parse().expect("a version to go on from");
        if from < state.compacted {
            // The answer has begun: it is an event.
            let message = format!("too old resource version: {from} ({})", state.compacted);
            lines.push(line("ERROR", &status_body(410, "Expired", &message)));
            return Response::new(full(lines.concat()));
        }
        from
    };
    let (tx, rx) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(64);
    let changed = shared.changed.subscribe();
    let orders = shared.orders.subscribe();
    drop(state);
    let feeding = Feeding {
        shared: Arc::clone(&shared),
        asked: asked.clone(),
        from,
        tx,
    };
    drop(tokio::spawn(feeding.run(lines, changed, orders)));
    let body = stream::unfold(rx, |mut rx| async { Some((rx.recv().await?, rx)) });
    Response::new(BodyExt::boxed(StreamBody::new(body)))
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn bookmark(asked: &Asked, revision: u64, initial_end: bool) -> String {
    let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    if initial_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let kind = if asked.resource == "pods" {
        "Pod"
    } else {
        "Namespace"
    };
    let object = json!({"kind": kind, "apiVersion": "v1", "metadata": metadata});
    line("BOOKMARK", &object)
}

/// Sends events on one watch.
struct Feeding {
    shared: Arc<Shared>,
    asked: Asked,
    from: u64,
    tx: mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
}

/// The client has gone.
struct Gone;

impl Feeding {
    async fn run(
        mut self,
        lines: Vec<String>,
        mut changed: watch::Receiver<u64>,
        mut orders: tokio::sync::broadcast::Receiver<(String, Order)>,
    ) {
        self.count(1);
        let _: Result<(), Gone> = async {
            for line in lines {
                self.send(line).await?;
            }
            loop {
                for line in self.news() {
                    self.send(line).await?;
                }
                tokio::select! {
                    () = self.tx.closed() => return Err(Gone),
                    change = changed.changed() => if change.is_err() { return Ok(()) },
                    order = orders.recv() => match order {
                        Ok((resource, order)) if resource == self.asked.resource => {
                            for line in self.news() {
                                self.send(line).await?;
                            }
                            match order {
                                Order::Bookmark => {
                                    let line = bookmark(&self.asked, self.from, false);
                                    self.send(line).await?;
                                }
                                Order::Cut(cut) => return self.cut(cut).await,
                            }
                        }
                        Ok(_) => {}
                        Err(_) => return Ok(()),
                    },
                }
            }
        }
        .await;
        self.count(-1);
    }

    fn count(&self, by: isize) {
        let mut state = self.shared.state.lock();
        let count = state
            .watching
            .entry(self.asked.resource.clone())
            .or_default();
        *count = count.saturating_add_signed(by);
        drop(state);
        self.shared.progress.send_modify(|count| *count += 1);
    }

    /// Events since the last call, as this watch's selector sees them.
    fn news(&mut self) -> Vec<String> {
        let state = self.shared.state.lock();
        let mut lines = Vec::new();
        for event in &state.events {
            if event.revision <= self.from {
                continue;
            }
            self.from = event.revision;
            if event.resource != self.asked.resource {
                continue;
            }
            let visible = |object: &Option<Value>| {
                let object = object.as_ref();
                object
                    .filter(|object| selected(&self.asked, object))
                    .cloned()
            };
            let (kind, object) = match (visible(&event.before), visible(&event.after)) {
                (None, None) => continue,
                (None, Some(after)) => ("ADDED", after),
                (Some(_), Some(after)) => ("MODIFIED", after),
                (Some(mut before), None) => {
                    // Also one that leaves the selector: its old state at the new revision.
                    before["metadata"]["resourceVersion"] = json!(event.revision.to_string());
                    ("DELETED", before)
                }
            };
            lines.push(line(kind, &shown(&self.asked, &object)));
        }
        lines
    }

    async fn send(&self, text: String) -> Result<(), Gone> {
        let frame = Frame::data(Bytes::from(text));
        self.tx.send(Ok(frame)).await.map_err(|_| Gone)
    }

    async fn cut(&self, cut: Cut) -> Result<(), Gone> {
        match cut {
            Cut::End => Ok(()),
            Cut::MidLine => {
                let half = r#"{"type":"MODIFIED","object":{"kind":"Pod","metadata":{"na"#;
                self.send(half.to_owned()).await?;
                let error = std::io::Error::other("cut on purpose");
                self.tx.send(Err(error)).await.map_err(|_| Gone)
            }
            Cut::Error(code, reason, message) => {
                let line = line("ERROR", &status_body(code, reason, message));
                self.send(line).await
            }
        }
    }
}
