//! The threads that answer probes, and the watchdog.
//!
//! | thread | serves |
//! |---|---|
//! | `handler` | connections; it accepts them unless a check blocks it |
//! | `standby` | the same, while `handler` is blocked |
//! | `slow-lane` | pods whose checks cost much processor time, at low priority |
//! | `watchdog` | nothing: it decides which thread accepts, and ends the process when a thread makes no progress |

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use probe_handler_common::spread::HANDLER_PORTS_V6;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use kernel::{capabilities, scheduling};
use serve::reserve::Reserve;
use serve::slow_lane::SlowConnections;
use serve::worker::{BEAT, Worker, next_turn};
use serve::{Handler, saved_syn};
use support::listen::{self, Share};
use support::missing::{Missing, Part};

/// Backlog of the listeners: every probe of a full node at once.
const BACKLOG: i32 = 4096;
/// Threads that can accept; the first one usually does.
const NAMES: [&str; 2] = ["handler", "standby"];
/// Interval between reads of the node's settings.
const SETTINGS: Duration = Duration::from_secs(5);
/// Interval between checks of the watchdog.
const LOOK: Duration = Duration::from_millis(50);
/// Number of checks of the watchdog without progress of a thread after which the process exits: 10 s. Checks are
/// counted instead of time, so that a process that was stopped and continued does not exit.
const PATIENCE: u32 = 200;
/// The exit code when a thread makes no progress: EX_SOFTWARE of sysexits.h.
const STOOD_STILL: i32 = 70;
/// How long checks in flight may take before the process exits because a thread makes no progress.
const LAST_CHECKS: Duration = Duration::from_secs(1);

/// The handler, which serves on its own threads.
pub struct HandlerThread {
    v4: SocketAddr,
    v6: Vec<SocketAddr>,
    reserve: Arc<Reserve>,
    workers: Vec<Arc<Worker>>,
    drain: watch::Sender<bool>,
    ended: watch::Receiver<usize>,
    /// Dropping it ends the watchdog.
    _watched: mpsc::Sender<()>,
}

/// Whether the threads that accept are alive, and the programs see the heartbeat.
pub struct Alive {
    reserve: Arc<Reserve>,
    workers: Vec<Arc<Worker>>,
    timeout: Duration,
}

