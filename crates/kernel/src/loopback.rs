//! Whether a network namespace's loopback interface is up (netdevice(7)).
//!
//! By ioctl, which takes no lock that others hold while they change the network.

use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

use crate::netns::Netns;

/// `LOOPBACK_IFINDEX` of include/net/flow.h: the kernel gives it this index in each namespace. Its name may be changed.
const INDEX: libc::c_int = 1;

/// Whether the loopback interface of `netns` is up. A connection within a namespace goes over it, to whichever of the
/// namespace's addresses.
///
/// # Errors
/// Those of `setns`, `socket` and `ioctl`.
pub fn is_up(netns: &Netns) -> io::Result<bool> {
    let socket = netns.within(|| Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None))??;
    // SAFETY: an ifreq is integers, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = INDEX;
    ioctl(&socket, libc::SIOCGIFNAME, &mut request)?;
    ioctl(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has filled in this member of the union.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    Ok(flags & libc::IFF_UP != 0)
}

fn ioctl(socket: &Socket, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: a socket that we own, and a request that takes an ifreq, which outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), what, std::ptr::from_mut(request)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_on_which_tests_run_is_up() {
        let own = Netns::current().expect("own namespace");
        match is_up(&own) {
            Ok(up) => assert!(up),
            // Entering even one's own namespace needs CAP_SYS_ADMIN.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
