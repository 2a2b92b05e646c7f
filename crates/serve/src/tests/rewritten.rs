//! Probes that are sent to an agent's port: the original check is executed, whatever its kind.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::harness::*;
use super::servers::{Grpc, Key, TlsApp};
use crate::table::Routes;
use model::{Action, ProbeKind, ProbeMode, Scheme};
use probe::verdict::{Outcome, Reason};

/// The timeout of probes that must time out.
const SECOND: Duration = Duration::from_secs(1);
const PATH: &str = "/app-health/app/livez";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// The result of a probe of `action` that is sent to the agent's port with `headers`.
async fn probe_with(action: Action, agent: SocketAddr, headers: &str) -> (u16, Reason) {
    probe_within(LONG, action, agent, headers).await
}

async fn probe_within(
    time: Duration,
    action: Action,
    agent: SocketAddr,
    headers: &str,
) -> (u16, Reason) {
    let route = route(ProbeKind::Liveness, action, time);
    let paths = HashMap::from([(PATH.to_owned(), Arc::clone(&route))]);
    let world = World::new([endpoint(agent, Routes::Rewritten(paths))]).await;
    let request = format!("GET {PATH} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    let status = world.status(agent, &request).await;
    (status, verdict(&route).await.reason)
}

/// The result of a probe of `action` that never gets an answer.
async fn probe_in_vain(action: Action) -> (u16, Reason) {
    let agent = nobody();
    probe_within(SECOND, action, agent, &format!("Host: {agent}\r\n")).await
}

async fn probe(action: Action) -> (u16, Reason) {
    let agent = nobody();
    let headers = format!("Host: {agent}\r\nUser-Agent: kube-probe/1.36\r\nAccept: */*\r\n");
    probe_with(action, agent, &headers).await
}

fn https(address: SocketAddr, target: &str) -> Action {
    Action::Http {
        scheme: Scheme::Https,
        port: address.port(),
        target: target.to_owned(),
        headers: Vec::new(),
    }
}

#[tokio::test]
async fn the_app_gets_the_original_request() {
    let app = App::answering(OK).await;
    let agent = nobody();
    let action = http(app.address.port(), "/healthz?full=1");
    let headers = format!(
        "Host: {agent}\r\nX-B: 1\r\nx-a: 2\r\nProxy-Authorization: Basic eDp5\r\nTE: x\r\n"
    );
    assert_eq!(
        probe_with(action, agent, &headers).await,
        (200, Reason::Healthy)
    );
    let expect = format!(
        "GET /healthz?full=1 HTTP/1.1\r\nHost: {}\r\nX-B: 1\r\nx-a: 2\r\nProxy-Authorization: Basic eDp5\r\n\
         TE: x\r\nConnection: close\r\n\r\n",
        app.address
    );
    assert_eq!(app.seen(), [(IN_POD, expect)]);
}

#[tokio::test]
async fn http_failures_are_passed_on() {
    let app = App::answering("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").await;
    let result = probe(http(app.address.port(), "/")).await;
    assert_eq!(result, (503, Reason::HttpStatus));
    let result = probe(http(nobody().port(), "/")).await;
    assert_eq!(result, (500, Reason::Refused));
}

#[tokio::test]
async fn paths_without_a_route_are_relayed_to_the_agent() {
    let app = App::answering(OK).await;
    let agent = App::answering("HTTP/1.1 400 Agent\r\n\r\n").await;
    let route = route(ProbeKind::Liveness, http(app.address.port(), "/"), LONG);
    let paths = HashMap::from([(PATH.to_owned(), Arc::clone(&route))]);
    let world = World::new([endpoint(agent.address, Routes::Rewritten(paths))]).await;
    for target in [
        "/app-health/other/livez",
        "/app-health/app/livez?x",
        "/app-health/app/livez/",
        "/healthz/ready",
        "/stats/prometheus",
    ] {
        let answer = world
            .ask(agent.address, &get(agent.address, target))
            .await
            .expect("an answer");
        assert_eq!(answer, "HTTP/1.1 400 Agent\r\n\r\n", "{target}");
        assert_ne!(agent.seen().pop().expect("the agent was reached").0, IN_POD);
    }
    assert_eq!(app.seen(), []);
}

/// The answer to a taken-over probe whose port is closed, and the reason. `agent`: the address of pilot-agent.
async fn refused(action: Action, agent: SocketAddr) -> (std::io::Result<String>, Reason) {
    let mut route = route(ProbeKind::Liveness, action, LONG);
    Arc::get_mut(&mut route).expect("ours alone").mode = ProbeMode::Takeover;
    let paths = HashMap::from([(PATH.to_owned(), Arc::clone(&route))]);
    let world = World::new([endpoint(agent, Routes::Rewritten(paths))]).await;
    let answer = world.ask(agent, &get(agent, PATH)).await;
    (answer, verdict(&route).await.reason)
}

#[tokio::test]
async fn a_refused_probe_is_relayed_if_pilot_agent_does_not_listen_in_the_pod_either() {
    let agent = App::answering("HTTP/1.1 200 Agent\r\n\r\n").await;
    let closed = http(nobody().port(), "/");
    let (answer, reason) = refused(closed.clone(), agent.address).await;
    assert!(answer.expect("an answer").starts_with("HTTP/1.1 500 "));
    assert_eq!(reason, Reason::Refused);
    assert!(agent.seen().is_empty(), "no request");
    let grpc = Action::Grpc {
        port: nobody().port(),
        service: String::new(),
    };
    for closed in [closed, grpc] {
        let begun = tokio::time::Instant::now();
        let (answer, reason) = refused(closed, nobody()).await;
        assert!(answer.is_err() || answer.is_ok_and(|answer| answer.is_empty()));
        assert_eq!(reason, Reason::Dial, "relayed, where nothing listens");
        assert!(begun.elapsed() < LONG / 2, "it does not wait");
    }
}

#[tokio::test]
async fn a_tcp_probe_is_answered_with_a_status() {
    let app = App::answering("").await;
    let port = app.address.port();
    assert_eq!(probe(Action::Tcp { port }).await, (200, Reason::Healthy));
    let port = nobody().port();
    assert_eq!(probe(Action::Tcp { port }).await, (500, Reason::Refused));
}

#[tokio::test]
async fn https_works_with_any_certificate_and_tls_version_and_http_version() {
    for key in [Key::Ecdsa, Key::Ed25519, Key::RsaV1Expired] {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            for alpn in [None, Some("http/1.1"), Some("h2")] {
                let app = TlsApp::new(key, version, alpn, 200, None).await;
                let what = format!("{key:?} {version:?} {alpn:?}");
                let result = probe(https(app.address, "/x?y")).await;
                assert_eq!(result, (200, Reason::Healthy), "{what}");
                let seen = app.seen();
                assert_eq!(seen.target, "/x?y", "{what}");
                assert_eq!(seen.host, app.address.to_string(), "{what}");
                assert_eq!(seen.user_agent, "kube-probe/1.36", "{what}");
                assert_eq!(seen.server_name, None, "{what}");
                assert!(!seen.headers.contains(&"accept-encoding".to_owned()));
            }
        }
    }
}

