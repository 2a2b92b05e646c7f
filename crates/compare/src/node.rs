//! Dialling a pod from the node, as the kubelet does: through the mesh.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use probe::dial::Dial;

/// Creates sockets in the daemon's own network namespace, which is the kubelet's. The daemon is not in the kubelet's
/// cgroup, so no program exempts them.
#[derive(Clone, Copy, Debug)]
pub struct NodeDialer;

impl Dial for NodeDialer {
    fn socket(&self, to: SocketAddr) -> io::Result<Socket> {
        Socket::new(
            Domain::for_address(to),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )
    }
}
