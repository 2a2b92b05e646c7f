//! `kubectl probes get`.

use std::time::Instant;

use super::cluster::{Cluster, err, node, out, plugin, recorded, status};
use api_server_double::Fault;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn the_probes_of_one_daemon_are_shown_with_its_node() {
    let cluster = Cluster::of_nodes(1).await;
    let output = cluster.probes(&["get"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let text = out(&output);
    let state = recorded("worker-00");
    for pod in &state.pods {
        assert!(
            text.contains(&format!("{}/{}", pod.namespace, pod.name)),
            "{text}"
        );
    }
    let first = text.lines().next().expect("headings");
    assert!(first.ends_with("UNKNOWN  NODE"), "{text}");
    assert_eq!(err(&output), "");
    let asked = cluster.server.asked();
    let used: Vec<_> = asked
        .iter()
        .map(|asked| (&*asked.verb, &*asked.resource))
        .collect();
    assert_eq!(used, [("list", "pods"), ("get", "pods/portforward")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_nodes_are_requested_at_the_same_time() {
    let cluster = Cluster::of_nodes(100).await;
    let start = Instant::now();
    let output = cluster.probes(&["get", "-o", "json"]).await;
    println!("get over 100 nodes: {:?}", start.elapsed());
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let nodes = document["nodes"].as_array().expect("nodes");
    let names: Vec<_> = nodes
        .iter()
        .map(|node| node["node"].as_str().unwrap_or(""))
        .collect();
    let expected: Vec<_> = (0..100).map(node).collect();
    assert_eq!(names, expected);
    let expected = serde_json::to_value(recorded("worker-99")).expect("JSON");
    assert_eq!(nodes[99]["status"], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_an_answer_is_a_row_with_the_reason() {
    let cluster = Cluster::of_nodes(1).await;
    cluster.hanging_node("hangs").await;
    cluster.node_at("refuses", None);
    let mut newer = serde_json::to_value(recorded("newer")).expect("JSON");
    newer["version"] = "9.0.0".into();
    newer["pods"] = "elsewhere".into();
    let newer = (200, newer.to_string().into_bytes());
    cluster
        .node("newer", [("/status".to_owned(), newer)].into())
        .await;
    cluster.node("older", [].into()).await;
    let not_http = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    cluster.node_at("silent", not_http.local_addr().ok());
    drop(not_http); // refuses from now on, at the address of the forward
    let output = cluster.probes(&["get", "--timeout", "3"]).await;
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", err(&output));
    let rows: Vec<_> = text
        .lines()
        .skip_while(|line| !line.starts_with("NODE "))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(rows[0], "NODE PROBLEM", "{text}");
    assert_eq!(rows[1], "hangs no answer within 3 s");
    assert!(
        rows[2].starts_with("newer the daemon has version 9.0.0"),
        "{text}"
    );
    assert_eq!(rows[3], "older the daemon answered 404: not found");
    assert!(
        rows[4].starts_with("refuses nothing listens on port 15026"),
        "{text}"
    );
    assert!(text.contains("worker-00"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_port_forward_is_forbidden_is_a_row() {
    let cluster = Cluster::of_nodes(2).await;
    let message = "pods \"probe-handler-worker-00\" is forbidden: no";
    let forbidden = Fault::Status(403, "Forbidden", message);
    cluster.server.fail("pods/portforward", false, forbidden);
    let output = cluster.probes(&["get", "--parallel", "1"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let text = out(&output);
    assert!(
        text.contains("worker-00  no permission to port-forward"),
        "{text}"
    );
    assert!(text.contains("component plugin"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn get_alone_does_not_permit_a_port_forward() {
    let rules = [
        json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}),
        json!({"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get"]}),
    ];
    let cluster = Cluster::with_permissions(&rules).await;
    cluster.node("one", status(&recorded("one"))).await;
    let output = cluster.probes(&["get"]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = out(&output);
    assert!(
        text.contains("cannot create resource \"pods/portforward\""),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn if_no_node_answers_it_fails() {
    let cluster = Cluster::of_nodes(2).await;
    cluster.server.forbid("pods/portforward", true);
    let output = cluster.probes(&["get"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", out(&output));
    assert_eq!(
        out(&output)
            .matches("no permission to port-forward")
            .count(),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_permission_to_list_pods_it_exits_with_2_and_names_the_remedy() {
    let cluster = Cluster::of_nodes(1).await;
    cluster.server.forbid("pods", true);
    let output = cluster.probes(&["get"]).await;
    assert_eq!(output.status.code(), Some(2));
    let text = err(&output);
    assert!(
        text.contains("pods is forbidden") && text.contains("component plugin"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_kubeconfig_it_exits_with_2_and_names_the_remedy() {
    for args in [
        &["get"][..],
        &["get", "--kubeconfig", "/nonexistent/config"],
    ] {
        let output = plugin(args)
            .env_remove("KUBECONFIG")
            .output()
            .await
            .expect("runs");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            err(&output).contains("set KUBECONFIG or --kubeconfig"),
            "{}",
            err(&output)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_or_context_is_named() {
    let cluster = Cluster::of_nodes(1).await;
    let output = cluster.probes(&["get", "--context", "other"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("other"), "{}", err(&output));
    cluster.server.require_token(Some("another"));
    let output = cluster.probes(&["get"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("Unauthorized"), "{}", err(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_daemons_is_reported() {
    let cluster = Cluster::start().await;
    let output = cluster.probes(&["get"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(
        err(&output).contains("set --daemon-namespace")
            || err(&output).contains("Set --daemon-namespace")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_select_pods_and_one_that_matches_nothing_says_so() {
    let cluster = Cluster::of_nodes(2).await;
    let pod = &recorded("worker-01").pods[0];
    let name = format!("{}/{}", pod.namespace, pod.name);
    let text = out(&cluster.probes(&["get", &name]).await);
    assert!(text.contains(&name), "{text}");
    assert!(!text.contains("worker-00"), "{text}");
    let output = cluster.probes(&["get", "-n", "empty"]).await;
    assert_eq!(
        (output.status.code(), out(&output)),
        (Some(0), String::new())
    );
    assert_eq!(
        err(&output),
        "no pod of namespace empty is on the nodes that answered\n"
    );
    let output = cluster.probes(&["get", "shop/no-such-pod"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("no daemon that answered has a pod shop/no-such-pod"));
    let output = cluster.probes(&["get", "a/b/c"]).await;
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_exit_code_a_failing_probe_is_1() {
    let cluster = Cluster::start().await;
    let mut healthy = recorded("fine");
    healthy.pods.truncate(1);
    healthy.pods[0] = status_view::fixtures::pod("fine");
    cluster.node("fine", status(&healthy)).await;
    let output = cluster.probes(&["get", "--failing", "--exit-code"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", out(&output));
    let mut failing = healthy.clone();
    let mut probe = status_view::fixtures::probe("liveness", "http", 80);
    probe.last = status_view::fixtures::last("failure", "timed_out", None);
    failing.pods[0].probes.push(probe);
    cluster.node("fails", status(&failing)).await;
    for (args, code) in [
        (&["get", "--failing", "--exit-code"][..], 1),
        (&["get", "--failing"], 0),
        (&["get", "--exit-code"], 2),
    ] {
        let output = cluster.probes(args).await;
        assert_eq!(output.status.code(), Some(code), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_columns_are_enough() {
    let cluster = Cluster::of_nodes(2).await;
    cluster.node_at("a-node-with-a-long-name.example.com", None);
    let output = cluster
        .command(&["get"])
        .env("COLUMNS", "40")
        .output()
        .await
        .expect("runs");
    let text = out(&output);
    assert!(
        text.lines().all(|line| line.chars().count() <= 40),
        "{text}"
    );
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "on worker-00",
        "on worker-01",
        "example.com: nothing listens",
    ] {
        assert!(words.contains(expected), "{expected} not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_closes_the_pipe_is_no_error() {
    let cluster = Cluster::of_nodes(3).await;
    let mut child = cluster
        .command(&["get", "-o", "yaml"])
        .spawn()
        .expect("runs");
    drop(child.stdout.take());
    let status = child.wait().await.expect("ends");
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_repeats_until_its_reader_closes_the_pipe() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let cluster = Cluster::of_nodes(1).await;
    let mut child = cluster
        .command(&["watch", "--interval", "1"])
        .spawn()
        .expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut headings = 0;
    while headings < 2 {
        let line = lines.next_line().await.expect("text").expect("a line");
        headings += usize::from(line.trim_start().starts_with("PROBE "));
    }
    drop(lines);
    let status = child.wait().await.expect("ends");
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_wide_tables_the_node_is_the_first_column() {
    let cluster = Cluster::of_nodes(1).await;
    let text = out(&cluster.probes(&["get", "-o", "wide"]).await);
    assert!(text.starts_with("NODE       NAMESPACE"), "{text}");
    assert!(
        text.lines()
            .nth(1)
            .is_some_and(|line| line.starts_with("worker-00  ")),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_gone_since_the_list_is_a_row() {
    let cluster = Cluster::of_nodes(1).await;
    let gone = Fault::Status(
        404,
        "NotFound",
        "pods \"probe-handler-worker-00\" not found",
    );
    cluster.server.fail("pods/portforward", false, gone);
    let text = out(&cluster.probes(&["get"]).await);
    let expected = "the port-forward to probe-handler-worker-00 failed: pods \"probe-handler-worker-00\" not found";
    assert!(text.contains(expected), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_daemon_is_a_row_unless_a_namespace_is_selected() {
    let cluster = Cluster::start().await;
    let mut state = recorded("one");
    state.pending = vec!["kubelet".to_owned()];
    state.kubelet.attached = false;
    cluster.node("one", status(&state)).await;
    let text = out(&cluster.probes(&["get"]).await);
    for expected in [
        "one   not ready: waiting for kubelet",
        "one   the programs are not attached to the kubelet",
    ] {
        assert!(text.contains(expected), "{expected} not in\n{text}");
    }
    let text = out(&cluster.probes(&["get", "-n", "testbed"]).await);
    assert!(!text.contains("not ready"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_or_breaks_off_is_an_invalid_answer() {
    let cluster = Cluster::start().await;
    cluster.node_with("garbage", b"hello\n").await;
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"version\"";
    cluster.node_with("half", half).await;
    let output = cluster.probes(&["get"]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = out(&output);
    assert_eq!(
        text.matches("invalid answer on port 15026").count(),
        2,
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_does_not_forward_is_not_awaited() {
    let cluster = Cluster::of_nodes(2).await;
    cluster.server.fail("pods/portforward", false, Fault::Hang);
    let output = cluster.probes(&["get", "--timeout", "3"]).await;
    assert_eq!(output.status.code(), Some(0));
    let text = out(&output);
    assert_eq!(text.matches("no answer within 3 s").count(), 1, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_goes_on_while_the_api_server_is_away() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let cluster = Cluster::of_nodes(1).await;
    let args = ["watch", "--interval", "1"];
    let mut child = cluster.command(&args).spawn().expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut notes = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let is_heading = |line: &str| line.trim_start().starts_with("PROBE ");
    let first = lines.next_line().await.expect("text").expect("a line");
    assert!(is_heading(&first), "{first}");
    cluster
        .server
        .fail("pods", false, Fault::Status(500, "InternalError", "away"));
    let note = notes.next_line().await.expect("text").expect("a line");
    assert_eq!(note, "the API server does not list the daemons: away");
    while !is_heading(&lines.next_line().await.expect("text").expect("a line")) {}
    child.kill().await.expect("it runs");
}
