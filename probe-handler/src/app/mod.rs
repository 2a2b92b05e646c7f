//! Puts the daemon together: which parts start in which order, on which thread, and how the daemon ends.
//!
//! The main thread follows pods, namespaces and the kubelet and serves the admin socket. The handler's threads do nothing
//! but answer probes, so that parsing a thousand manifests delays none. ARCHITECTURE.md lists all threads.

pub mod cleanup;
mod costs;
mod handler_thread;
mod kernel_path;
mod kubelet_task;
mod outcome_task;
mod pace;
mod pending_pods;
mod pod_look;
mod pod_task;
mod pod_work;
mod registry_task;
mod shutdown;
mod status;
pub mod webhook;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::cli::config::{AgentConfig, KubeletConfig, PodSource};
use crate::observe::admin::{Admin, BoundAdmin};
use crate::observe::collectors::{register_kernel_counters, register_readiness, register_watches};
use crate::observe::rendering::Rendering;
use crate::observe::turns::Turns;
use handler_thread::HandlerThread;
use kernel::kubelet::{Error as KubeletError, Finder, Search};
use kernel::locate::Locator;
use kernel::maps::{ConnectingMap, CounterMap, ProgramConfig};
use kernel::netns::Netns;
use kernel::pins::Pins;
use kernel::programs::{Error as ProgramsError, LoadOptions, Maps, Programs};
use kernel::{capabilities, dial, scheduling};
use kernel_path::KernelPath;
use kubelet_task::Attachment;
use outcome_task::Outcomes;
use pods::scope::Selection;
use reconcile::registry::Registry;
use registry_task::{PodsState, RegistryTask};
use serve::Handler;
use serve::metrics::{Metrics, PREFIX};
use serve::pulse::Pulse;
use serve::reserve::Reserve;
use serve::slow_lane::SlowLane;
use serve::table::EndpointTable;
use shutdown::Shutdown;
use sources::kube::health::Health;
use sources::kube::last_known::LastKnown;
use sources::source::SourceEvent;
use sources::{dir, kube};
use support::missing::Missing;
use support::readiness::{BlockReady, Readiness};

/// Capacity of channels between tasks: large enough that a source or a pod does not wait for long, small enough
/// that unapplied messages stay bounded.
const CHANNEL: usize = 64;

/// Maximum time that pending reads have at the end.
const LAST_READS: Duration = Duration::from_millis(500);
/// Interval between looks at the pins of the kernel path.
const PINS: Duration = Duration::from_secs(2);

/// The programs and their maps, if they could be loaded.
type LoadResult = Result<(Programs, Maps, Option<String>), ProgramsError>;

/// The parts of the daemon that run for as long as it does.
type Tasks = JoinSet<anyhow::Result<()>>;

