//! Debian packages, from the machine's own suites and from others.

mod install;
mod suite;

pub use install::{install, install_from_backports};
pub use suite::{Suite, unpack};
