//! The real Envoy as Istio's sidecar: the kubelet's probes bypass it, connections of all others do not.

mod life;
mod meshes;
mod pod;
mod refusals;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cases::Cases;
use super::env::{Env, HANDLER_PATH};
use crate::guest;

/// How the kubelet's connections reach the app.
#[derive(Clone, Copy, Debug)]
struct Way {
    name: &'static str,
    /// The daemon's arguments.
    args: &'static [&'static str],
}

const WAYS: [Way; 2] = [
    Way {
        name: "kernel",
        args: &["--kernel-path", "--http", "kernel"],
    },
    Way {
        name: "handler",
        args: &[HANDLER_PATH],
    },
];

/// What a case needs.
#[derive(Clone, Copy, Debug)]
struct Bed<'a> {
    env: &'a Env,
    /// Envoy's program.
    program: &'a Path,
    way: Way,
}

pub fn run(cases: &mut Cases) -> Result<()> {
    let program = match cases.envoy() {
        Some(program) => program.to_owned(),
        None => {
            skip_all(cases);
            return Ok(());
        }
    };
    for way in WAYS {
        if !names(way).iter().any(|name| cases.wants(name)) {
            continue;
        }
        let env = Env::start(cases, way.args)?;
        let bed = Bed {
            env: &env,
            program: &program,
            way,
        };
        meshes::run(cases, bed);
        life::run(cases, bed);
    }
    Ok(())
}

/// The program that `cargo xtask setup` installed: in a directory `envoy` of a directory above this program's.
pub fn installed() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let mut above = own.ancestors().skip(1);
    above
        .find_map(|dir| newest(&dir.join("envoy")))
        .filter(|_| !guest::is_here())
}

/// The program in `DIR/VERSION/envoy`; the alphabetically last one if there are several versions.
fn newest(dir: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(dir).ok()?.flatten();
    let programs = versions.map(|version| version.path().join(crate::envoy::PROGRAM));
    programs.filter(|program| program.is_file()).max()
}

fn skip_all(cases: &mut Cases) {
    let why = match guest::is_here() {
        true => "the guest has no Envoy: left to the run on the host",
        false => {
            "Envoy's program is not installed: `cargo xtask setup` installs it (x86_64 only), `--envoy` names one"
        }
    };
    for way in WAYS {
        let count = names(way).len();
        cases.skip(way.name, &format!("{why} ({count} cases)"));
    }
}

/// The names of all cases that use this way.
fn names(way: Way) -> Vec<String> {
    let names = meshes::names().into_iter().chain(life::names());
    names.map(|name| format!("{}/{name}", way.name)).collect()
}

/// Runs a case of this way.
fn case(cases: &mut Cases, way: Way, name: &str, body: impl FnOnce() -> Result<()>) {
    let full = format!("{}/{name}", way.name);
    cases.case(&full, || {
        body().with_context(|| format!("with {:?}", way.args))
    });
}
