//! HTTPS and gRPC on the app's own port are spliced end to end.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::harness::*;
use crate::metrics::fixtures::member;
use crate::table::{NativeRoutes, Route, Routes};
use model::{Action, ProbeKind, Scheme};
use probe::verdict::Reason;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn hello() -> Vec<u8> {
    client_hello("10.0.0.7")
}

/// The routes of HTTPS and gRPC probes at `port`.
fn routes(port: u16, timeout: Duration) -> (Arc<Route>, Arc<Route>, NativeRoutes) {
    let https = Action::Http {
        scheme: Scheme::Https,
        port,
        target: "/".to_owned(),
        headers: Vec::new(),
    };
    let grpc = Action::Grpc {
        port,
        service: String::new(),
    };
    let https = route(ProbeKind::Liveness, https, timeout);
    let grpc = route(ProbeKind::Readiness, grpc, timeout);
    let native = NativeRoutes {
        https: Some(Arc::clone(&https)),
        grpc: Some(Arc::clone(&grpc)),
        ..NativeRoutes::default()
    };
    (https, grpc, native)
}

#[tokio::test]
async fn declared_protocols_are_spliced_in_the_pod_and_counted_on_their_route() {
    for (hello, is_https) in [(hello(), true), (PREFACE.to_vec(), false)] {
        let (listener, address) = listening().await;
        let (https, grpc, native) = routes(address.port(), LONG);
        let world = World::new([endpoint(address, Routes::Native(native))]).await;
        let mut kubelet = world.connect(address).await;
        kubelet.write_all(&hello).await.expect("write");
        let (mut app, peer) = listener.accept().await.expect("accept");
        assert_eq!(peer.ip(), IN_POD);
        let mut bytes = vec![0; hello.len()];
        let _ = app.read_exact(&mut bytes).await.expect("read");
        assert_eq!(bytes, hello);
        app.write_all(b"answer").await.expect("write");
        drop(app);
        assert_eq!(read_all(&mut kubelet).await.expect("bytes"), "answer");
        drop(kubelet);
        // Bytes that are encrypted are not read, and those of gRPC break off here.
        let (route, other, reason) = if is_https {
            (https, grpc, Reason::Spliced)
        } else {
            (grpc, https, Reason::ConnectionClosed)
        };
        assert_eq!(verdict(&route).await.reason, reason);
        assert_eq!(other.stats.counts(), (0, 0, 0));
    }
}

#[tokio::test]
async fn a_refused_dial_is_a_reset() {
    let address = nobody();
    let (https, _, native) = routes(address.port(), LONG);
    let world = World::new([endpoint(address, Routes::Native(native))]).await;
    let mut kubelet = world.connect(address).await;
    kubelet.write_all(&hello()).await.expect("write");
    let error = read_all(&mut kubelet).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(verdict(&https).await.reason, Reason::Refused);
}

#[tokio::test]
async fn splices_count_against_the_pods_limit() {
    let (listener, address) = listening().await;
    let (https, _, native) = routes(address.port(), LONG);
    let endpoint = endpoint(address, Routes::Native(native));
    let bound = endpoint.pod.max_in_flight;
    let world = World::new([endpoint]).await;
    let mut held = Vec::new();
    for _ in 0..bound {
        let mut kubelet = world.connect(address).await;
        kubelet.write_all(&hello()).await.expect("write");
        held.push((listener.accept().await.expect("accept"), kubelet));
    }
    let mut kubelet = world.connect(address).await;
    kubelet.write_all(&hello()).await.expect("write");
    let error = read_all(&mut kubelet).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(verdict(&https).await.reason, Reason::Overloaded);
}

#[tokio::test]
async fn a_pod_that_cannot_be_dialled_from_inside_gets_its_tls_relayed() {
    let (listener, address) = listening().await;
    let (https, _, native) = routes(address.port(), LONG);
    let endpoint = endpoint_dialled(address, Routes::Native(native), Arc::new(WithoutAddress));
    let world = World::new([endpoint]).await;
    let mut kubelet = world.connect(address).await;
    let hello = hello();
    kubelet.write_all(&hello).await.expect("write");
    let (mut app, peer) = listener.accept().await.expect("accept");
    assert_ne!(peer.ip(), IN_POD);
    let mut received = vec![0; hello.len()];
    let _ = app.read_exact(&mut received).await.expect("read");
    assert_eq!(received, hello);
    assert_eq!(https.stats.counts(), (0, 0, 1));
}

#[tokio::test]
async fn a_splice_that_waits_for_its_app_ends_when_the_kubelet_hangs_up() {
    let queue = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    queue.bind(&any.into()).expect("bind");
    queue.listen(0).expect("listen");
    let address = queue.local_addr().expect("address").as_socket();
    let address = address.expect("an IP address");
    let _in_the_way = std::net::TcpStream::connect(address).expect("the queue has room for one");

    // An HTTPS hook on the probe's port has no timeout at all.
    let (https, _, native) = routes(address.port(), LONG);
    let world = World::new([endpoint(address, Routes::Native(native))]).await;
    let mut kubelet = world.connect(address).await;
    kubelet.write_all(&hello()).await.expect("write");
    drop(kubelet);
    assert_eq!(verdict(&https).await.reason, Reason::Cancelled);
}

