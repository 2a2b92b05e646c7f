//! `cargo xtask setup`: installs what the build, the namespace suite and virtual machines need.
//!
//! Each step first checks what is installed and prints `have` or `installing`. As root on Debian the
//! compiler comes from Debian, elsewhere it is rustup's nightly. A nightly with rust-src that is already
//! installed is used on Debian too.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::progress;
use crate::shell::{cargo, find, is_root, output};
use crate::toolchain::{Origin, Toolchain, choose, discover, find_toolchain};
use crate::versions::{
    BPF_LINKER, BUILD_TOOLS, DEBIAN_CLIPPY, DEBIAN_COMPILER, DEBIAN_RUST, LLVM, MACHINE_TOOLS,
    NETWORK_TOOLS, NIGHTLY,
};
use crate::{apt, envoy, helm, kubectl, promtool};

/// Options of `setup`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Source of the eBPF compiler [default: an installed one; else apt if there is apt-get, else
    /// rustup]
    #[arg(long, value_enum)]
    with: Option<With>,
    /// Also install clippy for that compiler
    #[arg(long)]
    lint: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum With {
    /// Debian's packages (needs root)
    Apt,
    /// rustup's nightly
    Rustup,
}

/// Installs whatever is missing.
pub fn run(args: &Args) -> Result<()> {
    packages_at_once(args)?;
    building(args)?;
    tools(&NETWORK_TOOLS)
}

/// Installs everything that `cargo xtask setup` covers.
///
/// # Errors
/// Those of [`run`]. Missing qemu, kubectl, Helm, promtool or Envoy is not an error: the tests report it.
pub fn all(args: &Args) -> Result<()> {
    run(args)?;
    if let Err(error) = kubectl::find_or_fetch() {
        println!(
            "setup: no kubectl: {error:#}\nsetup: without kubectl the tests of the manifests do not run"
        );
    }
    if let Err(error) = envoy::find_or_fetch() {
        println!(
            "setup: no Envoy: {error:#}\nsetup: without Envoy the tests with a real sidecar do not run"
        );
    }
    if let Err(error) = helm::find_or_fetch() {
        println!(
            "setup: no Helm: {error:#}\nsetup: without Helm the tests of the chart do not run"
        );
    }
    if let Err(error) = promtool::find_or_fetch() {
        println!(
            "setup: no promtool: {error:#}\nsetup: without promtool the tests of metrics and alerts by it do not run"
        );
    }
    if let Err(error) = virtual_machines() {
        println!("setup: {error:#}\nsetup: without these the tests on other kernels do not run");
    }
    Ok(())
}

/// Installs what the virtual machines need.
///
/// # Errors
/// When something is missing and can't be installed.
pub fn virtual_machines() -> Result<()> {
    let lacking = lacking(&MACHINE_TOOLS)?;
    if lacking.is_empty() {
        return Ok(());
    }
    apt::install(&lacking).or_else(|error| {
        // Installed qemu packages may be newer than those in the machine's suites, which then have no matching versions.
        println!("setup: {error:#}");
        apt::install_from_backports(&lacking)
    })
}

/// Installs only what the eBPF programs and the daemon need to build.
pub fn build_tools() -> Result<()> {
    building(&Args::default())
}

/// Installs what compiling for this machine needs besides Rust and a C compiler.
///
/// # Errors
/// When something is missing and can't be installed.
pub fn compile_tools() -> Result<()> {
    tools(&BUILD_TOOLS)
}

/// Installs the Debian packages of all steps with one call of apt; each step then finds them installed. Without root or apt
/// the steps themselves report what is missing.
fn packages_at_once(args: &Args) -> Result<()> {
    if find("apt-get").is_none() || !is_root() {
        return Ok(());
    }
    let mut packages: BTreeSet<String> = BUILD_TOOLS
        .iter()
        .chain(&NETWORK_TOOLS)
        .filter(|(tool, _)| !have(tool))
        .map(|(_, package)| (*package).to_owned())
        .collect();
    if args.with != Some(With::Rustup) && choose(&candidates(args)?).is_err() {
        packages.extend(debian_packages(args.lint));
    }
    if installed_linker().is_none() && llvm_prefix().is_none() {
        let _new = packages.insert(llvm_package());
    }
    if packages.is_empty() {
        return Ok(());
    }
    apt::install(&Vec::from_iter(packages))
}

