//! The finding of `preflight` about one requirement.

use serde::Serialize;

/// Whether a requirement is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Met.
    Pass,
    /// Not met: the agent can run, but with reduced function.
    Warn,
    /// Not met: the agent can't run.
    Fail,
}

impl State {
    /// Name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One requirement, its state on this node, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The requirement, in a few words (`cgroup2 mounted`).
    pub requirement: String,
    /// Whether it is met.
    pub state: State,
    /// What was found on this node.
    pub found: String,
    /// What to do; empty if nothing is needed.
    pub remedy: String,
}
