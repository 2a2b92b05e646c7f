//! An Event of a pod, and the object that is written for it.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use model::PodId;
use model::bounds::truncated_to;

/// The daemon's name in Events.
pub const COMPONENT: &str = "probe-handler";
/// Maximum length of a message in bytes, without the dots of a truncated one (kubernetes pkg/apis/core/validation/events.go, `NoteLengthLimit`).
const MESSAGE: usize = 1024 - 3;
/// Maximum length of the pod's name within an Event's name, which has at most 253 characters.
const NAME: usize = 236;

/// The type of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// A problem has ended.
    Normal,
    /// A problem.
    Warning,
}

/// An Event of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// The pod, with the UID that the kubelet uses.
    pub pod: PodId,
    /// The container, if it is about one.
    pub container: Option<String>,
    /// Its type.
    pub severity: Severity,
    /// A CamelCase word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
    /// When it happened, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Severity {
    /// The value of field `type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

impl PodEvent {
    /// The same Event, with the message truncated to what the API server accepts.
    #[must_use]
    pub fn bounded(self) -> Self {
        Self {
            message: truncated_to(MESSAGE, self.message),
            ..self
        }
    }

    /// The name of a new object for it, as client-go makes it.
    pub fn object_name(&self, unique: u64) -> String {
        let pod = self.pod.name.get(..NAME).unwrap_or(&self.pod.name);
        format!("{pod}.{unique:x}")
    }

    /// A new object `name`, reported by `node`, for an Event that happened `count` times since `first_ms`.
    pub fn object(&self, name: String, node: &str, count: i32, first_ms: u64) -> Event {
        let field_path = self.container.as_ref();
        Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(self.pod.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(self.pod.namespace.clone()),
                name: Some(self.pod.name.clone()),
                uid: Some(self.pod.uid.clone()),
                field_path: field_path.map(|container| format!("spec.containers{{{container}}}")),
                ..ObjectReference::default()
            },
            type_: Some(self.severity.name().to_owned()),
            reason: Some(self.reason.to_owned()),
            message: Some(self.message.clone()),
            count: Some(count),
            first_timestamp: Some(time(first_ms)),
            last_timestamp: Some(time(self.at_ms)),
            source: Some(EventSource {
                component: Some(COMPONENT.to_owned()),
                host: Some(node.to_owned()),
            }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(node.to_owned()),
            ..Event::default()
        }
    }
}

/// `ms` milliseconds since 1970, in whole seconds, as in the API.
pub fn time(ms: u64) -> Time {
    let seconds = i64::try_from(ms / 1000).unwrap_or_default();
    Time(Timestamp::from_second(seconds).unwrap_or_default())
}
