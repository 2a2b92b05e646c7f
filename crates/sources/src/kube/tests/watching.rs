//! What is watched, and what of it reaches the registry.

use serde_json::json;

use super::*;
use crate::kube::object::Resource;
use api_server_double::ApiServer;
use pods::select::NotServed;

#[tokio::test]
async fn only_pods_of_this_node_and_metadata_of_their_namespaces_are_requested() {
    let server = server().await;
    server.put(
        "pods",
        with(pod("elsewhere"), "/spec/nodeName", json!("node-2")),
    );
    let mut source = Source::start(&server);
    source.until_pods(&["a"]).await;
    server.until(|s| s.watching("namespaces") == 1).await;
    for asked in server.asked() {
        match asked.resource.as_str() {
            "pods" => assert_eq!(asked.param("fieldSelector"), "spec.nodeName=node-1"),
            "namespaces" => {
                assert_eq!(asked.param("fieldSelector"), "metadata.name=shop");
                assert!(
                    asked.accept.contains("as=PartialObjectMetadata"),
                    "{asked:?}"
                );
            }
            _ => panic!("{asked:?}"),
        }
        assert!(
            asked.is_watch() && asked.param("allowWatchBookmarks") == "true",
            "{asked:?}"
        );
    }
}

#[tokio::test]
async fn a_pod_is_sent_from_its_binding_to_its_deletion() {
    let (server, mut source) = synced().await;
    let mut unbound = pod("b");
    drop(unbound["spec"].as_object_mut().unwrap().remove("nodeName"));
    drop(unbound["status"].take());
    server.put("pods", unbound.clone());
    server.put("pods", with(unbound.clone(), "/spec/nodeName", json!(NODE)));
    source.until_pods(&["a", "b"]).await;
    // A terminating pod: its containers, and so its probes, keep running.
    let terminating = with(
        pod("b"),
        "/metadata/deletionTimestamp",
        json!("2026-01-01T00:00:00Z"),
    );
    server.put("pods", terminating);
    server.put("pods", pod("c"));
    source.until_while(|s| s.has("c"), |s| s.has("b")).await;
    server.delete("pods", "shop", "b");
    source.until_pods(&["a", "c"]).await;
}

#[tokio::test]
async fn a_pod_that_has_ended_is_not_served() {
    let (server, mut source) = synced().await;
    server.put("pods", with(pod("a"), "/status/phase", json!("Succeeded")));
    source.until_pods(&[]).await;
    assert_eq!(source.pods[0].not_served, Some(NotServed::Ended));
}

#[tokio::test]
async fn a_pod_created_again_under_its_name_is_another_pod() {
    let (server, mut source) = synced().await;
    server.delete("pods", "shop", "a");
    server.put("pods", with(pod("a"), "/metadata/uid", json!("uid-2")));
    source
        .until(|source| source.pods.len() == 1 && source.pods[0].id.uid == "uid-2")
        .await;
}

#[tokio::test]
async fn changes_that_do_not_affect_probes_are_not_sent() {
    let (server, mut source) = synced().await;
    for beat in 0..20 {
        let condition =
            json!([{"type": "ContainersReady", "status": "True", "message": beat.to_string()}]);
        server.put("pods", with(pod("a"), "/status/conditions", condition));
    }
    server.put("pods", pod("b"));
    let before = source.pods.clone();
    source.next().await;
    assert_eq!(
        source.names(),
        ["a", "b"],
        "the next message is the next pod"
    );
    assert_eq!(source.pods[0], before[0]);
}

#[tokio::test]
async fn a_namespaces_annotation_applies_to_earlier_and_later_pods() {
    let server = server().await;
    server.put("namespaces", namespace("shop", Some("off")));
    let mut source = Source::start(&server);
    source.next().await;
    assert_eq!(
        source.pods[0].not_served,
        Some(NotServed::Off),
        "never served"
    );
    server.put("namespaces", namespace("shop", None));
    source.until_pods(&["a"]).await;

    let mut unmeshed = with(pod("plain"), "/metadata/namespace", json!("bare"));
    drop(unmeshed["spec"]["containers"].as_array_mut().unwrap().pop());
    server.put("pods", unmeshed);
    source.until(|source| source.pods.len() == 2).await;
    assert_eq!(source.names(), ["a"]);
    server.put("namespaces", namespace("bare", Some("serve")));
    source.until_pods(&["plain", "a"]).await;
    server.delete("namespaces", "", "bare");
    source.until_pods(&["a"]).await;
}

