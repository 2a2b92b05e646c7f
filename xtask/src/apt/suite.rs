//! Accesses a Debian suite that is not in this machine's apt sources, with a separate apt configuration.
//!
//! The mirror is the one in the machine's apt sources; the archive's keyring signs every suite. The
//! machine's package lists are unchanged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell::{display, exec, output};

/// The keyring of all Debian suites (package debian-archive-keyring).
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite, with its package lists in our cache directory.
#[derive(Debug)]
pub struct Suite {
    name: String,
    directory: PathBuf,
}

/// Downloads a package of suite `name` for this machine and unpacks it below `directory`, without installing anything.
///
/// # Errors
/// When this is not Debian, or a step fails.
pub fn unpack(package: &str, name: &str, directory: &Path) -> Result<()> {
    let Some(architecture) = output(Command::new("dpkg").arg("--print-architecture")) else {
        bail!("this is not Debian: install {package} manually");
    };
    let download = directory.join("download");
    let suite = Suite::new(name, &download, architecture.trim())?;
    suite.update()?;
    suite.download(package, &download)?;
    let file = fs::read_dir(&download)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")?;
    exec(
        Command::new("dpkg")
            .arg("--extract")
            .args([&file, directory]),
    )?;
    // The lists and the package are no longer needed.
    fs::remove_dir_all(&download).with_context(|| format!("cannot remove {}", download.display()))
}

impl Suite {
    /// Configures apt for suite `name` and a Debian architecture below `cache`. Downloads nothing yet.
    ///
    /// # Errors
    /// When there is no apt, or its sources contain no archive that could have the suite.
    pub fn new(name: &str, cache: &Path, architecture: &str) -> Result<Self> {
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
                 Architectures: {architecture}\nTargets: Packages\nSigned-By: {KEYRING}\n"
            ),
        )?;
        fs::write(
            directory.join("apt.conf"),
            format!(
                "Dir::State::Lists \"{at}/lists\";\nDir::State::status \"/dev/null\";\n\
                 Dir::Etc::SourceList \"{at}/suite.sources\";\nDir::Etc::SourceParts \"-\";\n\
                 Dir::Cache \"{at}/cache\";\nAPT::Architecture \"{architecture}\";\n\
                 APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\nAcquire::Retries \"1\";\n"
            ),
        )?;
        let name = name.to_owned();
        Ok(Self { name, directory })
    }

    /// Its name, for example bookworm-security.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its package lists were downloaded.
    pub fn has_lists(&self) -> bool {
        let packages =
            |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains("_Packages");
        fs::read_dir(self.directory.join("lists"))
            .is_ok_and(|entries| entries.flatten().any(packages))
    }

    /// Downloads its package lists.
    ///
    /// # Errors
    /// When apt-get fails.
    pub fn update(&self) -> Result<()> {
        println!("apt: downloading the package lists of {}", self.name);
        let mut command = self.apt("apt-get");
        // A removed suite is only a warning for apt, which keeps the old lists; here it is an error.
        command.args(["--quiet", "--quiet", "update", "--error-on=any"]);
        quietly(&mut command).with_context(|| format!("the package lists of {}", self.name))
    }

    /// The names of its packages that begin with `prefix`.
    pub fn packages(&self, prefix: &str) -> Vec<String> {
        let mut command = self.apt("apt-cache");
        let names = output(command.args(["pkgnames", prefix])).unwrap_or_default();
        names.lines().map(Into::into).collect()
    }

    /// Downloads a package into `directory`.
    ///
    /// # Errors
    /// When apt-get fails.
    pub fn download(&self, package: &str, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        println!("apt: downloading {package} from {}", self.name);
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

/// Runs apt and shows its output only if it fails, because the machine's apt hooks may complain without root.
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

/// The address of Debian's archive, or of its security updates, in this machine's apt sources.
pub(super) fn mirror(security: bool) -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(CODENAME) $(REPO_URI)",
    ]);
    let Some(targets) = output(command.arg("Created-By: Packages")) else {
        bail!("apt-get does not list its sources");
    };
    choose_mirror(&targets, security)
        .map(Into::into)
        .with_context(|| {
            let what = if security {
                "Debian's security updates"
            } else {
                "Debian"
            };
            format!("this machine's apt sources contain no archive of {what}")
        })
}

/// Picks the address from lines `origin codename address`.
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
