//! Reports changes to the rules in a pod as they happen, because another process may remove our rules.

use std::io;

use nix::sys::socket::SockProtocol;

use crate::netns::Netns;
use crate::subscription::Subscription;

/// `NFNLGRP_NFTABLES` of include/uapi/linux/netfilter/nfnetlink.h, as a mask. The kernel does not report changes by
/// legacy iptables, but those can't remove our rules.
const RULES: u32 = 1 << (7 - 1);

/// `RTNLGRP_TC` of include/uapi/linux/rtnetlink.h, as a mask: qdiscs and filters of tc. Programs of tcx are not reported.
const FILTERS: u32 = 1 << (4 - 1);

/// A subscription to one namespace's nftables. It keeps the namespace alive: drop it with the pod.
pub struct RulesWatch {
    rules: Subscription,
    /// `None` if the rules do not depend on tc filters.
    filters: Option<Subscription>,
}

impl RulesWatch {
    /// Subscribes.
    ///
    /// # Errors
    /// Those of `setns`, `socket` and `bind`.
    pub fn new(netns: &Netns) -> io::Result<Self> {
        let rules = Subscription::new(netns, SockProtocol::NetlinkNetFilter, RULES)?;
        Ok(Self {
            rules,
            filters: None,
        })
    }

    /// Starts or ends the subscription to changes of tc filters.
    ///
    /// # Errors
    /// Those of `setns`, `socket` and `bind`.
    pub fn watch_filters(&mut self, netns: &Netns, wanted: bool) -> io::Result<()> {
        match (wanted, &self.filters) {
            (true, None) => {
                let filters = Subscription::new(netns, SockProtocol::NetlinkRoute, FILTERS)?;
                self.filters = Some(filters);
            }
            (true, Some(_)) => {}
            (false, _) => self.filters = None,
        }
        Ok(())
    }

    /// Waits for the next change; several pending changes are reported as one.
    ///
    /// # Errors
    /// Those of the runtime's reactor.
    pub async fn changed(&self) -> io::Result<()> {
        match &self.filters {
            None => self.rules.changed().await,
            Some(filters) => tokio::select! {
                changed = self.rules.changed() => changed,
                changed = filters.changed() => changed,
            },
        }
    }

    /// Discards the changes up to now, which this daemon made itself.
    pub fn discard(&self) {
        for subscription in std::iter::once(&self.rules).chain(&self.filters) {
            if let Err(error) = subscription.discard() {
                tracing::debug!(%error, "changes to a pod's rules can't be read");
            }
        }
    }
}
