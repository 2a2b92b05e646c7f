//! A double of the API server with Secrets and MutatingWebhookConfigurations only: get, create, update and JSON
//! patch, each refused as kube-apiserver refuses it when somebody else was first.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use json_patch::Patch;
use kube::{Client, Config};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use super::{NAMESPACE, SERVICE};
use crate::pods::kube::client;

pub const SECRET: &str = "probe-handler-webhook-tls";
pub const CONFIGURATION: &str = "10-probe-handler";

#[derive(Default)]
struct State {
    revision: u64,
    /// By path.
    objects: BTreeMap<String, Value>,
    /// Requests that changed something, or would have: method and status.
    writes: Vec<(Method, u16)>,
    /// The status of all requests to a path that has this in it.
    refused: Option<(String, u16)>,
}

/// The double. Gone when dropped.
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl ApiServer {
    /// One with a MutatingWebhookConfiguration as deploy/webhook has it, of which one webhook is somebody else's.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("address");
        let state = Arc::new(Mutex::new(State::default()));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state))).abort_handle();
        let server = Self {
            state,
            address,
            accepting,
        };
        let webhook = |name: &str, service: &str| {
            json!({
                "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"service": {"name": service, "namespace": NAMESPACE, "path": "/mutate"}},
            })
        };
        server.put(
            &configuration_path(),
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "MutatingWebhookConfiguration",
                "metadata": {"name": CONFIGURATION},
                "webhooks": [webhook("other.example.com", "other"), webhook("probes.probe-handler.io", SERVICE)],
            }),
        );
        server
    }

    pub fn client(&self) -> Client {
        let url = format!("http://{}", self.address);
        client::client(Config::new(url.parse().expect("URL"))).expect("a client")
    }

    fn put(&self, path: &str, mut object: Value) {
        let mut state = self.state.lock();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let _ = state.objects.insert(path.to_owned(), object);
    }

    /// An empty Secret, as deploy/webhook has it.
    pub fn put_empty_secret(&self) {
        self.put(
            &secret_path(),
            json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                "metadata": {"name": SECRET, "namespace": NAMESPACE}}),
        );
    }

    /// The Secret's data.
    pub fn data(&self) -> super::Data {
        let state = self.state.lock();
        let secret = state.objects.get(&secret_path()).cloned();
        let data = secret.unwrap_or_default()["data"].take();
        serde_json::from_value(data).unwrap_or_default()
    }

    /// caBundle of each webhook.
    pub fn bundles(&self) -> Vec<Option<String>> {
        let state = self.state.lock();
        let configuration = &state.objects[&configuration_path()];
        let webhooks = configuration["webhooks"].as_array().expect("webhooks");
        let bundle = |webhook: &Value| {
            let bundle = webhook["clientConfig"].get("caBundle")?.clone();
            let bytes: k8s_openapi::ByteString = serde_json::from_value(bundle).expect("base64");
            String::from_utf8(bytes.0).ok()
        };
        webhooks.iter().map(bundle).collect()
    }

    /// Takes the caBundles away, as a careless `kubectl replace` does.
    pub fn forget_bundles(&self) {
        let path = configuration_path();
        let mut configuration = self.state.lock().objects[&path].clone();
        for webhook in configuration["webhooks"].as_array_mut().expect("webhooks") {
            let client = webhook["clientConfig"].as_object_mut().expect("a client");
            drop(client.remove("caBundle"));
        }
        self.put(&path, configuration);
    }

    /// All requests to a path with this in it get `status`; none: to no path.
    pub fn refuse(&self, refused: Option<(&str, u16)>) {
        self.state.lock().refused = refused.map(|(path, status)| (path.to_owned(), status));
    }

    /// Writes that succeeded, by method.
    pub fn written(&self, method: &Method) -> usize {
        let state = self.state.lock();
        let good = |(by, status): &&(Method, u16)| by == method && *status < 300;
        state.writes.iter().filter(good).count()
    }
}

fn secret_path() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/secrets/{SECRET}")
}

fn configuration_path() -> String {
    let group = "/apis/admissionregistration.k8s.io/v1";
    format!("{group}/mutatingwebhookconfigurations/{CONFIGURATION}")
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("accepted");
                let state = Arc::clone(&state);
                let _ = connections.spawn(async move {
                    let service = service_fn(move |request| serve(Arc::clone(&state), request));
                    let io = TokioIo::new(stream);
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    // Others may come in between a request's arrival and what it does.
    tokio::task::yield_now().await;
    let mut state = state.lock();
    let answered = match &state.refused {
        Some((path, code)) if head.uri.path().contains(path) => Err((*code, "Forbidden")),
        _ => answer(&mut state, &head.method, head.uri.path(), &body),
    };
    let (status, object) = answered.unwrap_or_else(|(code, reason)| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": reason, "reason": reason, "code": code});
        (code, status)
    });
    if head.method != Method::GET {
        state.writes.push((head.method, status));
    }
    let mut response = Response::new(Full::new(object.to_string().into()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    Ok(response)
}

fn answer(
    state: &mut State,
    method: &Method,
    path: &str,
    body: &[u8],
) -> Result<(u16, Value), (u16, &'static str)> {
    let sent: Value = serde_json::from_slice(body).unwrap_or_default();
    let path = match *method {
        Method::POST => format!(
            "{path}/{}",
            sent["metadata"]["name"].as_str().unwrap_or_default()
        ),
        _ => path.to_owned(),
    };
    let there = state.objects.get(&path).cloned();
    let mut object = match (method.as_str(), there) {
        ("GET", Some(object)) => return Ok((200, object)),
        ("POST", None) => sent,
        ("POST", Some(_)) => return Err((409, "AlreadyExists")),
        (_, None) => return Err((404, "NotFound")),
        ("PUT", Some(object)) => {
            let version = &sent["metadata"]["resourceVersion"];
            if *version != object["metadata"]["resourceVersion"] {
                return Err((409, "Conflict"));
            }
            sent
        }
        ("PATCH", Some(mut object)) => {
            let patch: Patch = serde_json::from_value(sent).map_err(|_| (400, "BadRequest"))?;
            json_patch::patch(&mut object, &patch).map_err(|_| (422, "Invalid"))?;
            object
        }
        _ => return Err((405, "MethodNotAllowed")),
    };
    state.revision += 1;
    object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
    let _ = state.objects.insert(path, object.clone());
    Ok((if method == Method::POST { 201 } else { 200 }, object))
}
