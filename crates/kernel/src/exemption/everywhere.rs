//! Removes our rules and tc filters from every pod on the node, for `probe-handler cleanup`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::remove_all;
use crate::netns::Netns;
use model::netns::NetnsId;

/// The result of [`remove_everywhere`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Number of network namespaces that had rules or tc filters.
    pub namespaces: usize,
    /// The namespaces where removing failed, and why.
    pub troubles: Vec<String>,
}

/// Removes our rules and tc filters from every network namespace that contains a process or has a name in /run/netns. Skips the
/// caller's own namespace, where the daemon installs none.
///
/// # Errors
/// Those of reading /proc.
pub fn remove_everywhere() -> io::Result<Removed> {
    let own = Netns::current()?.id();
    let mut removed = Removed::default();
    let (namespaces, troubles) = namespaces()?;
    removed.troubles = troubles;
    for (id, path) in namespaces {
        if id == own {
            continue;
        }
        match remove_at(&path, id) {
            Ok(any) => removed.namespaces += usize::from(any),
            Err(why) => removed.troubles.push(format!("{}: {why}", path.display())),
        }
    }
    Ok(removed)
}

/// Removes our rules and tc filters from the namespace at `path`, if that is still namespace `id`. Returns
/// whether there were any.
fn remove_at(path: &Path, id: NetnsId) -> Result<bool, String> {
    let netns = match Netns::open(path) {
        Ok(netns) if netns.id() == id => netns,
        Err(error) if !is_gone(path, &error) => return Err(error.to_string()),
        // The namespace no longer exists, and its rules were removed with it.
        _ => return Ok(false),
    };
    remove_all(&netns).map_err(super::Error::message)
}

/// Each network namespace once, with a path to it; and why others can't be seen. Those of several processes for one reason are
/// one line.
fn namespaces() -> io::Result<(BTreeMap<NetnsId, PathBuf>, Vec<String>)> {
    let processes = fs::read_dir("/proc")?
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
        .map(|entry| entry.path().join("ns/net"));
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let named = named.map(|entry| entry.path());
    let mut found = BTreeMap::new();
    let mut unseen: BTreeMap<String, (PathBuf, usize)> = BTreeMap::new();
    for path in processes.chain(named) {
        match NetnsId::at(&path) {
            Ok(id) => drop(found.insert(id, path)),
            // Of a process that has ended.
            Err(error) if is_gone(&path, &error) => {}
            Err(error) => {
                let (_, others) = unseen.entry(error.to_string()).or_insert((path, 0));
                *others += 1;
            }
        }
    }
    let troubles = unseen
        .into_iter()
        .map(|(error, (path, count))| format!("{}: {error} ({count} in all)", path.display()));
    Ok((found, troubles.collect()))
}

/// Whether `error` is that of a process that no longer exists, or has ended and has no namespaces any more, or of a name in
/// /run/netns that is not one of a namespace.
fn is_gone(path: &Path, error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::InvalidInput];
    // A process that ends at this moment is EACCES (fs/proc/namespaces.c); its directory is the second one above.
    let has_ended = || {
        path.ancestors()
            .nth(2)
            .is_some_and(|process| !process.exists())
    };
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(libc::ESRCH) || has_ended()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_namespace_is_among_those_of_the_node() {
        let own = Netns::current().expect("own namespace").id();
        assert!(namespaces().expect("/proc").0.contains_key(&own));
    }

    #[test]
    fn what_no_longer_exists_is_told_from_what_must_not_be_seen() {
        let own = PathBuf::from("/proc/self/ns/net");
        // Above the largest process id that Linux allows.
        let ended = PathBuf::from("/proc/4194305/ns/net");
        for (path, errno, gone) in [
            (&own, libc::ENOENT, true),
            (&own, libc::ESRCH, true),
            (&own, libc::EINVAL, true),
            (&own, libc::EACCES, false),
            (&own, libc::EPERM, false),
            (&ended, libc::EACCES, true),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(is_gone(path, &error), gone, "{}: {error}", path.display());
        }
    }
}
