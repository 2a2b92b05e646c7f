//! The testbed's program: the commands that developers run, and the child processes that these start.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// probe-handler's test environment: real network namespaces and mesh rules, with sidecars, apps and a
/// stand-in kubelet.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an app in a pod (started by the other commands)
    #[command(hide = true)]
    App(testbed::app::process::Args),
    /// Run a mesh's sidecar in a pod (started by the other commands)
    #[command(hide = true)]
    Sidecar(testbed::sidecar::process::Args),
    /// Run the stand-in kubelet (started by the other commands)
    #[command(hide = true)]
    Kubelet(testbed::kubelet::process::Args),
    /// Connect from guessed source ports of the kubelet (started by the suite)
    #[command(hide = true)]
    PortGuesser(testbed::port_guesser::Args),
    /// Probe two pods of a STRICT mesh, without and with probe-handler, and show the results
    Demo(testbed::demo::Args),
    /// Test every rule of probe-handler's design in network namespaces
    Suite(testbed::suite::Args),
    /// Probe pods while apps, sidecars, kubelet and daemon fail by a random schedule, and count wrong verdicts
    Chaos(testbed::chaos::Args),
    /// Render the manifests in deploy/ and check them against schema and design
    Manifests(testbed::manifests::Args),
    /// Run a program that cannot create an inotify instance (started by the suite)
    #[command(hide = true)]
    WithoutInotify(testbed::without_inotify::Args),
    /// Make one probe as the kubelet does, and print the result
    Probe(testbed::probe::Args),
    /// Apply a mesh's redirect rules in the current network namespace (a pod of a test cluster)
    #[command(hide = true)]
    Rules(testbed::in_pod::Args),
    /// Send a signal to a process of another pod (a pod of a test cluster)
    #[command(hide = true)]
    Signal(testbed::signal::Args),
    /// Check that each mesh's rules and sidecar behave here as in a cluster
    Selfcheck,
    /// Remove leftovers of killed runs
    Cleanup,
    /// Show how many instructions the kernel's verifier processes for each program
    Verifier,
    /// Run as first process of a virtual machine, and run the suite in it (`cargo xtask test vm`)
    #[command(hide = true)]
    Guest,
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::App(args) => testbed::app::process::main(&args),
        Command::Sidecar(args) => testbed::sidecar::process::main(&args),
        Command::Kubelet(args) => testbed::kubelet::process::main(&args),
        Command::PortGuesser(args) => testbed::port_guesser::main(&args),
        Command::Demo(args) => testbed::demo::main(&args),
        Command::Suite(args) => testbed::suite::main(&args),
        Command::Chaos(args) => testbed::chaos::main(&args),
        Command::Manifests(args) => testbed::manifests::main(&args),
        Command::WithoutInotify(args) => testbed::without_inotify::main(&args),
        Command::Probe(args) => testbed::probe::main(&args),
        Command::Rules(args) => testbed::in_pod::main(&args),
        Command::Signal(args) => testbed::signal::main(&args),
        Command::Selfcheck => testbed::selfcheck::main(),
        Command::Verifier => testbed::verifier::main(),
        Command::Guest => testbed::guest::main(),
        Command::Cleanup => testbed::run::cleanup_stale().map(|removed| {
            println!("removed the leftovers of {} killed runs", removed.len());
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
