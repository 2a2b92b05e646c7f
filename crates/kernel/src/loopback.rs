//! Checks whether the loopback interface of a network namespace is up (netdevice(7)).
//!
//! Uses ioctl, which does not take the lock that is held while the network configuration changes.

use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

use crate::netns::Netns;

/// `LOOPBACK_IFINDEX` of include/net/flow.h: its index in every namespace. Its name may be changed.
const INDEX: libc::c_int = 1;

/// Whether the loopback interface of `netns` is up. Connections within a namespace use it, whichever of the namespace's
/// addresses they go to.
///
/// # Errors
/// Those of `setns`, `socket` and `ioctl`.
pub fn is_up(netns: &Netns) -> io::Result<bool> {
    let socket = netns.within(|| Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None))??;
    // SAFETY: an ifreq consists of integers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = INDEX;
    ioctl(&socket, libc::SIOCGIFNAME, &mut request)?;
    ioctl(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has filled in this member of the union.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    Ok(flags & libc::IFF_UP != 0)
}

fn ioctl(socket: &Socket, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the socket is open, and the request takes an ifreq, which outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), what, std::ptr::from_mut(request)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_of_this_machine_is_up() {
        let own = Netns::current().expect("own namespace");
        match is_up(&own) {
            Ok(up) => assert!(up),
            // Entering a namespace, even the current one, requires CAP_SYS_ADMIN.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
