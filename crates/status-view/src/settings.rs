//! The settings that may change while the daemon runs, as `status` shows them.

use serde::{Deserialize, Serialize};

/// All current settings, and the file that they are read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsStatus {
    /// The value of `--settings`.
    pub file: Option<String>,
    /// Whether the daemon uses the current content of the file, or the file has never existed.
    pub loaded: bool,
    /// Milliseconds since the file was last read after a change.
    pub read_age_ms: Option<u64>,
    /// When that was, in RFC 3339.
    pub read_at: Option<String>,
    /// The mistakes in the file. While there are any, the daemon uses the last good settings.
    pub mistakes: Vec<String>,
    /// The settings that the daemon uses.
    pub values: Vec<SettingStatus>,
}

/// A setting that the daemon uses.
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
