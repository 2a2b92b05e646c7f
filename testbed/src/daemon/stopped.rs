//! A daemon stopped with SIGSTOP.

use nix::sys::signal::Signal;

use super::Daemon;

/// A stopped daemon; continues on drop.
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
            eprintln!("testbed: continuing the daemon: {error:#}");
        }
    }
}
