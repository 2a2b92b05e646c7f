//! The eBPF maps, as the daemon uses them.

use std::borrow::BorrowMut;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf};
use parking_lot::Mutex;
use probe_handler_common::address::SockAddr;
use probe_handler_common::config::Config;
use probe_handler_common::connecting::{Connecting, Tuple, trial_since};
use probe_handler_common::counters::Counter;
use probe_handler_common::endpoint::EndpointValue;
use probe_handler_common::flow::{Flow, FlowKey};
use probe_handler_common::outcome::{self, Outcome};
use reconcile::{EndpointWriter, WriteError};

use serve::flows::{AcceptedFlow, ConnectionId, Flows};

use crate::heartbeat::Heartbeat;

/// `ENDPOINTS`.
pub struct EndpointMap(pub(super) HashMap<MapData, SockAddr, EndpointValue>);

impl EndpointWriter for EndpointMap {
    fn put(&mut self, address: SocketAddr, value: EndpointValue) -> Result<(), WriteError> {
        let put = self.0.insert(SockAddr::from(address), value, 0);
        put.map_err(refused)
    }

    fn take(&mut self, address: SocketAddr) -> Result<(), WriteError> {
        let taken = remove(&mut self.0, &SockAddr::from(address));
        taken.map(|_| ()).map_err(refused)
    }
}

/// `FLOWS`.
pub struct FlowMap(pub(super) Mutex<HashMap<MapData, FlowKey, Flow>>);

impl Flows for FlowMap {
    fn take(&self, connection: ConnectionId) -> Option<AcceptedFlow> {
        let key = FlowKey {
            client: SockAddr::from(connection.peer),
            isn: connection.isn,
        };
        let mut map = self.0.lock();
        let flow = map.get(&key, 0).ok()?;
        // A flow may be used only once, so one that can't be removed is not used at all.
        if !remove(&mut *map, &key).unwrap_or(false) {
            return None;
        }
        Some(AcceptedFlow {
            original: flow.original.into(),
            closed: flow.closed != 0,
        })
    }
}

/// `CONNECTING`.
pub struct ConnectingMap {
    pub(super) map: Mutex<HashMap<MapData, Tuple, Connecting>>,
    /// Reads the programs' clock.
    pub(super) clock: Arc<Heartbeat>,
}

impl ConnectingMap {
    /// Exempts a connection of the daemon until [`ConnectingMap::forget`], at most for the duration of a trial.
    ///
    /// # Errors
    /// Those of the kernel, for example if the map is full.
    pub fn record(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<()> {
        let entry = Connecting {
            cookie: 0,
            since_ns: trial_since(self.clock.now()?),
            arrived: 0,
        };
        let inserted = self.map.lock().insert(tuple(source, destination), entry, 0);
        inserted.map_err(io::Error::other)
    }

    /// Ends the exemption of a connection; returns whether its SYN matched the rules in a pod.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn forget(&self, source: SocketAddr, destination: SocketAddr) -> Result<bool, MapError> {
        let tuple = tuple(source, destination);
        let mut map = self.map.lock();
        let arrived = map.get(&tuple, 0).is_ok_and(|entry| entry.arrived != 0);
        remove(&mut *map, &tuple).map(|_| arrived)
    }

    /// Up to `most` entries of sockets that began to connect longer than `age` ago.
    ///
    /// # Errors
    /// Those of the programs' clock.
    pub(super) fn older_than(&self, age: Duration, most: usize) -> io::Result<Vec<OldEntry>> {
        let map = self.map.lock();
        let now = self.clock.now()?;
        let entries = map.iter().filter_map(Result::ok);
        let old = entries.filter(|(_, entry)| {
            let since = Duration::from_nanos(now.saturating_sub(entry.since_ns));
            entry.cookie != 0 && since > age
        });
        Ok(old
            .take(most)
            .map(|(tuple, entry)| OldEntry { tuple, entry })
            .collect())
    }

    /// Removes an entry, unless another connection has replaced it; returns whether it did.
    pub(super) fn remove_unchanged(&self, old: &OldEntry) -> bool {
        let mut map = self.map.lock();
        let is_same = map
            .get(&old.tuple, 0)
            .is_ok_and(|entry| entry.cookie == old.entry.cookie);
        is_same && remove(&mut *map, &old.tuple).unwrap_or(false)
    }

    /// Ends the exemption of all connections.
    pub(super) fn clear(&self) {
        let mut map = self.map.lock();
        let tuples: Vec<Tuple> = map.keys().filter_map(Result::ok).collect();
        for tuple in tuples {
            if let Err(error) = remove(&mut *map, &tuple) {
                tracing::debug!(%error, "cannot remove an entry of CONNECTING: it stays until it expires");
            }
        }
    }

