//! Debian's packages: from the suites that the machine follows, and from others beside them.

mod install;
mod suite;

pub use install::{install, install_from_backports};
pub use suite::Suite;
