//! Command line: one file per verb.

pub mod agent;
pub mod cleanup;
pub mod config;
pub mod explain;
pub mod generated;
pub mod inject;
mod log_queue;
pub mod logging;
pub mod preflight;
mod service;
pub mod status;
pub mod version;
pub mod webhook;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use config::ConfigErrors;

use support::build::DESCRIPTION;

/// Bad configuration or usage (EX_USAGE of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// A failed start, or a `status` or `preflight` that found a problem.
pub use status_view::output::EXIT_FAILURE;

/// Answers the kubelet's health probes for pods behind a service mesh, once per node.
#[derive(Debug, Parser)]
#[command(
    name = "probe-handler",
    version = DESCRIPTION,
    max_term_width = 100,
    after_help = "Exit codes: 0 success; 1 the start failed, a part of the daemon ended, preflight found a failed \
                  requirement, status or explain got no answer or the daemon does not have the named pod (or with \
                  --alive or --ready the daemon is not alive or not ready), or a manifest can't be read; 64 invalid \
                  configuration or usage; 70 a thread of the handler made no progress for 10 s, restart the daemon; \
                  101 a bug, report it."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: attach to the kubelet's cgroup and answer its probes
    Agent(Box<config::AgentArgs>),
    /// Show the state of the daemon on this node: pods, probes, last results
    Status(status::StatusArgs),
    /// Explain why a pod was restarted, is unready or is not served: the history of its probes, and one sentence
    Explain(explain::ExplainArgs),
    /// Rewrite the probes in a manifest, as the webhook would
    Inject(inject::InjectArgs),
    /// Check whether the daemon can run on this node, and how to fix what prevents it
    Preflight(preflight::PreflightArgs),
    /// Remove from this node what outlives the daemon: pinned programs and maps, and rules in pods. Stop the daemon first
    Cleanup(cleanup::CleanupArgs),
    /// Run the admission server, which rewrites probes to the rewrite port when pods are created
    Webhook(Box<config::WebhookArgs>),
    /// Print the script that completes this command line in a shell: source <(probe-handler completion bash)
    Completion(generated::CompletionArgs),
    /// Write a manual page for each verb into a directory
    #[command(hide = true)]
    Man(generated::ManArgs),
    /// Print version, commit and build
    Version,
}

impl Command {
    /// Reads the command line, and for flags that it lacks the environment.
    ///
    /// # Errors
    /// The exit code, after printing the mistakes or the requested help.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, ExitCode> {
        Self::try_parse(args).map_err(|error| {
            // If standard error fails, there is nowhere to report it.
            let _ = error.print();
            exit_code_of(&error)
        })
    }

    fn try_parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Cli::command();
        let matches = command.try_get_matches_from_mut(args)?;
        let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        let mut verb = cli.command;
        if let (Self::Agent(agent), Some((_, flags))) = (&mut verb, matches.subcommand()) {
            agent.given = config::settings::given(flags);
        }
        Ok(verb)
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

/// Prints the mistakes and returns their exit code.
fn refuse(mistakes: &ConfigErrors) -> ExitCode {
    let _ = write!(std::io::stderr().lock(), "{mistakes}");
    EXIT_USAGE.into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn exit_code(args: &[&str]) -> ExitCode {
        let error = Cli::try_parse_from(args).expect_err("it parses");
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
            &["probe-handler", "help", "status"],
        ] {
            assert_eq!(exit_code(args), ExitCode::SUCCESS, "{args:?}");
        }
    }

    #[test]
    fn every_flag_of_every_verb_is_an_environment_variable_too() {
        // Options of a single run have no variable, and the variable that the kubelet sets is not a flag.
        const OTHERS: [&str; 14] = [
            "help",
            "output",
            "ready",
            "alive",
            "namespace",
            "failing",
            "changes",
            "advice",
            "watch",
            "filename",
            "revert",
            "diff",
            "stay",
            "kubernetes-service-host",
        ];
        for verb in Cli::command().get_subcommands() {
            for flag in verb.get_arguments().filter(|flag| !flag.is_positional()) {
                let Some(long) = flag.get_long() else {
                    panic!("{}: {} has no long name", verb.get_name(), flag.get_id());
                };
                if OTHERS.contains(&long) {
                    continue;
                }
                let expected = match long {
                    "node-name" => "NODE_NAME".to_owned(), // the conventional name
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