    /// The connections that are currently exempt.
    pub fn connections(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let map = self.map.lock();
        let tuples = map.keys().filter_map(Result::ok);
        tuples
            .map(|tuple| (tuple.source.into(), tuple.destination.into()))
            .collect()
    }
}

/// An entry of `CONNECTING` as it was read.
pub(super) struct OldEntry {
    tuple: Tuple,
    entry: Connecting,
}

impl OldEntry {
    /// Source and destination of the connection.
    pub(super) fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.tuple.source.into(), self.tuple.destination.into())
    }
}

fn tuple(source: SocketAddr, destination: SocketAddr) -> Tuple {
    Tuple {
        source: source.into(),
        destination: destination.into(),
    }
}

/// `CONFIG`. Each change writes the whole configuration.
#[derive(Clone)]
pub struct ProgramConfig(pub(super) Arc<Mutex<(Config, Array<MapData, Config>)>>);

impl ProgramConfig {
    /// Changes the configuration of the programs.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn update(&self, change: impl FnOnce(&mut Config)) -> Result<(), MapError> {
        let mut guard = self.0.lock();
        let (config, map) = &mut *guard;
        change(config);
        map.set(0, *config, 0)
    }
}

/// `COUNTERS`.
pub struct CounterMap(pub(super) PerCpuArray<MapData, u64>);

impl CounterMap {
    /// Sums over all CPUs, by [`Counter`]; 0 for a counter that can't be read.
    pub fn read(&self) -> [u64; Counter::COUNT as usize] {
        Counter::ALL.map(|counter| {
            self.0
                .get(&(counter as u32), 0)
                .map(|values| values.iter().sum())
                .unwrap_or_default()
        })
    }
}

/// `OUTCOMES`. The programs do not wake the reader, because the kubelet would wait for that: poll the ring buffer.
#[derive(Clone)]
pub struct OutcomeRing(Arc<Mutex<RingBuf<MapData>>>);

/// The outcome of a connection that the handler did not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionOutcome {
    /// A program refused it.
    Refused,
    /// On the kernel path: it was established after this time.
    Established(Duration),
    /// On the kernel path: it was refused, or the kubelet gave up, after this time.
    Ended(Duration),
    /// On the kernel path: it was established. After this time program `answer` had read the answer, or found
    /// that it shows no result.
    Answered(Answer, Duration),
}

/// What the answer on a connection shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The HTTP status code.
    Http(u16),
    /// The `ServingStatus` of grpc.health.v1.
    Grpc(u32),
    /// The gRPC call failed.
    GrpcFailed,
    /// The answer is not of the probe's protocol.
    Invalid,
    /// The app closed the connection before its answer was complete.
    Closed,
    /// The kubelet closed the connection before the app's answer was complete.
    GivenUp,
    /// The answer is not one that the programs read.
    Unread,
}

impl OutcomeRing {
    pub(super) fn new(records: RingBuf<MapData>) -> Self {
        Self(Arc::new(Mutex::new(records)))
    }

    /// The outcomes since the last call, oldest first, with the endpoints to which the kubelet connected.
    pub fn take(&self) -> Vec<(SocketAddr, ConnectionOutcome)> {
        let mut records = self.0.lock();
        let mut outcomes = Vec::new();
        while let Some(record) = records.next() {
            outcomes.extend(Outcome::read(&record).and_then(read_outcome));
        }
        outcomes
    }
}

fn read_outcome(record: Outcome) -> Option<(SocketAddr, ConnectionOutcome)> {
    let after = Duration::from_micros(record.after_us.into());
    let outcome = match record.kind {
        outcome::REFUSED => ConnectionOutcome::Refused,
        outcome::ESTABLISHED => ConnectionOutcome::Established(after),
        outcome::ENDED => ConnectionOutcome::Ended(after),
        kind => ConnectionOutcome::Answered(read_answer(kind, record.value)?, after),
    };
    Some((record.destination.into(), outcome))
}

fn read_answer(kind: u32, value: u32) -> Option<Answer> {
    let answer = match kind {
        outcome::HTTP_STATUS => Answer::Http(value.try_into().ok()?),
        outcome::GRPC_STATUS => Answer::Grpc(value),
        outcome::GRPC_FAILED => Answer::GrpcFailed,
        outcome::INVALID => Answer::Invalid,
        outcome::CLOSED => Answer::Closed,
        outcome::GIVEN_UP => Answer::GivenUp,
        outcome::UNREAD => Answer::Unread,
        _ => return None,
    };
    Some(answer)
}

fn refused(error: MapError) -> WriteError {
    WriteError(Box::new(error))
}

/// Removes `key`; returns false if it did not exist.
fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<impl BorrowMut<MapData>, K, V>,
    key: &K,
) -> Result<bool, MapError> {
    match map.remove(key) {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(MapError::SyscallError(error)) if is_not_found(&error.io_error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_not_found(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}
