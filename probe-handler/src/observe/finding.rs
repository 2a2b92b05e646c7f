//! What a preflight found about one requirement.

use serde::Serialize;

/// Whether a requirement is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Met.
    Pass,
    /// The agent runs, with less than it could do.
    Warn,
    /// The agent can't run.
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

/// One requirement, what was found, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is needed, in a few words (`cgroup2 mounted`).
    pub requirement: String,
    /// Whether it is there.
    pub state: State,
    /// What was found on this node.
    pub found: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
}
