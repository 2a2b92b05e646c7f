//! What the API server has told of this node's pods and of namespaces, put together. No clock, no
//! client, nothing asynchronous.
//!
//! Of a Pod nothing is kept but what we make of it, once for each thing that its namespace may say of
//! it: managed fields, large annotations and all else go as soon as they are read.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::object::{ExemptAnnotation, Name, Object, Resource};
use super::table::{Item, Table};
use model::bounds::truncated_to;
use pods::parse::{NotServed, ParsedPod, parse_pod};
use pods::scope::{EXEMPT, Scope, Selection};

/// Most warnings kept of a pod.
const MAX_WARNINGS: usize = 16;
/// Longest text kept where an object's author chose it, bytes.
const MAX_TEXT: usize = 512;
/// Most problems told at once.
const MAX_PROBLEMS: usize = 100;

/// What we make of a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodRecord {
    /// It was understood.
    ParsedPod(Readings),
    /// The field that can't be read, and why.
    Unreadable(String),
}

/// What we make of a Pod, for each thing that its namespace may say of it. Two at least are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings {
    unmarked: Arc<ParsedPod>,
    exempt: Arc<ParsedPod>,
    not_exempt: Arc<ParsedPod>,
}

/// What annotation [`EXEMPT`] on a namespace says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It is not there.
    None,
    /// `"true"`.
    Exempt,
    /// `"false"`.
    NotExempt,
    /// It is something else; what is wrong.
    Unreadable(String),
}

/// Pods and namespaces. Each method that changes it tells whether what it yields may have changed.
#[derive(Debug, Default)]
pub struct Index {
    pods: Table<PodRecord>,
    namespaces: Table<Mark>,
}

impl Index {
    /// A pod was added or modified.
    pub fn apply(&mut self, pod: Item<PodRecord>) -> bool {
        self.pods.apply(pod)
    }

    /// A pod was deleted.
    pub fn delete(&mut self, pod: &Item<PodRecord>) -> bool {
        self.pods.delete(&pod.name, &pod.uid, &pod.version)
    }

    /// These are all pods at `version`, and no others.
    pub fn reset(&mut self, version: &str, pods: Vec<Item<PodRecord>>) -> bool {
        self.pods.reset(version, pods)
    }

    /// A namespace was added or modified.
    pub fn apply_namespace(&mut self, namespace: Item<Mark>) -> bool {
        self.namespaces.apply(namespace)
    }

    /// A namespace was deleted.
    pub fn delete_namespace(&mut self, namespace: &Item<Mark>) -> bool {
        let Item {
            name, uid, version, ..
        } = namespace;
        self.namespaces.delete(name, uid, version)
    }

    /// These are all namespaces at `version`, and no others.
    pub fn reset_namespaces(&mut self, version: &str, namespaces: Vec<Item<Mark>>) -> bool {
        self.namespaces.reset(version, namespaces)
    }

    /// What we make of each pod, by name. A UID that two pods claim is that of the one which the API
    /// server gave it to, as opposed to a mirror pod's annotation, which anybody can write.
    pub fn parsed(&self) -> Vec<Arc<ParsedPod>> {
        let owners = self.owners();
        self.readings()
            .filter(|(name, _, reading)| owners.get(reading.id.uid.as_str()) == Some(name))
            .map(|(_, _, reading)| Arc::clone(reading))
            .collect()
    }

    /// Whether there is any pod, readable or not.
    pub fn has_pods(&self) -> bool {
        self.pods.iter().next().is_some()
    }

    /// Objects that can't be read or understood, each with its kind and name; a hundred at most, and
    /// how many more there are.
    pub fn problems(&self) -> Vec<String> {
        let owners = self.owners();
        let mut problems = Vec::new();
        for (name, _, record) in self.pods.iter() {
            if let PodRecord::Unreadable(why) = record {
                problems.push(format!("Pod {name}: {why}; its probes are not served"));
            }
        }
        for (name, _, reading) in self.readings() {
            if owners.get(reading.id.uid.as_str()) != Some(&name) {
                problems.push(format!(
                    "Pod {name} claims the UID {} of another pod; its probes are not served",
                    reading.id.uid
                ));
                continue;
            }
            problems.extend(
                reading
                    .warnings
                    .iter()
                    .map(|warning| format!("Pod {name}: {warning}")),
            );
            if matches!(reading.not_served, None | Some(NotServed::NoProbes)) {
                problems.extend(
                    reading
                        .skipped
                        .iter()
                        .filter(|left| left.why.is_mistake())
                        .map(|left| bounded(format!("Pod {name}: {left}"))),
                );
            }
        }
        for (name, _, mark) in self.namespaces.iter() {
            if let Mark::Unreadable(why) = mark {
                problems.push(format!("Namespace {name}: {why}"));
            }
        }
        let more = problems.len().saturating_sub(MAX_PROBLEMS);
        if more > 0 {
            problems.truncate(MAX_PROBLEMS);
            problems.push(format!("and {more} more"));
        }
        problems
    }

