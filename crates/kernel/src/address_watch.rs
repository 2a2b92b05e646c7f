//! Watches the addresses and interfaces in a pod's network namespace for changes (rtnetlink(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::netns::Netns;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` of include/uapi/linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// The maximum number of messages read at once: a process that may configure the pod's network can cause
/// messages faster than they are read, and the caller has other work.
const AT_ONCE: usize = 64;

/// A subscription to changes of one namespace's addresses and interfaces. It keeps the namespace alive: drop it with the pod.
pub struct AddressWatch {
    socket: AsyncFd<OwnedFd>,
}

impl AddressWatch {
    /// Subscribes. Only later changes are reported, so read addresses and interfaces after this. Requires a tokio runtime.
    ///
    /// # Errors
    /// Those of `setns`, `socket` and `bind`.
    pub fn new(netns: &Netns) -> io::Result<Self> {
        let socket = netns.within(|| {
            socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::NetlinkRoute,
            )
        })??;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
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
            let mut changed = false;
            // The content of the messages does not matter, nor does a queue overflow (ENOBUFS): the
            // caller reads all addresses anew.
            let mut scratch = [0_u8; 4096];
            for _ in 0..AT_ONCE {
                match receive(ready.get_inner(), &mut scratch) {
                    Ok(_) => changed = true,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                    Err(error) => return Err(error),
                }
            }
            if changed {
                return Ok(());
            }
        }
    }
}

fn receive(socket: &OwnedFd, into: &mut [u8]) -> io::Result<usize> {
    Ok(recv(socket.as_raw_fd(), into, MsgFlags::empty())?)
}
