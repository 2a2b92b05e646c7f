//! What is wrong with a configuration: everything at once, each with what to do.

use std::fmt;

use super::args::NODE_NAME;

/// One wrong or missing value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Long name of the flag, without dashes.
    pub flag: &'static str,
    /// As given; None where it is missing.
    pub value: Option<String>,
    /// What is wrong with it.
    pub reason: String,
    /// What to give instead.
    pub remedy: String,
}

/// All of them, in the order of the flags. Not empty where it is returned as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// Why a value is wrong and what to give instead.
pub(super) struct InvalidValue {
    pub(super) reason: String,
    pub(super) remedy: String,
}

// === impl InvalidValue ===

impl InvalidValue {
    pub(super) fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}

// === impl ConfigErrors ===

impl ConfigErrors {
    /// `value` as read by `parse`; None if it is wrong, which is noted.
    pub(super) fn check<T>(
        &mut self,
        flag: &'static str,
        value: &str,
        parse: impl FnOnce(&str) -> Result<T, InvalidValue>,
    ) -> Option<T> {
        match parse(value) {
            Ok(parsed) => Some(parsed),
            Err(InvalidValue { reason, remedy }) => {
                self.0.push(ConfigError {
                    flag,
                    value: Some(value.to_owned()),
                    reason,
                    remedy,
                });
                None
            }
        }
    }

    /// Notes that `flag` is needed.
    pub(super) fn missing<T>(&mut self, flag: &'static str, remedy: &str) -> Option<T> {
        self.0.push(ConfigError {
            flag,
            value: None,
            reason: "needed, but not given".to_owned(),
            remedy: remedy.to_owned(),
        });
        None
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        let s = if count == 1 { "" } else { "s" };
        writeln!(f, "probe-handler: {count} mistake{s} in the configuration:")?;
        self.0
            .iter()
            .try_for_each(|mistake| writeln!(f, "  {mistake}"))
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variable = match self.flag {
            "node-name" => NODE_NAME.to_owned(),
            flag => format!("PROBE_HANDLER_{}", flag.replace('-', "_").to_uppercase()),
        };
        write!(f, "--{} (or {variable})", self.flag)?;
        if let Some(value) = &self.value {
            write!(f, " = {value:?}")?;
        }
        write!(f, ": {}; {}", self.reason, self.remedy)
    }
}
