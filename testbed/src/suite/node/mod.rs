//! The whole daemon on a double of a node: its pods from the API server, their namespaces from the cgroups,
//! their probes by the kubelet, all at once and in every order.

mod bad;
mod clock;
mod env;
mod kinds;
mod life;
pub(crate) mod reuse;
mod trouble;
mod ways;

use anyhow::Result;

use super::cases::Cases;
use env::Env;

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases)?;
    life::run(cases, &env);
    kinds::run(cases, &env);
    ways::run(cases, &env);
    reuse::run(cases, &env);
    bad::run(cases, &env)?;
    clock::run(cases, &env);
    drop(env);
    trouble::run(cases);
    kinds::layouts(cases)
}