impl HandlerThread {
    /// Listens on loopback at `port`, on ::1 also at the following ports (0: on any free ports), and starts to serve.
    ///
    /// # Errors
    /// The port is in use, or a thread can't be started.
    pub fn start(
        handler: Arc<Handler>,
        slow: SlowConnections,
        port: u16,
        missing: &Missing,
    ) -> anyhow::Result<Self> {
        let v4 = listen::tcp((Ipv4Addr::LOCALHOST, port).into(), Share::Alone, BACKLOG).with_context(|| {
            format!(
                "cannot listen on 127.0.0.1:{port} for the handler: choose another --handler-port, or 0 \
                 for any free port"
            )
        })?;
        let at_v6 = (Ipv6Addr::LOCALHOST, port).into();
        let v6 = match listen::ports(at_v6, HANDLER_PORTS_V6, BACKLOG) {
            Ok(listeners) => listeners,
            Err(error) => {
                tracing::warn!(%error, "cannot listen on ::1: probes of IPv6 pods are not served");
                Vec::new()
            }
        };
        let v4_address = v4.local_addr()?;
        let v6_addresses = v6
            .iter()
            .map(StdListener::local_addr)
            .collect::<Result<_, _>>()?;
        let listeners: Vec<StdListener> = std::iter::once(v4).chain(v6).collect();
        for listener in &listeners {
            saved_syn::keep(listener)
                .context("cannot make the kernel keep the SYNs of connections")?;
        }

        let (turns, turn) = watch::channel(0);
        let drain = handler.drain.clone();
        let (end, ended) = watch::channel(0);
        let mut workers = Vec::new();
        for (index, name) in NAMES.into_iter().enumerate() {
            let worker = Arc::new(Worker::new(name, index, turn.clone()));
            workers.push(Arc::clone(&worker));
            let listeners = listeners
                .iter()
                .map(StdListener::try_clone)
                .collect::<Result<Vec<_>, _>>()?;
            let beating = beat(Arc::clone(&handler), Arc::clone(&worker), missing.clone());
            let work = serve(
                Arc::clone(&handler),
                Arc::clone(&worker),
                listeners,
                beating,
            );
            let end = end.clone();
            let _thread = spawn(name, move |runtime| {
                if let Err(error) = runtime.block_on(work) {
                    tracing::error!(%error, "the handler ended");
                }
                // While the other thread drains, this one makes no progress.
                worker.end();
                end.send_modify(|ended| *ended += 1);
            })?;
        }
        let lane = Arc::new(Worker::new("slow-lane", NAMES.len(), turn));
        let weak: Weak<Handler> = Arc::downgrade(&handler);
        let _thread = spawn(lane.name(), move |runtime| {
            if let Err(error) = scheduling::give_way() {
                tracing::debug!(%error, "cannot lower the priority of the slow lane");
            }
            runtime.block_on(slow.run(weak, lane));
        })?;
        // First heartbeat: from now on the programs may be attached.
        match usable(missing) {
            true => handler.reserve.beat(),
            false => handler.reserve.pause(),
        }
        let (watched, stop) = mpsc::channel();
        let (watching, reserve) = (workers.clone(), Arc::clone(&handler.reserve));
        let _thread = spawn("watchdog", move |_runtime| {
            watch_over(&handler.reserve, &watching, &turns, &stop)
        })?;
        Ok(Self {
            v4: v4_address,
            v6: v6_addresses,
            reserve,
            workers,
            drain,
            ended,
            _watched: watched,
        })
    }

    /// Port on 127.0.0.1.
    pub fn port_v4(&self) -> u16 {
        self.v4.port()
    }

    /// The ports on ::1; all 0 without IPv6.
    pub fn ports_v6(&self) -> [u16; HANDLER_PORTS_V6 as usize] {
        std::array::from_fn(|index| self.v6.get(index).map_or(0, SocketAddr::port))
    }

    /// The addresses on which it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        std::iter::once(self.v4).chain(self.v6.clone()).collect()
    }

    /// Liveness: each thread must have made progress, and the last heartbeat must have been sent, within `timeout`.
    pub fn alive(&self, timeout: Duration) -> Alive {
        Alive {
            reserve: Arc::clone(&self.reserve),
            workers: self.workers.clone(),
            timeout,
        }
    }

    /// Serves the backlog, then stops accepting; resolves when the last check has ended.
    pub fn drain(&self) -> impl Future<Output = ()> + use<> {
        let _ = self.drain.send(true);
        self.ended_with(NAMES.len())
    }

    /// Resolves when any of the threads has ended.
    pub fn ended(&self) -> impl Future<Output = ()> + use<> {
        self.ended_with(1)
    }

    fn ended_with(&self, threads: usize) -> impl Future<Output = ()> + use<> {
        let mut ended = self.ended.clone();
        async move {
            // An error means that all threads have ended without reporting it.
            let _ = ended.wait_for(|ended| *ended >= threads).await;
        }
    }
}

impl Alive {
    /// Checks that all threads make progress and the heartbeat is recent, unless it was stopped on purpose.
    ///
    /// # Errors
    /// The thread without progress, or the late heartbeat, and for how long, as text.
    pub fn check(&self) -> Result<(), String> {
        let now = Instant::now();
        let silent = self.workers.iter().filter_map(|worker| {
            let silent = worker.silent_for(now);
            (silent > self.timeout).then(|| {
                format!(
                    "thread {} has made no progress for {silent:.1?}",
                    worker.name()
                )
            })
        });
        let heartbeat = self.reserve.silent_for(now);
        let heartbeat = heartbeat.filter(|silent| *silent > self.timeout);
        let late = heartbeat.map(|silent| format!("the last heartbeat was {silent:.1?} ago"));
        match silent.chain(late).collect::<Vec<_>>() {
            silent if silent.is_empty() => Ok(()),
            silent => Err(silent.join(", ")),
        }
    }
}

