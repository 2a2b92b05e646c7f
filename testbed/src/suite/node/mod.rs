//! The complete daemon on a test node: pods from the API server, namespaces from the cgroups, probes from the
//! kubelet, concurrently and in every order.

mod api_failures;
mod broken_pods;
mod clock;
mod env;
mod events;
mod lifecycle;
mod own_node;
pub mod reuse;
mod serving;
mod variants;

use anyhow::Result;

use super::cases::Cases;
use env::Env;

pub(super) fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases)?;
    lifecycle::run(cases, &env);
    variants::run(cases, &env);
    serving::run(cases, &env);
    reuse::run(cases, &env);
    broken_pods::run(cases, &env)?;
    clock::run(cases, &env);
    drop(env);
    api_failures::run(cases);
    events::run(cases);
    own_node::run(cases);
    variants::layouts(cases)
}
