//! A subscription to the kernel's messages about changes in a pod's network namespace (netlink(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::netns::Netns;

/// Maximum number of messages read at once: a process that may configure the pod's network can cause them
/// faster than they are read, and the caller has other work.
const AT_ONCE: usize = 64;

/// A subscription. It keeps the namespace alive: drop it with the pod.
pub struct Subscription {
    socket: AsyncFd<OwnedFd>,
}

impl Subscription {
    /// Subscribes to `groups`, a mask, of `protocol`. Only later changes are reported, so read the current state
    /// after this.
    ///
    /// # Errors
    /// Those of `setns`, `socket` and `bind`.
    pub fn new(netns: &Netns, protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let socket = netns.within(|| {
            socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                protocol,
            )
        })??;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        // SAFETY: an `OwnedFd` is always the same open descriptor until it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket })
    }

    /// Waits for the next change; several pending changes are reported as one.
    ///
    /// # Errors
    /// Those of the runtime's reactor.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let read = read_some(ready.get_inner())?;
            if read.all {
                ready.clear_ready();
            }
            if read.any {
                return Ok(());
            }
        }
    }

    /// Discards the messages received so far.
    ///
    /// # Errors
    /// Those of `recv`.
    pub fn discard(&self) -> io::Result<()> {
        read_some(self.socket.get_ref()).map(drop)
    }
}

/// The result of reading messages.
struct Read {
    /// At least one message was received.
    any: bool,
    /// No further message is pending.
    all: bool,
}

/// Neither the content of the messages matters nor the loss of some (ENOBUFS), because the caller reads the
/// current state again.
fn read_some(socket: &OwnedFd) -> io::Result<Read> {
    let mut scratch = [0_u8; 4096];
    let mut any = false;
    for _ in 0..AT_ONCE {
        match recv(socket.as_raw_fd(), &mut scratch, MsgFlags::empty()) {
            Ok(_) | Err(nix::errno::Errno::ENOBUFS) => any = true,
            Err(nix::errno::Errno::EAGAIN) => return Ok(Read { any, all: true }),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Read { any, all: false })
}
