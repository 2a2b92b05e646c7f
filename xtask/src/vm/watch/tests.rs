//! Tests with machines that end, hang, panic or lock up. A shell script acts as qemu: it prints the guest's lines on
//! standard output and writes the kernel's lines to a file.

use std::process::Stdio;

use tempfile::TempDir;

use super::*;

/// Far longer than a script that ends by itself; a script that is to be stopped early gets a fraction of it.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);
/// Longer than a shell needs to start and print something on a busy machine.
const A_WHILE: Duration = Duration::from_secs(2);

const PATIENT: Limits = Limits {
    silence: LONG,
    longest: LONG,
    last_words: SHORT,
    look: Duration::from_millis(5),
};

/// Watches a script, in which `$kernel` is the kernel's log.
fn watched(script: &str, limits: Limits) -> (Boot, Vec<String>, TempDir) {
    let directory = tempfile::tempdir().expect("directory");
    let logs = Logs::new(directory.path(), "guest");
    let mut machine = Command::new("sh");
    machine
        .args(["-c", script])
        .env("kernel", &logs.kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut lines = Vec::new();
    let boot = watch(&mut machine, &logs, limits, |line| {
        lines.push(line.to_owned())
    })
    .expect("the script runs");
    (boot, lines, directory)
}

fn trouble(script: &str, limits: Limits) -> String {
    let (boot, _, _) = watched(script, limits);
    assert!(boot.took < LONG, "it was waited for: {boot:?}");
    boot.trouble.expect("trouble")
}

#[test]
fn a_suite_that_ends_before_the_machine_powers_off_is_a_normal_end() {
    let script = "echo '1 passed, 0 failed, 0 skipped'; echo 'guest: the suite exited with 0'";
    let (boot, lines, directory) = watched(script, PATIENT);
    assert_eq!(boot.trouble, None);
    assert_eq!(boot.report.ended, Some(Ok(())));
    assert_eq!(boot.report.counts.map(|counts| counts.passed), Some(1));
    assert_eq!(lines.len(), 2);
    let log = fs::read_to_string(directory.path().join("guest.log")).expect("the log");
    assert!(log.contains("1 passed"), "{log}");
}

#[test]
fn a_guest_whose_output_stops_hangs_and_its_last_lines_are_shown() {
    let limits = Limits {
        silence: A_WHILE,
        ..PATIENT
    };
    let script =
        "echo 'ok   rules/one (3 ms)'; echo '[1.0] all is well' >> $kernel; exec sleep 600";
    let trouble = trouble(script, limits);
    assert!(
        trouble.starts_with("it hangs: no output for 2 s"),
        "{trouble}"
    );
    assert!(trouble.contains("| [1.0] all is well"), "{trouble}");
    assert!(trouble.contains("ok   rules/one (3 ms)"), "{trouble}");
}

#[test]
fn a_guest_without_any_output_hangs_too() {
    let limits = Limits {
        silence: SHORT,
        ..PATIENT
    };
    let trouble = trouble("exec sleep 600", limits);
    assert!(trouble.starts_with("it hangs"), "{trouble}");
}

#[test]
fn a_guest_that_never_finishes_is_ended() {
    let limits = Limits {
        longest: SHORT,
        ..PATIENT
    };
    let trouble = trouble("while echo again; do sleep 0.01; done", limits);
    assert!(trouble.starts_with("not finished after 0.1 s"), "{trouble}");
}

#[test]
fn a_panic_is_a_failure_although_the_machine_restarts_normally() {
    let script = "echo 'guest: the suite exited with 0'; \
                  echo 'Kernel panic - not syncing: Fatal exception' >> $kernel";
    let trouble = trouble(script, PATIENT);
    assert!(trouble.starts_with(CRASHED), "{trouble}");
    assert!(trouble.contains("| Kernel panic"), "{trouble}");
}

#[test]
fn a_panic_or_a_lockup_ends_a_guest_that_goes_on() {
    for words in [
        "Kernel panic - not syncing: Attempted to kill init!",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 134s! [testbed:123]",
        "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0",
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "general protection fault, probably for non-canonical address",
    ] {
        let script = format!(
            "printf '%s\\n' '{words}' 'why it did' >> $kernel; \
             while echo again; do sleep 0.01; done"
        );
        let limits = Limits {
            last_words: A_WHILE / 4,
            ..PATIENT
        };
        let trouble = trouble(&script, limits);
        assert!(trouble.starts_with(CRASHED), "{words}: {trouble}");
        // Waits for the output after that.
        assert!(trouble.contains("| why it did"), "{words}: {trouble}");
    }
}

#[test]
fn a_machine_that_ends_before_its_suite_is_a_failure() {
    let ended = trouble("echo 'ok   rules/one (3 ms)'", PATIENT);
    assert!(
        ended.starts_with("the machine ended before the suite did"),
        "{ended}"
    );
    let code = trouble("echo 'guest: the suite exited with 0'; exit 3", PATIENT);
    assert!(code.starts_with("qemu ended with exit status: 3"), "{code}");
}

#[test]
fn an_ended_guest_has_no_process_left() {
    let limits = Limits {
        silence: A_WHILE,
        ..PATIENT
    };
    let (_, lines, _directory) = watched("echo $$; exec sleep 600", limits);
    let process = lines.first().expect("its process id");
    assert!(!Path::new("/proc").join(process).exists(), "{process} runs");
}
