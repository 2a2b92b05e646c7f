//! Pods cheap enough for a thousand of them: real cgroups, namespaces, rules and sandbox processes; this
//! process serves app and sidecar from sockets in their namespaces.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use testbed::kubelet::Probe;
use testbed::netns::NetNs;
use testbed::node::{Node, NodePod, Order};
use testbed::pod::PodSpec;
use testbed::rules::RuleSet;
use testbed::sandbox::Container;
use testbed::wait;

/// The app's port.
pub(super) const PORT: u16 = 8080;
/// The probed path.
pub(super) const PATH: &str = "/live";
/// Istio's inbound port, on which a STRICT sidecar resets connections without mutual TLS.
const SIDECAR: u16 = 15006;
/// Two fifths of the minimum time between the start of a sandbox's first process and of the app's: containerd 2.1 with runc
/// took 103 to 122 ms on an idle machine like this (perf, `sched:sched_process_exec`), in which it starts the sandbox,
/// answers the kubelet, and runs runc twice more. On a busy one it takes longer.
const CONTAINER_IS_MADE: Duration = Duration::from_millis(40);
/// Number of statuses that identify pods: 200 to 289, all of them success for the kubelet.
const STATUSES: usize = 90;

/// The default of `timeoutSeconds`.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Creates pods.
pub(super) struct Light {
    pub(super) node: Arc<Node>,
    /// `timeoutSeconds` of the pods that are created from now on.
    pub(super) timeout: Duration,
    /// Whether the apps may answer.
    pub(super) answers: Arc<Answers>,
    runtime: Runtime,
    made: AtomicUsize,
}

/// Holds back the apps' answers.
pub(super) struct Answers {
    held: watch::Sender<bool>,
    /// Requests that wait for their answer.
    waiting: AtomicUsize,
}

impl Answers {
    fn new() -> Self {
        Self {
            held: watch::Sender::new(false),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Holds back all answers from now on, or releases them.
    pub(super) fn hold(&self, held: bool) {
        let _before = self.held.send_replace(held);
    }

    /// The number of requests that wait for their answer.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    async fn released(&self) {
        let _waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        // Fails only if the sender was dropped, and `self` owns it.
        let mut held = self.held.subscribe();
        let released = held.wait_for(|held| !held).await.is_ok();
        debug_assert!(released, "the sender is gone");
        let _waiting = self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A pod. Dropping it ends it.
pub(super) struct LightPod {
    pub(super) pod: NodePod,
    /// The status of its app.
    pub(super) status: u16,
    timeout: Duration,
    /// When the sandbox started.
    sandbox: Option<Instant>,
    serving: Vec<AbortHandle>,
    container: Option<Container>,
}

impl Light {
    pub(super) fn new(node: Arc<Node>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("apps")
            .enable_all()
            .build()?;
        Ok(Self {
            node,
            timeout: TIMEOUT,
            answers: Arc::new(Answers::new()),
            runtime,
            made: AtomicUsize::new(0),
        })
    }

    /// A pod that is only bound.
    pub(super) fn bind(&self, rules: RuleSet) -> Result<LightPod> {
        let index = self.made.fetch_add(1, Ordering::Relaxed);
        let spec = PodSpec::new(&format!("p{index}"))
            .rules(rules)
            .container(json!({
                "name": "app", "image": "app",
                "livenessProbe": {
                    "httpGet": {"path": PATH, "port": PORT},
                    "periodSeconds": 1, "failureThreshold": 1,
                    "timeoutSeconds": self.timeout.as_secs(),
                },
            }));
        Ok(LightPod {
            pod: self.node.bind(spec)?,
            status: 200 + u16::try_from(index % STATUSES)?,
            timeout: self.timeout,
            sandbox: None,
            serving: Vec::new(),
            container: None,
        })
    }

    /// A running pod.
    pub(super) fn run(&self, rules: RuleSet) -> Result<LightPod> {
        let mut pod = self.bind(rules)?;
        pod.start_sandbox()?;
        self.start_app(&mut pod)?;
        pod.pod.report_running()?;
        Ok(pod)
    }

    /// Starts a container: waits as long as a runtime takes, starts its process, and then lets sidecar and app
    /// listen.
    pub(super) fn start_app(&self, pod: &mut LightPod) -> Result<()> {
        let since = pod.sandbox.context("the sandbox comes before the app")?;
        wait::pass(CONTAINER_IS_MADE.saturating_sub(since.elapsed()))?;
        let (container, ()) = pod.pod.idle_container(|| ())?;
        pod.container = Some(container);
        let ns = pod.pod.ns()?;
        let (sidecar, app) = (listen(ns, SIDECAR)?, listen(ns, PORT)?);
        let _inside = self.runtime.enter();
        let (sidecar, app) = (TcpListener::from_std(sidecar)?, TcpListener::from_std(app)?);
        let (status, answers) = (pod.status, Arc::clone(&self.answers));
        pod.serving = vec![
            self.runtime.spawn(accept(sidecar, refuse)).abort_handle(),
            self.runtime
                .spawn(accept(app, move |stream| {
                    answer(stream, status, Arc::clone(&answers))
                }))
                .abort_handle(),
        ];
        Ok(())
    }
}

impl LightPod {
    /// In containerd's order.
    pub(super) fn start_sandbox(&mut self) -> Result<()> {
        self.pod.start_sandbox(Order::NetworkFirst)?;
        self.sandbox = Some(Instant::now());
        Ok(())
    }

    pub(super) fn address(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.pod.ns()?.ipv4().into(), PORT))
    }

    /// Its liveness probe.
    pub(super) fn probe(&self) -> Result<Probe> {
        Ok(probe(self.pod.ns()?.ipv4().into()).timeout(self.timeout))
    }

    /// Closes the listeners.
    pub(super) fn stop_app(&mut self) {
        for task in self.serving.drain(..) {
            task.abort();
        }
        drop(self.container.take());
    }

    /// Ends the pod in the normal order.
    pub(super) fn end(mut self) -> Result<()> {
        self.pod.terminate()?;
        self.stop_app();
        self.pod.end()
    }
}

impl Drop for LightPod {
    fn drop(&mut self) {
        self.stop_app();
    }
}

pub(super) fn probe(ip: IpAddr) -> Probe {
    Probe::http(ip, PORT, PATH).timeout(TIMEOUT)
}

fn listen(ns: &NetNs, port: u16) -> Result<std::net::TcpListener> {
    ns.run(|| {
        let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}

async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F + Send + 'static)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    while let Ok((stream, _)) = listener.accept().await {
        let _detached = tokio::spawn(serve(stream));
    }
}

/// Resets plaintext connections, as a STRICT sidecar does.
async fn refuse(stream: TcpStream) -> io::Result<()> {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

async fn answer(mut stream: TcpStream, status: u16, answers: Arc<Answers>) -> io::Result<()> {
    let mut request = [0; 1024];
    let _length = stream.read(&mut request).await?;
    answers.released().await;
    let head = format!("HTTP/1.1 {status} App\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.shutdown().await
}
