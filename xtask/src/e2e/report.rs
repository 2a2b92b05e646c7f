//! What became of each check.

use anyhow::Result;

use crate::counts::Counts;

/// The checks so far.
#[derive(Debug, Default)]
pub struct Report {
    counts: Counts,
}

impl Report {
    /// Notes one check, and tells it.
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

    /// The numbers.
    pub const fn counts(&self) -> Counts {
        self.counts
    }
}