    /// How many objects of a kind can't be read.
    pub fn unreadable(&self, resource: Resource) -> usize {
        match resource {
            Resource::Pods => {
                let unreadable = |record: &PodRecord| matches!(record, PodRecord::Unreadable(_));
                self.pods.iter().filter(|pod| unreadable(pod.2)).count()
            }
            Resource::Namespaces => {
                let unreadable = |mark: &Mark| matches!(mark, Mark::Unreadable(_));
                self.namespaces.iter().filter(|n| unreadable(n.2)).count()
            }
        }
    }

    /// Each pod that was understood, with its UID, in the reading that its namespace asks for.
    fn readings(&self) -> impl Iterator<Item = (&Name, &str, &Arc<ParsedPod>)> {
        // Pods of one namespace come one after the other.
        let mut marked: Option<(&str, Option<&Mark>)> = None;
        self.pods.iter().filter_map(move |(name, uid, record)| {
            let PodRecord::ParsedPod(readings) = record else {
                return None;
            };
            let mark = match marked {
                Some((namespace, mark)) if namespace == name.namespace => mark,
                _ => {
                    let mark = self.mark(&name.namespace);
                    marked = Some((&name.namespace, mark));
                    mark
                }
            };
            let reading = match mark {
                Some(Mark::Exempt) => &readings.exempt,
                Some(Mark::NotExempt) => &readings.not_exempt,
                None | Some(Mark::None | Mark::Unreadable(_)) => &readings.unmarked,
            };
            Some((name, uid, reading))
        })
    }

    fn mark(&self, namespace: &str) -> Option<&Mark> {
        self.namespaces.get(&Name {
            namespace: String::new(),
            name: namespace.to_owned(),
        })
    }

    /// The pod to which each UID belongs.
    fn owners(&self) -> HashMap<&str, &Name> {
        let mut owners = HashMap::new();
        let mut given = HashSet::new();
        for (name, uid, reading) in self.readings() {
            let claimed = reading.id.uid.as_str();
            if claimed == uid && given.insert(claimed) {
                let _ = owners.insert(claimed, name);
            } else {
                let _ = owners.entry(claimed).or_insert(name);
            }
        }
        owners
    }
}

impl Readings {
    /// What we make of `pod` under `scope`.
    pub fn new(pod: &Pod, scope: Scope) -> Self {
        let read = |namespace_exempt| {
            let selection = Selection {
                scope,
                namespace_exempt,
            };
            let mut parsed = parse_pod(pod, &selection);
            parsed.warnings.truncate(MAX_WARNINGS);
            for warning in &mut parsed.warnings {
                *warning = bounded(std::mem::take(warning));
            }
            Arc::new(parsed)
        };
        let unmarked = read(None);
        let same = |other: Arc<ParsedPod>| {
            if other == unmarked {
                Arc::clone(&unmarked)
            } else {
                other
            }
        };
        Self {
            exempt: same(read(Some(true))),
            not_exempt: same(read(Some(false))),
            unmarked,
        }
    }
}

/// What is kept of a pod that arrives.
pub fn pod_item(object: Object<Box<Pod>>, scope: Scope) -> Item<PodRecord> {
    let value = match object.content {
        Ok(pod) => PodRecord::ParsedPod(Readings::new(&pod, scope)),
        Err(why) => PodRecord::Unreadable(bounded(why)),
    };
    Item {
        name: object.name,
        uid: object.uid,
        version: object.version,
        value,
    }
}

/// What is kept of a namespace that arrives.
pub fn namespace_item(object: Object<ExemptAnnotation>) -> Item<Mark> {
    let value = match object.content {
        Ok(ExemptAnnotation(None)) => Mark::None,
        Ok(ExemptAnnotation(Some(value))) => match value.as_str() {
            "true" => Mark::Exempt,
            "false" => Mark::NotExempt,
            other => Mark::Unreadable(bounded(format!(
                "annotation {EXEMPT} must be \"true\" or \"false\", is {other:?}; ignored"
            ))),
        },
        Err(why) => Mark::Unreadable(bounded(why)),
    };
    Item {
        name: object.name,
        uid: object.uid,
        version: object.version,
        value,
    }
}

/// `text`, of which an object's author may have chosen any part, cut to a bounded length.
fn bounded(text: String) -> String {
    truncated_to(MAX_TEXT, text)
}
