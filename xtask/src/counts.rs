//! Reads test counts from the output of test runners.

use std::fmt;
use std::ops::AddAssign;

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that were skipped.
    pub skipped: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// One line of a `cargo test` run: `test result: ok. 3 passed; 0 failed; 1 ignored; ...`, printed
/// once per test binary.
pub fn of_cargo_test(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut parts = numbers.split("; ");
    Some(Counts {
        passed: number(parts.next()?, "passed")?,
        failed: number(parts.next()?, "failed")?,
        skipped: number(parts.next()?, "ignored")?,
    })
}

/// The last line of the namespace suite: `3 passed, 0 failed, 1 skipped`, alone on its line.
pub fn of_suite(line: &str) -> Option<Counts> {
    let mut parts = line.trim_end().split(", ");
    let counts = Counts {
        passed: number(parts.next()?, "passed")?,
        failed: number(parts.next()?, "failed")?,
        skipped: number(parts.next()?, "skipped")?,
    };
    parts.next().is_none().then_some(counts)
}

fn number(part: &str, what: &str) -> Option<u64> {
    let (number, word) = part.split_once(' ')?;
    (word == what).then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn counts(passed: u64, failed: u64, skipped: u64) -> Counts {
        Counts {
            passed,
            failed,
            skipped,
        }
    }

    #[test]
    fn cargo_test_results_are_counted() {
        let line = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s";
        assert_eq!(of_cargo_test(line), Some(counts(3, 0, 1)));
        let line =
            "test result: FAILED. 11 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(of_cargo_test(line), Some(counts(11, 2, 0)));
    }

    #[test]
    fn other_lines_are_not_results() {
        for line in [
            "",
            "test a::b ... ok",
            "test result: pending",
            "test result: ok. x passed; 0 failed; 0 ignored",
            "3 passed, 0 failed, 1 skipped",
        ] {
            assert_eq!(of_cargo_test(line), None, "{line}");
        }
        for line in [
            "",
            "3 passed",
            "3 passed, 0 failed",
            "3 passed, 0 failed, 1 skipped, 2 lost",
            "all: 3 passed, 0 failed, 1 skipped",
            "-3 passed, 0 failed, 1 skipped",
        ] {
            assert_eq!(of_suite(line), None, "{line}");
        }
    }

    #[test]
    fn the_suites_line_reads_back_what_is_printed() {
        let counts = counts(40, 1, 2);
        assert_eq!(of_suite(&counts.to_string()), Some(counts));
        assert_eq!(of_suite("40 passed, 1 failed, 2 skipped\n"), Some(counts));
    }
}
