//! The child's side of the RPC between test and child process: requests as JSON lines on standard input, responses on
//! standard output, each with the id of its request. The child ends when its input ends.

use std::future::Future;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// A request or a response.
#[derive(Debug, Serialize, Deserialize)]
pub struct Message {
    /// Matches a response to its request.
    pub id: u64,
    /// The content.
    pub body: Value,
}

/// Writes one line; lines of concurrent responses do not interleave.
///
/// # Errors
/// When standard output is closed.
pub fn write_line(value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    out.flush().context("writing an answer")
}

/// Reports to the test that this child is ready; then answers requests, concurrently, until standard
/// input ends.
///
/// # Errors
/// When a line is not a request, or standard output is closed.
pub async fn serve<Q, A, F>(
    ready: &impl Serialize,
    answer: impl Fn(Q) -> F + Send + Sync + 'static,
) -> Result<()>
where
    Q: DeserializeOwned,
    A: Serialize,
    F: Future<Output = A> + Send + 'static,
{
    write_line(ready)?;
    let answer = Arc::new(answer);
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let _reader = std::thread::Builder::new()
        .name("requests".to_owned())
        .spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        })?;
    while let Some(line) = lines.recv().await {
        let Message { id, body } =
            serde_json::from_str(&line).with_context(|| format!("not a request: {line}"))?;
        let request: Q =
            serde_json::from_value(body).with_context(|| format!("not a request: {line}"))?;
        let work = answer(request);
        tokio::spawn(async move {
            let body = serde_json::to_value(work.await);
            let sent = body
                .context("encoding an answer")
                .and_then(|body| write_line(&Message { id, body }));
            if let Err(error) = sent {
                eprintln!("testbed: {error:#}");
            }
        });
    }
    Ok(())
}

/// Waits for SIGTERM, if the child is a container's process: containers have no standard input that ends.
///
/// # Errors
/// When the signal cannot be waited for.
pub async fn terminated() -> Result<()> {
    let mut signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let _signal = signal.recv().await;
    Ok(())
}
