//! Puts the daemon together: which parts start in which order, on which thread, and how the daemon ends.
//!
//! The main thread follows pods, namespaces and the kubelet and serves the admin socket. The handler's threads do nothing
//! but answer probes, so that parsing a thousand manifests delays none. ARCHITECTURE.md lists all threads.

mod canary_trial;
pub mod cleanup;
mod costs;
mod follower;
mod handler_thread;
mod history;
mod kernel_log;
mod kernel_path;
mod kubelet_task;
mod node_task;
mod observe_task;
mod outcome_task;
mod own_redirects;
mod pace;
mod pending_pods;
mod pins_task;
mod pod_look;
mod pod_source;
mod pod_task;
mod pod_work;
mod pods_state;
mod privileges;
mod registry_task;
mod report_task;
mod settings;
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
use crate::cli::logging::LogFilter;
use crate::observe::admin::{Admin, BoundAdmin};
use crate::observe::collectors::{
    register_events, register_kernel_counters, register_readiness, register_settings,
    register_watches,
};
use crate::observe::process;
use crate::observe::rendering::Rendering;
use crate::observe::turns::Turns;
use compare::pods::ObservedPods;
use handler_thread::HandlerThread;
use history::{Histories, Keeper};
use kernel::exemption::Exemption;
use kernel::kubelet::{Error as KubeletError, Finder, Search};
use kernel::locate::Locator;
use kernel::maps::{CounterMap, ProgramConfig};
use kernel::netns::Netns;
use kernel::pins::Pins;
use kernel::programs::{Error as ProgramsError, LoadOptions, Maps, Programs};
use kernel::{capabilities, scheduling};
use kernel_path::{KernelPath, Maintainer};
use kubelet_task::Attachment;
use observe_task::Observer;
use outcome_task::Outcomes;
use pods_state::PodsState;
use privileges::{check_privileges, raise_descriptor_limit};
use reconcile::registry::Registry;
use registry_task::{FirstPods, RegistryTask};
use report::outcome::Outcomes as EventOutcomes;
use serve::Handler;
use serve::metrics::{Metrics, PREFIX};
use serve::pulse::Pulse;
use serve::reserve::Reserve;
use serve::slow_lane::SlowLane;
use serve::table::EndpointTable;
use settings::{Applies, LiveSettings};
use shutdown::Shutdown;
use sources::kube::health::Health;
use support::missing::Missing;
use support::readiness::{BlockReady, Readiness};

/// Capacity of channels between tasks: large enough that a source or a pod does not wait for long, small enough
/// that unapplied messages stay bounded.
const CHANNEL: usize = 64;

/// Maximum time to wait for pending reads when the daemon exits.
const LAST_READS: Duration = Duration::from_millis(500);

/// The programs and their maps, if they could be loaded.
type LoadResult = Result<(Programs, Maps, Option<String>), ProgramsError>;

/// The parts of the daemon that run for as long as it does.
type Tasks = JoinSet<anyhow::Result<()>>;

