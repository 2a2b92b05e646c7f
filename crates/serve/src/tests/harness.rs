//! Stand-ins for a kubelet and an app, with a handler between them.
//!
//! The in-pod dial comes from 127.0.0.6, a relay from 127.0.0.1, so the app's peer address shows which of the
//! two a connection is.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::Handler;
use crate::cost::PodCost;
use crate::flows::{AcceptedFlow, ConnectionId, Flows};
use crate::metrics::Metrics;
use crate::pulse::Pulse;
use crate::reserve::Reserve;
use crate::saved_syn;
use crate::slow_lane::SlowLane;
use crate::table::{
    Endpoint, EndpointTable, HttpRoute, NativeRoutes, Route, RouteStats, Routes, ServedPod,
};
use crate::worker::Worker;
use model::{Action, Mesh, PodId, ProbeKind, ProbeMode, Scheme};
use probe::dial::Dial;
use probe::verdict::{Reason, Verdict};

/// The source address of the in-pod dial.
pub(super) const IN_POD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));

/// A timeout that these tests reach only if something hangs.
pub(super) const LONG: Duration = Duration::from_secs(20);

pub(super) struct InPod;

impl Dial for InPod {
    fn socket(&self, _to: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        socket.bind(&SocketAddr::new(IN_POD, 0).into())?;
        // The handler must clear this: it would make close() block.
        socket.set_linger(Some(Duration::from_secs(1)))?;
        Ok(socket)
    }
}

#[derive(Default)]
struct FakeFlows(Mutex<HashMap<SocketAddr, AcceptedFlow>>);

impl Flows for FakeFlows {
    fn take(&self, connection: ConnectionId) -> Option<AcceptedFlow> {
        self.0.lock().remove(&connection.peer)
    }
}

struct NoPulse;

impl Pulse for NoPulse {
    fn beat(&self) {}

    fn live(&self) {}

    fn stop(&self) {}
}

/// A running handler.
pub(super) struct World {
    pub(super) handler: Arc<Handler>,
    pub(super) address: SocketAddr,
    pub(super) drain: watch::Sender<bool>,
    pub(super) serving: JoinHandle<()>,
    flows: Arc<FakeFlows>,
    pub(super) worker: Arc<Worker>,
    pub(super) excluded: Arc<Mutex<Vec<PodId>>>,
    _turns: watch::Sender<usize>,
}

impl World {
    pub(super) async fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let flows = Arc::new(FakeFlows::default());
        let excluded: Arc<Mutex<Vec<PodId>>> = Arc::default();
        let (slow, slow_connections) = SlowLane::new();
        let table = Arc::new(EndpointTable::default());
        for endpoint in endpoints {
            table.insert(Arc::new(endpoint));
        }
        let drain = watch::Sender::new(false);
        let handler = Arc::new(Handler {
            flows: Arc::clone(&flows) as Arc<dyn Flows>,
            table,
            metrics: Arc::new(Metrics::new(&mut Registry::default())),
            shared_process: Arc::default(),
            reserve: Arc::new(Reserve::new(Arc::new(NoPulse))),
            slow,
            exclude: Box::new({
                let excluded = Arc::clone(&excluded);
                move |pod| excluded.lock().push(pod.clone())
            }),
            drain: drain.clone(),
        });
        let (turns, turn) = watch::channel(0);
        let worker = Arc::new(Worker::new("handler", 0, turn));
        // The lane runs on the test's only thread.
        let lane = slow_connections.run(Arc::downgrade(&handler), Arc::clone(&worker));
        let _lane = tokio::spawn(lane);
        let (listener, address) = listening().await;
        saved_syn::keep(&listener).expect("kept");
        let listener = listener.into_std().expect("a listener");
        let serving = tokio::spawn(Arc::clone(&handler).serve(Arc::clone(&worker), listener));
        Self {
            handler,
            address,
            drain,
            serving,
            flows,
            worker,
            excluded,
            _turns: turns,
        }
    }

    /// Connects as the kubelet to `original`.
    pub(super) async fn connect(&self, original: SocketAddr) -> TcpStream {
        self.connect_as(Some((original, false))).await
    }

    /// Sends `request` to the app's endpoint as the kubelet, and returns once the app has received a request.
    pub(super) async fn in_flight(&self, app: &App, request: &str) -> TcpStream {
        let mut kubelet = self.connect(app.address).await;
        kubelet.write_all(request.as_bytes()).await.expect("write");
        while app.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        kubelet
    }

    /// Connects to the handler. `flow`: original destination of the flow, and whether it is closed.
    pub(super) async fn connect_as(&self, flow: Option<(SocketAddr, bool)>) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        socket.bind(&any.into()).expect("bind");
        if let Some((original, closed)) = flow {
            let peer = socket.local_addr().expect("address").as_socket();
            let flow = AcceptedFlow { original, closed };
            let _ = self.flows.0.lock().insert(peer.expect("address"), flow);
        }
        // A blocking connect, which on loopback needs no accept: if it were awaited, the handler could reset it first.
        socket.connect(&self.address.into()).expect("connect");
        socket.set_nonblocking(true).expect("non-blocking");
        TcpStream::from_std(socket.into()).expect("a stream")
    }

    /// Sends `request` as the kubelet, and reads until the handler closes the connection.
    pub(super) async fn ask(&self, original: SocketAddr, request: &str) -> io::Result<String> {
        let mut kubelet = self.connect(original).await;
        // The handler may reset the connection before it has read the whole request.
        let _ = kubelet.write_all(request.as_bytes()).await;
        read_all(&mut kubelet).await
    }

    /// The status that the kubelet sees for `request`.
    pub(super) async fn status(&self, original: SocketAddr, request: &str) -> u16 {
        let answer = self.ask(original, request).await.expect("an answer");
        let (line, rest) = answer.split_once("\r\n").expect("a status line");
        assert!(rest.ends_with("Connection: close\r\n\r\n"), "{answer:?}");
        line.split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .expect("a status")
    }
}

