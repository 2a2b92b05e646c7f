//! `testbed without-inotify`: runs a program that cannot create an inotify instance.
//!
//! On a real node other programs of the same user may have used all instances (fs.inotify.max_user_instances). Using
//! them up here would affect other programs on the machine, so a seccomp filter makes the system call fail as the
//! kernel would: with EMFILE.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, Result};

/// Arguments of `testbed without-inotify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// Installs the filter and executes the program.
///
/// # Errors
/// When the kernel refuses the filter, or the program can't be started.
pub fn main(args: &Args) -> Result<()> {
    let (program, words) = args.command.split_first().context("no program")?;
    refuse_inotify().context("setting the seccomp filter")?;
    let error = Command::new(program).args(words).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

/// Applies to this process and to the program that it executes.
fn refuse_inotify() -> Result<()> {
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EMFILE)?;
    let statement = |code: u32, k: u32| -> Result<libc::sock_filter> {
        let code = u16::try_from(code)?;
        Ok(libc::sock_filter {
            code,
            jt: 0,
            jf: 0,
            k,
        })
    };
    let mut filter = [
        // The system call's number, the first field of `struct seccomp_data`.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)?,
        libc::sock_filter {
            jf: 1,
            ..statement(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                u32::try_from(libc::SYS_inotify_init1)?,
            )?
        },
        statement(libc::BPF_RET | libc::BPF_K, refuse)?,
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW)?,
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len())?,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the filter, which lives until the call returns, and changes nothing of ours.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().into()),
    }
}
