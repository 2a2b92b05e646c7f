//! Pods whose mesh is set up in an unusual way, or that make rules of their own.

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
