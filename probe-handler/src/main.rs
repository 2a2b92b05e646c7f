//! The probe-handler binary: reads the command line and hands over to the library.

use std::process::ExitCode;

use probe_handler::cli::{self, Command};
use probe_handler::observe::finding::{Finding, State};

fn main() -> ExitCode {
    let command = match Command::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(code) => return code,
    };
    match command {
        Command::Agent(args) => cli::agent::run(args, |_config| {
            anyhow::bail!("this build has no kernel side")
        }),
        Command::Status(args) => cli::status::run(&args),
        Command::Preflight(args) => cli::preflight::run(args, |_config| {
            vec![Finding {
                requirement: "kernel side".to_owned(),
                state: State::Fail,
                found: "this build has none".to_owned(),
                remedy: "use a complete build".to_owned(),
            }]
        }),
        Command::Version => cli::version::run(),
    }
}
