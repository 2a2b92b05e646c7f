//! The prefix of Istio's paths of rewritten probes.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use model::ProbeKind;

/// The prefix of `/app-health/<container>/...` and `/app-lifecycle/<container>/...`: empty by default, so
/// that the paths are Istio's own. The daemon reads whole paths from the annotation, so it does not need
/// the prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix(String);

/// An invalid prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a path prefix: it must be empty or /-separated words of letters, digits, `-`, `_` and `.`, with a leading `/` and no trailing one"
)]
pub struct BadPrefix(String);

impl Prefix {
    /// The path of a rewritten probe (istio pkg/kube/inject/app_probe.go).
    pub fn path(&self, container: &str, kind: ProbeKind) -> String {
        let (directory, name) = match kind {
            ProbeKind::Liveness => ("app-health", "livez"),
            ProbeKind::Readiness => ("app-health", "readyz"),
            ProbeKind::Startup => ("app-health", "startupz"),
            ProbeKind::PostStart => ("app-lifecycle", "poststartz"),
            ProbeKind::PreStop => ("app-lifecycle", "prestopz"),
        };
        format!("{self}/{directory}/{container}/{name}")
    }
}

/// Whether a word can be a segment of a path without escapes. Every valid container name can.
pub fn is_word(word: &str) -> bool {
    !matches!(word, "" | "." | "..")
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

impl FromStr for Prefix {
    type Err = BadPrefix;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.strip_prefix('/') {
            _ if s.is_empty() => Ok(Self::default()),
            Some(words) if words.split('/').all(is_word) => Ok(Self(s.to_owned())),
            _ => Err(BadPrefix(s.to_owned())),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pods::probers::parse_path;

    #[test]
    fn the_paths_are_istios() {
        for (kind, path) in [
            (ProbeKind::Liveness, "/app-health/web/livez"),
            (ProbeKind::Readiness, "/app-health/web/readyz"),
            (ProbeKind::Startup, "/app-health/web/startupz"),
            (ProbeKind::PostStart, "/app-lifecycle/web/poststartz"),
            (ProbeKind::PreStop, "/app-lifecycle/web/prestopz"),
        ] {
            assert_eq!(Prefix::default().path("web", kind), path);
            for prefix in ["", "/a", "/a/b-c_d.e", "/app-health", "/app-health/x"] {
                let path = prefix.parse::<Prefix>().unwrap().path("web", kind);
                assert!(path.starts_with(prefix));
                assert_eq!(parse_path(&path), Some(("web", kind)), "{path}");
            }
        }
    }

    #[test]
    fn an_invalid_prefix_is_rejected() {
        for bad in [
            "/", "a", "a/b", "/a/", "//a", "/a//b", "/a b", "/a?b", "/a#", "/%61", "/..", "/a/./b",
            "/ü",
        ] {
            assert_eq!(
                bad.parse::<Prefix>(),
                Err(BadPrefix(bad.to_owned())),
                "{bad}"
            );
        }
    }
}
