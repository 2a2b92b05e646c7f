//! The initial sequence number of an accepted connection, read from its saved SYN (TCP_SAVE_SYN and TCP_SAVED_SYN,
//! Linux 4.2). It distinguishes the connection from earlier ones with the same peer address and port.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Room for an IPv6 header and the longest TCP header, with some extension headers between them.
const SYN_BYTES: usize = 256;
/// Bytes of an IPv6 header (RFC 8200, 3).
const IPV6_HEADER: usize = 40;
/// Protocol number of TCP.
const TCP: u8 = 6;

/// Makes the kernel save the SYN of each connection that `listener` receives from now on.
///
/// # Errors
/// Those of setsockopt(2).
pub fn keep(listener: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: an open socket; the value is an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SAVE_SYN,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The reason why the kernel saves no SYNs at all; `None` if it saves them.
pub fn obstacle() -> Option<&'static str> {
    // This reads the setting of the calling thread's network namespace, which is also the listeners'.
    let always = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies")
        .is_ok_and(|value| value.trim() == "2");
    always.then_some(
        "net.ipv4.tcp_syncookies is 2: the kernel saves no SYN, so the handler cannot identify the kubelet's connections; \
         set it to 1, with which the kernel sends SYN cookies only while a SYN queue overflows",
    )
}

/// The peer's initial sequence number of `stream`, which the listener given to [`keep`] accepted. `None` on a second call,
/// and if the kernel did not save the SYN, as with SYN cookies.
pub fn take_isn(stream: &impl AsFd) -> Option<u32> {
    let mut syn = [0_u8; SYN_BYTES];
    let mut length = SYN_BYTES as libc::socklen_t;
    // SAFETY: an open socket, and a buffer of the length given; the kernel writes at most that many bytes.
    let result = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SAVED_SYN,
            syn.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0)
        .then(|| syn.get(..length as usize))
        .flatten()
        .and_then(isn)
}

/// The sequence number (RFC 9293, 3.1) in a packet that begins with its IP header.
pub(crate) fn isn(packet: &[u8]) -> Option<u32> {
    const SEQUENCE: usize = 4;
    let tcp = match packet.first()? >> 4 {
        4 => usize::from(packet.first()? & 0xf) * 4,
        // Loopback adds no extension headers. A packet that has one is not parsed.
        6 if packet.get(6) == Some(&TCP) => IPV6_HEADER,
        _ => return None,
    };
    let bytes = packet.get(tcp + SEQUENCE..tcp + SEQUENCE + 4)?;
    bytes.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_sequence_number_is_read_after_either_ip_header() {
        let tcp = [0x1f, 0x90, 0, 80, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0];
        let v4 = [&[0x45][..], &[0; 19], &tcp].concat();
        assert_eq!(isn(&v4), Some(0xdead_beef));
        let with_options = [&[0x46][..], &[0; 23], &tcp].concat();
        assert_eq!(isn(&with_options), Some(0xdead_beef));
        let mut v6 = [&[0x60][..], &[0; 39], &tcp].concat();
        v6[6] = TCP;
        assert_eq!(isn(&v6), Some(0xdead_beef));
        v6[6] = 0;
        assert_eq!(isn(&v6), None, "an extension header");
        assert_eq!(isn(&v4[..27]), None, "cut off");
        assert_eq!(isn(&[]), None);
    }

    #[test]
    fn two_connections_from_one_port_have_different_numbers() {
        // No other test uses these addresses, so none takes the ports.
        let listener = TcpListener::bind("127.0.0.7:0").expect("listener");
        keep(&listener).expect("kept");
        let to = listener.local_addr().expect("address");
        let mut seen = Vec::new();
        let mut from = std::net::SocketAddr::from(([127, 0, 0, 8], 0)).into();
        for _ in 0..2 {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                .expect("socket");
            socket.bind(&from).expect("the same address");
            socket.connect(&to.into()).expect("connected");
            from = socket.local_addr().expect("address");
            // The port is free at once.
            socket
                .set_linger(Some(std::time::Duration::ZERO))
                .expect("linger");
            drop(TcpStream::from(socket));
            let (accepted, _) = listener.accept().expect("accepted");
            seen.push(take_isn(&accepted).expect("a number"));
            assert_eq!(take_isn(&accepted), None, "a second call");
        }
        assert_ne!(seen[0], seen[1]);
    }
}
