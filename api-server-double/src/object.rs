//! Requests for one object: get, create, update and patches (JSON and strategic merge), with kube-apiserver's errors for concurrent
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
    let is = |media_type: &str| {
        headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind == media_type)
    };
    let done = match asked.verb.as_str() {
        "get" => there(&state, asked).map(|object| (200, object)),
        "create" => created(&state, asked, body).map(|object| (201, object)),
        "update" => updated(&state, asked, body).map(|object| (200, object)),
        "patch" if is("application/json-patch+json") => {
            patched(&state, asked, body).map(|object| (200, object))
        }
        "patch" if is("application/strategic-merge-patch+json") => {
            merged(&state, asked, body).map(|object| (200, object))
        }
        "patch" => Err((
            415,
            "UnsupportedMediaType",
            "this kind of patch is not known",
        )),
        _ => Err((405, "MethodNotAllowed", "the double can't do that")),
    };
    let done = done.map(|(code, mut object)| {
        if asked.verb != "get" {
            let revision = state.write(resource(asked), object.clone());
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
        resource(asked).to_owned(),
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

/// A strategic merge patch. Of lists, it merges only conditions, by their type (kubernetes
/// staging/src/k8s.io/api/core/v1/types.go, `patchMergeKey`).
fn merged(state: &State, asked: &Asked, body: &[u8]) -> Result<Value, Refusal> {
    let (mut object, patch) = (there(state, asked)?, json(body)?);
    merge("", &mut object, patch);
    Ok(object)
}

fn merge(name: &str, into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                match value {
                    Value::Null => drop(into.remove(&key)),
                    value => merge(&key, into.entry(key.clone()).or_insert(Value::Null), value),
                }
            }
        }
        (Value::Array(into), Value::Array(patch)) if name == "conditions" => {
            for item in patch {
                match into.iter_mut().find(|one| one["type"] == item["type"]) {
                    Some(one) => merge("", one, item),
                    None => into.push(item),
                }
            }
        }
        (into, patch) => *into = patch,
    }
}

/// The resource without `/status`.
fn resource(asked: &Asked) -> &str {
    asked
        .resource
        .split_once('/')
        .map_or(&asked.resource, |(resource, _)| resource)
}

const NO_JSON: Refusal = (400, "BadRequest", "the body can't be read");

fn json(body: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|_| NO_JSON)
}
