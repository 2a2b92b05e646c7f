//! An unprivileged process, a pod, or a lack of resources on the node does not change the kubelet's probe results.

mod descriptors;
mod guessed_port;
mod half_preface;
mod port_space;
mod redirects;
mod syn_cookies;
mod time_namespace;

use anyhow::Result;

use super::cases::Cases;

pub fn run(cases: &mut Cases) -> Result<()> {
    guessed_port::run(cases)?;
    half_preface::run(cases)?;
    descriptors::run(cases)?;
    time_namespace::run(cases)?;
    port_space::run(cases)?;
    syn_cookies::run(cases)?;
    redirects::run(cases)
}