#[tokio::test]
async fn a_namespace_is_watched_from_its_first_pod_to_its_last() {
    let (server, mut source) = synced().await;
    for number in 0..50 {
        let _ = server.put("namespaces", namespace(&format!("other-{number}"), None));
    }
    let elsewhere = |name: &str| {
        let there = with(pod(name), "/metadata/namespace", json!("other-7"));
        with(there, "/metadata/uid", json!(format!("uid-{name}")))
    };
    server.put("pods", elsewhere("b"));
    server.put("pods", elsewhere("c"));
    source.until(|source| source.names().len() == 3).await;
    server.until(|s| s.watching("namespaces") == 2).await;
    server.delete("pods", "other-7", "b");
    server.delete("pods", "other-7", "c");
    source.until_pods(&["a"]).await;
    server.until(|s| s.watching("namespaces") == 1).await;
    // It is read again when it has pods again, with what it has by then.
    server.put("namespaces", namespace("other-7", Some("off")));
    server.put("pods", elsewhere("d"));
    source.until(|source| source.pods.len() == 2).await;
    assert_eq!(source.names(), ["a"], "never served");
    let asked = server.asked();
    let of_namespaces = asked.iter().filter(|asked| asked.resource == "namespaces");
    assert_eq!(of_namespaces.count(), 3, "one request each time");
}

#[tokio::test]
async fn a_namespaces_annotation_that_is_neither_true_nor_false_is_a_problem() {
    let (server, mut source) = synced().await;
    server.put("namespaces", namespace("shop", Some("yes")));
    source
        .until_problem("Namespace shop: label probe-handler.io/mode is")
        .await;
    assert_eq!(source.names(), ["a"]);
    server.put("namespaces", namespace("shop", Some("serve")));
    source.until(|source| source.problems.is_empty()).await;
}

#[tokio::test]
async fn an_unreadable_object_is_a_problem_and_affects_no_other() {
    let server = server().await;
    let port = "/spec/containers/0/livenessProbe/httpGet/port";
    server.put("pods", with(pod("bad"), port, json!({"no": "port"})));
    let mut source = Source::start(&server);
    let problem = "Pod shop/bad: spec.containers[0].livenessProbe.httpGet.port: invalid type";
    source.until_problem(problem).await;
    source.until_pods(&["a"]).await;
    assert_eq!(source.health.of(Resource::Pods).unreadable(), 1);
    // The same on the watch, which goes on.
    server.until(|s| s.watching("pods") == 1).await;
    server.put(
        "pods",
        with(pod("worse"), "/spec/containers", json!("none")),
    );
    source
        .until_problem("Pod shop/worse: spec.containers: invalid type")
        .await;
    server.put("pods", pod("b"));
    source.until_pods(&["a", "b"]).await;
    server.put("pods", pod("bad"));
    server.put("pods", pod("worse"));
    source.until_pods(&["a", "b", "bad", "worse"]).await;
    assert_eq!(source.problems, [""; 0]);
    let watches = server
        .asked()
        .into_iter()
        .filter(|asked| asked.resource == "pods");
    assert_eq!(watches.count(), 1, "a single watch");
    assert_eq!(source.health.of(Resource::Pods).unreadable(), 0);
}

#[tokio::test]
async fn malformed_fields_that_do_not_affect_probes_are_ignored() {
    let (server, mut source) = synced().await;
    let odd = with(pod("b"), "/spec/affinity", json!("none"));
    let odd = with(odd, "/status/conditions", json!(7));
    server.put("pods", with(odd, "/metadata/managedFields", json!(true)));
    source.until_pods(&["a", "b"]).await;
}

#[tokio::test]
async fn mistakes_in_a_served_pod_are_problems() {
    let (server, mut source) = synced().await;
    let port = "/spec/containers/0/livenessProbe/httpGet/port";
    server.put("pods", with(pod("b"), port, json!("web")));
    source
        .until_problem("Pod shop/b: container \"app\", livenessProbe: ")
        .await;
}

#[tokio::test]
async fn a_hundred_pods_at_once_are_sent_in_a_few_messages() {
    let (server, mut source) = synced().await;
    for number in 0..100 {
        server.put("pods", pod(&format!("b-{number:03}")));
    }
    let mut messages = 0;
    while source.names().len() < 101 {
        source.next().await;
        messages += 1;
    }
    assert!(messages < 60, "{messages} messages");
}

#[tokio::test]
async fn a_server_without_initial_events_is_listed_instead() {
    let server = ApiServer::start().await.without_initial_events();
    server.put("pods", pod("a"));
    let mut source = Source::start(&server);
    source.until_pods(&["a"]).await;
    server.until(|s| s.watching("pods") == 1).await;
    server.put("pods", pod("b"));
    source.until_pods(&["a", "b"]).await;
    assert_eq!(source.problems, [""; 0]);
    let asked = server.asked();
    let list = asked.iter().find(|asked| !asked.is_watch()).unwrap();
    assert_eq!(
        list.param("resourceVersion"),
        "0",
        "from the cache, not from the store"
    );
    let troubles = source.health.of(Resource::Pods).troubles();
    assert_eq!(troubles.map(|(_, count)| count).sum::<u64>(), 0);
}
