//! Keeps the history of pods in memory, and in a file in the daemon's run directory, so that it survives a restart.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};

use super::pods_state::PodsState;
use crate::observe::history::changes;
use model::Action;
use pods::select::SelectedPod;
use pods::state::PodState;
use serve::history::{Run, now_ms};
use serve::metrics::Metrics;
use serve::table::Route;
use status_view::history::{PodChange, PodEvent};

/// Maximum number of changes that are kept of one pod.
const EVENTS: usize = 32;
/// Maximum number of start times of the daemon that are kept.
const STARTS: usize = 16;
/// Maximum number of runs of one probe in the file, which contains the newest ones.
const SAVED_RUNS: usize = 16;
/// Maximum size of the file in bytes: a thousand probes with all their runs need half of it.
const LIMIT: usize = 4 << 20;
/// Interval between checks for changes, and so between writes.
const PACE: Duration = Duration::from_secs(2);

/// What the kubelet has done with each pod, and when the daemons were started.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Histories {
    /// Starts of the daemon, oldest first. Milliseconds since 1970.
    pub starts_ms: Vec<u64>,
    /// By UID.
    pods: BTreeMap<String, Kept>,
    /// Incremented with each change.
    #[serde(skip)]
    changes: u64,
}

/// What is kept of a pod.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    state: PodState,
    events: VecDeque<PodEvent>,
    /// The runs of each check, by [`key`], as read from the file; kept here until they are added to the pod's
    /// routes.
    #[serde(default)]
    runs: BTreeMap<String, Vec<Run>>,
}

impl Histories {
    /// Reads the history from the file at `path`, and adds the start of this daemon.
    pub fn load(path: &Path) -> Self {
        let mut histories = match read(path) {
            Ok(histories) => histories,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "can't read the history of probes: starting with an empty one");
                Self::default()
            }
        };
        histories.starts_ms.push(now_ms());
        let extra = histories.starts_ms.len().saturating_sub(STARTS);
        drop(histories.starts_ms.drain(..extra));
        histories
    }

    /// Records what has changed in the states of `pods`, which must be all pods. Returns the containers that were
    /// restarted, with the UIDs of their pods.
    pub fn see(&mut self, pods: &[Arc<SelectedPod>], now_ms: u64) -> Vec<(String, String)> {
        let mut restarted = Vec::new();
        let mut before = std::mem::take(&mut self.pods);
        for pod in pods {
            let uid = &pod.id.uid;
            let mut kept = before.remove(uid).unwrap_or_default();
            // A last-known pod, read from the file, has no state.
            if kept.state != pod.state && pod.state != PodState::default() {
                for event in changes(&kept.state, &pod.state, now_ms) {
                    if let PodChange::Restarted { container, .. } = &event.change {
                        restarted.push((uid.clone(), container.clone()));
                    }
                    if kept.events.len() == EVENTS {
                        let _ = kept.events.pop_front();
                    }
                    kept.events.push_back(event);
                }
                kept.state = pod.state.clone();
                self.changes += 1;
            }
            let _ = self.pods.insert(uid.clone(), kept);
        }
        if !before.is_empty() {
            self.changes += 1;
        }
        restarted
    }

    /// Adds the runs that an earlier daemon has recorded to the routes of a pod.
    pub fn restore(&mut self, uid: &str, routes: &[Arc<Route>]) {
        let Some(kept) = self.pods.get_mut(uid) else {
            return;
        };
        let mut runs = std::mem::take(&mut kept.runs);
        for route in routes {
            if let Some(runs) = key(route).and_then(|key| runs.remove(&key)) {
                route.stats.restore(&runs);
            }
        }
    }

    /// The state of a pod, and its changes, oldest first.
    pub fn of(&self, uid: &str) -> (PodState, Vec<PodEvent>) {
        let kept = self.pods.get(uid);
        kept.map(|kept| (kept.state.clone(), kept.events.iter().cloned().collect()))
            .unwrap_or_default()
    }
}

/// Identifies a check of a pod in the file.
fn key(route: &Route) -> Option<String> {
    let first = route.members.first()?;
    let target = match &route.action {
        Action::Http { target, .. } => target.as_str(),
        Action::Grpc { service, .. } => service.as_str(),
        Action::Tcp { .. } => "",
    };
    Some(format!(
        "{} {} {}:{} {target}",
        first.container,
        first.kind.name(),
        route.action.protocol(),
        route.action.port()
    ))
}

/// Writes the history to its file.
#[derive(Clone)]
pub struct Keeper {
    path: PathBuf,
    shared: Arc<Mutex<PodsState>>,
    metrics: Arc<Metrics>,
}

impl Keeper {
    /// Writes the history `shared` to the file at `path`. `metrics` counts the changes of results.
    pub fn new(path: PathBuf, shared: Arc<Mutex<PodsState>>, metrics: Arc<Metrics>) -> Self {
        Self {
            path,
            shared,
            metrics,
        }
    }

    /// The file of the daemon whose admin socket is at `socket`.
    pub fn path_for(socket: &Path) -> PathBuf {
        socket.with_extension("history")
    }

