//! `probe-handler preflight`: prints the findings, and fails if a requirement is not met.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use super::config::{PreflightConfig, SharedArgs};
use super::{EXIT_FAILURE, refuse};
use crate::observe::finding::{Finding, State};
use status_view::output::{self, Format, Table};

/// Flags of `preflight`.
#[derive(Debug, Args)]
pub struct PreflightArgs {
    #[command(flatten)]
    shared: SharedArgs,

    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Validates the configuration, calls `check`, and prints its findings. Returns exit code 1 if a
/// requirement is not met.
pub fn run(args: PreflightArgs, check: impl FnOnce(&PreflightConfig) -> Vec<Finding>) -> ExitCode {
    let config = match PreflightConfig::try_from(args.shared) {
        Ok(config) => config,
        Err(mistakes) => return refuse(&mistakes),
    };
    let findings = check(&config);
    let printed = output::print(|out| match args.output {
        Format::Table => table(&findings, out),
        Format::Json => json(&findings, out),
    });
    if can_run(&findings) {
        printed
    } else {
        EXIT_FAILURE.into()
    }
}

/// Without findings, it is not known whether the daemon can run.
fn can_run(findings: &[Finding]) -> bool {
    !findings.is_empty() && findings.iter().all(|finding| finding.state != State::Fail)
}

fn table(findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new(&["REQUIREMENT", "STATE", "FOUND"]);
    for finding in findings {
        table.row([
            finding.requirement.clone(),
            finding.state.name().to_owned(),
            finding.found.clone(),
        ]);
    }
    write!(out, "{table}")?;
    for finding in findings
        .iter()
        .filter(|finding| finding.state != State::Pass && !finding.remedy.is_empty())
    {
        let requirement = output::printable(&finding.requirement);
        let remedy = output::printable(&finding.remedy);
        writeln!(out, "\n{requirement}: {remedy}")?;
    }
    let verdict = if can_run(findings) {
        "probe-handler can run on this node"
    } else {
        "probe-handler can NOT run on this node"
    };
    writeln!(out, "\n{verdict}")
}

fn json(findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
    let document = serde_json::json!({
        "can_run": can_run(findings),
        "findings": findings,
    });
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(requirement: &str, state: State, found: &str, remedy: &str) -> Finding {
        Finding {
            requirement: requirement.to_owned(),
            state,
            found: found.to_owned(),
            remedy: remedy.to_owned(),
        }
    }

    fn rendered(
        render: fn(&[Finding], &mut dyn Write) -> io::Result<()>,
        findings: &[Finding],
    ) -> String {
        let mut out = Vec::new();
        render(findings, &mut out).expect("writing to memory");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_failure_is_shown_with_its_remedy() {
        let findings = [
            finding("kernel 5.10", State::Pass, "6.18.5", ""),
            finding(
                "set_retval",
                State::Warn,
                "missing",
                "use Linux 6.1 or newer",
            ),
            finding("CAP_BPF", State::Fail, "not held", "run as root"),
        ];
        assert_eq!(
            rendered(table, &findings),
            "\
REQUIREMENT  STATE  FOUND
kernel 5.10  pass   6.18.5
set_retval   warn   missing
CAP_BPF      fail   not held

set_retval: use Linux 6.1 or newer

CAP_BPF: run as root

probe-handler can NOT run on this node
"
        );
    }

    #[test]
    fn a_warning_is_not_a_failure_but_an_empty_list_is() {
        let warn = finding("set_retval", State::Warn, "missing", "");
        assert!(can_run(std::slice::from_ref(&warn)));
        assert!(!can_run(&[]));
        let fail = finding("CAP_BPF", State::Fail, "not held", "");
        assert!(!can_run(&[warn, fail]));
    }

    #[test]
    fn json_contains_the_same_findings() {
        let text = rendered(json, &[finding("a", State::Fail, "b", "c")]);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["can_run"], false);
        assert_eq!(
            value["findings"][0],
            serde_json::json!({"requirement": "a", "state": "fail", "found": "b", "remedy": "c"})
        );
    }
}
