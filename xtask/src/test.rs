//! `cargo xtask test`: runs the repository's rules, the unit tests and the namespace suite, here and on other
//! kernels, and prints one summary.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write, stdout};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::counts::{Counts, of_cargo_test, of_suite};
use crate::plan::Durations;
use crate::release::{Binaries, Heap};
use crate::shell::{cargo, display, is_root};
use crate::{envoy, helm, kubectl, promtool, setup, tidy, vm};

/// Options of `test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run only this level
    #[arg(value_enum)]
    level: Option<Level>,
    #[command(flatten)]
    vm: vm::Options,
    /// Run only tests that match, as in `cargo test -- FILTER` and `testbed suite FILTER`
    #[arg(last = true, requires = "level")]
    filter: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    /// The unit tests; need neither root nor the eBPF toolchain
    Unit,
    /// The manifests in deploy/: rendered by kubectl and checked against schema and design
    Manifests,
    /// The namespace suite: real mesh rules, real programs (needs root)
    Netns,
    /// The namespace suite on other kernels, in virtual machines
    Vm,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Manifests => "manifests",
            Self::Netns => "netns",
            Self::Vm => "vm",
        }
    }
}

/// Options of a run of the suite that is no single case by hand: a few cases that failed are repeated at its end, because each
/// run has thousands of cases with deadlines, on a machine whose load is unknown. The summary shows them as flaky.
pub const REPEAT_FAILED: [&str; 2] = ["--repeat-failed", "3"];

/// The result of one level.
#[derive(Debug, Default)]
struct Outcome {
    name: &'static str,
    counts: Counts,
    /// Duration, including builds.
    duration: Duration,
    /// Lines that explain the numbers: why the level failed, what was skipped.
    notes: Vec<String>,
}

/// Runs the selected levels and prints the summary. Returns whether none failed.
pub fn run(args: &Args) -> Result<bool> {
    if args.vm.is_given() && args.level != Some(Level::Vm) {
        bail!("kernels can be given for `vm` only: cargo xtask test vm 6.1");
    }
    let wanted = |name: &str| match args.level {
        Some(level) => level.name() == name,
        None => true,
    };
    print!("{}", Durations::load().plan(wanted));
    outlive_interrupt()?;
    setup::compile_tools()?;
    let mut outcomes = Vec::new();
    let mut level = |run: &dyn Fn() -> Outcome| {
        if !interrupted() {
            let start = Instant::now();
            let mut outcome = run();
            outcome.duration = start.elapsed();
            let whole = args.filter.is_empty() && !args.vm.is_given() && !interrupted();
            if whole && outcome.counts.failed == 0 && outcome.counts.passed > 0 {
                Durations::record(outcome.name, outcome.duration);
            }
            outcomes.push(outcome);
        }
    };
    if wanted("tidy") {
        level(&rules);
    }
    if wanted(Level::Unit.name()) {
        level(&|| unit(&args.filter));
    }
    if wanted(Level::Manifests.name()) {
        level(&|| manifests(args));
    }
    if wanted(Level::Netns.name()) {
        level(&|| netns(args));
    }
    if wanted(Level::Vm.name()) {
        level(&|| machines(args));
    }
    let interrupted = interrupted();
    if interrupted {
        println!("\ninterrupted: the results below are incomplete");
    }
    let total = summary(&outcomes);
    Ok(total.failed == 0 && !interrupted)
}

fn rules() -> Outcome {
    let mut outcome = Outcome {
        name: "tidy",
        ..Outcome::default()
    };
    match tidy::check() {
        Ok(report) => {
            outcome.counts.passed = report.kept;
            outcome.counts.failed = report.broken;
            outcome.notes = report.findings;
        }
        Err(error) => {
            outcome.counts.failed = 1;
            outcome.notes.push(format!("{error:#}"));
        }
    }
    outcome
}