/// Builds the daemon and runs it until a signal stops it and it has drained. `missing` lists the parts that it runs
/// without.
///
/// # Errors
/// The start failed (with what to do next), or a part of the daemon ended (after the drain).
pub fn run(config: AgentConfig, missing: Missing) -> anyhow::Result<()> {
    // Before other threads start, because they inherit it.
    if let Err(error) = scheduling::ask_for_short_slices() {
        tracing::debug!(%error, "no short time slices");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(capabilities::give_up_others_or_abort)
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(async {
        let mut stop = Shutdown::new()?;
        let daemon = tokio::select! {
            daemon = build(config, missing) => daemon?,
            _ = stop.signal() => return Ok(()),
        };
        daemon.serve(&mut stop).await
    });
    // A read that hangs (a manifest on a file system that does not answer) must not block the exit.
    runtime.shutdown_timeout(LAST_READS);
    ended
}

/// A running daemon.
struct Daemon {
    attachment: Arc<Mutex<Attachment>>,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    handler: HandlerThread,
    program_config: ProgramConfig,
    admin: BoundAdmin,
    drain_timeout: Duration,
    tasks: Tasks,
}

async fn build(config: AgentConfig, missing: Missing) -> anyhow::Result<Daemon> {
    let started = Instant::now();
    check_privileges()?;
    raise_descriptor_limit();
    let own_netns = Netns::current().context("cannot open the node's network namespace")?;

    // The kernel's verifier takes most of the start's time; meanwhile pods are listed and looked for.
    let (pins, no_pins) = match config.kernel_path.then(|| Pins::new(&config.bpffs)) {
        None => (None, None),
        Some(Ok(pins)) => (Some(pins), None),
        Some(Err(error)) => (None, Some(format!("{:#}", anyhow::Error::from(error)))),
    };
    let loading = load(LoadOptions {
        endpoints_capacity: config.endpoints_capacity,
        pins: pins.clone(),
    })?;
    let locator = Locator::new(config.cgroup_root.as_deref())?;

    let readiness = Readiness::default();
    let kubelet_ready = readiness.block(kubelet_task::AWAITED);
    let pods_ready = readiness.block("pods read");

    let mut metrics_registry = MetricsRegistry::with_prefix(PREFIX);
    let metrics = Arc::new(Metrics::new(&mut metrics_registry));
    let table = Arc::new(EndpointTable::default());
    let shared = Arc::new(Mutex::new(PodsState::new(Registry::waiting(Arc::clone(
        &table,
    )))));

    let mut tasks = Tasks::new();
    spawn(&mut tasks, locator.keep(missing.clone()));
    let watch_health = Arc::new(Health::default());
    let (source_events, from_source) = mpsc::channel(CHANNEL);
    let (kernel_path_ready, kernel_path_watch) = watch::channel(None);
    // Without the kernel path nobody waits for it.
    let kernel_path_ready = config.kernel_path.then_some(kernel_path_ready);
    let (standing, stand) = oneshot::channel();
    let (excluded, too_costly) = mpsc::unbounded_channel();
    let registry = RegistryTask::new(
        Arc::clone(&shared),
        Arc::clone(&metrics),
        locator,
        kernel_path_watch,
        pods_ready,
        too_costly,
        standing,
    );
    spawn(&mut tasks, registry.run(from_source));
    let parts = (Arc::clone(&watch_health), missing.clone());
    let mut source = Some((parts, source_events));
    // The watcher of a directory creates a thread in the library, so it starts after capabilities are dropped.
    if matches!(config.pods, PodSource::Kubernetes { .. })
        && let Some((parts, events)) = source.take()
    {
        start_source(&config, &readiness, parts, events, &mut tasks).await?;
    }
    let (mut programs, maps, unusable) = loading
        .await
        .context("loading the programs panicked")?
        .map_err(|error| anyhow::anyhow!(error.told()))?;
    let kernel_path_trouble = no_pins
        .or(unusable)
        .map(|why| format!("the kernel path ends with this daemon: {why}"));
    if let Some(trouble) = &kernel_path_trouble {
        tracing::warn!("{trouble}");
    }
    if config.kernel_log {
        log_from_kernel(&mut programs, &maps.config)?;
    }

    register(
        &mut metrics_registry,
        &config,
        &readiness,
        &watch_health,
        &maps.counters,
    );
    // Endpoints have no effect before the programs are attached.
    shared.lock().registry.begin(maps.endpoints);

    // Until the kubelet's process is found it counts as shared, so the handler serves all pods.
    let shared_process = Arc::new(AtomicBool::new(true));
    if let Some(ready) = kernel_path_ready {
        let kernel_path = kernel_path(
            &config,
            &programs,
            pins.as_ref(),
            maps.connecting,
            &shared_process,
        )?;
        let _ = ready.send(Some(kernel_path));
    }
    let (slow, slow_connections) = SlowLane::new();
    let handler = Arc::new(Handler {
        flows: maps.flows,
        table: Arc::clone(&table),
        metrics: Arc::clone(&metrics),
        shared_process: Arc::clone(&shared_process),
        reserve: Arc::new(Reserve::new(maps.heartbeat as Arc<dyn Pulse>)),
        slow,
        exclude: Box::new(move |pod| {
            let _ = excluded.send(pod.clone());
        }),
        drain: watch::Sender::new(false),
    });
    let handler = HandlerThread::start(handler, slow_connections, config.handler_port, &missing)?;
    let outlive_ns = u64::try_from(config.outlive.as_nanos())?;
    let heartbeat_timeout_ns = u64::try_from(config.heartbeat_timeout.as_nanos())?;
    maps.config.update(|config| {
        config.handler_port_v4 = handler.port_v4();
        config.handler_ports_v6 = handler.ports_v6();
        config.netns_cookie = own_netns.cookie().unwrap_or_default();
        config.heartbeat_timeout_ns = heartbeat_timeout_ns;
        config.outlive_ns = outlive_ns;
    })?;

    let attachment = Arc::new(Mutex::new(Attachment::new(programs, shared_process)));

    let status = status::Reporter {
        started,
        config: config.clone(),
        readiness: readiness.clone(),
        missing: missing.clone(),
        attachment: Arc::clone(&attachment),
        shared: Arc::clone(&shared),
        handler: handler.addresses(),
        counters: Arc::clone(&maps.counters),
        kernel_path_trouble,
    };
    let outcomes = Arc::new(Outcomes {
        ring: maps.outcomes,
        table,
        metrics: Arc::clone(&metrics),
    });
    let noting = Arc::clone(&outcomes);
    let admin = Admin {
        metrics: Rendering::new(Arc::new(metrics_registry)),
        readiness: readiness.clone(),
        alive: Box::new({
            let alive = handler.alive(config.heartbeat_timeout);
            move || alive.check()
        }),
        status: Arc::new(move || {
            noting.note();
            status.report()
        }),
        config_json: config.to_json(),
        turns: Turns::default(),
    }
    .bind(config.admin_addr, &config.admin_socket, missing.clone());

    // Before the first attachment, so that later ones need no other capabilities. The threads of the log and the handler
    // and those for blocking work drop theirs themselves.
    capabilities::give_up_others().context("cannot drop capabilities")?;

    let (finder, awaited) = attach_now(&config, &attachment, &maps.config, kubelet_ready)?;

    spawn(&mut tasks, async move { outcomes.follow().await });
    if let Some((parts, events)) = source.take() {
        start_source(&config, &readiness, parts, events, &mut tasks).await?;
    }
    let adopting = Arc::clone(&attachment);
    let unwanted = (!config.kernel_path).then(|| config.bpffs.clone());
    spawn(&mut tasks, async move {
        if stand.await.is_ok() {
            adopting.lock().programs.adopt();
            let mut looks = tokio::time::interval(PINS);
            let mut is_reported = false;
            loop {
                let _ = looks.tick().await;
                match &unwanted {
                    Some(pins) => is_reported = !remove_pins(pins, is_reported),
                    None => adopting.lock().programs.keep_pins(),
                }
            }
        }
        // The registry is gone.
        std::future::pending().await
    });
    let program_config = maps.config.clone();
    let following = kubelet_task::run(
        Arc::clone(&attachment),
        maps.config,
        finder,
        awaited,
        readiness.clone(),
        Arc::clone(&metrics),
    );
    spawn(&mut tasks, following);

    tracing::info!(
        handler = ?handler.addresses(),
        admin = %admin.tcp_address().map_or_else(|| "none".to_owned(), |address| address.to_string()),
        admin_socket = %admin.socket_path().display(),
        netns = own_netns.id().inode,
        capabilities = capabilities::effective().join(" "),
        "serving"
    );
    Ok(Daemon {
        attachment,
        readiness,
        metrics,
        handler,
        program_config,
        admin,
        drain_timeout: config.drain_timeout,
        tasks,
    })
}

/// Removes the pins of an earlier daemon that used the kernel path, which this one does not use. Its programs then end
/// with it. Returns whether there are none left; logs a failure unless it `is_reported`.
fn remove_pins(pins: &std::path::Path, is_reported: bool) -> bool {
    let removed = kernel::pins::remove_all(pins);
    match &removed {
        Ok(true) => tracing::info!(
            pins = %pins.display(),
            "removed the kernel path of an earlier daemon, because --kernel-path is false"
        ),
        Err(error) if !is_reported => tracing::warn!(
            pins = %pins.display(),
            %error,
            "the kernel path of an earlier daemon remains: run `probe-handler cleanup` on the node"
        ),
        Ok(false) | Err(_) => {}
    }
    removed.is_ok()
}

/// Loads the programs on a separate thread, which then ends. Unlike the threads for blocking work, it keeps all
/// capabilities of the start.
fn load(options: LoadOptions) -> anyhow::Result<oneshot::Receiver<LoadResult>> {
    let (done, loaded) = oneshot::channel();
    let _detached = std::thread::Builder::new()
        .name("load".to_owned())
        .spawn(move || {
            // The receiver is dropped if the start has failed meanwhile.
            let _ = done.send(Programs::load_or_without_pins(options));
        })
        .context("cannot start a thread")?;
    Ok(loaded)
}

/// The kernel path for all pods.
fn kernel_path(
    config: &AgentConfig,
    programs: &Programs,
    pins: Option<&Pins>,
    connecting: Arc<ConnectingMap>,
    shared_process: &Arc<AtomicBool>,
) -> anyhow::Result<Arc<KernelPath>> {
    let mut exemption = programs
        .exemption()
        .map_err(|error| anyhow::anyhow!(error.told()))?;
    let succeeds = pins.is_some_and(Pins::are_there);
    if let Some(Err(error)) = pins.map(|pins| exemption.pin(pins)) {
        let error = anyhow::Error::from(error);
        tracing::warn!("cannot pin the program that the rules in pods call: {error:#}");
    }
    Ok(Arc::new(KernelPath::new(
        exemption,
        connecting,
        config.http,
        Arc::clone(shared_process),
        succeeds,
    )))
}

/// Starts the source of pods, which sends `events`.
async fn start_source(
    config: &AgentConfig,
    readiness: &Readiness,
    (health, missing): (Arc<Health>, Missing),
    events: mpsc::Sender<SourceEvent>,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    match &config.pods {
        PodSource::Dir(path) => {
            let path = path.clone();
            let selection = Selection {
                scope: config.scope,
                namespace_exempt: None,
            };
            let _ = tasks.spawn(async move {
                dir::run(path, selection, events, missing)
                    .await
                    .context("the source of pods ended")
            });
        }
        PodSource::Kubernetes { node, last_known } => {
            let client = kube::client::connect().await?;
            let options = kube::Options {
                node: node.clone(),
                scope: config.scope,
                timeouts: support::backoff::Timeouts::default(),
                last_known: last_known
                    .clone()
                    .map(|path| LastKnown::new(path, node.clone(), missing)),
            };
            let listed = readiness.block("pods listed from the API server");
            let _ = tasks.spawn(async move {
                kube::run(client, options, health, listed, events).await;
                Ok(())
            });
        }
    }
    Ok(())
}

impl Daemon {
    /// Serves until a signal arrives, then drains; a second signal ends the drain at once.
    ///
    /// # Errors
    /// A part ended without a signal. The daemon's state may then be wrong, so it also drains, and probes go through
    /// the mesh.
    async fn serve(mut self, stop: &mut Shutdown) -> anyhow::Result<()> {
        let (admin_stop, admin_stopped) = tokio::sync::oneshot::channel::<()>();
        let admin = tokio::spawn(self.admin.serve(async {
            let _ = admin_stopped.await;
        }));

        let ended = tokio::select! {
            signal = stop.signal() => Ok(signal),
            ended = self.tasks.join_next() => Err(match ended {
                Some(Ok(Err(error))) => error,
                other => anyhow::anyhow!("a task of the daemon ended: {other:?}"),
            }),
            () = self.handler.ended() => Err(anyhow::anyhow!("the handler ended")),
        };
        let why = match &ended {
            Ok(signal) => (*signal).to_owned(),
            Err(error) => format!("{error:#}"),
        };
        tracing::info!(
            why,
            "draining: new probes are no longer redirected, in-flight probes are answered"
        );
        self.readiness.drain();
        {
            let mut attachment = self.attachment.lock();
            attachment.draining = true;
            if attachment.programs.outlives() {
                send_nothing_more(&self.program_config);
            } else {
                attachment.programs.detach_connect();
            }
        }
        let _ = self.metrics.attached.set(0);
        let drained = self.handler.drain();
        tokio::select! {
            () = drained => tracing::info!("drained"),
            () = tokio::time::sleep(self.drain_timeout) => {
                tracing::warn!(timeout = ?self.drain_timeout, "drain timeout: aborting in-flight checks");
            }
            signal = stop.signal() => tracing::warn!(signal, "second signal: aborting in-flight checks"),
        }
        self.attachment.lock().programs.leave();
        self.tasks.abort_all();
        let _ = admin_stop.send(());
        // The server removes the socket file; a client that keeps its connection open can't delay that.
        let _ = tokio::time::timeout(Duration::from_secs(1), admin).await;
        tracing::info!("ended");
        ended.map(|_| ())
    }
}

/// Makes the programs, which remain, redirect nothing to the handler: no heartbeat is fresh enough.
fn send_nothing_more(config: &ProgramConfig) {
    if let Err(error) = config.update(|config| config.heartbeat_timeout_ns = 0) {
        tracing::debug!(%error, "the programs go by the heartbeat's age");
    }
}

/// Raises the limit of open descriptors to the hard limit: a pod needs three, an in-flight check two more, and
/// the usual soft limit of 1,024 exists for programs that use select(2).
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}

