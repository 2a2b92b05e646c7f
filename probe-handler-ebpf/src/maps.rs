//! The maps, and the one global set at load.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use probe_handler_common::address::SockAddr;
use probe_handler_common::answer::Answer;
use probe_handler_common::config::Config;
use probe_handler_common::connecting::{Connecting, Tuple};
use probe_handler_common::counters::Counter;
use probe_handler_common::endpoint::EndpointValue;
use probe_handler_common::flow::{Flow, FlowKey, Original};
use probe_handler_common::heartbeat;
use probe_handler_common::maps::{
    ANSWERS_CAPACITY, CONNECTING_CAPACITY, ENDPOINTS_CAPACITY, FLOWS_CAPACITY, OUTCOMES_BYTES,
    SOCKETS_CAPACITY,
};
use probe_handler_common::outcome::Outcome;
use probe_handler_common::priority::Key;

/// Probed (address, port) pairs; written by the daemon.
#[map]
pub static ENDPOINTS: HashMap<SockAddr, EndpointValue> =
    HashMap::with_max_entries(ENDPOINTS_CAPACITY, 0);

/// Socket cookie to original destination; exists as long as the socket.
#[map]
pub static SOCKETS: LruHashMap<u64, Original> = LruHashMap::with_max_entries(SOCKETS_CAPACITY, 0);

/// A redirected connection to its original destination; exists from the handshake to accept.
#[map]
pub static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(FLOWS_CAPACITY, 0);

/// A connection that is exempt from the mesh's redirect; exists while the kubelet's socket is in SYN_SENT.
#[map]
pub static CONNECTING: HashMap<Tuple, Connecting> =
    HashMap::with_max_entries(CONNECTING_CAPACITY, 0);

/// One entry, written by the daemon: the key of the priorities that `classify` sets.
#[map]
pub static CLASSIFY_KEY: Array<Key> = Array::with_max_entries(1, 0);

/// Socket cookie to the state of a connection on the kernel path whose answer is being read.
#[map]
pub static ANSWERS: HashMap<u64, Answer> = HashMap::with_max_entries(ANSWERS_CAPACITY, 0);

/// One entry, written by the daemon.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// When the handler was last alive, by the clock of `bpf_ktime_get_ns`, written by program `heartbeat`; set
/// to `heartbeat::STOPPED` by the daemon. See `probe_handler_common::heartbeat` for its entries.
#[map]
pub static HEARTBEAT: Array<u64> = Array::with_max_entries(heartbeat::ENTRIES, 0);

/// Event counters; read by the daemon.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// The cookie of the socket that was refused last on each CPU.
#[map]
pub static LAST_REFUSED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Connections whose outcome the handler does not see; read by the daemon.
#[map]
pub static OUTCOMES: RingBuf = RingBuf::with_byte_size(OUTCOMES_BYTES, 0);

/// Set at load. The verifier treats it as constant and removes the branch not taken, so that the same
/// object loads on kernels without `bpf_set_retval`.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u8 = 0;

/// Whether `bpf_set_retval` may be called.
#[inline(always)]
pub fn has_set_retval() -> bool {
    // SAFETY: a static of this program; volatile, because loading the object replaces its value.
    unsafe { core::ptr::read_volatile(&raw const HAS_SET_RETVAL) != 0 }
}

/// Records the outcome of a connection for the daemon. If the buffer is full, the record is lost. Waking the daemon would
/// take several times as long as everything else, so the daemon polls.
#[inline(always)]
pub fn record_outcome(outcome: Outcome) {
    let _ = OUTCOMES.output::<Outcome>(outcome, BPF_RB_NO_WAKEUP.into());
}

/// Counts one event on this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a valid per-CPU map value; if programs interrupt one another on a CPU, at most a
        // count is lost.
        unsafe { *value += 1 };
    }
}
