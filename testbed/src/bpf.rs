//! What the kernel says of BPF programs and maps, asked by bpf(2) itself: so a test does not ask the
//! library that it tests.

mod map;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

pub use map::Map;

/// Commands of enum bpf_cmd (include/uapi/linux/bpf.h).
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const MAP_GET_FD_BY_ID: libc::c_long = 14;
const PROG_QUERY: libc::c_long = 16;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` of enum bpf_prog_type.
const CGROUP_SOCK_ADDR: u32 = 18;
/// `BPF_CGROUP_INET4_CONNECT` of enum bpf_attach_type.
pub const CONNECT4: u32 = 10;
/// The attach types of the daemon's programs: sock_ops, connect4 and 6, getpeername4 and 6.
const HOOKS: [u32; 5] = [3, CONNECT4, 11, 29, 30];

/// `union bpf_attr`, as far as any command here uses it.
#[repr(C, align(8))]
struct Attr([u32; 32]);

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is zeroed where the command does not use it, longer than every command's
    // own part, and outlives the call, as does what it points to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.0.as_mut_ptr(), 128) };
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn pointer<T>(attr: &mut Attr, word: usize, to: *const T) {
    let address = (to as u64).to_ne_bytes();
    let (low, high) = address.split_at(4);
    for (slot, half) in attr.0[word..word + 2].iter_mut().zip([low, high]) {
        *slot = u32::from_ne_bytes([half[0], half[1], half[2], half[3]]);
    }
}

/// The programs and maps that a process holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Ids of programs.
    pub programs: Vec<u32>,
    /// Ids of maps.
    pub maps: Vec<u32>,
}

impl Held {
    /// Those of process `pid`.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn by(pid: u32) -> Result<Self> {
        let mut held = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("looking at a process")? {
            // A descriptor may be closed in between.
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            for line in text.lines() {
                let (list, id) = match line.split_once(':') {
                    Some(("prog_id", id)) => (&mut held.programs, id),
                    Some(("map_id", id)) => (&mut held.maps, id),
                    _ => continue,
                };
                list.push(id.trim().parse()?);
            }
        }
        Ok(held)
    }

    /// What of it the kernel still has. Ids are not used again.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn left(&self) -> Result<Self> {
        let left = |command, ids: &[u32]| -> Result<Vec<u32>> {
            let mut left = Vec::new();
            for id in ids {
                if exists(command, *id)? {
                    left.push(*id);
                }
            }
            Ok(left)
        };
        Ok(Self {
            programs: left(PROG_GET_FD_BY_ID, &self.programs)?,
            maps: left(MAP_GET_FD_BY_ID, &self.maps)?,
        })
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty()
    }
}

fn exists(command: libc::c_long, id: u32) -> Result<bool> {
    let mut attr = Attr([0; 32]);
    attr.0[0] = id;
    match bpf(command, &mut attr) {
        Ok(fd) => {
            drop(owned(fd)?);
            Ok(true)
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error).context("asking the kernel for a BPF object"),
    }
}

fn owned(fd: libc::c_long) -> Result<OwnedFd> {
    // SAFETY: a descriptor that bpf(2) has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}

/// How many programs are attached to a cgroup at the daemon's hooks.
///
/// # Errors
/// When the kernel does not say.
pub fn attached(cgroup: &Path) -> Result<u32> {
    let directory = File::open(cgroup).with_context(|| cgroup.display().to_string())?;
    let mut attached = 0;
    for hook in HOOKS {
        let mut attr = Attr([0; 32]);
        attr.0[0] = u32::try_from(directory.as_raw_fd())?;
        attr.0[1] = hook;
        bpf(PROG_QUERY, &mut attr).context("asking what is attached")?;
        attached += attr.0[6];
    }
    Ok(attached)
}

/// A program attached to a cgroup the legacy way, without BPF_F_ALLOW_MULTI: nothing can be attached
/// below it. Detached on drop.
#[derive(Debug)]
pub struct LegacyConnect4 {
    cgroup: PathBuf,
    program: OwnedFd,
}

impl LegacyConnect4 {
    /// Attaches one that allows every connection.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(cgroup: &Path) -> Result<Self> {
        // r0 = 1; exit.
        let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
        let license = c"GPL";
        let mut attr = Attr([0; 32]);
        attr.0[0] = CGROUP_SOCK_ADDR;
        attr.0[1] = 2;
        pointer(&mut attr, 2, code.as_ptr());
        pointer(&mut attr, 4, license.as_ptr());
        // expected_attach_type, behind log_level, log_size, log_buf, kern_version, prog_flags,
        // prog_name[16] and prog_ifindex.
        attr.0[17] = CONNECT4;
        let program = owned(bpf(PROG_LOAD, &mut attr).context("loading a program")?)?;
        let this = Self {
            cgroup: cgroup.to_owned(),
            program,
        };
        this.command(PROG_ATTACH)
            .context("attaching the legacy way")?;
        ensure!(attached(cgroup)? > 0, "nothing is attached after all");
        Ok(this)
    }

    fn command(&self, command: libc::c_long) -> Result<()> {
        let directory = File::open(&self.cgroup)?;
        let mut attr = Attr([0; 32]);
        attr.0[0] = u32::try_from(directory.as_raw_fd())?;
        attr.0[1] = u32::try_from(self.program.as_raw_fd())?;
        attr.0[2] = CONNECT4;
        bpf(command, &mut attr)?;
        Ok(())
    }
}

impl Drop for LegacyConnect4 {
    fn drop(&mut self) {
        if let Err(error) = self.command(PROG_DETACH) {
            eprintln!(
                "testbed: detaching from {}: {error:#}",
                self.cgroup.display()
            );
        }
    }
}
