//! The connect hooks: leave a connection unchanged, refuse it, exempt it, or redirect it to the handler.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::sockaddr;
use aya_ebpf::helpers::{
    bpf_bind, bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval,
};
use aya_ebpf::programs::SockAddrContext;
use probe_handler_common::address::SockAddr;
use probe_handler_common::config::Config;
use probe_handler_common::counters::Counter;
use probe_handler_common::endpoint::LOCALHOST;
use probe_handler_common::flow::{self, HANDLER, Original};
use probe_handler_common::gate::{Decision, LeaveReason, decide};
use probe_handler_common::outcome::{self, Outcome};
use probe_handler_common::spread::{port_index, source_v4};

use crate::heartbeat::{is_alive, lease_is_over};
use crate::listener::{KUBELET_NETNS, listens};
use crate::log::log_connection;
use crate::maps::{
    CONFIG, ENDPOINTS, LAST_REFUSED, SOCKETS, count, has_set_retval, record_outcome,
};
use crate::verdict::Verdict;

/// `IPPROTO_TCP`.
const TCP: u32 = 6;
/// `-ECONNREFUSED`, the same on every architecture with a BPF JIT except MIPS and SPARC, which are not
/// supported.
const REFUSED: i32 = -111;
/// 127.0.0.1, network byte order.
const LOOPBACK4: u32 = 0x7f00_0001_u32.to_be();
/// `::1`, network byte order.
const LOOPBACK6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];

/// The handler's address for an endpoint at `destination`: in the same family, on loopback. `None` if the
/// handler does not serve that family.
#[inline(always)]
pub fn handler(destination: &SockAddr, config: &Config) -> Option<SockAddr> {
    let address = match destination.as_v4() {
        Some(_) => SockAddr::v4(LOOPBACK4, config.handler_port_v4),
        None => {
            let ports = (&raw const config.handler_ports_v6).cast::<u16>();
            // SAFETY: the index is below the number of ports. Volatile, so that one port is read, and not all are
            // copied to the stack.
            let port =
                unsafe { core::ptr::read_volatile(ports.add(port_index(destination) as usize)) };
            SockAddr::v6(LOOPBACK6, port)
        }
    };
    (address.port != 0).then_some(address)
}

/// The loopback address of the same family, with the same port.
#[inline(always)]
fn loopback(destination: &SockAddr) -> SockAddr {
    let port = destination.port as u16;
    match destination.as_v4() {
        Some(_) => SockAddr::v4(LOOPBACK4, port),
        None => SockAddr::v6(LOOPBACK6, port),
    }
}

/// The destination in an IPv4 context.
#[inline(always)]
pub fn user_address4(ctx: &SockAddrContext) -> SockAddr {
    // SAFETY: fields of the context that programs of this type may read; the port is in network byte
    // order in the low half.
    unsafe {
        let sock_addr = &*ctx.sock_addr;
        SockAddr::v4(sock_addr.user_ip4, u16::from_be(sock_addr.user_port as u16))
    }
}

/// The destination in an IPv6 context; IPv4-mapped addresses have the format of IPv4 endpoints.
#[inline(always)]
pub fn user_address6(ctx: &SockAddrContext) -> SockAddr {
    // SAFETY: as in `user_address4`; each word is read separately, as the verifier requires.
    unsafe {
        let ip = &raw const (*ctx.sock_addr).user_ip6;
        let word = |index: usize| core::ptr::read_volatile(ip.cast::<u32>().add(index));
        let ip = [word(0), word(1), word(2), word(3)];
        SockAddr::v6(ip, u16::from_be((*ctx.sock_addr).user_port as u16))
    }
}

/// Writes `address`, which is IPv4, to an IPv4 context.
#[inline(always)]
pub fn set_user_address4(ctx: &SockAddrContext, address: &SockAddr) {
    // SAFETY: fields that programs of this type may write, in network byte order.
    unsafe {
        (*ctx.sock_addr).user_ip4 = address.ip[3];
        (*ctx.sock_addr).user_port = u32::from((address.port as u16).to_be());
    }
}

