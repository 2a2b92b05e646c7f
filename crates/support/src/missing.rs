//! Optional parts of the daemon: which are missing at present, and why. The log reports a missing part once,
//! `status` for as long as it is missing. Readiness does not depend on these parts.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// A part without which the daemon still serves probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The handler: without it probes are not redirected.
    Handler,
    /// The admin server over TCP.
    AdminPort,
    /// The admin server's Unix socket.
    AdminSocket,
    /// The log on standard error.
    Log,
    /// inotify on the node's cgroups.
    CgroupWatch,
    /// inotify on the directory of manifests.
    ManifestWatch,
    /// The file of the last known pods.
    LastKnown,
    /// The program that reads apps' answers on the kernel path.
    Answers,
}

/// The missing parts. Clones share the same state.
#[derive(Clone, Debug, Default)]
pub struct Missing(Arc<Mutex<BTreeMap<Part, String>>>);

/// A missing part, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingPart {
    /// [`Part::name`].
    pub part: String,
    /// The reason, and what to do.
    pub why: String,
}

// === impl Part ===

impl Part {
    /// Name in `status` and in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Handler => "handler",
            Self::AdminPort => "admin port",
            Self::AdminSocket => "admin socket",
            Self::Log => "log",
            Self::CgroupWatch => "watch on cgroups",
            Self::ManifestWatch => "watch on manifests",
            Self::LastKnown => "file of last-known pods",
            Self::Answers => "results on the kernel path",
        }
    }
}

// === impl Missing ===

impl Missing {
    /// Records that the part is missing because of `why`, which must end with the remedy. Logs it if the part was present
    /// before.
    pub fn note(&self, part: Part, why: &str) {
        if self.note_silently(part, why) {
            tracing::warn!(
                part = part.name(),
                why,
                "a part is missing: serving probes without it"
            );
        }
    }

    /// Like [`Missing::note`], but does not log. Returns whether the part was present before.
    pub fn note_silently(&self, part: Part, why: &str) -> bool {
        self.0.lock().insert(part, why.to_owned()).is_none()
    }

    /// Records that the part is present. Logs it if the part was missing before.
    pub fn clear(&self, part: Part) {
        if self.clear_silently(part) {
            tracing::info!(part = part.name(), "a missing part is available again");
        }
    }

    /// Like [`Missing::clear`], but does not log. Returns whether the part was missing before.
    pub fn clear_silently(&self, part: Part) -> bool {
        self.0.lock().remove(&part).is_some()
    }

    /// All missing parts.
    pub fn parts(&self) -> Vec<MissingPart> {
        let missing = self.0.lock();
        let parts = missing.iter().map(|(part, why)| MissingPart {
            part: part.name().to_owned(),
            why: why.clone(),
        });
        parts.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_missing_until_it_is_cleared() {
        let missing = Missing::default();
        let handle = missing.clone();
        assert!(missing.note_silently(Part::AdminSocket, "first"));
        assert!(
            !missing.note_silently(Part::AdminSocket, "second"),
            "already missing"
        );
        handle.note(Part::AdminPort, "taken");
        let expected = [("admin port", "taken"), ("admin socket", "second")];
        let shown: Vec<_> = missing
            .parts()
            .into_iter()
            .map(|part| (part.part, part.why))
            .collect();
        assert_eq!(shown, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        missing.clear(Part::AdminPort);
        missing.clear(Part::AdminSocket);
        assert!(handle.parts().is_empty());
        assert!(missing.note_silently(Part::AdminSocket, "again"));
    }
}
