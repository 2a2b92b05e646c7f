//! How long the kernel's scheduler lets a thread run at a time, which decides how soon a busy processor lets it
//! run at all.
//!
//! Between a probe and its verdict, and between a pod's sandbox and its first probe, stand a few wake-ups of our
//! threads. Since Linux 6.12 a thread of the usual policy may ask for a short slice: it runs no more than others do,
//! but sooner after it wakes, for it may preempt those with longer ones (kernel/sched/fair.c, `PREEMPT_SHORT`). It
//! takes no privilege, and threads inherit it.

use std::io;
use std::mem::size_of;
use std::time::Duration;

/// The shortest that the kernel grants (kernel/sched/syscalls.c, `__setparam_fair`).
const SHORT: Duration = Duration::from_micros(100);

/// Asks for a short slice for the calling thread and those that it starts. Whether the kernel grants it: an older one
/// does not, and a thread that was given another policy keeps what it has.
///
/// # Errors
/// Those of sched_getattr(2) and sched_setattr(2).
pub fn shorten() -> io::Result<bool> {
    let mut attributes = get()?;
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(false);
    }
    attributes.sched_runtime = SHORT.as_nanos() as u64;
    set(&attributes)?;
    Ok(get()?.sched_runtime == attributes.sched_runtime)
}

/// Size of the first version of the structure, which every kernel knows.
const SIZE: u32 = size_of::<libc::sched_attr>() as u32;

fn get() -> io::Result<libc::sched_attr> {
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
    // SAFETY: the kernel writes at most SIZE bytes to the structure, which is as large; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    done(result).map(|()| attributes)
}

fn set(attributes: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the structure says that it has, and keeps no reference.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attributes, 0) };
    done(result)
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_granted_is_inherited_and_nothing_else_changes() {
        let test = || {
            let before = get().expect("attributes");
            let granted = shorten().expect("no error on any kernel");
            let threads = std::thread::spawn(get).join().expect("no panic");
            let threads = threads.expect("attributes");
            if granted {
                assert_eq!(threads.sched_runtime, 100_000);
            }
            assert_eq!(threads.sched_policy, before.sched_policy);
            assert_eq!(threads.sched_nice, before.sched_nice);
        };
        // A thread of its own: the other tests keep their slices.
        std::thread::spawn(test).join().expect("no panic");
    }
}
