//! Lifecycle hooks: any status is success to the kubelet, only a transport error is failure.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::harness::*;
use crate::table::{HttpRoute, NativeRoutes, Routes};
use model::{Action, ProbeKind};
use probe::verdict::{Outcome, Reason};

/// The kubelet's hook client keeps connections alive.
fn hook_get(address: std::net::SocketAddr, target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-lifecycle/1.36\r\n\
         Accept-Encoding: gzip\r\n\r\n"
    )
}

/// Runs a preStop hook of `/stop` at `address`: the answer, and the verdict's reason and outcome.
async fn stop(address: std::net::SocketAddr) -> (io::Result<String>, Reason, Outcome) {
    let hook = route(ProbeKind::PreStop, http(address.port(), "/stop"), LONG);
    let declared = HttpRoute {
        probe: None,
        hook: Some(Arc::clone(&hook)),
    };
    let native = NativeRoutes {
        http: HashMap::from([("/stop".to_owned(), declared)]),
        ..NativeRoutes::default()
    };
    let world = World::new([endpoint(address, Routes::Native(native))]).await;
    let answer = world.ask(address, &hook_get(address, "/stop")).await;
    let verdict = verdict(&hook).await;
    (answer, verdict.reason, verdict.outcome(true))
}

#[tokio::test]
async fn any_status_of_the_app_reaches_the_kubelet() {
    for status in [200, 404, 500, 503] {
        let app = App::answering(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n")).await;
        let (answer, _, outcome) = stop(app.address).await;
        let answer = answer.expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")));
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        assert_eq!(outcome, Outcome::Success);
    }
}

#[tokio::test]
async fn the_body_of_a_hook_does_not_matter() {
    let app = App::answering("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut").await;
    let (answer, reason, _) = stop(app.address).await;
    assert!(answer.expect("an answer").starts_with("HTTP/1.1 200 OK"));
    assert_eq!(reason, Reason::Healthy);
}

#[tokio::test]
async fn a_long_body_of_a_hook_is_not_awaited() {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\ncut",
        10 * 1024 + 1
    );
    let app = App::new(move |_, _| vec![Act::Send(head.clone()), Act::Hang]).await;
    let (answer, reason, _) = stop(app.address).await;
    assert!(answer.expect("an answer").starts_with("HTTP/1.1 200 OK"));
    assert_eq!(reason, Reason::Healthy);
}

#[tokio::test]
async fn an_app_that_cannot_be_reached_is_a_transport_error() {
    let (answer, reason, outcome) = stop(nobody()).await;
    let error = answer.expect_err("a reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!((reason, outcome), (Reason::Refused, Outcome::Failure));

    let app = App::new(|_, _| vec![Act::Reset]).await;
    let (answer, reason, outcome) = stop(app.address).await;
    let error = answer.expect_err("a reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(
        (reason, outcome),
        (Reason::ConnectionClosed, Outcome::Failure)
    );
}

#[tokio::test]
async fn a_hook_has_no_timeout_but_ends_when_the_kubelet_hangs_up() {
    let app = App::new(|_, _| vec![Act::Hang]).await;
    let hook = route(ProbeKind::PreStop, http(app.address.port(), "/stop"), LONG);
    let declared = HttpRoute {
        probe: None,
        hook: Some(Arc::clone(&hook)),
    };
    let native = NativeRoutes {
        http: HashMap::from([("/stop".to_owned(), declared)]),
        ..NativeRoutes::default()
    };
    let world = World::new([endpoint(app.address, Routes::Native(native))]).await;
    let kubelet = world.in_flight(&app, &hook_get(app.address, "/stop")).await;
    // If there were a timer, it would expire now.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3600)).await;
    tokio::time::resume();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(hook.stats.last().is_none());
    drop(kubelet);
    assert_eq!(verdict(&hook).await.reason, Reason::Cancelled);
}

#[tokio::test]
async fn the_user_agent_distinguishes_a_hook_from_a_probe_of_the_same_target() {
    let app = App::answering("HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n").await;
    let action = || http(app.address.port(), "/");
    let probe = route(ProbeKind::Liveness, action(), LONG);
    let hook = route(ProbeKind::PostStart, action(), LONG);
    let declared = HttpRoute {
        probe: Some(Arc::clone(&probe)),
        hook: Some(Arc::clone(&hook)),
    };
    let native = NativeRoutes {
        http: HashMap::from([("/".to_owned(), declared)]),
        ..NativeRoutes::default()
    };
    let world = World::new([endpoint(app.address, Routes::Native(native))]).await;
    let address = app.address;
    assert_eq!(world.status(address, &get(address, "/")).await, 500);
    assert_eq!(probe.stats.counts(), (0, 1, 0));
    assert_eq!(world.status(address, &hook_get(address, "/")).await, 500);
    assert_eq!(hook.stats.counts(), (1, 0, 0));
    assert_eq!(probe.stats.counts(), (0, 1, 0));
}

#[tokio::test]
async fn a_rewritten_tcp_hook_is_a_status_or_a_reset() {
    let app = App::answering("").await;
    let agent = nobody();
    for (address, reached) in [(app.address, true), (nobody(), false)] {
        let port = address.port();
        let hook = route(ProbeKind::PostStart, Action::Tcp { port }, LONG);
        let path = "/app-lifecycle/app/poststartz";
        let paths = HashMap::from([(path.to_owned(), Arc::clone(&hook))]);
        let world = World::new([endpoint(agent, Routes::Rewritten(paths))]).await;
        let answer = world.ask(agent, &hook_get(agent, path)).await;
        assert_eq!(answer.is_ok(), reached, "{answer:?}");
    }
}
