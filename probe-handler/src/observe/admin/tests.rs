//! The admin server over real sockets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use http_body_util::BodyExt;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use serve::metrics::{Metrics, PREFIX};
use status_view::status::{KubeletStatus, Refusal, SourceStatus, State};

const LOCAL: Peer = Peer::Local(IpAddr::V4(Ipv4Addr::LOCALHOST));
const REMOTE: Peer = Peer::Remote(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));

struct Running {
    readiness: Readiness,
    tcp: SocketAddr,
    socket: PathBuf,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

fn status() -> Status {
    Status {
        version: "1.2.3".to_owned(),
        pid: 7,
        uptime_seconds: 1,
        started_at: String::new(),
        time: String::new(),
        state: State::Serving,
        pending: Vec::new(),
        missing: Vec::new(),
        kubelet: KubeletStatus::default(),
        hooks: Vec::new(),
        refusal: Refusal::Econnrefused,
        handler: Vec::new(),
        counters: BTreeMap::new(),
        source: SourceStatus {
            kind: "dir:/pods".to_owned(),
            problems: Vec::new(),
        },
        pods: Vec::new(),
        not_served: Vec::new(),
        settings: None,
        observed: Vec::new(),
    }
}

fn admin(readiness: Readiness) -> Admin {
    admin_and_metrics(readiness).0
}

fn admin_and_metrics(readiness: Readiness) -> (Admin, Metrics) {
    let mut registry = Registry::with_prefix(PREFIX);
    let metrics = Metrics::new(&mut registry);
    let admin = Admin {
        metrics: Rendering::new(Arc::new(registry)),
        readiness,
        alive: Box::new(|| Ok(())),
        status: Arc::new(status),
        explain: Box::new(|_, _| None),
        advice: Box::new(Vec::new),
        config_json: Box::new(|| r#"{"scope":"meshed"}"#.to_owned()),
        turns: Turns::default(),
    };
    (admin, metrics)
}

fn start() -> Running {
    start_on(Ipv4Addr::UNSPECIFIED)
}

fn start_on(ip: Ipv4Addr) -> Running {
    let dir = tempfile::tempdir().expect("tempdir");
    let readiness = Readiness::default();
    let any = SocketAddr::from((ip, 0));
    let bound = admin(readiness.clone()).bind(
        Some(any),
        &dir.path().join("admin.sock"),
        Missing::default(),
    );
    let mut tcp = bound.tcp_address().expect("TCP");
    if tcp.ip().is_unspecified() {
        tcp.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let socket = bound.socket_path().to_owned();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(bound.serve(async {
        let _ = stopped.await;
    }));
    Running {
        readiness,
        tcp,
        socket,
        stop,
        server,
        _dir: dir,
    }
}

/// Sends `request` and reads until the server closes.
async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await.expect("read");
    answer
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n")
}

impl Running {
    async fn over_tcp(&self, request: &str) -> String {
        talk(
            TcpStream::connect(self.tcp).await.expect("connect"),
            request,
        )
        .await
    }

    async fn over_unix(&self, path: &str) -> String {
        let stream = UnixStream::connect(&self.socket).await.expect("connect");
        talk(stream, &get(path)).await
    }
}

#[tokio::test]
async fn health_readiness_and_metrics_are_served_on_both_listeners() {
    let running = start();
    for path in ["/healthz", "/readyz", "/metrics"] {
        let tcp = running.over_tcp(&get(path)).await;
        let unix = running.over_unix(path).await;
        assert!(tcp.starts_with("HTTP/1.1 200 OK\r\n"), "{tcp}");
        assert!(unix.starts_with("HTTP/1.1 200 OK\r\n"), "{unix}");
    }
    assert!(
        running
            .over_unix("/healthz")
            .await
            .ends_with("\r\n\r\nok\n")
    );
}

#[tokio::test]
async fn metrics_are_open_metrics_only_for_clients_that_accept_it() {
    let running = start();
    let open_metrics =
        "GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: application/openmetrics-text\r\n\r\n";
    let metrics = running.over_tcp(open_metrics).await;
    assert!(
        metrics.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{metrics}"
    );
    assert!(
        metrics.contains("\n# TYPE probe_handler_build info\n"),
        "{metrics}"
    );
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    for metrics in [
        running.over_tcp(&get("/metrics")).await,
        running.over_unix("/metrics").await,
    ] {
        assert!(
            metrics.contains("content-type: text/plain; version=0.0.4"),
            "{metrics}"
        );
        assert!(
            metrics.contains("\n# TYPE probe_handler_build_info gauge\n"),
            "{metrics}"
        );
        assert!(!metrics.contains("# EOF"), "{metrics}");
    }
}

#[tokio::test]
async fn readyz_lists_pending_conditions_and_healthz_ignores_them() {
    let running = start();
    let guard = running.readiness.block("kubelet");
    let answer = running.over_tcp(&get("/readyz")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.ends_with("kubelet\n"), "{answer}");
    assert!(running.over_tcp(&get("/healthz")).await.contains(" 200 OK"));
    drop(guard);
    assert!(running.over_tcp(&get("/readyz")).await.contains(" 200 OK"));
    running.readiness.drain();
    let answer = running.over_tcp(&get("/readyz")).await;
    assert!(answer.contains(" 503 ") && answer.ends_with("draining\n"));
}

#[tokio::test]
async fn state_and_configuration_are_served_to_local_clients_only() {
    let running = start();
    for answer in [
        running.over_unix("/status").await,
        running.over_tcp(&get("/debug/status")).await,
    ] {
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let read: Status = serde_json::from_str(body).expect("JSON");
        assert_eq!(read, status());
    }
    for answer in [
        running.over_unix("/debug/config").await,
        running.over_tcp(&get("/debug/config")).await,
    ] {
        assert!(answer.ends_with(r#"{"scope":"meshed"}"#), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_with_too_many_requests_gets_429_and_others_are_served() {
    let admin = admin(Readiness::default());
    let ask = async |peer| {
        admin
            .respond(&Method::GET, "/metrics", Format::Text, peer)
            .await
            .status()
    };
    let flood = std::iter::repeat_with(|| ask(REMOTE)).take(100);
    let answers = futures_util::future::join_all(flood).await;
    let refused = answers
        .iter()
        .filter(|status| **status == StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.count() > 50, "{answers:?}");
    assert_eq!(answers[0], StatusCode::OK);
    let begun = tokio::time::Instant::now();
    for peer in [LOCAL, Peer::Root] {
        assert_eq!(ask(peer).await, StatusCode::OK);
    }
    assert!(begun.elapsed().is_zero(), "they waited");
}

#[tokio::test]
async fn remote_clients_get_no_state_of_pods() {
    let admin = admin(Readiness::default());
    for path in ["/status", "/advice", "/debug/status", "/debug/config"] {
        let response = admin
            .respond(&Method::GET, path, Format::Text, REMOTE)
            .await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path}");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        let response = admin
            .respond(&Method::GET, path, Format::Text, REMOTE)
            .await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn root_gets_current_metrics_and_others_those_of_the_last_second() {
    let (admin, metrics) = admin_and_metrics(Readiness::default());
    let shown = async |peer| {
        let response = admin
            .respond(&Method::GET, "/metrics", Format::Text, peer)
            .await;
        let body = response.into_body().collect().await.expect("a body");
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        text.contains("probe_handler_accepted_total 1\n")
    };
    assert!(!shown(REMOTE).await);
    let _ = metrics.accepted.inc();
    assert!(!shown(REMOTE).await && !shown(LOCAL).await);
    assert!(shown(Peer::Root).await);
    assert!(shown(REMOTE).await, "the text that root was given is newer");
    let _ = metrics.accepted.inc();
    assert!(shown(LOCAL).await);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!shown(LOCAL).await);
}

#[test]
fn a_mapped_loopback_address_is_loopback_and_others_are_not() {
    for (address, expected) in [
        ("127.0.0.1", true),
        ("127.9.9.9", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("10.0.0.1", false),
        ("::ffff:10.0.0.1", false),
        ("fd00::1", false),
    ] {
        let address: IpAddr = address.parse().expect("address");
        assert_eq!(
            matches!(Peer::from(address), Peer::Local(_)),
            expected,
            "{address}"
        );
    }
}

#[tokio::test]
async fn an_unknown_path_is_404_and_another_method_than_get_is_405() {
    let running = start();
    let answer = running.over_tcp(&get("/debug/pprof")).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let post = "POST /healthz HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n";
    let answer = running.over_tcp(post).await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("allow: GET\r\n"), "{answer}");
    let answer = running.over_tcp("nonsense\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn silent_clients_do_not_keep_others_from_connecting() {
    let running = start();
    let mut silent = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(running.tcp).await.expect("connect");
        stream.write_all(b"GET /heal").await.expect("write");
        silent.push(stream);
    }
    assert!(running.over_tcp(&get("/healthz")).await.contains(" 200 OK"));
    // The oldest connection was closed long before its own deadline; the newest was not.
    let mut byte = [0];
    let closed = tokio::time::timeout(HEADER_TIMEOUT / 2, silent[0].read(&mut byte)).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    let newest = silent[2 * MAX_CONNECTIONS - 1].try_read(&mut byte);
    let open = matches!(&newest, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    assert!(open, "{newest:?}");
}

#[tokio::test(start_paused = true)]
async fn the_connection_of_a_client_that_never_finishes_its_head_is_closed() {
    let (client, server) = tokio::io::duplex(1024);
    let admin = Arc::new(admin(Readiness::default()));
    let serving = tokio::spawn(serve_connection(admin, server, LOCAL));
    let (mut reader, mut writer) = tokio::io::split(client);
    writer.write_all(b"GET /healthz HTT").await.expect("write");
    let started = tokio::time::Instant::now();
    let mut answer = Vec::new();
    let _ = reader.read_to_end(&mut answer).await.expect("closed");
    serving.await.expect("no panic");
    assert!(started.elapsed() <= HEADER_TIMEOUT + Duration::from_secs(1));
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test(start_paused = true)]
async fn the_connection_of_a_client_that_never_reads_its_answer_is_closed() {
    // A pipe of one byte: the answer does not fit.
    let (mut client, server) = tokio::io::duplex(1);
    let admin = Arc::new(admin(Readiness::default()));
    let serving = tokio::spawn(serve_connection(admin, server, LOCAL));
    client
        .write_all(get("/healthz").as_bytes())
        .await
        .expect("write");
    let started = tokio::time::Instant::now();
    serving.await.expect("no panic");
    assert_eq!(started.elapsed().as_secs(), CONNECTION_TIMEOUT.as_secs());
}

#[tokio::test]
async fn two_daemons_share_the_port_but_not_another_programs() {
    let running = start();
    let dir = tempfile::tempdir().expect("tempdir");
    let shared = SocketAddr::from((Ipv4Addr::UNSPECIFIED, running.tcp.port()));
    let missing = Missing::default();
    let socket = dir.path().join("second.sock");
    let second = admin(Readiness::default()).bind(Some(shared), &socket, missing.clone());
    assert_eq!(second.tcp_address(), Some(shared));
    assert!(missing.parts().is_empty());

    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = other.local_addr().expect("address");
    let socket = dir.path().join("third.sock");
    let third = admin(Readiness::default()).bind(Some(taken), &socket, missing.clone());
    assert_eq!(third.tcp_address(), None);
    let [part] = &missing.parts()[..] else {
        panic!("{missing:?}");
    };
    assert_eq!(part.part, "admin port");
    assert!(part.why.contains(&taken.to_string()), "{part:?}");
    assert!(part.why.contains("--admin-addr"), "{part:?}");
}

#[tokio::test]
async fn a_newer_daemon_takes_the_port_over_once_it_is_ready() {
    let running = start();
    let dir = tempfile::tempdir().expect("tempdir");
    let missing = Missing::default();
    let readiness = Readiness::default();
    let guard = readiness.block("kubelet");
    let mut newer = admin(readiness);
    newer.config_json = Box::new(|| "newer".to_owned());
    let newer = newer.bind(
        Some(running.tcp),
        &dir.path().join("newer.sock"),
        missing.clone(),
    );
    assert_eq!(newer.tcp_address(), None);
    assert!(missing.parts().is_empty(), "{missing:?}");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(newer.serve(async {
        let _ = stopped.await;
    }));
    let is_newer = async || {
        let answer = running.over_tcp(&get("/debug/config")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer.ends_with("newer")
    };
    for _ in 0..20 {
        assert!(!is_newer().await, "it is not ready");
    }
    drop(guard);
    while !is_newer().await {}
    for _ in 0..50 {
        assert!(is_newer().await, "the older one answers too");
    }
    stop.send(()).expect("running");
    server.await.expect("no panic");
    for _ in 0..20 {
        assert!(!is_newer().await, "it has ended");
    }
}

/// Sends a request over the Unix socket until it is answered.
async fn ask_at_last(socket: &std::path::Path) -> String {
    loop {
        if let Ok(mut stream) = UnixStream::connect(socket).await {
            let request = get("/healthz");
            stream.write_all(request.as_bytes()).await.expect("asked");
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await.expect("answered");
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_occupied_address_or_socket_is_used_once_it_is_free() {
    let dir = tempfile::tempdir().expect("tempdir");
    // A directory that can't be created.
    let below = dir.path().join("file");
    std::fs::write(&below, "").expect("written");
    let socket = below.join("admin.sock");
    let other = std::net::TcpListener::bind("127.0.0.4:0").expect("bind");
    let taken = other.local_addr().expect("address");
    let missing = Missing::default();
    let bound = admin(Readiness::default()).bind(Some(taken), &socket, missing.clone());
    let parts: Vec<String> = missing.parts().into_iter().map(|part| part.part).collect();
    assert_eq!(parts, ["admin port", "admin socket"]);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(bound.serve(async {
        let _ = stopped.await;
    }));
    drop(other);
    std::fs::remove_file(&below).expect("removed");
    let answer = ask_at_last(&socket).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let _connected = TcpStream::connect(taken).await.expect("it listens");
    assert!(missing.parts().is_empty(), "{missing:?}");
    stop.send(()).expect("running");
    server.await.expect("no panic");
    assert!(!socket.exists());
}

#[tokio::test]
async fn it_ends_even_if_it_can_listen_nowhere() {
    let missing = Missing::default();
    let nowhere = std::path::Path::new("/proc/none/admin.sock");
    let bound = admin(Readiness::default()).bind(None, nowhere, missing);
    bound.serve(async {}).await;
}

#[tokio::test]
async fn shutdown_finishes_and_removes_the_socket() {
    // On a separate address, so that no other test uses the port after it is free.
    let running = start_on(Ipv4Addr::new(127, 0, 0, 3));
    assert!(running.socket.exists());
    running.stop.send(()).expect("running");
    running.server.await.expect("no panic");
    assert!(!running.socket.exists());
    assert!(TcpStream::connect(running.tcp).await.is_err());
}