fn building(args: &Args) -> Result<()> {
    compile_tools()?;
    compiler(args)?;
    linker()
}

/// Installs a compiler that can build the eBPF crate, and its clippy if requested.
fn compiler(args: &Args) -> Result<()> {
    let candidates = candidates(args)?;
    let chosen = choose(&candidates).ok();
    let lacks_lint = |toolchain: &Toolchain| {
        args.lint && !toolchain.rustc.with_file_name("cargo-clippy").is_file()
    };
    if let Some(toolchain) = chosen {
        println!("setup: have compiler {toolchain}");
        if !lacks_lint(toolchain) {
            return Ok(());
        }
    }
    let with = match (args.with, chosen.map(|toolchain| toolchain.origin)) {
        (Some(with), _) => with,
        (None, Some(Origin::Rustup)) => With::Rustup,
        (None, _) if find("apt-get").is_some() => With::Apt,
        (None, _) => With::Rustup,
    };
    match with {
        With::Apt => apt::install(&debian_packages(args.lint))?,
        With::Rustup => rustup_install(args.lint)?,
    }
    // build-ebpf must find the compiler that was installed.
    let toolchain = find_toolchain()?;
    println!("setup: installed compiler {toolchain}");
    Ok(())
}

/// The installed compilers of the wanted source.
fn candidates(args: &Args) -> Result<Vec<Toolchain>> {
    let mut found = discover()?;
    found.retain(|toolchain| match args.with {
        Some(With::Apt) => toolchain.origin == Origin::System,
        Some(With::Rustup) => toolchain.origin == Origin::Rustup,
        None => true,
    });
    Ok(found)
}

fn debian_packages(lint: bool) -> Vec<String> {
    let mut packages = DEBIAN_COMPILER.to_vec();
    if lint {
        packages.push(DEBIAN_CLIPPY);
    }
    // The versions must match; a machine with old package lists must not get older ones.
    packages
        .iter()
        .map(|package| format!("{package}={DEBIAN_RUST}.*"))
        .collect()
}

fn rustup_install(lint: bool) -> Result<()> {
    let rustup = find("rustup").context("rustup is not installed: see https://rustup.rs")?;
    println!("setup: installing {NIGHTLY} with rust-src");
    let mut command = Command::new(rustup);
    command.args(["toolchain", "install", NIGHTLY, "--profile", "minimal"]);
    command.args(["--component", "rust-src"]);
    if lint {
        command.args(["--component", "clippy"]);
    }
    progress::run(&mut command, "setup by rustup")
}

/// Installs bpf-linker in our version, unless that or a newer one is installed.
fn linker() -> Result<()> {
    if let Some((path, version)) = installed_linker() {
        println!("setup: have bpf-linker {version} ({})", path.display());
        return Ok(());
    }
    if llvm_prefix().is_none() {
        if find("apt-get").is_none() {
            bail!(
                "bpf-linker {BPF_LINKER} has to be compiled against LLVM {LLVM}: install its \
                 development files and set LLVM_PREFIX, or put a released bpf-linker in PATH"
            );
        }
        apt::install(&[llvm_package()])?;
    }
    println!("setup: installing bpf-linker {BPF_LINKER} (takes about a minute)");
    let mut command = cargo();
    command.args(linker_arguments());
    if let Some(prefix) = llvm_prefix() {
        command.env("LLVM_PREFIX", prefix);
    }
    // Its work is done in LLVM's library, so optimising the linker itself would only make the build longer.
    for (name, value) in [("OPT_LEVEL", "0"), ("DEBUG", "0"), ("CODEGEN_UNITS", "16")] {
        command.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
    }
    progress::run(&mut command, "build of bpf-linker")
}

