//! A netlink socket (netlink(7)): sends a request, and receives one answer or a dump.

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

/// The kernel's port. Any other port belongs to a process, such as one in a pod with CAP_NET_ADMIN.
const KERNEL: u32 = 0;

/// The maximum duration of a dump: a process that keeps adding entries during a dump could make it endless.
const DUMP: Duration = Duration::from_secs(1);

/// A netlink socket for one protocol in one network namespace.
pub struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// Those of `socket` and `connect`.
    pub fn new(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        socket.connect(&SocketAddr::new(KERNEL, 0))?;
        Ok(Self { socket })
    }

    /// Opens a socket in `netns`.
    ///
    /// # Errors
    /// Those of [`Netlink::new`] and `setns`.
    pub fn within(netns: &Netns, protocol: isize) -> io::Result<Self> {
        netns.within(|| Self::new(protocol))?
    }

    /// Sends `request` with `flags`; returns the answer, or `None` for a plain acknowledgement.
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

    /// Sends a complete message; returns the kernel's first datagram.
    ///
    /// # Errors
    /// Those of `send` and `recv`.
    pub fn exchange(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        let _ = self.socket.send(message, 0)?;
        self.receive()
    }

    /// Sends `request` as a dump request, and calls `each` for every message. Skips messages that can't be parsed.
    ///
    /// # Errors
    /// Those of the kernel; `TimedOut` if the dump takes longer than a second.
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
                    Err(error) => tracing::debug!(%error, "cannot parse a netlink message"),
                }
                let length = length.next_multiple_of(4).max(1);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }

    /// The kernel's next datagram. The kernel has queued its answer by the time `send` returns.
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

/// An error message without a code is an acknowledgement.
fn failed(code: Option<NonZeroI32>, error: impl FnOnce() -> io::Error) -> io::Result<()> {
    match code {
        Some(_) => Err(error()),
        None => Ok(()),
    }
}
