//! Watches the addresses and interfaces in a pod's network namespace for changes (rtnetlink(7)).

use std::io;

use nix::sys::socket::SockProtocol;

use crate::netns::Netns;
use crate::subscription::Subscription;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` of include/uapi/linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// A subscription to one namespace's changes of addresses and interfaces. It keeps the namespace alive: drop it with the pod.
pub struct AddressWatch(Subscription);

impl AddressWatch {
    /// Subscribes. Only later changes are reported, so read addresses and interfaces after this. Requires a tokio runtime.
    ///
    /// # Errors
    /// Those of `setns`, `socket` and `bind`.
    pub fn new(netns: &Netns) -> io::Result<Self> {
        Subscription::new(netns, SockProtocol::NetlinkRoute, GROUPS).map(Self)
    }

    /// Waits for the next change; several pending changes are reported as one.
    ///
    /// # Errors
    /// Those of the runtime's reactor.
    pub async fn changed(&self) -> io::Result<()> {
        self.0.changed().await
    }
}