#[tokio::test]
async fn https_statuses_are_passed_on_in_both_http_versions() {
    for alpn in ["http/1.1", "h2"] {
        let app = TlsApp::new(Key::Ecdsa, &rustls::version::TLS13, Some(alpn), 503, None).await;
        let result = probe(https(app.address, "/")).await;
        assert_eq!(result, (503, Reason::HttpStatus), "{alpn}");
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_a_bad_response_in_both_http_versions() {
    let location = format!("/{}", "x".repeat(40_000));
    for alpn in ["http/1.1", "h2"] {
        let version = &rustls::version::TLS13;
        let location = Some(location.clone());
        let app = TlsApp::new(Key::Ecdsa, version, Some(alpn), 200, location).await;
        let result = probe(https(app.address, "/")).await;
        assert_eq!(result, (500, Reason::BadResponse), "{alpn}");
    }
}

#[tokio::test]
async fn a_redirect_leads_from_http_to_https_and_back() {
    let plain = App::answering("HTTP/1.1 418 Tea\r\n\r\n").await;
    for alpn in ["http/1.1", "h2"] {
        let back = format!("http://{}/end", plain.address);
        let secure = TlsApp::new(
            Key::Ecdsa,
            &rustls::version::TLS13,
            Some(alpn),
            302,
            Some(back),
        )
        .await;
        let there = format!("https://{}/secure", secure.address);
        let first = App::answering(format!(
            "HTTP/1.1 307 T\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n"
        ))
        .await;
        let result = probe(http(first.address.port(), "/")).await;
        assert_eq!(result, (418, Reason::HttpStatus), "{alpn}");
        assert_eq!(secure.seen().target, "/secure");
        let (_, last) = plain.seen().pop().expect("the app was reached");
        assert!(
            last.starts_with("GET /end ") && !last.contains("Referer"),
            "{last}"
        );
    }
}

#[tokio::test]
async fn an_app_without_tls_fails_an_https_probe() {
    let app = App::answering("HTTP/1.0 400 Bad\r\n\r\n").await;
    // The app receives a ClientHello instead of a head, and waits until the handler closes the connection.
    let result = probe_in_vain(https(app.address, "/")).await;
    assert_eq!(result, (504, Reason::TimedOut));
    let ssh = super::servers::greeting("SSH-2.0-OpenSSH_9.6\r\n").await;
    assert_eq!(probe(https(ssh, "/")).await, (500, Reason::Tls));
    let silent = super::servers::greeting("").await;
    assert_eq!(
        probe(https(silent, "/")).await,
        (500, Reason::ConnectionClosed)
    );
}

#[tokio::test]
async fn grpc_is_200_when_serving_and_500_otherwise() {
    let app = Grpc::new().await;
    let port = app.address.port();
    for (service, expect) in [
        ("", (200, Reason::Healthy)),
        ("up", (200, Reason::Healthy)),
        ("down", (500, Reason::NotServing)),
        ("unknown", (500, Reason::GrpcStatus)),
    ] {
        let service = service.to_owned();
        let result = probe(Action::Grpc { port, service }).await;
        assert_eq!(result, expect);
    }
    let seen = app.seen();
    assert_eq!(seen.target, "/grpc.health.v1.Health/Check");
    assert_eq!(seen.host, app.address.to_string());
    assert_eq!(seen.user_agent, "kube-probe/1.36");
    assert!(seen.headers.contains(&"grpc-timeout".to_owned()));
}

#[tokio::test]
async fn grpc_against_something_else_fails() {
    let action = |port| Action::Grpc {
        port,
        service: String::new(),
    };
    let refused = probe_in_vain(action(nobody().port())).await;
    assert_eq!(refused, (500, Reason::Refused));
    let ssh = super::servers::greeting("SSH-2.0-OpenSSH_9.6\r\n").await;
    let (status, reason) = probe(action(ssh.port())).await;
    assert_eq!(status, 500);
    assert!(
        matches!(reason, Reason::BadResponse | Reason::ConnectionClosed),
        "{reason:?}"
    );
    let closing = super::servers::greeting("").await;
    assert_eq!(
        probe(action(closing.port())).await,
        (500, Reason::ConnectionClosed)
    );
}

#[tokio::test]
async fn a_check_over_http2_that_ran_out_of_time_leaves_nothing_behind() {
    let app = App::new(|_, _| vec![Act::Hang]).await;
    let action = Action::Grpc {
        port: app.address.port(),
        service: String::new(),
    };
    assert_eq!(probe_in_vain(action).await, (504, Reason::TimedOut));
    assert_eq!(app.seen().len(), 1);
    while app.open.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
}

/// An app without TLS that, like Go's server, answers a ClientHello in plaintext. The task returns the plaintext request.
async fn plaintext_app() -> (SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let address = listener.local_addr().expect("address");
    let asked = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut bytes = vec![0; 4096];
            let length = stream.read(&mut bytes).await.expect("bytes");
            let head = String::from_utf8_lossy(&bytes[..length]).into_owned();
            let plain = head.starts_with("GET ");
            let status = if plain {
                "404 Not Found"
            } else {
                "400 Bad Request"
            };
            let answer = format!("HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("written");
            if plain {
                return head;
            }
        }
    });
    (address, asked)
}

#[tokio::test]
async fn an_https_hook_that_is_answered_in_plaintext_is_tried_again_without_tls() {
    let (app, asked) = plaintext_app().await;
    let agent = nobody();
    let hook = route(ProbeKind::PostStart, https(app, "/start"), LONG);
    let paths = HashMap::from([(PATH.to_owned(), Arc::clone(&hook))]);
    let world = World::new([endpoint(agent, Routes::Rewritten(paths))]).await;
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nHost: {agent}\r\nAuthorization: Basic eDp5\r\nX-A: 1\r\n\r\n"
    );
    assert_eq!(world.status(agent, &request).await, 404);
    let verdict = verdict(&hook).await;
    assert_eq!(verdict.outcome(true), Outcome::Success, "{verdict:?}");
    assert_eq!(
        asked.await.expect("asked"),
        format!("GET /start HTTP/1.1\r\nHost: {app}\r\nX-A: 1\r\nConnection: close\r\n\r\n")
    );
}

#[tokio::test]
async fn an_https_probe_that_is_answered_in_plaintext_fails() {
    let (app, asked) = plaintext_app().await;
    assert_eq!(probe(https(app, "/")).await, (500, Reason::Tls));
    asked.abort();
}
