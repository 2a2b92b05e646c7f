//! Queries eBPF programs and maps with bpf(2) directly, so that tests do not depend on the library that the
//! daemon uses.

mod map;

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use probe_handler_common::programs;

pub use map::{Map, key};

/// Commands of enum bpf_cmd (include/uapi/linux/bpf.h).
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const MAP_GET_FD_BY_ID: libc::c_long = 14;
const PROG_QUERY: libc::c_long = 16;
const MAP_FREEZE: libc::c_long = 22;
const LINK_CREATE: libc::c_long = 28;
/// `BPF_PROG_TYPE_SCHED_CLS` of enum bpf_prog_type.
const SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS` of enum bpf_attach_type.
const TCX_INGRESS: u32 = 46;
/// `BPF_PROG_TYPE_SOCK_OPS` of enum bpf_prog_type.
const SOCK_OPS: u32 = 13;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` of enum bpf_prog_type.
const CGROUP_SOCK_ADDR: u32 = 18;
/// `BPF_CGROUP_INET4_CONNECT` of enum bpf_attach_type.
pub const CONNECT4: u32 = 10;
/// `BPF_PROG_TYPE_CGROUP_SKB` of enum bpf_prog_type.
const CGROUP_SKB: u32 = 8;
/// `BPF_CGROUP_INET_INGRESS` of enum bpf_attach_type.
const INGRESS: u32 = 0;
/// The attach types of the daemon's programs, in the order of [`programs::ALL`]: sock_ops, getpeername4 and 6, connect4 and
/// 6, ingress.
const HOOKS: [u32; 6] = [3, 29, 30, CONNECT4, 11, INGRESS];

/// `union bpf_attr`, as far as it is used here.
#[repr(C, align(8))]
struct Attr([u32; 32]);

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<libc::c_long> {
    // SAFETY: unused parts of the attribute are zero, it is longer than every command's part, and it and
    // the memory that it points to outlive the call.
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
    /// The programs and maps of process `pid`.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn by(pid: u32) -> Result<Self> {
        let mut held = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))
            .context("listing a process's descriptors")?
        {
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

    /// The programs and maps that still exist. The kernel does not reuse ids.
    ///
    /// # Errors
    /// When the kernel returns an error.
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

    /// The programs and maps that `others` do not include.
    #[must_use]
    pub fn without(mut self, others: &Self) -> Self {
        self.programs.retain(|id| !others.programs.contains(id));
        self.maps.retain(|id| !others.maps.contains(id));
        self
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty()
    }
}

/// Creates a map.
///
/// # Errors
/// When the kernel refuses.
pub fn make_map(kind: u32, key: u32, value: u32, entries: u32, flags: u32) -> Result<OwnedFd> {
    let mut attr = Attr([0; 32]);
    attr.0[..5].copy_from_slice(&[kind, key, value, entries, flags]);
    owned(bpf(MAP_CREATE, &mut attr)?)
}

/// Pins a map, as another program would.
///
/// # Errors
/// When the kernel refuses.
pub fn pin(map: &OwnedFd, path: &Path) -> Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr([0; 32]);
    pointer(&mut attr, 0, path.as_ptr());
    attr.0[2] = u32::try_from(map.as_raw_fd())?;
    let _done = bpf(OBJ_PIN, &mut attr).context("pinning a map")?;
    Ok(())
}

/// Sets the only entry of a read-only array and freezes it, which the verifier requires for a program's
/// constants.
///
/// # Errors
/// When the kernel refuses.
pub fn set_constants(map: &OwnedFd, value: &[u8]) -> Result<()> {
    let index = 0_u32;
    let mut attr = Attr([0; 32]);
    attr.0[0] = u32::try_from(map.as_raw_fd())?;
    pointer(&mut attr, 2, &raw const index);
    pointer(&mut attr, 4, value.as_ptr());
    let _done = bpf(MAP_UPDATE_ELEM, &mut attr).context("setting constants")?;
    let mut attr = Attr([0; 32]);
    attr.0[0] = u32::try_from(map.as_raw_fd())?;
    let _done = bpf(MAP_FREEZE, &mut attr).context("freezing constants")?;
    Ok(())
}

/// Loads one of the daemon's programs; returns the statistics of the verifier's log. `code` is its
/// instructions, in the kernel's format.
///
/// # Errors
/// When the kernel refuses.
pub fn verifier_statistics<T>(name: &str, code: &[T], license: &CStr) -> Result<String> {
    /// `BPF_LOG_STATS` of include/linux/bpf_verifier.h: the end of the log only.
    const STATISTICS: u32 = 4;
    let hook = match programs::ALL.iter().position(|known| *known == name) {
        Some(index) => HOOKS[index],
        None => bail!("the daemon has no program {name}"),
    };
    ensure!(size_of::<T>() == 8, "an instruction has 8 bytes");
    let mut log = vec![0_u8; 64 * 1024];
    let mut attr = Attr([0; 32]);
    attr.0[0] = match name {
        programs::SOCK_OPS => SOCK_OPS,
        programs::ANSWER => CGROUP_SKB,
        _ => CGROUP_SOCK_ADDR,
    };
    attr.0[1] = u32::try_from(code.len())?;
    pointer(&mut attr, 2, code.as_ptr());
    pointer(&mut attr, 4, license.as_ptr());
    attr.0[6] = STATISTICS;
    attr.0[7] = u32::try_from(log.len())?;
    pointer(&mut attr, 8, log.as_mut_ptr());
    attr.0[17] = hook;
    let loaded = bpf(PROG_LOAD, &mut attr);
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..end]).into_owned();
    let _program = owned(loaded.with_context(|| format!("loading {name}: {log}"))?)?;
    Ok(log)
}