/// Builds the daemon and runs it until a signal stops it and it has drained. `missing` lists the parts that it runs
/// without; `log` changes the filter of the log.
///
/// # Errors
/// The start failed (with what to do next), or a part of the daemon ended (after the drain).
pub fn run(config: AgentConfig, missing: Missing, log: LogFilter) -> anyhow::Result<()> {
    // Done before other threads start, because they inherit it.
    if let Err(error) = scheduling::ask_for_short_slices() {
        tracing::debug!(%error, "cannot request short time slices");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(capabilities::give_up_others_or_abort)
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(async {
        let mut stop = Shutdown::new()?;
        let daemon = tokio::select! {
            daemon = build(config, missing, log) => daemon?,
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
    history: Keeper,
    settings: Arc<LiveSettings>,
    tasks: Tasks,
}

async fn build(config: AgentConfig, missing: Missing, log: LogFilter) -> anyhow::Result<Daemon> {
    let started = Instant::now();
    let settings = Arc::new(LiveSettings::read(&config, log));
    let config = config.with(settings.now());
    check_privileges()?;
    raise_descriptor_limit();
    let own_netns = Netns::current().context("cannot open the node's network namespace")?;

    // The kernel's verifier takes most of the start's time; meanwhile pods are listed and looked for.
    let (pins, no_pins) = match config.kernel_path.then(|| Pins::new(&config.bpffs)) {
        None => (None, None),
        Some(Ok(pins)) => (Some(pins), None),
        Some(Err(error)) => (None, Some(format!("{:#}", anyhow::Error::from(error)))),
    };
    // Before it is loaded, which pins the maps.
    let succeeds = pins.as_ref().is_some_and(Pins::serve);
    let loading = load(LoadOptions {
        endpoints_capacity: config.endpoints_capacity,
        pins: pins.clone(),
        kernel_path: config.kernel_path,
    })?;
    let locator = Locator::new(config.cgroup_root.as_deref())?;

    let readiness = Readiness::default();
    let kubelet_ready = readiness.block(kubelet_task::AWAITED);
    let pods_ready = readiness.block("pods read");

    let mut metrics_registry = MetricsRegistry::default();
    process::register(&mut metrics_registry);
    let own_metrics = metrics_registry.sub_registry_with_prefix(PREFIX);
    let metrics = Arc::new(Metrics::new(own_metrics));
    let comparisons = compare::metrics::Metrics::new(own_metrics);
    let table = Arc::new(EndpointTable::default());
    let history_path = Keeper::path_for(&config.admin_socket);
    let shared = Arc::new(Mutex::new(PodsState::new(
        Registry::waiting(Arc::clone(&table)),
        Histories::load(&history_path),
    )));
    let history = Keeper::new(history_path, Arc::clone(&shared), Arc::clone(&metrics));

    let mut tasks = Tasks::new();
    spawn(&mut tasks, locator.keep(missing.clone()));
    let watch_health = Arc::new(Health::default());
    let (source_events, from_source) = mpsc::channel(CHANNEL);
    let (kernel_path_ready, kernel_path_watch) = watch::channel(None);
    // Without the kernel path nothing waits for it.
    let kernel_path_ready = config.kernel_path.then_some(kernel_path_ready);
    let (placed, first_pods_in_place) = oneshot::channel();
    let (excluded, too_costly) = mpsc::unbounded_channel();
    let (refused, refusals) = mpsc::channel(CHANNEL);
    let observed = Arc::new(ObservedPods::default());
    let observer = Observer::new(Arc::clone(&locator), comparisons, Arc::clone(&observed));
    let registry = RegistryTask::new(
        Arc::clone(&shared),
        Arc::clone(&metrics),
        locator,
        kernel_path_watch,
        observer,
        FirstPods {
            examined: pods_ready,
            in_place: placed,
        },
        (too_costly, refusals),
    );
    spawn(&mut tasks, registry.run(from_source));
    let parts = (Arc::clone(&watch_health), missing.clone());
    let mut source = Some((parts, source_events));
    // The watcher of a directory creates a thread in the library, so it starts after capabilities are dropped.
    if matches!(config.pods, PodSource::Kubernetes { .. })
        && let Some((parts, events)) = source.take()
    {
        pod_source::start(&config, &settings, &readiness, parts, events, &mut tasks).await?;
    }
    let (mut programs, maps, unusable) = loading
        .await
        .context("loading the programs panicked")?
        .map_err(|error| anyhow::anyhow!(error.message()))?;
    let kernel_path_trouble = no_pins
        .or(unusable)
        .map(|why| format!("the kernel path ends with this daemon: {why}"));
    if let Some(trouble) = &kernel_path_trouble {
        tracing::warn!("{trouble}");
    }
    kernel_log::read(&mut programs, &config)?;

    let event_outcomes = Arc::new(EventOutcomes::default());
    register(
        own_metrics,
        &config,
        &readiness,
        &watch_health,
        &maps.counters,
        &settings,
        &event_outcomes,
    );
    // Endpoints have no effect before the programs are attached.
    shared.lock().registry.begin(maps.endpoints);

    // Until the kubelet's process is found it counts as shared, so the handler serves all pods.
    let shared_process = Arc::new(AtomicBool::new(true));
    let (maintainer, maintained_by) = watch::channel(Maintainer::of(&programs));
    if let Some(ready) = &kernel_path_ready {
        let exemption = exemption(&programs, pins.as_ref())?;
        let kernel_path = Arc::new(KernelPath::new(
            exemption,
            maps.connecting,
            config.http,
            Arc::clone(&shared_process),
            succeeds,
            maintained_by,
            config.kernel_path_tc,
        ));
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
    let verbose = config.kernel_log;
    let heartbeat_timeout_ns = u64::try_from(config.heartbeat_timeout.as_nanos())?;
    maps.config.update(|config| {
        config.handler_port_v4 = handler.port_v4();
        config.handler_ports_v6 = handler.ports_v6();
        config.netns_cookie = own_netns.cookie().unwrap_or_default();
        config.heartbeat_timeout_ns = heartbeat_timeout_ns;
        config.outlive_ns = outlive_ns;
        config.verbose = u8::from(verbose);
    })?;

    let attachment = Attachment::new(programs, shared_process, maintainer, missing.clone());
    let attachment = Arc::new(Mutex::new(attachment));
    let status = Arc::new(status::Reporter {
        started,
        config: config.clone(),
        readiness: readiness.clone(),
        missing: missing.clone(),
        attachment: Arc::clone(&attachment),
        shared: Arc::clone(&shared),
        observed,
        handler: handler.addresses(),
        counters: Arc::clone(&maps.counters),
        kernel_path_trouble,
        settings: Arc::clone(&settings),
    });
    if config.events {
        let reports = report_task::Reports::new(&status, &shared, &metrics, &event_outcomes);
        let _ = tasks.spawn(reports.send(config.clone()));
    }
    if config.node_condition || config.startup_taint.is_some() {
        let alive = handler.alive(config.heartbeat_timeout);
        let reporting = node_task::run(config.clone(), readiness.clone(), move || alive.check());
        let _ = tasks.spawn(reporting);
    }
    let outcomes = Arc::new(Outcomes {
        ring: maps.outcomes,
        table,
        metrics: Arc::clone(&metrics),
        refused,
    });
    let noting = Arc::clone(&outcomes);
    let (explaining, explained) = (Arc::clone(&outcomes), Arc::clone(&status));
    let (advising, advised) = (Arc::clone(&outcomes), Arc::clone(&status));
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
        explain: Box::new(move |namespace, name| {
            explaining.note();
            explained.explain(namespace, name)
        }),
        advice: Box::new(move || {
            advising.note();
            advised.advice()
        }),
        config_json: Box::new({
            let (config, settings) = (config.clone(), Arc::clone(&settings));
            move || config.clone().with(settings.now()).to_json()
        }),
        turns: Turns::default(),
    }
    .bind(config.admin_addr, &config.admin_socket, missing.clone());

    // Drops capabilities before the first attachment, so that later attachments need no other ones. The threads of the
    // log and the handler and those for blocking work drop theirs themselves.
    capabilities::give_up_others().context("cannot drop capabilities")?;

    let (finder, awaited) = attach_now(&config, &attachment, &maps.config, kubelet_ready)?;

    spawn(&mut tasks, async move { outcomes.follow().await });
    spawn(&mut tasks, history.clone().keep());
    if let Some((parts, events)) = source.take() {
        pod_source::start(&config, &settings, &readiness, parts, events, &mut tasks).await?;
    }
    let unwanted = (!config.kernel_path).then(|| config.bpffs.clone());
    let pinning = pins_task::run(Arc::clone(&attachment), unwanted, first_pods_in_place);
    spawn(&mut tasks, pinning);
    let program_config = maps.config.clone();
    let applies = Applies {
        program_config: program_config.clone(),
        kernel_path: kernel_path_ready,
    };
    spawn(&mut tasks, settings::follow(Arc::clone(&settings), applies));
    let following = kubelet_task::run(
        Arc::clone(&attachment),
        maps.config,
        finder,
        awaited,
        readiness.clone(),
        Arc::clone(&metrics),
    );
    spawn(&mut tasks, following);

    let addresses: Vec<_> = handler
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    tracing::info!(
        handler = addresses.join(" "),
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
        history,
        settings,
        tasks,
    })
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

/// The handle that installs rules in pods.
fn exemption(programs: &Programs, pins: Option<&Pins>) -> anyhow::Result<Exemption> {
    let mut exemption = programs
        .exemption()
        .map_err(|error| anyhow::anyhow!(error.message()))?;
    if let Some(Err(error)) = pins.map(|pins| exemption.pin(pins)) {
        let error = anyhow::Error::from(error);
        tracing::warn!("cannot pin the program that the rules in pods call: {error:#}");
    }
    Ok(exemption)
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
            attachment.drain();
            if attachment.programs.outlives() {
                send_nothing_more(&self.program_config);
            } else {
                attachment.programs.detach_connect();
            }
        }
        let _ = self.metrics.attached.set(0);
        let drain_timeout = self.settings.now().drain_timeout;
        let drained = self.handler.drain();
        tokio::select! {
            () = drained => tracing::info!("drained"),
            () = tokio::time::sleep(drain_timeout) => {
                tracing::warn!(timeout_seconds = drain_timeout.as_secs(), "drain timeout: aborting in-flight checks");
            }
            signal = stop.signal() => tracing::warn!(signal, "second signal: aborting in-flight checks"),
        }
        self.attachment.lock().programs.leave();
        self.tasks.abort_all();
        self.history.save();
        let _ = admin_stop.send(());
        // The server removes the socket file; a client that keeps its connection open can't delay that.
        let _ = tokio::time::timeout(Duration::from_secs(1), admin).await;
        tracing::info!("ended");
        ended.map(|_| ())
    }
}

/// Makes the programs, which stay attached, redirect nothing to the handler: from now on every heartbeat is
/// too old.
fn send_nothing_more(config: &ProgramConfig) {
    if let Err(error) = config.update(|config| config.heartbeat_timeout_ns = 0) {
        tracing::debug!(%error, "cannot stop redirects at once: they end when the heartbeat is too old");
    }
}

/// Registers the metrics whose values are read at each scrape.
fn register(
    registry: &mut MetricsRegistry,
    config: &AgentConfig,
    readiness: &Readiness,
    watch_health: &Arc<Health>,
    counters: &Arc<CounterMap>,
    settings: &Arc<LiveSettings>,
    event_outcomes: &Arc<EventOutcomes>,
) {
    let counters = Arc::clone(counters);
    register_kernel_counters(registry, Arc::new(move || counters.read()));
    register_readiness(registry, readiness.clone());
    if config.settings.is_some() {
        let settings = Arc::clone(settings);
        register_settings(registry, Arc::new(move || settings.reloads()));
    }
    if config.events {
        register_events(registry, Arc::clone(event_outcomes));
    }
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
