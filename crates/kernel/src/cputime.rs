//! The processor time of the calling thread: what a piece of work cost, whatever else the node does meanwhile.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The processor time that the calling thread has had so far (`CLOCK_THREAD_CPUTIME_ID`, clock_gettime(2)), the kernel's work
/// for it included: two readings around a system call tell what the call cost. Asking takes less than a microsecond.
///
/// Packets that a thread sends over `lo` are received on the same processor, as a rule before the system call returns. A
/// kernel with CONFIG_IRQ_TIME_ACCOUNTING counts that part (the rules of PREROUTING and INPUT) for nobody.
pub fn thread_cpu_time() -> Duration {
    // Every Linux has this clock. If one had not, nothing would seem to cost anything.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_costs_and_waiting_does_not() {
        // On a thread of its own, whose clock begins at nothing.
        let measure = || {
            let begun = thread_cpu_time();
            let (_sender, never) = std::sync::mpsc::channel::<()>();
            let _ = never.recv_timeout(Duration::from_millis(50));
            let waited = thread_cpu_time() - begun;
            while thread_cpu_time() - begun < waited + Duration::from_millis(5) {
                std::hint::black_box(0);
            }
            waited
        };
        let waited = std::thread::spawn(measure).join().expect("a thread");
        assert!(waited < Duration::from_millis(25), "{waited:?}");
    }
}
