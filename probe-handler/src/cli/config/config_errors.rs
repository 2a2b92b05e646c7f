//! The mistakes in a configuration: all of them, each with its remedy.

use std::fmt;

use super::args::NODE_NAME;

/// One wrong or missing value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Long name of the flag, without dashes.
    pub flag: &'static str,
    /// The value as given; `None` if it is missing.
    pub value: Option<String>,
    /// Why the value is invalid.
    pub reason: String,
    /// The expected value.
    pub remedy: String,
}

/// All mistakes, in the order of the flags. Not empty if returned as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// Why a value is invalid, and the expected value.
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
    /// `value` as parsed by `parse`; `None` if it is invalid, after adding the mistake.
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

    /// Adds the mistake that `flag` is required.
    pub(super) fn missing<T>(&mut self, flag: &'static str, remedy: &str) -> Option<T> {
        self.0.push(ConfigError {
            flag,
            value: None,
            reason: "required, but not set".to_owned(),
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
