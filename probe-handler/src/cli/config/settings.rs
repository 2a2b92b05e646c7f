//! Settings that can change while the daemon runs: the keys of a YAML file, which are the long names of the flags that set
//! them too. The file is valid as a whole or not at all, and all its mistakes are reported together.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command};
use model::HttpBy;
use pods::scope::{Mode, Scope};
use serde::Serialize;
use yaml::tree::{self, Document, Id, Kind};

use super::args::AgentArgs;
use super::config_errors::InvalidValue;
use super::parse;

/// A setting, by the name of its key and flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// What is done with the probes of pods in scope.
    Mode,
    /// Which pods are in scope.
    Scope,
    /// What serves plaintext HTTP on the kernel path.
    Http,
    /// How long the kernel path outlives the daemon.
    Outlive,
    /// Maximum time of a drain.
    DrainTimeout,
    /// Filter of log lines.
    Log,
    /// Whether the eBPF programs log every decision.
    KernelLog,
}

/// The values of all settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// See [`Setting::Mode`].
    pub mode: Mode,
    /// See [`Setting::Scope`].
    pub scope: Scope,
    /// See [`Setting::Http`].
    pub http: HttpBy,
    /// See [`Setting::Outlive`].
    pub outlive: Duration,
    /// See [`Setting::DrainTimeout`].
    pub drain_timeout: Duration,
    /// See [`Setting::Log`].
    pub log: String,
    /// See [`Setting::KernelLog`].
    pub kernel_log: bool,
}

/// What set a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A flag of the command line.
    Flag,
    /// An environment variable.
    Environment,
    /// The file.
    File,
    /// Nothing set it, so it has its default.
    Default,
}

/// The settings that flags or variables have set.
pub type Given = BTreeMap<Setting, Origin>;

/// The content of a file: the text of each setting in it.
pub type FileSettings = BTreeMap<Setting, String>;

/// A current setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// Which one.
    pub setting: Setting,
    /// Its value, as it is written in a file.
    pub value: String,
    /// What set it.
    pub origin: Origin,
    /// The value in the file, if a flag or variable takes precedence over another value there.
    pub overridden: Option<String>,
}

/// Reads a file.
///
/// # Errors
/// All mistakes in it, each with its line, its key and what to do.
pub fn read(text: &str) -> Result<FileSettings, Vec<String>> {
    let documents = tree::parse(text).map_err(|malformed| {
        let (line, what) = (malformed.line, malformed.what);
        vec![format!("line {line}: {what}; correct the YAML")]
    })?;
    let mut documents = documents.iter().filter(|document| !is_empty(document));
    let Some(document) = documents.next() else {
        return Ok(FileSettings::new());
    };
    let mut mistakes = Vec::new();
    let mut found = FileSettings::new();
    match &document.nodes[0].kind {
        Kind::Mapping { entries, .. } => {
            let mut lines = BTreeMap::new();
            for &(key, value) in entries {
                match entry(document, key, value, &mut lines) {
                    Ok((setting, text)) => drop(found.insert(setting, text)),
                    Err(why) => {
                        mistakes.push(format!("line {}: {why}", document.nodes[key].line));
                    }
                }
            }
        }
        _ => mistakes.push(format!(
            "line {}: not a mapping; expected lines such as \"mode: observe\"",
            document.nodes[0].line
        )),
    }
    if let Some(second) = documents.next() {
        let line = second.nodes[0].line;
        mistakes.push(format!(
            "line {line}: a second document; put all settings into the first one"
        ));
    }
    if mistakes.is_empty() {
        Ok(found)
    } else {
        Err(mistakes)
    }
}

/// A document without content, such as one with only comments.
fn is_empty(document: &Document) -> bool {
    document.nodes.first().is_none_or(
        |root| matches!(&root.kind, Kind::Scalar { text, plain: true, .. } if text.is_empty()),
    )
}

/// One line of the file; `lines` has the line of each setting before it.
fn entry(
    document: &Document,
    key: Id,
    value: Id,
    lines: &mut BTreeMap<Setting, usize>,
) -> Result<(Setting, String), String> {
    let name = match &document.nodes[document.followed(key)].kind {
        Kind::Scalar { text, .. } => text,
        _ => return Err("a key that is not text; expected the name of a setting".to_owned()),
    };
    let Some(setting) = Setting::named(name) else {
        return Err(match is_other_flag(name) {
            true => format!(
                "{name}: it can't change while the daemon runs; remove it here, and set flag --{name}"
            ),
            false => format!(
                "{name:?}: not a setting; expected one of {}",
                Setting::ALL.map(Setting::name).join(", ")
            ),
        });
    };
    if let Some(before) = lines.insert(setting, document.nodes[key].line) {
        return Err(format!(
            "{setting}: already set in line {before}; remove one of them"
        ));
    }
    let Kind::Scalar { text, .. } = &document.nodes[document.followed(value)].kind else {
        return Err(format!(
            "{setting}: a list or a mapping; expected a single value"
        ));
    };
    match Settings::default().set(setting, text) {
        Ok(()) => Ok((setting, text.clone())),
        Err(InvalidValue { reason, remedy }) => {
            Err(format!("{setting} = {text:?}: {reason}; {remedy}"))
        }
    }
}

