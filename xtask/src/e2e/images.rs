//! The two images of the test: the daemon's, and the testbed's, which is app, sidecar and the rules' init
//! container in one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::image::{self, File};
use crate::ldd;
use crate::setup;
use crate::shell::{exec, find, target_dir};

/// The testbed's image. No registry has it.
pub const TESTBED: &str = "localhost/probe-handler-testbed:e2e";

/// By these names the testbed runs iptables.
const IPTABLES: [&str; 2] = ["iptables-nft-restore", "ip6tables-nft-restore"];

/// The parts of iptables that Istio's rules name; iptables loads them by path.
const MATCHES: [&str; 5] = [
    "libxt_standard.so",
    "libxt_tcp.so",
    "libxt_owner.so",
    "libipt_REDIRECT.so",
    "libxt_REDIRECT.so",
];

/// Builds both and hands each archive to `load`, a command of the shell in which `{}` stands for the
/// archive's path.
///
/// # Errors
/// A build, or the command, fails.
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

/// This machine's iptables, with the libraries that it needs, at the paths where it looks for them.
fn iptables() -> Result<Vec<File>> {
    let mut files = BTreeMap::new();
    let mut programs = Vec::new();
    for name in IPTABLES {
        let program =
            find(name).with_context(|| format!("{name} is not there: run `cargo xtask setup`"))?;
        // In the image's root, which is its PATH.
        files.insert(PathBuf::from(name), program.clone());
        programs.push(program);
    }
    let modules = modules(&programs[0])?;
    for name in MATCHES {
        let module = modules.join(name);
        // Which of the REDIRECT modules there is depends on the version.
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

/// Where this machine's iptables looks for its matches and targets: beside the library that loads them, below /usr
/// where it is one with the root. An image has no link from the one to the other.
fn modules(program: &Path) -> Result<PathBuf> {
    let libraries = libraries(program)?;
    let loader = libraries.iter().find(|library| {
        library
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("libxtables."))
    });
    let loader = loader.with_context(|| format!("{} has no libxtables", program.display()))?;
    let named = Path::new("/usr").join(inside(loader));
    let candidates = [named, loader.clone()]
        .map(|library| library.with_file_name("xtables"))
        .to_vec();
    let found = candidates.iter().find(|directory| directory.is_dir());
    found
        .cloned()
        .with_context(|| format!("no directory of iptables' modules, neither of {candidates:?}"))
}

/// What the loader would load, the loader included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    ldd::libraries(program)?.with_context(|| format!("`ldd {}` failed", program.display()))
}

/// The same path from an image's root.
fn inside(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}
