//! A file with the node's last known pods. A daemon that restarts while the API server is unreachable serves
//! them.
//!
//! Every entry is checked against the node: a pod that no longer exists has no cgroup with its UID, and addresses are
//! read from the pod's network namespace. The file is trusted like the daemon's own memory, so only its user may read
//! or write it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use model::Pod;
use pods::select::SelectedPod;
use pods::state::PodState;
use support::build::{COMMIT, VERSION};
use support::missing::{Missing, Part};

/// How long changes are collected before the file is written.
const PACE: Duration = Duration::from_secs(2);
/// How long to wait before a failed write is retried.
const RETRY: Duration = Duration::from_secs(5);
/// Maximum size of the file in bytes: a thousand pods need a fifth of it.
const LIMIT: usize = 4 << 20;

/// The pods as last sent to the registry, including those that are not served.
pub type SentPods = Arc<Vec<Arc<SelectedPod>>>;

/// The file.
#[derive(Clone, Debug)]
pub struct LastKnown {
    path: PathBuf,
    node: String,
    missing: Missing,
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct Contents<P> {
    /// The version of the daemon that wrote the file: another version may use the same fields differently.
    version: String,
    node: String,
    pods: Vec<P>,
}

impl LastKnown {
    /// The file at `path` with the pods of `node`. While it can't be written, `missing` reports it.
    pub fn new(path: PathBuf, node: String, missing: Missing) -> Self {
        Self {
            path,
            node,
            missing,
        }
    }

    /// Reads the pods. `None` if the file does not exist, or was written by another version or for another
    /// node.
    pub fn read(&self) -> Vec<Arc<SelectedPod>> {
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

    fn try_read(&self) -> io::Result<Vec<Arc<SelectedPod>>> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)?;
        let meta = file.metadata()?;
        let user = nix::unistd::geteuid().as_raw();
        if !meta.is_file() || meta.uid() != user || meta.mode() & 0o077 != 0 {
            return Err(io::Error::other(
                "it must be a regular file that belongs to this user and that no other user may access",
            ));
        }
        let contents: Contents<Pod> = serde_json::from_reader(io::BufReader::new(file))?;
        if contents.version != version() || contents.node != self.node {
            return Ok(Vec::new());
        }
        let parsed = contents.pods.into_iter().map(|pod| {
            Arc::new(SelectedPod {
                id: pod.id.clone(),
                // Only the directory source may set a path.
                pod: Some(Arc::new(Pod {
                    netns: None,
                    ips_are_old: true,
                    ..pod
                })),
                observed: None,
                not_served: None,
                skipped: Vec::new(),
                warnings: Vec::new(),
                mesh_runs: None,
                state: PodState::default(),
            })
        });
        Ok(parsed.collect())
    }

    /// Writes each of the `updates` to the file, until their sender is dropped.
    pub async fn keep(self, mut updates: watch::Receiver<SentPods>) {
        while updates.changed().await.is_ok() {
            tokio::time::sleep(PACE).await;
            loop {
                let pods = Arc::clone(&updates.borrow_and_update());
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
                    () = tokio::time::sleep(RETRY) => {}
                    changed = updates.changed() => if changed.is_err() { return },
                }
            }
        }
    }

    fn write(&self, pods: &[Arc<SelectedPod>]) -> io::Result<()> {
        let contents = Contents {
            version: version(),
            node: self.node.clone(),
            pods: pods.iter().filter_map(|pod| pod.pod.as_deref()).collect(),
        };
        let text = serde_json::to_vec(&contents)?;
        if text.len() > LIMIT {
            // Removes the old file, which would become less accurate every day.
            let _ = fs::remove_file(&self.path);
            return Err(io::Error::other(format!(
                "{} bytes are more than the limit of {LIMIT}",
                text.len()
            )));
        }
        let new = self.path.with_extension("new");
        // A daemon that was killed may have left this file.
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
