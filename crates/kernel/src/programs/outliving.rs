//! The pins by which programs outlive their daemon, and which of several daemons has them.

use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::{MapInfo, MapType};
use probe_handler_common::connecting::{Connecting, Tuple};
use probe_handler_common::{maps, programs};

use super::{Attached, Programs};
use crate::pins::{self, Pins};

/// A daemon that has not shown for this long that it runs does not own the pins any more. A daemon shows it every 100 ms.
const OWNER_SILENCE: Duration = Duration::from_secs(3);

impl Programs {
    /// Whether programs, and what they need, stay when this process ends.
    pub fn outlives(&self) -> bool {
        self.pins.is_some() && self.adopted
    }

    /// Puts our attachments into the place of those that an earlier daemon has left behind, which end by that. To be
    /// called when our programs know all that is to be known.
    pub fn adopt(&mut self) {
        self.adopted = true;
        self.pin_links();
    }

    /// Takes the pins back from a daemon that took them and runs no more, as after an upgrade that was undone; also if they
    /// were removed. To be called every few seconds.
    pub fn keep_pins(&mut self) {
        let Some(pins) = self.pins.as_ref().filter(|_| self.adopted) else {
            return;
        };
        if self.has_pins(pins) || self.another_has_pins(pins) {
            return;
        }
        if !self.pins_failed {
            tracing::warn!(
                "the pins of the kernel path are of a daemon that does not run any more, or were removed: pinning again"
            );
        }
        let shared = self.pin_shared(pins);
        self.pin_all(
            shared
                .map_err(|error| ("what all daemons share", error))
                .err(),
        );
    }

    /// Pins new attachments, unless another daemon that runs has the pins: after a restart of the kubelet both of two daemons
    /// attach again.
    pub(super) fn pin_new_links(&mut self) {
        let another = |pins: &Pins| !self.has_pins(pins) && self.another_has_pins(pins);
        if self.adopted && !self.pins.as_ref().is_some_and(another) {
            self.pin_links();
        }
    }

    /// Whether the pins are those of our attachments.
    fn has_pins(&self, pins: &Pins) -> bool {
        self.pinned.is_some() && self.pinned == pins.number(&pins::link(programs::SOCK_OPS))
    }

    /// Whether another daemon that runs has the pins.
    fn another_has_pins(&self, pins: &Pins) -> bool {
        let silence = self
            .connecting
            .clock
            .silence_of(&pins.path(maps::HEARTBEAT));
        pins.are_there() && silence.is_some_and(|silence| silence < OWNER_SILENCE)
    }

    /// Pins the map and the program that all daemons share, where there are none.
    fn pin_shared(&self, pins: &Pins) -> Result<(), pins::Error> {
        pins.make()?;
        if pins.number(maps::CONNECTING_PIN).is_none() {
            let _path = pins.replace(self.connecting_fd.as_fd(), maps::CONNECTING_PIN)?;
        }
        if pins.number(programs::EXEMPT).is_none()
            && let Some(program) = self.ebpf.program(programs::EXEMPT)
            && let Ok(fd) = program.fd()
        {
            let _path = pins.replace(fd.as_fd(), programs::EXEMPT)?;
        }
        Ok(())
    }

    /// Pins the attachments, if it is our turn. What can't be pinned works for as long as we live.
    fn pin_links(&mut self) {
        self.pin_all(None);
    }

    /// As [`Programs::pin_links`], after `failed` could not be pinned. Logs failures once, until pinning works again.
    fn pin_all(&mut self, failed: Option<(&str, pins::Error)>) {
        let Some(pins) = self.pins.as_ref().filter(|_| self.adopted) else {
            return;
        };
        // The heartbeat first, so that the owner of the attachments is known as soon as they are there.
        let heartbeat = pins.replace(self.heartbeat_fd.as_fd(), maps::HEARTBEAT);
        let heartbeat = heartbeat.map_err(|error| (maps::HEARTBEAT, error)).err();
        let links = self.links.iter().filter_map(|Attached { program, link }| {
            let pinned = pins.replace_link(link, program);
            pinned.map_err(|error| (*program, error)).err()
        });
        let failures: Vec<_> = failed.into_iter().chain(heartbeat).chain(links).collect();
        self.pinned = failures
            .is_empty()
            .then(|| pins.number(&pins::link(programs::SOCK_OPS)))
            .flatten();
        let is_reported = std::mem::replace(&mut self.pins_failed, !failures.is_empty());
        for (what, error) in failures.into_iter().filter(|_| !is_reported) {
            let error = anyhow::Error::from(error);
            tracing::error!("cannot pin {what}, which ends with this daemon: {error:#}");
        }
    }
}

/// Checks that a map pinned at the path of `CONNECTING` has its type and size.
pub(super) fn usable(pins: &Pins) -> Result<(), String> {
    let path = pins.path(maps::CONNECTING_PIN);
    if !path.exists() {
        return Ok(());
    }
    let unlike = |what: &str| {
        format!(
            "{} {what}: another program's, or left by another version; `probe-handler cleanup` removes it",
            path.display()
        )
    };
    let info = MapInfo::from_pin(&path).map_err(|error| unlike(&format!("is no map ({error})")))?;
    let is_ours = info.map_type().ok() == Some(MapType::Hash)
        && info.key_size() as usize == size_of::<Tuple>()
        && info.value_size() as usize == size_of::<Connecting>()
        && info.max_entries() == maps::CONNECTING_CAPACITY;
    if is_ours {
        Ok(())
    } else {
        Err(unlike("is a map of another shape"))
    }
}
