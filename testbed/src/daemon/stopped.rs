//! A daemon stopped with SIGSTOP.

use std::mem;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::Daemon;
use crate::wait;

const SOON: Duration = Duration::from_secs(5);

/// A stopped daemon; continues on drop.
#[derive(Debug)]
pub struct Stopped<'a>(&'a Daemon);

impl<'a> Stopped<'a> {
    pub(super) fn new(daemon: &'a Daemon) -> Self {
        Self(daemon)
    }

    /// Continues it and waits until it is ready: after a long stop its heartbeat has expired, and the programs leave
    /// connections unchanged until the next one.
    ///
    /// # Errors
    /// When it is not ready within 5 s.
    pub fn resume(self) -> Result<()> {
        let daemon = self.0;
        mem::drop(self);
        wait::until("the daemon to be ready again", SOON, || {
            (daemon.get("/readyz").ok()?.0 == 200).then_some(())
        })
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.signal(Signal::SIGCONT) {
            eprintln!("testbed: continuing the daemon: {error:#}");
        }
    }
}