/// Loads a program for tc. `code` is its instructions, in the kernel's format.
///
/// # Errors
/// When the kernel refuses.
pub fn load_classifier(code: &[u64]) -> Result<OwnedFd> {
    let license = c"GPL";
    let mut attr = Attr([0; 32]);
    attr.0[0] = SCHED_CLS;
    attr.0[1] = u32::try_from(code.len())?;
    pointer(&mut attr, 2, code.as_ptr());
    pointer(&mut attr, 4, license.as_ptr());
    owned(bpf(PROG_LOAD, &mut attr).context("loading a program for tc")?)
}

/// Attaches a program for tc by tcx to the ingress of the interface with this index in the calling thread's namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn link_tcx(program: BorrowedFd<'_>, interface: u32) -> Result<OwnedFd> {
    let mut attr = Attr([0; 32]);
    attr.0[0] = program.as_raw_fd().cast_unsigned();
    attr.0[1] = interface;
    attr.0[2] = TCX_INGRESS;
    owned(bpf(LINK_CREATE, &mut attr).context("attaching by tcx")?)
}

/// Whether the kernel reports the number of instructions that its verifier processed for a loaded program
/// (`verified_insns` in /proc/PID/fdinfo).
///
/// # Errors
/// When this process has loaded no program.
pub fn keeps_verified_instructions() -> Result<bool> {
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // A descriptor may be closed in between.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        if text.contains("prog_jited:") {
            return Ok(text.contains("verified_insns:"));
        }
    }
    bail!("this process has loaded no program")
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
        Err(error) => Err(error).context("opening a BPF object"),
    }
}

fn owned(fd: libc::c_long) -> Result<OwnedFd> {
    // SAFETY: bpf(2) has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}

/// The number of programs attached to a cgroup at the daemon's hooks.
///
/// # Errors
/// When the kernel returns an error.
pub fn attached(cgroup: &Path) -> Result<u32> {
    let directory = File::open(cgroup).with_context(|| cgroup.display().to_string())?;
    let mut attached = 0;
    for hook in HOOKS {
        let mut attr = Attr([0; 32]);
        attr.0[0] = u32::try_from(directory.as_raw_fd())?;
        attr.0[1] = hook;
        bpf(PROG_QUERY, &mut attr).context("querying attached programs")?;
        attached += attr.0[6];
    }
    Ok(attached)
}

/// The code of a program that allows everything: r0 = 1; exit.
const ALLOW: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

/// A program attached to a cgroup by the legacy API: without BPF_F_ALLOW_MULTI no program can be attached to the same hook
/// below it. Detached on drop.
#[derive(Debug)]
pub struct LegacyProgram {
    cgroup: PathBuf,
    hook: u32,
    program: OwnedFd,
}

impl LegacyProgram {
    /// Attaches a program that allows every connection.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn connect4(cgroup: &Path) -> Result<Self> {
        Self::attach(cgroup, CGROUP_SOCK_ADDR, CONNECT4, &ALLOW, 0)
    }

    /// Attaches a program that allows every received packet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ingress(cgroup: &Path) -> Result<Self> {
        Self::attach(cgroup, CGROUP_SKB, INGRESS, &ALLOW, 0)
    }

    /// Attaches a program, beside others, that makes connect() continue although a program below it has refused the
    /// connection.
    ///
    /// # Errors
    /// When the kernel refuses, as before Linux 6.1.
    pub fn undoing_refusals(cgroup: &Path) -> Result<Self> {
        /// `BPF_F_ALLOW_MULTI`.
        const MULTI: u32 = 2;
        // r1 = 0; bpf_set_retval(r1).
        let undo = [0x0000_0000_0000_01b7, 0x0000_00bb_0000_0085];
        let code = [undo, ALLOW].concat();
        Self::attach(cgroup, CGROUP_SOCK_ADDR, CONNECT4, &code, MULTI)
    }

    fn attach(cgroup: &Path, kind: u32, hook: u32, code: &[u64], flags: u32) -> Result<Self> {
        let license = c"GPL";
        let mut attr = Attr([0; 32]);
        attr.0[0] = kind;
        attr.0[1] = u32::try_from(code.len())?;
        pointer(&mut attr, 2, code.as_ptr());
        pointer(&mut attr, 4, license.as_ptr());
        // expected_attach_type, after log_level, log_size, log_buf, kern_version, prog_flags,
        // prog_name[16] and prog_ifindex.
        attr.0[17] = hook;
        let program = owned(bpf(PROG_LOAD, &mut attr).context("loading a program")?)?;
        let this = Self {
            cgroup: cgroup.to_owned(),
            hook,
            program,
        };
        this.command(PROG_ATTACH, flags)
            .context("attaching in legacy mode")?;
        ensure!(attached(cgroup)? > 0, "the program is not attached");
        Ok(this)
    }

    fn command(&self, command: libc::c_long, flags: u32) -> Result<()> {
        let directory = File::open(&self.cgroup)?;
        let mut attr = Attr([0; 32]);
        attr.0[0] = u32::try_from(directory.as_raw_fd())?;
        attr.0[1] = u32::try_from(self.program.as_raw_fd())?;
        attr.0[2] = self.hook;
        attr.0[3] = flags;
        bpf(command, &mut attr)?;
        Ok(())
    }
}

impl Drop for LegacyProgram {
    fn drop(&mut self) {
        if let Err(error) = self.command(PROG_DETACH, 0) {
            eprintln!(
                "testbed: detaching from {}: {error:#}",
                self.cgroup.display()
            );
        }
    }
}
