//! The processor time of the calling thread: the cost of a piece of work, independent of other load on the node.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The processor time that the calling thread has used so far (`CLOCK_THREAD_CPUTIME_ID`, clock_gettime(2)), including the
/// kernel's work for it: the difference of two readings around a system call is the call's cost. A reading takes less than
/// a microsecond.
///
/// Packets that a thread sends over `lo` are received on the same processor, usually before the system call returns. A
/// kernel with CONFIG_IRQ_TIME_ACCOUNTING charges that part (the rules of PREROUTING and INPUT) to no thread.
pub fn thread_cpu_time() -> Duration {
    // Every Linux has this clock. Without it, all work would appear to cost nothing.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_uses_no_processor_time() {
        // On a separate thread, whose clock starts at zero.
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
