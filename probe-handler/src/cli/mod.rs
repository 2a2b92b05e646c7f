//! Command line: one file per verb.

pub mod agent;
pub mod cleanup;
pub mod config;
pub mod inject;
mod log_queue;
pub mod logging;
mod output;
pub mod preflight;
mod service;
pub mod status;
pub mod version;
pub mod webhook;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use config::ConfigErrors;

use support::build::VERSION;

/// Bad configuration or usage (EX_USAGE of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// A failed start, or a `status` or `preflight` that found something wrong.
pub const EXIT_FAILURE: u8 = 1;

/// Answers the kubelet's health probes for pods behind a service mesh, once per node.
#[derive(Debug, Parser)]
#[command(
    name = "probe-handler",
    version = VERSION,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 well; 1 a failed start, a part of the daemon that has ended, a preflight that found \
                  something wrong, a status to which no daemon answers (or one that is not as asked by --alive or --ready), or a manifest that can't be \
                  read; 64 bad configuration or usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: attach to the kubelet's cgroup and answer its probes
    Agent(Box<config::AgentArgs>),
    /// Show what the daemon on this node does: pods, probes, last verdicts
    Status(status::StatusArgs),
    /// Rewrite the probes in a manifest, as the webhook would
    Inject(inject::InjectArgs),
    /// Check whether the daemon can run on this node, and say what to do where it can't
    Preflight(preflight::PreflightArgs),
    /// Remove from this node what outlives the daemon: pinned programs and maps, and rules in pods. Stop the daemon first
    Cleanup(cleanup::CleanupArgs),
    /// Run the admission server, which rewrites probes for those who want them to name the handler
    Webhook(Box<config::WebhookArgs>),
    /// Print version and commit
    Version,
}

impl Command {
    /// Reads the command line, and for what is not given there the environment.
    ///
    /// # Errors
    /// The exit code, after what is wrong (or the help asked for) was printed.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, ExitCode> {
        Cli::try_parse_from(args)
            .map(|cli| cli.command)
            .map_err(|error| {
                // Nobody to tell when even this can't be printed.
                let _ = error.print();
                exit_code_of(&error)
            })
    }
}

/// clap's own code for bad usage is 2.
fn exit_code_of(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        EXIT_USAGE.into()
    } else {
        ExitCode::SUCCESS
    }
}

/// Prints the mistakes; the exit code for them.
fn refuse(mistakes: &ConfigErrors) -> ExitCode {
    let _ = write!(std::io::stderr().lock(), "{mistakes}");
    EXIT_USAGE.into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn exit_code(args: &[&str]) -> ExitCode {
        let error = Cli::try_parse_from(args).expect_err("must not parse");
        exit_code_of(&error)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_usage_exits_64_and_help_and_version_0() {
        for args in [
            &["probe-handler"][..],
            &["probe-handler", "bogus"],
            &["probe-handler", "agent", "--bogus"],
            &["probe-handler", "agent", "--pods"],
            &["probe-handler", "status", "--ready", "--alive"],
            &["probe-handler", "version", "extra"],
        ] {
            assert_eq!(exit_code(args), EXIT_USAGE.into(), "{args:?}");
        }
        for args in [
            &["probe-handler", "--help"][..],
            &["probe-handler", "agent", "--help"],
            &["probe-handler", "--version"],
        ] {
            assert_eq!(exit_code(args), ExitCode::SUCCESS, "{args:?}");
        }
    }

    #[test]
    fn every_flag_of_every_verb_is_an_environment_variable_too() {
        // What is asked of one run only has no variable, and what the kubelet sets has no flag.
        const OTHERS: [&str; 8] = [
            "help",
            "output",
            "ready",
            "alive",
            "filename",
            "revert",
            "diff",
            "kubernetes-service-host",
        ];
        for verb in Cli::command().get_subcommands() {
            for flag in verb.get_arguments() {
                let Some(long) = flag.get_long() else {
                    panic!("{}: {} has no long name", verb.get_name(), flag.get_id());
                };
                if OTHERS.contains(&long) {
                    continue;
                }
                let expected = match long {
                    "node-name" => "NODE_NAME".to_owned(), // as everybody calls it
                    long => format!("PROBE_HANDLER_{}", long.replace('-', "_").to_uppercase()),
                };
                let variable = flag.get_env().and_then(|name| name.to_str());
                assert_eq!(variable, Some(expected.as_str()), "--{long}");
            }
        }
    }

    #[test]
    fn the_help_names_the_defaults() {
        let mut agent = Cli::command();
        let help = agent
            .find_subcommand_mut("agent")
            .expect("agent")
            .render_long_help()
            .to_string();
        for default in [
            "[default: meshed]",
            "[default: [::]:15026]",
            "[default: /run/probe-handler/admin.sock]",
            "[default: 20]",
            "[default: 16384]",
            "[default: kubelet,kubelite,k3s,k3s-server,k3s-agent]",
        ] {
            assert!(help.contains(default), "{default} not in\n{help}");
        }
    }
}
