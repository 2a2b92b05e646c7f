//! Rewriting probes at admission, for those who want a probe to name its destination.
//!
//! A Pod's probes and hooks become `httpGet` on the rewrite port, the originals are kept in
//! annotation `probe-handler.io/probes`, and the daemon serves them from there. What a probe means is
//! said by `pods`, for the daemon and for us; nothing here knows of the kernel.
//!
//! The rewriting is pure functions. Around them is the admission server: [`review`] from text to text, [`server`]
//! the network, [`settings`] and [`certificates`] what it works by; `app::webhook` puts it together.

pub mod annotations;
/// Pods for property tests, of this crate and of those that use it.
#[cfg(any(test, feature = "arbitrary"))]
pub mod arbitrary;
pub mod certificates;
pub mod decide;
pub mod directory;
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

pub use rewrite::{Rewriting, admit};
