//! Rules about the documentation.

use clap::CommandFactory;

use super::File;
use crate::Cli;

const COMMAND: &str = "cargo xtask ";

/// A line that is a `cargo xtask` command must parse. A command quoted within a sentence must name an
/// existing subcommand.
pub fn commands(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    let documents = files
        .iter()
        .filter(|file| file.path.ends_with(".md") || file.path.starts_with(".ci/"));
    for file in documents {
        for (number, line) in file.text.lines().enumerate() {
            let start = line.trim_start().trim_start_matches("$ ");
            if start.starts_with(COMMAND) {
                let command = start.split(" #").next().unwrap_or(start).trim();
                if let Err(error) = parse(command) {
                    findings.push(file.finding(number, format!("`{command}`: {error}")));
                }
                continue;
            }
            for quoted in line.split('`').skip(1).step_by(2) {
                if let Some(rest) = quoted.strip_prefix(COMMAND)
                    && let Some(word) = rest.split_whitespace().next()
                    && !is_subcommand(word)
                {
                    findings.push(file.finding(number, format!("there is no `{COMMAND}{word}`")));
                }
            }
        }
    }
    findings
}

fn parse(command: &str) -> Result<(), String> {
    let words = command.split_whitespace().skip(1);
    match Cli::command().try_get_matches_from(words) {
        Ok(_) => Ok(()),
        Err(error) if !error.use_stderr() => Ok(()), // help
        Err(error) => Err(error.to_string().lines().next().unwrap_or_default().into()),
    }
}

fn is_subcommand(word: &str) -> bool {
    word == "help" || Cli::command().find_subcommand(word).is_some()
}

/// No file names a home directory or a checkout, because the repository must work on any machine.
pub fn machine_paths(files: &[File]) -> Vec<String> {
    // Written in two parts, so that this file is not a finding.
    const PATHS: [&str; 3] = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
    ];
    let mut findings = Vec::new();
    for file in files {
        for (number, line) in file.text.lines().enumerate() {
            for path in PATHS {
                // Part of a longer path or of a URL, which is not a finding.
                let begins = |at: usize| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || "/._-~}".contains(c))
                };
                if line.match_indices(path).any(|(at, _)| begins(at)) {
                    findings.push(file.finding(number, format!("names {path}")));
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_that_do_not_exist_are_found() {
        for good in [
            "cargo xtask test",
            "  $ cargo xtask demo --keep   # leave it up",
            "cargo xtask test netns -- dns",
            "run `cargo xtask setup` and `cargo xtask help`",
            "cargo xtask --help",
        ] {
            assert_eq!(commands(&[file("README.md", good)]), [""; 0], "{good}");
        }
        for bad in [
            "cargo xtask fly",
            "cargo xtask demo --fast",
            "cargo xtask test everything",
            "run `cargo xtask fly` first",
        ] {
            assert_eq!(commands(&[file("docs/a.md", bad)]).len(), 1, "{bad}");
        }
    }

    #[test]
    fn paths_of_a_machine_are_found() {
        let bad = concat!("see (/ho", "me/me/x) and \"/wo", "rk/y\"\n");
        assert_eq!(machine_paths(&[file("a.md", bad)]).len(), 2);
        for good in [
            "https://example.com/work/x",
            "src/home/y",
            "/rooted/x",
            "~/work/x",
        ] {
            assert!(machine_paths(&[file("a.md", good)]).is_empty(), "{good}");
        }
    }
}
