//! The user namespace of a pod with `hostUsers: false`, which owns the pod's network namespace.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use model::netns::NetnsId;

use crate::rules::RuleSet;
use crate::wait;
use crate::worker::testbed_program;

/// The node's id of the pod's root.
pub const FIRST: u32 = 231_072;

/// A process in the two namespaces, killed on drop.
#[derive(Debug)]
pub struct UserNamespace {
    process: Child,
}

impl UserNamespace {
    /// Starts a process in new namespaces, with ids that begin at [`FIRST`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> Result<Self> {
        let process = Command::new("unshare")
            .args(["--user", "--net", "sleep", "infinity"])
            .spawn()
            .context("starting unshare")?;
        let this = Self { process };
        let of = |process: &str| NetnsId::at(format!("/proc/{process}/ns/net").as_ref());
        let pid = this.pid().to_string();
        wait::until("a network namespace", Duration::from_secs(5), || {
            (of(&pid).ok()? != of("self").ok()?).then_some(())
        })?;
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{map}"), format!("0 {FIRST} 65536"))
                .with_context(|| format!("writing {map}"))?;
        }
        Ok(this)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Applies a mesh's rules as the pod's root: the node's root can't name the pod's users in a rule.
    ///
    /// # Errors
    /// When a rule is refused.
    pub fn apply(&self, rules: RuleSet) -> Result<()> {
        let target = format!("--target={}", self.pid());
        let program = testbed_program()?.display().to_string();
        let enter = ["--user", "--net", &target, "--setuid=0", "--setgid=0"];
        let applied = Command::new("nsenter")
            .args(enter)
            .args([program.as_str(), "rules", rules.name()])
            // The pod's root has no permission to open the node's lock of iptables.
            .env("XTABLES_LOCKFILE", "/dev/null")
            .output()
            .context("starting nsenter")?;
        ensure!(
            applied.status.success(),
            "the rules are refused: {}",
            String::from_utf8_lossy(&applied.stderr)
        );
        Ok(())
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        let _already_dead = self.process.kill();
        let _status = self.process.wait();
    }
}