/// Whether the daemon has another flag of that name.
fn is_other_flag(name: &str) -> bool {
    AgentArgs::augment_args(Command::new(""))
        .get_arguments()
        .any(|flag| flag.get_long() == Some(name))
}

/// The settings that result from `base`, the settings of the command line, and a file. The file does not change the
/// settings in `given`.
pub fn in_force(base: &Settings, given: &Given, file: &FileSettings) -> (Settings, Vec<InForce>) {
    let mut settings = base.clone();
    let rows = Setting::ALL.map(|setting| {
        let given = given.get(&setting).copied();
        let in_file = file.get(&setting);
        if let (None, Some(text)) = (given, in_file) {
            // Valid, because `read` has set it before.
            let _ = settings.set(setting, text);
        }
        let value = settings.text(setting);
        let overridden = given.and(in_file).filter(|text| {
            let mut other = base.clone();
            let _ = other.set(setting, text);
            other.text(setting) != value
        });
        InForce {
            setting,
            origin: given.unwrap_or(match in_file {
                Some(_) => Origin::File,
                None => Origin::Default,
            }),
            overridden: overridden.cloned(),
            value,
        }
    });
    (settings, rows.to_vec())
}

/// Which settings the parsed command line and the environment have set.
pub fn given(matches: &ArgMatches) -> Given {
    let origin = |setting: Setting| match matches.value_source(&setting.name().replace('-', "_"))? {
        ValueSource::CommandLine => Some((setting, Origin::Flag)),
        ValueSource::EnvVariable => Some((setting, Origin::Environment)),
        _ => None,
    };
    Setting::ALL.into_iter().filter_map(origin).collect()
}

/// The path of the file.
pub(super) fn path(text: &str) -> Result<std::path::PathBuf, InvalidValue> {
    let path = Path::new(text);
    if !path.is_absolute() || path.file_name().is_none() || path.is_dir() {
        return Err(InvalidValue::new(
            "not the absolute path of a file",
            "expected a path such as /etc/probe-handler/settings.yaml; the file need not exist yet",
        ));
    }
    Ok(path.to_owned())
}

// === impl Setting ===

impl Setting {
    /// All settings, in the order of the output.
    pub const ALL: [Self; 7] = [
        Self::Mode,
        Self::Scope,
        Self::Http,
        Self::Outlive,
        Self::DrainTimeout,
        Self::Log,
        Self::KernelLog,
    ];

    /// Its key in the file, and its flag's long name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mode => "mode",
            Self::Scope => "scope",
            Self::Http => "http",
            Self::Outlive => "outlive",
            Self::DrainTimeout => "drain-timeout",
            Self::Log => "log",
            Self::KernelLog => "kernel-log",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|setting| setting.name() == name)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// === impl Settings ===

impl Default for Settings {
    /// The defaults of the flags, which a test compares.
    fn default() -> Self {
        Self {
            mode: Mode::Serve,
            scope: Scope::Meshed,
            http: HttpBy::Handler,
            outlive: Duration::from_secs(24 * 3600),
            drain_timeout: Duration::from_secs(20),
            log: "info".to_owned(),
            kernel_log: false,
        }
    }
}

impl Settings {
    /// Sets a value from its text, as a flag does.
    fn set(&mut self, setting: Setting, text: &str) -> Result<(), InvalidValue> {
        match setting {
            Setting::Mode => self.mode = parse::mode(text)?,
            Setting::Scope => self.scope = parse::scope(text)?,
            Setting::Http => self.http = parse::http(text)?,
            Setting::Outlive => self.outlive = parse::outlive(text)?,
            Setting::DrainTimeout => self.drain_timeout = parse::seconds(text)?,
            Setting::Log => self.log = parse::log_filter(text)?,
            Setting::KernelLog => self.kernel_log = parse::flag(text)?,
        }
        Ok(())
    }

    /// A value as it is written in a file.
    pub fn text(&self, setting: Setting) -> String {
        match setting {
            Setting::Mode => self.mode.to_string(),
            Setting::Scope => self.scope.to_string(),
            Setting::Http => self.http.name().to_owned(),
            Setting::Outlive => format!("{}s", self.outlive.as_secs()),
            Setting::DrainTimeout => self.drain_timeout.as_secs().to_string(),
            Setting::Log => self.log.clone(),
            Setting::KernelLog => self.kernel_log.to_string(),
        }
    }
}

