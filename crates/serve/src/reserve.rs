//! Descriptors kept in reserve.
//!
//! Without any left, a connection that was accepted could not be served: there is none for the app's. So some are held
//! back. When they are needed they are given up, and the programs hear at once that the handler takes no more
//! connections: what is on its way is served, what comes later goes its own way. It takes connections again once the
//! reserve is there again.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::pulse::Pulse;

/// How many are held back: a check takes two.
const SIZE: usize = 64;
/// What is opened for it.
const ANYTHING: &str = "/dev/null";

/// The reserve.
pub struct Reserve {
    held: Mutex<Vec<OwnedFd>>,
    ran_out: AtomicBool,
    pulse: Arc<dyn Pulse>,
}

impl Reserve {
    /// Fills the reserve. While it has to be used, `pulse` stops.
    pub fn new(pulse: Arc<dyn Pulse>) -> Self {
        let reserve = Self {
            held: Mutex::default(),
            ran_out: AtomicBool::new(false),
            pulse,
        };
        if let Err(error) = reserve.fill() {
            reserve.give_up(&error);
        }
        reserve
    }

    /// Says that the handler takes connections, unless there are no descriptors for them.
    pub fn beat(&self) {
        if self.ran_out.load(Ordering::Acquire) {
            if self.fill().is_err() {
                return;
            }
            self.ran_out.store(false, Ordering::Release);
            tracing::info!("file descriptors are free again: the handler accepts connections");
        }
        self.pulse.beat();
    }

    /// Says that the handler takes no connections, until the next [`Reserve::beat`].
    pub fn stop(&self) {
        self.pulse.stop();
    }

    /// Gives the reserve up if `error` says that there are no descriptors left; whether it does.
    pub fn use_for(&self, error: &io::Error) -> bool {
        let none_left = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
        if none_left {
            self.give_up(error);
        }
        none_left
    }

    /// Gives the reserve up if no descriptor can be had now.
    pub fn use_if_needed(&self) {
        if let Err(error) = File::open(ANYTHING) {
            let _ = self.use_for(&error);
        }
    }

    fn give_up(&self, error: &io::Error) {
        // Before anything else is accepted.
        let again = self.ran_out.swap(true, Ordering::AcqRel);
        self.pulse.stop();
        self.held.lock().clear();
        if !again {
            tracing::warn!(
                %error,
                "no file descriptors left: new probes are not redirected to the handler until some are free; raise RLIMIT_NOFILE"
            );
        }
    }

    fn fill(&self) -> io::Result<()> {
        let mut held = self.held.lock();
        while held.len() < SIZE {
            match File::open(ANYTHING) {
                Ok(file) => held.push(file.into()),
                Err(error) => {
                    // What is left is for those that are being served.
                    held.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI32;

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicI32);

    impl Pulse for Counted {
        fn beat(&self) {
            let _ = self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn stop(&self) {
            self.0.store(-1, Ordering::Relaxed);
        }
    }

    #[test]
    fn without_descriptors_the_pulse_stops_until_the_reserve_is_there_again() {
        let pulse = Arc::new(Counted::default());
        let reserve = Reserve::new(Arc::clone(&pulse) as Arc<dyn Pulse>);
        reserve.beat();
        assert_eq!(pulse.0.load(Ordering::Relaxed), 1);
        assert!(!reserve.use_for(&io::Error::from_raw_os_error(libc::ECONNABORTED)));
        assert_eq!(reserve.held.lock().len(), SIZE);
        assert!(reserve.use_for(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert_eq!(pulse.0.load(Ordering::Relaxed), -1);
        assert!(reserve.held.lock().is_empty());
        reserve.beat();
        assert_eq!(reserve.held.lock().len(), SIZE);
        assert_eq!(pulse.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_reserve_is_kept_while_descriptors_can_be_had() {
        let reserve = Reserve::new(Arc::new(Counted::default()));
        reserve.use_if_needed();
        assert_eq!(reserve.held.lock().len(), SIZE);
    }
}
