//! Sends a transaction to nftables in a pod.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::error::{Error, missing};
use super::message::{Reply, Sealed, replies};
use super::rules::Family;
use crate::netns::Netns;

/// The kernel's own port. Any other is a process's.
const KERNEL: u32 = 0;

/// Carries out `batch`, all of it or nothing.
///
/// # Errors
/// [`Error`].
pub(super) fn commit(netns: &Netns, family: Family, batch: &Sealed) -> Result<(), Error> {
    let socket = netns
        .within(socket)
        .and_then(|socket| socket)
        .map_err(|source| unavailable(family, source))?;
    let replies = ask(&socket, batch.bytes()).map_err(|source| unavailable(family, source))?;
    if let Some(refused) = replies.iter().find(|reply| reply.errno != 0) {
        return Err(refusal(&socket, family, batch, refused));
    }
    if replies.iter().any(|reply| reply.sequence == batch.last()) {
        return Ok(());
    }
    Err(Error::Refused {
        family,
        part: batch.part(0, None),
        source: io::Error::other("the kernel does not answer"),
    })
}

/// A socket in the calling thread's namespace. It tells which attribute of a message is refused, and does not give the
/// message back.
fn socket() -> io::Result<Socket> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.connect(&SocketAddr::new(KERNEL, 0))?;
    socket.set_cap_ack(true)?;
    socket.set_ext_ack(true)?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Sends messages; what the kernel says of them, which it has said by the time in which they have been taken.
fn ask(socket: &Socket, bytes: &[u8]) -> io::Result<Vec<Reply>> {
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

/// Without a socket of netfilter's there is no nftables either.
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

/// Whether nft_compat is there: it is asked for a match, and answers that it has none or that it has it. Where it is not
/// there nobody knows the question (EINVAL).
fn has_compat(socket: &Socket) -> bool {
    match ask(socket, &super::message::compat_question("bpf", 1)) {
        Ok(answers) => answers.iter().all(|answer| answer.errno != libc::EINVAL),
        Err(_) => false,
    }
}