// === impl Origin ===

impl Origin {
    /// Its name in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "file",
            Self::Default => "default",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> FileSettings {
        read(text).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
    }

    #[test]
    fn every_setting_can_be_in_the_file() {
        let all = "# a comment\nmode: observe\nscope: all\nhttp: kernel\noutlive: 1h\n\
                   drain-timeout: 5\nlog: off\nkernel-log: true\n";
        let (settings, rows) = in_force(&Settings::default(), &Given::new(), &file(all));
        let expected = Settings {
            mode: Mode::Observe,
            scope: Scope::All,
            http: HttpBy::Kernel,
            outlive: Duration::from_secs(3600),
            drain_timeout: Duration::from_secs(5),
            log: "off".to_owned(),
            kernel_log: true,
        };
        assert_eq!(settings, expected);
        assert!(rows.iter().all(|row| row.origin == Origin::File));
    }

    #[test]
    fn a_file_without_settings_sets_nothing() {
        for text in ["", "\n", "# only a comment\n", "---\n", "{}"] {
            assert_eq!(read(text), Ok(FileSettings::new()), "{text:?}");
        }
    }

    #[test]
    fn all_mistakes_are_reported_together() {
        let text = "mode: off\nscope: some\nbpffs: /x\nkernel_log: true\noutlive: 0s\nlog: [info]\n\
                    drain-timeout: 5\ndrain-timeout: 6\n";
        let mistakes = read(text).expect_err("wrong");
        assert_eq!(
            mistakes,
            [
                r#"line 1: mode = "off": invalid mode; expected serve or observe"#,
                r#"line 2: scope = "some": invalid scope; expected meshed, labeled or all"#,
                "line 3: bpffs: it can't change while the daemon runs; remove it here, and set flag --bpffs",
                r#"line 4: "kernel_log": not a setting; expected one of mode, scope, http, outlive, drain-timeout, log, kernel-log"#,
                r#"line 5: outlive = "0s": invalid time; expected 1s to 720h, in hours (24h), minutes (30m) or seconds (90s)"#,
                "line 6: log: a list or a mapping; expected a single value",
                "line 8: drain-timeout: already set in line 7; remove one of them",
            ]
        );
    }

    #[test]
    fn a_text_that_is_no_mapping_is_a_mistake() {
        for text in [
            "observe",
            "- mode: observe",
            "mode: [",
            "? [a]\n: b",
            "a: b\n---\nc: d",
        ] {
            let mistakes = read(text).expect_err(text);
            assert!(mistakes[0].starts_with("line "), "{mistakes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_has_mistakes(
            lines in proptest::collection::vec("[a-z-]{0,13}(: ?)?[-a-z0-9:,=&*!|>\\[\\]{}#'\" ]{0,9}", 0..8)
        ) {
            match read(&lines.join("\n")) {
                Ok(settings) => proptest::prop_assert!(settings.len() <= Setting::ALL.len()),
                Err(mistakes) => proptest::prop_assert!(!mistakes.is_empty()),
            }
        }
    }

    #[test]
    fn a_flag_takes_precedence_and_the_other_value_is_shown() {
        let base = Settings {
            mode: Mode::Observe,
            ..Settings::default()
        };
        let given = Given::from([(Setting::Mode, Origin::Flag)]);
        let (settings, rows) = in_force(&base, &given, &file("mode: serve\nscope: all"));
        assert_eq!((settings.mode, settings.scope), (Mode::Observe, Scope::All));
        let row = |setting| rows.iter().find(|row| row.setting == setting);
        assert_eq!(
            row(Setting::Mode).map(|row| (row.origin, row.overridden.as_deref())),
            Some((Origin::Flag, Some("serve")))
        );
        assert_eq!(
            row(Setting::Log).map(|row| row.origin),
            Some(Origin::Default)
        );
    }

    #[test]
    fn the_same_value_in_flag_and_file_is_no_contradiction() {
        let given = Given::from([(Setting::Outlive, Origin::Environment)]);
        let (_, rows) = in_force(&Settings::default(), &given, &file("outlive: 24h"));
        assert!(rows.iter().all(|row| row.overridden.is_none()));
    }

    #[test]
    fn the_defaults_are_those_of_the_flags() {
        let command = AgentArgs::augment_args(Command::new(""));
        for setting in Setting::ALL {
            let mut flags = command.get_arguments();
            let flag = flags.find(|flag| flag.get_long() == Some(setting.name()));
            let values = flag.expect("a flag").get_default_values();
            let default = values[0].to_str().expect("text");
            let mut from_flag = Settings::default();
            from_flag
                .set(setting, default)
                .unwrap_or_else(|_| panic!("{setting}"));
            assert_eq!(from_flag, Settings::default(), "{setting}");
        }
    }
}
