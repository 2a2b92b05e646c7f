//! Clients that are slow, send floods, or use another protocol. None of them affects other clients.

use std::io;

use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::client::{Dial, post};
use super::*;

/// Limits that are short enough for tests.
fn quick() -> Limits {
    Limits {
        handshake: Duration::from_millis(300),
        first_request: Duration::from_millis(300),
        idle: Duration::from_millis(600),
        body_time: Duration::from_millis(300),
        ..Limits::default()
    }
}

/// Reads until the server closes the connection; returns what it sent before.
async fn until_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut received = Vec::new();
    let closed = timeout(LATE, stream.read_to_end(&mut received)).await;
    // A reset, or an end without TLS close_notify, is an end too.
    let _ = closed.expect("closed in time");
    received
}

async fn others_are_served(webhook: &Webhook) {
    let dial = Dial::new(webhook.address, &webhook.authority);
    // With limits this short, any client may be cut off when the machine pauses for a moment.
    const TRIES: usize = 3;
    let mut answer = None;
    for _ in 0..TRIES {
        let review = timeout(LATE, dial.review(&review())).await;
        answer = review.expect("in time").ok();
        if answer.is_some() {
            break;
        }
    }
    assert!(answer.expect("answered").is_patched());
}

#[tokio::test]
async fn a_connection_without_a_complete_handshake_is_closed() {
    let webhook = Webhook::with(quick());
    let mut silent = TcpStream::connect(webhook.address)
        .await
        .expect("connected");
    let mut garbage = TcpStream::connect(webhook.address)
        .await
        .expect("connected");
    let plain = b"POST /mutate HTTP/1.1\r\nHost: a\r\n\r\n";
    garbage.write_all(plain).await.expect("sent");
    let mut half = TcpStream::connect(webhook.address)
        .await
        .expect("connected");
    half.write_all(&[22, 3, 1, 2, 0, 1]).await.expect("sent");
    others_are_served(&webhook).await;
    for stream in [&mut silent, &mut garbage, &mut half] {
        let received = until_closed(stream).await;
        assert!(!received.starts_with(b"HTTP"), "no answer without TLS");
    }
    others_are_served(&webhook).await;
}

#[tokio::test]
async fn tls_older_than_1_2_is_refused() {
    let webhook = Webhook::start();
    for minor in 0..=3 {
        let mut stream = TcpStream::connect(webhook.address)
            .await
            .expect("connected");
        stream.write_all(&client_hello(minor)).await.expect("sent");
        let mut received = [0; 7];
        let read = timeout(LATE, stream.read_exact(&mut received)).await;
        let _ = read.expect("in time").expect("an answer");
        // A record of a handshake, or a fatal alert: protocol_version (70) or handshake_failure (40)
        // (RFC 5246, 6.2.1 and 7.2).
        match minor {
            3 => assert_eq!(received[0], 22, "TLS 1.2 is accepted: {received:?}"),
            _ => assert!(
                received[0] == 21 && received[5] == 2 && [40, 70].contains(&received[6]),
                "{minor}: {received:?}"
            ),
        }
    }
    others_are_served(&webhook).await;
}

/// A ClientHello with SSL 3.0 (0) or TLS 1.0 to 1.2 (1 to 3) as its newest version. Everything else that it
/// offers is accepted.
fn client_hello(minor: u8) -> Vec<u8> {
    let mut body = vec![3, minor];
    body.extend([7; 32]); // random
    body.push(0); // no session
    body.extend([0, 2, 0xc0, 0x2b]); // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    body.extend([1, 0]); // no compression
    body.extend([0, 26]); // extensions
    body.extend([0, 10, 0, 4, 0, 2, 0, 23]); // supported groups: secp256r1
    body.extend([0, 13, 0, 4, 0, 2, 4, 3]); // signature algorithms: ECDSA with P-256 and SHA-256
    body.extend([0, 23, 0, 0]); // extended master secret
    body.extend([0, 11, 0, 2, 1, 0]); // point formats: uncompressed
    let mut hello = vec![22, 3, 1];
    let length = |body: &[u8], more| {
        u16::try_from(body.len() + more)
            .expect("short")
            .to_be_bytes()
    };
    hello.extend(length(&body, 4));
    hello.extend([1, 0]);
    hello.extend(length(&body, 0));
    hello.extend(body);
    hello
}

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let webhook = Webhook::with(quick());
    let dial = Dial::new(webhook.address, &webhook.authority);
    for (dial, begin) in [
        (dial.clone().http1(), b"POST /mutate HT".as_slice()),
        (dial, b"PRI * HTTP/2.0\r\n\r\nSM\r\n".as_slice()),
    ] {
        let mut stream = dial.tls().await.expect("handshake");
        stream.write_all(begin).await.expect("sent");
        others_are_served(&webhook).await;
        let _ = until_closed(&mut stream).await;
    }
}

