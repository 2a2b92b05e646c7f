//! Which connections are served, how many at once, and how serving ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::harness::*;
use crate::table::{HttpRoute, NativeRoutes, Routes};
use model::{Action, ProbeKind};
use probe::verdict::{Outcome, Reason};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn a_connection_that_is_not_the_kubelets_is_reset() {
    let app = App::answering(OK).await;
    let (route, endpoint) = http_endpoint(app.address, "/", LONG);
    let world = World::new([endpoint]).await;
    let mut stranger = world.connect_as(None).await;
    // The first operation after the reset fails.
    let written = stranger.write_all(get(app.address, "/").as_bytes()).await;
    let error = match written {
        Ok(()) => read_all(&mut stranger).await.expect_err("a reset"),
        Err(error) => error,
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(world.handler.metrics.unknown_peers.get(), 1);
    assert_eq!(route.stats.counts(), (0, 0, 0));
    assert_eq!(app.seen(), []);
}

/// A TCP probe and, with `http`, an HTTP one on the same port.
fn tcp_routes(port: u16, with_http: bool) -> (Arc<crate::table::Route>, NativeRoutes) {
    let tcp = route(ProbeKind::Readiness, Action::Tcp { port }, LONG);
    let mut native = NativeRoutes {
        tcp: Some(Arc::clone(&tcp)),
        ..NativeRoutes::default()
    };
    if with_http {
        let probe = Some(route(ProbeKind::Liveness, http(port, "/"), LONG));
        let declared = HttpRoute { probe, hook: None };
        let _ = native.http.insert("/".to_owned(), declared);
    }
    (tcp, native)
}

#[tokio::test]
async fn a_connection_without_bytes_is_a_tcp_probe_and_does_not_reach_the_app() {
    for (with_http, closed) in [(false, false), (true, false), (false, true), (true, true)] {
        let app = App::answering(OK).await;
        let (tcp, native) = tcp_routes(app.address.port(), with_http);
        let world = World::new([endpoint(app.address, Routes::Native(native))]).await;
        drop(world.connect_as(Some((app.address, closed))).await);
        let verdict = verdict(&tcp).await;
        assert_eq!(
            (verdict.reason, verdict.outcome(false)),
            (Reason::Healthy, Outcome::Success)
        );
        assert_eq!(app.open.load(std::sync::atomic::Ordering::SeqCst), 0);
        assert_eq!(app.seen(), []);
    }
}

#[tokio::test]
async fn bytes_on_a_port_with_only_a_tcp_probe_are_relayed() {
    let app = App::answering(OK).await;
    let (tcp, native) = tcp_routes(app.address.port(), false);
    let world = World::new([endpoint(app.address, Routes::Native(native))]).await;
    assert_eq!(
        world
            .ask(app.address, &get(app.address, "/"))
            .await
            .expect("an answer"),
        OK
    );
    assert_ne!(app.seen()[0].0, IN_POD);
    assert_eq!(tcp.stats.counts(), (0, 0, 0));
}

#[tokio::test]
async fn a_tcp_and_an_http_probe_may_share_a_port() {
    let app = App::answering(OK).await;
    let (tcp, native) = tcp_routes(app.address.port(), true);
    let world = World::new([endpoint(app.address, Routes::Native(native))]).await;
    assert_eq!(world.status(app.address, &get(app.address, "/")).await, 200);
    assert_eq!(tcp.stats.counts(), (0, 0, 0));
    assert_eq!(app.seen()[0].0, IN_POD);
}

#[tokio::test]
async fn a_closed_connection_counts_only_as_a_tcp_probe() {
    let app = App::answering(OK).await;
    let (route, endpoint) = http_endpoint(app.address, "/", LONG);
    let world = World::new([endpoint]).await;
    let flow = Some((app.address, true));
    let mut kubelet = world.connect_as(flow).await;
    let _ = kubelet.write_all(get(app.address, "/").as_bytes()).await;
    let answer = read_all(&mut kubelet).await.unwrap_or_default();
    assert_eq!(answer, "");
    assert_eq!((route.stats.counts(), app.seen()), ((0, 0, 0), vec![]));
}

#[tokio::test]
async fn a_pod_has_a_limit_of_checks_in_flight() {
    let app = App::new(|_, _| vec![Act::Hang]).await;
    let (route, endpoint) = http_endpoint(app.address, "/", LONG);
    let bound = endpoint.pod.max_in_flight;
    let world = World::new([endpoint]).await;
    let mut waiting = Vec::new();
    for _ in 0..bound {
        let mut kubelet = world.connect(app.address).await;
        let request = get(app.address, "/");
        kubelet.write_all(request.as_bytes()).await.expect("write");
        waiting.push(kubelet);
    }
    while app.seen().len() < bound {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.status(app.address, &get(app.address, "/")).await, 503);
    assert_eq!(verdict(&route).await.reason, Reason::Overloaded);

    // When a check has ended, another one is admitted.
    drop(waiting);
    while route.stats.counts().2 < bound as u64 {
        tokio::task::yield_now().await;
    }
    let mut kubelet = world.connect(app.address).await;
    let request = get(app.address, "/");
    kubelet.write_all(request.as_bytes()).await.expect("write");
    while app.seen().len() <= bound {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_app_that_hangs_does_not_delay_probes_of_other_pods() {
    let hanging = App::new(|_, _| vec![Act::Hang]).await;
    let healthy = App::answering(OK).await;
    let (_, one) = http_endpoint(hanging.address, "/", LONG);
    let (_, other) = http_endpoint(healthy.address, "/", LONG);
    let world = World::new([one, other]).await;
    let mut kubelet = world.connect(hanging.address).await;
    let request = get(hanging.address, "/");
    kubelet.write_all(request.as_bytes()).await.expect("write");
    let request = get(healthy.address, "/");
    assert_eq!(world.status(healthy.address, &request).await, 200);
}

#[tokio::test]
async fn draining_serves_the_backlog_and_what_is_in_flight() {
    let app = App::new(|head, _| {
        let mut acts = send(OK);
        if head.starts_with("GET /slow ") {
            acts.insert(0, Act::Pause(Duration::from_millis(300)));
        }
        acts
    })
    .await;
    let (_, slow) = http_endpoint(app.address, "/slow", LONG);
    let world = World::new([slow]).await;
    let request = get(app.address, "/slow");
    let in_flight = world.in_flight(&app, &request).await;
    // These are in the backlog, or already accepted, when draining begins.
    let mut backlog = Vec::new();
    for _ in 0..3 {
        backlog.push(world.connect(app.address).await);
    }
    world.drain.send_replace(true);
    for kubelet in &mut backlog {
        kubelet.write_all(request.as_bytes()).await.expect("write");
    }
    for mut kubelet in backlog.into_iter().chain([in_flight]) {
        let answer = read_all(&mut kubelet).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        drop(kubelet);
    }
    timeout(LONG, world.serving)
        .await
        .expect("serving ends with the last connection")
        .expect("no panic");
    let late = tokio::net::TcpStream::connect(world.address).await;
    assert!(late.is_err(), "the listener is closed");
}

#[tokio::test]
async fn dropping_the_handler_ends_all_connections() {
    let app = App::new(|_, _| vec![Act::Hang]).await;
    let (_, endpoint) = http_endpoint(app.address, "/", LONG);
    let world = World::new([endpoint]).await;
    let mut kubelet = world.in_flight(&app, &get(app.address, "/")).await;
    world.serving.abort();
    assert_eq!(read_all(&mut kubelet).await.unwrap_or_default(), "");
    while app.open.load(std::sync::atomic::Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_ipv4_mapped_destination_is_served_by_the_ipv4_endpoint() {
    let app = App::answering(OK).await;
    let (_, endpoint) = http_endpoint(app.address, "/", LONG);
    let world = World::new([endpoint]).await;
    let mapped = format!("[::ffff:127.0.0.1]:{}", app.address.port());
    let mapped = mapped.parse().expect("an address");
    assert_eq!(world.status(mapped, &get(app.address, "/")).await, 200);
}

#[tokio::test]
async fn failing_accepts_are_counted_and_do_not_spin() {
    let app = App::answering(OK).await;
    let (_, endpoint) = http_endpoint(app.address, "/", LONG);
    let world = World::new([endpoint]).await;
    let mut connections = tokio::task::JoinSet::new();
    let began = tokio::time::Instant::now();
    let mut failing = false;
    for _ in 0..3 {
        let no_descriptors = Err(io::Error::from_raw_os_error(libc::EMFILE));
        failing = world
            .handler
            .accepted(no_descriptors, &world.worker, &mut connections, failing)
            .await;
    }
    assert!(failing && connections.is_empty());
    assert!(began.elapsed() >= Duration::from_millis(60));
    assert_eq!(world.handler.metrics.accept_errors.get(), 3);
    assert_eq!(world.status(app.address, &get(app.address, "/")).await, 200);
}

#[tokio::test]
async fn a_connection_needs_little_memory_before_it_is_classified() {
    let world = World::new([]).await;
    let stream = world.connect_as(None).await;
    let peer = stream.local_addr().expect("address");
    let serving = world
        .handler
        .identify(stream, peer, tokio::time::Instant::now(), &world.worker);
    // The future is copied when its task is spawned.
    let size = size_of_val(&serving);
    assert!(size <= 6 * 1024, "{size} bytes");
}
