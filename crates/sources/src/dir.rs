//! A source of pods: a watched directory of Pod manifests.
//!
//! Every change triggers a scan of the whole directory, so that atomically replaced files and the
//! `..data` symlink of a mounted ConfigMap need no special handling.

use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::source::SourceEvent;
use pods::scope::Selection;
use pods::select::SelectedPod;
use scan::{Identity, Scan, Scanner};
use support::missing::{Missing, Part};

mod scan;

pub use scan::{MAX_FILE_LEN, NETNS};

/// How long to wait after a change for further changes that belong to it.
pub const DEBOUNCE: Duration = Duration::from_millis(20);
/// How often to scan without an inotify event. This finds what inotify does not report, such as a change behind
/// a symlink that leads out of the directory, or another directory in place of this one.
pub const POLL: Duration = Duration::from_secs(1);
/// How soon to scan again while a file may be half written.
const POLL_UNFINISHED: Duration = Duration::from_millis(40);
/// How often to scan while inotify is unavailable.
const POLL_UNWATCHED: Duration = Duration::from_millis(80);
/// How often to retry inotify.
const RETRY: Duration = Duration::from_secs(5);
/// How often to check whether a missing directory is back.
const POLL_MISSING: Duration = Duration::from_millis(100);

/// Why the source can't start.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// The directory can't be read.
    #[error("the directory of Pod manifests {path:?} can't be read")]
    Read {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Watches the manifests in `path` under `selection`, which may change (`*.yaml`, `*.yml`, `*.json`, except names that begin
/// with a dot) and sends all pods and all problems to `tx`, each whenever they change. Returns when the receiver of `tx` is
/// dropped. If the directory is removed, its last known pods stay and a problem is reported. The same applies to the pods of a
/// file that is being written in place or can no longer be parsed. While the directory can't be watched, `missing` reports it
/// and the directory is scanned more often.
///
/// # Errors
/// The directory can't be read at the start.
pub async fn run(
    path: PathBuf,
    mut selection: watch::Receiver<Selection>,
    tx: mpsc::Sender<SourceEvent>,
    missing: Missing,
) -> Result<(), DirError> {
    let unreadable = |source| DirError::Read {
        path: path.clone(),
        source,
    };
    // The watch begins before the first scan, so that no change in between is lost.
    let _ = Identity::of(&path).map_err(unreadable)?;
    let mut watched = Watched::new(path.clone(), missing);
    watched.renew();
    let selected = *selection.borrow_and_update();
    let (mut scanner, mut result) = scan(Scanner::new(path.clone(), selected)).await;
    if let Err(source) = result {
        return Err(unreadable(source));
    }
    let mut publisher = Publisher::new(tx);
    loop {
        let pause = match &result {
            Ok(Some(scan)) if scan.unfinished => POLL_UNFINISHED,
            Ok(_) if watched.watch.is_none() => POLL_UNWATCHED,
            Ok(_) => POLL,
            Err(_) => POLL_MISSING,
        };
        if publisher.publish(result).await.is_err() {
            return Ok(());
        }
        tokio::select! {
            () = publisher.tx.closed() => return Ok(()),
            Ok(()) = selection.changed() => scanner.set_selection(*selection.borrow_and_update()),
            () = changed(watched.watch.as_ref()) => sleep(DEBOUNCE).await,
            () = sleep(pause) => {}
        }
        watched.renew();
        (scanner, result) = scan(scanner).await;
    }
}

/// Scans on a thread that may block.
async fn scan(mut scanner: Scanner) -> (Scanner, io::Result<Option<Scan>>) {
    let task = tokio::task::spawn_blocking(move || {
        let result = scanner.scan();
        (scanner, result)
    });
    match task.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // This module never cancels the task: the runtime is shutting down, which ends this task too.
            Err(_) => std::future::pending().await,
        },
    }
}

