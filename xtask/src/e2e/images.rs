//! Builds the two images of the test: the daemon's, and the testbed's, which serves as app, sidecar and init
//! container.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::image::{self, File};
use crate::ldd;
use crate::setup;
use crate::shell::{exec, find, target_dir};

/// The testbed's image. It is in no registry.
pub const TESTBED: &str = "localhost/probe-handler-testbed:e2e";

/// The iptables commands that the testbed runs.
const IPTABLES: [&str; 2] = ["iptables-nft-restore", "ip6tables-nft-restore"];

/// The iptables modules that Istio's rules use; iptables loads them by path.
const MATCHES: [&str; 5] = [
    "libxt_standard.so",
    "libxt_tcp.so",
    "libxt_owner.so",
    "libipt_REDIRECT.so",
    "libxt_REDIRECT.so",
];

/// Builds both images and loads each with `load`, a shell command in which `{}` is the archive's
/// path.
///
/// # Errors
/// A build or the command fails.
pub fn build_and_load(load: &str) -> Result<()> {
    setup::build_tools()?;
    let machine = image::this_machine()?;
    let directory = target_dir().join("image");
    let daemon = image::of_package(
        "probe-handler",
        image::default_name().parse()?,
        machine,
        Vec::new(),
    )?;
    let mut testbed = image::of_package("testbed", TESTBED.parse()?, machine, Vec::new())?;
    testbed.tools = iptables()?;
    for (image, file) in [(daemon, "e2e-daemon.tar"), (testbed, "e2e-testbed.tar")] {
        let file = directory.join(file);
        image::write(&image, &file)?;
        let command = load.replace("{}", &file.display().to_string());
        println!("loading {}: {command}", image.name);
        exec(Command::new("sh").args(["-c", &command]))?;
    }
    Ok(())
}

/// This machine's iptables with its libraries, at the paths where it looks for them.
fn iptables() -> Result<Vec<File>> {
    let mut files = BTreeMap::new();
    let mut programs = Vec::new();
    for name in IPTABLES {
        let program = find(name)
            .with_context(|| format!("{name} is not installed: run `cargo xtask setup`"))?;
        // Into the image's root directory, which is its PATH.
        files.insert(PathBuf::from(name), program.clone());
        programs.push(program);
    }
    let modules = modules(&programs[0])?;
    for name in MATCHES {
        let module = modules.join(name);
        // The name of the REDIRECT module depends on the version.
        if module.exists() {
            files.insert(inside(&module), module.clone());
            programs.push(module);
        }
    }
    for program in &programs {
        for library in libraries(program)? {
            files.insert(inside(&library), library);
        }
    }
    files
        .into_iter()
        .map(|(path, from)| {
            let content =
                fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
            let path = path.display().to_string();
            Ok(File { path, content })
        })
        .collect()
}

/// The directory in which this machine's iptables looks for its matches and targets: next to the library that loads
/// them, and below /usr on a merged-/usr system. An image has no link from /lib to /usr/lib.
fn modules(program: &Path) -> Result<PathBuf> {
    let libraries = libraries(program)?;
    let loader = libraries.iter().find(|library| {
        library
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("libxtables."))
    });
    let loader =
        loader.with_context(|| format!("{} does not use libxtables", program.display()))?;
    let named = Path::new("/usr").join(inside(loader));
    let candidates = [named, loader.clone()]
        .map(|library| library.with_file_name("xtables"))
        .to_vec();
    let found = candidates.iter().find(|directory| directory.is_dir());
    found.cloned().with_context(|| {
        format!("no directory of iptables' modules: none of {candidates:?} exists")
    })
}

/// The libraries of a program, including the dynamic loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    ldd::libraries(program)?.with_context(|| format!("`ldd {}` failed", program.display()))
}

/// The same path from an image's root.
fn inside(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}
