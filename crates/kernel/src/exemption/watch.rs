//! Learns of changes to the rules in a pod as they happen: ours may be among what somebody removes.

use std::io;

use nix::sys::socket::SockProtocol;

use crate::netns::Netns;
use crate::subscription::Subscription;

/// `NFNLGRP_NFTABLES` of include/uapi/linux/netfilter/nfnetlink.h, as a mask. iptables' legacy rules are not told of, but
/// nobody removes ours by them.
const RULES: u32 = 1 << (7 - 1);

/// A subscription to one namespace's nftables. It keeps the namespace alive: drop it with the pod.
pub struct RulesWatch(Subscription);

impl RulesWatch {
    /// Subscribes.
    ///
    /// # Errors
    /// Those of `setns`, `socket` and `bind`.
    pub fn new(netns: &Netns) -> io::Result<Self> {
        Subscription::new(netns, SockProtocol::NetlinkNetFilter, RULES).map(Self)
    }

    /// Waits for the next change; several at once are one.
    ///
    /// # Errors
    /// Those of the runtime's reactor.
    pub async fn changed(&self) -> io::Result<()> {
        self.0.changed().await
    }

    /// Passes over the changes until now: those that we have made ourselves.
    pub fn pass_over(&self) {
        if let Err(error) = self.0.pass_over() {
            tracing::debug!(%error, "changes to a pod's rules can't be read");
        }
    }
}
