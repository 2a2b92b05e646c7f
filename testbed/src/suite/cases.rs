//! Runs cases and counts them: passed, failed, skipped; each skip has a reason.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow};

use crate::guest;
use crate::interrupt;
use crate::pace;
use crate::pod::unavailable;

/// Name of the case that a group's failure outside its cases counts as.
const SETUP: &str = "setup";

/// Collects results.
#[derive(Debug)]
pub struct Cases {
    filter: Vec<String>,
    daemon: Option<PathBuf>,
    envoy: Option<PathBuf>,
    promtool: Option<PathBuf>,
    lasting: Option<Duration>,
    group: String,
    passed: Vec<String>,
    /// Cases that failed and then passed when repeated, with the first failure.
    flaky: Vec<(String, String)>,
    failures: Vec<(String, String)>,
    skips: Vec<(String, String)>,
    /// What to show when a case fails; set by the group, usually a daemon's log.
    on_failure: Option<PathBuf>,
}

impl Cases {
    /// Without results.
    pub fn new(filter: Vec<String>, daemon: Option<PathBuf>) -> Self {
        Self {
            filter,
            daemon,
            envoy: None,
            promtool: None,
            lasting: None,
            group: String::new(),
            passed: Vec::new(),
            flaky: Vec::new(),
            failures: Vec::new(),
            skips: Vec::new(),
            on_failure: None,
        }
    }

    /// Sets how long each case takes that repeats an attack or keeps a daemon stopped.
    #[must_use]
    pub fn each_lasting(mut self, time: Option<Duration>) -> Self {
        self.lasting = time;
        self
    }

    /// Sets Envoy's program.
    #[must_use]
    pub fn with_envoy(mut self, program: Option<PathBuf>) -> Self {
        self.envoy = program;
        self
    }

    /// Sets Prometheus' promtool.
    #[must_use]
    pub fn with_promtool(mut self, program: Option<PathBuf>) -> Self {
        self.promtool = program;
        self
    }

    /// Prometheus' promtool, if one was given.
    pub fn promtool(&self) -> Option<&Path> {
        self.promtool.as_deref()
    }

    /// Envoy's program, if one was given.
    pub fn envoy(&self) -> Option<&Path> {
        self.envoy.as_deref()
    }

    /// How long a case takes that usually takes `usual`, times this machine's pace.
    pub fn lasting(&self, usual: Duration) -> Duration {
        self.lasting.unwrap_or_else(|| pace::stretch(usual))
    }

    /// The daemon's program, if one was given.
    pub fn daemon(&self) -> Option<&Path> {
        self.daemon.as_deref()
    }

    /// Whether a case of `group` may be selected: its name matches, or a filter contains a case of it.
    pub fn wants_group(&self, group: &str) -> bool {
        let prefix = format!("{group}/");
        self.filter.is_empty()
            || self.filter.iter().any(|filter| {
                prefix.contains(filter.as_str())
                    || filter.starts_with(&prefix)
                    || !filter.contains('/')
            })
    }

    /// Whether case `name` of the current group is selected; with a name that ends with `/`, whether a case below it may be.
    /// Groups check this before an expensive setup.
    pub fn wants(&self, name: &str) -> bool {
        let full = self.full(name);
        self.filter.is_empty()
            || self.filter.iter().any(|filter| {
                full.contains(filter.as_str()) || full.ends_with('/') && filter.starts_with(&full)
            })
    }

    /// Runs a group. An error outside its cases counts as a failure of the group.
    pub fn group(&mut self, name: &str, run: &fn(&mut Self) -> Result<()>) {
        self.group_with(name, run);
    }

