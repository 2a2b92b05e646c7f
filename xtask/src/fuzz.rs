//! `cargo xtask fuzz`: fuzzes the parsers of bytes from outside with libFuzzer.
//!
//! The targets are a separate workspace, `fuzz/`. Coverage needs only stable flags of rustc, and no sanitizer: the
//! parsers contain no `unsafe` code, so their faults are panics, endless loops and wrong results. So the workspace's own
//! compiler builds the targets, not a nightly, and without `cargo fuzz`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, exec, root, target_dir};

/// As `cargo fuzz` sets them, without a sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Where the instrumented program is built. Flags apply to build scripts too unless a target is named.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Seconds after which one input counts as an endless loop.
const SLOW: u32 = 10;

/// Options of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Fuzz only this target, one of the directories of fuzz/corpus [default: all, one after the other]
    target: Option<String>,
    /// How long to fuzz each target
    #[arg(long, default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// Builds the targets and runs them.
///
/// # Errors
/// When a target does not exist or can't be built, or an input fails.
pub fn run(args: &Args) -> Result<()> {
    let known = targets(&root().join("fuzz/corpus"))?;
    let chosen = match &args.target {
        None => known,
        Some(name) if known.contains(name) => vec![name.clone()],
        Some(name) => bail!("no target is named {name}: use one of {}", known.join(", ")),
    };
    let program = build()?;
    let mut failed = Vec::new();
    for name in chosen {
        println!("fuzz: {name}");
        let fuzzed = exec(&mut command(&program, &name, args.seconds)?);
        if fuzzed.is_err() {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!(
            "targets with a failing input: {}; the inputs are in {}",
            failed.join(", "),
            target_dir().join("fuzz/failures").display()
        );
    }
    Ok(())
}

/// The names of the targets: each has a corpus.
fn targets(corpora: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let entries =
        fs::read_dir(corpora).with_context(|| format!("reading {}", corpora.display()))?;
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Builds the program with all targets; returns its path.
fn build() -> Result<std::path::PathBuf> {
    let fuzz = root().join("fuzz");
    // The versions that are fuzzed are the workspace's; cargo adds only libFuzzer's.
    fs::copy(root().join("Cargo.lock"), fuzz.join("Cargo.lock")).context("copying Cargo.lock")?;
    let to = target_dir().join("fuzz");
    exec(
        cargo()
            .current_dir(&fuzz)
            .env("RUSTFLAGS", FLAGS)
            .args(["build", "--release", "--target", TARGET, "--target-dir"])
            .arg(&to),
    )?;
    Ok(to.join(TARGET).join("release/fuzz"))
}

/// Runs a target. The inputs that it finds are kept below target/, so that the next run continues from them.
fn command(program: &Path, name: &str, seconds: u32) -> Result<Command> {
    let work = target_dir().join("fuzz");
    let (learned, failures) = (work.join("corpus").join(name), work.join("failures"));
    for directory in [&learned, &failures] {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    let mut command = Command::new(program);
    command
        .env("FUZZ_TARGET", name)
        .arg(learned)
        .arg(root().join("fuzz/corpus").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={SLOW}"))
        .arg(format!("-artifact_prefix={}/{name}-", failures.display()))
        .arg("-print_final_stats=1")
        .arg("-verbosity=0");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_corpus_and_every_corpus_a_target() {
        let main = fs::read_to_string(root().join("fuzz/src/main.rs")).expect("the targets");
        let mut named: Vec<_> = main
            .lines()
            .filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').next())
            .map(ToOwned::to_owned)
            .collect();
        named.sort_unstable();
        assert_eq!(
            targets(&root().join("fuzz/corpus")).expect("corpora"),
            named
        );
    }
}
