//! Entry points of the fuzz targets into private parsers.

use crate::locate::name;
use crate::{cgroup, exemption, kubelet, mountinfo, userns};

/// Text of a file below /proc, or a cgroup's name.
pub fn proc(text: &str) {
    let _ = mountinfo::mounts(text);
    let _ = cgroup::mount_in(text);
    let _ = cgroup::path_in(text);
    let _ = userns::translate(text, 5995);
    let _ = kubelet::all_uids_are(0, text);
    let _ = name::names_a_pod(text);
    for in_pods in [false, true] {
        let _ = name::kind(text, in_pods);
    }
}

/// A datagram of nf_tables.
pub fn replies(datagram: &[u8]) {
    let _ = exemption::message::replies(datagram);
}