/// Starts a thread with a runtime, and with the capabilities of the other threads.
fn spawn(
    name: &'static str,
    work: impl FnOnce(Runtime) + Send + 'static,
) -> anyhow::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(capabilities::give_up_others_or_abort)
        .build()
        .with_context(|| format!("cannot start the runtime of thread {name}"))?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            capabilities::give_up_others_or_abort();
            work(runtime);
        })
        .with_context(|| format!("cannot start thread {name}"))
}

/// Serves `listeners` on the thread of `worker`, while `beating` reports that it is alive.
async fn serve(
    handler: Arc<Handler>,
    worker: Arc<Worker>,
    listeners: Vec<StdListener>,
    beating: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    // Runs these as tasks, because each wake-up of the runtime's root future costs an additional event.
    let mut serving = JoinSet::new();
    for listener in listeners {
        let serve = Arc::clone(&handler).serve(Arc::clone(&worker), listener);
        let _ = serving.spawn(serve);
    }
    let beating = tokio::spawn(beating);
    while let Some(served) = serving.join_next().await {
        served?;
    }
    beating.abort();
    Ok(())
}

/// Records that the thread is alive; if it is the thread that accepts, also sends the handler's heartbeat.
async fn beat(handler: Arc<Handler>, worker: Arc<Worker>, missing: Missing) {
    let mut looked = Instant::now();
    let mut is_usable = usable(&missing);
    let mut ticks = tokio::time::interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let _ = ticks.tick().await;
        worker.beat();
        if looked.elapsed() >= SETTINGS {
            looked = Instant::now();
            is_usable = usable(&missing);
        }
        match (worker.has_turn(), is_usable) {
            (true, true) => handler.reserve.beat(),
            (true, false) => handler.reserve.pause(),
            (false, _) => {}
        }
    }
}

/// Whether the node's settings let the handler identify the connections that it accepts; if not, the handler is recorded
/// as missing.
fn usable(missing: &Missing) -> bool {
    let obstacle = saved_syn::obstacle();
    match obstacle {
        Some(why) => missing.note(Part::Handler, why),
        None => missing.clear(Part::Handler),
    }
    obstacle.is_none()
}

/// Gives the turn to accept to a worker that is not blocked, and ends the process when a worker makes no progress.
fn watch_over(
    reserve: &Reserve,
    workers: &[Arc<Worker>],
    turns: &watch::Sender<usize>,
    stop: &mpsc::Receiver<()>,
) {
    let mut looks: Vec<(u64, u32)> = vec![(0, 0); workers.len()];
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(LOOK) {
        let now = Instant::now();
        let blocked: Vec<bool> = workers.iter().map(|one| one.is_blocked(now)).collect();
        let turn = *turns.borrow();
        let next = next_turn(turn, &blocked);
        if next != turn {
            tracing::debug!(
                from = workers[turn].name(),
                to = workers[next].name(),
                "a check blocks the thread: another thread accepts connections"
            );
            let _ = turns.send_replace(next);
        }
        for (worker, (beats, still)) in workers.iter().zip(&mut looks) {
            match worker.beats() {
                now if now == *beats && !worker.has_ended() => *still += 1,
                now => (*beats, *still) = (now, 0),
            }
            if *still >= PATIENCE {
                tracing::error!(
                    thread = worker.name(),
                    "the thread has made no progress for {:?}: exiting, so that the supervisor restarts the daemon",
                    LOOK * PATIENCE
                );
                // Threads that still work finish the checks in flight; the programs redirect no new ones.
                reserve.close();
                let _ = stop.recv_timeout(LAST_CHECKS);
                // The main thread may hang too, so only the log is flushed.
                std::process::exit(STOOD_STILL);
            }
        }
    }
}
