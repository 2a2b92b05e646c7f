//! One entry of annotation `probe-handler.io/probes`: the original of a probe or hook.
//!
//! The format is that of `ISTIO_KUBE_APP_PROBERS` (istio pkg/kube/inject/app_probe.go): the action as
//! declared, with its port as a number, and `timeoutSeconds`. If the port was a name, or a number
//! written as a string, `declaredPort` has the original value; other readers of the format ignore it.

use json_patch::PatchOperation;
use json_patch::jsonptr::PointerBuf;
use serde_json::{Map, Value, json};

use super::patch;
use model::Probe;

const DECLARED_PORT: &str = "declaredPort";

/// The actions that can be rewritten, each with its known fields.
const ACTIONS: [(&str, &[&str]); 3] = [
    (
        "httpGet",
        &["path", "port", "host", "scheme", "httpHeaders"],
    ),
    ("tcpSocket", &["port", "host"]),
    ("grpc", &["port", "service"]),
];

/// A rewritten probe or hook.
pub struct Rewritten {
    /// The entry for the annotation.
    pub original: Value,
    /// The changes to the spec of the probe or hook.
    pub operations: Vec<PatchOperation>,
}

/// Rewrites the probe or hook `spec`, parsed as `probe`, to an `httpGet` of `path` on `port`.
///
/// # Errors
/// Why it is not rewritten: it has something that webhook and daemon do not support.
pub fn rewrite(spec: &Value, probe: &Probe, path: &str, port: u16) -> Result<Rewritten, String> {
    let (name, fields, action) = action(spec).ok_or("has no known action")?;
    if let Some(unknown) = action.keys().find(|key| !fields.contains(&key.as_str())) {
        return Err(format!("{name}.{unknown} is an unknown field"));
    }
    check_headers(action, probe, port)?;

    let mut original = action.clone();
    let declared_port = original.insert("port".to_owned(), json!(probe.action.port()));
    let mut entry = json!({name: original});
    if let Some(seconds) = spec.get("timeoutSeconds").filter(|value| !value.is_null()) {
        entry["timeoutSeconds"] = seconds.clone();
    }
    if let Some(port @ Value::String(_)) = declared_port {
        entry[DECLARED_PORT] = port;
    }

    let operations = if name == "httpGet" {
        let https = action.get("scheme").and_then(Value::as_str) == Some("HTTPS");
        [("path", json!(path)), ("port", json!(port))]
            .into_iter()
            .chain(https.then(|| ("scheme", json!("HTTP"))))
            .filter_map(|(key, value)| set(action, key, value))
            .collect()
    } else {
        let get = json!({"path": path, "port": port});
        vec![
            patch::add(PointerBuf::from_tokens(["httpGet"]), get),
            patch::remove(PointerBuf::from_tokens([name])),
        ]
    };
    Ok(Rewritten {
        original: entry,
        operations,
    })
}

/// The operation that sets member `key` of the `httpGet` `action`; `None` if it already has that value.
fn set(action: &Map<String, Value>, key: &str, value: Value) -> Option<PatchOperation> {
    let path = PointerBuf::from_tokens(["httpGet", key]);
    match action.get(key) {
        Some(now) if *now == value => None,
        Some(_) => Some(patch::replace(path, value)),
        None => Some(patch::add(path, value)),
    }
}

/// The probe or hook `spec`, restored from its entry in the annotation; `None` if the entry does not
/// have exactly one action.
pub fn restore(spec: &Value, entry: &Value) -> Option<Value> {
    let (name, _, action) = action(entry)?;
    let mut action = action.clone();
    if let Some(port) = entry.get(DECLARED_PORT) {
        action.insert("port".to_owned(), port.clone());
    }
    Some(with_action(spec, name, action))
}

/// The only action of a probe, a hook, or an entry.
fn action(of: &Value) -> Option<(&'static str, &'static [&'static str], &Map<String, Value>)> {
    let mut actions = ACTIONS
        .iter()
        .filter_map(|&(name, fields)| Some((name, fields, of.get(name)?.as_object()?)));
    match (actions.next(), actions.next()) {
        (Some(action), None) => Some(action),
        _ => None,
    }
}

fn with_action(spec: &Value, name: &str, action: Map<String, Value>) -> Value {
    let mut spec = spec.clone();
    if let Value::Object(fields) = &mut spec {
        for (other, _) in ACTIONS {
            // A null is not an action.
            if other != name && fields.get(other).is_some_and(|action| !action.is_null()) {
                fields.remove(other);
            }
        }
        fields.insert(name.to_owned(), Value::Object(action));
    }
    spec
}

/// Checks the headers, which stay in the spec and reach the daemon with the kubelet's request.
fn check_headers(action: &Map<String, Value>, probe: &Probe, port: u16) -> Result<(), String> {
    let headers = action.get("httpHeaders").and_then(Value::as_array);
    for header in headers.into_iter().flatten().filter_map(Value::as_object) {
        if let Some(unknown) = header
            .keys()
            .find(|key| !matches!(key.as_str(), "name" | "value"))
        {
            return Err(format!("httpHeaders.{unknown} is an unknown field"));
        }
        // The daemon would take this for the Host that the kubelet derives from the address it dials, and
        // replace the port with the app's.
        let text = |key: &str| header.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("name").eq_ignore_ascii_case("host")
            && text("value").ends_with(&format!(":{port}"))
            && probe.action.port() != port
        {
            return Err(format!(
                "its Host header names port {port}, the rewrite port"
            ));
        }
    }
    Ok(())
}
