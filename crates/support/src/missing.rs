//! Parts that the daemon serves probes without: what is missing at present, and why. The log says it once,
//! `status` for as long as it is so. Readiness does not depend on them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// A part that the daemon can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The handler: probes go their own way.
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
    /// The file of the pods as last known.
    LastKnown,
}

/// What is missing. Clones are handles to the same.
#[derive(Clone, Debug, Default)]
pub struct Missing(Arc<Mutex<BTreeMap<Part, String>>>);

/// A part that is missing, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingPart {
    /// [`Part::name`].
    pub part: String,
    /// Why, and what to do.
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
            Self::LastKnown => "pods as last known",
        }
    }
}

// === impl Missing ===

impl Missing {
    /// The part is missing because of `why`, which ends with what to do. Said in the log when it was there before.
    pub fn note(&self, part: Part, why: &str) {
        if self.note_silently(part, why) {
            tracing::warn!(
                part = part.name(),
                why,
                "a part is missing: probes are served without it"
            );
        }
    }

    /// As [`Missing::note`], without the log. Whether the part was there before.
    pub fn note_silently(&self, part: Part, why: &str) -> bool {
        self.0.lock().insert(part, why.to_owned()).is_none()
    }

    /// The part is there. Said in the log when it was missing before.
    pub fn clear(&self, part: Part) {
        if self.clear_silently(part) {
            tracing::info!(part = part.name(), "a part that was missing is there");
        }
    }

    /// As [`Missing::clear`], without the log. Whether the part was missing before.
    pub fn clear_silently(&self, part: Part) -> bool {
        self.0.lock().remove(&part).is_some()
    }

    /// All that is missing.
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
    fn a_part_is_missing_until_it_is_there() {
        let missing = Missing::default();
        let handle = missing.clone();
        assert!(missing.note_silently(Part::AdminSocket, "first"));
        assert!(!missing.note_silently(Part::AdminSocket, "second"), "known");
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
