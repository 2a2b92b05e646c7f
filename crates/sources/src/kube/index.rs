//! Combines what the API server has sent about this node's pods and about namespaces. No clock, no
//! client, no asynchronous code.
//!
//! Of a Pod only the parsed result is kept: managed fields, large annotations and everything else are dropped as soon as
//! they are read. It is parsed once, and selected again when the marks of its namespace change.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::object::{Name, NamespaceMetadata, Object, Resource};
use super::table::{Item, Table};
use model::bounds::truncated_to;
use pods::parse::{ParsedPod, parse_pod};
use pods::scope::{MODE, Marks, Selection};
use pods::select::{NotServed, SelectedPod};

/// Maximum number of warnings kept per pod.
const MAX_WARNINGS: usize = 16;
/// Maximum length in bytes of a kept text that an object's author chose.
const MAX_TEXT: usize = 512;
/// Maximum number of problems reported at once.
const MAX_PROBLEMS: usize = 100;

/// The data that is kept of a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodRecord {
    /// The parsed Pod.
    Parsed(Arc<ParsedPod>),
    /// The field that can't be read, and why.
    Unreadable(String),
}

/// What a namespace's labels and annotations set for its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceRecord {
    /// What they set.
    pub marks: Marks,
    /// What could not be read, and is ignored.
    pub problems: Vec<String>,
}

/// Pods and namespaces. Each method that changes them returns whether the results may have changed.
#[derive(Debug, Default)]
pub struct Index {
    /// The daemon's settings.
    selection: Selection,
    pods: Table<PodRecord>,
    /// A table for each namespace that is watched, with at most that namespace.
    namespaces: BTreeMap<String, Table<NamespaceRecord>>,
    /// Each parsed pod, and what was selected of it.
    selected: BTreeMap<Name, Selected>,
}

/// A pod, and the result of its selection.
#[derive(Debug)]
struct Selected {
    uid: String,
    parsed: Arc<ParsedPod>,
    namespace: Marks,
    pod: Arc<SelectedPod>,
}

impl Index {
    /// An index without pods. `selection` contains the daemon's settings, without the marks of a namespace.
    pub fn new(selection: Selection) -> Self {
        Self {
            selection,
            ..Self::default()
        }
    }

    /// The daemon's settings have changed.
    pub fn set_selection(&mut self, selection: Selection) -> bool {
        let changed = std::mem::replace(&mut self.selection, selection) != selection;
        if changed {
            self.selected.clear();
        }
        self.select_if(changed)
    }

    /// A pod was added or modified.
    pub fn apply(&mut self, pod: Item<PodRecord>) -> bool {
        let changed = self.pods.apply(pod);
        self.select_if(changed)
    }

    /// A pod was deleted.
    pub fn delete(&mut self, pod: &Item<PodRecord>) -> bool {
        let changed = self.pods.delete(&pod.name, &pod.uid, &pod.version);
        self.select_if(changed)
    }

    /// `pods` are all pods at `version`.
    pub fn reset(&mut self, version: &str, pods: Vec<Item<PodRecord>>) -> bool {
        let changed = self.pods.reset(version, pods);
        self.select_if(changed)
    }

    /// A namespace was added or modified.
    pub fn apply_namespace(&mut self, namespace: Item<NamespaceRecord>) -> bool {
        let table = self.namespaces.entry(namespace.name.name.clone());
        let changed = table.or_default().apply(namespace);
        self.select_if(changed)
    }

    /// A namespace was deleted.
    pub fn delete_namespace(&mut self, namespace: &Item<NamespaceRecord>) -> bool {
        let Item {
            name, uid, version, ..
        } = namespace;
        let table = self.namespaces.get_mut(&name.name);
        let changed = table.is_some_and(|table| table.delete(name, uid, version));
        self.select_if(changed)
    }

    /// `found` is namespace `name` at `version`, or empty if there is no such namespace.
    pub fn reset_namespace(
        &mut self,
        name: &str,
        version: &str,
        found: Vec<Item<NamespaceRecord>>,
    ) -> bool {
        let table = self.namespaces.entry(name.to_owned()).or_default();
        let changed = table.reset(version, found);
        self.select_if(changed)
    }

    /// Removes all namespaces except those `of_pods`.
    pub fn keep_namespaces(&mut self, of_pods: &BTreeSet<String>) {
        self.namespaces.retain(|name, _| of_pods.contains(name));
    }

