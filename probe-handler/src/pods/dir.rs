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
use tokio::time::sleep;

use super::scope::Selection;
use super::source::SourceEvent;
use super::understand::Understood;
use scan::{Identity, Scan, Scanner};

mod scan;

pub use scan::{MAX_FILE_LEN, NETNS};

/// How long to wait after a change for others that belong to it.
pub(crate) const DEBOUNCE: Duration = Duration::from_millis(20);
/// How often to look without having been told: finds what inotify can't see, such as a change behind
/// a symlink that leads out of the directory, or another directory in place of this one.
pub(crate) const POLL: Duration = Duration::from_secs(1);
/// How soon to look again at a file that may be half written.
const POLL_UNFINISHED: Duration = Duration::from_millis(40);
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
    /// The directory can't be watched.
    #[error(
        "the directory of Pod manifests {path:?} can't be watched (are \
         fs.inotify.max_user_instances and max_user_watches exhausted?)"
    )]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: notify::Error,
    },
}

/// Watches the manifests in `path` (`*.yaml`, `*.yml`, `*.json`, not those whose name begins with a
/// dot) and tells `tx` all pods and all problems, each whenever they change. Ends when nobody listens
/// any more. Should the directory vanish, what was last known stays, and a problem says so; likewise the pods of a file
/// that is written in place, or can't be understood any more.
///
/// # Errors
/// The directory can't be read or watched at the start.
pub async fn run(
    path: PathBuf,
    selection: Selection,
    tx: mpsc::Sender<SourceEvent>,
) -> Result<(), DirError> {
    let unreadable = |source| DirError::Read {
        path: path.clone(),
        source,
    };
    // Watched before it is scanned: a change in between is not lost.
    let identity = Identity::of(&path).map_err(unreadable)?;
    let mut watch = Some(
        Watch::new(&path, identity).map_err(|source| DirError::Watch {
            path: path.clone(),
            source,
        })?,
    );
    let (mut scanner, mut result) = scan(Scanner::new(path.clone(), selection)).await;
    if let Err(source) = result {
        return Err(unreadable(source));
    }
    let mut teller = Teller::new(tx);
    loop {
        let pause = match &result {
            Ok(Some(scan)) if scan.unfinished => POLL_UNFINISHED,
            Ok(_) => POLL,
            Err(_) => POLL_MISSING,
        };
        if teller.tell(result).await.is_err() {
            return Ok(());
        }
        tokio::select! {
            () = teller.tx.closed() => return Ok(()),
            () = changed(watch.as_ref()) => sleep(DEBOUNCE).await,
            () = sleep(pause) => {}
        }
        watch = renew(watch, &path);
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
pub(crate) struct Watch {
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
    pub(crate) async fn changed(&self) {
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

/// The watch on the directory that is at `path` now; none if there is none or it can't be watched, in
/// which case we look every second.
pub(crate) fn renew(watch: Option<Watch>, path: &Path) -> Option<Watch> {
    let identity = Identity::of(path).ok()?;
    match watch {
        Some(watch) if watch.identity == identity => Some(watch),
        _ => Watch::new(path, identity)
            .inspect_err(|error| {
                tracing::warn!(?path, %error, "can't watch this directory, looking every second");
            })
            .ok(),
    }
}

/// Nobody listens any more.
struct Closed;

/// Tells what has changed, and only that.
struct Teller {
    tx: mpsc::Sender<SourceEvent>,
    pods: Option<Vec<Arc<Understood>>>,
    problems: Vec<String>,
}

impl Teller {
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
                "the directory of Pod manifests can't be read, its pods are served as last known: {error}"
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
