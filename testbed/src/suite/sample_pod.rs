//! The pod that most groups probe, and the expected results of its probes with and without the daemon.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::app::AppSpec;
use crate::kubelet::{Action, Kubelet, Probe, ProbeResult};
use crate::pace;
use crate::pod::PodSpec;
use crate::rules::RuleSet;
use crate::wait;

/// HTTP, with `/healthy` and `/failing`.
pub const HTTP: u16 = 8080;
/// gRPC, with services `ok` and `down`.
pub const GRPC: u16 = 9090;
/// A TCP port on which the app listens.
pub const OPEN: u16 = 5432;
/// A TCP port on which nothing listens.
pub const CLOSED: u16 = 5433;

/// How long additional probes may take.
const SOON: Duration = Duration::from_secs(5);
/// How many wrong results a message lists.
const LISTED: usize = 8;

/// A manifest's container with two probes.
pub fn container(name: &str, liveness: Value, readiness: Value) -> Value {
    json!({"name": name, "image": "app", "livenessProbe": liveness, "readinessProbe": readiness})
}

/// A manifest's `httpGet` probe.
pub fn http(port: u16, path: &str) -> Value {
    json!({"httpGet": {"port": port, "path": path}})
}

/// A pod with Istio's rules and sidecar, and one healthy and one unhealthy probe of each kind.
pub fn pod(name: &str) -> PodSpec {
    let tcp = |port: u16| json!({"tcpSocket": {"port": port}});
    let grpc = |service: &str| json!({"grpc": {"port": GRPC, "service": service}});
    PodSpec::new(name)
        .rules(RuleSet::IstioRedirect)
        .app(AppSpec::new().http(HTTP).grpc(GRPC).tcp(OPEN))
        .container(container(
            "web",
            http(HTTP, "/healthy"),
            http(HTTP, "/failing"),
        ))
        .container(container("api", grpc("ok"), grpc("down")))
        .container(container("db", tcp(OPEN), tcp(CLOSED)))
}

/// A probe of the sample pod and its expected results.
#[derive(Clone, Debug)]
pub struct Case {
    /// The probe.
    pub probe: Probe,
    /// Whether the app is healthy for this probe.
    pub healthy: bool,
    /// Whether the probe passes without the daemon.
    pub passes_without_daemon: bool,
}

impl Case {
    /// Whether `result` matches the app's health, with the app's status if the probe is HTTP.
    pub fn matches(&self, result: &ProbeResult) -> bool {
        let status = match (&self.probe.action, self.healthy) {
            (Action::Http { .. }, true) => Some(200),
            (Action::Http { .. }, false) => Some(503),
            _ => None,
        };
        result.passed() == self.healthy && result.status == status
    }
}

/// All probes of the sample pod at `ip`.
pub fn probes(ip: IpAddr) -> Vec<Case> {
    [
        (Probe::http(ip, HTTP, "/healthy"), true, false),
        (Probe::http(ip, HTTP, "/failing"), false, false),
        (Probe::grpc(ip, GRPC, "ok"), true, false),
        (Probe::grpc(ip, GRPC, "down"), false, false),
        (Probe::tcp(ip, OPEN), true, true),
        (Probe::tcp(ip, CLOSED), false, true),
    ]
    .map(|(probe, healthy, passes_without_daemon)| Case {
        probe,
        healthy,
        passes_without_daemon,
    })
    .to_vec()
}

/// Checks that every probe at `ip` has the result that matches the app's health.
///
/// # Errors
/// When one does not.
pub fn check_verdicts(kubelet: &Kubelet, ip: IpAddr) -> Result<()> {
    for case in probes(ip) {
        let result = kubelet.probe(&case.probe)?;
        ensure!(
            case.matches(&result),
            "wrong result: {:?}: {result:?}",
            case.probe
        );
    }
    Ok(())
}

/// Checks that the mesh handles every probe at `ip`: plaintext is refused, a closed port looks open.
///
/// # Errors
/// When one does not.
pub fn check_mesh_only(kubelet: &Kubelet, ip: IpAddr) -> Result<()> {
    let shorter = |mut probe: Probe| {
        if matches!(probe.action, Action::Grpc { .. }) {
            // The gRPC client dials again until the timeout.
            probe = probe.timeout(Duration::from_millis(200));
        }
        probe
    };
    for case in probes(ip) {
        let result = kubelet.probe(&shorter(case.probe.clone()))?;
        let right = result.passed() == case.passes_without_daemon && result.status.is_none();
        ensure!(
            right,
            "not handled by the mesh: {:?}: {result:?}",
            case.probe
        );
    }
    Ok(())
}

