//! The API server away, slow, forgetful, or unwilling: what is known holds, and the watches come back.

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
    server
        .until(|s| s.watching("namespaces") == 1 && s.asked().len() == 2)
        .await;
    assert!(!source.is_listed());
    server.release();
    source.until_pods(&["a"]).await;
    let _ = timeout(LATE, &mut source.listed).await.expect("dropped");
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_where_it_ended() {
    let (server, mut source) = synced().await;
    let version = server.put("pods", pod("b"));
    source.until_pods(&["a", "b"]).await;
    for cut in [
        Cut::End,
        Cut::MidLine,
        Cut::Error(500, "InternalError", "etcd is away"),
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
async fn a_bookmark_moves_on_where_to_go_on_from() {
    let (server, mut source) = synced().await;
    // Other pods' events, which we do not see, move the revision on and the old ones out.
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
async fn a_version_that_is_gone_leads_to_a_list_that_replaces_and_drops_none_between() {
    for initial_events in [true, false] {
        let mut server = server().await;
        if !initial_events {
            server = server.without_initial_events();
        }
        server.put("pods", pod("gone"));
        let mut source = Source::start(&server);
        source.until_pods(&["a", "gone"]).await;
        server.until(|s| s.watching("pods") == 1).await;
        // While we are not watching, things happen and are forgotten.
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
        assert_eq!(source.problems, [""; 0], "that is business as usual");
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
async fn a_server_that_comes_back_without_our_version_is_asked_again_at_once() {
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
    let away = || {
        for _ in 0..10 {
            server.fail(
                "pods",
                true,
                Fault::Status(500, "InternalError", "starting"),
            );
        }
    };
    away();
    server.fail("pods", true, Fault::Status(410, "Expired", "too old"));
    away();
    let asked = server.asked().len();
    server.cut("pods", Cut::End);
    server.until(|s| s.asked().len() > asked).await;
    server.put("pods", pod("b"));
    source.until_while(|s| s.has("b"), |s| s.has("a")).await;
}

#[tokio::test]
async fn with_the_server_away_the_last_known_state_holds() {
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
    assert!(source.problems[0].ends_with("; pods are served as last known"));
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
async fn a_list_that_takes_long_leaves_the_last_known_state() {
    let (server, mut source) = synced().await;
    server.fail("pods", true, Fault::Status(410, "Expired", "too old"));
    server.fail("pods", true, Fault::Hang);
    let asked = server.asked().len();
    server.cut("pods", Cut::End);
    server.until(|s| s.asked().len() == asked + 2).await;
    server.put("namespaces", namespace("other", Some("maybe")));
    source.until_problem("Namespace other").await;
    assert_eq!(source.names(), ["a"]);
    assert!(!source.health.of(Resource::Pods).is_up());
    server.put("pods", pod("b"));
    server.release();
    source.until_pods(&["a", "b"]).await;
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_in_time() {
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
async fn a_watch_on_which_nothing_comes_is_begun_again() {
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
async fn a_server_that_ends_each_watch_at_once_is_not_hammered_in_silence() {
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
async fn a_missing_rule_is_said_and_found_when_it_comes() {
    let server = server().await;
    let says = "pods is forbidden: User \"system:serviceaccount:probe-handler:probe-handler\" cannot watch resource \"pods\" in API group \"\" at the cluster scope";
    server.fail("pods", true, Fault::Status(403, "Forbidden", says));
    let mut source = Source::start(&server);
    let rule = r#"{apiGroups: [""], resources: ["pods"], verbs: ["get", "list", "watch"]}"#;
    source.until_problem(rule).await;
    let problem = source.problems[0].clone();
    assert!(
        problem.contains(says) && problem.ends_with("no pod is served until it answers"),
        "{problem}"
    );
    assert!(!source.is_listed());
    source.until_pods(&["a"]).await;
    source.until(|source| source.problems.is_empty()).await;
}

#[tokio::test]
async fn pods_are_served_where_namespaces_may_not_be_read() {
    let server = server().await;
    server.put("namespaces", namespace("shop", Some("false")));
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
        .until_problem("annotations of namespaces are ignored")
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
async fn a_token_that_expired_is_tried_again() {
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
        "it goes on where it was"
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
async fn a_token_that_was_replaced_is_used_at_once() {
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
    // Removed once it was read, it still counts.
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
async fn a_token_that_cant_be_read_is_said_to_be_so() {
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
async fn over_tls_the_clusters_authority_is_trusted_and_no_other() {
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
async fn answers_that_are_none_are_survived() {
    let (server, mut source) = synced().await;
    for (fault, says) in [
        (Fault::Plain(502, "<html>Bad Gateway</html>"), "Bad Gateway"),
        (Fault::Hangup, "can't watch pods"),
        (
            Fault::Status(429, "TooManyRequests", "slow down"),
            "slow down",
        ),
        (
            Fault::Status(500, "InternalError", "etcd is away"),
            "etcd is away",
        ),
    ] {
        // kube's client asks once more by itself where a connection was closed before an answer.
        for _ in 0..3 {
            server.fail("pods", true, fault.clone());
        }
        server.until(|s| s.watching("pods") == 1).await;
        server.cut("pods", Cut::End);
        source
            .until_while(
                |s| s.problems.iter().any(|p| p.contains(says)),
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
async fn a_list_that_is_no_json_is_asked_for_again() {
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
async fn after_a_restore_from_a_backup_what_the_server_has_now_counts() {
    for initial_events in [true, false] {
        let mut server = ApiServer::start().await;
        if !initial_events {
            server = server.without_initial_events();
        }
        // More than a page.
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
        // Its revision is below those of old, and counts.
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
async fn it_ends_when_nobody_listens() {
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
