use super::cases::Cases;
use anyhow::Result;
pub fn run(_: &mut Cases) -> Result<()> {
    Ok(())
}
