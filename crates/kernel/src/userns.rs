//! The user namespace of a pod (`hostUsers: false`), and what its user ids are on the node.
//!
//! A mesh's rules compare the owner of a socket with an id of the user namespace that owns the network namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::netns::Netns;

nix::ioctl_none_bad!(
    /// `NS_GET_USERNS` of include/uapi/linux/nsfs.h: a descriptor of the user namespace that owns the namespace.
    ns_get_userns,
    0xb701
);

/// The id on the node of user `uid` of the pod in `netns`.
///
/// # Errors
/// Those of /proc; `NotFound` if the pod has a user namespace in which no process runs yet; `InvalidData` if `uid` does not
/// exist there.
pub fn on_node(netns: &Netns, uid: u32) -> io::Result<u32> {
    // SAFETY: the ioctl takes no argument, and the descriptor is of nsfs.
    let fd = unsafe { ns_get_userns(netns.as_fd().as_raw_fd()) }?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    let owner = id(&unsafe { File::from_raw_fd(fd) }.metadata()?);
    if owner == id(&fs::metadata("/proc/self/ns/user")?) {
        return Ok(uid);
    }
    let map = map_of(owner)?.ok_or_else(|| {
        let why = "no process runs in the pod's user namespace yet";
        io::Error::new(io::ErrorKind::NotFound, why)
    })?;
    translate(&map, uid).ok_or_else(|| {
        let why =
            format!("user {uid} does not exist in the pod's user namespace (hostUsers: false)");
        io::Error::new(io::ErrorKind::InvalidData, why)
    })
}

/// Device and inode of a namespace.
fn id(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// The `uid_map` of user namespace `owner`, from any process in it: the map of a namespace never changes.
fn map_of(owner: (u64, u64)) -> io::Result<Option<String>> {
    for process in fs::read_dir("/proc")?.flatten() {
        let directory = process.path();
        let is_process = process.file_name().as_encoded_bytes()[0].is_ascii_digit();
        if is_process && is_in(&directory, owner) {
            // A process that has ended meanwhile has an empty map.
            match fs::read_to_string(directory.join("uid_map")) {
                Ok(map) if !map.is_empty() && is_in(&directory, owner) => return Ok(Some(map)),
                _ => {}
            }
        }
    }
    Ok(None)
}

fn is_in(process: &Path, owner: (u64, u64)) -> bool {
    fs::metadata(process.join("ns/user")).is_ok_and(|meta| id(&meta) == owner)
}

/// Translates by a `uid_map`, whose lines contain the first id inside, the first id outside, and the number of ids
/// (user_namespaces(7)).
pub(crate) fn translate(map: &str, uid: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let (inside, outside, count) = (next()?, next()?, next()?);
        let offset = uid.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_translated_by_the_range_that_contains_it() {
        let map = "         0     231072      65536\n     70000    1000000          2\n";
        assert_eq!(translate(map, 0), Some(231_072));
        assert_eq!(translate(map, 5995), Some(237_067));
        assert_eq!(translate(map, 65_536), None);
        assert_eq!(translate(map, 70_001), Some(1_000_001));
        assert_eq!(translate(map, 70_002), None);
        assert_eq!(translate("0 0 4294967295", 5995), Some(5995));
        assert_eq!(translate("", 0), None);
        assert_eq!(translate("0 x 1", 0), None);
    }

    #[test]
    fn the_nodes_own_ids_are_unchanged() {
        let own = Netns::current().expect("own namespace");
        // If the test itself runs in a user namespace, the network namespace may belong to another one.
        if let Ok(uid) = on_node(&own, 5995) {
            assert_eq!(uid, 5995);
        }
    }
}
