//! The API server unreachable, slow, restored or denying access: the known state stays, and the watches recover.

use serde_json::json;

use super::*;
use crate::kube::object::Resource;
use crate::kube::watch_error::Reason;
use api_server_double::{ApiServer, Certificate, Cut, Fault};

fn failures(source: &Source, reason: Reason) -> u64 {
    let mut troubles = source.health.of(Resource::Pods).troubles();
    troubles.find(|(r, _)| *r == reason).unwrap().1
}

#[tokio::test]
async fn not_ready_before_the_first_list() {
    let server = server().await;
    server.fail("pods", true, Fault::Hang);
    let mut source = Source::start(&server);
    server.until(|s| s.asked().len() == 1).await;
    assert!(!source.is_listed());
    server.release();
    source.until_pods(&["a"]).await;
    let _ = timeout(LATE, &mut source.listed).await.expect("dropped");
}

#[tokio::test]
async fn a_watch_that_ends_is_resumed_where_it_ended() {
    let (server, mut source) = synced().await;
    let version = server.put("pods", pod("b"));
    source.until_pods(&["a", "b"]).await;
    for cut in [
        Cut::End,
        Cut::MidLine,
        Cut::Error(500, "InternalError", "etcd is down"),
    ] {
        let asked = server.asked().len();
        server.cut("pods", cut.clone());
        server
            .until(|s| s.asked().len() > asked && s.watching("pods") == 1)
            .await;
        let last = server.asked().pop().unwrap();
        assert_eq!(
            last.param("resourceVersion"),
            version.to_string(),
            "{cut:?}"
        );
        assert_eq!(last.param("sendInitialEvents"), "", "{cut:?}");
    }
    server.put("pods", pod("c"));
    source.until_pods(&["a", "b", "c"]).await;
    assert_eq!(source.health.of(Resource::Pods).lists(), 1);
}

#[tokio::test]
async fn nothing_is_lost_between_two_watches() {
    let (server, mut source) = synced().await;
    server.fail("pods", true, Fault::Hang);
    let asked = server.asked().len();
    server.cut("pods", Cut::End);
    server.until(|s| s.asked().len() > asked).await;
    server.put("pods", pod("b"));
    server.delete("pods", "shop", "a");
    server.release();
    source.until_pods(&["b"]).await;
}

#[tokio::test]
async fn a_bookmark_moves_the_version_to_resume_from() {
    let (server, mut source) = synced().await;
    // Events of other pods, which the watch does not include, raise the revision and push old events out.
    server.put(
        "pods",
        with(pod("elsewhere"), "/spec/nodeName", json!("node-2")),
    );
    server.bookmark("pods");
    server.put("pods", pod("b"));
    source.until_pods(&["a", "b"]).await;
    server.put(
        "pods",
        with(pod("elsewhere"), "/spec/nodeName", json!("node-3")),
    );
    server.bookmark("pods");
    server.cut("pods", Cut::End);
    server.until(|s| s.watching("pods") == 0).await;
    server.compact();
    server.put("pods", pod("c"));
    source.until_pods(&["a", "b", "c"]).await;
    assert_eq!(
        source.health.of(Resource::Pods).lists(),
        1,
        "no list was needed"
    );
}

#[tokio::test]
async fn an_expired_version_leads_to_a_list_that_replaces_all_pods_at_once() {
    for initial_events in [true, false] {
        let mut server = server().await;
        if !initial_events {
            server = server.without_initial_events();
        }
        server.put("pods", pod("gone"));
        let mut source = Source::start(&server);
        source.until_pods(&["a", "gone"]).await;
        server.until(|s| s.watching("pods") == 1).await;
        // Changes happen, and are compacted, while no watch is established.
        server.fail("pods", true, Fault::Hang);
        let asked = server.asked().len();
        server.cut("pods", Cut::End);
        server.until(|s| s.asked().len() > asked).await;
        server.put("pods", pod("b"));
        server.delete("pods", "shop", "gone");
        server.compact();
        server.release();
        source
            .until_while(|s| s.names() == ["a", "b"], |s| s.has("a"))
            .await;
        assert_eq!(failures(&source, Reason::Expired), 1);
        assert_eq!(source.health.of(Resource::Pods).lists(), 2);
        assert_eq!(
            source.problems, [""; 0],
            "an expired version is not a problem"
        );
        let asked = server.asked();
        let first = asked.iter().rfind(|asked| {
            asked.resource == "pods"
                && (!asked.is_watch() || asked.param("sendInitialEvents") == "true")
        });
        let version = first
            .unwrap()
            .param("resourceVersion")
            .parse::<u64>()
            .unwrap();
        assert!(version > 100, "nothing older than what was seen: {version}");
    }
}

