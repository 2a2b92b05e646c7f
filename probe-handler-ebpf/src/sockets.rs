//! Tracks a socket that connects to an endpoint: from its SYN, through getpeername(), to its close.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock,
};
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use probe_handler_common::address::SockAddr;
use probe_handler_common::answer::{Answer, FIRST_FRAME, PART, STATUS_LINE, ended};
use probe_handler_common::connecting::{Connecting, Tuple};
use probe_handler_common::counters::Counter;
use probe_handler_common::flow::{
    EXEMPT_GRPC, EXEMPT_HTTP, Flow, FlowKey, HANDLER, Original, key_of_ends,
};
use probe_handler_common::outcome::{ENDED, ESTABLISHED, Outcome};

use crate::connect::{handler, set_user_address4, set_user_address6, user_address4, user_address6};
use crate::log::log_connection;
use crate::maps::{
    ANSWERS, CONFIG, CONNECTING, FLOWS, LAST_REFUSED, SOCKETS, count, record_outcome,
};

/// `IPPROTO_MPTCP`.
const MPTCP: u32 = 262;
/// `AF_INET`.
const AF_INET: u32 = 2;
/// `BPF_TCP_ESTABLISHED`.
const TCP_ESTABLISHED: u32 = 1;
/// `BPF_TCP_SYN_SENT` of include/uapi/linux/bpf.h.
const TCP_SYN_SENT: u32 = 2;
/// `BPF_TCP_FIN_WAIT1`.
const TCP_FIN_WAIT1: u32 = 4;
/// `BPF_TCP_CLOSE`.
const TCP_CLOSE: u32 = 7;

/// `sockops`.
#[inline(always)]
pub fn on_event(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => on_connect(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => on_established(ctx),
        BPF_SOCK_OPS_STATE_CB => {
            match ctx.arg(0) {
                TCP_SYN_SENT => on_answer(ctx),
                TCP_ESTABLISHED => on_end(ctx),
                _ => {}
            }
            if ctx.arg(1) == TCP_CLOSE {
                on_close(ctx);
            }
        }
        _ => {}
    }
}

/// Runs before the SYN is sent.
#[inline(always)]
fn on_connect(ctx: &SockOpsContext) {
    // SAFETY: the context, which has a socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: the key is this socket, which is connecting: no other program removes the entry now.
    let Some(original) = (unsafe { SOCKETS.get(cookie) }).copied() else {
        count_if_refused(cookie);
        return;
    };
    let remote = remote(ctx);
    let as_decided = if original.path == HANDLER {
        is_to_handler(&remote, &original)
    } else {
        is_same(&remote, &original.destination)
    };
    if !as_decided {
        // The entry belongs to an earlier, failed attempt of this socket, which now connects to another address.
        let _ = SOCKETS.remove(cookie);
        return;
    }
    // Without the state callback the end of the connection is missed, and the entries stay until they expire.
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    let end_is_seen = ctx.set_cb_flags(flags as i32).is_ok();
    if !end_is_seen {
        count(Counter::Error);
        log_connection(
            ctx,
            &original.destination,
            "is connecting, but its end will be missed",
        );
    }
    // An exemption that is not removed could apply to a later connection of another process.
    if original.path != HANDLER && end_is_seen {
        record(ctx, remote, cookie);
    }
}

/// Counts a connection that was refused and is opened anyway. Program connect4 or connect6 has run in the same system call; if
/// the kubelet's thread has moved to another CPU since then, the connection is not counted.
#[inline(always)]
fn count_if_refused(cookie: u64) {
    let Some(last) = LAST_REFUSED.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a valid map value of this CPU, where no other program runs meanwhile.
    unsafe {
        if *last == cookie {
            *last = 0;
            count(Counter::RefusalUndone);
        }
    }
}

/// Records the connection in `CONNECTING`, so that program `exempt` recognizes its SYN in the pod.
#[inline(always)]
fn record(ctx: &SockOpsContext, destination: SockAddr, cookie: u64) {
    let tuple = Tuple {
        source: local(ctx),
        destination,
    };
    let entry = Connecting {
        cookie,
        // SAFETY: the clock is only read.
        since_ns: unsafe { bpf_ktime_get_ns() },
        arrived: 0,
    };
    if CONNECTING.insert(tuple, entry, 0).is_ok() {
        count(Counter::Recorded);
    } else {
        count(Counter::Error);
        log_connection(
            ctx,
            &tuple.destination,
            "is not exempt from the redirect: CONNECTING accepts no entry",
        );
    }
}

