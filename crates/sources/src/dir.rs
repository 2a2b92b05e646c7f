//! Source of pods: a directory of Pod manifests, watched.
//!
//! Every change leads to a new scan of the whole directory, so that atomically replaced files and
//! the `..data` symlink of a mounted ConfigMap need no special care.

use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};

use crate::source::SourceEvent;
use pods::parse::ParsedPod;
use pods::scope::Selection;
use scan::{Identity, Scan, Scanner};
use support::missing::{Missing, Part};

mod scan;

pub use scan::{MAX_FILE_LEN, NETNS};

/// How long to wait after a change for others that belong to it.
pub const DEBOUNCE: Duration = Duration::from_millis(20);
/// How often to look without having been told: finds what inotify can't see, such as a change behind
/// a symlink that leads out of the directory, or another directory in place of this one.
pub const POLL: Duration = Duration::from_secs(1);
/// How soon to look again at a file that may be half written.
const POLL_UNFINISHED: Duration = Duration::from_millis(40);
/// How often to look while the kernel does not tell of changes.
const POLL_UNTOLD: Duration = Duration::from_millis(80);
/// How often to ask the kernel again to do so.
const AGAIN: Duration = Duration::from_secs(5);
/// How often to look for a directory that has vanished.
const POLL_MISSING: Duration = Duration::from_millis(100);

/// Why the source can't start.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// The directory can't be read.
    #[error("the directory of Pod manifests {path:?} can't be read")]
    Read {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Watches the manifests in `path` (`*.yaml`, `*.yml`, `*.json`, not those whose name begins with a
/// dot) and tells `tx` all pods and all problems, each whenever they change. Ends when nobody listens
/// any more. Should the directory vanish, what was last known stays, and a problem says so; likewise the pods of a file
/// that is written in place, or can't be understood any more. While the directory can't be watched, that is noted in
/// `missing`, and it is looked at often instead.
///
/// # Errors
/// The directory can't be read at the start.
pub async fn run(
    path: PathBuf,
    selection: Selection,
    tx: mpsc::Sender<SourceEvent>,
    missing: Missing,
) -> Result<(), DirError> {
    let unreadable = |source| DirError::Read {
        path: path.clone(),
        source,
    };
    // Watched before it is scanned: a change in between is not lost.
    let _ = Identity::of(&path).map_err(unreadable)?;
    let mut watched = Watched::new(path.clone(), missing);
    watched.renew();
    let (mut scanner, mut result) = scan(Scanner::new(path.clone(), selection)).await;
    if let Err(source) = result {
        return Err(unreadable(source));
    }
    let mut teller = Publisher::new(tx);
    loop {
        let pause = match &result {
            Ok(Some(scan)) if scan.unfinished => POLL_UNFINISHED,
            Ok(_) if watched.watch.is_none() => POLL_UNTOLD,
            Ok(_) => POLL,
            Err(_) => POLL_MISSING,
        };
        if teller.tell(result).await.is_err() {
            return Ok(());
        }
        tokio::select! {
            () = teller.tx.closed() => return Ok(()),
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
            // Never cancelled by us: the runtime is going down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// inotify's watch on a directory.
pub struct Watch {
    identity: Identity,
    changed: Arc<Notify>,
    /// Watches until dropped.
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Watches `path`. `identity` must have been read before, so that a directory put in its place
    /// meanwhile shows as another one.
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

    /// Waits until something in the directory has changed since the last time.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// Our own scan reads too: to be told of it would never end.
fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

async fn changed(watch: Option<&Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// The directory, watched where the kernel does so.
struct Watched {
    path: PathBuf,
    watch: Option<Watch>,
    /// When it refused to.
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

    /// Watches the directory that is at the path now.
    fn renew(&mut self) {
        if self.refused.is_some_and(|at| at.elapsed() < AGAIN) {
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
                    "can't watch {:?} ({error}): reading it every {POLL_UNTOLD:?} instead; raise \
                     fs.inotify.max_user_instances or max_user_watches, or find the program of the same user that \
                     uses them up",
                    self.path
                );
                self.missing.note(Part::ManifestWatch, &why);
            }
        }
    }
}

/// The watch on the directory that is at `path` now; none if there is none or it can't be watched, in
/// which case we look every second.
pub fn renew(watch: Option<Watch>, path: &Path) -> Option<Watch> {
    watch_anew(watch, path)
        .inspect_err(|error| {
            tracing::warn!(?path, %error, "can't watch this directory: reading it every second");
        })
        .ok()
        .flatten()
}

/// As [`renew`]; an error where the directory is there and can't be watched.
fn watch_anew(watch: Option<Watch>, path: &Path) -> notify::Result<Option<Watch>> {
    let Ok(identity) = Identity::of(path) else {
        return Ok(None);
    };
    match watch {
        Some(watch) if watch.identity == identity => Ok(Some(watch)),
        _ => Watch::new(path, identity).map(Some),
    }
}

/// Nobody listens any more.
struct Closed;

/// Tells what has changed, and only that.
struct Publisher {
    tx: mpsc::Sender<SourceEvent>,
    pods: Option<Vec<Arc<ParsedPod>>>,
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

    async fn tell(&mut self, result: io::Result<Option<Scan>>) -> Result<(), Closed> {
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
                "the directory of Pod manifests can't be read; its pods are served as last known: {error}"
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
