//! The verb with a real admin server, and without one.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::oneshot;

use super::*;
use crate::cli::EXIT_FAILURE;
use crate::observe::admin::Admin;
use crate::observe::rendering::Rendering;
use crate::observe::turns::Turns;
use support::missing::Missing;
use support::readiness::Readiness;

fn status() -> Status {
    status_view::fixtures::status()
}

fn args(socket: &Path) -> StatusArgs {
    StatusArgs {
        pod: None,
        namespace: None,
        failing: false,
        changes: false,
        advice: false,
        watch: false,
        output: Format::Table,
        admin_socket: socket.display().to_string(),
        ready: false,
        alive: false,
    }
}

/// Calls `ask` on a separate thread, like the command line, while a daemon serves.
async fn with_daemon<T: Send + 'static>(
    readiness: Readiness,
    ask: impl FnOnce(&Path) -> T + Send + 'static,
) -> T {
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = dir.path().join("admin.sock");
    let admin = Admin {
        metrics: Rendering::new(Arc::new(Registry::default())),
        readiness,
        alive: Box::new(|| Ok(())),
        status: Arc::new(status),
        explain: Box::new(|_, _| None),
        advice: Box::new(Vec::new),
        config_json: Box::new(|| "{}".to_owned()),
        turns: Turns::default(),
    };
    let bound = admin.bind(None, &socket, Missing::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(bound.serve(async {
        let _ = stopped.await;
    }));
    let answer = tokio::task::spawn_blocking(move || ask(&socket)).await;
    stop.send(()).expect("running");
    server.await.expect("no panic");
    answer.expect("no panic")
}

#[tokio::test]
async fn the_daemons_state_arrives_complete() {
    let (code, body) = with_daemon(Readiness::default(), |socket| {
        client::get(socket, "/status")
    })
    .await
    .expect("answer");
    assert_eq!(code, StatusCode::OK);
    let read: Status = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(read, status());
}

#[tokio::test]
async fn the_exit_code_shows_readiness_and_liveness() {
    let readiness = Readiness::default();
    let _guard = readiness.block("hooks");
    let (shown, ready, alive) = with_daemon(readiness, |socket| {
        let ready = StatusArgs {
            ready: true,
            ..args(socket)
        };
        let alive = StatusArgs {
            alive: true,
            ..args(socket)
        };
        (run(&args(socket)), run(&ready), run(&alive))
    })
    .await;
    assert_eq!(shown, ExitCode::SUCCESS);
    assert_eq!(ready, EXIT_FAILURE.into());
    assert_eq!(alive, ExitCode::SUCCESS);
}

#[test]
fn without_a_daemon_the_message_says_what_to_do() {
    let path = Path::new("/nonexistent/admin.sock");
    let text = client::get(path, "/status")
        .expect_err("no daemon")
        .to_string();
    assert_eq!(
        text,
        "probe-handler is not running on this node, or uses another socket: cannot connect to \
         /nonexistent/admin.sock: No such file or directory (os error 2); start it with \
         'probe-handler agent', or set --admin-socket"
    );
    assert_eq!(run(&args(path)), EXIT_FAILURE.into());
}

#[test]
fn an_answer_that_is_not_http_is_reported_as_invalid() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let other = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().expect("accept");
        let mut request = [0; 16];
        let _ = stream.read(&mut request).expect("read");
        stream.write_all(b"hello\n").expect("write");
    });
    let text = client::get(&path, "/status")
        .expect_err("no HTTP")
        .to_string();
    assert!(text.starts_with("invalid answer on "), "{text}");
    other.join().expect("no panic");
}