fn check_privileges() -> anyhow::Result<()> {
    let mut troubles: Vec<String> = capabilities::missing()
        .into_iter()
        .map(|need| format!("{} is missing (to {})", need.capability, need.reason))
        .collect();
    troubles.extend(dial::unsuitable_group());
    anyhow::ensure!(
        troubles.is_empty(),
        "missing privileges: {}; run this as root in a privileged container, and see `probe-handler preflight`",
        troubles.join("; ")
    );
    Ok(())
}

/// Registers the metrics whose values are read at each scrape.
fn register(
    registry: &mut MetricsRegistry,
    config: &AgentConfig,
    readiness: &Readiness,
    watch_health: &Arc<Health>,
    counters: &Arc<CounterMap>,
) {
    let counters = Arc::clone(counters);
    register_kernel_counters(registry, Arc::new(move || counters.read()));
    register_readiness(registry, readiness.clone());
    if matches!(config.pods, PodSource::Kubernetes { .. }) {
        register_watches(registry, Arc::clone(watch_health));
    }
}

/// Starts a part of the daemon that returns no error.
fn spawn(tasks: &mut Tasks, part: impl Future<Output = ()> + Send + 'static) {
    let _ = tasks.spawn(async move {
        part.await;
        Ok(())
    });
}

/// Attaches to the running kubelet. If no kubelet runs yet, returns `ready` so that the daemon waits for it; if attaching
/// fails, the start fails. A process of its name in another network namespace may be a container's, while the kubelet
/// restarts.
fn attach_now(
    config: &AgentConfig,
    attachment: &Mutex<Attachment>,
    program_config: &ProgramConfig,
    ready: BlockReady,
) -> anyhow::Result<(Finder, Option<BlockReady>)> {
    let mut finder = Finder::new(search(&config.kubelet))?;
    match finder.find(None) {
        Ok(kubelet) => {
            attachment
                .lock()
                .attach(program_config, kubelet)
                .map_err(|error| anyhow::anyhow!(error))?;
            Ok((finder, None))
        }
        Err(
            error @ (KubeletError::NotFound { .. }
            | KubeletError::NoCgroup { .. }
            | KubeletError::OtherNetwork { .. }),
        ) => {
            tracing::warn!("waiting for the kubelet: {error}");
            Ok((finder, Some(ready)))
        }
        Err(error) => Err(error.into()),
    }
}

/// How to find the kubelet, from the configuration.
pub fn search(kubelet: &KubeletConfig) -> Search {
    Search {
        names: kubelet.names.clone(),
        cgroup: kubelet.cgroup.clone(),
        allow_root: kubelet.allow_root_cgroup,
    }
}

/// Enables the programs' log of each decision, by aya-log.
fn log_from_kernel(programs: &mut Programs, config: &ProgramConfig) -> anyhow::Result<()> {
    use tokio::io::unix::AsyncFd;
    config.update(|config| config.verbose = 1)?;
    let logger = programs.logger().context("cannot read the programs' log")?;
    // SAFETY: the logger keeps the ring buffer's descriptor open until it is dropped, and `AsyncFd` owns the
    // logger.
    let mut logger = unsafe { AsyncFd::register(logger) }
        .map_err(|error| anyhow::anyhow!("cannot watch the programs' log: {error}"))?;
    let _reader = tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}
