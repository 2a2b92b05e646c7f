//! HTTP probes on the app's own port.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::harness::*;
use probe::verdict::{Outcome, Reason};

const SHORT: Duration = Duration::from_millis(200);

/// The result of a probe, with the timeout `patience`, of an app that answers with `acts`.
async fn outcome(acts: Vec<Act>, patience: Duration) -> (u16, Reason) {
    let app = App::new(move |_, _| acts.clone()).await;
    probe(&app, patience).await
}

#[tokio::test]
async fn every_status_is_passed_on_and_nothing_else() {
    for status in (200..600).step_by(7).chain([204, 304, 404, 500, 503, 599]) {
        let app = App::answering(format!(
            "HTTP/1.1 {status} Some\r\nX-App: secret\r\nContent-Length: 0\r\n\r\n"
        ))
        .await;
        let (route, endpoint) = http_endpoint(app.address, "/", LONG);
        let world = World::new([endpoint]).await;
        let answer = world
            .ask(app.address, &get(app.address, "/"))
            .await
            .expect("an answer");
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer:?}"
        );
        assert!(answer.ends_with("\r\n\r\n") && !answer.contains("secret"));
        let reason = if status < 400 {
            Reason::Healthy
        } else {
            Reason::HttpStatus
        };
        assert_eq!(verdict(&route).await.reason, reason, "{status}");
    }
}

#[tokio::test]
async fn the_kubelets_request_reaches_the_app_byte_for_byte_from_inside_the_pod() {
    let app = App::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let (_, endpoint) = http_endpoint(app.address, "/a?b=c&d", LONG);
    let world = World::new([endpoint]).await;
    let request = "GET /a?b=c&d HTTP/1.1\r\nhost: Custom.example\r\nX-CaSe:  kept \r\n\r\n";
    assert_eq!(world.status(app.address, request).await, 200);
    assert_eq!(app.seen(), [(IN_POD, request.to_owned())]);
}

#[tokio::test]
async fn answers_that_the_kubelet_accepts_are_healthy() {
    let large = format!("X: {}\r\n", "x".repeat(1000)).repeat(15);
    for answer in [
        send("HTTP/1.0 200 OK\r\n\r\nuntil close"),
        send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        send(format!(
            "HTTP/1.1 200 OK\r\n{large}Content-Length: 0\r\n\r\n"
        )),
        send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        // Keeps the connection open: the framing marks the end.
        vec![
            Act::Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()),
            Act::Hang,
        ],
        // An endless body: no more is read than the kubelet reads.
        vec![
            Act::Send("HTTP/1.1 200 OK\r\n\r\n".to_owned()),
            Act::Repeat("endless"),
        ],
        // Slow, but in time.
        vec![
            Act::Send("HTTP/1.1 200".to_owned()),
            Act::Pause(SHORT / 4),
            Act::Send(" OK\r\nContent-Length: 2\r\n\r\no".to_owned()),
            Act::Pause(SHORT / 4),
            Act::Send("k".to_owned()),
        ],
    ] {
        assert_eq!(outcome(answer, LONG).await, (200, Reason::Healthy));
    }
}

