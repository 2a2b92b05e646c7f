//! The cluster, by way of `kubectl`: whatever it can log in to, we can test.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell::display;

/// How often something is looked at again while we wait for it.
const POLL: Duration = Duration::from_millis(500);

/// A cluster.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: String,
    context: Option<String>,
}

impl Kubectl {
    /// By that program, and that context of its kubeconfig or the current one.
    pub const fn new(program: String, context: Option<String>) -> Self {
        Self { program, context }
    }

    /// Whether a cluster answers; if not, why, in kubectl's words.
    pub fn reachable(&self) -> Result<()> {
        self.run(&["get", "--raw", "/readyz", "--request-timeout=10s"], "")
            .map(drop)
    }

    /// Runs kubectl to its end and gives what it printed.
    ///
    /// # Errors
    /// kubectl can't be started, or fails; the message has its own words.
    pub fn run(&self, args: &[&str], stdin: &str) -> Result<String> {
        let mut words = self.program.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or("kubectl"));
        command.args(words);
        if let Some(context) = &self.context {
            command.args(["--context", context]);
        }
        command.args(args);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run `{}`", display(&command)))?;
        if let Some(mut input) = child.stdin.take() {
            // A kubectl that fails early does not read it; its words tell more than a broken pipe.
            let _broken = input.write_all(stdin.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("`{}`: {}", display(&command), words.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What `kubectl get ... -o json` says.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        let text = self.run(&all, "")?;
        serde_json::from_str(&text).context("kubectl did not print JSON")
    }

    /// Creates objects.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn create(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.run(&["create", "-f", "-"], &list.to_string())
            .map(drop)
    }
}

/// Lets time pass: all of it. A thread that only parks goes on early where something before has left
/// it a wake-up.
pub fn pass(time: Duration) {
    let end = Instant::now() + time;
    while let left = end.saturating_duration_since(Instant::now())
        && !left.is_zero()
    {
        std::thread::park_timeout(left);
    }
}

/// Looks again and again until there is an answer.
///
/// # Errors
/// When there is none by the deadline: what was missing, as the last look said.
pub fn until<T>(
    deadline: Duration,
    mut look: impl FnMut() -> Result<std::result::Result<T, String>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let missing = match look()? {
            Ok(found) => return Ok(found),
            Err(missing) => missing,
        };
        if start.elapsed() >= deadline {
            bail!("after {} s: {missing}", deadline.as_secs());
        }
        std::thread::park_timeout(POLL);
    }
}
