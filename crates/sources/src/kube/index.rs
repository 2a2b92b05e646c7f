//! Combines what the API server has sent about this node's pods and about namespaces. No clock, no
//! client, no asynchronous code.
//!
//! Of a Pod only the parsed results are kept, one for each annotation that its namespace may have:
//! managed fields, large annotations and everything else are dropped as soon as they are read.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::object::{Name, NamespaceAnnotations, Object, Resource};
use super::table::{Item, Table};
use model::HttpBy;
use model::bounds::truncated_to;
use pods::parse::{NotServed, ParsedPod, parse_pod};
use pods::scope::{EXEMPT, HTTP, Scope, Selection};

/// Maximum number of warnings kept per pod.
const MAX_WARNINGS: usize = 16;
/// Maximum length in bytes of a kept text that an object's author chose.
const MAX_TEXT: usize = 512;
/// Maximum number of problems reported at once.
const MAX_PROBLEMS: usize = 100;

/// What is kept of a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodRecord {
    /// The parsed Pod.
    ParsedPod(Readings),
    /// The field that can't be read, and why.
    Unreadable(String),
}

/// A parsed Pod, once for each annotation that its namespace may have. At least two are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings {
    unmarked: Arc<ParsedPod>,
    exempt: Arc<ParsedPod>,
    not_exempt: Arc<ParsedPod>,
}

/// What the annotations of a namespace say about its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The value of [`EXEMPT`].
    pub exempt: Option<bool>,
    /// The value of [`HTTP`].
    pub http: Option<HttpBy>,
    /// What could not be read, and is ignored.
    pub problems: Vec<String>,
}

/// Pods and namespaces. Each method that changes them returns whether the results may have changed.
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

    /// `pods` are all pods at `version`.
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

    /// `namespaces` are all namespaces at `version`.
    pub fn reset_namespaces(&mut self, version: &str, namespaces: Vec<Item<Mark>>) -> bool {
        self.namespaces.reset(version, namespaces)
    }

    /// The parsed pods, by name. If two pods claim the same UID, it belongs to the one that got it from the API
    /// server, as opposed to a mirror pod's annotation, which anybody can write.
    pub fn parsed(&self) -> Vec<Arc<ParsedPod>> {
        let owners = self.owners();
        self.readings()
            .filter(|(name, _, reading)| owners.get(reading.id.uid.as_str()) == Some(name))
            .map(|(name, _, reading)| {
                let http = self.mark(&name.namespace).and_then(|mark| mark.http);
                http.map_or_else(|| Arc::clone(reading), |http| with_http(reading, http))
            })
            .collect()
    }

    /// Whether there is any pod, readable or not.
    pub fn has_pods(&self) -> bool {
        self.pods.iter().next().is_some()
    }

    /// Objects that can't be read or parsed, each with its kind and name; at most a hundred, then
    /// the number of the others.
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
            let named = |why| format!("Namespace {name}: {why}");
            problems.extend(mark.problems.iter().map(named));
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
                let unreadable = |mark: &Mark| !mark.problems.is_empty();
                self.namespaces.iter().filter(|n| unreadable(n.2)).count()
            }
        }
    }

    /// Each parsed pod with its UID, in the reading that fits its namespace's annotation.
    fn readings(&self) -> impl Iterator<Item = (&Name, &str, &Arc<ParsedPod>)> {
        // Pods of one namespace follow each other.
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
            let reading = match mark.and_then(|mark| mark.exempt) {
                Some(true) => &readings.exempt,
                Some(false) => &readings.not_exempt,
                None => &readings.unmarked,
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
    /// Parses `pod` under `scope`.
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

/// What is kept of a pod that the API server sends.
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

/// What is kept of a namespace that the API server sends.
pub fn namespace_item(object: Object<NamespaceAnnotations>) -> Item<Mark> {
    let value = match object.content {
        Ok(annotations) => mark(annotations),
        Err(why) => Mark {
            problems: vec![bounded(why)],
            ..Mark::default()
        },
    };
    Item {
        name: object.name,
        uid: object.uid,
        version: object.version,
        value,
    }
}

fn mark(annotations: NamespaceAnnotations) -> Mark {
    let mut mark = Mark::default();
    match annotations.exempt.as_deref() {
        None => {}
        Some("true") => mark.exempt = Some(true),
        Some("false") => mark.exempt = Some(false),
        Some(other) => mark.problems.push(bounded(format!(
            "annotation {EXEMPT} must be \"true\" or \"false\", is {other:?}; ignored"
        ))),
    }
    if let Some(value) = annotations.http {
        mark.http = HttpBy::named(&value);
        if mark.http.is_none() {
            mark.problems.push(bounded(format!(
                "annotation {HTTP} must be \"handler\" or \"kernel\", is {value:?}; ignored"
            )));
        }
    }
    mark
}

/// The reading with its namespace's value of [`HTTP`], unless the pod has its own.
fn with_http(reading: &Arc<ParsedPod>, http: HttpBy) -> Arc<ParsedPod> {
    let Some(pod) = reading.pod.as_ref().filter(|pod| pod.http.is_none()) else {
        return Arc::clone(reading);
    };
    let pod = model::Pod {
        http: Some(http),
        ..model::Pod::clone(pod)
    };
    Arc::new(ParsedPod {
        pod: Some(Arc::new(pod)),
        ..ParsedPod::clone(reading)
    })
}

/// Truncates `text`, because an object's author may have chosen any part of it.
fn bounded(text: String) -> String {
    truncated_to(MAX_TEXT, text)
}