/// Path and version of bpf-linker, if it is new enough.
fn installed_linker() -> Option<(PathBuf, String)> {
    let path = find("bpf-linker")?;
    let version = output(Command::new(&path).arg("--version"))?;
    let version = version.trim().trim_start_matches("bpf-linker ").to_owned();
    (numbers(&version) >= numbers(BPF_LINKER)).then_some((path, version))
}

/// The Debian package of LLVM's development files.
fn llvm_package() -> String {
    format!("llvm-{LLVM}-dev")
}

fn linker_arguments() -> Vec<String> {
    format!("install bpf-linker --version {BPF_LINKER} --locked --no-default-features --features llvm-{LLVM}")
        .split(' ')
        .map(Into::into)
        .collect()
}

/// The command that installs bpf-linker on Debian.
pub fn linker_command_line() -> String {
    format!(
        "apt-get install --no-install-recommends llvm-{LLVM}-dev && LLVM_PREFIX={} cargo {}",
        debian_llvm().display(),
        linker_arguments().join(" ")
    )
}

fn debian_llvm() -> PathBuf {
    format!("/usr/lib/llvm-{LLVM}").into()
}

/// The directory of LLVM's development files.
fn llvm_prefix() -> Option<PathBuf> {
    if let Some(prefix) = env::var_os("LLVM_PREFIX") {
        return Some(prefix.into());
    }
    let debian = debian_llvm();
    if debian.join("lib/libLLVM.so").exists() || debian.join("include/llvm-c").exists() {
        return Some(debian);
    }
    let config = |name: &str| output(Command::new(name).args(["--prefix", "--version"]));
    [format!("llvm-config-{LLVM}"), "llvm-config".into()]
        .iter()
        .filter_map(|name| config(name))
        .find_map(|answer| {
            let (prefix, version) = answer.split_once('\n')?;
            version
                .starts_with(&format!("{LLVM}."))
                .then(|| PathBuf::from(prefix))
        })
}

/// Installs commands, each given with its Debian package.
fn tools(wanted: &[(&'static str, &'static str)]) -> Result<()> {
    let lacking = lacking(wanted)?;
    if lacking.is_empty() {
        return Ok(());
    }
    apt::install(&lacking)
}

/// The packages of those commands that are missing.
///
/// # Errors
/// When commands are missing and there is no apt-get.
fn lacking(wanted: &[(&'static str, &'static str)]) -> Result<Vec<String>> {
    let (present, lack): (Vec<_>, Vec<_>) = wanted.iter().partition(|(tool, _)| have(tool));
    for (tool, _) in present {
        println!("setup: have {tool}");
    }
    let packages: BTreeSet<&str> = lack.iter().map(|(_, package)| *package).collect();
    let packages: Vec<String> = packages.into_iter().map(Into::into).collect();
    if !packages.is_empty() && find("apt-get").is_none() {
        bail!("install {} with your package manager", packages.join(", "));
    }
    Ok(packages)
}

/// Whether a command is installed. PATH may lack /usr/sbin, where the command may still be.
fn have(tool: &str) -> bool {
    find(tool).is_some() || Path::new("/usr/sbin").join(tool).is_file()
}

/// The numbers of a version, for comparison.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split('.')
        .map_while(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(numbers("0.13.0") >= numbers(BPF_LINKER));
        assert!(numbers("0.9.15") < numbers("0.13.0"));
        assert!(numbers("0.100.0") > numbers("0.13.0"));
        assert!(
            numbers("") < numbers("0.13.0"),
            "a linker that does not answer is replaced"
        );
    }

    #[test]
    fn debian_packages_are_of_one_version() {
        let packages = debian_packages(true);
        assert_eq!(packages.len(), 4);
        for package in packages {
            assert!(package.ends_with(&format!("={DEBIAN_RUST}.*")), "{package}");
        }
    }
}
