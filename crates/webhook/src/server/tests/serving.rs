//! The server with well-behaved clients.

use http::{Method, StatusCode};
use tokio::time::timeout;

use super::client::{Dial, request};
use super::*;

#[tokio::test]
async fn reviews_are_answered_over_http2_and_http1() {
    let webhook = Webhook::start();
    let dial = Dial::new(webhook.address, &webhook.authority);
    for dial in [dial.clone(), dial.http1()] {
        let mut connection = dial.connect().await.expect("connected");
        for _ in 0..3 {
            let answer = connection.review(&review()).await.expect("answered");
            assert!(answer.is_patched(), "{answer:?}");
            assert_eq!(answer.headers["content-type"], "application/json");
        }
    }
}

#[tokio::test]
async fn a_client_without_a_server_name_gets_the_certificate_too() {
    let webhook = Webhook::start();
    let mut dial = Dial::new(webhook.address, &webhook.authority);
    dial.sni = false;
    assert!(dial.review(&review()).await.expect("answered").is_patched());
    // Without ALPN the first bytes determine the protocol.
    dial.alpn = &[];
    assert!(dial.review(&review()).await.expect("answered").is_patched());
}

#[tokio::test]
async fn a_request_that_is_not_a_review_gets_an_error_status() {
    let webhook = Webhook::start();
    let json = Some("application/json");
    let get = |path| request(Method::GET, path, None, b"");
    let post = |content_type, body: &[u8]| request(Method::POST, "/mutate", content_type, body);
    let rows = [
        (get("/healthz"), StatusCode::OK),
        (get("/readyz"), StatusCode::OK),
        (get("/mutate"), StatusCode::METHOD_NOT_ALLOWED),
        (get("/metrics"), StatusCode::NOT_FOUND),
        (get("/"), StatusCode::NOT_FOUND),
        (
            request(Method::POST, "/healthz", json, b""),
            StatusCode::METHOD_NOT_ALLOWED,
        ),
        (
            request(Method::PUT, "/mutate", json, &review()),
            StatusCode::METHOD_NOT_ALLOWED,
        ),
        (post(None, &review()), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (
            post(Some("text/plain"), &review()),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ),
        (
            post(Some("application/json5"), &review()),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ),
        (
            post(Some("Application/JSON; charset=utf-8"), &review()),
            StatusCode::OK,
        ),
        (post(json, b""), StatusCode::BAD_REQUEST),
        (post(json, b"{}"), StatusCode::BAD_REQUEST),
        (post(json, b"\xff\x00"), StatusCode::BAD_REQUEST),
    ];
    let dial = Dial::new(webhook.address, &webhook.authority);
    for dial in [dial.clone(), dial.http1()] {
        for (request, status) in &rows {
            let what = format!("{} {}", request.method(), request.uri());
            let mut connection = dial.connect().await.expect("connected");
            let answer = connection.send(request.clone()).await.expect("answered");
            assert_eq!(answer.status, *status, "{what}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn readiness_is_served_on_the_port_of_reviews() {
    let webhook = Webhook::start();
    let dial = Dial::new(webhook.address, &webhook.authority);
    let ready = || request(Method::GET, "/readyz", None, b"");
    let guard = webhook.readiness.block("settings");
    let mut connection = dial.connect().await.expect("connected");
    let answer = connection.send(ready()).await.expect("answered");
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.body.ends_with(b"settings\n"));
    drop(guard);
    assert_eq!(
        connection.send(ready()).await.expect("answered").status,
        StatusCode::OK
    );
}

/// A pod of 3 MiB, the maximum that an API server accepts.
#[tokio::test]
async fn the_largest_possible_pod_is_rewritten() {
    let webhook = Webhook::start();
    let dial = Dial::new(webhook.address, &webhook.authority);
    let text = "<&>".repeat(1 << 20);
    let body = review_of(
        json!([{"name": "web", "image": "web", "env": [{"name": "A", "value": text}],
        "livenessProbe": {"tcpSocket": {"port": 5432}}}]),
    );
    assert!(body.len() > 3 << 20);
    for dial in [dial.clone(), dial.http1()] {
        assert!(dial.review(&body).await.expect("answered").is_patched());
    }
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused() {
    let webhook = Webhook::start();
    let dial = Dial::new(webhook.address, &webhook.authority);
    let body = vec![b' '; Limits::default().body + 1];
    for dial in [dial.clone(), dial.http1()] {
        let mut connection = dial.connect().await.expect("connected");
        // Over HTTP/1.1 the connection may close before the whole body is sent.
        if let Ok(answer) = connection.review(&body).await {
            assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
        }
        assert!(dial.review(&review()).await.expect("answered").is_patched());
    }
}

/// Installs new certificates during requests over open and new connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_change_under_load_and_no_request_fails() {
    const RENEWALS: usize = 20;
    let webhook = Webhook::start();
    let all: Vec<_> = (0..RENEWALS).map(|_| made()).collect();
    let mut bundle = webhook.authority.clone();
    for made in &all {
        bundle.extend_from_slice(made.authority.as_bytes());
    }
    let dial = Dial::new(webhook.address, &bundle);
    let (stop, stopped) = watch::channel(false);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..8 {
        let (dial, stopped) = (dial.clone(), stopped.clone());
        let keeps = client % 2 == 0;
        let _ = clients.spawn(async move {
            let dial = if client % 4 < 2 { dial } else { dial.http1() };
            let mut connection = dial.connect().await.expect("connected");
            let mut answered = 0;
            while !*stopped.borrow() {
                if !keeps {
                    connection = dial.connect().await.expect("connected");
                }
                let answer = connection.review(&review()).await.expect("answered");
                assert!(answer.is_patched());
                answered += 1;
            }
            answered
        });
    }
    for made in &all {
        install(&webhook.serving, made);
        // Only the new authority is trusted here, so this handshake uses the new certificate.
        let dial = Dial::new(webhook.address, made.authority.as_bytes());
        assert!(dial.review(&review()).await.expect("answered").is_patched());
    }
    stop.send_replace(true);
    while let Some(answered) = timeout(LATE, clients.join_next()).await.expect("in time") {
        assert!(answered.expect("no request failed") > 0);
    }
}
