//! Chooses the compiler that builds the eBPF crate.
//!
//! `core` must be compiled for the bpf target, so the compiler needs the library's sources (rust-src)
//! and `-Z build-std`, which a nightly allows and any other compiler allows with
//! `RUSTC_BOOTSTRAP=1`. Most people have rustup's nightly; Debian's rustc-web is used where rustup's is
//! incomplete.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{find, find_all, output};
use crate::versions::{DEBIAN_COMPILER, LLVM, NIGHTLY};

/// Where a compiler comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Environment variable `RUSTC`.
    Environment,
    /// A nightly that rustup installed.
    Rustup,
    /// In `PATH`, not from rustup.
    System,
}

/// A compiler found on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// Where it comes from.
    pub origin: Origin,
    /// The compiler.
    pub rustc: PathBuf,
    /// The cargo in the same directory.
    pub cargo: PathBuf,
    /// Its version, from `rustc -vV`.
    pub version: Version,
    /// Whether that cargo exists.
    pub has_cargo: bool,
    /// Whether its sysroot contains the library's sources.
    pub rust_src: bool,
}

/// The output of `rustc -vV`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// For example 1.96.0-nightly.
    pub release: String,
    /// Major version of LLVM.
    pub llvm: u32,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version { release, llvm } = &self.version;
        write!(f, "{} ({release}, LLVM {llvm})", self.rustc.display())
    }
}

impl Version {
    /// Reads the output of `rustc -vV`.
    pub fn parse(text: &str) -> Option<Self> {
        let field = |name| text.lines().find_map(|line| line.strip_prefix(name));
        Some(Self {
            release: field("release: ")?.to_owned(),
            llvm: field("LLVM version: ")?.split('.').next()?.parse().ok()?,
        })
    }

    /// Whether the compiler is at least version `minimum`, for example 1.95.
    fn at_least(&self, minimum: &str) -> bool {
        fn numbers(text: &str) -> Option<(u32, u32)> {
            let mut parts = text.split('.');
            Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        }
        numbers(&self.release) >= numbers(minimum)
    }

    /// Whether unstable options work without `RUSTC_BOOTSTRAP`.
    pub fn is_nightly(&self) -> bool {
        self.release.contains("nightly") || self.release.contains("dev")
    }
}

impl Toolchain {
    /// Why this compiler can't build the eBPF crate.
    fn fault(&self) -> Option<String> {
        let minimum = env!("CARGO_PKG_RUST_VERSION");
        if !self.version.at_least(minimum) {
            Some(format!("older than {minimum}"))
        } else if !self.rust_src {
            Some("has no rust-src component".into())
        } else if !self.has_cargo {
            Some("has no cargo in the same directory".into())
        } else if self.version.llvm > LLVM && self.origin != Origin::Environment {
            Some(format!(
                "its LLVM is newer than bpf-linker's (LLVM {LLVM}); set RUSTC to use it anyway"
            ))
        } else {
            None
        }
    }
}

/// Picks the first that works; if none does, returns the reason for each.
pub fn choose(found: &[Toolchain]) -> Result<&Toolchain, Vec<String>> {
    let mut faults = Vec::new();
    for toolchain in found {
        match toolchain.fault() {
            None => return Ok(toolchain),
            Some(fault) => faults.push(format!("{toolchain}: {fault}")),
        }
    }
    Err(faults)
}

/// The compilers of this machine, best first: only the one in `RUSTC` if it is set; else rustup's
/// nightlies (the pinned one first), then those in `PATH`.
pub fn discover() -> Result<Vec<Toolchain>> {
    if let Some(rustc) = env::var_os("RUSTC") {
        let rustc = PathBuf::from(rustc);
        let toolchain = inspect(Origin::Environment, &rustc)
            .with_context(|| format!("RUSTC={} is not a Rust compiler", rustc.display()))?;
        return Ok(vec![toolchain]);
    }
    let rustup = find("rustup")
        .and_then(|rustup| output(Command::new(rustup).args(["toolchain", "list", "-v"])))
        .map(|list| nightlies(&list))
        .unwrap_or_default();
    let system = find_all("rustc").into_iter().filter(|rustc| {
        // Skip rustup's proxies, which choose a toolchain by directory; the toolchains are listed above.
        !rustc.with_file_name("rustup").exists()
    });
    let mut found: Vec<Toolchain> = Vec::new();
    let candidates = rustup
        .into_iter()
        .map(|directory| (Origin::Rustup, directory.join("bin/rustc")))
        .chain(system.map(|rustc| (Origin::System, rustc)));
    for (origin, rustc) in candidates {
        // /bin may be a link to /usr/bin.
        let known =
            |other: &Toolchain| other.rustc.canonicalize().ok() == rustc.canonicalize().ok();
        if !found.iter().any(known) {
            found.extend(inspect(origin, &rustc));
        }
    }
    Ok(found)
}