/// Ends the exemption when the socket leaves SYN_SENT, because the SYN was answered, refused or given up, and records
/// the outcome.
#[inline(always)]
fn on_answer(ctx: &SockOpsContext) {
    // SAFETY: the context, which has a socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: the key is this socket, whose state is changing: no other program removes the entry now.
    let Some(original) = (unsafe { SOCKETS.get(cookie) }).copied() else {
        return;
    };
    if original.path == HANDLER {
        return;
    }
    let _ = SOCKETS.remove(cookie);
    let tuple = Tuple {
        source: local(ctx),
        destination: original.destination,
    };
    // SAFETY: only events of this socket write its entry.
    let Some(entry) = (unsafe { CONNECTING.get(tuple) }).copied() else {
        return;
    };
    if entry.cookie != cookie {
        return;
    }
    let _ = CONNECTING.remove(tuple);
    let is_established = ctx.arg(1) == TCP_ESTABLISHED;
    if is_established && await_answer(ctx, cookie, &original, entry.since_ns) {
        return;
    }
    record_outcome(Outcome {
        destination: original.destination,
        kind: if is_established { ESTABLISHED } else { ENDED },
        // SAFETY: the clock is only read.
        after_us: Outcome::after_us(entry.since_ns, unsafe { bpf_ktime_get_ns() }),
        value: 0,
    });
}

/// Makes program `answer` read the app's answer, if the probe's result depends on it. Returns whether it does so.
#[inline(always)]
fn await_answer(ctx: &SockOpsContext, cookie: u64, original: &Original, since_ns: u64) -> bool {
    let expected = match original.path {
        EXEMPT_HTTP => STATUS_LINE,
        EXEMPT_GRPC => FIRST_FRAME,
        _ => return false,
    };
    if CONFIG.get(0).is_none_or(|config| config.reads_answers == 0) {
        return false;
    }
    let answer = Answer {
        destination: original.destination,
        // Only the SYN of the app's side has been received, so this is its first byte.
        next: received(ctx),
        since_ns,
        expected,
        skip: 0,
        have: 0,
        part: [0; PART],
    };
    let is_awaited = ANSWERS.insert(cookie, answer, 0).is_ok();
    if !is_awaited {
        count(Counter::Error);
    }
    is_awaited
}

/// Runs when the connection begins to end. If its answer is still awaited, records which side has ended it.
#[inline(always)]
fn on_end(ctx: &SockOpsContext) {
    // SAFETY: the context, which has a socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: only program `answer` and the end of this socket remove the entry; if the kernel reuses the value meanwhile,
    // the removal below fails.
    let Some(answer) = (unsafe { ANSWERS.get(cookie) }).copied() else {
        return;
    };
    if ANSWERS.remove(cookie).is_err() {
        return;
    }
    record_outcome(Outcome {
        destination: answer.destination,
        kind: ended(answer.next, received(ctx), ctx.arg(1) == TCP_FIN_WAIT1),
        // SAFETY: the clock is only read.
        after_us: Outcome::after_us(answer.since_ns, unsafe { bpf_ktime_get_ns() }),
        value: 0,
    });
}

/// Runs after the handler's side has answered the SYN, and before the final ACK of the handshake is sent: the handler can't
/// have accepted the connection yet, because that ACK creates its socket. So the flow exists before the handler looks it
/// up.
#[inline(always)]
fn on_established(ctx: &SockOpsContext) {
    // SAFETY: the context, which has a socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let Some(original) = SOCKETS.get_ptr_mut(cookie) else {
        return;
    };
    // SAFETY: a valid map value.
    if unsafe { (*original).path } != HANDLER {
        return;
    }
    // Only the SYN has been acknowledged, so this is the initial sequence number.
    // SAFETY: a field of the context.
    let isn = unsafe { (*ctx.ops).snd_una }.wrapping_sub(1);
    let flow = Flow {
        // SAFETY: a valid map value; the key is this socket, so no other program writes the entry.
        original: unsafe {
            (*original).isn = isn;
            (*original).destination
        },
        closed: 0,
        cookie,
    };
    let key = FlowKey {
        client: local(ctx),
        isn,
    };
    if FLOWS.insert(key, flow, 0).is_err() {
        count(Counter::Error);
        log_connection(
            ctx,
            &flow.original,
            "goes to the handler, which will reset it: FLOWS accepts no entry",
        );
    }
    // For getpeername() only: without it, a Multipath TCP socket returns the handler's address. The last access to the map,
    // because it may replace the entry to which `original` points.
    let copy = Original {
        destination: flow.original,
        isn,
        path: HANDLER,
    };
    let _ = SOCKETS.insert(key_of_ends(&key.client, remote(ctx).port), copy, 0);
}

/// Marks the flow when the kubelet's socket is closed: if the handler has not taken it yet, it is usable only for the
/// verdict of a TCP probe, because the kubelet no longer waits for any other answer.
#[inline(always)]
fn on_close(ctx: &SockOpsContext) {
    // SAFETY: the context, which has a socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: the key is this socket, which is closing: no other program removes the entry now.
    let Some(original) = (unsafe { SOCKETS.get(cookie) }).copied() else {
        return;
    };
    let _ = SOCKETS.remove(cookie);
    let _ = SOCKETS.remove(key_of_ends(&local(ctx), remote(ctx).port));
    let key = FlowKey {
        client: local(ctx),
        isn: original.isn,
    };
    if let Some(flow) = FLOWS.get_ptr_mut(key) {
        // SAFETY: a valid map value; the daemon only reads and removes it.
        unsafe { (*flow).closed = 1 };
    }
}