/// Writes `address` to an IPv6 context; IPv4 as IPv4-mapped.
#[inline(always)]
pub fn set_user_address6(ctx: &SockAddrContext, address: &SockAddr) {
    // SAFETY: as in `set_user_address4`; each word is written separately, as the verifier requires.
    unsafe {
        let ip = (&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>();
        core::ptr::write_volatile(ip.add(0), address.ip[0]);
        core::ptr::write_volatile(ip.add(1), address.ip[1]);
        core::ptr::write_volatile(ip.add(2), address.ip[2]);
        core::ptr::write_volatile(ip.add(3), address.ip[3]);
        (*ctx.sock_addr).user_port = u32::from((address.port as u16).to_be());
    }
}

/// `cgroup/connect4`.
#[inline(always)]
pub fn connect4(ctx: &SockAddrContext) -> Verdict {
    let destination = user_address4(ctx);
    connect(ctx, &destination, |handler| {
        spread(ctx, &destination);
        set_user_address4(ctx, handler);
    })
}

/// `cgroup/connect6`.
#[inline(always)]
pub fn connect6(ctx: &SockAddrContext) -> Verdict {
    let destination = user_address6(ctx);
    connect(ctx, &destination, |handler| set_user_address6(ctx, handler))
}

#[inline(always)]
fn connect(
    ctx: &SockAddrContext,
    destination: &SockAddr,
    set_destination: impl FnOnce(&SockAddr),
) -> Verdict {
    // SAFETY: a field of the context.
    if unsafe { (*ctx.sock_addr).protocol } != TCP {
        return Verdict::ALLOW;
    }
    // SAFETY: only the daemon removes entries; if the kernel reuses the value meanwhile, it belongs to another
    // endpoint of this node, and at worst that endpoint's flags apply to one probe.
    let Some(endpoint) = (unsafe { ENDPOINTS.get(destination) }).copied() else {
        return Verdict::ALLOW;
    };
    let Some(config) = CONFIG.get(0) else {
        return Verdict::ALLOW;
    };
    if !is_by_kubelet(ctx, config) {
        count(Counter::OtherProcess);
        return Verdict::ALLOW;
    }
    count(Counter::Seen);
    if lease_is_over(config) {
        count(Counter::NoHeartbeat);
        return Verdict::ALLOW;
    }

    let netns = endpoint.netns_id as u64;
    let handler = handler(destination, config);
    let decision = decide(
        endpoint.flags,
        is_alive(config),
        || {
            if endpoint.flags & LOCALHOST == 0 {
                listens(ctx, destination, netns)
            } else {
                listens(ctx, &loopback(destination), netns)
            }
        },
        || {
            endpoint.mesh_port != 0
                && listens(
                    ctx,
                    &SockAddr {
                        port: endpoint.mesh_port,
                        ..*destination
                    },
                    netns,
                )
        },
        || handler.is_some_and(|handler| listens(ctx, &handler, KUBELET_NETNS)),
    );
    let (verdict, what) = match (decision, handler) {
        (Decision::Redirect, Some(handler)) => {
            redirect(ctx, destination, || set_destination(&handler))
        }
        (Decision::Exempt, _) => exempt(ctx, destination, flow::exempt(endpoint.flags)),
        (Decision::Refuse, _) => (
            refuse(ctx, destination),
            "is refused: the mesh listens, the app does not",
        ),
        (Decision::Leave(LeaveReason::NoListener), _) => {
            count(Counter::NoListener);
            let what = "is unchanged: neither app nor mesh listens";
            (Verdict::ALLOW, what)
        }
        (Decision::Leave(LeaveReason::NoHeartbeat), _) => {
            count(Counter::NoHeartbeat);
            let what = "is unchanged: the handler's heartbeat is too old";
            (Verdict::ALLOW, what)
        }
        (Decision::Leave(LeaveReason::Fallback) | Decision::Redirect, _) => {
            count(Counter::Fallback);
            let what = "is unchanged: the handler does not listen";
            (Verdict::ALLOW, what)
        }
        (Decision::Leave(LeaveReason::Passed), _) => {
            (Verdict::ALLOW, "is unchanged: the app listens")
        }
    };
    log_connection(ctx, destination, what);
    verdict
}

/// Whether the kubelet connects, not another process of its cgroup, and not a process in another network
/// namespace.
#[inline(always)]
fn is_by_kubelet(ctx: &SockAddrContext, config: &Config) -> bool {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if config.kubelet_pid != 0 && pid != config.kubelet_pid {
        return false;
    }
    // SAFETY: the context, which has a socket.
    config.netns_cookie == 0 || unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } == config.netns_cookie
}

