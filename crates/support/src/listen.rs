//! Creates TCP listeners for all servers of the daemon.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::AttachReusePortCbpf;
use socket2::{Domain, Protocol, Socket, Type};

/// Which other sockets may listen on the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// None.
    Alone,
    /// Sockets of another probe-handler, during an upgrade (SO_REUSEPORT: only processes of the same user).
    Upgrade,
}

/// A non-blocking listener on `address` with a queue for `backlog` connections that are not yet accepted.
/// `[::]` includes IPv4, and is only IPv4 if the kernel has no IPv6. Connections in TIME_WAIT that a killed
/// daemon left behind do not block the port.
///
/// # Errors
/// Those of `socket`, `bind` and `listen`.
pub fn tcp(address: SocketAddr, share: Share, backlog: i32) -> io::Result<TcpListener> {
    with_ipv4(address, |address| {
        let socket = bound(address, share)?;
        socket.listen(backlog)?;
        Ok(socket.into())
    })
}

/// Calls `bind` with `address`; if that is `[::]` and the kernel has no IPv6, with `0.0.0.0`.
fn with_ipv4<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match bind(address) {
        Err(error)
            if error.raw_os_error() == Some(libc::EAFNOSUPPORT)
                && address.ip().is_unspecified() =>
        {
            bind((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    }
}

/// Checks whether `address` can be bound. Returns whether another listener that shares it has bound it
/// already.
///
/// # Errors
/// It can't be bound.
pub fn is_shared(address: SocketAddr) -> io::Result<bool> {
    let bind = |share| with_ipv4(address, |address| bound(address, share));
    match bind(Share::Alone) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            bind(Share::Upgrade).map(|_| true)
        }
        Err(error) => Err(error),
    }
}

/// Makes the kernel give all further connections to `newest`, which must be the second listener on its address. The
/// first listener keeps its connections, and gets new ones again when `newest` is closed.
///
/// # Errors
/// Those of `setsockopt`.
pub fn prefer(newest: &TcpListener) -> io::Result<()> {
    // BPF_RET | BPF_K: the number of the listener, in the order in which they began to listen. If there is none with this
    // number, the kernel chooses one.
    let mut second = [libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: 1,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: second.as_mut_ptr(),
    };
    Ok(setsockopt(newest, AttachReusePortCbpf, &program)?)
}

/// `count` non-blocking listeners on consecutive ports, the first at `address`; with port 0 on any free ports.
///
/// # Errors
/// Those of `socket`, `bind` and `listen`.
pub fn ports(address: SocketAddr, count: u16, backlog: i32) -> io::Result<Vec<TcpListener>> {
    (0..count)
        .map(|index| {
            let port = match address.port() {
                // With port 0 the ports are not consecutive, because thousands of connections in TIME_WAIT
                // may leave no free range.
                0 => 0,
                first => first.checked_add(index).ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "invalid port: the highest port is 65535",
                    )
                })?,
            };
            tcp(SocketAddr::new(address.ip(), port), Share::Alone, backlog)
        })
        .collect()
}

fn bound(address: SocketAddr, share: Share) -> io::Result<Socket> {
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
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpStream};

    use super::*;

    #[test]
    fn the_unspecified_address_includes_ipv4_and_ipv6() {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let listener = tcp(address, Share::Alone, 8).expect("a listener");
        let at = listener.local_addr().expect("address");
        let _v4 = TcpStream::connect((Ipv4Addr::LOCALHOST, at.port())).expect("by IPv4");
        if at.is_ipv6() {
            let v6 = TcpStream::connect((Ipv6Addr::LOCALHOST, at.port()));
            // Without ::1 (net.ipv6.conf.lo.disable_ipv6) the connection fails.
            let has_v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
            assert_eq!(v6.is_ok(), has_v6, "{v6:?}");
        }
    }

    /// The ports of `listeners`.
    fn ports_of(listeners: &[TcpListener]) -> Vec<u16> {
        listeners
            .iter()
            .map(|one| one.local_addr().expect("address").port())
            .collect()
    }

    #[test]
    fn ports_after_a_given_port_are_consecutive() {
        let address = Ipv4Addr::new(127, 0, 0, 9);
        let listeners = ports((address, 65_532).into(), 4, 8).expect("listeners");
        assert_eq!(ports_of(&listeners), [65_532, 65_533, 65_534, 65_535]);
        let error = ports((address, 65_531).into(), 2, 8).expect_err("taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(listeners);
        let error = ports((address, 65_535).into(), 2, 8).expect_err("too high");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn without_a_given_port_every_listener_uses_any_free_port() {
        let listeners = ports((Ipv4Addr::LOCALHOST, 0).into(), 16, 8).expect("listeners");
        let mut at = ports_of(&listeners);
        at.sort_unstable();
        at.dedup();
        assert_eq!(at.len(), 16);
    }

    #[test]
    fn of_two_listeners_the_newest_gets_all_connections_while_it_exists() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let older = tcp(any, Share::Upgrade, 128).expect("a listener");
        let at = older.local_addr().expect("address");
        assert!(is_shared(at).expect("it can be bound"));
        let newest = tcp(at, Share::Upgrade, 128).expect("shared");
        prefer(&newest).expect("preferred");
        let connect = |count| -> Vec<TcpStream> {
            let one = |_| TcpStream::connect(at).expect("connected");
            (0..count).map(one).collect()
        };
        let accepted = |listener: &TcpListener| {
            let mut count = 0;
            while listener.accept().is_ok() {
                count += 1;
            }
            count
        };
        let _to_newest = connect(50);
        assert_eq!((accepted(&older), accepted(&newest)), (0, 50));
        drop(newest);
        let _to_older = connect(50);
        assert_eq!(accepted(&older), 50);
        drop(older);
        assert!(!is_shared(at).expect("it can be bound"));
    }

    #[test]
    fn a_port_is_shared_only_if_both_listeners_share_it() {
        // The unspecified address first: a port that is free on one address may be in use on another.
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let first = tcp(any, Share::Upgrade, 8).expect("a listener");
        let port = first.local_addr().expect("address").port();
        // The daemon of another release may use another default address.
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let _second = tcp(at, Share::Upgrade, 8).expect("shared between families");
        let _third = tcp(at, Share::Upgrade, 8).expect("shared");
        let error = tcp(at, Share::Alone, 8).expect_err("taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