/// `cgroup/getpeername4`: returns the pod's address instead of the handler's.
#[inline(always)]
pub fn peer_name4(ctx: &SockAddrContext) {
    let peer = user_address4(ctx);
    let original = original_of(ctx, &peer, |socket| {
        // SAFETY: a field of the context's socket.
        let ip = unsafe { core::ptr::read_volatile(&raw const (*socket).src_ip4) };
        SockAddr::v4(ip, source_port(socket))
    });
    if let Some(original) = original {
        set_user_address4(ctx, &original.destination);
    }
}

/// `cgroup/getpeername6`: returns the pod's address instead of the handler's.
#[inline(always)]
pub fn peer_name6(ctx: &SockAddrContext) {
    let peer = user_address6(ctx);
    let original = original_of(ctx, &peer, |socket| {
        // SAFETY: a field of the context's socket; each word is read separately, as the verifier requires.
        let ip = unsafe { words(&raw const (*socket).src_ip6) };
        SockAddr::v6(ip, source_port(socket))
    });
    if let Some(original) = original {
        set_user_address6(ctx, &original.destination);
    }
}

#[inline(always)]
fn source_port(socket: *const bpf_sock) -> u16 {
    // SAFETY: a field of the context's socket, in host byte order.
    unsafe { core::ptr::read_volatile(&raw const (*socket).src_port) as u16 }
}

/// The original destination of the context's socket, whose real peer is `peer`; `own` reads its local address.
#[inline(always)]
fn original_of(
    ctx: &SockAddrContext,
    peer: &SockAddr,
    own: impl FnOnce(*const bpf_sock) -> SockAddr,
) -> Option<Original> {
    // SAFETY: the context, which has a socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: a field of the context.
    let key = match unsafe { (*ctx.sock_addr).protocol } {
        // SAFETY: the socket is not null in programs of this type.
        MPTCP => key_of_ends(
            &own(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }),
            peer.port,
        ),
        _ => cookie,
    };
    // SAFETY: the key is this socket's, which stays open during getpeername().
    let original = unsafe { SOCKETS.get(key) }.copied()?;
    is_to_handler(peer, &original).then_some(original)
}

#[inline(always)]
fn is_to_handler(peer: &SockAddr, original: &Original) -> bool {
    let Some(config) = CONFIG.get(0) else {
        return false;
    };
    let Some(handler) = handler(&original.destination, config) else {
        return false;
    };
    is_same(&handler, peer)
}

/// Compares field by field, because the derived implementation calls memcmp.
#[inline(always)]
fn is_same(one: &SockAddr, other: &SockAddr) -> bool {
    one.port == other.port
        && one.ip[0] == other.ip[0]
        && one.ip[1] == other.ip[1]
        && one.ip[2] == other.ip[2]
        && one.ip[3] == other.ip[3]
}

/// The sequence number up to which the socket has received.
#[inline(always)]
fn received(ctx: &SockOpsContext) -> u32 {
    // SAFETY: a field of the context.
    unsafe { (*ctx.ops).rcv_nxt }
}

/// The kubelet's end of the connection.
#[inline(always)]
fn local(ctx: &SockOpsContext) -> SockAddr {
    let port = ctx.local_port() as u16;
    if ctx.family() == AF_INET {
        return SockAddr::v4(ctx.local_ip4(), port);
    }
    // SAFETY: a field of the context; each word is read separately, as the verifier requires.
    SockAddr::v6(unsafe { words(&raw const (*ctx.ops).local_ip6) }, port)
}

/// The other end. `remote_port` is in network byte order in the high half (include/uapi/linux/bpf.h).
#[inline(always)]
fn remote(ctx: &SockOpsContext) -> SockAddr {
    let port = u32::from_be(ctx.remote_port()) as u16;
    if ctx.family() == AF_INET {
        return SockAddr::v4(ctx.remote_ip4(), port);
    }
    // SAFETY: a field of the context; each word is read separately, as the verifier requires.
    SockAddr::v6(unsafe { words(&raw const (*ctx.ops).remote_ip6) }, port)
}

/// Reads four words of the context, one by one.
///
/// # Safety
/// `field` must be a field of a valid context.
#[inline(always)]
unsafe fn words(field: *const [u32; 4]) -> [u32; 4] {
    let field = field.cast::<u32>();
    // SAFETY: four words, as the caller guarantees.
    unsafe {
        [
            core::ptr::read_volatile(field),
            core::ptr::read_volatile(field.add(1)),
            core::ptr::read_volatile(field.add(2)),
            core::ptr::read_volatile(field.add(3)),
        ]
    }
}
