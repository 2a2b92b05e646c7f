//! One object from the API server: its name, and its content or why that can't be read.

use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use pods::scope::{HTTP, MODE};

/// The kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// This node's pods.
    Pods,
    /// The namespaces of these pods, their metadata only.
    Namespaces,
}

impl Resource {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Pods, Self::Namespaces];

    /// The name in RBAC and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
        }
    }

    /// The `kind` of one object.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Pods => "Pod",
            Self::Namespaces => "Namespace",
        }
    }
}

/// Identifies an object among those of its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// `metadata.namespace`; empty for objects without a namespace.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Name {
    /// The name of its namespace, as an object.
    pub fn of_namespace(&self) -> Self {
        Self {
            namespace: String::new(),
            name: self.namespace.clone(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// The content that is read from an object.
pub trait Content: Sized {
    /// The kind of object that has this content.
    const RESOURCE: Resource;

    /// Reads the content of `object`.
    ///
    /// # Errors
    /// The field that can't be read, and why.
    fn read(object: Value) -> Result<Self, String>;
}

/// An object. Deserializing one never fails, so that a malformed object does not end the watch.
#[derive(Clone, Debug)]
pub struct Object<C> {
    /// Its name.
    pub name: Name,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// Its content, or the field that can't be read and why.
    pub content: Result<C, String>,
}

impl<'de, C: Content> Deserialize<'de> for Object<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Value::deserialize(deserializer)?;
        let text = |field: &str| {
            let value = object
                .get("metadata")
                .and_then(|metadata| metadata.get(field));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        Ok(Self {
            name: Name {
                namespace: text("namespace"),
                name: text("name"),
            },
            uid: text("uid"),
            version: text("resourceVersion"),
            content: C::read(object),
        })
    }
}

impl Content for Box<Pod> {
    const RESOURCE: Resource = Resource::Pods;

    fn read(mut object: Value) -> Result<Self, String> {
        for (part, bulk) in BULK {
            if let Some(part) = object.get_mut(part).and_then(Value::as_object_mut) {
                part.retain(|key, _| !bulk.contains(&key.as_str()));
            }
        }
        if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
            for (_, list) in status
                .iter_mut()
                .filter(|(key, _)| STATUSES.contains(&key.as_str()))
            {
                *list = container_states(list);
            }
            if let Some(conditions) = status.get_mut("conditions") {
                *conditions = readiness(conditions);
            }
        }
        read(object).map(Box::new)
    }
}

/// Large parts of a Pod that do not affect its probes. They are not deserialized, so that a malformed
/// field in them does not make the pod unreadable.
const BULK: [(&str, &[&str]); 3] = [
    ("metadata", &["managedFields"]),
    ("spec", &["affinity", "tolerations", "volumes"]),
    ("status", &["ephemeralContainerStatuses"]),
];

/// Lists of container statuses, of which only [`container_states`] is read.
const STATUSES: [&str; 2] = ["containerStatuses", "initContainerStatuses"];

/// A list of container statuses with only the containers' names, whether they run, and their restarts. A malformed field
/// does not make the pod unreadable.
fn container_states(list: &Value) -> Value {
    let one = |status: &Value| {
        let name = status.get("name")?.as_str()?;
        let state = |field: &str| {
            let state = status.get(field);
            let part = |name: &str| {
                state
                    .and_then(|state| state.get(name))
                    .filter(|part| part.is_object())
            };
            let mut kept = json!({});
            if let Some(running) = part("running") {
                kept["running"] = json!({"startedAt": time(running, "startedAt")});
            }
            if let Some(ended) = part("terminated") {
                let code = ended.get("exitCode").and_then(Value::as_i64);
                kept["terminated"] = json!({
                    "exitCode": code.and_then(|code| i32::try_from(code).ok()).unwrap_or_default(),
                    "reason": ended.get("reason").and_then(Value::as_str),
                    "finishedAt": time(ended, "finishedAt"),
                });
            }
            kept
        };
        let restarts = status.get("restartCount").and_then(Value::as_i64);
        let restarts = restarts.and_then(|count| i32::try_from(count).ok());
        Some(json!({
            "name": name, "state": state("state"), "lastState": state("lastState"), "image": "", "imageID": "",
            "ready": false, "restartCount": restarts.unwrap_or_default(),
        }))
    };
    let statuses = list.as_array().into_iter().flatten();
    statuses.filter_map(one).collect()
}

/// Reads only `Ready` of a list of conditions, without the texts, which change often.
fn readiness(conditions: &Value) -> Value {
    let ready = |condition: &&Value| condition.get("type").and_then(Value::as_str) == Some("Ready");
    let kept = |condition: &Value| {
        let status = condition.get("status")?.as_str()?;
        let since = time(condition, "lastTransitionTime");
        Some(json!({"type": "Ready", "status": status, "lastTransitionTime": since}))
    };
    let conditions = conditions.as_array().into_iter().flatten();
    conditions.filter(ready).filter_map(kept).collect()
}

/// A field that is a time; null if it is not a time.
fn time(of: &Value, field: &str) -> Value {
    let text = of.get(field).and_then(Value::as_str);
    let is_time = |text: &&str| serde_json::from_value::<Time>(json!(text)).is_ok();
    text.filter(is_time).map_or(Value::Null, |text| json!(text))
}

/// Labels and annotations of a namespace that concern its pods; `None`: not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceMetadata {
    /// Label [`MODE`].
    pub mode: Option<String>,
    /// Whether there is an annotation of that name, which has no effect.
    pub mode_is_annotation: bool,
    /// Annotation [`HTTP`].
    pub http: Option<String>,
}

impl Content for NamespaceMetadata {
    const RESOURCE: Resource = Resource::Namespaces;

    fn read(mut object: Value) -> Result<Self, String> {
        let mut take = |kind: &str, name: &str| {
            let value = object
                .pointer_mut("/metadata")
                .and_then(|metadata| metadata.get_mut(kind)?.get_mut(name))
                .map(Value::take);
            match value {
                None => Ok(None),
                Some(Value::String(value)) => Ok(Some(value)),
                Some(_) => Err(format!("metadata.{kind}.{name}: is not a string")),
            }
        };
        Ok(Self {
            mode: take("labels", MODE)?,
            mode_is_annotation: take("annotations", MODE)?.is_some(),
            http: take("annotations", HTTP)?,
        })
    }
}

fn read<T: serde::de::DeserializeOwned>(object: Value) -> Result<T, String> {
    let mut track = serde_path_to_error::Track::new();
    T::deserialize(serde_path_to_error::Deserializer::new(object, &mut track)).map_err(|error| {
        let path = track.path().to_string();
        // The value's own error may contain the path, too.
        let text = error.to_string();
        let text = text.strip_prefix(&format!("{path}: ")).unwrap_or(&text);
        match path.as_str() {
            "." => text.to_owned(),
            path => format!("{path}: {text}"),
        }
    })
}
