//! The kernel path: only the kubelet's own connection reaches the app. Tests the eBPF programs and our rules mostly
//! without the daemon.

mod client;
mod costly;
mod daemon;
mod declared;
mod meshes;
mod node;
mod obstacles;
mod outliving;
mod results;
mod tc;
mod traps;
mod unproven;

use anyhow::Result;

use super::cases::Cases;
pub use tc::run as by_tc;

pub fn run(cases: &mut Cases) -> Result<()> {
    let mut node = node::Node::start()?;
    meshes::run(cases, &mut node);
    traps::run(cases, &mut node)?;
    drop(node);
    daemon::run(cases)?;
    results::run(cases);
    obstacles::run(cases)?;
    costly::run(cases)?;
    outliving::run(cases)?;
    unproven::run(cases)
}
