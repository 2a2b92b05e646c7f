//! Rewrites probes at admission, so that a probe names its real destination.
//!
//! A Pod's probes and hooks become `httpGet` on the rewrite port. The originals are kept in
//! annotation `probe-handler.io/probes`, from which the daemon serves them. Crate `pods` interprets
//! probes for both daemon and webhook; nothing here depends on the kernel.
//!
//! The rewriting consists of pure functions. The admission server is around them: [`review`] answers reviews as
//! text, [`server`] does the network I/O, [`settings`] and [`certificates`] follow its configuration; `app::webhook`
//! combines them.

pub mod annotations;
/// Pods for the property tests of this crate and of the crates that use it.
#[cfg(any(test, feature = "arbitrary"))]
pub mod arbitrary;
pub mod certificates;
pub mod decide;
pub mod injection;
pub mod metrics;
pub mod originals;
pub mod patch;
pub mod prefix;
pub mod reading;
pub mod relevant;
pub mod revert;
pub mod review;
pub mod rewrite;
pub mod server;
pub mod settings;

pub use rewrite::{Rewriting, admit, admit_in};