    /// Like [`Cases::group`], for a group that takes an argument.
    pub fn group_with(&mut self, name: &str, run: impl FnOnce(&mut Self) -> Result<()>) {
        name.clone_into(&mut self.group);
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut *self)));
        let outcome = outcome.unwrap_or_else(|panic| Err(panicked(&*panic)));
        if let Err(error) = outcome {
            self.judge(SETUP, Err(error), Duration::ZERO);
        }
        self.on_failure = None;
    }

    /// Sets the log whose end is shown when a case of this group fails.
    pub fn show_on_failure(&mut self, log: &Path) {
        self.on_failure = Some(log.to_owned());
    }

    /// Runs a case if it is selected.
    pub fn case(&mut self, name: &str, body: impl FnOnce() -> Result<()>) {
        if !self.wants(name) {
            return;
        }
        let started = Instant::now();
        let outcome = interrupt::check().and_then(|()| {
            catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(panicked(&*panic)))
        });
        self.judge(name, outcome, started.elapsed());
    }

    /// Like [`Cases::case`], for a case that asserts milliseconds, for which an emulated processor is too slow.
    pub fn case_to_the_millisecond(&mut self, name: &str, body: impl FnOnce() -> Result<()>) {
        if pace::factor() > 1 {
            self.skip(name, "it asserts milliseconds: left to the run on the host");
        } else {
            self.case(name, body);
        }
    }

    /// Skips case `name` if the processor is emulated, because the case needs more processor time than an emulated one
    /// has. Returns whether it was skipped.
    pub fn skip_if_emulated(&mut self, name: &str) -> bool {
        let emulated = pace::factor() > 1;
        if emulated {
            let why = "it needs more of the processor than an emulated one has: left to the run on the host";
            self.skip(name, why);
        }
        emulated
    }

    /// Like [`Cases::case`], for a case that needs a dedicated machine, with the reason `why`.
    pub fn case_in_a_guest(&mut self, name: &str, why: &str, body: impl FnOnce() -> Result<()>) {
        if guest::is_here() {
            self.case(name, body);
        } else {
            self.skip(name, &format!("{why}: left to the virtual machines"));
        }
    }

    /// Like [`Cases::case`], for a case that creates its own environment.
    pub fn case_in(&mut self, name: &str, body: impl FnOnce(&mut Self) -> Result<()>) {
        if !self.wants(name) {
            return;
        }
        let started = Instant::now();
        let outcome = interrupt::check().and_then(|()| {
            catch_unwind(AssertUnwindSafe(|| body(&mut *self)))
                .unwrap_or_else(|panic| Err(panicked(&*panic)))
        });
        self.judge(name, outcome, started.elapsed());
        self.on_failure = None;
    }

    /// Counts a case as skipped because it cannot run on this machine.
    pub fn skip(&mut self, name: &str, why: &str) {
        if self.wants(name) {
            let name = self.full(name);
            println!("skip {name}: {why}");
            self.skips.push((name, why.to_owned()));
        }
    }

    fn judge(&mut self, name: &str, outcome: Result<()>, took: Duration) {
        let name = self.full(name);
        match outcome {
            Ok(()) => {
                println!("ok   {name} ({} ms)", took.as_millis());
                self.passed.push(name);
            }
            Err(error) => {
                if let Some(why) = unavailable(&error) {
                    println!("skip {name}: {why}");
                    self.skips.push((name, why.to_string()));
                    return;
                }
                println!("FAIL {name}: {error:#}");
                if let Some(log) = &self.on_failure {
                    show_tail(log);
                }
                self.failures.push((name, format!("{error:#}")));
            }
        }
    }

    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }

    /// Whether `most` or fewer cases failed, none of which is about who gets past the mesh: those may never fail.
    pub fn may_be_repeated(&self, most: usize) -> bool {
        const NEVER: [&str; 2] = ["attacks/", "identity/"];
        let never = |(name, _): &(String, String)| NEVER.iter().any(|of| name.starts_with(of));
        (1..=most).contains(&self.failed()) && !self.failures.iter().any(never)
    }

    /// The failed cases, to be repeated: with the same options, and without results.
    pub fn only_failed(&self) -> Self {
        let filters = self.failures.iter().map(|(name, _)| {
            // A group that failed outside its cases may not have run all of them.
            match name.strip_suffix(SETUP) {
                Some(group) if group.ends_with('/') => group.to_owned(),
                _ => name.clone(),
            }
        });
        Self {
            filter: filters.collect(),
            daemon: self.daemon.clone(),
            envoy: self.envoy.clone(),
            promtool: self.promtool.clone(),
            lasting: self.lasting,
            ..Self::new(Vec::new(), None)
        }
    }

    /// Adds the results of [`Cases::only_failed`]. A case that passed this time is not a failure any more, but is reported.
    pub fn add_repeated(&mut self, repeated: Self) {
        // A group that failed outside its cases has been repeated as a whole.
        let passed = |name: &String| {
            let part = name.strip_suffix(SETUP).unwrap_or(name);
            let of_it = |other: &&String| match part == name {
                true => *other == name,
                false => other.starts_with(part),
            };
            let failed = repeated.failures.iter().map(|(name, _)| name);
            repeated.passed.iter().any(|name| of_it(&name))
                && !failed.clone().any(|name| of_it(&name))
        };
        let (flaky, mut failures): (Vec<_>, Vec<_>) = std::mem::take(&mut self.failures)
            .into_iter()
            .partition(|(name, _)| passed(name));
        self.flaky.extend(flaky);
        for failure in repeated.failures {
            if !failures.iter().any(|(name, _)| *name == failure.0) {
                self.passed.retain(|name| *name != failure.0);
                failures.push(failure);
            }
        }
        self.failures = failures;
        for name in repeated.passed {
            if !self.passed.contains(&name) {
                self.passed.push(name);
            }
        }
        for skip in repeated.skips {
            if !self.skips.contains(&skip) {
                self.skips.push(skip);
            }
        }
    }

    /// How many cases passed.
    pub fn passed(&self) -> usize {
        self.passed.len()
    }

    /// How many failed.
    pub fn failed(&self) -> usize {
        self.failures.len()
    }

    /// Prints failures and skips, and the counts as the last line.
    pub fn summary(&self, took: Duration) {
        println!();
        for (name, why) in &self.flaky {
            println!("flaky {name}: passed when repeated; before: {why}");
        }
        for (name, why) in &self.failures {
            println!("failed: {name}: {why}");
        }
        println!("suite took {} s", took.as_secs());
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed.len(),
            self.failures.len(),
            self.skips.len()
        );
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("with something that is no text");
    anyhow!("panicked: {text}")
}

