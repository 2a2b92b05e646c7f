//! `testbed rules`: run by the init container of a pod in a test cluster. Applies the mesh's rules in the
//! pod, and creates the mesh's certificates for the sidecar.

use std::path::PathBuf;

use anyhow::Result;

use crate::mesh::Identity;
use crate::rules::RuleSet;

/// Arguments of `testbed rules`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the rule set as in the suite's tables, for example `istio-redirect`
    name: String,
    /// Create the mesh's certificates in this directory
    #[arg(long, value_name = "DIRECTORY")]
    identity: Option<PathBuf>,
}

/// Applies a mesh's rules in the current network namespace, as a mesh's init container
/// does.
///
/// # Errors
/// When there is no such rule set, it cannot be applied, or a certificate cannot be written.
pub fn main(args: &Args) -> Result<()> {
    let rules = RuleSet::named(&args.name)?;
    rules.apply_here()?;
    match &args.identity {
        Some(directory) => Identity::create(directory.clone()).map(drop),
        None => Ok(()),
    }
}
