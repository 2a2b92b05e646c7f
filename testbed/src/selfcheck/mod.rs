//! `testbed selfcheck`: checks the testbed itself, so that its results can be trusted.

mod kubelet;
mod meshes;

use anyhow::{Result, bail};

use crate::interrupt;
use crate::run::Run;

/// Runs all checks and prints a line for each.
///
/// # Errors
/// When a result is wrong.
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
        bail!("{failed} results are wrong");
    }
    Ok(())
}

/// The results so far.
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