    /// The namespaces of all pods, readable or not.
    pub fn namespaces_of_pods(&self) -> BTreeSet<String> {
        let pods = self.pods.iter();
        pods.map(|(name, _, _)| name.namespace.clone()).collect()
    }

    /// Selects pods that are new or have changed, or whose namespace has.
    fn select_if(&mut self, changed: bool) -> bool {
        if !changed {
            return false;
        }
        let mut old = std::mem::take(&mut self.selected);
        for (name, uid, record) in self.pods.iter() {
            let PodRecord::Parsed(parsed) = record else {
                continue;
            };
            let table = self.namespaces.get(&name.namespace);
            let record = table.and_then(|table| table.get(&name.of_namespace()));
            let namespace = record.map_or_else(Marks::default, |record| record.marks);
            let same = |old: &Selected| {
                Arc::ptr_eq(&old.parsed, parsed) && old.namespace == namespace && old.uid == uid
            };
            let entry = old.remove(name).filter(same).unwrap_or_else(|| Selected {
                uid: uid.to_owned(),
                parsed: Arc::clone(parsed),
                namespace,
                pod: Arc::new(parsed.select(&Selection {
                    namespace,
                    ..self.selection
                })),
            });
            let _ = self.selected.insert(name.clone(), entry);
        }
        true
    }

    /// The selected pods, by name. If two pods claim the same UID, it belongs to the one that got it from the API server,
    /// not from a mirror pod's annotation, which any author can write. Omits pods of the namespaces `awaited`.
    pub fn pods(&self, awaited: &BTreeSet<String>) -> Vec<Arc<SelectedPod>> {
        let owners = self.owners();
        self.selected
            .iter()
            .filter(|(name, _)| !awaited.contains(&name.namespace))
            .filter(|(name, one)| owners.get(one.pod.id.uid.as_str()) == Some(name))
            .map(|(_, one)| Arc::clone(&one.pod))
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
        for (name, Selected { pod: reading, .. }) in &self.selected {
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
        for (name, _, record) in self.namespaces.values().flat_map(Table::iter) {
            let named = |why| format!("Namespace {name}: {why}");
            problems.extend(record.problems.iter().map(named));
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
                let unreadable = |record: &NamespaceRecord| !record.problems.is_empty();
                let all = self.namespaces.values().flat_map(Table::iter);
                all.filter(|namespace| unreadable(namespace.2)).count()
            }
        }
    }

    /// The pod to which each UID belongs.
    fn owners(&self) -> HashMap<&str, &Name> {
        let mut owners = HashMap::new();
        let mut given = HashSet::new();
        for (name, one) in &self.selected {
            let claimed = one.pod.id.uid.as_str();
            if claimed == one.uid && given.insert(claimed) {
                let _ = owners.insert(claimed, name);
            } else {
                let _ = owners.entry(claimed).or_insert(name);
            }
        }
        owners
    }
}

/// What is kept of a pod that the API server sends.
pub fn pod_item(object: Object<Box<Pod>>) -> Item<PodRecord> {
    let value = match object.content {
        Ok(pod) => {
            let mut parsed = parse_pod(&pod);
            parsed.warnings.truncate(MAX_WARNINGS);
            for warning in &mut parsed.warnings {
                *warning = bounded(std::mem::take(warning));
            }
            PodRecord::Parsed(Arc::new(parsed))
        }
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
pub fn namespace_item(object: Object<NamespaceMetadata>) -> Item<NamespaceRecord> {
    let value = match object.content {
        Ok(metadata) => namespace_record(&metadata),
        Err(why) => NamespaceRecord {
            problems: vec![bounded(why)],
            ..NamespaceRecord::default()
        },
    };
    Item {
        name: object.name,
        uid: object.uid,
        version: object.version,
        value,
    }
}

fn namespace_record(metadata: &NamespaceMetadata) -> NamespaceRecord {
    let mut problems = Vec::new();
    if metadata.mode_is_annotation {
        problems.push(format!("{MODE} is an annotation, must be a label; ignored"));
    }
    let marks = Marks::read(
        metadata.mode.as_deref(),
        metadata.http.as_deref(),
        &mut problems,
    );
    NamespaceRecord {
        marks,
        problems: problems.into_iter().map(bounded).collect(),
    }
}

/// Truncates `text`, because an object's author may have chosen any part of it.
fn bounded(text: String) -> String {
    truncated_to(MAX_TEXT, text)
}
