//! Creates cgroups and processes as a node's kubelet and container runtime do: a pod's cgroups in each
//! hierarchy, a sandbox in its own network namespace, and containers.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use model::netns::NetnsId;

use crate::cgroup;
use crate::run::Run;
use crate::wait;

/// Directories of this run, one in each hierarchy, used as the hierarchies' roots.
#[derive(Debug)]
pub struct Hierarchies {
    roots: Vec<PathBuf>,
}

impl Hierarchies {
    /// Creates one directory in each of the hierarchies mounted at `mounts`.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn new(run: &Run, name: &str, mounts: &[PathBuf]) -> Result<Self> {
        let mut made = Self { roots: Vec::new() };
        for mount in mounts {
            let root = cgroup::top(mount, run.id()).join(name);
            fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
            made.roots.push(root);
        }
        Ok(made)
    }

    /// Their paths.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// A pod whose cgroup will be at `path` in each hierarchy.
    pub fn pod(&self, path: &str) -> PodCgroup {
        PodCgroup {
            dirs: self.roots.iter().map(|root| root.join(path)).collect(),
            container: 0,
        }
    }
}

impl Drop for Hierarchies {
    fn drop(&mut self) {
        for root in &self.roots {
            let removed = wait::to_clean_up(Duration::from_secs(2), || {
                cgroup::remove_tree(root);
                !root.exists()
            });
            if !removed {
                eprintln!("testbed: {} cannot be removed", root.display());
            }
            if let Some(parent) = root.parent() {
                // Fails while the run has another cgroup, whose removal also removes this directory.
                let _still_used = fs::remove_dir(parent);
            }
        }
    }
}

/// A pod's cgroups. They exist until [`PodCgroup::remove`] or the removal of the hierarchies.
#[derive(Debug)]
pub struct PodCgroup {
    dirs: Vec<PathBuf>,
    container: u32,
}

impl PodCgroup {
    /// Creates them, as the kubelet does before it requests a sandbox.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn make(&self) -> Result<()> {
        for dir in &self.dirs {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        Ok(())
    }

    /// Starts a container as runc does: the process starts in the runtime's cgroup, is moved into the
    /// container's cgroup of each hierarchy, enters the network namespace, and executes the program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn container(&mut self, network: Network<'_>) -> Result<Container> {
        self.container_told(network, || ())
            .map(|(container, ())| container)
    }

    /// Like [`PodCgroup::container`]; calls `about_to_run` just before the process executes the container's
    /// program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn container_told<T>(
        &mut self,
        network: Network<'_>,
        about_to_run: impl FnOnce() -> T,
    ) -> Result<(Container, T)> {
        // The last `sh` prints that it runs; in a real container the program runs from here on.
        let program = "sh -c 'echo runs; exec sleep infinity'";
        let program = match network {
            Network::New => format!("unshare --net {program}"),
            Network::Of(other) => format!(
                "nsenter --net=/proc/{}/ns/net {program}",
                other.process.id()
            ),
            Network::At(path) => format!("nsenter --net={} {program}", path.display()),
            Network::Host => program.to_owned(),
        };
        let mut process = Command::new("sh")
            .args(["-c", &format!("read go && exec {program}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a container's process")?;
        let (go, out) = (process.stdin.take(), process.stdout.take());
        let container = Container { process };
        for dir in self.container_cgroups()? {
            cgroup::join(&dir, container.process.id())?;
        }
        let told = about_to_run();
        go.context("no input")?.write_all(b"go\n")?;
        let mut line = String::new();
        let _length = BufReader::new(out.context("no output")?).read_line(&mut line)?;
        ensure!(line == "runs\n", "the container did not start: {line:?}");
        Ok((container, told))
    }

    /// How many containers were created.
    pub const fn containers(&self) -> u32 {
        self.container
    }

    /// Creates the cgroups of another container, one in each hierarchy, for a process that joins them
    /// itself.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn container_cgroups(&mut self) -> Result<Vec<PathBuf>> {
        self.container += 1;
        let name = format!("cri-containerd-{:064x}.scope", self.container);
        let make = |dir: &PathBuf| {
            let dir = dir.join(&name);
            fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
            Ok(dir)
        };
        self.dirs.iter().map(make).collect()
    }

    /// Removes them after the containers have ended.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove(&self) -> Result<()> {
        for dir in &self.dirs {
            wait::until(
                &format!("removing {}", dir.display()),
                Duration::from_secs(5),
                || {
                    cgroup::remove_tree(dir);
                    (!dir.exists()).then_some(())
                },
            )?;
        }
        Ok(())
    }
}

/// The network namespace of a container.
#[derive(Clone, Copy, Debug)]
pub enum Network<'a> {
    /// A new one, for a sandbox.
    New,
    /// That of the pod's sandbox.
    Of(&'a Container),
    /// The one mounted at this path, created before any process of the pod.
    At(&'a Path),
    /// The node's.
    Host,
}

/// A container's process, killed on drop.
#[derive(Debug)]
pub struct Container {
    process: Child,
}

impl Container {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its network namespace.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn netns(&self) -> Result<NetnsId> {
        let path = format!("/proc/{}/ns/net", self.process.id());
        NetnsId::at(Path::new(&path)).context(path)
    }

    /// Kills it; returns the time of the kill.
    pub fn kill(self) -> Instant {
        let now = Instant::now();
        drop(self);
        now
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _already_dead = self.process.kill();
        let _status = self.process.wait();
    }
}