/// Redirects the connection to the handler by `set_destination`, and records its original destination. Also returns the
/// log message.
#[inline(always)]
fn redirect(
    ctx: &SockAddrContext,
    destination: &SockAddr,
    set_destination: impl FnOnce(),
) -> (Verdict, &'static str) {
    if !remember(ctx, destination, HANDLER) {
        // Leaves the connection unchanged, because the handler would reset it without the record.
        return (Verdict::ALLOW, "is unchanged: SOCKETS accepts no entry");
    }
    set_destination();
    count(Counter::Redirected);
    (Verdict::ALLOW, "goes to the handler")
}

/// Leaves the destination unchanged, and records the socket for `sock_ops`. Also returns the log message.
#[inline(always)]
fn exempt(ctx: &SockAddrContext, destination: &SockAddr, path: u32) -> (Verdict, &'static str) {
    let what = if remember(ctx, destination, path) {
        "goes to the pod, exempt from the redirect"
    } else {
        "is unchanged: SOCKETS accepts no entry"
    };
    (Verdict::ALLOW, what)
}

/// Records the socket's destination and path in `SOCKETS`.
#[inline(always)]
fn remember(ctx: &SockAddrContext, destination: &SockAddr, path: u32) -> bool {
    // SAFETY: the context, which has a socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let original = Original {
        destination: *destination,
        isn: 0,
        path,
    };
    let noted = SOCKETS.insert(cookie, original, 0).is_ok();
    if !noted {
        count(Counter::Error);
    }
    noted
}

/// Binds the socket to a loopback source address that depends on the endpoint, so that it finds a free source port whenever
/// it would have found one without the redirect. If that fails (the socket is already bound; 127.0.0.0/8 is not local), the
/// connection continues without it: the probe works, but uses up shared source ports.
#[inline(always)]
fn spread(ctx: &SockAddrContext, destination: &SockAddr) {
    let mut source = SockAddrIn {
        family: AF_INET,
        port: 0,
        address: source_v4(destination),
        zero: [0; 8],
    };
    // SAFETY: the context is valid and the address has the given size; with port 0, connect() chooses the port.
    let _ = unsafe {
        bpf_bind(
            ctx.sock_addr,
            (&raw mut source).cast::<sockaddr>(),
            size_of::<SockAddrIn>() as i32,
        )
    };
}

/// `struct sockaddr_in`.
#[repr(C)]
struct SockAddrIn {
    family: u16,
    port: u16,
    address: u32,
    zero: [u8; 8],
}

/// `AF_INET`.
const AF_INET: u16 = 2;

/// Refuses the connection like a closed port.
#[inline(always)]
fn refuse(ctx: &SockAddrContext, destination: &SockAddr) -> Verdict {
    count(Counter::Refused);
    if let Some(last) = LAST_REFUSED.get_ptr_mut(0) {
        // SAFETY: a valid map value of this CPU, where no other program runs meanwhile; the context has a socket.
        unsafe { *last = bpf_get_socket_cookie(ctx.as_ptr()) };
    }
    record_outcome(Outcome {
        destination: *destination,
        kind: outcome::REFUSED,
        after_us: 0,
        value: 0,
    });
    if has_set_retval() {
        // SAFETY: an error number in the range that the kernel accepts; the result only confirms that.
        let _ = unsafe { bpf_set_retval(REFUSED) };
    }
    Verdict::DENY
}