/// A probe and its result, with start and end time.
#[derive(Clone, Debug)]
pub struct TimedProbe {
    /// Start time.
    pub begun: Instant,
    /// End time.
    pub ended: Instant,
    /// The probe.
    pub probe: Probe,
    /// Its result.
    pub result: ProbeResult,
}

/// Whether `made` has the result that one of `cases` expects.
pub fn is_expected(cases: &[Case], made: &TimedProbe) -> bool {
    let mut cases = cases.iter();
    cases.any(|case| case.probe == made.probe && case.matches(&made.result))
}

/// # Errors
/// When there are wrong results; the message lists the first ones.
pub fn none_wrong(when: &str, wrong: &[&TimedProbe]) -> Result<()> {
    let Some(first) = wrong.first() else {
        return Ok(());
    };
    let listed: Vec<_> = wrong
        .iter()
        .take(LISTED)
        .map(|made| {
            let (probe, result) = (&made.probe, &made.result);
            format!(
                "\n       begun {:?} after the first, ended {:?} later: {:?} at {}, port {}: {:?} {:?} {:?}",
                made.begun - first.begun,
                made.ended - made.begun,
                probe.action,
                probe.ip,
                probe.port,
                result.outcome,
                result.status,
                result.message
            )
        })
        .collect();
    bail!("{when}, {} are wrong:{}", wrong.len(), listed.concat())
}

/// Continuous probing by several concurrent probers.
#[derive(Debug)]
pub struct Probing {
    stop: Arc<AtomicBool>,
    made: Arc<Mutex<Vec<TimedProbe>>>,
    probers: Vec<JoinHandle<Result<()>>>,
}

impl Probing {
    /// Starts one prober per probe, which probes again as soon as it has its result.
    pub fn start(kubelet: &Arc<Kubelet>, probes: Vec<Probe>) -> Self {
        Self::every(kubelet, probes, Duration::ZERO)
    }

    /// Like [`Probing::start`], for many probes of one pod. On an emulated processor each prober makes a probe every 200 ms of
    /// stretched time: without pauses the pod's checks would cost so much there that the daemon serves them at low priority,
    /// and probes time out while another daemon loads its programs.
    pub fn start_many(kubelet: &Arc<Kubelet>, probes: Vec<Probe>) -> Self {
        let interval = match pace::factor() {
            1 => Duration::ZERO,
            _ => pace::stretch(Duration::from_millis(200)),
        };
        Self::every(kubelet, probes, interval)
    }

    /// Starts one prober per probe, which probes again `interval` after its last start, or later if the result takes
    /// longer.
    pub fn every(kubelet: &Arc<Kubelet>, probes: Vec<Probe>, interval: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let made = Arc::new(Mutex::new(Vec::new()));
        let probers = probes
            .into_iter()
            .map(|probe| {
                let (kubelet, stop, made) =
                    (Arc::clone(kubelet), Arc::clone(&stop), Arc::clone(&made));
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        let result = kubelet.probe(&probe)?;
                        made.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(TimedProbe {
                                begun,
                                ended: Instant::now(),
                                probe: probe.clone(),
                                result,
                            });
                        wait::pass(interval.saturating_sub(begun.elapsed()))?;
                    }
                    Ok(())
                })
            })
            .collect();
        Self {
            stop,
            made,
            probers,
        }
    }

    /// The probes so far.
    pub fn so_far(&self) -> Vec<TimedProbe> {
        self.made
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until each prober has made about `times` more probes; fewer on slow machines.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn more(&self, times: usize) -> Result<()> {
        let enough = self.so_far().len() + pace::fewer(times) * self.probers.len();
        wait::until("more probes", SOON, || {
            (self.so_far().len() >= enough).then_some(())
        })
    }

    /// Stops the probers; returns all probes.
    ///
    /// # Errors
    /// When the kubelet has ended.
    pub fn stop(mut self) -> Result<Vec<TimedProbe>> {
        self.stop.store(true, Ordering::Relaxed);
        for prober in self.probers.drain(..) {
            prober.join().map_err(|_| anyhow!("a prober panicked"))??;
        }
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        if made.is_empty() {
            bail!("nothing was probed");
        }
        Ok(made)
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for prober in self.probers.drain(..) {
            drop(prober.join());
        }
    }
}

/// The given percentile of the probes' latencies.
pub fn percentile(made: &[TimedProbe], percent: usize) -> Duration {
    let mut latencies: Vec<_> = made.iter().map(|made| made.result.latency).collect();
    latencies.sort_unstable();
    let index = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
    latencies.get(index).copied().unwrap_or_default()
}
