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
    for (id, path) in namespaces()? {
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
        // The namespace no longer exists, and its rules were removed with it.
        _ => return Ok(false),
    };
    remove_all(&netns).map_err(super::Error::message)
}

/// Each network namespace once, with a path to it.
fn namespaces() -> io::Result<BTreeMap<NetnsId, PathBuf>> {
    let processes = fs::read_dir("/proc")?
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
        .map(|entry| entry.path().join("ns/net"));
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let named = named.map(|entry| entry.path());
    // A namespace whose id can't be read belongs to a process that has ended.
    let known = processes
        .chain(named)
        .filter_map(|path| Some((NetnsId::at(&path).ok()?, path)));
    Ok(known.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_namespace_is_among_those_of_the_node() {
        let own = Netns::current().expect("own namespace").id();
        assert!(namespaces().expect("/proc").contains_key(&own));
    }
}
