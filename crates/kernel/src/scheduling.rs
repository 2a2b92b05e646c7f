//! Sets how soon this process's threads run after a wake-up on a node with busy processors.

use std::io;

/// The requested time slice: the shortest that Linux accepts (kernel/sched/syscalls.c, `__setparam_fair`). Nanoseconds.
const SLICE: u64 = 100_000;

/// Requests short time slices for the calling thread and all threads that it starts later. The scheduler (EEVDF, Linux
/// 6.12 and later) runs a thread with a short slice before those with longer ones; its total share of processor time does
/// not change. This matters because a pod's endpoint must be in place before its app runs, and the kubelet waits for a
/// probe's answer. No effect before Linux 6.12. Threads with a policy other than SCHED_OTHER are unchanged.
///
/// # Errors
/// Those of sched_getattr(2) and sched_setattr(2).
pub fn ask_for_short_slices() -> io::Result<()> {
    let mut attributes = attributes()?;
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = SLICE;
    // SAFETY: the kernel reads as many bytes as the structure's first field specifies, which is its size.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    done(result)
}

/// Gives the calling thread a lower priority than the process's other threads.
///
/// # Errors
/// Those of setpriority(2).
pub fn give_way() -> io::Result<()> {
    const NICE: libc::c_int = 10;
    // SAFETY: no pointers. On Linux `0` is the calling thread, although POSIX specifies the calling process.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    done(result.into())
}

/// The calling thread's scheduling attributes.
fn attributes() -> io::Result<libc::sched_attr> {
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size: SIZE,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most `SIZE` bytes.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    done(result)?;
    // A kernel with a larger structure returns its own size; this structure keeps its size when it is sent back.
    attributes.size = SIZE;
    Ok(attributes)
}

fn done(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_slice_changes() {
        // On a separate thread, so that other threads of this process keep their slices.
        let asked = std::thread::spawn(|| {
            let before = attributes().expect("attributes");
            ask_for_short_slices().expect("asked");
            let started = std::thread::spawn(attributes).join().expect("a thread");
            (
                before,
                attributes().expect("attributes"),
                started.expect("attributes"),
            )
        });
        let (before, after, inherited) = asked.join().expect("a thread");
        for attributes in [after, inherited] {
            assert_eq!(attributes.sched_policy, before.sched_policy);
            assert_eq!(attributes.sched_nice, before.sched_nice);
            assert_eq!(attributes.sched_flags, before.sched_flags);
            // Kernels without slices return 0.
            assert!(matches!(attributes.sched_runtime, 0 | SLICE));
        }
    }
}