#[tokio::test]
async fn answers_that_the_kubelet_rejects_fail() {
    for (answer, reason) in [
        (vec![], Reason::ConnectionClosed),
        (vec![Act::Reset], Reason::ConnectionClosed),
        (send("HTTP/1.1 200 OK\r\n"), Reason::ConnectionClosed),
        (send("SSH-2.0-OpenSSH_9.6\r\n"), Reason::BadResponse),
        (
            send("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
            Reason::BadResponse,
        ),
        (
            vec![
                Act::Send("HTTP/1.1 200 OK\r\n".to_owned()),
                Act::Repeat("X: endless\r\n"),
            ],
            Reason::BadResponse,
        ),
    ] {
        assert_eq!(outcome(answer, LONG).await, (500, reason));
    }
}

#[tokio::test]
async fn the_kubelet_gets_an_incomplete_body_if_the_apps_breaks_off_or_stalls() {
    let head = |rest: &str| format!("HTTP/1.1 503 Some\r\n{rest}");
    for (answer, time) in [
        (send(head("Content-Length: 5\r\n\r\ncut")), LONG),
        (
            send(head("Transfer-Encoding: chunked\r\n\r\n5\r\ncut")),
            LONG,
        ),
        (
            send(head("Transfer-Encoding: chunked\r\n\r\nno chunk\r\n")),
            LONG,
        ),
        (
            vec![
                Act::Send(head("\r\nuntil the connection ends")),
                Act::Pause(SHORT / 4),
                Act::Reset,
            ],
            LONG,
        ),
        // For example a stream of events.
        (
            vec![Act::Send(head("Content-Length: 5\r\n\r\nslow")), Act::Hang],
            SHORT,
        ),
    ] {
        let app = App::new(move |_, _| answer.clone()).await;
        let (route, endpoint) = http_endpoint(app.address, "/", time);
        let world = World::new([endpoint]).await;
        let answer = world.ask(app.address, &get(app.address, "/")).await;
        // Go's client reads the end of the stream where the body should be: io.ErrUnexpectedEOF.
        assert_eq!(
            answer.expect("an answer"),
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 1\r\nConnection: close\r\n\r\n"
        );
        let verdict = verdict(&route).await;
        assert_eq!(verdict.reason, Reason::BodyIncomplete, "{verdict:?}");
        assert_eq!(verdict.outcome(false), Outcome::Unknown);
    }
}

#[tokio::test]
async fn a_slow_app_has_the_probes_timeout_less_a_margin() {
    for slow in [
        vec![Act::Hang],
        vec![Act::Send("HTTP/1.1 200 OK\r\n".to_owned()), Act::Hang],
    ] {
        let began = tokio::time::Instant::now();
        assert_eq!(outcome(slow, SHORT).await, (504, Reason::TimedOut));
        assert!(began.elapsed() >= SHORT - Duration::from_millis(6));
    }
}

#[tokio::test]
async fn a_port_on_which_nothing_listens_is_refused() {
    let address = nobody();
    let (route, endpoint) = http_endpoint(address, "/", LONG);
    let world = World::new([endpoint]).await;
    assert_eq!(world.status(address, &get(address, "/")).await, 500);
    assert_eq!(verdict(&route).await.reason, Reason::Refused);
}

#[tokio::test]
async fn when_the_kubelet_hangs_up_the_check_ends() {
    let app = App::new(|_, _| vec![Act::Hang]).await;
    let (route, endpoint) = http_endpoint(app.address, "/", LONG);
    let world = World::new([endpoint]).await;
    let kubelet = world.in_flight(&app, &get(app.address, "/")).await;
    drop(kubelet);
    assert_eq!(verdict(&route).await.reason, Reason::Cancelled);
    while app.open.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte() {
    let app = App::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let (_, endpoint) = http_endpoint(app.address, "/", LONG);
    let world = World::new([endpoint]).await;
    let mut kubelet = world.connect(app.address).await;
    kubelet.set_nodelay(true).expect("nodelay");
    for byte in get(app.address, "/").bytes() {
        kubelet.write_all(&[byte]).await.expect("write");
        tokio::task::yield_now().await;
    }
    let answer = read_all(&mut kubelet).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

/// The result of a probe through redirects, and the request heads. `next`: the Location for a request's target; `None`: 204.
async fn redirected(
    next: impl Fn(&str, u16) -> Option<String> + Send + Sync + 'static,
) -> ((u16, Reason), Vec<String>) {
    let app = App::new(move |head, address| {
        let target = head.split(' ').nth(1).unwrap_or_default();
        send(match next(target, address.port()) {
            Some(location) => format!("HTTP/1.1 302 F\r\nLocation: {location}\r\n\r\nbody"),
            None => "HTTP/1.1 204 N\r\n\r\n".to_owned(),
        })
    })
    .await;
    let result = probe(&app, LONG).await;
    let seen = app.seen();
    assert!(seen.iter().all(|(peer, _)| *peer == IN_POD));
    (result, seen.into_iter().map(|(_, head)| head).collect())
}

#[tokio::test]
async fn redirects_within_the_pod_are_followed_inside_the_pod() {
    let (result, heads) =
        redirected(|target, _| (target == "/").then(|| "/there?x=1#y".to_owned())).await;
    assert_eq!(result, (204, Reason::Healthy));
    let [first, second] = &heads[..] else {
        panic!("{heads:?}")
    };
    let referer = format!(
        "http://{}/",
        first
            .split("Host: ")
            .nth(1)
            .and_then(|rest| rest.split('\r').next())
            .expect("a host")
    );
    let expect = first
        .replace("GET / ", "GET /there?x=1 ")
        .replace("\r\n\r\n", &format!("\r\nReferer: {referer}\r\n\r\n"));
    assert_eq!(*second, expect);
}

#[tokio::test]
async fn a_redirect_to_another_port_of_the_pod_is_followed() {
    let other = App::answering("HTTP/1.1 418 Tea\r\n\r\n").await;
    let location = format!("http://{}/x", other.address);
    let (result, _) = redirected(move |_, _| Some(location.clone())).await;
    assert_eq!(result, (418, Reason::HttpStatus));
    assert_eq!(other.seen().len(), 1);
}

#[tokio::test]
async fn a_redirect_to_another_host_is_the_answer_and_not_followed() {
    let (result, heads) = redirected(|_, port| Some(format!("http://127.0.0.2:{port}/"))).await;
    assert_eq!((result, heads.len()), ((302, Reason::Healthy), 1));
}

#[tokio::test]
async fn a_redirect_loop_stops_where_the_kubelet_stops() {
    let (result, heads) = redirected(|_, _| Some("/".to_owned())).await;
    assert_eq!((result, heads.len()), ((500, Reason::TooManyRedirects), 10));
}

#[tokio::test]
async fn other_3xx_are_passed_on() {
    for head in [
        "HTTP/1.1 302 F\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 304 N\r\nLocation: /x\r\n\r\n",
        "HTTP/1.1 300 M\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
    ] {
        let app = App::answering(head).await;
        let (status, reason) = probe(&app, LONG).await;
        assert_eq!(format!("HTTP/1.1 {status}"), head[..12]);
        assert_eq!((reason, app.seen().len()), (Reason::Healthy, 1));
    }
}

#[tokio::test]
async fn a_redirect_that_cannot_be_followed_fails() {
    for (location, reason) in [
        ("ftp://127.0.0.1/", Reason::BadResponse),
        ("http://[", Reason::BadResponse),
    ] {
        let (result, _) = redirected(move |_, _| Some(location.to_owned())).await;
        assert_eq!(result, (500, reason), "{location}");
    }
    let nobody = nobody();
    let (result, _) = redirected(move |_, _| Some(format!("http://{nobody}/"))).await;
    assert_eq!(result, (500, Reason::Refused));
}
