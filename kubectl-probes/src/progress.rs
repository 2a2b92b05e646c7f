//! A line on standard error that counts the nodes that have answered, if that is a terminal.

use std::io::{IsTerminal as _, Write as _};

/// The line. It is removed when dropped.
pub struct Progress {
    total: usize,
    done: usize,
    is_shown: bool,
}

impl Progress {
    /// A line for this number of nodes.
    pub fn new(total: usize) -> Self {
        let progress = Self {
            total,
            done: 0,
            is_shown: std::io::stderr().is_terminal(),
        };
        progress.show();
        progress
    }

    /// Counts one more node.
    pub fn one_more(&mut self) {
        self.done += 1;
        self.show();
    }

    fn show(&self) {
        if self.is_shown {
            let (done, total) = (self.done, self.total);
            // If standard error fails, there is nowhere to report it.
            let _ = write!(std::io::stderr().lock(), "\r{done} of {total} nodes\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}
