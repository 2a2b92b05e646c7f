//! The in-pod dial: a socket that is created in the pod's network namespace, with the properties that its
//! mesh's rules do not capture.
//!
//! | mesh | source | owner of the socket |
//! |---|---|---|
//! | Istio sidecar, Kuma, unknown | 127.0.0.6, or ::6 if lo has it, else the pod's own | root, gid not 1337 |
//! | Istio ambient | the pod's own | root; mark of ztunnel |
//! | Linkerd, OSM | the pod's own | root |
//! | Consul | the pod's own | fsuid of the proxy, for the `socket()` call only |
//!
//! Without the mark, ambient's DNS capture would redirect a dial to TCP port 53 to ztunnel. If the pod has a user namespace,
//! the proxy's user id is an id in it.
//!
//! The dial goes to the pod's own address, or to its loopback address if the mesh itself connects to that
//! ([`model::Pod::localhost`]).
//!
//! No other mark is set, because Istio's TPROXY rules capture marked sockets. SO_LINGER is not set either:
//! on Linux a positive linger only makes `close()` block, and this thread serves every pod of the node.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::unistd::{Gid, Uid, setfsuid};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;
use crate::userns;
use model::{Mesh, Pod};
use probe::dial::Dial;

/// Istio's and Kuma's source address for inbound traffic that the proxy forwards: their OUTPUT rules
/// accept it on lo.
const PASSTHROUGH4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same for IPv6; istio-init and istio-cni add it to lo.
const PASSTHROUGH6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// Uid and gid of Istio's proxy: its rules would capture a socket of that owner.
const ISTIO_GID: u32 = 1337;

/// The mark of ztunnel's own connections (istio cni/pkg/iptables/iptables.go, `InpodMark`).
const ZTUNNEL_MARK: u32 = 0x539;

/// Where the dial's source address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Passthrough,
    Pod,
}

/// Dials one pod.
#[derive(Debug)]
pub struct PodDialer {
    netns: Arc<Netns>,
    source: Source,
    owner: Option<u32>,
    mark: Option<u32>,
    localhost: bool,
}

impl PodDialer {
    /// A dialer for `pod` in `netns`. Blocks for as long as it takes to read /proc if the pod has a user
    /// namespace.
    ///
    /// # Errors
    /// Those of translating the proxy's user.
    pub fn of(netns: Arc<Netns>, pod: &Pod) -> io::Result<Self> {
        let uid = pod.proxy_uid.map(|uid| userns::on_node(&netns, uid));
        Ok(Self {
            localhost: pod.localhost,
            ..Self::new(netns, pod.mesh, uid.transpose()?)
        })
    }

    /// A dialer for a pod in `netns` that belongs to `mesh`, with sockets owned by the node's user `proxy_uid` if the mesh
    /// requires that.
    pub fn new(netns: Arc<Netns>, mesh: Mesh, proxy_uid: Option<u32>) -> Self {
        let source = match mesh {
            Mesh::Istio | Mesh::Kuma | Mesh::Unknown => Source::Passthrough,
            Mesh::IstioAmbient | Mesh::Linkerd | Mesh::Osm | Mesh::Consul => Source::Pod,
        };
        Self {
            netns,
            source,
            owner: proxy_uid,
            mark: (mesh == Mesh::IstioAmbient).then_some(ZTUNNEL_MARK),
            localhost: false,
        }
    }

    /// Binds the source. Binding to the pod's own address also proves that the namespace still has it:
    /// otherwise a namespace that lost its address would route the dial to the pod that has it now. (A packet
    /// from 127.0.0.6 can't leave the namespace at all.)
    fn bind(&self, socket: &Socket, to: IpAddr) -> io::Result<()> {
        let passthrough: IpAddr = match to {
            IpAddr::V4(_) => PASSTHROUGH4.into(),
            IpAddr::V6(_) => PASSTHROUGH6.into(),
        };
        leave_port_to_connect(socket);
        if self.source == Source::Passthrough {
            match socket.bind(&SocketAddr::new(passthrough, 0).into()) {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                bound => return bound,
            }
        }
        socket.bind(&SocketAddr::new(to, 0).into())
    }
}

impl Dial for PodDialer {
    fn socket(&self, to: SocketAddr) -> io::Result<Socket> {
        let socket = self.netns.within(|| {
            let _owner = self.owner.map(FsUid::set);
            Socket::new(
                Domain::for_address(to),
                Type::STREAM.nonblocking().cloexec(),
                Some(Protocol::TCP),
            )
        })??;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        self.bind(&socket, to.ip())?;
        Ok(socket)
    }

    fn destination(&self, to: SocketAddr) -> SocketAddr {
        match self.localhost {
            true => SocketAddr::new(localhost_of(to.ip()), to.port()),
            false => to,
        }
    }
}

/// The loopback address of the same family as `address`.
pub fn localhost_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// IP_BIND_ADDRESS_NO_PORT: `bind` reserves no port; `connect` chooses one when the whole 4-tuple is known.
/// A kernel that refuses the option only uses up more ports.
fn leave_port_to_connect(socket: &Socket) {
    let on: libc::c_int = 1;
    // SAFETY: a socket that we own; the value is an int that outlives the call.
    let _ = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
}

/// Sets the thread's file-system uid until it is dropped. The mesh's owner match checks this uid (in the
/// credentials of the socket's file).
struct FsUid;

impl FsUid {
    fn set(uid: u32) -> Self {
        let _ = setfsuid(Uid::from_raw(uid));
        Self
    }
}

impl Drop for FsUid {
    fn drop(&mut self) {
        let _ = setfsuid(Uid::effective());
    }
}

/// The reason why Istio's rules would capture this process's dials: its group is the proxy's. `None` if it is
/// not.
pub fn unsuitable_group() -> Option<String> {
    (Gid::effective().as_raw() == ISTIO_GID).then(|| {
        format!(
            "runs with gid {ISTIO_GID}, which is the gid of Istio's proxy: Istio's rules would capture its \
             dials; run it with another group"
        )
    })
}