/// An inotify watch on a directory.
pub struct Watch {
    identity: Identity,
    changed: Arc<Notify>,
    /// Keeps the watch until dropped.
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Watches `path`. The caller must have read `identity` before, so that a directory that replaces
    /// this one meanwhile has a different identity.
    fn new(path: &Path, identity: Identity) -> notify::Result<Self> {
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| is_reading(event.kind)) {
                return;
            }
            notify.notify_one();
        })?;
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(Self {
            identity,
            changed,
            _watcher: watcher,
        })
    }

    /// Waits until something in the directory has changed since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// The scan itself reads the files: if reads counted as changes, scanning would never end.
fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

async fn changed(watch: Option<&Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// The directory, with an inotify watch if the kernel provides one.
struct Watched {
    path: PathBuf,
    watch: Option<Watch>,
    /// When inotify failed.
    refused: Option<Instant>,
    missing: Missing,
}

impl Watched {
    fn new(path: PathBuf, missing: Missing) -> Self {
        Self {
            path,
            watch: None,
            refused: None,
            missing,
        }
    }

    /// Watches the directory that is now at the path.
    fn renew(&mut self) {
        if self.refused.is_some_and(|at| at.elapsed() < RETRY) {
            return;
        }
        self.refused = None;
        match watch_anew(self.watch.take(), &self.path) {
            Ok(watch) => {
                self.watch = watch;
                self.missing.clear(Part::ManifestWatch);
            }
            Err(error) => {
                self.refused = Some(Instant::now());
                let why = format!(
                    "can't watch {:?} ({error}): reading it every {POLL_UNWATCHED:?} instead; raise \
                     fs.inotify.max_user_instances or max_user_watches, or find the program of the same user that \
                     uses them up",
                    self.path
                );
                self.missing.note(Part::ManifestWatch, &why);
            }
        }
    }
}

/// The watch on the directory that is now at `path`. `None` if there is no directory or it can't be watched:
/// then the directory is scanned every second.
pub fn renew(watch: Option<Watch>, path: &Path) -> Option<Watch> {
    watch_anew(watch, path)
        .inspect_err(|error| {
            tracing::warn!(?path, %error, "can't watch this directory: reading it every second");
        })
        .ok()
        .flatten()
}

/// Like [`renew`], but an error if the directory exists and can't be watched.
fn watch_anew(watch: Option<Watch>, path: &Path) -> notify::Result<Option<Watch>> {
    let Ok(identity) = Identity::of(path) else {
        return Ok(None);
    };
    match watch {
        Some(watch) if watch.identity == identity => Ok(Some(watch)),
        _ => Watch::new(path, identity).map(Some),
    }
}

/// The receiver is dropped.
struct Closed;

/// Sends pods and problems, each only if they have changed.
struct Publisher {
    tx: mpsc::Sender<SourceEvent>,
    pods: Option<Vec<Arc<SelectedPod>>>,
    problems: Vec<String>,
}

impl Publisher {
    fn new(tx: mpsc::Sender<SourceEvent>) -> Self {
        Self {
            tx,
            pods: None,
            problems: Vec::new(),
        }
    }

    async fn publish(&mut self, result: io::Result<Option<Scan>>) -> Result<(), Closed> {
        let problems = match result {
            Ok(None) => return Ok(()),
            Ok(Some(Scan {
                pods,
                problems,
                read,
                unfinished: _,
            })) => {
                tracing::debug!(read, pods = pods.len(), "read Pod manifests");
                if self.pods.as_ref() != Some(&pods) {
                    self.pods = Some(pods.clone());
                    self.send(SourceEvent::Replace(pods)).await?;
                }
                problems
            }
            Err(error) => vec![format!(
                "the directory of Pod manifests can't be read; its last known pods are still served: {error}"
            )],
        };
        if problems == self.problems {
            return Ok(());
        }
        self.problems = problems.clone();
        self.send(SourceEvent::Problems(problems)).await
    }

    async fn send(&self, event: SourceEvent) -> Result<(), Closed> {
        self.tx.send(event).await.map_err(|_| Closed)
    }
}

#[cfg(test)]
mod tests;
