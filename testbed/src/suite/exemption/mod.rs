//! The kernel path: only the kubelet's own connection reaches the app. Tests the eBPF programs and our rules mostly
//! without the daemon.

mod client;
mod daemon;
mod declared;
mod meshes;
mod node;
mod outliving;
mod traps;

use anyhow::Result;

use super::cases::Cases;

pub fn run(cases: &mut Cases) -> Result<()> {
    let mut node = node::Node::start()?;
    meshes::run(cases, &mut node);
    traps::run(cases, &mut node)?;
    drop(node);
    daemon::run(cases)?;
    outliving::run(cases)
}
