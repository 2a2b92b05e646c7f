//! Runs `ip`, `nft` and `iptables`; errors contain their standard error.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `program` with `args` and `stdin` and waits for its end.
///
/// # Errors
/// When it cannot be started or does not exit with 0; the message holds its standard error.
pub fn run(program: &str, args: &[&str], stdin: &str) -> Result<Output> {
    let shown = || format!("{program} {}", args.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", shown()))?;
    if let Some(mut input) = child.stdin.take() {
        input
            .write_all(stdin.as_bytes())
            .with_context(|| format!("writing to {}", shown()))?;
    }
    let output = child.wait_with_output().with_context(shown)?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {} ({})", shown(), error.trim(), output.status);
    }
    Ok(output)
}

/// Runs several `ip` commands in one process: one per line, without the word `ip`.
///
/// # Errors
/// Those of [`run`]; the first command that fails ends the batch.
pub fn ip_batch(lines: &str) -> Result<()> {
    run("ip", &["-batch", "-"], lines)
        .map(drop)
        .with_context(|| format!("in the batch:\n{lines}"))
}