#[tokio::test]
async fn a_reset_by_the_app_is_a_reset_for_the_kubelet() {
    let app = App::new(|_, _| vec![Act::Reset]).await;
    let (_, grpc, native) = routes(app.address.port(), LONG);
    let world = World::new([endpoint(app.address, Routes::Native(native))]).await;
    let mut kubelet = world.connect(app.address).await;
    kubelet.write_all(PREFACE).await.expect("write");
    let error = read_all(&mut kubelet).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(verdict(&grpc).await.reason, Reason::ConnectionClosed);
}

/// An app's side of a health check: SETTINGS, a head, a message with this status, and trailers with code 0.
fn health(status: u8) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    bytes.extend([0, 0, 14, 1, 4, 0, 0, 0, 1]);
    bytes.extend(b"\x88\x5f\x8b\x1d\x75\xd0\x62\x0d\x26\x3d\x4c\x4d\x65\x64");
    bytes.extend([0, 0, 7, 0, 0, 0, 0, 0, 1]);
    bytes.extend([0, 0, 0, 0, 2, 8, status]);
    bytes.extend([0, 0, 12, 1, 5, 0, 0, 0, 1]);
    bytes.extend(b"\x40\x88\x9a\xca\xc8\xb2\x12\x34\xda\x8f\x01\x30");
    bytes
}

#[tokio::test]
async fn the_answer_of_a_grpc_probe_is_its_verdict_and_passes_unchanged() {
    for (status, reason) in [(1, Reason::Healthy), (2, Reason::NotServing)] {
        let (listener, address) = listening().await;
        let (_, grpc, native) = routes(address.port(), LONG);
        let world = World::new([endpoint(address, Routes::Native(native))]).await;
        let mut kubelet = world.connect(address).await;
        kubelet.write_all(PREFACE).await.expect("write");
        let (mut app, _) = listener.accept().await.expect("accept");
        let answer = health(status);
        for piece in answer.chunks(20) {
            app.write_all(piece).await.expect("write");
            let mut received = vec![0; piece.len()];
            let _ = kubelet.read_exact(&mut received).await.expect("read");
            assert_eq!(received, piece);
        }
        // The kubelet closes the connection once it has the answer; this app does not.
        drop(kubelet);
        assert_eq!(verdict(&grpc).await.reason, reason);
    }
}

#[tokio::test]
async fn a_grpc_probe_without_an_answer_is_given_up_or_has_timed_out() {
    for (timeout, reason) in [
        (LONG, Reason::Cancelled),
        (Duration::from_millis(50), Reason::TimedOut),
    ] {
        let (listener, address) = listening().await;
        let (_, grpc, native) = routes(address.port(), timeout);
        let world = World::new([endpoint(address, Routes::Native(native))]).await;
        let mut kubelet = world.connect(address).await;
        kubelet.write_all(PREFACE).await.expect("write");
        let (mut app, _) = listener.accept().await.expect("accept");
        let half = &health(1)[..30];
        app.write_all(half).await.expect("write");
        let _ = kubelet.read_exact(&mut [0; 30]).await.expect("read");
        if timeout < LONG {
            // The kubelet's own timeout.
            tokio::time::sleep(timeout).await;
        }
        drop(kubelet);
        assert_eq!(verdict(&grpc).await.reason, reason);
    }
}

#[tokio::test]
async fn an_answer_that_is_too_long_to_be_recorded_is_unknown() {
    let (listener, address) = listening().await;
    let (_, grpc, native) = routes(address.port(), LONG);
    let world = World::new([endpoint(address, Routes::Native(native))]).await;
    let mut kubelet = world.connect(address).await;
    kubelet.write_all(PREFACE).await.expect("write");
    let (mut app, _) = listener.accept().await.expect("accept");
    pass(&mut app, &mut kubelet, vec![0; 80 * 1024]).await;
    drop(kubelet);
    assert_eq!(verdict(&grpc).await.reason, Reason::Spliced);
}

#[tokio::test]
async fn a_splice_ends_soon_after_the_kubelet_hangs_up_even_if_the_app_does_not() {
    let (listener, address) = listening().await;
    let (https, _, native) = routes(address.port(), LONG);
    let world = World::new([endpoint(address, Routes::Native(native))]).await;
    let mut kubelet = world.connect(address).await;
    kubelet.write_all(&hello()).await.expect("write");
    let (_app, _) = listener.accept().await.expect("accept");
    drop(kubelet);
    let began = Instant::now();
    assert_eq!(verdict(&https).await.reason, Reason::Spliced);
    assert!(began.elapsed() < LONG / 2);
}

