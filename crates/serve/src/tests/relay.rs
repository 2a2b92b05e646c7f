//! Undeclared connections are relayed from the host, byte for byte.

use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

use super::harness::*;

#[tokio::test]
async fn undeclared_requests_are_relayed_and_declared_ones_are_not() {
    let app = App::answering("HTTP/1.1 200 OK\r\nX-App: seen\r\nContent-Length: 2\r\n\r\nok").await;
    let (route, endpoint) = http_endpoint(app.address, "/healthz?a=1", LONG);
    let world = World::new([endpoint]).await;
    let large = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    for request in [
        "GET /healthz HTTP/1.1\r\n\r\n",
        "GET /healthz?a=2 HTTP/1.1\r\n\r\n",
        "GET /healthz?a=1& HTTP/1.1\r\n\r\n",
        "GET //healthz?a=1 HTTP/1.1\r\n\r\n",
        "GET http://x/healthz?a=1 HTTP/1.1\r\n\r\n",
        "HEAD /healthz?a=1 HTTP/1.1\r\n\r\n",
        "POST /healthz?a=1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "P",
        "GET /healthz?a=1 HTTP/1.1\r\n bad\r\n\r\n",
        "GET /healthz?a=1 HTTP/1.1\r\nContent-Length: 1\r\n\r\nb",
        "GET /healthz?a=1 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "garbage \r\n\r\n",
        "\u{16}\u{3}\u{1}\r\n\r\n",
        &large,
    ] {
        let mut kubelet = world.connect(app.address).await;
        kubelet.write_all(request.as_bytes()).await.expect("write");
        kubelet.shutdown().await.expect("shutdown");
        let answer = read_all(&mut kubelet).await;
        let (peer, head) = app.seen().pop().expect("the app was reached");
        assert_ne!(peer, IN_POD, "{request:?} was exempted from the mesh");
        assert!(request.starts_with(&head), "{head:?}");
        // If the request is longer than what the app reads, a reset may follow the answer.
        if head.len() == request.len() {
            let answer = answer.expect("the app's answer");
            assert!(answer.ends_with("X-App: seen\r\nContent-Length: 2\r\n\r\nok"));
        }
    }
    assert_eq!(route.stats.counts(), (0, 0, 0));
}

#[tokio::test]
async fn a_relay_honours_half_close_on_both_sides() {
    let (listener, address) = listening().await;
    let (_, endpoint) = http_endpoint(address, "/", LONG);
    let world = World::new([endpoint]).await;
    let app = async {
        let (mut stream, peer) = listener.accept().await.expect("accept");
        assert_ne!(
            peer.ip(),
            IN_POD,
            "an undeclared connection must not be dialled in the pod"
        );
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await.expect("read");
        all.make_ascii_uppercase();
        stream.write_all(&all).await.expect("write");
    };
    let kubelet = async {
        let mut kubelet = world.connect(address).await;
        let text = "post me ".repeat(50_000);
        kubelet.write_all(text.as_bytes()).await.expect("write");
        kubelet.shutdown().await.expect("shutdown");
        let answer = read_all(&mut kubelet).await.expect("an answer");
        assert_eq!(answer, text.to_uppercase());
    };
    let ((), ()) = tokio::join!(app, kubelet);
}

#[tokio::test]
async fn a_relay_ends_when_the_kubelet_is_gone_though_the_app_goes_on() {
    let (listener, address) = listening().await;
    let (_, endpoint) = http_endpoint(address, "/", LONG);
    let world = World::new([endpoint]).await;
    let mut kubelet = world.connect(address).await;
    kubelet.write_all(b"hello").await.expect("write");
    kubelet.shutdown().await.expect("shutdown");
    let (mut app, _) = listener.accept().await.expect("accept");
    let mut received = String::new();
    let _ = app.read_to_string(&mut received).await.expect("read");
    assert_eq!(received, "hello");
    SockRef::from(&kubelet)
        .set_linger(Some(Duration::ZERO))
        .expect("linger");
    drop(kubelet);
    // This side neither reads nor writes: only the end of the relay causes an error here.
    let ended = tokio::time::timeout(LONG, app.ready(Interest::ERROR)).await;
    let _ = ended.expect("the relay ends").expect("the app's socket");
}

#[tokio::test]
async fn a_relay_to_a_closed_port_is_a_reset() {
    let address = nobody();
    let (_, endpoint) = http_endpoint(address, "/", LONG);
    let world = World::new([endpoint]).await;
    let answer = world.ask(address, "GET /other HTTP/1.1\r\n\r\n").await;
    let error = answer.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_relayed() {
    let app = App::answering("HTTP/1.1 204 N\r\n\r\n").await;
    let world = World::new([]).await;
    let answer = world.ask(app.address, &get(app.address, "/")).await;
    assert_eq!(answer.expect("an answer"), "HTTP/1.1 204 N\r\n\r\n");
    assert_ne!(app.seen()[0].0, IN_POD);
}

#[tokio::test]
async fn a_client_that_waits_for_the_server_to_send_first_is_relayed() {
    let (listener, address) = listening().await;
    let (_, endpoint) = http_endpoint(address, "/", Duration::from_millis(50));
    let world = World::new([endpoint]).await;
    let app = async {
        loop {
            let (mut stream, peer) = listener.accept().await.expect("accept");
            if peer.ip() != IN_POD {
                stream.write_all(b"220 hello\r\n").await.expect("write");
                return;
            }
        }
    };
    let kubelet = async {
        let mut kubelet = world.connect(address).await;
        assert_eq!(
            read_all(&mut kubelet).await.expect("bytes"),
            "220 hello\r\n"
        );
    };
    let ((), ()) = tokio::join!(app, kubelet);
}

#[tokio::test]
async fn a_pod_that_cannot_be_dialled_from_inside_is_relayed_to() {
    let app = App::answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let (route, endpoint) = http_endpoint(app.address, "/", LONG);
    let endpoint = endpoint_dialled(
        app.address,
        endpoint.routes,
        std::sync::Arc::new(WithoutAddress),
    );
    let world = World::new([endpoint]).await;
    let answer = world
        .ask(app.address, &get(app.address, "/"))
        .await
        .expect("the relayed answer");
    assert_eq!(answer, "HTTP/1.1 204 No Content\r\n\r\n");
    let (peer, _) = app.seen().pop().expect("the app was reached");
    assert_ne!(peer, IN_POD);
    // This shows nothing about the app's health.
    assert_eq!(route.stats.counts(), (0, 0, 1));
}
