//! A queue of log lines: a thread that logs never waits for the reader of standard error.
//!
//! Standard error may be a pipe to a collector that stalls (a full disk). A write to it would then block the
//! thread that logs; if that is the handler's thread, it would block the probes of every pod.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use kernel::capabilities;
use support::missing::{Missing, Part};

/// Maximum number of queued lines; further lines are dropped and counted.
const CAPACITY: usize = 4096;

/// Accepts lines without waiting; a separate thread writes them. Clones share the queue.
#[derive(Clone)]
pub struct LogQueue(Arc<Shared>);

/// Format of the queue's own lines.
#[derive(Clone, Copy, Debug)]
pub enum Words {
    /// Text, for people.
    Text,
    /// JSON, for collectors.
    Json,
}

struct Shared {
    words: Words,
    missing: Missing,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    lost: u64,
    writing: bool,
}

impl LogQueue {
    /// A queue that writes to `out`, with its own lines in the format `words`. While lines are lost, `missing`
    /// shows it.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn new(
        mut out: impl Write + Send + 'static,
        words: Words,
        missing: Missing,
    ) -> io::Result<Self> {
        let queue = Self(Arc::new(Shared {
            words,
            missing,
            state: Mutex::default(),
            changed: Condvar::default(),
        }));
        let shared = Arc::clone(&queue.0);
        let _ = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                capabilities::give_up_others_or_abort();
                loop {
                    let line = shared.next();
                    match out.write_all(&line).and_then(|()| out.flush()) {
                        Ok(()) if shared.is_drained() => {
                            let _ = shared.missing.clear_silently(Part::Log);
                        }
                        Ok(()) => {}
                        // The log itself fails, so the error can't be logged.
                        Err(error) => shared.lost(&error.to_string()),
                    }
                }
            })?;
        Ok(queue)
    }

    /// Waits until all lines are written, at most for `patience`.
    pub fn flush(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut state = self.0.state.lock();
        while state.writing || !state.lines.is_empty() {
            if self.0.changed.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }
}

impl Words {
    /// The line that reports how many lines were lost.
    fn lost(self, lines: u64) -> String {
        let mut now = String::new();
        // Writing to a String does not fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut now));
        match self {
            Self::Text => format!("{now}  WARN {lines} log lines were lost\n"),
            Self::Json => format!(
                "{{\"timestamp\":\"{now}\",\"level\":\"WARN\",\"message\":\"{lines} log lines were lost\"}}\n"
            ),
        }
    }
}

impl Shared {
    /// Whether no lines wait, and no loss has to be reported.
    fn is_drained(&self) -> bool {
        let state = self.state.lock();
        state.lines.is_empty() && state.lost == 0
    }

    /// Records in `missing` that a line is lost because of `why`.
    fn lost(&self, why: &str) {
        let why = format!(
            "lines are lost ({why}): check that the reader of standard error does not stall, and that its disk is not \
             full"
        );
        let _ = self.missing.note_silently(Part::Log, &why);
    }

    /// Waits for the next line to write. The caller has written the previous one.
    fn next(&self) -> Vec<u8> {
        let mut state = self.state.lock();
        state.writing = false;
        let _ = self.changed.notify_all();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.writing = true;
                return line;
            }
            if state.lost > 0 {
                let lost = std::mem::take(&mut state.lost);
                state.writing = true;
                return self.words.lost(lost).into();
            }
            self.changed.wait(&mut state);
        }
    }
}

impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock();
        if state.lines.len() < CAPACITY {
            state.lines.push_back(line.to_vec());
            let _ = self.0.changed.notify_all();
        } else {
            state.lost += 1;
            self.0.lost("their reader stalls");
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogQueue {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn lines_come_out_in_order() {
        let (out, read) = UnixStream::pair().expect("pair");
        let mut queue = LogQueue::new(out, Words::Text, Missing::default()).expect("queue");
        for line in ["one\n", "two\n"] {
            queue.write_all(line.as_bytes()).expect("taken");
        }
        queue.flush(Duration::from_secs(10));
        let lines: Vec<_> = BufReader::new(read)
            .lines()
            .take(2)
            .map(Result::unwrap)
            .collect();
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn a_stalled_reader_blocks_no_writer_and_then_reads_how_many_lines_were_lost() {
        let (out, read) = UnixStream::pair().expect("pair");
        let missing = Missing::default();
        let mut queue = LogQueue::new(out, Words::Text, missing.clone()).expect("queue");
        // More than fit into the socket and the queue together.
        let line = [b"x".repeat(1024), b"\n".to_vec()].concat();
        for _ in 0..3 * CAPACITY {
            queue.write_all(&line).expect("taken");
        }
        queue.flush(Duration::from_millis(1));
        assert_eq!(missing.parts()[0].part, "log");
        let last = BufReader::new(read)
            .lines()
            .map(Result::unwrap)
            .find(|line| !line.starts_with('x'));
        assert!(last.is_some_and(|line| line.contains("log lines were lost")));
    }

    #[test]
    fn a_write_error_is_recorded_as_missing() {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let missing = Missing::default();
        let out = full.expect("/dev/full");
        let mut queue = LogQueue::new(out, Words::Text, missing.clone()).expect("queue");
        queue.write_all(b"one\n").expect("taken");
        queue.flush(Duration::from_secs(10));
        let parts = missing.parts();
        assert!(
            parts[0].why.contains("No space left on device"),
            "{parts:?}"
        );
    }

    #[test]
    fn lost_lines_are_reported_in_the_format_of_the_log() {
        let json: serde_json::Value = serde_json::from_str(&Words::Json.lost(7)).expect("JSON");
        assert_eq!(json["message"], "7 log lines were lost");
        assert!(
            json["timestamp"]
                .as_str()
                .is_some_and(|at| at.ends_with('Z'))
        );
        let text = Words::Text.lost(7);
        assert!(text.ends_with("Z  WARN 7 log lines were lost\n"), "{text}");
    }
}