fn unit(filter: &[OsString]) -> Outcome {
    let mut command = cargo();
    command.args(["test", "--locked", "--no-fail-fast", "--"]);
    command.args(filter);
    let mut outcome = Outcome {
        name: "unit",
        ..Outcome::default()
    };
    let result = run_counting(&mut command, stdout(), &mut outcome, |line, outcome| {
        if let Some(counts) = of_cargo_test(line) {
            outcome.counts += counts;
        } else if line.starts_with("test ") && line.contains(" ... ignored") {
            outcome.notes.push(line.into());
        }
        true
    });
    settle(result, outcome)
}

/// Checks the manifests, without root, with the debug build of the unit tests.
fn manifests(args: &Args) -> Outcome {
    let outcome = Outcome {
        name: "manifests",
        ..Outcome::default()
    };
    match kubectl::find_or_fetch() {
        Ok(kubectl) => {
            let mut command = cargo();
            command.args(["run", "--quiet", "--locked", "--package", "testbed", "--"]);
            command.args(["manifests", "--kubectl"]).arg(kubectl);
            match helm::find_or_fetch() {
                Ok(helms) => {
                    for helm in helms {
                        command.arg("--helm").arg(helm);
                    }
                }
                // The suite counts the chart's cases as skipped.
                Err(error) => println!("test: no Helm: {error:#}"),
            }
            add_promtool(&mut command);
            command.args(&args.filter);
            suite(Ok(command), outcome)
        }
        Err(error) => not_run(outcome, args, Level::Manifests, &format!("{error:#}")),
    }
}

fn netns(args: &Args) -> Outcome {
    let outcome = Outcome {
        name: "netns",
        ..Outcome::default()
    };
    if !is_root() {
        return not_run(outcome, args, Level::Netns, "it requires root");
    }
    let envoy = envoy::find_or_fetch();
    let command = Binaries::build(Heap::Jemalloc).map(|binaries| {
        let mut command = binaries.testbed("suite");
        command.args(REPEAT_FAILED);
        if let Ok(envoy) = &envoy {
            command.arg("--envoy").arg(envoy);
        }
        add_promtool(&mut command);
        command.args(&args.filter);
        command
    });
    let mut outcome = suite(command, outcome);
    if let Err(error) = envoy {
        let note = format!("no Envoy, so the group `envoy` did not run: {error:#}");
        outcome.notes.push(note);
    }
    outcome
}

/// Without promtool the testbed counts its cases as skipped.
fn add_promtool(command: &mut Command) {
    match promtool::find_or_fetch() {
        Ok(promtool) => drop(command.arg("--promtool").arg(promtool)),
        Err(error) => println!("test: no promtool: {error:#}"),
    }
}

/// A level that can't run here: it fails if it was selected by name, else it counts as one skipped test.
fn not_run(mut outcome: Outcome, args: &Args, level: Level, why: &str) -> Outcome {
    let note = format!("the whole level did not run: {why}");
    outcome.notes.push(note);
    if args.level == Some(level) {
        outcome.counts.failed = 1;
    } else {
        outcome.counts.skipped = 1;
    }
    outcome
}

/// Runs a testbed command that prints its counts as the last line.
fn suite(command: Result<Command>, mut outcome: Outcome) -> Outcome {
    let result = command.and_then(|mut command| {
        let mut last = None;
        let result = run_counting(&mut command, stdout(), &mut outcome, |line, outcome| {
            let counts = of_suite(line);
            last = counts.or(last);
            if line.to_lowercase().starts_with("skip") || line.starts_with("flaky ") {
                outcome.notes.push(line.into());
            }
            // The summary repeats the counts; here they must not look like its last line.
            counts.is_none()
        });
        outcome.counts = last.unwrap_or_default();
        result?;
        last.map(drop).context("the suite ended without its counts")
    });
    settle(result, outcome)
}

/// Runs the suite on other kernels.
fn machines(args: &Args) -> Outcome {
    let mut outcome = Outcome {
        name: "vm",
        ..Outcome::default()
    };
    match vm::run(&args.vm, &args.filter) {
        Ok(vm::Outcome { counts, notes }) => {
            outcome.counts = counts;
            outcome.notes = notes;
        }
        // A level that does not run is a failure, because a change must not pass untested on other kernels.
        Err(error) => {
            outcome.counts.failed = 1;
            outcome
                .notes
                .push(format!("the whole level did not run: {error:#}"));
        }
    }
    outcome
}

