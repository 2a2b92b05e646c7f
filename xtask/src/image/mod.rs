//! `cargo xtask image`: builds the daemon's container image, which contains one static program.

mod archive;
mod elf;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use oci_spec::distribution::Reference;
use oci_spec::image::{
    ANNOTATION_CREATED, ANNOTATION_DESCRIPTION, ANNOTATION_LICENSES, ANNOTATION_REVISION,
    ANNOTATION_SOURCE, ANNOTATION_TITLE, ANNOTATION_VERSION,
};

pub use archive::{File, Image, Written, archive, rfc3339, sha256, write};
pub use elf::{Machine, require_program, require_static};

use crate::dependencies;
use crate::setup;
use crate::shell::{root, target_dir};
use crate::static_build::{self, Build, Linking};

/// The image's name in `deploy/`, without the tag, which is the version.
const REPOSITORY: &str = "registry.invalid/probe-handler";

/// The file with the licences of the crates that the daemon contains.
pub const THIRD_PARTY: &str = "THIRD-PARTY-LICENSES";

/// The workspace's profile for released programs.
const PROFILE: &str = "image";

/// Options of `image`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Path of the archive [default: target/image/probe-handler-MACHINE.tar]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name of the image [default: the name in deploy/]
    #[arg(long, value_name = "NAME:TAG", value_parser = parse_name)]
    name: Option<Reference>,
    /// The architecture to build for [default: this machine's]
    #[arg(long, value_enum)]
    target: Option<Machine>,
}

/// Builds the daemon and writes its image.
pub fn run(args: &Args) -> Result<()> {
    let machine = match args.target {
        Some(machine) => machine,
        None => this_machine()?,
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => default_name().parse()?,
    };
    let output = args.output.clone().unwrap_or_else(|| {
        let file = format!("image/probe-handler-{}.tar", machine.name());
        target_dir().join(file)
    });
    setup::build_tools()?;
    let image = of_daemon(name, machine)?;
    let written = write(&image, &output)?;
    // For deploy/Containerfile.
    if let Some(texts) = image.extra.iter().find(|file| file.path == THIRD_PARTY) {
        let path = output.with_file_name(THIRD_PARTY);
        fs::write(&path, &texts.content)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    report(&image, &written, &output);
    Ok(())
}

/// Builds the daemon and returns its image, with its licence and those of what it contains.
///
/// # Errors
/// Those of [`of_package`]; a licence can't be read.
pub fn of_daemon(name: Reference, machine: Machine) -> Result<Image> {
    let license = File {
        path: "LICENSE".into(),
        content: fs::read(root().join("LICENSE")).context("cannot read LICENSE")?,
    };
    let others = File {
        path: THIRD_PARTY.into(),
        content: dependencies::license_texts(
            &dependencies::shipped(dependencies::DAEMON)?,
            "image",
        )?
        .into_bytes(),
    };
    of_package("probe-handler", name, machine, vec![license, others])
}

/// Builds a package of this repository and returns an image whose entry point is its program.
///
/// # Errors
/// The build fails, or its result is not suitable for an image.
pub fn of_package(
    package: &str,
    name: Reference,
    machine: Machine,
    extra: Vec<File>,
) -> Result<Image> {
    let commit = static_build::commit();
    let created = static_build::time()?;
    let content = program(package, machine, Linking::Static)?;
    Ok(Image {
        name,
        machine,
        binaries: vec![File {
            path: package.into(),
            content,
        }],
        tools: Vec::new(),
        extra,
        entrypoint: vec![format!("/{package}")],
        labels: labels(package, &commit, created)?,
        created,
    })
}

/// Builds a package of this repository as for a release, and returns its program.
///
/// # Errors
/// The build fails, or the program contains paths of this machine.
pub fn program(package: &str, machine: Machine, linking: Linking) -> Result<Vec<u8>> {
    let build = Build {
        packages: &[package],
        profile: PROFILE,
        machine,
        commit: Some(&short(&static_build::commit())),
        linking,
    };
    let program = build.run()?.join(package);
    let content =
        fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let paths = static_build::paths_within(&content)?;
    if !paths.is_empty() {
        bail!(
            "{} contains paths of this machine, so the build is not reproducible: {}",
            program.display(),
            paths.join(", ")
        );
    }
    Ok(content)
}

fn labels(title: &str, commit: &str, created: i64) -> Result<BTreeMap<String, String>> {
    let description = "Answers kubelet health probes for pods behind a service mesh, once per node";
    Ok([
        (ANNOTATION_TITLE, title),
        (ANNOTATION_DESCRIPTION, description),
        (ANNOTATION_VERSION, env!("CARGO_PKG_VERSION")),
        (ANNOTATION_REVISION, commit),
        (ANNOTATION_SOURCE, env!("CARGO_PKG_REPOSITORY")),
        (ANNOTATION_LICENSES, env!("CARGO_PKG_LICENSE")),
        (ANNOTATION_CREATED, &archive::rfc3339(created)?),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into())
}

/// The first 12 digits of the commit, as the daemon shows them, with `-dirty` if present.
fn short(commit: &str) -> String {
    let (digits, rest) = commit.split_once('-').unwrap_or((commit, ""));
    let dash = if rest.is_empty() { "" } else { "-" };
    format!("{}{dash}{rest}", digits.get(..12).unwrap_or(digits))
}

/// The image's name in `deploy/`.
pub fn default_name() -> String {
    format!("{REPOSITORY}:{}", env!("CARGO_PKG_VERSION"))
}

/// Parses an image's name and adds the default tag and Docker's registry where they are missing.
fn parse_name(text: &str) -> Result<Reference, String> {
    let name: Reference = text.parse().map_err(|error| format!("{error}"))?;
    if name.digest().is_some() {
        return Err(
            "a name with a digest is not allowed: the digest is known only after the build"
                .to_owned(),
        );
    }
    Ok(name)
}

/// The architecture of this machine.
///
/// # Errors
/// Images can't be built for it.
pub fn this_machine() -> Result<Machine> {
    let machine = clap::ValueEnum::from_str(std::env::consts::ARCH, false);
    machine.ok().with_context(|| {
        format!(
            "{} is not supported, only x86_64 and aarch64 (use --target of `cargo xtask image`)",
            std::env::consts::ARCH
        )
    })
}

fn report(image: &Image, written: &Written, output: &std::path::Path) {
    let file = output.display();
    println!(
        "image: {} for {}, {:.1} MiB in {file}\n\
         image: manifest {}, image ID {}\n\
         image: load it with one of\n  \
           ctr --namespace k8s.io images import {file}\n  \
           kind load image-archive {file}\n  \
           docker load --input {file}\n  \
           podman load --input {file}",
        image.name,
        image.machine.oci(),
        written.size as f64 / f64::from(1 << 20),
        written.manifest,
        written.config,
    );
}

#[cfg(test)]
mod tests;
