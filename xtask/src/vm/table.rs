//! Makes one table of all kernels' results, and sums up the counts.

use std::collections::BTreeMap;

use super::watch::Boot;
use super::{Guest, Outcome};
use crate::counts::Counts;

/// Sums up the guests' results.
pub fn outcome(guests: &[Guest]) -> Outcome {
    let mut outcome = Outcome::default();
    let programs = programs(guests);
    let mut header = format!(
        "{:28} {:>6} {:>6} {:>7} {:>7}",
        "kernel", "passed", "failed", "skipped", "seconds"
    );
    for program in &programs {
        header.push_str(&format!(" {program:>12}"));
    }
    if !programs.is_empty() {
        header.push_str("  (instructions that the verifier processed)");
    }
    outcome.notes.push(header);
    let mut words = Vec::new();
    for guest in guests {
        let counts = counts(&guest.boot);
        outcome.counts += counts;
        outcome.notes.push(row(guest, counts, &programs));
        words.extend(notes(guest));
    }
    outcome.notes.extend(words);
    outcome
}

/// The programs for which any guest has verifier figures, in the order of their first appearance.
fn programs(guests: &[Guest]) -> Vec<String> {
    let mut programs: Vec<String> = Vec::new();
    for boot in guests.iter().flat_map(|guest| &guest.boot) {
        for (program, _) in &boot.report.verifier {
            if !programs.contains(program) {
                programs.push(program.clone());
            }
        }
    }
    programs
}

/// A guest's counts: those of its suite, or those of the cases so far if it did not finish; plus one failure if the
/// guest failed in another way.
fn counts(boot: &Result<Boot, anyhow::Error>) -> Counts {
    let Ok(boot) = boot else {
        return failure();
    };
    let mut counts = boot.report.counts.unwrap_or(boot.report.so_far);
    let at_its_end = boot.report.counts.is_some();
    if (counts.failed == 0 || !at_its_end) && fault(boot).is_some() {
        counts += failure();
    }
    counts
}

const fn failure() -> Counts {
    Counts {
        passed: 0,
        failed: 1,
        skipped: 0,
    }
}

/// Why a guest has failed, apart from failed cases.
fn fault(boot: &Boot) -> Option<String> {
    if let Some(trouble) = &boot.trouble {
        return Some(trouble.clone());
    }
    match (&boot.report.ended, boot.report.counts) {
        (Some(Err(what)), _) => Some(what.clone()),
        (_, None) => Some("the suite ended without its counts".into()),
        (_, Some(counts)) if counts.passed + counts.failed == 0 => Some("no case ran".into()),
        _ => None,
    }
}

fn row(guest: &Guest, counts: Counts, programs: &[String]) -> String {
    let boot = guest.boot.as_ref().ok();
    let release = boot.and_then(|boot| boot.report.release.as_deref());
    let seconds = boot.map_or_else(
        || "-".into(),
        |boot| format!("{:.0}", boot.took.as_secs_f64()),
    );
    let mut row = format!(
        "{:28} {:>6} {:>6} {:>7} {seconds:>7}",
        release.unwrap_or(&guest.name),
        counts.passed,
        counts.failed,
        counts.skipped,
    );
    for program in programs {
        let figure = boot.and_then(|boot| {
            boot.report
                .verifier
                .iter()
                .find(|(name, _)| name == program)
        });
        let figure = figure.map_or_else(|| "-".into(), |(_, count)| count.to_string());
        row.push_str(&format!(" {figure:>12}"));
    }
    row
}

/// Lines that explain the numbers.
fn notes(guest: &Guest) -> Vec<String> {
    let name = &guest.name;
    let boot = match &guest.boot {
        Ok(boot) => boot,
        Err(error) => return vec![format!("{name}: {error:#}")],
    };
    let mut words: Vec<String> = boot
        .report
        .failures
        .iter()
        .chain(&boot.report.flaky)
        .map(|line| format!("{name}: {line}"))
        .collect();
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for skip in &boot.report.skips {
        let (case, reason) = skip.split_once(": ").unwrap_or((skip, "no reason given"));
        reasons
            .entry(reason)
            .or_default()
            .push(case.trim_start_matches("skip "));
    }
    for (reason, cases) in reasons {
        words.push(format!(
            "{name}: {} skipped ({}): {reason}",
            cases.len(),
            cases.join(", ")
        ));
    }
    words.extend(
        boot.report
            .modules
            .iter()
            .map(|fault| format!("{name}: module {fault}")),
    );
    words.extend(
        boot.report
            .no_figures
            .iter()
            .map(|why| format!("{name}: {why}")),
    );
    words.extend(fault(boot).map(|fault| format!("{name}: {fault}")));
    words
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::console::Report;
    use super::*;

    fn guest(lines: &str, trouble: Option<&str>) -> Guest {
        let mut report = Report::default();
        lines.lines().for_each(|line| report.line(line));
        Guest {
            name: "6.1".into(),
            boot: Ok(Boot {
                report,
                took: Duration::from_secs(90),
                trouble: trouble.map(Into::into),
            }),
        }
    }

    const GOOD: &str = "guest: kernel 6.1.0-53\nguest: verifier connect4 1234\n\
                        3 passed, 0 failed, 0 skipped\nguest: the suite exited with 0\n";

    #[test]
    fn one_table_shows_all_kernels() {
        let guests = [
            guest(GOOD, None),
            Guest {
                name: "5.10".into(),
                boot: Err(anyhow::anyhow!("no package")),
            },
        ];
        let outcome = outcome(&guests);
        assert_eq!(outcome.counts.to_string(), "3 passed, 1 failed, 0 skipped");
        let [header, good, bad, why] = &outcome.notes[..] else {
            panic!("{:?}", outcome.notes);
        };
        assert!(header.contains("connect4"), "{header}");
        assert!(
            good.starts_with("6.1.0-53 ") && good.contains(" 90 ") && good.ends_with(" 1234"),
            "{good}"
        );
        assert!(bad.starts_with("5.10 ") && bad.ends_with('-'), "{bad}");
        assert_eq!(why, "5.10: no package");
    }

    #[test]
    fn a_guest_that_failed_is_a_failure_whatever_it_counted() {
        for (lines, trouble) in [
            (GOOD, Some("the kernel has crashed")),
            ("", Some("it hangs")),
            ("guest: the suite exited with 0\n", None),
            (
                "3 passed, 0 failed, 0 skipped\nguest: the suite exited with 101\n",
                None,
            ),
            (
                "0 passed, 0 failed, 2 skipped\nguest: the suite exited with 0\n",
                None,
            ),
        ] {
            let outcome = outcome(&[guest(lines, trouble)]);
            assert_eq!(outcome.counts.failed, 1, "{lines} {trouble:?}");
            assert_eq!(outcome.notes.len(), 3, "{:?}", outcome.notes);
        }
    }

    #[test]
    fn cases_that_ended_before_a_hang_are_counted() {
        let lines =
            "ok   a/b (3 ms)\nFAIL a/c: it failed\nok   a/d (3 ms)\nskip a/e: no such rule\n";
        let outcome = outcome(&[guest(lines, Some("it hangs"))]);
        assert_eq!(outcome.counts.to_string(), "2 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn cases_skipped_for_the_same_reason_share_a_line() {
        let lines = "skip a/b: no such rule\nskip a/c: no such rule\n1 passed, 0 failed, 2 skipped\n\
                     guest: the suite exited with 0\n";
        let outcome = outcome(&[guest(lines, None)]);
        assert_eq!(outcome.notes[2], "6.1: 2 skipped (a/b, a/c): no such rule");
    }
}
