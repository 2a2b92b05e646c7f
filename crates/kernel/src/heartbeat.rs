//! The handler's heartbeat.
//!
//! The programs compare it with their own clock, which user space can't read: in a time namespace
//! (time_namespaces(7)) its clocks differ. So a program stamps the heartbeat: it is the filter of a socket to which the
//! handler sends an empty datagram, and drops it.

use std::io;
use std::os::unix::net::UnixDatagram;

use aya::maps::{Array, MapData};
use aya::programs::ProgramError;
use parking_lot::Mutex;
use probe_handler_common::heartbeat::{BEAT, CLOCK, STOPPED};

use serve::pulse::Pulse;

/// `HEARTBEAT`, and the way to its program.
pub struct Heartbeat {
    map: Mutex<Array<MapData, u64>>,
    sender: UnixDatagram,
    /// The program hangs on it.
    _receiver: UnixDatagram,
}

impl Heartbeat {
    /// For the map `HEARTBEAT`. `attach` is to make the program the filter of the socket that it is given.
    ///
    /// # Errors
    /// Those of socketpair(2); those of `attach`.
    pub(super) fn new(
        map: Array<MapData, u64>,
        attach: impl FnOnce(&UnixDatagram) -> Result<(), ProgramError>,
    ) -> Result<Self, ProgramError> {
        let (sender, receiver) = UnixDatagram::pair()?;
        // Should the program ever let a datagram pass, the handler does not wait for a reader.
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
    /// The programs' clock, nanoseconds.
    ///
    /// # Errors
    /// Those of send(2); the kernel's.
    pub fn now(&self) -> io::Result<u64> {
        let map = self.map.lock();
        // The program has run by the time in which the datagram has been sent, or dropped.
        let _ = self.sender.send(&[0])?;
        map.get(&CLOCK, 0).map_err(io::Error::other)
    }
}

impl Pulse for Heartbeat {
    fn beat(&self) {
        if let Err(error) = self.sender.send(&[]) {
            tracing::debug!(%error, "the heartbeat cannot be sent");
        }
    }

    fn stop(&self) {
        if let Err(error) = self.map.lock().set(BEAT, STOPPED, 0) {
            tracing::debug!(%error, "the heartbeat cannot be stopped: it ends by its age");
        }
    }
}
