//! A Debian suite that this machine's apt does not follow, by an apt configuration of its own.
//!
//! The mirror is the machine's own, as its apt sources name it; the archive's keyring signs every suite.
//! The machine's package lists stay as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell::{display, output};

/// Signs all of Debian's suites (package debian-archive-keyring).
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite, with its package lists below our own directory.
#[derive(Debug)]
pub struct Suite {
    name: String,
    directory: PathBuf,
}

impl Suite {
    /// Configures apt for suite `name` below `cache`. Fetches nothing yet.
    ///
    /// # Errors
    /// When there is no apt, or its sources name no archive that could have the suite.
    pub fn new(name: &str, cache: &Path) -> Result<Self> {
        let mirror = mirror(name.ends_with("-security"))?;
        let directory = cache.join("apt").join(name);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let at = directory.display();
        fs::write(
            directory.join("suite.sources"),
            format!(
                "Types: deb\nURIs: {mirror}\nSuites: {name}\nComponents: main\n\
                 Architectures: amd64\nTargets: Packages\nSigned-By: {KEYRING}\n"
            ),
        )?;
        fs::write(
            directory.join("apt.conf"),
            format!(
                "Dir::State::Lists \"{at}/lists\";\nDir::State::status \"/dev/null\";\n\
                 Dir::Etc::SourceList \"{at}/suite.sources\";\nDir::Etc::SourceParts \"-\";\n\
                 Dir::Cache \"{at}/cache\";\nAPT::Architecture \"amd64\";\n\
                 APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\nAcquire::Retries \"1\";\n"
            ),
        )?;
        let name = name.to_owned();
        Ok(Self { name, directory })
    }

    /// Its name, as bookworm-security.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its package lists were ever fetched.
    pub fn has_lists(&self) -> bool {
        let packages =
            |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains("_Packages");
        fs::read_dir(self.directory.join("lists"))
            .is_ok_and(|entries| entries.flatten().any(packages))
    }

    /// Fetches its package lists.
    ///
    /// # Errors
    /// When apt-get fails.
    pub fn update(&self) -> Result<()> {
        println!("vm: fetching the package lists of {}", self.name);
        let mut command = self.apt("apt-get");
        // A suite that is gone is a warning to apt, and its lists are kept; to us it is an error.
        command.args(["--quiet", "--quiet", "update", "--error-on=any"]);
        quietly(&mut command).with_context(|| format!("the package lists of {}", self.name))
    }

    /// Its packages whose names begin with `prefix`.
    pub fn packages(&self, prefix: &str) -> Vec<String> {
        let mut command = self.apt("apt-cache");
        let names = output(command.args(["pkgnames", prefix])).unwrap_or_default();
        names.lines().map(Into::into).collect()
    }

    /// Fetches a package into `directory`.
    ///
    /// # Errors
    /// When apt-get fails.
    pub fn download(&self, package: &str, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        println!("vm: fetching {package} of {}", self.name);
        let mut command = self.apt("apt-get");
        command.args(["--quiet", "--quiet", "download", package]);
        quietly(command.current_dir(directory))
            .with_context(|| format!("{package} of {}", self.name))
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.directory.join("apt.conf"));
        command
    }
}

/// Runs apt; what it says is heard only if it fails, for the machine's own hooks may complain without root.
fn quietly(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{}`", display(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with("E: "))
            .collect();
        bail!("`{}` failed: {}", display(command), said.join(" "));
    }
    Ok(())
}

/// The archive that this machine's own apt sources name for Debian's suites, or for its security
/// updates.
pub(super) fn mirror(security: bool) -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(CODENAME) $(REPO_URI)",
    ]);
    let Some(targets) = output(command.arg("Created-By: Packages")) else {
        bail!("no apt-get that tells its sources");
    };
    choose_mirror(&targets, security)
        .map(Into::into)
        .with_context(|| {
            let what = if security {
                "Debian's security updates"
            } else {
                "Debian"
            };
            format!("this machine's apt sources name no archive of {what}")
        })
}

/// Of lines `origin codename address`.
fn choose_mirror(targets: &str, security: bool) -> Option<&str> {
    targets
        .lines()
        .filter_map(|line| line.strip_prefix("Debian ")?.split_once(' '))
        .find(|(codename, _)| codename.ends_with("-security") == security)
        .map(|(_, address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "Debian bookworm-security http://security.test/\n\
                           Debian bookworm http://archive.test/\n\
                           Other bookworm http://other.test/\n";

    #[test]
    fn the_mirror_is_the_one_that_the_machine_uses() {
        assert_eq!(choose_mirror(TARGETS, false), Some("http://archive.test/"));
        assert_eq!(choose_mirror(TARGETS, true), Some("http://security.test/"));
    }

    #[test]
    fn another_distributions_archive_has_no_debian_suites() {
        let targets = "Ubuntu noble http://archive.test/\n$(ORIGIN) x http://other.test/\n";
        assert_eq!(choose_mirror(targets, false), None);
        assert_eq!(choose_mirror("", true), None);
    }
}