    /// Writes the file whenever something has changed. Never returns.
    pub async fn keep(self) {
        let mut looks = interval(PACE);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut written = self.generation();
        let mut is_reported = false;
        loop {
            let _ = looks.tick().await;
            let now = self.generation();
            if now == written {
                continue;
            }
            let text = self.text();
            let path = self.path.clone();
            let done = tokio::task::spawn_blocking(move || write(&path, &text?)).await;
            match done.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(()) => {
                    written = now;
                    is_reported = false;
                }
                Err(error) if !is_reported => {
                    is_reported = true;
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "can't write the history of probes: it is lost when this daemon ends");
                }
                Err(_) => {}
            }
        }
    }

    /// Writes the file now.
    pub fn save(&self) {
        if let Err(error) = self.text().and_then(|text| write(&self.path, &text)) {
            tracing::debug!(%error, "the last changes of the history were not saved");
        }
    }

    fn generation(&self) -> (u64, u64) {
        let changes = self.shared.lock().histories.changes;
        (changes, self.metrics.changes.load(Ordering::Relaxed))
    }

    fn text(&self) -> io::Result<Vec<u8>> {
        let shared = self.shared.lock();
        let mut pods = BTreeMap::new();
        for (uid, kept) in &shared.histories.pods {
            let mut runs = kept.runs.clone();
            if let Some(entry) = shared.registry.pods().get(uid) {
                for route in entry.routes.routes() {
                    let (mut newest, _) = route.stats.history();
                    let extra = newest.len().saturating_sub(SAVED_RUNS);
                    drop(newest.drain(..extra));
                    if let Some(key) = key(&route).filter(|_| !newest.is_empty()) {
                        let _ = runs.insert(key, newest);
                    }
                }
            }
            let kept = Kept {
                state: kept.state.clone(),
                events: kept.events.clone(),
                runs,
            };
            let _ = pods.insert(uid.clone(), kept);
        }
        let histories = Histories {
            starts_ms: shared.histories.starts_ms.clone(),
            pods,
            changes: 0,
        };
        drop(shared);
        Ok(serde_json::to_vec(&histories)?)
    }
}

fn read(path: &Path) -> io::Result<Histories> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let meta = file.metadata()?;
    let user = nix::unistd::geteuid().as_raw();
    if !meta.is_file() || meta.uid() != user || meta.mode() & 0o077 != 0 {
        return Err(io::Error::other(
            "it must be a regular file that belongs to this user and that no other user may access",
        ));
    }
    let mut text = Vec::new();
    let _ = file.take(LIMIT as u64).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    if text.len() >= LIMIT {
        let _ = fs::remove_file(path);
        return Err(io::Error::other(format!(
            "{} bytes are more than the limit of {LIMIT}",
            text.len()
        )));
    }
    let new = path.with_extension("history.new");
    // A daemon that was killed may have left this file.
    let _ = fs::remove_file(&new);
    let mut options = OpenOptions::new();
    let created = options.write(true).create_new(true).mode(0o600).open(&new);
    let written = created
        .and_then(|mut file| file.write_all(text))
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ProbeKind;
    use pods::state::ContainerState;
    use probe::verdict::{Outcome, Reason};
    use serve::metrics::fixtures::{route, verdict};

    fn pod(uid: &str, restarts: u32) -> Arc<SelectedPod> {
        let pod = k8s_openapi::api::core::v1::Pod::default();
        let selection = pods::scope::Selection {
            scope: pods::scope::Scope::All,
            ..Default::default()
        };
        let mut parsed = pods::parse::parse_pod(&pod).select(&selection);
        parsed.id.uid = uid.to_owned();
        parsed.state.containers.push(ContainerState {
            name: "app".to_owned(),
            restarts,
            started_ms: None,
            ended: None,
        });
        Arc::new(parsed)
    }

    #[test]
    fn a_restart_is_an_event_also_while_no_daemon_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("admin.history");
        let mut first = Histories::load(&path);
        assert!(first.see(&[pod("u1", 0)], 1_000).is_empty(), "a new pod");
        let text = serde_json::to_vec(&first).expect("JSON");
        write(&path, &text).expect("written");

        let mut second = Histories::load(&path);
        assert_eq!(second.starts_ms.len(), 2);
        let restarted = second.see(&[pod("u1", 1)], 2_000);
        assert_eq!(restarted, [("u1".to_owned(), "app".to_owned())]);
        assert_eq!(second.of("u1").1.len(), 1);
        let _ = second.see(&[], 3_000);
        assert!(second.of("u1").1.is_empty(), "the pod is gone");
    }

    #[test]
    fn the_runs_of_an_earlier_daemon_return_to_the_same_probe() {
        let run = Run {
            since_ms: 1,
            until_ms: 1,
            count: 3,
            outcome: Outcome::Failure,
            reason: Reason::TimedOut,
            status: 504,
            latency_us: 0,
            p99_us: 0,
        };
        let (liveness, readiness) = (route(ProbeKind::Liveness), route(ProbeKind::Readiness));
        let mut histories = Histories::default();
        let kept = histories.pods.entry("u1".to_owned()).or_default();
        let of = key(&liveness).expect("a member");
        let _ = kept.runs.insert(of, vec![run]);
        let _ = readiness
            .stats
            .record(Outcome::Success, verdict(Reason::Healthy, 200));
        let routes = [Arc::new(liveness), Arc::new(readiness)];
        histories.restore("u1", &routes);
        assert_eq!(routes[0].stats.history().0, [run]);
        assert_eq!(routes[1].stats.history().0.len(), 1);
    }

    #[test]
    fn a_file_that_others_may_write_is_not_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("admin.history");
        write(&path, b"{\"starts_ms\": [], \"pods\": {}}").expect("written");
        assert!(read(&path).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("changed");
        assert!(read(&path).is_err());
    }
}
