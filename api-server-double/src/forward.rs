//! `pods/portforward` over a WebSocket, as the kubelet serves it behind the API server (kubernetes
//! staging/src/k8s.io/kubelet/pkg/cri/streaming/portforward/websocket.go, version 4 of the channels): each port has a channel for
//! data and one for an error, and each message begins with the number of its channel. The first message on each channel is the
//! port, little-endian. When the connection in the pod ends, the WebSocket is closed.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::answer::{full, status};
use super::{Asked, Body, Shared};

/// The subresource.
pub(super) const RESOURCE: &str = "pods/portforward";
/// The only binary version of the channels that the kubelet supports.
const PROTOCOL: &str = "v4.channel.k8s.io";
/// Channels of the one port.
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Maximum size of a message, as in Go's copies.
const CHUNK: usize = 32 * 1024;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Accepts the WebSocket and forwards on it. Only one port is supported.
pub(super) fn begin(
    shared: &Shared,
    asked: &Asked,
    headers: &HeaderMap,
    upgrade: Option<OnUpgrade>,
) -> Response<Body> {
    let name = asked.name.clone().unwrap_or_default();
    let namespace = asked.namespace.clone().unwrap_or_default();
    let key = ("pods".to_owned(), namespace.clone(), name.clone());
    if !shared.state.lock().objects.contains_key(&key) {
        return status(404, "NotFound", &format!("pods \"{name}\" not found"));
    }
    let text = |name| {
        let value = headers.get(name).map(HeaderValue::to_str);
        value.and_then(Result::ok).unwrap_or_default()
    };
    let Some(upgrade) = upgrade.filter(|_| text(header::UPGRADE) == "websocket") else {
        return status(400, "BadRequest", "Upgrade request required");
    };
    let mut offered = text(header::SEC_WEBSOCKET_PROTOCOL).split(',');
    if !offered.any(|protocol| protocol.trim() == PROTOCOL) {
        return status(403, "Forbidden", "no protocol that both sides have");
    }
    let port: u16 = asked.param("ports").parse().expect("one port");
    let target = shared
        .state
        .lock()
        .forwards
        .get(&(namespace, name, port))
        .copied();
    let accept = derive_accept_key(text(header::SEC_WEBSOCKET_KEY).as_bytes());
    drop(tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let stream = TokioIo::new(upgraded);
            let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
            // Errors are expected: the client ends the connection.
            let _ = forward(socket, port, target).await;
        }
    }));
    let mut response = Response::new(full(String::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = HeaderValue::from_str(&accept).expect("base64");
    for (name, value) in [
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
        (
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(PROTOCOL),
        ),
    ] {
        let _ = response.headers_mut().insert(name, value);
    }
    response
}

async fn forward(mut socket: Socket, port: u16, target: Option<SocketAddr>) -> Result<(), Error> {
    for channel in [DATA, ERROR] {
        socket.send(message(channel, &port.to_le_bytes())).await?;
    }
    let dialled = match target {
        Some(target) => TcpStream::connect(target).await,
        None => Err(io::ErrorKind::ConnectionRefused.into()),
    };
    match dialled {
        Ok(stream) => copy(&mut socket, stream).await?,
        Err(error) => {
            // As Go writes it.
            let error = match error.kind() {
                io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
                _ => error.to_string(),
            };
            let text = format!(
                "error forwarding port {port} to pod 0123, uid : failed to execute portforward in network namespace \
                 \"host\": failed to connect to localhost:{port} inside namespace \"0123\", IPv4: dial tcp4 \
                 127.0.0.1:{port}: {error}"
            );
            socket.send(message(ERROR, text.as_bytes())).await?;
        }
    }
    socket.close(None).await
}

/// Copies both ways until the pod's side ends.
async fn copy(socket: &mut Socket, mut stream: TcpStream) -> Result<(), Error> {
    let mut chunk = vec![0; CHUNK];
    loop {
        tokio::select! {
            read = stream.read(&mut chunk) => match read? {
                0 => return Ok(()),
                size => socket.send(message(DATA, &chunk[..size])).await?,
            },
            received = socket.next() => match received {
                Some(Ok(Message::Binary(bytes))) if bytes.first() == Some(&DATA) => {
                    stream.write_all(&bytes[1..]).await?;
                }
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
            },
        }
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let framed: Vec<u8> = [&[channel], bytes].concat();
    Message::Binary(Bytes::from(framed))
}

/// The log of a container, if the test has set one.
pub(super) fn log(shared: &Arc<Shared>, asked: &Asked) -> Response<Body> {
    let name = asked.name.clone().unwrap_or_default();
    let namespace = asked.namespace.clone().unwrap_or_default();
    let log = shared
        .state
        .lock()
        .logs
        .get(&(namespace, name.clone()))
        .cloned();
    match log {
        Some(log) => Response::new(full(log)),
        None => status(404, "NotFound", &format!("pods \"{name}\" not found")),
    }
}
