//! Pods whose mesh is configured in an unusual way, or that install their own rules.

mod families;
mod localhost;
mod user_namespace;

use anyhow::Result;

use super::cases::Cases;
use super::env::Env;

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[])?;
    families::run(cases, &env);
    localhost::run(cases, &env)?;
    user_namespace::run(cases, &env);
    Ok(())
}
