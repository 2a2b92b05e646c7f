//! What the init container of a test cluster's pod runs: the mesh's rules, put into the pod that it runs
//! in, and the mesh's certificates for the sidecar.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::mesh::Identity;
use crate::rules::RuleSet;

/// Arguments of `testbed rules`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whose rules: a name as in the suite's tables, `istio-redirect` for one
    name: String,
    /// Make a mesh's certificates in that directory
    #[arg(long, value_name = "DIRECTORY")]
    identity: Option<PathBuf>,
}

/// Puts a mesh's rules into the network namespace that this runs in, as a mesh's init container
/// does.
///
/// # Errors
/// When there is no such rule set, it cannot be applied, or a certificate cannot be written.
pub fn main(args: &Args) -> Result<()> {
    let rules = RuleSet::all()
        .iter()
        .find(|rules| rules.name() == args.name)
        .with_context(|| {
            let names: Vec<_> = RuleSet::all().iter().map(|rules| rules.name()).collect();
            format!("no rules {:?}; there are {}", args.name, names.join(", "))
        })?;
    rules.apply_here()?;
    match &args.identity {
        Some(directory) => Identity::create(directory.clone()).map(drop),
        None => Ok(()),
    }
}