#[tokio::test]
async fn a_slow_body_is_cut_off() {
    let webhook = Webhook::with(quick());
    let dial = Dial::new(webhook.address, &webhook.authority).http1();
    let mut stream = dial.tls().await.expect("handshake");
    let head = "POST /mutate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.expect("sent");
    others_are_served(&webhook).await;
    let received = until_closed(&mut stream).await;
    let received = String::from_utf8_lossy(&received);
    assert!(received.starts_with("HTTP/1.1 408"), "{received}");
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let webhook = Webhook::with(quick());
    let dial = Dial::new(webhook.address, &webhook.authority);
    for dial in [dial.clone(), dial.http1()] {
        let mut connection = dial.connect().await.expect("connected");
        let answer = connection.review(&review()).await.expect("answered");
        assert!(answer.is_patched());
        let closing = async {
            while (webhook.connections)() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LATE, closing).await.expect("closed");
        drop(connection);
    }
}

#[tokio::test]
async fn endless_and_malformed_heads_are_refused() {
    let webhook = Webhook::start();
    let dial = Dial::new(webhook.address, &webhook.authority).http1();
    let long = format!(
        "GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    for head in [
        &*long,
        "\0\0\0\0\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET\r\n\r\n",
    ] {
        let mut stream = dial.tls().await.expect("handshake");
        // The server may close the connection before it has received everything.
        let _ = stream.write_all(head.as_bytes()).await;
        let received = until_closed(&mut stream).await;
        assert!(
            !received.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&received)
        );
    }
    others_are_served(&webhook).await;
}

/// Opens more connections than allowed, none of which sends anything.
#[tokio::test]
async fn a_flood_of_silent_connections_does_not_block_other_clients() {
    let webhook = Webhook::with(Limits {
        connections: 50,
        ..Limits::default()
    });
    let dial = Dial::new(webhook.address, &webhook.authority);
    let mut kept = dial.connect().await.expect("connected");
    assert!(kept.review(&review()).await.expect("answered").is_patched());
    let mut flood = Vec::new();
    for _ in 0..200 {
        flood.push(
            TcpStream::connect(webhook.address)
                .await
                .expect("connected"),
        );
        assert!((webhook.connections)() <= 50);
    }
    others_are_served(&webhook).await;
    let answer = kept
        .review(&review())
        .await
        .expect("the open connection continues");
    assert!(answer.is_patched());
}

/// Sends large bodies without an end over many connections at once.
#[tokio::test]
async fn endless_bodies_share_a_bounded_memory_and_delay_no_other_client() {
    let webhook = Webhook::with(Limits {
        bodies: 4 << 20,
        ..Limits::default()
    });
    let dial = Dial::new(webhook.address, &webhook.authority).http1();
    let mut flood = Vec::new();
    for _ in 0..20 {
        let mut stream = dial.tls().await.expect("handshake");
        let head = "POST /mutate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 8000000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("sent");
        // Send as much as the server accepts; it may refuse the rest.
        let _: io::Result<()> = stream.write_all(&vec![b' '; 1 << 20]).await;
        flood.push(stream);
    }
    let large = review_of(json!([{"name": "web", "image": "web",
        "env": [{"name": "A", "value": "x".repeat(2 << 20)}],
        "livenessProbe": {"tcpSocket": {"port": 5432}}}]));
    let dial = Dial::new(webhook.address, &webhook.authority);
    let answer = timeout(LATE, dial.review(&large)).await.expect("in time");
    assert!(
        answer.expect("answered").is_patched(),
        "a large body takes the memory of the oldest"
    );
    others_are_served(&webhook).await;
}

/// Reads no answers: HTTP/2 without flow-control window for them.
#[tokio::test]
async fn a_client_that_reads_no_answers_is_cut_off() {
    let webhook = Webhook::with(Limits {
        answers: 256 << 10,
        ..Limits::default()
    });
    let dial = Dial::new(webhook.address, &webhook.authority);
    let mut kept = dial.connect().await.expect("connected");
    let mut dawdlers = Vec::new();
    for _ in 0..4 {
        let io = TokioIo::new(dial.tls().await.expect("handshake"));
        let (mut sender, connection) =
            hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(0)
                .handshake(io)
                .await
                .expect("HTTP/2");
        let ended = tokio::spawn(connection);
        let mut answers = Vec::new();
        for _ in 0..50 {
            // Once it is cut off, the client fails to send the next request.
            let Ok(answer) = sender.send_request(post(&review())).await else {
                break;
            };
            answers.push(answer);
        }
        dawdlers.push((ended, sender, answers));
        let answer = timeout(LATE, kept.review(&review()))
            .await
            .expect("in time");
        assert!(
            answer
                .expect("the client that reads continues")
                .is_patched()
        );
    }
    // Answers that the client still holds do not end its connection.
    let (first, _sender, _answers) = &mut dawdlers[0];
    let ended = timeout(LATE, first).await.expect("closed in time");
    drop(ended.expect("no panic"));
    others_are_served(&webhook).await;
}
