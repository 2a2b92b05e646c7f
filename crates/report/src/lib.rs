//! What the daemon writes at the API server, if it is enabled: Events of pods, and the condition and the startup taint of its
//! node. Nothing waits for it: queues are bounded, and what does not fit is counted and lost.

pub mod correlate;
pub mod event;
pub mod node;
pub mod outcome;
pub mod send;

#[cfg(test)]
mod tests;