#[tokio::test]
async fn an_error_410_in_the_stream_leads_to_a_list() {
    let (server, mut source) = synced().await;
    server.cut(
        "pods",
        Cut::Error(410, "Expired", "too old resource version"),
    );
    server.put("pods", pod("b"));
    source.until_while(|s| s.has("b"), |s| s.has("a")).await;
    server.fail(
        "pods",
        true,
        Fault::Status(410, "Expired", "too old resource version"),
    );
    server.until(|s| s.watching("pods") == 1).await;
    server.cut("pods", Cut::End);
    server.put("pods", pod("c"));
    source.until_while(|s| s.has("c"), |s| s.has("a")).await;
}

#[tokio::test]
async fn a_server_that_returns_without_our_version_is_listed_at_once() {
    let server = server().await;
    let timeouts = Timeouts {
        first: Duration::from_millis(1),
        longest: Duration::from_secs(3_600),
        ..Timeouts::default()
    };
    let mut source = Source::with(Config::new(server.url()), timeouts);
    source.until_pods(&["a"]).await;
    server.until(|s| s.watching("pods") == 1).await;
    // Ten pauses that double are a second, twenty a quarter of an hour.
    let fail_ten_times = || {
        for _ in 0..10 {
            server.fail(
                "pods",
                true,
                Fault::Status(500, "InternalError", "starting"),
            );
        }
    };
    fail_ten_times();
    server.fail("pods", true, Fault::Status(410, "Expired", "too old"));
    fail_ten_times();
    let asked = server.asked().len();
    server.cut("pods", Cut::End);
    server.until(|s| s.asked().len() > asked).await;
    server.put("pods", pod("b"));
    source.until_while(|s| s.has("b"), |s| s.has("a")).await;
}

#[tokio::test]
async fn the_last_known_state_holds_while_the_server_is_unreachable() {
    let (server, mut source) = synced().await;
    let stopped = server.stop().await;
    source
        .until_while(|s| s.problems.len() == 2, |s| s.has("a"))
        .await;
    assert!(
        source.problems[0].contains("can't watch pods: "),
        "{:?}",
        source.problems
    );
    assert!(
        source.problems[0].contains("Connection refused"),
        "{:?}",
        source.problems
    );
    assert!(source.problems[0].ends_with("; the last known pods are served"));
    let health = source.health.of(Resource::Pods);
    assert!(!health.is_up() && health.silence().is_some());
    assert!(failures(&source, Reason::Unreachable) > 0);
    let server = stopped.start().await;
    source
        .until_while(|s| s.problems.is_empty(), |s| s.has("a"))
        .await;
    server.until(|s| s.watching("pods") == 1).await;
    assert!(source.health.of(Resource::Pods).is_up());
    server.put("pods", pod("b"));
    source.until_pods(&["a", "b"]).await;
}

#[tokio::test]
async fn a_slow_list_keeps_the_last_known_state() {
    let (server, mut source) = synced().await;
    server.fail("pods", true, Fault::Status(410, "Expired", "too old"));
    server.fail("pods", true, Fault::Hang);
    let asked = server.asked().len();
    server.cut("pods", Cut::End);
    server.until(|s| s.asked().len() == asked + 2).await;
    server.put("namespaces", namespace("shop", Some("maybe")));
    source.until_problem("Namespace shop").await;
    assert_eq!(source.names(), ["a"]);
    assert!(!source.health.of(Resource::Pods).is_up());
    server.put("pods", pod("b"));
    server.release();
    source.until_pods(&["a", "b"]).await;
}

#[tokio::test]
async fn a_request_without_an_answer_times_out() {
    let server = server().await;
    server.fail("pods", true, Fault::Hang);
    let timeouts = Timeouts {
        begin: Duration::from_millis(20),
        ..timeouts()
    };
    let mut source = Source::with(Config::new(server.url()), timeouts);
    source
        .until_problem("the API server took too long to begin to watch pods")
        .await;
    source.until_pods(&["a"]).await;
    source.until(|source| source.problems.is_empty()).await;
    assert!(failures(&source, Reason::Timeout) > 0);
}

