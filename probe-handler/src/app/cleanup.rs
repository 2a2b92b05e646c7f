//! Removes what `probe-handler cleanup` must remove: first the pins, so that no more connections are
//! recorded, then pods' rules.

use std::path::Path;

use crate::cli::cleanup::CleanedUp;
use kernel::exemption::remove_everywhere;
use kernel::pins;

/// Removes the pins, and the rules in all pods.
pub fn run(bpffs: &Path) -> CleanedUp {
    let mut cleaned = CleanedUp::default();
    match pins::remove_all(bpffs) {
        Ok(any) => cleaned.pins = any,
        Err(error) => cleaned
            .troubles
            .push(format!("pins in {}: {error}", bpffs.display())),
    }
    match remove_everywhere() {
        Ok(removed) => {
            cleaned.namespaces = removed.namespaces;
            cleaned.troubles.extend(removed.troubles);
        }
        Err(error) => cleaned
            .troubles
            .push(format!("cannot look for pods' network namespaces: {error}")),
    }
    cleaned
}