fn show_tail(log: &Path) {
    const LINES: usize = 15;
    let Ok(text) = std::fs::read_to_string(log) else {
        return;
    };
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        println!("     | {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group `g` with the given results, in which `true` passes.
    fn run(cases: &mut Cases, results: &[(&str, bool)], setup: Result<()>) {
        cases.group_with("g", |cases| {
            for &(name, passes) in results {
                cases.case(name, || {
                    if passes {
                        Ok(())
                    } else {
                        Err(anyhow!("it failed"))
                    }
                });
            }
            setup
        });
    }

    #[test]
    fn a_repeated_case_that_passes_is_flaky_and_one_that_fails_again_stays_failed() {
        let mut cases = Cases::new(Vec::new(), None);
        run(
            &mut cases,
            &[("a", true), ("b", false), ("c", false)],
            Ok(()),
        );
        let mut again = cases.only_failed();
        run(
            &mut again,
            &[("a", true), ("b", true), ("c", false)],
            Ok(()),
        );
        cases.add_repeated(again);
        assert_eq!(cases.passed, ["g/a", "g/b"]);
        assert_eq!(cases.flaky, [("g/b".to_owned(), "it failed".to_owned())]);
        assert_eq!(cases.failures, [("g/c".to_owned(), "it failed".to_owned())]);
    }

    #[test]
    fn a_group_that_failed_in_its_setup_is_repeated_as_a_whole() {
        let broken = || Err(anyhow!("no daemon"));
        for (results, failed, flaky) in [
            (&[("a", true), ("b", true)], 0, 1),
            (&[("a", true), ("b", false)], 2, 0),
        ] {
            let mut cases = Cases::new(Vec::new(), None);
            run(&mut cases, &[("a", true)], broken());
            let mut again = cases.only_failed();
            run(&mut again, results, Ok(()));
            cases.add_repeated(again);
            assert_eq!(
                (cases.failed(), cases.flaky.len()),
                (failed, flaky),
                "{cases:?}"
            );
            assert_eq!(cases.passed() + cases.failed(), 2 + failed / 2, "{cases:?}");
        }
    }

    #[test]
    fn a_failed_case_that_is_not_repeated_stays_failed() {
        let mut cases = Cases::new(Vec::new(), None);
        run(&mut cases, &[("a", false)], Ok(()));
        let again = cases.only_failed();
        cases.add_repeated(again);
        assert_eq!((cases.failed(), cases.flaky.len()), (1, 0));
    }

    #[test]
    fn too_many_failures_and_those_of_attacks_are_not_repeated() {
        let failed = |group: &str, names: &[&str]| {
            let mut cases = Cases::new(Vec::new(), None);
            cases.group_with(group, |cases| {
                for name in names {
                    cases.case(name, || Err(anyhow!("it failed")));
                }
                Ok(())
            });
            cases.may_be_repeated(2)
        };
        assert!(failed("g", &["a", "b"]));
        assert!(!failed("g", &["a", "b", "c"]));
        assert!(!failed("g", &[]));
        assert!(!failed("attacks", &["a"]));
    }

    #[test]
    fn a_filter_selects_the_prefixes_of_its_case() {
        let mut cases = Cases::new(vec!["g/outliving/one".to_owned()], None);
        cases.group_with("g", |cases| {
            assert!(cases.wants("outliving/") && cases.wants("outliving/one"));
            assert!(!cases.wants("outliving/two") && !cases.wants("costly/"));
            Ok(())
        });
    }
}
