//! Accesses the cluster with `kubectl`, so that any cluster that kubectl can access can be tested.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell::display;

/// Polling interval.
const POLL: Duration = Duration::from_millis(500);

/// A cluster.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: String,
    context: Option<String>,
}

impl Kubectl {
    /// Uses that program, with the given context of the kubeconfig or the current one.
    pub const fn new(program: String, context: Option<String>) -> Self {
        Self { program, context }
    }

    /// Checks that the cluster answers; the error has kubectl's message.
    pub fn reachable(&self) -> Result<()> {
        self.run(&["get", "--raw", "/readyz", "--request-timeout=10s"], "")
            .map(drop)
    }

    /// Runs kubectl and returns its output.
    ///
    /// # Errors
    /// kubectl can't be started, or fails; the error has its message.
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
            // A kubectl that fails early does not read its input; its message is better than a broken pipe.
            let _broken = input.write_all(stdin.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("`{}`: {}", display(&command), words.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The output of `kubectl get ... -o json`.
    ///
    /// # Errors
    /// Those of [`Kubectl::run`].
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        let text = self.run(&all, "")?;
        serde_json::from_str(&text).context("kubectl did not print JSON")
    }

    /// Creates objects.
    ///
    /// # Errors
    /// Those of [`Kubectl::run`].
    pub fn create(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.run(&["create", "-f", "-"], &list.to_string())
            .map(drop)
    }
}

/// Waits for the full time. A thread that only parks can wake early from a pending
/// wake-up.
pub fn pass(time: Duration) {
    let end = Instant::now() + time;
    while let left = end.saturating_duration_since(Instant::now())
        && !left.is_zero()
    {
        std::thread::park_timeout(left);
    }
}

/// Polls until `look` returns a value.
///
/// # Errors
/// When there is none by the deadline: what was missing at the last poll.
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
