//! What a container of a test cluster's pod runs besides app and sidecar: the mesh's rules, put into
//! the pod that it runs in, and the mesh's certificates.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::mesh::Identity;
use crate::rules::RuleSet;

/// Arguments of `testbed rules`.
#[derive(Debug, clap::Args)]
pub struct RulesArgs {
    /// Whose rules: a name as in the suite's tables, `istio-redirect` for one
    name: String,
}

/// Puts a mesh's rules into the network namespace that this runs in, as a mesh's init container
/// does.
///
/// # Errors
/// When there is no such rule set, or it cannot be applied.
pub fn rules(args: &RulesArgs) -> Result<()> {
    let rules = RuleSet::all()
        .iter()
        .find(|rules| rules.name() == args.name)
        .with_context(|| {
            let names: Vec<_> = RuleSet::all().iter().map(|rules| rules.name()).collect();
            format!("no rules {:?}; there are {}", args.name, names.join(", "))
        })?;
    Ok(rules.apply_here()?)
}

/// Arguments of `testbed identity`.
#[derive(Debug, clap::Args)]
pub struct IdentityArgs {
    /// Where to put the files
    dir: PathBuf,
}

/// Makes a mesh's certificates: an authority, one for sidecars, one for clients.
///
/// # Errors
/// When a file cannot be written.
pub fn identity(args: &IdentityArgs) -> Result<()> {
    Identity::create(args.dir.clone()).map(drop)
}
