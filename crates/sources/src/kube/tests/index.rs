//! The index: events in any order and number lead to the same state as a fresh list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{namespace, pod, with};
use crate::kube::index::{Index, NamespaceRecord, PodRecord, namespace_item, pod_item};
use crate::kube::object::Name;
use crate::kube::table::{Item, Table};
use model::HttpBy;
use pods::parse::parse_pod;
use pods::scope::{Marks, Mode, Selection};
use pods::select::{NotServed, SelectedPod};

fn at(object: Value, version: u64) -> Value {
    with(
        object,
        "/metadata/resourceVersion",
        json!(version.to_string()),
    )
}

fn record(object: Value) -> Item<PodRecord> {
    pod_item(serde_json::from_value(object).unwrap())
}

fn mark(object: Value) -> Item<NamespaceRecord> {
    namespace_item(serde_json::from_value(object).unwrap())
}

fn uids(index: &Index) -> Vec<String> {
    let parsed = index.pods(&BTreeSet::new());
    parsed.into_iter().map(|pod| pod.id.uid.clone()).collect()
}

#[test]
fn a_namespaces_label_decides_about_its_pods() {
    let whole = json!({
        "metadata": {"name": "a", "namespace": "shop", "uid": "u",
            "annotations": {"status.sidecar.istio.io/port": "15020"},
            "managedFields": [{"manager": "kubectl"}]},
        "spec": {
            "nodeName": "node-1", "tolerations": [{"operator": "Exists"}],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "initContainers": [{"name": "istio-proxy", "restartPolicy": "Always", "env": [
                {"name": "ISTIO_KUBE_APP_PROBERS", "value":
                    r#"{"/app-health/app/livez":{"httpGet":{"path":"/l","port":80}}}"#}]}],
            "containers": [{"name": "app",
                "livenessProbe": {"httpGet": {"path": "/app-health/app/livez", "port": 15020}},
                "readinessProbe": {"grpc": {"port": 9000}}, "startupProbe": {"tcpSocket": {"port": "w"}},
                "ports": [{"name": "w", "containerPort": 8080}],
                "lifecycle": {"preStop": {"httpGet": {"port": 80}}}}]},
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "containerStatuses": [{"name": "app", "ready": true, "image": "i", "imageID": "",
                "restartCount": 0}],
            "initContainerStatuses": [{"name": "istio-proxy", "ready": true, "image": "i", "imageID": "",
                "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]},
    });
    let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(whole.clone()).unwrap();
    for (label, mode) in [
        (None, None),
        (Some("serve"), Some(Mode::Serve)),
        (Some("observe"), Some(Mode::Observe)),
        (Some("off"), Some(Mode::Off)),
    ] {
        let mut index = Index::default();
        assert!(index.apply(record(whole.clone())));
        index.apply_namespace(mark(namespace("shop", label)));
        let selection = Selection {
            namespace: Marks { mode, http: None },
            ..Selection::default()
        };
        let expected = parse_pod(&pod).select(&selection);
        let served = matches!(mode, None | Some(Mode::Serve));
        assert_eq!(expected.pod.is_some(), served);
        assert_eq!(expected.observed.is_some(), mode == Some(Mode::Observe));
        assert_eq!(expected.mesh_runs, Some(true));
        assert_eq!(
            index.pods(&BTreeSet::new()),
            [Arc::new(expected)],
            "{label:?}"
        );
    }
}

#[test]
fn a_namespace_sets_what_serves_http_in_pods_that_do_not_set_it() {
    let mut index = Index::default();
    let mut own = pod("own");
    own["metadata"]["annotations"] = json!({"probe-handler.io/http": "handler"});
    index.apply(record(own));
    index.apply(record(pod("other")));
    let https = |index: &Index| -> Vec<_> {
        let parsed = index.pods(&BTreeSet::new());
        let http = |pod: &Arc<SelectedPod>| Some((pod.id.name.clone(), pod.pod.as_ref()?.http));
        parsed.iter().filter_map(http).collect()
    };
    let by_handler = ("own".to_owned(), Some(HttpBy::Handler));
    assert_eq!(
        https(&index),
        [("other".to_owned(), None), by_handler.clone()]
    );
    let annotated = |value: &str| {
        let mut shop = namespace("shop", None);
        shop["metadata"]["annotations"] = json!({"probe-handler.io/http": value});
        mark(shop)
    };
    assert!(index.apply_namespace(annotated("kernel")));
    let by_kernel = ("other".to_owned(), Some(HttpBy::Kernel));
    assert_eq!(https(&index), [by_kernel, by_handler.clone()]);
    assert_eq!(index.problems(), [""; 0]);
    assert!(index.apply_namespace(annotated("both")));
    assert_eq!(https(&index), [("other".to_owned(), None), by_handler]);
    let problems = index.problems();
    assert!(
        problems.len() == 1 && problems[0].contains("\"both\""),
        "{problems:?}"
    );
}

#[test]
fn a_large_annotation_is_not_kept() {
    let large = "x".repeat(1 << 20);
    let mut object = pod("a");
    object["metadata"]["annotations"] = json!({
        "large": large, "probe-handler.io/probes": large});
    let mut index = Index::default();
    index.apply(record(at(object, 1)));
    index.apply_namespace(mark(namespace("shop", Some(&large))));
    let kept = serde_json::to_string(&index.pods(&BTreeSet::new())).unwrap();
    assert!(kept.len() < 4096, "{} bytes", kept.len());
    let kept = format!("{index:?}");
    assert!(kept.len() < 16384, "{} bytes", kept.len());
    let problems = index.problems();
    assert!(
        problems.len() >= 2 && problems.iter().all(|p| p.len() < 700),
        "{problems:?}"
    );
}

#[test]
fn a_thousand_malformed_originals_are_not_kept() {
    let probers: BTreeMap<String, Value> = (0..10_000)
        .map(|number| (format!("/no-such-path/{number}"), json!({})))
        .collect();
    let mut object = pod("a");
    let http = json!({"path": "/app-health/app/livez", "port": 15020});
    object["spec"]["containers"][0]["livenessProbe"]["httpGet"] = http;
    object["spec"]["containers"][1]["env"] = json!([{"name": "ISTIO_KUBE_APP_PROBERS",
        "value": serde_json::to_string(&probers).unwrap()}]);
    let mut index = Index::default();
    index.apply(record(object));
    assert!(index.problems().len() <= 20, "{}", index.problems().len());
}

#[test]
fn a_mirror_pod_has_the_uid_that_the_kubelet_gave_it() {
    let mut mirror = pod("etcd-node-1");
    mirror["metadata"]["annotations"] =
        json!({"kubernetes.io/config.hash": "0a1b", "kubernetes.io/config.mirror": "0a1b"});
    let mut index = Index::default();
    index.apply(record(mirror));
    assert_eq!(uids(&index), ["0a1b"]);
}

#[test]
fn a_pod_that_claims_the_uid_of_another_is_not_served() {
    // Its name sorts before, then after, that of the other pod.
    for impostor in ["a-impostor", "z-impostor"] {
        let mut claim = pod(impostor);
        claim["metadata"]["annotations"] = json!({
            "kubernetes.io/config.hash": "uid-victim", "kubernetes.io/config.mirror": "x"});
        let mut index = Index::default();
        index.apply(record(claim));
        index.apply(record(pod("victim")));
        let parsed = index.pods(&BTreeSet::new());
        assert_eq!(parsed.len(), 1);
        assert_eq!(parsed[0].id.name, "victim");
        let problem = format!("Pod shop/{impostor} claims the UID uid-victim of another pod");
        assert!(
            index.problems()[0].starts_with(&problem),
            "{:?}",
            index.problems()
        );
    }
}

#[test]
fn more_than_a_hundred_problems_are_counted() {
    let mut index = Index::default();
    for number in 0..150 {
        let bad = with(pod(&format!("p-{number}")), "/spec/containers", json!(1));
        index.apply(record(bad));
    }
    let problems = index.problems();
    assert_eq!(problems.len(), 101);
    assert_eq!(problems[100], "and 50 more");
}

#[test]
fn old_events_change_nothing() {
    let mut index = Index::default();
    assert!(index.reset("10", vec![record(at(pod("a"), 5))]));
    let ended = |version| {
        record(at(
            with(pod("a"), "/status/phase", json!("Failed")),
            version,
        ))
    };
    assert!(!index.apply(ended(5)), "the known version");
    assert!(!index.apply(ended(10)), "not newer than the list");
    assert!(
        !index.apply(record(at(pod("b"), 9))),
        "deleted before the list"
    );
    assert!(
        !index.delete(&ended(8)),
        "deleted and created again before the list"
    );
    assert!(index.apply(ended(11)));
    assert_eq!(
        index.pods(&BTreeSet::new())[0].not_served,
        Some(NotServed::Ended)
    );
    assert!(index.delete(&ended(12)));
    assert!(!index.delete(&ended(12)), "sent twice");
    assert!(!index.apply(ended(11)), "sent late");
    assert!(index.pods(&BTreeSet::new()).is_empty());
    assert!(index.apply(record(at(pod("a"), 13))), "a new one");
}

#[test]
fn a_late_deletion_of_an_old_pod_keeps_the_new_pod_of_the_same_name() {
    let mut index = Index::default();
    let old = record(with(pod("a"), "/metadata/uid", json!("old")));
    let new = record(with(pod("a"), "/metadata/uid", json!("new")));
    index.apply(old.clone());
    index.apply(new);
    assert!(!index.delete(&old), "even if versions can't be compared");
    assert_eq!(uids(&index), ["new"]);
}

/// One write to the store: an object from 0 to 3, with its value or its deletion.
type Write = (u8, Option<u8>);

fn name(object: u8) -> Name {
    Name {
        namespace: "shop".to_owned(),
        name: format!("pod-{object}"),
    }
}

fn item(object: u8, version: u64, value: u8) -> Item<u8> {
    Item {
        name: name(object),
        uid: String::new(),
        version: version.to_string(),
        value,
    }
}

/// The objects in the store after `writes`.
fn listed(writes: &[Write]) -> Vec<Item<u8>> {
    let mut store = BTreeMap::new();
    for (version, (object, value)) in (1..).zip(writes) {
        match value {
            Some(value) => drop(store.insert(*object, item(*object, version, *value))),
            None => drop(store.remove(object)),
        }
    }
    store.into_values().collect()
}

fn contents(table: &Table<u8>) -> Vec<(Name, u8)> {
    table
        .iter()
        .map(|(name, _, value)| (name.clone(), *value))
        .collect()
}

/// Events of the writes after the list at `from`, in any order, some of them more than once, and some
/// from before the list.
fn history() -> impl Strategy<Value = (Vec<Write>, usize, Vec<usize>)> {
    let write = (0..4_u8, prop::option::weighted(0.7, any::<u8>()));
    prop::collection::vec(write, 1..24)
        .prop_flat_map(|writes| {
            let count = writes.len();
            let all: Vec<usize> = (0..count).collect();
            let again = prop::collection::vec(0..count, 0..16);
            (Just(writes), 0..count, again, Just(all))
        })
        .prop_flat_map(|(writes, from, mut order, all)| {
            order.extend(all.into_iter().skip(from));
            (Just(writes), Just(from), Just(order).prop_shuffle())
        })
}

proptest! {
    #[test]
    fn any_order_and_number_of_events_ends_where_a_fresh_list_does(
        (writes, from, order) in history(),
    ) {
        let mut table = Table::default();
        table.reset(&from.to_string(), listed(&writes[..from]));
        for event in order {
            let version = event as u64 + 1;
            let before = contents(&table);
            let (object, value) = writes[event];
            let changed = match value {
                Some(value) => table.apply(item(object, version, value)),
                None => table.delete(&name(object), "", &version.to_string()),
            };
            prop_assert_eq!(changed, before != contents(&table));
        }
        let mut fresh = Table::default();
        fresh.reset(&writes.len().to_string(), listed(&writes));
        prop_assert_eq!(contents(&table), contents(&fresh));
        prop_assert!(!table.reset(&writes.len().to_string(), listed(&writes)), "nothing new");
    }

    #[test]
    fn pods_and_namespaces_in_any_order_end_the_same(
        marks in prop::collection::vec(prop::option::of(prop::sample::select(vec!["true", "false", "x"])), 1..6),
        order in Just((0..12_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut index = Index::default();
        let mut last = Index::default();
        for event in order {
            if event < 6 {
                let Some(mode) = marks.get(event) else { continue };
                index.apply_namespace(mark(at(namespace("shop", *mode), event as u64 + 1)));
            } else {
                index.apply(record(at(pod(if event % 2 == 0 { "a" } else { "b" }), event as u64)));
            }
        }
        last.reset("20", vec![record(pod("a")), record(pod("b"))]);
        let mode = marks[marks.len() - 1];
        last.reset_namespace("shop", "20", vec![mark(namespace("shop", mode))]);
        prop_assert_eq!(index.pods(&BTreeSet::new()), last.pods(&BTreeSet::new()));
        prop_assert_eq!(index.problems(), last.problems());
    }
}

#[test]
fn a_changed_selection_applies_to_the_pods_that_are_there() {
    let mut index = Index::default();
    let labels = json!({"probe-handler.io/mode": "serve"});
    assert!(index.apply(record(with(pod("own"), "/metadata/labels", labels))));
    assert!(index.apply(record(pod("other"))));
    let served = |index: &Index| -> Vec<String> {
        let pods = index.pods(&BTreeSet::new()).into_iter();
        pods.filter(|pod| pod.pod.is_some())
            .map(|pod| pod.id.name.clone())
            .collect()
    };
    assert_eq!(served(&index), ["other", "own"]);
    let observe = Selection {
        mode: Mode::Observe,
        ..Selection::default()
    };
    assert!(index.set_selection(observe));
    assert_eq!(served(&index), ["own"]);
    assert!(!index.set_selection(observe), "it is the same");
    assert!(index.set_selection(Selection::default()));
    assert_eq!(served(&index), ["other", "own"]);
}
