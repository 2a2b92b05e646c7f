//! The command line of a daemon.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::DaemonSpec;
use crate::pace;
use crate::run::Run;

/// The default of `--heartbeat-timeout`.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);

impl DaemonSpec {
    /// The command that runs `program` with the manifests in `pods`.
    pub(super) fn command(&self, run: &Run, program: &Path, pods: &Path, socket: &Path) -> Command {
        let mut command = match self.wrapper.split_first() {
            None => Command::new(program),
            Some((wrapper, words)) => {
                let mut command = Command::new(wrapper);
                let _ = command.args(words).arg(program);
                command
            }
        };
        command.arg("agent").arg("--pods");
        match &self.node {
            None => command.arg(format!("dir:{}", pods.display())),
            Some(node) => command
                .args(["kube", "--node-name", node])
                .envs(self.env.clone()),
        };
        command
            .arg("--admin-socket")
            .arg(socket)
            .arg("--admin-addr")
            .arg(&self.admin_addr)
            .args(["--log-format", "text"]);
        if pace::factor() > 1 && !has(&self.args, "--heartbeat-timeout") {
            let timeout = pace::stretch(HEARTBEAT_TIMEOUT).as_millis();
            command.args(["--heartbeat-timeout", &format!("{timeout}ms")]);
        }
        // Replaces the default directory, which may belong to a daemon of this machine.
        if !has(&self.args, "--bpffs") {
            command
                .arg("--bpffs")
                .arg(run.bpffs().join("probe-handler"));
        }
        if let Some(path) = &self.kubelet_cgroup {
            command.arg("--kubelet-cgroup").arg(path);
        }
        command.args(&self.args);
        command
    }
}

/// Whether `args` set `flag`, as `--flag VALUE` or `--flag=VALUE`.
fn has(args: &[String], flag: &str) -> bool {
    let sets = |arg: &String| {
        arg.strip_prefix(flag)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    args.iter().any(sets)
}
