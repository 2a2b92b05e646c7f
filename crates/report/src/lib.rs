//! Writes to the API server, if this is enabled: Events of pods, the condition of the daemon's node, and the removal of its
//! startup taint. Nothing waits for these writes: queues are bounded, and what does not fit is dropped and counted.

pub mod correlate;
pub mod event;
pub mod node;
pub mod outcome;
pub mod send;

#[cfg(test)]
mod tests;
