//! Sends a transaction to nftables in a pod's network namespace.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::error::{Error, missing};
use super::message::{Reply, Sealed, replies};
use super::rules::Family;
use crate::netns::Netns;

/// The kernel's port. Any other port belongs to a process.
const KERNEL: u32 = 0;

/// Applies `batch` atomically.
///
/// # Errors
/// [`Error`].
pub(super) fn commit(netns: &Netns, family: Family, batch: &Sealed) -> Result<(), Error> {
    let socket = netns
        .within(socket)
        .and_then(|socket| socket)
        .map_err(|source| unavailable(family, source))?;
    let replies = request(&socket, batch.bytes()).map_err(|source| unavailable(family, source))?;
    if let Some(refused) = replies.iter().find(|reply| reply.errno != 0) {
        return Err(refusal(&socket, family, batch, refused));
    }
    if replies.iter().any(|reply| reply.sequence == batch.last()) {
        return Ok(());
    }
    Err(Error::Refused {
        family,
        part: batch.part(0, None),
        source: io::Error::other("the kernel did not answer"),
    })
}

/// A socket in the calling thread's namespace. Its error replies contain the offset of the refused attribute, and no copy of
/// the message.
fn socket() -> io::Result<Socket> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.connect(&SocketAddr::new(KERNEL, 0))?;
    socket.set_cap_ack(true)?;
    socket.set_ext_ack(true)?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Sends messages, and returns the kernel's replies. The kernel has queued all replies by the time `send` returns.
fn request(socket: &Socket, bytes: &[u8]) -> io::Result<Vec<Reply>> {
    let _all = socket.send(bytes, 0)?;
    let mut all = Vec::new();
    loop {
        match socket.recv_from_full() {
            Ok((datagram, from)) if from.port_number() == KERNEL => all.extend(replies(&datagram)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(all),
            Err(error) => return Err(error),
        }
    }
}

/// The error for a failed netlink socket: a kernel without netfilter's netlink family has no nftables either.
fn unavailable(family: Family, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EPROTONOSUPPORT) => Error::Missing {
            family,
            missing: super::Missing::NfTables,
        },
        _ => Error::Socket(source),
    }
}

fn refusal(socket: &Socket, family: Family, batch: &Sealed, refused: &Reply) -> Error {
    let part = batch.part(refused.sequence, refused.offset);
    match missing(part, refused.errno, || has_compat(socket)) {
        Some(missing) => Error::Missing { family, missing },
        None => Error::Refused {
            family,
            part,
            source: io::Error::from_raw_os_error(refused.errno),
        },
    }
}

/// Whether nft_compat is available. Queries a match: nft_compat replies that the match exists or does not exist; without
/// nft_compat the kernel rejects the query (EINVAL).
fn has_compat(socket: &Socket) -> bool {
    match request(socket, &super::message::compat_query("bpf", 1)) {
        Ok(answers) => answers.iter().all(|answer| answer.errno != libc::EINVAL),
        Err(_) => false,
    }
}
