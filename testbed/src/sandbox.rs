//! A double of the node's kubelet and container runtime, as far as cgroups and processes go: it makes a
//! pod's cgroups in each hierarchy, a sandbox in a network namespace of its own, and containers.

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

/// Directories of this run, one in each hierarchy, that stand for the hierarchies' roots.
#[derive(Debug)]
pub struct Hierarchies {
    roots: Vec<PathBuf>,
}

impl Hierarchies {
    /// Makes one directory in each of the hierarchies mounted at `mounts`.
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
                // Fails while another cgroup of the run is left, which removes it later.
                let _still_used = fs::remove_dir(parent);
            }
        }
    }
}

/// A pod's cgroups. They stay until [`PodCgroup::remove`], or the hierarchies go.
#[derive(Debug)]
pub struct PodCgroup {
    dirs: Vec<PathBuf>,
    container: u32,
}

impl PodCgroup {
    /// Makes them, as the kubelet does before it asks for a sandbox.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn make(&self) -> Result<()> {
        for dir in &self.dirs {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        Ok(())
    }

    /// Starts a container as runc does: the process begins where the runtime is, is moved into the
    /// container's cgroup of each hierarchy, enters its network namespace, and becomes the program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn container(&mut self, network: Network<'_>) -> Result<Container> {
        self.container_told(network, || ())
            .map(|(container, ())| container)
    }

    /// As [`PodCgroup::container`]; `about_to_run` is called when all is ready and the process is about to
    /// be let go, to become the container's program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn container_told<T>(
        &mut self,
        network: Network<'_>,
        about_to_run: impl FnOnce() -> T,
    ) -> Result<(Container, T)> {
        // The last `sh` tells that it runs: from then on the container's own program would.
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

    /// How many containers it has had.
    pub const fn containers(&self) -> u32 {
        self.container
    }

    /// Makes the cgroups of one more container, one in each hierarchy, for a process that joins them by
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

    /// Removes them, once the containers are gone.
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

/// Which network namespace a container is in.
#[derive(Clone, Copy, Debug)]
pub enum Network<'a> {
    /// A new one: a sandbox.
    New,
    /// The one of the pod's sandbox.
    Of(&'a Container),
    /// The one that is held at this path, made before any process of the pod.
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

    /// Kills it; returns when that was.
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
