//! The pins by which programs outlive their daemon, and which of several daemons owns them.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use aya::maps::{MapInfo, MapType};
use probe_handler_common::connecting::{Connecting, Tuple};
use probe_handler_common::priority::Key;
use probe_handler_common::{maps, programs};

use super::{Attached, Programs};
use crate::pins::{self, Pins};
use crate::{cgroup_programs, orphans};

/// A daemon no longer owns the pins once it has not reported for this long that it runs. It reports this every 100 ms.
const OWNER_SILENCE: Duration = Duration::from_secs(3);

impl Programs {
    /// Whether the programs, and what they need, stay loaded when this process ends.
    pub fn outlives(&self) -> bool {
        self.pins.is_some() && self.adopted
    }

    /// What could not be pinned, and why; `None` if all is pinned.
    pub fn pins_trouble(&self) -> Option<&str> {
        self.pins_failed.as_deref()
    }

    /// Replaces the pinned attachments of an earlier daemon with ours, which detaches the earlier ones. Call this
    /// once the maps of our programs are filled.
    pub fn adopt(&mut self) {
        self.adopted = true;
        if let Some(pins) = &self.pins {
            pins.remove_leftovers();
        }
        self.pin_links();
    }

    /// Removes exemptions of connections that are no longer being opened: see [`orphans`]. Call this every few seconds.
    pub fn remove_orphans(&self) {
        match orphans::remove(&self.connecting) {
            Ok(0) => {}
            Ok(removed) => tracing::info!(
                removed,
                "removed exemptions of connections whose end the programs missed"
            ),
            Err(error) => tracing::debug!(%error, "cannot search for leftover exemptions"),
        }
    }

    /// Whether another daemon maintains the rules in pods: a running daemon that has replaced our pins; or, if we have no
    /// pins, any daemon whose programs are attached beside ours. Without common pins, each daemon has its own map
    /// `CONNECTING`, and they would replace each other's rules all the time.
    pub fn another_maintains_rules(&self) -> bool {
        match &self.pins {
            Some(pins) => self.adopted && !self.has_pins(pins) && self.another_has_pins(pins),
            None => self.another_is_attached(),
        }
    }

    /// Whether the kubelet's cgroup has a program `sock_ops` that is not ours; true as long as our programs are attached
    /// to no cgroup.
    fn another_is_attached(&self) -> bool {
        let own = self.ebpf.program(programs::SOCK_OPS);
        let own = own.and_then(|program| program.info().ok());
        match (&self.cgroup, own) {
            (Some(cgroup), Some(own)) => cgroup_programs::sock_ops_of_others(cgroup, own.id()),
            _ => true,
        }
    }

    /// Pins our attachments again if the pins were removed, or if the daemon that replaced them has ended, as after an
    /// upgrade that was rolled back. Call this every few seconds.
    pub fn keep_pins(&mut self) {
        let Some(pins) = self.pins.as_ref().filter(|_| self.adopted) else {
            return;
        };
        if self.has_pins(pins) || self.another_has_pins(pins) {
            return;
        }
        if self.pins_failed.is_none() {
            tracing::warn!(
                "the pins of the kernel path belong to a daemon that has ended, or were removed: pinning again"
            );
        }
        let shared = self.pin_shared(pins);
        self.pin_all(
            shared
                .map_err(|error| ("the state that all daemons share", error))
                .err(),
        );
    }

    /// Pins new attachments, unless another running daemon owns the pins: after a restart of the kubelet, both daemons of an
    /// upgrade attach again.
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

    /// Whether another running daemon owns the pins.
    fn another_has_pins(&self, pins: &Pins) -> bool {
        let silence = self
            .connecting
            .clock
            .silence_of(&pins.path(maps::HEARTBEAT));
        // Our heartbeat may be pinned although pinning an attachment failed.
        let is_ours = self.pinned_heartbeat.is_some()
            && self.pinned_heartbeat == pins.number(maps::HEARTBEAT);
        !is_ours && pins.exist() && silence.is_some_and(|silence| silence < OWNER_SILENCE)
    }

