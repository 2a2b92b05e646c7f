//! Network namespace ids: the small numbers by which `bpf_sk_lookup_tcp` identifies another namespace,
//! relative to the daemon's own (rtnetlink(7), `RTM_NEWNSID`, `RTM_GETNSID`).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::Netlink;
use crate::netns::Netns;

/// Queries and assigns namespace ids.
pub struct Nsids {
    netlink: Netlink,
}

impl Nsids {
    /// Opens a netlink socket in the calling thread's namespace, to which the ids are relative.
    ///
    /// # Errors
    /// Those of `socket` and `connect`.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            netlink: Netlink::new(NETLINK_ROUTE)?,
        })
    }

    /// The id of `netns`; assigns one if it has none. The id is valid until the namespace is destroyed;
    /// then the kernel frees it.
    ///
    /// # Errors
    /// Those of the kernel: EPERM without CAP_NET_ADMIN.
    pub fn assign(&self, netns: &Netns) -> io::Result<i32> {
        if let Some(id) = self.get(netns)? {
            return Ok(id);
        }
        match self.ask(RouteNetlinkMessage::NewNsId, NLM_F_ACK, netns, Some(-1)) {
            Ok(_) => {}
            // Another daemon was faster.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(error),
        }
        self.get(netns)?
            .ok_or_else(|| io::Error::other("the kernel assigned no network namespace id"))
    }

    /// The id of `netns`, if it has one.
    ///
    /// # Errors
    /// Those of the kernel.
    fn get(&self, netns: &Netns) -> io::Result<Option<i32>> {
        let answer = self.ask(RouteNetlinkMessage::GetNsId, 0, netns, None)?;
        Ok(answer.filter(|id| *id >= 0))
    }

    fn ask(
        &self,
        kind: fn(NsidMessage) -> RouteNetlinkMessage,
        flags: u16,
        netns: &Netns,
        id: Option<i32>,
    ) -> io::Result<Option<i32>> {
        let mut message = NsidMessage::default();
        message
            .attributes
            .push(NsidAttribute::Fd(netns.as_fd().as_raw_fd() as u32));
        message.attributes.extend(id.map(NsidAttribute::Id));
        match self.netlink.ask(kind(message), flags)? {
            Some(RouteNetlinkMessage::NewNsId(message) | RouteNetlinkMessage::GetNsId(message)) => {
                Ok(message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        NsidAttribute::Id(id) => Some(*id),
                        _ => None,
                    }))
            }
            _ => Ok(None),
        }
    }
}