/// A runner that fails without counting a failure, or a level that runs no test, counts as a failure.
fn settle(result: Result<()>, mut outcome: Outcome) -> Outcome {
    if let Err(error) = result
        && outcome.counts.failed == 0
    {
        outcome.notes.push(format!("{error:#}"));
        outcome.counts.failed = 1;
    }
    if outcome.counts.passed + outcome.counts.failed == 0 {
        outcome.notes.push("no test ran".into());
        outcome.counts.failed = 1;
    }
    outcome
}

/// Runs a command and passes each line of its standard output to `each` and, if that returns true, to
/// `terminal`.
fn run_counting(
    command: &mut Command,
    mut terminal: impl Write,
    outcome: &mut Outcome,
    mut each: impl FnMut(&str, &mut Outcome) -> bool,
) -> Result<()> {
    let name = display(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{name}`"))?;
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).context("cannot read")? > 0 {
            if each(String::from_utf8_lossy(&line).trim_end(), outcome) {
                // The reader of our output may be gone; the tests continue, and clean up.
                terminal.write_all(&line).ok();
                terminal.flush().ok();
            }
            line.clear();
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{name}` failed ({status})");
    }
    Ok(())
}

/// Prints a row per level and, as the last line, the sum.
fn summary(outcomes: &[Outcome]) -> Counts {
    let mut total = Counts::default();
    println!(
        "\n{:9} {:>7} {:>7} {:>8} {:>8}",
        "level", "passed", "failed", "skipped", "seconds"
    );
    for Outcome {
        name,
        counts,
        duration,
        notes,
    } in outcomes
    {
        println!(
            "{name:9} {:>7} {:>7} {:>8} {:>8.1}",
            counts.passed,
            counts.failed,
            counts.skipped,
            duration.as_secs_f64()
        );
        for note in notes {
            println!("          {note}");
        }
        total += *counts;
    }
    println!("\n{total}");
    total
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

extern "C" fn remember(_signal: nix::libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Keeps this process alive on ctrl-C. The terminal signals the runner too; it cleans up, and we wait for it.
fn outlive_interrupt() -> Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(remember),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler stores to an atomic and does nothing else.
    let old = unsafe { sigaction(Signal::SIGINT, &action) };
    old.map(drop).context("cannot handle SIGINT")
}

#[cfg(test)]
mod tests {
    use std::io::sink;

    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn counted(script: &str) -> Outcome {
        let mut outcome = Outcome::default();
        let result = run_counting(&mut sh(script), sink(), &mut outcome, |line, outcome| {
            outcome.counts += of_suite(line).unwrap_or_default();
            true
        });
        settle(result, outcome)
    }

    #[test]
    fn counts_come_from_the_runner() {
        let outcome = counted("echo hello; echo '2 passed, 0 failed, 1 skipped'");
        assert_eq!(outcome.counts.to_string(), "2 passed, 0 failed, 1 skipped");
        assert!(outcome.notes.is_empty());
    }

    #[test]
    fn a_runner_that_fails_is_a_failure_whatever_it_counted() {
        let outcome = counted("echo '2 passed, 0 failed, 0 skipped'; exit 3");
        assert_eq!(outcome.counts.failed, 1);
        assert!(outcome.notes[0].contains('3'), "{:?}", outcome.notes);
        let outcome = counted("echo '2 passed, 4 failed, 0 skipped'; exit 1");
        assert_eq!(outcome.counts.failed, 4);
    }

    #[test]
    fn a_level_that_ran_no_test_is_a_failure() {
        assert_eq!(counted("true").counts.failed, 1);
        let outcome = counted("echo '0 passed, 0 failed, 9 skipped'");
        assert_eq!(outcome.counts.failed, 1);
        assert_eq!(outcome.notes, ["no test ran"]);
    }
}
