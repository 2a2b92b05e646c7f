//! The double's answer to a request: a fault set by the test, a refusal, a list, a watch, or one object.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::feeding::begin_watch;
use super::forward;
use super::object::one;
use super::{Asked, Body, Fault, Shared, State};

/// A connection that is closed on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the double closes the connection")]
pub(super) struct Hangup;

pub(super) async fn answer(
    shared: Arc<Shared>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Hangup> {
    let is_upgrade = request.headers().contains_key(http::header::UPGRADE);
    let upgrade = is_upgrade.then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let asked = asked(&head);
    let body = body.collect().await.map_err(|_| Hangup)?.to_bytes();
    let fault = {
        let mut state = shared.state.lock();
        state.asked.push(asked.clone());
        shared.progress.send_modify(|count| *count += 1);
        if let Some(refusal) = not_allowed(&state, &asked) {
            return Ok(refusal);
        }
        // From Kubernetes 1.35 on a GET that becomes a WebSocket also needs what a POST needs
        // (AuthorizePodWebsocketUpgradeCreatePermission).
        if asked.resource == forward::RESOURCE {
            let verb = "create".to_owned();
            let create = Asked {
                verb,
                ..asked.clone()
            };
            if let Some(refusal) = not_allowed(&state, &create) {
                return Ok(refusal);
            }
        }
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
    Ok(match asked.verb.as_str() {
        "get" if asked.resource == forward::RESOURCE => {
            forward::begin(&shared, &asked, &head.headers, upgrade)
        }
        "get" if asked.resource == "pods/log" => forward::log(&shared, &asked),
        "watch" => begin_watch(shared, &asked),
        "list" => list(&shared, &asked),
        _ => one(&shared, &asked, &head.headers, &body),
    })
}

/// The refusal of a request that has a wrong token or that RBAC does not allow.
fn not_allowed(state: &State, asked: &Asked) -> Option<Response<Body>> {
    if let Some(token) = &state.token
        && asked.authorization != format!("Bearer {token}")
    {
        return Some(status(401, "Unauthorized", "Unauthorized"));
    }
    let rules = state.allowed.as_ref();
    let allowed = rules.is_none_or(|rules| rules.iter().any(|rule| rule.allows(asked)));
    let (resource, verb) = (&asked.resource, &asked.verb);
    (state.forbidden.contains(resource) || !allowed).then(|| {
        let place = match &asked.namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".to_owned(),
        };
        let message = format!(
            "{resource} is forbidden: User \"system:serviceaccount:probe-handler:probe-handler\" cannot \
             {verb} resource \"{resource}\" in API group \"{}\" {place}",
            asked.group
        );
        status(403, "Forbidden", &message)
    })
}

fn asked(request: &Parts) -> Asked {
    let header = |name| {
        let value = request.headers.get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let query = request.uri.query().unwrap_or_default();
    let query: BTreeMap<String, String> = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let path: Vec<&str> = request.uri.path().trim_matches('/').split('/').collect();
    let (group, path) = match path[..] {
        ["api", _, ref rest @ ..] => ("", rest),
        ["apis", group, _, ref rest @ ..] => (group, rest),
        _ => ("", &path[..]),
    };
    let (namespace, resource, name) = match *path {
        ["namespaces", namespace, resource] => (Some(namespace), resource.to_owned(), None),
        ["namespaces", namespace, resource, name] => {
            (Some(namespace), resource.to_owned(), Some(name))
        }
        ["namespaces", namespace, resource, name, sub] => {
            (Some(namespace), format!("{resource}/{sub}"), Some(name))
        }
        [resource, name] => (None, resource.to_owned(), Some(name)),
        [resource, name, sub] => (None, format!("{resource}/{sub}"), Some(name)),
        _ => {
            let resource = path.first().copied().unwrap_or_default();
            (None, resource.to_owned(), None)
        }
    };
    let verb = match request.method.as_str() {
        "GET" if query.get("watch").map(String::as_str) == Some("true") => "watch",
        "GET" if name.is_none() => "list",
        "GET" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        other => other,
    };
    Asked {
        verb: verb.to_owned(),
        group: group.to_owned(),
        resource,
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
        query,
        accept: header(http::header::ACCEPT),
        authorization: header(http::header::AUTHORIZATION),
    }
}

pub(super) fn full(text: String) -> Body {
    Full::new(Bytes::from(text))
        .map_err(|never: Infallible| match never {})
        .boxed()
}

pub(super) fn status_body(code: u16, reason: &str, message: &str) -> Value {
    let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    if message.starts_with("Too large resource version") {
        status["details"] = json!({"retryAfterSeconds": 1, "causes": [
            {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]});
    }
    status
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Response<Body> {
    let mut response = Response::new(full(status_body(code, reason, message).to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    let json = http::HeaderValue::from_static("application/json");
    let _ = response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}

/// Whether `object` is in the requested namespace and matches the selectors: equal labels, and the fields `spec.nodeName`
/// and `metadata.name`.
pub(super) fn selected(asked: &Asked, object: &Value) -> bool {
    let namespace = object["metadata"]["namespace"].as_str();
    if asked.namespace.is_some() && asked.namespace.as_deref() != namespace {
        return false;
    }
    let labels = asked.param("labelSelector").split(',');
    let is_label = |label: &str| match label.split_once('=') {
        None => label.is_empty(),
        Some((name, value)) => object["metadata"]["labels"][name] == *value,
    };
    if !labels.into_iter().all(is_label) {
        return false;
    }
    match asked.param("fieldSelector").split_once('=') {
        None => true,
        Some(("spec.nodeName", node)) => object["spec"]["nodeName"].as_str() == Some(node),
        Some(("metadata.name", name)) => object["metadata"]["name"].as_str() == Some(name),
        Some(_) => panic!("unsupported field selector"),
    }
}

/// The response for `object`: all of it, or only its metadata, as requested.
pub(super) fn shown(asked: &Asked, object: &Value) -> Value {
    if asked.accept.contains("as=PartialObjectMetadata") {
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"]})
    } else {
        object.clone()
    }
}

/// The requested resource version, unless it is newer than the server's.
pub(super) fn not_older(state: &State, asked: &Asked) -> Result<u64, Box<Response<Body>>> {
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
    // Only lists from the store are paginated.
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
