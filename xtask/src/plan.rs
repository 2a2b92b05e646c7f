//! The levels that `cargo xtask test` is about to run, and their estimated duration, which is that of the
//! last run on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::shell::target_dir;

/// Each level in the order in which they run, with its purpose and, for the first run, its duration in seconds on two idle
/// cores, with its builds.
const LEVELS: [(&str, &str, u64); 5] = [
    ("tidy", "the repository's rules", 1),
    ("unit", "the unit tests", 420),
    ("manifests", "the rendered manifests", 60),
    ("netns", "the namespace suite, as root", 360),
    ("vm", "that suite on other kernels", 2700),
];

/// Durations of earlier runs in seconds, by level.
#[derive(Debug, Default)]
pub struct Durations(BTreeMap<String, u64>);

impl Durations {
    fn path() -> PathBuf {
        target_dir().join("xtask/test-seconds.json")
    }

    /// Those of the last runs here; `None` if there is no readable record.
    pub fn load() -> Self {
        let text = fs::read_to_string(Self::path()).unwrap_or_default();
        Self(serde_json::from_str(&text).unwrap_or_default())
    }

    /// Records a whole level, for the next plan.
    pub fn record(level: &str, duration: Duration) {
        let Self(mut seconds) = Self::load();
        let _earlier = seconds.insert(level.to_owned(), duration.as_secs().max(1));
        // Only an estimate: if it can't be written, the next run shows the usual durations.
        if let Ok(text) = serde_json::to_string(&seconds) {
            let _directory = fs::create_dir_all(target_dir().join("xtask"));
            let _written = fs::write(Self::path(), text);
        }
    }

    /// The text at the start of a run, for the selected levels.
    pub fn plan(&self, wanted: impl Fn(&str) -> bool) -> String {
        let levels = LEVELS.iter().filter(|(level, ..)| wanted(level));
        let (mut rows, mut total) = (String::new(), 0);
        for (level, purpose, usual) in levels {
            let last = self.0.get(*level);
            let seconds = last.unwrap_or(usual);
            let source = if last.is_some() {
                "as last time"
            } else {
                "usually, with its builds"
            };
            total += seconds;
            rows += &format!(
                "  {level:9} {:>7}  {purpose} ({source})\n",
                rounded(*seconds)
            );
        }
        format!(
            "test: about {} in all\n{rows}test: one level: `cargo xtask test unit`; some of its tests: \
             `cargo xtask test unit -- NAME`\n",
            rounded(total)
        )
    }
}

fn rounded(seconds: u64) -> String {
    match seconds {
        0..100 => format!("{seconds} s"),
        _ => format!("{} min", (seconds + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_shows_each_wanted_level_and_the_sum() {
        let last = Durations([("netns".to_owned(), 240)].into());
        let plan = last.plan(|level| matches!(level, "tidy" | "netns"));
        assert!(
            plan.starts_with("test: about 4 min in all\n  tidy          1 s  "),
            "{plan}"
        );
        assert!(
            plan.contains("netns       4 min  the namespace suite, as root (as last time)"),
            "{plan}"
        );
        assert!(!plan.contains("vm "), "{plan}");
    }
}
