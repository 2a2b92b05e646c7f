//! A netlink socket (netlink(7)): one request, and its answer or all of them.

use std::fmt;
use std::io;
use std::num::NonZeroI32;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

use crate::netns::Netns;

/// The kernel's own port. Any other is a process's, as one in a pod that may configure its network.
const KERNEL: u32 = 0;

/// How long a dump may take: who makes more of what is dumped while it is can go on for ever.
const DUMP: Duration = Duration::from_secs(1);

/// A socket of one protocol in one network namespace.
pub struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// A socket in the calling thread's namespace.
    ///
    /// # Errors
    /// Those of `socket` and `connect`.
    pub fn new(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        socket.connect(&SocketAddr::new(KERNEL, 0))?;
        Ok(Self { socket })
    }

    /// A socket in `netns`.
    ///
    /// # Errors
    /// As [`Netlink::new`], and those of `setns`.
    pub fn within(netns: &Netns, protocol: isize) -> io::Result<Self> {
        netns.within(|| Self::new(protocol))?
    }

    /// Sends `request` with `flags`; its answer, if it has one other than that all is well.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn ask<M>(&self, request: M, flags: u16) -> io::Result<Option<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(request, flags)?;
        let datagram = self.receive()?;
        match read::<M>(&datagram)?.payload {
            NetlinkPayload::Error(error) => failed(error.code, || error.to_io()).map(|()| None),
            NetlinkPayload::InnerMessage(answer) => Ok(Some(answer)),
            _ => Ok(None),
        }
    }

    /// Sends `request` for all there is, and hands each to `each`. One that can't be read is passed over.
    ///
    /// # Errors
    /// Those of the kernel; `TimedOut` for what has no end within a second.
    pub fn dump<M>(&self, request: M, mut each: impl FnMut(M)) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(request, NLM_F_DUMP)?;
        let begun = Instant::now();
        loop {
            if begun.elapsed() > DUMP {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let datagram = self.receive()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let length = NetlinkBuffer::new_checked(rest)
                    .map_err(|error| invalid(&error))?
                    .length() as usize;
                match read::<M>(rest).map(|message| message.payload) {
                    Ok(NetlinkPayload::InnerMessage(one)) => each(one),
                    Ok(NetlinkPayload::Done(_)) => return Ok(()),
                    Ok(NetlinkPayload::Error(error)) => failed(error.code, || error.to_io())?,
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "a netlink message can't be read"),
                }
                let length = length.next_multiple_of(4).max(1);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }

    /// What the kernel sends next. It has sent its answer by the time in which a request has been taken.
    fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            let (datagram, from) = self.socket.recv_from_full()?;
            if from.port_number() == KERNEL {
                return Ok(datagram);
            }
        }
    }

    fn send<M: NetlinkSerializable>(&self, request: M, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        let _ = self.socket.send(&buffer, 0)?;
        Ok(())
    }
}

fn read<M: NetlinkDeserializable>(message: &[u8]) -> io::Result<NetlinkMessage<M>> {
    NetlinkMessage::deserialize(message).map_err(|error| invalid(&error))
}

fn invalid(error: &dyn fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// An error message without a code says that all is well.
fn failed(code: Option<NonZeroI32>, error: impl FnOnce() -> io::Error) -> io::Result<()> {
    match code {
        Some(_) => Err(error()),
        None => Ok(()),
    }
}