pub(super) async fn read_all(stream: &mut TcpStream) -> io::Result<String> {
    let mut answer = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut answer))
        .await
        .expect("the handler closes the connection")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A step of an app's reaction to a request head.
#[derive(Clone)]
pub(super) enum Act {
    /// Sends this text.
    Send(String),
    /// Sends this text again and again until the client closes the connection.
    Repeat(&'static str),
    Pause(Duration),
    /// Waits until the client closes the connection.
    Hang,
    Reset,
}

pub(super) fn send(text: impl Into<String>) -> Vec<Act> {
    vec![Act::Send(text.into())]
}

/// An app that closes the connection after each answer.
pub(super) struct App {
    pub(super) address: SocketAddr,
    /// Peer and head of each request.
    seen: Arc<Mutex<Vec<(IpAddr, String)>>>,
    /// The number of open connections.
    pub(super) open: Arc<AtomicUsize>,
}

impl App {
    /// `script`: the reaction to a request head, given the address of the app.
    pub(super) async fn new(
        script: impl Fn(&str, SocketAddr) -> Vec<Act> + Send + Sync + 'static,
    ) -> Self {
        let (listener, address) = listening().await;
        let app = Self {
            address,
            seen: Arc::default(),
            open: Arc::default(),
        };
        let (seen, open, script) = (
            Arc::clone(&app.seen),
            Arc::clone(&app.open),
            Arc::new(script),
        );
        tokio::spawn(async move {
            while let Ok((mut stream, peer)) = listener.accept().await {
                let (seen, open, script) =
                    (Arc::clone(&seen), Arc::clone(&open), Arc::clone(&script));
                tokio::spawn(async move {
                    let _ = open.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    let head = read_head(&mut stream).await;
                    if !head.is_empty() {
                        seen.lock().push((peer.ip(), head.clone()));
                        for act in script(&head, address) {
                            stream = match perform(stream, act).await {
                                Some(stream) => stream,
                                None => break,
                            };
                        }
                    }
                    let _ = open.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                });
            }
        });
        app
    }

    /// An app that always sends `answer`.
    pub(super) async fn answering(answer: impl Into<String>) -> Self {
        let answer = answer.into();
        Self::new(move |_, _| send(answer.clone())).await
    }

    pub(super) fn seen(&self) -> Vec<(IpAddr, String)> {
        self.seen.lock().clone()
    }
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    // More bytes may follow at once, as after the preface of HTTP/2.
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
            break;
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

async fn perform(mut stream: TcpStream, act: Act) -> Option<TcpStream> {
    match act {
        Act::Send(text) => write(&mut stream, &text).await?,
        Act::Repeat(text) => loop {
            write(&mut stream, text).await?;
        },
        Act::Pause(pause) => tokio::time::sleep(pause).await,
        Act::Hang => {
            let _ = stream.read_to_end(&mut Vec::new()).await;
            return None;
        }
        Act::Reset => {
            SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .expect("linger");
            return None;
        }
    }
    Some(stream)
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), text: &str) -> Option<()> {
    stream.write_all(text.as_bytes()).await.ok()
}

/// A listener and its address.
pub(super) async fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    (listener, address)
}

