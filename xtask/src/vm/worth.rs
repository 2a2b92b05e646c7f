//! Which of a guest's lines are worth telling while it runs.

/// The lines after the first that are told of one failure: its reasons, and the end of a log.
const OF_A_FAILURE: usize = 60;

/// Hundreds of cases pass: what does not is what one wants to see, with all that it says of itself.
#[derive(Debug, Default)]
pub struct Worth {
    /// The lines that may still follow of the failure that was told last.
    left: usize,
}

impl Worth {
    /// Whether to tell `line`.
    pub fn telling(&mut self, line: &str) -> bool {
        let starts = |with: &[&str]| with.iter().any(|with| line.starts_with(with));
        if starts(&["FAIL "]) {
            self.left = OF_A_FAILURE;
            return true;
        }
        if starts(&["ok ", "skip ", "failed: ", "guest: "]) {
            self.left = 0;
            return starts(&["skip "]);
        }
        let tell = self.left > 0;
        self.left = self.left.saturating_sub(1);
        tell
    }
}

#[cfg(test)]
mod tests {
    use super::Worth;

    #[test]
    fn a_failure_is_told_with_the_lines_that_follow_it() {
        let mut worth = Worth::default();
        let told: Vec<&str> = [
            "ok   a/one (3 ms)",
            "  a line of no case",
            "FAIL a/two: a command:",
            "what it printed",
            "",
            "skip a/three: not here",
            "what nobody asked for",
            "FAIL a/four: another",
            "ok   a/five (3 ms)",
            "failed: a/two: a command:",
            "what it printed",
        ]
        .into_iter()
        .filter(|line| worth.telling(line))
        .collect();
        let expected = [
            "FAIL a/two: a command:",
            "what it printed",
            "",
            "skip a/three: not here",
            "FAIL a/four: another",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_failure_without_end_is_cut() {
        let mut worth = Worth::default();
        let lines =
            std::iter::once("FAIL a/one: it goes on").chain(std::iter::repeat_n("and on", 1000));
        assert_eq!(lines.filter(|line| worth.telling(line)).count(), 61);
    }
}
