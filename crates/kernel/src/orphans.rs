//! Removes entries of `CONNECTING` whose connection is no longer being opened.
//!
//! Program `sock_ops` removes an entry when the socket leaves SYN_SENT. It misses that event if another daemon's program
//! replaced it meanwhile, because the socket is in the older daemon's map only. Until such an entry expires, a connection of
//! another process with the same addresses and ports would be exempt.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::maps::ConnectingMap;
use crate::netlink::Netlink;
use crate::sockdiag::is_connecting;

/// The minimum age of an entry to be removed: nearly all connections are established by then.
const YOUNG: Duration = Duration::from_secs(2);
/// The maximum number of entries that are checked at once. Others wait for the next call.
const AT_ONCE: usize = 256;

/// Removes the entries without a socket in SYN_SENT in the calling thread's network namespace, which must be the kubelet's.
/// Returns how many. Keeps entries of the daemon itself, which expire soon.
///
/// # Errors
/// Those of netlink and of the programs' clock.
pub fn remove(connecting: &ConnectingMap) -> io::Result<usize> {
    let old = connecting.older_than(YOUNG, AT_ONCE)?;
    if old.is_empty() {
        return Ok(0);
    }
    let netlink = Netlink::new(NETLINK_SOCK_DIAG)?;
    let mut removed = 0;
    for entry in old {
        let (source, destination): (SocketAddr, SocketAddr) = entry.ends();
        if !is_connecting(&netlink, source, destination)? {
            removed += usize::from(connecting.remove_unchanged(&entry));
        }
    }
    Ok(removed)
}