/// An address on which nothing listens. Its port stays bound while the tests run, because another test's app
/// could take a free one.
pub(super) fn nobody() -> SocketAddr {
    static HELD: LazyLock<TcpSocket> = LazyLock::new(|| {
        let socket = TcpSocket::new_v4().expect("socket");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        socket.bind(any).expect("bind");
        socket
    });
    HELD.local_addr().expect("address")
}

/// The ClientHello of a TLS client that dials `server`.
pub(crate) fn client_hello(server: &str) -> Vec<u8> {
    client_hello_of(server, rustls::ALL_VERSIONS)
}

/// The ClientHello of a TLS client of these versions. Like the kubelet's, one of TLS 1.2 does not offer to resume a session
/// of TLS 1.3.
pub(super) fn client_hello_of(
    server: &str,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let server = server.to_owned().try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), server).expect("a client");
    let mut hello = Vec::new();
    let _ = client.write_tls(&mut hello).expect("a hello");
    hello
}

pub(super) fn http(port: u16, target: &str) -> Action {
    Action::Http {
        scheme: Scheme::Http,
        port,
        target: target.to_owned(),
        headers: Vec::new(),
    }
}

pub(super) fn route(kind: ProbeKind, action: Action, timeout: Duration) -> Arc<Route> {
    Arc::new(Route {
        members: vec![crate::metrics::fixtures::member(kind, action.clone())],
        action,
        timeout: (!kind.is_hook()).then_some(timeout),
        shorter: Vec::new(),
        mode: ProbeMode::Transparent,
        agents: Vec::new(),
        stats: RouteStats::default(),
    })
}

pub(super) fn endpoint(address: SocketAddr, routes: Routes) -> Endpoint {
    endpoint_dialled(address, routes, Arc::new(InPod))
}

/// Dials a pod whose namespace has lost its address, so that the source cannot be bound.
pub(super) struct WithoutAddress;

impl Dial for WithoutAddress {
    fn socket(&self, _to: SocketAddr) -> io::Result<Socket> {
        Err(io::ErrorKind::AddrNotAvailable.into())
    }
}

/// An endpoint of a pod that is dialled by `dialer`.
pub(super) fn endpoint_dialled(
    address: SocketAddr,
    routes: Routes,
    dialer: Arc<dyn Dial>,
) -> Endpoint {
    Endpoint {
        address,
        pod: Arc::new(ServedPod {
            id: PodId {
                namespace: "default".to_owned(),
                name: "pod".to_owned(),
                uid: "uid".to_owned(),
            },
            mesh: Mesh::Istio,
            dialer,
            cost: Arc::new(PodCost::new(std::time::Instant::now())),
            max_in_flight: 4,
            in_flight: AtomicUsize::new(0),
        }),
        routes,
    }
}

/// The route of a liveness probe of `target` at `address`, and its endpoint.
pub(super) fn http_endpoint(
    address: SocketAddr,
    target: &str,
    timeout: Duration,
) -> (Arc<Route>, Endpoint) {
    let route = route(ProbeKind::Liveness, http(address.port(), target), timeout);
    let declared = HttpRoute {
        probe: Some(Arc::clone(&route)),
        hook: None,
    };
    let native = NativeRoutes {
        http: HashMap::from([(target.to_owned(), declared)]),
        ..NativeRoutes::default()
    };
    (route, endpoint(address, Routes::Native(native)))
}

/// The request that the kubelet sends for a probe of `target`.
pub(super) fn get(address: SocketAddr, target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-probe/1.36\r\n\
         Accept: */*\r\nConnection: close\r\n\r\n"
    )
}

/// Waits for the first verdict of `route`. Returns its last one.
pub(super) async fn verdict(route: &Route) -> Verdict {
    let last = async {
        loop {
            if let Some((_, verdict)) = route.stats.last() {
                return verdict;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, last).await.expect("a verdict")
}

/// Probes the path `/` of `app`: the status that the kubelet gets, and the reason.
pub(super) async fn probe(app: &App, patience: Duration) -> (u16, Reason) {
    let (route, endpoint) = http_endpoint(app.address, "/", patience);
    let world = World::new([endpoint]).await;
    let status = world.status(app.address, &get(app.address, "/")).await;
    (status, verdict(&route).await.reason)
}
