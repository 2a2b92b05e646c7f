//! `testbed selfcheck`: shows that the testbed tells the truth, before it is used to judge anything.

mod kubelet;
mod meshes;

use anyhow::{Result, bail};

use crate::interrupt;
use crate::run::Run;

/// Runs all checks and prints a line for each.
///
/// # Errors
/// When a cell is not what it should be.
pub fn main() -> Result<()> {
    interrupt::catch()?;
    let run = Run::new()?;
    let mut report = Report::default();
    meshes::check(&run, &mut report)?;
    kubelet::check(&run, &mut report)?;
    let Report {
        passed,
        failed,
        skipped,
    } = report;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        bail!("{failed} cells are not what they should be");
    }
    Ok(())
}

/// What came of it so far.
#[derive(Debug, Default)]
struct Report {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Report {
    fn cell(&mut self, subject: &str, what: &str, expected: &str, found: &str) {
        if expected == found {
            self.passed += 1;
            println!("{subject:<28} {what:<46} {found}");
        } else {
            self.failed += 1;
            println!("{subject:<28} {what:<46} {found}  <- WRONG, expected {expected}");
        }
    }

    fn skip(&mut self, subject: &str, reason: &str) {
        self.skipped += 1;
        println!("{subject:<28} skipped: {reason}");
    }
}