#[tokio::test]
async fn a_silent_watch_is_restarted() {
    let server = server().await;
    let timeouts = Timeouts {
        silence: Duration::from_millis(5),
        ..timeouts()
    };
    let mut source = Source::with(Config::new(server.url()), timeouts);
    source.until_pods(&["a"]).await;
    server
        .until(|s| {
            s.asked()
                .iter()
                .filter(|asked| asked.resource == "pods")
                .count()
                >= 3
        })
        .await;
    assert!(failures(&source, Reason::Silent) > 0);
    assert_eq!(source.health.of(Resource::Pods).lists(), 1);
    server.put("pods", pod("b"));
    source.until_pods(&["a", "b"]).await;
}

#[tokio::test]
async fn a_server_that_ends_each_watch_at_once_is_reported() {
    let (server, mut source) = synced().await;
    for _ in 0..4 {
        let asked = server.asked().len();
        server.cut("pods", Cut::End);
        server
            .until(|s| s.asked().len() > asked && s.watching("pods") == 1)
            .await;
    }
    source
        .until_problem("closes each watch of pods at once")
        .await;
    assert!(failures(&source, Reason::Closed) >= 3);
    source.until(|source| source.problems.is_empty()).await;
}

#[tokio::test]
async fn a_missing_rule_is_reported_until_it_exists() {
    let server = server().await;
    let message = "pods is forbidden: User \"system:serviceaccount:probe-handler:probe-handler\" cannot watch resource \"pods\" in API group \"\" at the cluster scope";
    server.fail("pods", true, Fault::Status(403, "Forbidden", message));
    let mut source = Source::start(&server);
    let rule = r#"{apiGroups: [""], resources: ["pods"], verbs: ["get", "list", "watch"]}"#;
    source.until_problem(rule).await;
    let problem = source.problems[0].clone();
    assert!(
        problem.contains(message) && problem.ends_with("no pod is served until it answers"),
        "{problem}"
    );
    assert!(!source.is_listed());
    source.until_pods(&["a"]).await;
    source.until(|source| source.problems.is_empty()).await;
}

#[tokio::test]
async fn pods_are_served_where_namespaces_may_not_be_read() {
    let server = server().await;
    server.put("namespaces", namespace("shop", Some("off")));
    for _ in 0..3 {
        server.fail(
            "namespaces",
            true,
            Fault::Status(403, "Forbidden", "namespaces is forbidden"),
        );
    }
    server.fail("namespaces", true, Fault::Hang);
    let mut source = Source::start(&server);
    source.until_pods(&["a"]).await;
    source.until_problem(r#"resources: ["namespaces"]"#).await;
    source
        .until_problem("labels and annotations of namespaces are ignored")
        .await;
    server
        .until(|s| {
            s.asked()
                .iter()
                .filter(|asked| asked.resource == "namespaces")
                .count()
                == 4
        })
        .await;
    server.release();
    source.until_pods(&[]).await;
    source.until(|source| source.problems.is_empty()).await;
}

#[tokio::test]
async fn an_expired_token_is_retried() {
    let (server, mut source) = synced().await;
    for _ in 0..3 {
        server.fail(
            "pods",
            true,
            Fault::Status(401, "Unauthorized", "Unauthorized"),
        );
    }
    server.cut("pods", Cut::End);
    source
        .until_while(
            |s| {
                s.problems
                    .iter()
                    .any(|p| p.contains("does not accept our token"))
            },
            |s| s.has("a"),
        )
        .await;
    source
        .until_while(|s| s.problems.is_empty(), |s| s.has("a"))
        .await;
    assert_eq!(failures(&source, Reason::Unauthorized), 3);
    assert_eq!(
        source.health.of(Resource::Pods).lists(),
        1,
        "the watch resumes where it ended"
    );
}

#[tokio::test]
async fn a_token_file_is_sent() {
    let server = server().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "secret-token").unwrap();
    let mut config = Config::new(server.url());
    config.auth_info.token_file = Some(file.path().to_str().unwrap().to_owned());
    let mut source = Source::with(config, timeouts());
    source.until_pods(&["a"]).await;
    let asked = server.asked();
    assert_eq!(asked[0].authorization, "Bearer secret-token");
}

#[tokio::test]
async fn a_replaced_token_is_used_at_once() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "first\n").unwrap();
    server.require_token(Some("first"));
    let mut config = Config::new(server.url());
    config.auth_info.token_file = Some(token.to_str().unwrap().to_owned());
    let mut source = Source::with(config, timeouts());
    source.until_pods(&["a"]).await;
    server.require_token(Some("second"));
    server.cut("pods", Cut::End);
    source.until_problem("does not accept our token").await;
    std::fs::write(&token, "second").unwrap();
    source.until(|source| source.problems.is_empty()).await;
    // A token file that is removed after it was read still counts.
    std::fs::remove_file(&token).unwrap();
    server.cut("pods", Cut::End);
    server.put("pods", pod("b"));
    source.until_pods(&["a", "b"]).await;
    assert_eq!(
        server.asked().last().unwrap().authorization,
        "Bearer second"
    );
}

