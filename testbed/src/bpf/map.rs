//! Reads a map of a running daemon with bpf(2), independently of the daemon's own reports.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use probe_handler_common::address::SockAddr;

use super::{Attr, Held, MAP_GET_FD_BY_ID, MAP_UPDATE_ELEM, bpf, owned, pointer};

/// Commands of enum bpf_cmd (include/uapi/linux/bpf.h).
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
/// `struct bpf_map_info` up to its name: type, id, key and value size, entries, flags, name[16].
const INFO_WORDS: usize = 10;
const INFO_BYTES: u32 = 40;
/// More entries than any map here has.
const MOST: usize = 1 << 20;

/// An open map with fixed-size keys.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    key_size: usize,
    value_size: usize,
}

impl Map {
    /// The map with this name (at most 15 characters) that process `pid` holds.
    ///
    /// # Errors
    /// When it holds none.
    pub fn held_by(pid: u32, name: &str) -> Result<Self> {
        for id in Held::by(pid)?.maps {
            let mut attr = Attr([0; 32]);
            attr.0[0] = id;
            let Ok(fd) = bpf(MAP_GET_FD_BY_ID, &mut attr) else {
                continue; // gone since
            };
            let fd = owned(fd)?;
            let mut info = [0_u32; INFO_WORDS];
            let mut attr = Attr([0; 32]);
            attr.0[0] = u32::try_from(fd.as_raw_fd())?;
            attr.0[1] = INFO_BYTES;
            pointer(&mut attr, 2, info.as_mut_ptr());
            bpf(OBJ_GET_INFO_BY_FD, &mut attr).context("reading a map's information")?;
            let found: Vec<u8> = info[6..]
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .take_while(|byte| *byte != 0)
                .collect();
            if found == name.as_bytes() {
                return Ok(Self {
                    fd,
                    key_size: usize::try_from(info[2])?,
                    value_size: usize::try_from(info[3])?,
                });
            }
        }
        anyhow::bail!("process {pid} holds no map {name}")
    }

    /// Whether there is an entry for this address and port.
    ///
    /// # Errors
    /// When the kernel returns an error.
    pub fn has(&self, address: SocketAddr) -> Result<bool> {
        let key = key(address);
        anyhow::ensure!(key.len() == self.key_size, "the keys are not addresses");
        let mut value = vec![0_u8; self.value_size];
        let mut attr = self.attr()?;
        pointer(&mut attr, 2, key.as_ptr());
        pointer(&mut attr, 4, value.as_mut_ptr());
        match bpf(MAP_LOOKUP_ELEM, &mut attr) {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(error).context("reading a map"),
        }
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// When the sizes are not the map's, or the kernel refuses.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> Result<()> {
        anyhow::ensure!(
            key.len() == self.key_size && value.len() == self.value_size,
            "the key or value has another size than the map's"
        );
        let mut attr = self.attr()?;
        pointer(&mut attr, 2, key.as_ptr());
        pointer(&mut attr, 4, value.as_ptr());
        bpf(MAP_UPDATE_ELEM, &mut attr).context("adding an entry")?;
        Ok(())
    }

    /// How many entries it has.
    ///
    /// # Errors
    /// When the kernel returns an error.
    pub fn entries(&self) -> Result<usize> {
        let (mut key, mut next) = (vec![0_u8; self.key_size], vec![0_u8; self.key_size]);
        for count in 0..MOST {
            let mut attr = self.attr()?;
            if count > 0 {
                pointer(&mut attr, 2, key.as_ptr());
            }
            pointer(&mut attr, 4, next.as_mut_ptr());
            match bpf(MAP_GET_NEXT_KEY, &mut attr) {
                Ok(_) => std::mem::swap(&mut key, &mut next),
                Err(error) if is_absent(&error) => return Ok(count),
                Err(error) => return Err(error).context("iterating over a map"),
            }
        }
        anyhow::bail!("the map changes during iteration")
    }

    fn attr(&self) -> Result<Attr> {
        let mut attr = Attr([0; 32]);
        attr.0[0] = u32::try_from(self.fd.as_raw_fd())?;
        Ok(attr)
    }
}

/// An address and port as a key, or as a part of one.
pub fn key(address: SocketAddr) -> Vec<u8> {
    let address = SockAddr::from(address);
    let words = address.ip.into_iter().chain([address.port]);
    words.flat_map(u32::to_ne_bytes).collect()
}

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}
