//! The results of the checks.

use anyhow::Result;

use crate::counts::Counts;

/// The checks so far.
#[derive(Debug, Default)]
pub struct Report {
    counts: Counts,
}

impl Report {
    /// Records the result of one check and prints it.
    pub fn add(&mut self, name: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => {
                self.counts.passed += 1;
                println!("ok      {name}");
            }
            Err(error) => {
                self.counts.failed += 1;
                println!("FAILED  {name}: {error:#}");
            }
        }
    }

    /// The counts.
    pub const fn counts(&self) -> Counts {
        self.counts
    }
}
