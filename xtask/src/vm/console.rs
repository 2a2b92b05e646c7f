//! Parses the lines of the guest's console into a result.

use crate::counts::{Counts, of_suite};

/// Prefix of lines from the guest's first process (`testbed guest`).
const MARK: &str = "guest: ";

/// Messages of a kernel that has crashed or hangs.
const FATAL: &[&str] = &[
    "Kernel panic",
    "soft lockup",
    "hard LOCKUP",
    "BUG: unable to handle",
    "BUG: kernel NULL pointer",
    "general protection fault",
];

/// The content of the lines so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The kernel's release, as the guest reports it.
    pub release: Option<String>,
    /// The counts that the suite prints at its end.
    pub counts: Option<Counts>,
    /// The cases that have ended so far: the only counts of a suite that does not finish.
    pub so_far: Counts,
    /// One line for each case that failed.
    pub failures: Vec<String>,
    /// One line for each case that failed and passed when repeated.
    pub flaky: Vec<String>,
    /// One line for each case that was skipped.
    pub skips: Vec<String>,
    /// Instructions that the verifier processed, by program.
    pub verifier: Vec<(String, u64)>,
    /// Modules that failed to load.
    pub modules: Vec<String>,
    /// Why there are no verifier figures.
    pub no_figures: Vec<String>,
    /// How the suite ended; the guest's last line.
    pub ended: Option<Result<(), String>>,
}

impl Report {
    /// Processes one line of the guest's processes.
    pub fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(own) = line.strip_prefix(MARK) {
            self.own(own);
        } else if let Some(counts) = of_suite(line) {
            self.counts = Some(counts);
        } else if line.starts_with("ok ") {
            self.so_far.passed += 1;
        } else if line.starts_with("FAIL ") {
            self.so_far.failed += 1;
            self.failures.push(line.into());
        } else if let Some((name, _)) = line
            .strip_prefix("flaky ")
            .and_then(|rest| rest.split_once(": "))
        {
            let first = format!("FAIL {name}: ");
            self.failures.retain(|failure| !failure.starts_with(&first));
            self.flaky.push(line.into());
        } else if line.starts_with("skip ") {
            self.so_far.skipped += 1;
            self.skips.push(line.into());
        }
    }

    fn own(&mut self, line: &str) {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        match what {
            "kernel" => self.release = Some(rest.into()),
            "module" => self.modules.push(rest.into()),
            "verifier" => {
                if let Some((program, count)) = rest.split_once(' ')
                    && let Ok(count) = count.parse()
                {
                    self.verifier.push((program.into(), count));
                }
            }
            "no" => self.no_figures.push(line.into()),
            "the" if line == "the suite exited with 0" => self.ended = Some(Ok(())),
            "the" | "error:" => self.ended = Some(Err(line.into())),
            _ => {}
        }
    }
}

/// Whether a line of the kernel's log shows that it has crashed.
pub fn is_fatal(line: &str) -> bool {
    FATAL.iter().any(|words| line.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        text.lines().for_each(|line| report.line(line));
        report
    }

    #[test]
    fn a_run_is_parsed_from_its_lines() {
        let report = report(
            "guest: kernel 5.10.0-46-cloud-amd64\r\n\
             guest: module /modules/x.ko: ENOENT\n\
             guest: verifier connect4 1234\n\
             ok   rules/one (3 ms)\n\
             FAIL rules/two: it failed\n\
             skip rules/three: no such rule\n\
             1 passed, 1 failed, 1 skipped\n\
             guest: the suite exited with 1\n",
        );
        assert_eq!(report.release.as_deref(), Some("5.10.0-46-cloud-amd64"));
        assert_eq!(
            report.counts.map(|counts| counts.to_string()).as_deref(),
            Some("1 passed, 1 failed, 1 skipped")
        );
        assert_eq!(report.counts, Some(report.so_far));
        assert_eq!(report.failures, ["FAIL rules/two: it failed"]);
        assert_eq!(report.skips, ["skip rules/three: no such rule"]);
        assert_eq!(report.verifier, [("connect4".to_owned(), 1234)]);
        assert_eq!(report.modules, ["/modules/x.ko: ENOENT"]);
        assert_eq!(report.ended, Some(Err("the suite exited with 1".into())));
    }

    #[test]
    fn a_flaky_case_is_not_among_the_failures() {
        let report = report(
            "FAIL rules/two: it failed\n\
             FAIL rules/two-of-three: it failed\n\
             ok   rules/two (3 ms)\n\
             FAIL rules/two-of-three: it failed again\n\
             flaky rules/two: passed when repeated; before: it failed\n\
             failed: rules/two-of-three: it failed again\n\
             1 passed, 1 failed, 0 skipped\n",
        );
        assert_eq!(
            report.flaky,
            ["flaky rules/two: passed when repeated; before: it failed"]
        );
        assert_eq!(
            report.failures,
            [
                "FAIL rules/two-of-three: it failed",
                "FAIL rules/two-of-three: it failed again"
            ]
        );
    }

    #[test]
    fn only_exit_code_0_is_success() {
        assert_eq!(report("guest: the suite exited with 0").ended, Some(Ok(())));
        for bad in [
            "the suite exited with 101",
            "the suite was killed by SIGSEGV",
            "error: no /proc",
        ] {
            assert_eq!(
                report(&format!("guest: {bad}")).ended,
                Some(Err(bad.into()))
            );
        }
        assert_eq!(report("the suite exited with 0").ended, None);
    }

    #[test]
    fn a_crashed_kernel_is_detected() {
        assert!(is_fatal(
            "[   12.3] Kernel panic - not syncing: Fatal exception"
        ));
        assert!(is_fatal(
            "watchdog: BUG: soft lockup - CPU#0 stuck for 23s! [testbed:123]"
        ));
        assert!(!is_fatal("[    0.1] Linux version 6.1.0"));
    }
}