    /// Pins the maps and the program that all daemons share, unless they are pinned already.
    fn pin_shared(&self, pins: &Pins) -> Result<(), pins::Error> {
        pins.create()?;
        if pins.number(maps::CONNECTING_PIN).is_none() {
            let _path = pins.replace(self.connecting_fd.as_fd(), maps::CONNECTING_PIN)?;
        }
        if pins.number(maps::CLASSIFY_KEY_PIN).is_none() {
            let _path = pins.replace(self.key_fd.as_fd(), maps::CLASSIFY_KEY_PIN)?;
        }
        if pins.number(programs::EXEMPT_PIN).is_none()
            && let Some(program) = self.ebpf.program(programs::EXEMPT)
            && let Ok(fd) = program.fd()
        {
            let _path = pins.replace(fd.as_fd(), programs::EXEMPT_PIN)?;
        }
        Ok(())
    }

    /// Pins the attachments once [`Programs::adopt`] was called. What can't be pinned works until this
    /// process ends.
    fn pin_links(&mut self) {
        self.pin_all(None);
    }

    /// Like [`Programs::pin_links`], after `failed` could not be pinned. Logs failures once, until pinning works
    /// again.
    fn pin_all(&mut self, failed: Option<(&str, pins::Error)>) {
        let Some(pins) = self.pins.as_ref().filter(|_| self.adopted) else {
            return;
        };
        // Pins the heartbeat first, so that the owner of the attachments is known as soon as they are pinned.
        let heartbeat = pins.replace(self.heartbeat_fd.as_fd(), maps::HEARTBEAT);
        let pinned_heartbeat = pins.number(maps::HEARTBEAT).filter(|_| heartbeat.is_ok());
        let heartbeat = heartbeat.map_err(|error| (maps::HEARTBEAT, error)).err();
        // A daemon that is killed in between leaves the attachments of one daemon, whose programs share maps.
        let beside: Vec<_> = self
            .links
            .iter()
            .map(|Attached { program, link }| (*program, pins.link_beside(link, program)))
            .collect();
        let links = beside.into_iter().filter_map(|(program, beside)| {
            let pinned = beside.and_then(|beside| pins.take_place(beside));
            pinned.map_err(|error| (program, error)).err()
        });
        let failures: Vec<_> = failed.into_iter().chain(heartbeat).chain(links).collect();
        self.pinned = failures
            .is_empty()
            .then(|| pins.number(&pins::link(programs::SOCK_OPS)))
            .flatten();
        let failures = failures.into_iter().map(|(what, error)| {
            let error = anyhow::Error::from(error);
            format!("cannot pin {what}, so it ends with this daemon: {error:#}")
        });
        let failures: Vec<String> = failures.collect();
        let first = failures.first().cloned();
        self.pinned_heartbeat = pinned_heartbeat;
        let is_reported = std::mem::replace(&mut self.pins_failed, first).is_some();
        for failure in failures.iter().filter(|_| !is_reported) {
            tracing::error!("{failure}");
        }
    }
}

/// Checks that maps pinned at the paths of those that all daemons share have their type and size.
pub(super) fn usable(pins: &Pins) -> Result<(), String> {
    let connecting = Shape {
        kind: MapType::Hash,
        key: size_of::<Tuple>(),
        value: size_of::<Connecting>(),
        entries: maps::CONNECTING_CAPACITY,
    };
    let key = Shape {
        kind: MapType::Array,
        key: size_of::<u32>(),
        value: size_of::<Key>(),
        entries: 1,
    };
    connecting.check(&pins.path(maps::CONNECTING_PIN))?;
    key.check(&pins.path(maps::CLASSIFY_KEY_PIN))
}

/// The type and size of a map.
struct Shape {
    kind: MapType,
    key: usize,
    value: usize,
    entries: u32,
}

impl Shape {
    /// Checks the map that is pinned at `path`, if there is one.
    fn check(&self, path: &Path) -> Result<(), String> {
        if !path.exists() {
            return Ok(());
        }
        let unlike = |what: &str| {
            format!(
                "{} {what}: another program or another version created it; `probe-handler cleanup` removes it",
                path.display()
            )
        };
        let info =
            MapInfo::from_pin(path).map_err(|error| unlike(&format!("is no map ({error})")))?;
        let is_ours = info.map_type().ok() == Some(self.kind)
            && info.key_size() as usize == self.key
            && info.value_size() as usize == self.value
            && info.max_entries() == self.entries;
        if is_ours {
            Ok(())
        } else {
            Err(unlike("is a map of another type or size"))
        }
    }
}
