//! The probe-handler binary: reads the command line and calls the library.

mod heap;

use std::process::ExitCode;

use probe_handler::app;
use probe_handler::cli::{self, Command};
use probe_handler::preflight::{self, PreflightOptions};

fn main() -> ExitCode {
    let command = match Command::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(code) => return code,
    };
    match command {
        Command::Agent(args) => {
            heap::use_one();
            cli::agent::run(*args, app::run)
        }
        Command::Status(args) => cli::status::run(&args),
        Command::Explain(args) => cli::explain::run(&args),
        Command::Inject(args) => cli::inject::run(&args),
        Command::Preflight(args) => cli::preflight::run(args, |config| {
            preflight::run(&PreflightOptions {
                search: app::search(&config.kubelet),
                cgroup_root: config.cgroup_root.clone(),
                admin: config.admin_addr,
                handler_port: config.handler_port,
                admin_socket: config.admin_socket.clone(),
                pins: config.kernel_path.then(|| config.bpffs.clone()),
            })
        }),
        Command::Cleanup(args) => cli::cleanup::run(&args, app::cleanup::run),
        Command::Webhook(args) => cli::webhook::run(*args, app::webhook::run),
        Command::Completion(args) => cli::generated::completion(&args),
        Command::Man(args) => cli::generated::man(&args),
        Command::Version => cli::version::run(),
    }
}
