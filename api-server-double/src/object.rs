//! Requests for one object: get, create, update and JSON patch, with kube-apiserver's errors for concurrent
//! changes.

use http::{HeaderMap, Response, StatusCode, header};
use json_patch::Patch;
use serde_json::{Value, json};

use super::answer::{full, shown, status};
use super::{Asked, Body, Shared, State};

type Refusal = (u16, &'static str, &'static str);

/// Performs the request. A write is an event for watches.
pub(super) fn one(
    shared: &Shared,
    asked: &Asked,
    headers: &HeaderMap,
    body: &[u8],
) -> Response<Body> {
    let mut state = shared.state.lock();
    let is_json_patch = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/json-patch+json");
    let done = match asked.verb.as_str() {
        "get" => there(&state, asked).map(|object| (200, object)),
        "create" => created(&state, asked, body).map(|object| (201, object)),
        "update" => updated(&state, asked, body).map(|object| (200, object)),
        "patch" if is_json_patch => patched(&state, asked, body).map(|object| (200, object)),
        "patch" => Err((415, "UnsupportedMediaType", "only JSON patches are known")),
        _ => Err((405, "MethodNotAllowed", "the double can't do that")),
    };
    let done = done.map(|(code, mut object)| {
        if asked.verb != "get" {
            let revision = state.write(&asked.resource, object.clone());
            *state.writes.entry(asked.verb.clone()).or_default() += 1;
            shared.changed.send_replace(revision);
            object["metadata"]["resourceVersion"] = json!(revision.to_string());
        }
        (code, object)
    });
    match done {
        Ok((code, object)) => {
            let mut response = Response::new(full(shown(asked, &object).to_string()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            response
        }
        Err((code, reason, message)) => status(code, reason, message),
    }
}

fn there(state: &State, asked: &Asked) -> Result<Value, Refusal> {
    let name = asked.name.clone().unwrap_or_default();
    let key = (
        asked.resource.clone(),
        asked.namespace.clone().unwrap_or_default(),
        name,
    );
    let there = state.objects.get(&key).cloned();
    there.ok_or((404, "NotFound", "not found"))
}

fn created(state: &State, asked: &Asked, body: &[u8]) -> Result<Value, Refusal> {
    let mut object = json(body)?;
    object["metadata"]["namespace"] = json!(asked.namespace);
    let named = Asked {
        name: object["metadata"]["name"].as_str().map(str::to_owned),
        ..asked.clone()
    };
    match there(state, &named) {
        Ok(_) => Err((409, "AlreadyExists", "already exists")),
        Err(_) => Ok(object),
    }
}

fn updated(state: &State, asked: &Asked, body: &[u8]) -> Result<Value, Refusal> {
    let (before, mut object) = (there(state, asked)?, json(body)?);
    let (old, new) = (&before["metadata"], &mut object["metadata"]);
    if new.get("namespace").is_none_or(Value::is_null) {
        new["namespace"] = old["namespace"].clone();
    }
    if (&new["name"], &new["namespace"]) != (&old["name"], &old["namespace"]) {
        return Err((400, "BadRequest", "another object than in the URL"));
    }
    // Without a version it updates the object unconditionally.
    let version = new.get("resourceVersion");
    if version.is_some_and(|version| *version != old["resourceVersion"]) {
        return Err((409, "Conflict", "the object has been modified"));
    }
    Ok(object)
}

fn patched(state: &State, asked: &Asked, body: &[u8]) -> Result<Value, Refusal> {
    let mut object = there(state, asked)?;
    let patch: Patch = serde_json::from_slice(body).map_err(|_| NO_JSON)?;
    json_patch::patch(&mut object, &patch)
        .map_err(|_| (422, "Invalid", "the server rejected our request"))?;
    Ok(object)
}

const NO_JSON: Refusal = (400, "BadRequest", "the body can't be read");

fn json(body: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|_| NO_JSON)
}