/// Sends `bytes` from one end to the other.
async fn pass(from: &mut TcpStream, to: &mut TcpStream, bytes: Vec<u8>) {
    from.write_all(&bytes).await.expect("write");
    let _ = to
        .read_exact(&mut vec![0; bytes.len()])
        .await
        .expect("read");
}

/// An HTTPS hook's connection that the kubelet keeps open after the answer, with the TLS of Go's client and server as far as
/// it can be seen from outside. `answered`: whether the app has answered.
/// `timeout`: that of a probe of the same port, if there is one. `hook`: whether a hook is declared.
async fn kept_open(
    answered: bool,
    timeout: Option<Duration>,
    hook: bool,
) -> (World, TcpStream, TcpStream) {
    let (listener, address) = listening().await;
    let (https, _, mut native) = routes(address.port(), timeout.unwrap_or(LONG));
    if hook {
        let mut both = Route {
            members: vec![member(ProbeKind::PreStop, https.action.clone())],
            action: https.action.clone(),
            timeout: None,
            shorter: Vec::new(),
            mode: https.mode,
            agents: Vec::new(),
            stats: Default::default(),
        };
        if let Some(timeout) = timeout {
            both.members
                .push(member(ProbeKind::Liveness, https.action.clone()));
            both.shorter.push(timeout);
        }
        native.https = Some(Arc::new(both));
    }
    let world = World::new([endpoint(address, Routes::Native(native))]).await;
    let mut kubelet = world.connect(address).await;
    let hello = client_hello_of("10.0.0.7", &[&rustls::version::TLS12]);
    kubelet.write_all(&hello).await.expect("write");
    let (mut app, _) = listener.accept().await.expect("accept");
    let _ = app
        .read_exact(&mut vec![0; hello.len()])
        .await
        .expect("read");
    let record = |kind: u8, length: u8| {
        let mut record = vec![kind, 3, 3, 0, length];
        record.resize(5 + usize::from(length), 0);
        record
    };
    // The server's handshake, the client's (change of cipher, Finished) and its request, and the answer.
    pass(
        &mut app,
        &mut kubelet,
        [record(22, 90), record(23, 53)].concat(),
    )
    .await;
    let request = [record(20, 1), record(23, 53), record(23, 131)].concat();
    pass(&mut kubelet, &mut app, request).await;
    if answered {
        pass(&mut app, &mut kubelet, record(23, 92)).await;
    }
    (world, kubelet, app)
}

#[tokio::test]
async fn draining_closes_a_connection_that_the_kubelet_only_keeps_for_reuse() {
    for timeout in [None, Some(Duration::from_millis(300))] {
        let (world, mut kubelet, mut app) = kept_open(true, timeout, true).await;
        world.drain.send_replace(true);
        for end in [&mut kubelet, &mut app] {
            assert_eq!(read_all(end).await.expect("the end"), "");
        }
        tokio::time::timeout(LONG, world.serving)
            .await
            .expect("serving ends")
            .expect("no panic");
    }
}

#[tokio::test]
async fn draining_closes_no_connection_that_may_be_a_probe() {
    let timeout = Some(LONG);
    for hook in [false, true] {
        let (world, mut kubelet, _app) = kept_open(true, timeout, hook).await;
        world.drain.send_replace(true);
        let early = tokio::time::timeout(Duration::from_millis(500), kubelet.read_u8()).await;
        assert!(early.is_err(), "{early:?}");
    }
}

#[tokio::test]
async fn draining_waits_for_the_answer_to_a_hook_over_tls() {
    let (world, mut kubelet, mut app) = kept_open(false, None, true).await;
    world.drain.send_replace(true);
    let early = tokio::time::timeout(Duration::from_millis(500), kubelet.read_u8()).await;
    assert!(early.is_err(), "{early:?}");
    app.write_all(&[23, 3, 3, 0, 1, 0]).await.expect("write");
    assert_eq!(read_all(&mut kubelet).await.expect("the end").len(), 6);
}

#[tokio::test]
async fn undeclared_protocols_on_the_port_are_relayed_through_the_mesh() {
    let app = App::answering("HTTP/1.1 200 OK\r\n\r\n").await;
    let (https, grpc, mut native) = routes(app.address.port(), LONG);
    native.grpc = None;
    let world = World::new([endpoint(app.address, Routes::Native(native))]).await;
    for request in [
        String::from_utf8_lossy(PREFACE).into_owned(),
        get(app.address, "/"),
    ] {
        let answer = world.ask(app.address, &request).await;
        assert!(answer.is_ok(), "{answer:?}");
        assert_ne!(app.seen().pop().expect("the app was reached").0, IN_POD);
    }
    assert_eq!(https.stats.counts(), (0, 0, 0));
    assert_eq!(grpc.stats.counts(), (0, 0, 0));
}
