//! The kubelet and the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::judge::Fault;
use super::schedule::NodeAction;
use super::world::World;
use crate::cgroup::Cgroup;
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::Kubelet;
use crate::run::Run;
use crate::wait;

const GRACE: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(10);
/// How long a daemon with a wrong configuration may run until it is killed.
const WRONG: Duration = Duration::from_secs(2);
/// Wrong configurations.
const MISTAKES: [&[&str]; 3] = [
    &["--no-such-option"],
    &["--kubelet-cgroup", "/sys/fs/cgroup/no-such-cgroup"],
    &["--bpffs", "/proc/no-such-directory"],
];

/// Starts a kubelet in a new cgroup.
pub(super) fn kubelet(run: &Run, number: usize) -> Result<(Kubelet, Cgroup)> {
    let cgroup = Cgroup::new(run, &format!("kubelet{number}"))?;
    Ok((Kubelet::start(run, &cgroup, &name(run))?, cgroup))
}

/// The kubelet's name as a process, by which daemons find it: at most 15 characters, and unique.
fn name(run: &Run) -> String {
    format!("kx{}", run.id())
}

#[derive(Debug)]
pub(super) struct Node<'a> {
    run: &'a Run,
    world: &'a World,
    program: Option<PathBuf>,
    manifests: PathBuf,
    daemon: Option<Daemon>,
    daemons: usize,
    /// Cgroups of all kubelets, removed at the end.
    cgroups: Vec<Cgroup>,
    /// The time since which the daemon does not run or is stopped.
    since: Duration,
    mistakes: usize,
}

impl<'a> Node<'a> {
    /// Starts the first daemon.
    pub(super) fn start(
        run: &'a Run,
        world: &'a World,
        program: Option<&Path>,
        manifests: &Path,
        cgroup: Cgroup,
    ) -> Result<Self> {
        let mut node = Self {
            run,
            world,
            program: program.map(Path::to_owned),
            manifests: manifests.to_owned(),
            daemon: None,
            daemons: 0,
            cgroups: vec![cgroup],
            since: Duration::ZERO,
            mistakes: 0,
        };
        node.daemon = Some(node.spec().start(run)?);
        world.serves();
        Ok(node)
    }

    fn spec(&mut self) -> DaemonSpec {
        self.daemons += 1;
        DaemonSpec::new(&format!("daemon{}", self.daemons))
            .program(self.program.as_deref())
            .pods(&self.manifests)
            .arg("--kubelet-name")
            .arg(&name(self.run))
    }

    fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().context("no daemon runs")
    }

    pub(super) fn act(&mut self, action: NodeAction) -> Result<()> {
        let world = self.world;
        match action {
            NodeAction::KubeletRestarts => self.kubelet_restarts(),
            NodeAction::DaemonDies => {
                self.since = world.time();
                world.serves_no_more();
                let _status = self.daemon()?.kill()?;
                world.fault(Fault::Kill, self.since);
                self.daemon = None;
                Ok(())
            }
            NodeAction::DaemonStarts => {
                let daemon = self.spec().start(self.run)?;
                self.daemon = Some(daemon);
                world.fault(Fault::Dead, self.since);
                world.serves();
                Ok(())
            }
            NodeAction::DaemonStops => {
                self.since = world.time();
                world.serves_no_more();
                self.daemon()?.signal(Signal::SIGSTOP)
            }
            NodeAction::DaemonContinues => {
                self.daemon()?.signal(Signal::SIGCONT)?;
                self.daemon()?.wait_ready()?;
                world.fault(Fault::Hung, self.since);
                world.serves();
                Ok(())
            }
            NodeAction::DaemonIsUpgraded => {
                let since = world.time();
                let next = self.spec().start(self.run)?;
                let mut old = self.daemon.replace(next).context("no daemon runs")?;
                let status = old.stop(GRACE)?;
                world.fault(Fault::Upgrade, since);
                ensure!(status.success(), "the old daemon ended with {status}");
                Ok(())
            }
            NodeAction::DaemonIsMisconfigured => self.misconfigured(),
        }
    }

    fn misconfigured(&mut self) -> Result<()> {
        let since = self.world.time();
        let mistake = MISTAKES[self.mistakes % MISTAKES.len()];
        self.mistakes += 1;
        let mut spec = self.spec();
        for arg in mistake {
            spec = spec.arg(arg);
        }
        let mut daemon = spec.spawn(self.run)?;
        // Dropping it kills it.
        if daemon.wait_end(WRONG).is_err() {
            let killed = self.world.time();
            let _status = daemon.kill()?;
            self.world.fault(Fault::KillOfUnpinned, killed);
        }
        self.world.fault(Fault::Misconfigured, since);
        Ok(())
    }

    fn kubelet_restarts(&mut self) -> Result<()> {
        let (old, _) = self.world.kubelet();
        let pid = Pid::from_raw(i32::try_from(old.pid())?);
        kill(pid, Signal::SIGKILL).context("killing the kubelet")?;
        let number = self.cgroups.len();
        let (kubelet, cgroup) = kubelet(self.run, number)?;
        self.cgroups.push(cgroup);
        self.world.set_kubelet(kubelet);
        Ok(())
    }

    /// Ends the daemon. Returns the cgroups, which can be removed after the kubelet, and the number of cgroups of past kubelets
    /// to which programs are still attached although a daemon runs: a daemon that ends before it has replaced the pins leaves
    /// those of an earlier daemon.
    pub(super) fn end(mut self) -> Result<(Vec<Cgroup>, usize)> {
        let has_programs = |cgroup: &&Cgroup| {
            let attached = crate::bpf::attached(cgroup.path());
            attached.unwrap_or_default() > 0
        };
        let past = &self.cgroups[..self.cgroups.len().saturating_sub(1)];
        let left = || past.iter().filter(has_programs).count();
        let _none = wait::until("programs of the past to be removed", SOON, || {
            (left() == 0).then_some(())
        });
        let left = left();
        let status = self.daemon()?.stop(GRACE)?;
        ensure!(status.success(), "the last daemon ended with {status}");
        Ok((self.cgroups, left))
    }
}
