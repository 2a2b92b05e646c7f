//! Which lines of a guest's console are shown while the guest runs.

/// How many lines are shown after the first line of a failure: its reasons and the end of a log.
const LINES_PER_FAILURE: usize = 60;

/// Shows failed and skipped cases. Hundreds of cases pass, so those are not shown.
#[derive(Debug, Default)]
pub struct ConsoleFilter {
    /// How many more lines of the current failure may be shown.
    left: usize,
}

impl ConsoleFilter {
    /// Whether to show `line`.
    pub fn shows(&mut self, line: &str) -> bool {
        let starts = |with: &[&str]| with.iter().any(|with| line.starts_with(with));
        if starts(&["FAIL "]) {
            self.left = LINES_PER_FAILURE;
            return true;
        }
        if starts(&["ok ", "skip ", "flaky ", "failed: ", "guest: "]) {
            self.left = 0;
            return starts(&["skip "]);
        }
        let show = self.left > 0;
        self.left = self.left.saturating_sub(1);
        show
    }
}

#[cfg(test)]
mod tests {
    use super::ConsoleFilter;

    #[test]
    fn a_failure_is_shown_with_the_lines_that_follow_it() {
        let mut filter = ConsoleFilter::default();
        let shown: Vec<&str> = [
            "ok   a/one (3 ms)",
            "  a line of no case",
            "FAIL a/two: a command:",
            "what it printed",
            "",
            "skip a/three: not here",
            "a line after a skip",
            "FAIL a/four: another",
            "ok   a/five (3 ms)",
            "failed: a/two: a command:",
            "what it printed",
        ]
        .into_iter()
        .filter(|line| filter.shows(line))
        .collect();
        let expected = [
            "FAIL a/two: a command:",
            "what it printed",
            "",
            "skip a/three: not here",
            "FAIL a/four: another",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn an_endless_failure_is_cut() {
        let mut filter = ConsoleFilter::default();
        let lines =
            std::iter::once("FAIL a/one: it goes on").chain(std::iter::repeat_n("and on", 1000));
        assert_eq!(lines.filter(|line| filter.shows(line)).count(), 61);
    }
}
