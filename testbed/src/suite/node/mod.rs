//! The whole daemon on a double of a node: its pods from the API server, their namespaces from the cgroups,
//! their probes by the kubelet, all at once and in every order.

mod env;
mod life;

use anyhow::Result;

use super::cases::Cases;
use env::Env;

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases)?;
    life::run(cases, &env);
    Ok(())
}
