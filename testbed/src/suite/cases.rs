//! Runs cases and counts them: passed, failed, skipped; each skip has a reason.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow};

use crate::guest;
use crate::interrupt;
use crate::pace;
use crate::pod::unavailable;

/// Collects results.
#[derive(Debug)]
pub struct Cases {
    filter: Vec<String>,
    daemon: Option<PathBuf>,
    envoy: Option<PathBuf>,
    lasting: Option<Duration>,
    group: String,
    passed: usize,
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
            lasting: None,
            group: String::new(),
            passed: 0,
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

    /// Whether case `name` of the current group is selected. Groups check this before an expensive setup.
    pub fn wants(&self, name: &str) -> bool {
        let full = self.full(name);
        self.filter.is_empty()
            || self
                .filter
                .iter()
                .any(|filter| full.contains(filter.as_str()))
    }

    /// Runs a group. An error outside its cases counts as a failure of the group.
    pub fn group(&mut self, name: &str, run: &fn(&mut Self) -> Result<()>) {
        self.group_with(name, run);
    }

    /// As [`Cases::group`], for a group that takes an argument.
    pub fn group_with(&mut self, name: &str, run: impl FnOnce(&mut Self) -> Result<()>) {
        name.clone_into(&mut self.group);
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut *self)));
        let outcome = outcome.unwrap_or_else(|panic| Err(panicked(&*panic)));
        if let Err(error) = outcome {
            self.judge("setup", Err(error), Duration::ZERO);
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

    /// As [`Cases::case`], for a case that asserts milliseconds, for which an emulated processor is too slow.
    pub fn case_to_the_millisecond(&mut self, name: &str, body: impl FnOnce() -> Result<()>) {
        if pace::factor() > 1 {
            self.skip(name, "it asserts milliseconds: left to the run on the host");
        } else {
            self.case(name, body);
        }
    }

    /// Skips case `name` where the processor is emulated, because the case loads it more than an emulated one can carry.
    /// Returns whether it did.
    pub fn skip_if_emulated(&mut self, name: &str) -> bool {
        let emulated = pace::factor() > 1;
        if emulated {
            let why = "it needs more of the processor than an emulated one has: left to the run on the host";
            self.skip(name, why);
        }
        emulated
    }

    /// As [`Cases::case`], for a case that needs a dedicated machine, with the reason `why`.
    pub fn case_in_a_guest(&mut self, name: &str, why: &str, body: impl FnOnce() -> Result<()>) {
        if guest::is_here() {
            self.case(name, body);
        } else {
            self.skip(name, &format!("{why}: left to the virtual machines"));
        }
    }

    /// As [`Cases::case`], for a case that creates its own environment.
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

    /// Counts a case that cannot run on this machine.
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
                self.passed += 1;
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

    /// How many cases passed.
    pub fn passed(&self) -> usize {
        self.passed
    }

    /// How many failed.
    pub fn failed(&self) -> usize {
        self.failures.len()
    }

    /// Prints failures and skips, and the counts as the last line.
    pub fn summary(&self, took: Duration) {
        println!();
        for (name, why) in &self.failures {
            println!("failed: {name}: {why}");
        }
        println!("suite took {} s", took.as_secs());
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed,
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
