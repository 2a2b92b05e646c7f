//! A daemon that stands still.

use nix::sys::signal::Signal;

use super::Daemon;

/// A daemon that stands still.
#[derive(Debug)]
pub struct Stopped<'a>(&'a Daemon);

impl<'a> Stopped<'a> {
    pub(super) fn new(daemon: &'a Daemon) -> Self {
        Self(daemon)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.signal(Signal::SIGCONT) {
            eprintln!("testbed: letting the daemon go on: {error:#}");
        }
    }
}