/// The directories of rustup's nightlies in `rustup toolchain list -v`, the pinned one first.
fn nightlies(list: &str) -> Vec<PathBuf> {
    let mut found: Vec<(&str, &str)> = list
        .lines()
        .filter(|line| line.starts_with("nightly"))
        .filter_map(|line| Some((line, line.split_whitespace().next_back()?)))
        .collect();
    found.sort_by_key(|(line, _)| !line.starts_with(NIGHTLY));
    found
        .into_iter()
        .map(|(_, directory)| directory.into())
        .collect()
}

fn inspect(origin: Origin, rustc: &Path) -> Option<Toolchain> {
    let ask = |option: &[&str]| {
        let mut command = Command::new(rustc);
        output(command.args(option).env_remove("LD_LIBRARY_PATH"))
    };
    let version = Version::parse(&ask(&["-vV"])?)?;
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim_end());
    let cargo = rustc.with_file_name("cargo");
    Some(Toolchain {
        origin,
        rustc: rustc.into(),
        has_cargo: cargo.is_file(),
        cargo,
        version,
        rust_src: sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file(),
    })
}

/// The compiler for the eBPF crate; or an error that lists the compilers found, what each lacks, and what to install.
pub fn find_toolchain() -> Result<Toolchain> {
    let found = discover()?;
    match choose(&found) {
        Ok(toolchain) => Ok(toolchain.clone()),
        Err(faults) => {
            let mut seen = String::new();
            for fault in &faults {
                seen.push_str(&format!("\n  skipped {fault}"));
            }
            bail!(
                "no compiler on this machine can build the eBPF programs{seen}\n\
                 install one:          cargo xtask setup\n\
                 or manually, on Debian:  apt-get install --no-install-recommends {}\n\
                 or with rustup:  rustup toolchain install {NIGHTLY} --profile minimal --component rust-src",
                DEBIAN_COMPILER.join(" "),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolchain(origin: Origin, release: &str, llvm: u32, rust_src: bool) -> Toolchain {
        Toolchain {
            origin,
            rustc: "bin/rustc".into(),
            cargo: "bin/cargo".into(),
            has_cargo: true,
            version: Version {
                release: release.into(),
                llvm,
            },
            rust_src,
        }
    }

    #[test]
    fn the_first_complete_toolchain_is_taken() {
        let found = [
            toolchain(Origin::Rustup, "1.97.0-nightly", LLVM, false),
            toolchain(Origin::System, "1.96.0", LLVM, true),
            toolchain(Origin::System, "1.97.0", LLVM, true),
        ];
        assert_eq!(choose(&found), Ok(&found[1]));
    }

    #[test]
    fn each_skipped_toolchain_has_a_reason() {
        let mut no_cargo = toolchain(Origin::System, "1.96.0", LLVM, true);
        no_cargo.has_cargo = false;
        let found = [
            toolchain(Origin::Rustup, "1.97.0-nightly", LLVM, false),
            toolchain(Origin::System, "1.63.0", 14, true),
            toolchain(Origin::Rustup, "1.99.0-nightly", LLVM + 1, true),
            no_cargo,
        ];
        let faults = choose(&found).expect_err("none is complete");
        for (fault, part) in faults
            .iter()
            .zip(["rust-src", "older", "LLVM is newer", "cargo"])
        {
            assert!(fault.contains(part), "{fault}");
        }
        assert_eq!(faults.len(), found.len());
    }

    #[test]
    fn a_newer_llvm_is_accepted_when_rustc_is_set() {
        let found = [toolchain(Origin::Environment, "1.99.0", LLVM + 1, true)];
        assert_eq!(choose(&found), Ok(&found[0]));
    }

    #[test]
    fn the_output_of_rustc_is_parsed() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\n\
                    host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        let version = Version::parse(text).expect("version");
        assert_eq!((version.release.as_str(), version.llvm), ("1.96.0", 22));
        assert!(version.at_least("1.95") && version.at_least("1.96") && !version.at_least("1.97"));
        assert!(!version.is_nightly());
        assert_eq!(Version::parse("rustc 1.96.0"), None);
    }

    #[test]
    fn the_pinned_nightly_comes_first() {
        let list = format!(
            "stable-x86_64 (default) /t/stable\nnightly-x86_64 /t/nightly\n{NIGHTLY}-x86_64 /t/pinned\n"
        );
        let expected: [PathBuf; 2] = ["/t/pinned".into(), "/t/nightly".into()];
        assert_eq!(nightlies(&list), expected);
    }
}
