//! The handler's heartbeat.
//!
//! The programs compare it with their own clock, which user space can't read: in a time namespace
//! (time_namespaces(7)) the clocks differ. So a program writes the heartbeat's time: it is the filter of a socket to
//! which the handler sends an empty datagram, and drops the datagram.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use aya::programs::ProgramError;
use parking_lot::Mutex;
use probe_handler_common::heartbeat::{BEAT, CLOCK, LEASE, STOPPED};

use serve::pulse::Pulse;

/// Map `HEARTBEAT`, and the socket that triggers its program.
pub struct Heartbeat {
    map: Mutex<Array<MapData, u64>>,
    sender: UnixDatagram,
    /// The program is attached to this socket.
    _receiver: UnixDatagram,
}

impl Heartbeat {
    /// A heartbeat that is stored in map `HEARTBEAT`. `attach` must attach the program as the filter of the
    /// given socket.
    ///
    /// # Errors
    /// Those of socketpair(2); those of `attach`.
    pub(super) fn new(
        map: Array<MapData, u64>,
        attach: impl FnOnce(&UnixDatagram) -> Result<(), ProgramError>,
    ) -> Result<Self, ProgramError> {
        let (sender, receiver) = UnixDatagram::pair()?;
        // Non-blocking, so that the handler never waits for a reader if the program lets a datagram pass.
        sender.set_nonblocking(true)?;
        attach(&receiver)?;
        Ok(Self {
            map: Mutex::new(map),
            sender,
            _receiver: receiver,
        })
    }
}

impl Heartbeat {
    /// The time since the daemon that pinned its map at `path` last showed that it runs, or nothing if that can't be read.
    pub(super) fn silence_of(&self, path: &Path) -> Option<Duration> {
        let map = MapData::from_pin(path).ok()?;
        let map: Array<MapData, u64> = Map::Array(map).try_into().ok()?;
        let last = map.get(&LEASE, 0).ok()?;
        let now = self.now().ok()?;
        Some(Duration::from_nanos(now.saturating_sub(last)))
    }

    /// The current time of the programs' clock, in nanoseconds.
    ///
    /// # Errors
    /// Those of send(2) and bpf(2).
    pub fn now(&self) -> io::Result<u64> {
        let map = self.map.lock();
        // The program has run by the time `send` returns.
        let _ = self.sender.send(&[0])?;
        map.get(&CLOCK, 0).map_err(io::Error::other)
    }
}

impl Pulse for Heartbeat {
    fn beat(&self) {
        if let Err(error) = self.sender.send(&[]) {
            tracing::debug!(%error, "cannot send the heartbeat");
        }
    }

    fn live(&self) {
        if let Err(error) = self.sender.send(&[0; 2]) {
            tracing::debug!(%error, "cannot report that the daemon runs");
        }
    }

    fn stop(&self) {
        if let Err(error) = self.map.lock().set(BEAT, STOPPED, 0) {
            tracing::debug!(%error, "cannot stop the heartbeat: it expires after its timeout");
        }
    }
}
