//! The node's pods as last told, in a file: what a daemon serves that is started anew while the API server is
//! away.
//!
//! Nothing in it is believed without a look at the node: a pod that has gone has no cgroup by its UID any more,
//! and its address is its network namespace's. The file is as good as the daemon's own memory, so nobody but its
//! user may read or write it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use model::Pod;
use pods::parse::ParsedPod;
use support::build::{COMMIT, VERSION};
use support::missing::{Missing, Part};

/// How long changes are gathered before the file is written.
const PACE: Duration = Duration::from_secs(2);
/// How long to wait before what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// The most that is written, in bytes: a thousand pods need a fifth of it.
const LIMIT: usize = 4 << 20;

/// Pods as told; those that are not served count too.
pub type Told = Arc<Vec<Arc<ParsedPod>>>;

/// The file.
#[derive(Clone, Debug)]
pub struct LastKnown {
    path: PathBuf,
    node: String,
    missing: Missing,
}

/// What is in it.
#[derive(Serialize, Deserialize)]
struct Contents<P> {
    /// Of the daemon that wrote it: another one may mean something else by the same words.
    version: String,
    node: String,
    pods: Vec<P>,
}

impl LastKnown {
    /// The file at `path`, with the pods of `node`. While it can't be written, that is noted in `missing`.
    pub fn new(path: PathBuf, node: String, missing: Missing) -> Self {
        Self {
            path,
            node,
            missing,
        }
    }

    /// The pods in it; none if it is not there, or is not of a daemon like this one for this node.
    pub fn read(&self) -> Vec<Arc<ParsedPod>> {
        match self.try_read() {
            Ok(pods) => pods,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::warn!(
                    path = %self.path.display(), %error,
                    "can't read the last known pods: no pod is served until the API server answers"
                );
                Vec::new()
            }
        }
    }

    fn try_read(&self) -> io::Result<Vec<Arc<ParsedPod>>> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)?;
        let meta = file.metadata()?;
        let ours = nix::unistd::geteuid().as_raw();
        if !meta.is_file() || meta.uid() != ours || meta.mode() & 0o077 != 0 {
            return Err(io::Error::other(
                "it must be a regular file that belongs to this user and that no other user may access",
            ));
        }
        let contents: Contents<Pod> = serde_json::from_reader(io::BufReader::new(file))?;
        if contents.version != version() || contents.node != self.node {
            return Ok(Vec::new());
        }
        let parsed = contents.pods.into_iter().map(|pod| {
            Arc::new(ParsedPod {
                id: pod.id.clone(),
                // A path is for the other source alone.
                pod: Some(Arc::new(Pod {
                    netns: None,
                    ips_are_old: true,
                    ..pod
                })),
                not_served: None,
                skipped: Vec::new(),
                warnings: Vec::new(),
            })
        });
        Ok(parsed.collect())
    }

    /// Keeps what is `told` in the file, until nobody tells any more.
    pub async fn keep(self, mut told: watch::Receiver<Told>) {
        while told.changed().await.is_ok() {
            tokio::time::sleep(PACE).await;
            loop {
                let pods = Arc::clone(&told.borrow_and_update());
                let file = self.clone();
                let written = tokio::task::spawn_blocking(move || file.write(&pods)).await;
                let error = match written {
                    Ok(Ok(())) => break self.missing.clear(Part::LastKnown),
                    Ok(Err(error)) => error.to_string(),
                    Err(error) => error.to_string(),
                };
                let why = format!(
                    "{} can't be written ({error}): a daemon that starts while the API server is unreachable serves \
                     no pods; set --last-known to a writable path",
                    self.path.display()
                );
                self.missing.note(Part::LastKnown, &why);
                tokio::select! {
                    () = tokio::time::sleep(AGAIN) => {}
                    changed = told.changed() => if changed.is_err() { return },
                }
            }
        }
    }

    fn write(&self, told: &[Arc<ParsedPod>]) -> io::Result<()> {
        let contents = Contents {
            version: version(),
            node: self.node.clone(),
            pods: told.iter().filter_map(|pod| pod.pod.as_deref()).collect(),
        };
        let text = serde_json::to_vec(&contents)?;
        if text.len() > LIMIT {
            // What was true of fewer pods is true of fewer every day.
            let _ = fs::remove_file(&self.path);
            return Err(io::Error::other(format!(
                "{} bytes are more than the limit of {LIMIT}",
                text.len()
            )));
        }
        let new = self.path.with_extension("new");
        // What a daemon that was killed has left.
        let _ = fs::remove_file(&new);
        let written = create(&new)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&new, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn version() -> String {
    format!("{VERSION} {COMMIT}")
}
