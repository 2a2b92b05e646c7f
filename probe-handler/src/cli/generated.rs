//! What is generated from the command line's own description: completions of shells, and manual pages.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use status_view::output;

/// Arguments of `completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// An existing directory
    directory: PathBuf,
}

/// Prints the script that completes this command line in a shell.
pub fn completion(args: &CompletionArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut Cli::command(),
        "probe-handler",
        &mut script,
    );
    output::print(|out| out.write_all(&script))
}

/// Writes a manual page for each verb.
pub fn man(args: &ManArgs) -> ExitCode {
    match clap_mangen::generate_to(Cli::command(), &args.directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::fail(&format!(
            "cannot write manual pages to {}: {error}; the directory must exist",
            args.directory.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_has_a_manual_page() {
        let directory = tempfile::tempdir().expect("a directory");
        let args = ManArgs {
            directory: directory.path().to_owned(),
        };
        assert_eq!(man(&args), ExitCode::SUCCESS);
        for page in [
            "probe-handler.1",
            "probe-handler-status.1",
            "probe-handler-explain.1",
        ] {
            let text = std::fs::read_to_string(directory.path().join(page)).expect(page);
            assert!(text.contains(".TH "), "{page}: {text}");
        }
    }

    #[test]
    fn completions_name_the_verbs() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "probe-handler", &mut script);
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains("preflight"), "{shell}");
            assert!(script.contains("explain"), "{shell}");
        }
    }
}
