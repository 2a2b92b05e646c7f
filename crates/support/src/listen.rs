//! TCP listeners as all of our servers want them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Who else may listen at the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Nobody.
    Alone,
    /// Another daemon of ours, for the time of an upgrade (SO_REUSEPORT: processes of the same user alone).
    Upgrade,
}

/// A non-blocking listener at `address` with room for `backlog` connections that are not yet accepted.
/// `[::]` means IPv4 too, and nothing but IPv4 where the kernel has no IPv6. A port in which a daemon that was
/// killed has left connections (TIME_WAIT) is free.
///
/// # Errors
/// Those of `socket`, `bind` and `listen`.
pub fn tcp(address: SocketAddr, share: Share, backlog: i32) -> io::Result<TcpListener> {
    match listen_on(address, share, backlog) {
        Err(error)
            if error.raw_os_error() == Some(libc::EAFNOSUPPORT)
                && address.ip().is_unspecified() =>
        {
            let everywhere = (Ipv4Addr::UNSPECIFIED, address.port()).into();
            listen_on(everywhere, share, backlog)
        }
        listening => listening,
    }
}

/// `count` non-blocking listeners at `address` and at the ports that follow its own; at port 0 any free ones.
///
/// # Errors
/// Those of `socket`, `bind` and `listen`; with port 0, of the last of several tries.
pub fn ports(address: SocketAddr, count: u32, backlog: i32) -> io::Result<Vec<TcpListener>> {
    /// The kernel gives one free port; whether those behind it are free shows when they are asked for.
    const TRIES: u32 = 64;
    let at = |port: u16| tcp(SocketAddr::new(address.ip(), port), Share::Alone, backlog);
    let following = |first: TcpListener| -> io::Result<Vec<TcpListener>> {
        let port = u32::from(first.local_addr()?.port());
        let mut all = vec![first];
        for port in (port..port + count).skip(1) {
            let port = u16::try_from(port)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "no port above 65535"))?;
            all.push(at(port)?);
        }
        Ok(all)
    };
    let mut found = at(address.port()).and_then(following);
    for _ in 1..TRIES {
        if found.is_ok() || address.port() != 0 {
            break;
        }
        found = at(0).and_then(following);
    }
    found
}

fn listen_on(address: SocketAddr, share: Share, backlog: i32) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    if share == Share::Upgrade {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpStream};

    use super::*;

    #[test]
    fn everywhere_is_ipv4_and_ipv6() {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let listener = tcp(address, Share::Alone, 8).expect("a listener");
        let at = listener.local_addr().expect("address");
        let _v4 = TcpStream::connect((Ipv4Addr::LOCALHOST, at.port())).expect("by IPv4");
        if at.is_ipv6() {
            let v6 = TcpStream::connect((Ipv6Addr::LOCALHOST, at.port()));
            // Without ::1 (net.ipv6.conf.lo.disable_ipv6) there is nothing to connect to.
            let has_v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
            assert_eq!(v6.is_ok(), has_v6, "{v6:?}");
        }
    }

    #[test]
    fn several_ports_follow_one_another() {
        let listeners = ports((Ipv4Addr::LOCALHOST, 0).into(), 4, 8).expect("listeners");
        let at: Vec<u16> = listeners
            .iter()
            .map(|one| one.local_addr().expect("address").port())
            .collect();
        assert_eq!(at, [at[0], at[0] + 1, at[0] + 2, at[0] + 3]);
        let taken = SocketAddr::from((Ipv4Addr::LOCALHOST, at[0]));
        let error = ports(taken, 2, 8).expect_err("taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let error =
            ports((Ipv4Addr::new(127, 0, 0, 9), 65_535).into(), 2, 8).expect_err("too high");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_port_is_shared_with_whoever_shares_it() {
        // The wider one first: a port that is free on one address may be somebody's on another.
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let first = tcp(any, Share::Upgrade, 8).expect("a listener");
        let port = first.local_addr().expect("address").port();
        // The daemon of another release may have had another default.
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let _second = tcp(at, Share::Upgrade, 8).expect("shared between families");
        let _third = tcp(at, Share::Upgrade, 8).expect("shared");
        let error = tcp(at, Share::Alone, 8).expect_err("taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
