//! The testbed's program: the child processes of a run, and the commands that a person types.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// probe-handler's test environment: real namespaces, mesh rules, sidecars, apps and a stand-in
/// kubelet.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve as an app in a pod (started by the other commands)
    #[command(hide = true)]
    App(testbed::app::process::Args),
    /// Serve as a mesh's sidecar in a pod (started by the other commands)
    #[command(hide = true)]
    Sidecar(testbed::sidecar::process::Args),
    /// Probe as the kubelet does (started by the other commands)
    #[command(hide = true)]
    Kubelet(testbed::kubelet::process::Args),
    /// Guess the kubelet's ports (started by the other commands)
    #[command(hide = true)]
    PortGuesser(testbed::port_guesser::Args),
    /// Probe over and over (started by `bench`)
    #[command(hide = true)]
    BenchProber(testbed::bench::prober::Args),
    /// Show two pods of a STRICT mesh being probed, without and with probe-handler
    Demo(testbed::demo::Args),
    /// Check every rule of probe-handler's design in namespaces
    Suite(testbed::suite::Args),
    /// Render the manifests in deploy/ and hold them against schema and design
    Manifests(testbed::manifests::Args),
    /// Measure probes against the same probes without a mesh
    Bench(testbed::bench::Args),
    /// Run a program to which the kernel gives no inotify instance (started by the suite)
    #[command(hide = true)]
    WithoutInotify(testbed::without_inotify::Args),
    /// Make one probe as the kubelet does, and print what came of it
    Probe(testbed::probe::Args),
    /// Put a mesh's redirect rules into the namespace this runs in (a pod of a test cluster)
    #[command(hide = true)]
    Rules(testbed::in_pod::Args),
    /// Show that each mesh's rules and sidecar do here what they do in a cluster
    Selfcheck,
    /// Remove what killed runs left behind
    Cleanup,
    /// Show how many instructions the kernel's verifier goes through for each program
    Verifier,
    /// Be the first process of a virtual machine that runs the suite (`cargo xtask test vm`)
    #[command(hide = true)]
    Guest,
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::App(args) => testbed::app::process::main(&args),
        Command::Sidecar(args) => testbed::sidecar::process::main(&args),
        Command::Kubelet(args) => testbed::kubelet::process::main(&args),
        Command::PortGuesser(args) => testbed::port_guesser::main(&args),
        Command::BenchProber(args) => testbed::bench::prober::main(&args),
        Command::Bench(args) => testbed::bench::main(&args),
        Command::Demo(args) => testbed::demo::main(&args),
        Command::Suite(args) => testbed::suite::main(&args),
        Command::Manifests(args) => testbed::manifests::main(&args),
        Command::WithoutInotify(args) => testbed::without_inotify::main(&args),
        Command::Probe(args) => testbed::probe::main(&args),
        Command::Rules(args) => testbed::in_pod::main(&args),
        Command::Selfcheck => testbed::selfcheck::main(),
        Command::Verifier => testbed::verifier::main(),
        Command::Guest => testbed::guest::main(),
        Command::Cleanup => testbed::run::cleanup_stale().map(|removed| {
            println!("removed what {} killed runs left", removed.len());
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
