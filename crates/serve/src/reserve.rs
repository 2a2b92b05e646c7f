//! A reserve of file descriptors.
//!
//! An accepted connection needs another descriptor for the connection to the app. So some descriptors are held in
//! reserve. When no others are left, the reserve is closed, and the pulse stops at once: connections that are already
//! redirected are served, later ones are not redirected. The pulse starts again once the reserve can be refilled.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::pulse::Pulse;

/// Descriptors in the reserve. A check needs two.
const SIZE: usize = 64;
/// The file that each of them opens.
const FILE: &str = "/dev/null";

/// The reserve.
pub struct Reserve {
    held: Mutex<Vec<OwnedFd>>,
    ran_out: AtomicBool,
    closed: AtomicBool,
    pulse: Arc<dyn Pulse>,
    /// The time of the last beat; `None` while the pulse is stopped.
    last_beat: Mutex<Option<Instant>>,
}

impl Reserve {
    /// Fills the reserve. `pulse` stops while the reserve is in use.
    pub fn new(pulse: Arc<dyn Pulse>) -> Self {
        let reserve = Self {
            held: Mutex::default(),
            ran_out: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            pulse,
            last_beat: Mutex::default(),
        };
        if let Err(error) = reserve.fill() {
            reserve.give_up(&error);
        }
        reserve
    }

    /// Beats the pulse if there are descriptors for new connections.
    pub fn beat(&self) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        if self.ran_out.load(Ordering::Acquire) {
            if self.fill().is_err() {
                return self.pulse.live();
            }
            self.ran_out.store(false, Ordering::Release);
            tracing::info!("file descriptors are free again: the handler accepts connections");
        }
        self.pulse.beat();
        *self.last_beat.lock() = Some(Instant::now());
    }

    /// The time since the last beat; `None` while the pulse is stopped on purpose.
    pub fn silent_for(&self, now: Instant) -> Option<Duration> {
        let last = *self.last_beat.lock();
        last.map(|last| now.saturating_duration_since(last))
    }

    /// Stops the pulse until the next [`Reserve::beat`], and reports that the daemon runs. Must be repeated as often
    /// as [`Reserve::beat`].
    pub fn pause(&self) {
        self.stop();
        self.pulse.live();
    }

    /// Stops the pulse until the next [`Reserve::beat`].
    fn stop(&self) {
        self.pulse.stop();
        *self.last_beat.lock() = None;
    }

    /// Stops the pulse for good.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.stop();
    }

    /// Closes the reserve if `error` means that no descriptors are left. Returns whether it means that.
    pub fn use_for(&self, error: &io::Error) -> bool {
        let none_left = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
        if none_left {
            self.give_up(error);
        }
        none_left
    }

    /// Closes the reserve if no descriptor can be opened now.
    pub fn use_if_needed(&self) {
        if let Err(error) = File::open(FILE) {
            let _ = self.use_for(&error);
        }
    }

    fn give_up(&self, error: &io::Error) {
        // The pulse stops first: with the reserve closed, accepting works again.
        let again = self.ran_out.swap(true, Ordering::AcqRel);
        self.stop();
        self.held.lock().clear();
        if !again {
            tracing::warn!(
                %error,
                "no file descriptors left: new probes bypass the handler until some are free; raise RLIMIT_NOFILE"
            );
        }
    }

    fn fill(&self) -> io::Result<()> {
        let mut held = self.held.lock();
        while held.len() < SIZE {
            match File::open(FILE) {
                Ok(file) => held.push(file.into()),
                Err(error) => {
                    // Leave the free descriptors to the connections that are being served.
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

    /// Beats, or -1 after a stop; and reports that the daemon runs.
    #[derive(Default)]
    struct Counted(AtomicI32, AtomicI32);

    impl Pulse for Counted {
        fn beat(&self) {
            let _ = self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn live(&self) {
            let _ = self.1.fetch_add(1, Ordering::Relaxed);
        }

        fn stop(&self) {
            self.0.store(-1, Ordering::Relaxed);
        }
    }

    #[test]
    fn without_descriptors_the_pulse_stops_until_the_reserve_is_refilled() {
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
    fn silence_is_counted_from_the_last_beat_unless_the_pulse_is_stopped() {
        let reserve = Reserve::new(Arc::new(Counted::default()));
        assert_eq!(reserve.silent_for(Instant::now()), None, "no beat yet");
        reserve.beat();
        let later = Instant::now() + Duration::from_secs(2);
        assert!(reserve.silent_for(later) >= Some(Duration::from_secs(2)));
        reserve.pause();
        assert_eq!(reserve.silent_for(later), None);
    }

    #[test]
    fn a_daemon_whose_pulse_pauses_still_shows_that_it_runs() {
        let pulse = Arc::new(Counted::default());
        let reserve = Reserve::new(Arc::clone(&pulse) as Arc<dyn Pulse>);
        reserve.pause();
        assert_eq!(pulse.0.load(Ordering::Relaxed), -1);
        assert_eq!(pulse.1.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_pulse_that_was_closed_does_not_beat_again() {
        let pulse = Arc::new(Counted::default());
        let reserve = Reserve::new(Arc::clone(&pulse) as Arc<dyn Pulse>);
        reserve.close();
        reserve.beat();
        assert_eq!(pulse.0.load(Ordering::Relaxed), -1);
    }

    #[test]
    fn the_reserve_is_kept_while_descriptors_are_free() {
        let reserve = Reserve::new(Arc::new(Counted::default()));
        reserve.use_if_needed();
        assert_eq!(reserve.held.lock().len(), SIZE);
    }
}
