//! How soon this process's threads run once they are woken, on a node whose processors others have.

use std::io;

/// The time slice to ask for: the shortest that Linux takes (kernel/sched/syscalls.c, `__setparam_fair`). Nanoseconds.
const SLICE: u64 = 100_000;

/// Asks for short time slices, for the calling thread and all that it starts from now on. The scheduler (EEVDF, Linux
/// 6.12 and later) lets a thread that wants little at a time run before those that want much; it gets no more of the
/// processor in all. A pod's endpoint has to stand before its app runs, and a probe's answer is awaited. Before Linux 6.12
/// it changes nothing. Threads of another policy than SCHED_OTHER are left as somebody wanted them.
///
/// # Errors
/// Those of sched_getattr(2) and sched_setattr(2).
pub fn ask_for_short_slices() -> io::Result<()> {
    let mut attributes = attributes()?;
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = SLICE;
    // SAFETY: the kernel reads as many bytes as the structure's first field says, which is its size.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    done(result)
}

/// Gives the calling thread a lower priority than the process's other threads.
///
/// # Errors
/// Those of setpriority(2).
pub fn give_way() -> io::Result<()> {
    const NICE: libc::c_int = 10;
    // SAFETY: no pointers. On Linux `0` is the calling thread, whatever POSIX says of processes.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    done(result.into())
}

/// The calling thread's.
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
    // SAFETY: the kernel writes at most as many bytes as it is told.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    done(result)?;
    // A kernel that knows more says so; what is sent back is this structure all the same.
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
    fn slices_are_short_and_all_else_is_as_before() {
        // On a thread of its own: others of this process keep theirs.
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
            // Kernels that do not know slices tell of none.
            assert!(matches!(attributes.sched_runtime, 0 | SLICE));
        }
    }
}
