//! `cargo xtask dist`: makes all files of a release in one folder; `cargo xtask dist --verify` checks such a folder.
//!
//! The files depend on the commit and on the versions of the compilers, not on the folder or the time, so that two people can
//! compare them. Nothing is signed or uploaded: the publisher does that with their own keys.

mod chart;
mod plugin;
mod sbom;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::image::{self, Machine, sha256};
use crate::shell::target_dir;
use crate::{dependencies, setup, static_build};

/// The list of the other files with their digests, as sha256sum writes it.
const SUMS: &str = "SHA256SUMS";

/// Options of `dist`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder [default: target/dist]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The architectures; can be repeated [default: this machine's]
    #[arg(long, value_enum)]
    target: Vec<Machine>,
    /// Make nothing: check an existing folder, as someone would who downloaded it
    #[arg(long, conflicts_with = "target")]
    verify: bool,
}

/// Makes or checks a release.
pub fn run(args: &Args) -> Result<()> {
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| target_dir().join("dist"));
    if args.verify {
        return report(&verify::folder(&out)?);
    }
    let machines = match &args.target[..] {
        [] => vec![image::this_machine()?],
        machines => machines.to_vec(),
    };
    setup::build_tools()?;
    let time = static_build::time()?;
    let mut files = Vec::new();
    let mut plugins = Vec::new();
    for machine in machines {
        files.extend(of_machine(machine)?);
        plugins.push(plugin::of_machine(machine, time)?);
    }
    files.push((plugin::KREW.to_owned(), plugin::krew(&plugins)?));
    let plugins = plugins.into_iter();
    files.extend(plugins.map(|plugin| (plugin.name, plugin.content)));
    let chart = chart::archive(time)?;
    files.push((format!("{}.tgz", release()), chart));
    let packages = dependencies::shipped(dependencies::DAEMON)?;
    let texts = dependencies::license_texts(&packages, "image")?;
    files.push((image::THIRD_PARTY.to_owned(), texts.into_bytes()));
    let commit = static_build::commit();
    let of_plugin = dependencies::shipped(dependencies::PLUGIN)?;
    for (name, packages) in [("probe-handler", &packages), (plugin::PACKAGE, &of_plugin)] {
        let sbom = sbom::cyclone_dx(name, packages, &commit, time)?;
        files.push((
            format!("{name}-{}.cdx.json", env!("CARGO_PKG_VERSION")),
            sbom,
        ));
    }
    write(&out, files)?;
    report(&verify::folder(&out)?)
}

/// Name and version, with which the names of files begin.
fn release() -> String {
    format!("probe-handler-{}", env!("CARGO_PKG_VERSION"))
}

/// Names and contents of the program and the image for a machine.
fn of_machine(machine: Machine) -> Result<Vec<(String, Vec<u8>)>> {
    let image = image::of_daemon(image::default_name().parse()?, machine)?;
    let program = image.binaries.first().context("an image without program")?;
    let program = program.content.clone();
    let (archive, _written) = image::archive(&image)?;
    let name = format!("{}-linux-{}", release(), machine.name());
    Ok(vec![
        (name.clone(), program),
        (format!("{name}.image.tar"), archive),
    ])
}

/// Writes the files and their digests into a folder that contains nothing else.
fn write(out: &Path, mut files: Vec<(String, Vec<u8>)>) -> Result<()> {
    if out.exists() {
        if !out.join(SUMS).is_file() && fs::read_dir(out)?.next().is_some() {
            bail!(
                "{} contains other files: remove them, or choose another folder by --out",
                out.display()
            );
        }
        fs::remove_dir_all(out).with_context(|| format!("cannot empty {}", out.display()))?;
    }
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    files.sort();
    let mut sums = String::new();
    for (name, content) in &files {
        sums += &format!("{}  {name}\n", sha256(content));
    }
    files.push((SUMS.to_owned(), sums.into_bytes()));
    for (name, content) in files {
        let path = out.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn report(rows: &[String]) -> Result<()> {
    for row in rows {
        println!("dist: {row}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_other_files_is_not_emptied() {
        let directory = tempfile::tempdir().expect("directory");
        fs::write(directory.path().join("mine"), "text").expect("file");
        let error = write(directory.path(), Vec::new()).expect_err("refused");
        assert!(error.to_string().contains("--out"), "{error}");
        assert!(directory.path().join("mine").is_file());
    }
}