#[tokio::test]
async fn an_unreadable_token_is_reported() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "not a\nheader").unwrap();
    let mut config = Config::new(server.url());
    config.auth_info.token_file = Some(token.to_str().unwrap().to_owned());
    let mut source = Source::with(config, timeouts());
    source
        .until_problem("no usable token for the API server: invalid bearer token")
        .await;
    assert!(failures(&source, Reason::Unauthorized) > 0);
}

#[tokio::test]
async fn tls_trusts_the_clusters_authority_and_no_other() {
    let (server, certificate) = ApiServer::start_tls().await;
    server.put("pods", pod("a"));
    let config = |trusted: &Certificate| {
        let mut config = Config::new(server.url());
        config.root_cert = Some(vec![trusted.der().to_vec()]);
        config
    };
    let mut source = Source::with(config(&certificate), timeouts());
    source.until_pods(&["a"]).await;
    let (_other, other) = ApiServer::start_tls().await;
    let mut source = Source::with(config(&other), timeouts());
    source.until_problem("certificate").await;
    assert!(source.pods.is_empty());
}

#[tokio::test]
async fn malformed_answers_are_survived() {
    let (server, mut source) = synced().await;
    for (fault, message) in [
        (Fault::Plain(502, "<html>Bad Gateway</html>"), "Bad Gateway"),
        (Fault::Hangup, "can't watch pods"),
        (
            Fault::Status(429, "TooManyRequests", "slow down"),
            "slow down",
        ),
        (
            Fault::Status(500, "InternalError", "etcd is down"),
            "etcd is down",
        ),
    ] {
        // kube's client retries once by itself if a connection is closed before an answer.
        for _ in 0..3 {
            server.fail("pods", true, fault.clone());
        }
        server.until(|s| s.watching("pods") == 1).await;
        server.cut("pods", Cut::End);
        source
            .until_while(
                |s| s.problems.iter().any(|p| p.contains(message)),
                |s| s.has("a"),
            )
            .await;
        source
            .until_while(|s| s.problems.is_empty(), |s| s.has("a"))
            .await;
    }
    server.until(|s| s.watching("pods") == 1).await;
    server.put("pods", pod("b"));
    source.until_pods(&["a", "b"]).await;
}

#[tokio::test]
async fn a_list_that_is_not_json_is_requested_again() {
    let server = server().await.without_initial_events();
    server.fail("pods", false, Fault::Garbage);
    let mut source = Source::start(&server);
    source
        .until_problem("the API server's answer to list pods can't be read")
        .await;
    source.until_pods(&["a"]).await;
    source.until(|source| source.problems.is_empty()).await;
}

#[tokio::test]
async fn after_a_restore_from_a_backup_the_servers_current_state_counts() {
    for initial_events in [true, false] {
        let mut server = ApiServer::start().await;
        if !initial_events {
            server = server.without_initial_events();
        }
        // More than one page.
        for number in 0..300 {
            server.put("pods", pod(&format!("p-{number:03}")));
        }
        let mut source = Source::start(&server);
        source.until(|source| source.names().len() == 300).await;
        server.until(|s| s.watching("pods") == 1).await;
        server.delete("pods", "shop", "p-000");
        source.until(|source| source.names().len() == 299).await;
        server.restore(50);
        server.cut(
            "pods",
            Cut::Error(410, "Expired", "too old resource version"),
        );
        let asked = server.asked().len();
        server
            .until(|s| s.asked().len() > asked && s.watching("pods") == 1)
            .await;
        // Its revision is lower than the old ones, and counts.
        server.put("pods", pod("new"));
        source
            .until_while(|s| s.has("new"), |s| s.names().len() >= 299)
            .await;
        let pages = server
            .asked()
            .into_iter()
            .filter(|asked| !asked.param("continue").is_empty());
        assert_eq!(pages.count(), usize::from(!initial_events));
    }
}

#[tokio::test]
async fn it_ends_when_the_receiver_is_dropped() {
    let (server, mut source) = synced().await;
    source.events.close();
    let task = &mut source.task;
    timeout(LATE, task)
        .await
        .expect("in time")
        .expect("no panic");
    server
        .until(|s| s.watching("pods") == 0 && s.watching("namespaces") == 0)
        .await;
}
