//! The settings that may change while the daemon runs, in the state that `status` shows.

use serde::{Deserialize, Serialize};

/// All settings in force, and the file that they are read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsStatus {
    /// The value of `--settings`.
    pub file: Option<String>,
    /// Whether the file as it is now is in force, or does not exist and never has.
    pub loaded: bool,
    /// Milliseconds since the file was last read after a change.
    pub read_age_ms: Option<u64>,
    /// When that was, in RFC 3339.
    pub read_at: Option<String>,
    /// What is wrong with the file: then the last good settings are in force.
    pub mistakes: Vec<String>,
    /// The settings in force.
    pub values: Vec<SettingStatus>,
}

/// A setting in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingStatus {
    /// Its key in the file, and its flag's long name.
    pub name: String,
    /// Its value, as it is written in the file.
    pub value: String,
    /// What set it: `flag`, `environment`, `file` or `default`.
    pub from: String,
    /// The value in the file, if a flag or variable takes precedence over another value there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<String>,
}
