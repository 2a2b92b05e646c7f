//! Network namespace ids: the small numbers by which `bpf_sk_lookup_tcp` names another namespace,
//! as seen from our own (rtnetlink(7), `RTM_NEWNSID`, `RTM_GETNSID`).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::kernel::netns::Netns;

/// Asks the kernel for namespace ids.
pub struct Nsids {
    socket: Socket,
}

impl Nsids {
    /// Opens a netlink socket in the calling thread's namespace, from which the ids are seen.
    ///
    /// # Errors
    /// Those of `socket` and `connect`.
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let _ = socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// The id of `netns`, assigned now if it had none. It stays until the namespace is gone; the
    /// kernel takes it back then.
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
    pub fn get(&self, netns: &Netns) -> io::Result<Option<i32>> {
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
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(kind(message)));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        let _ = self.socket.send(&buffer, 0)?;

        let (answer, _) = self.socket.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewNsId(message) | RouteNetlinkMessage::GetNsId(message),
            ) => Ok(message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) => Some(*id),
                    _ => None,
                })),
            _ => Ok(None),
        }
    }
}
