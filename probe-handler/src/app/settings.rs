//! The settings that may change while the daemon runs: reads the file of `--settings` at the start and whenever it
//! changes, and applies it. A file that can't be read or has mistakes changes nothing: the daemon keeps the last good
//! settings.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::sleep;

use super::kernel_path::KernelPath;
use crate::cli::config::AgentConfig;
use crate::cli::config::settings::{
    self, FileSettings, Given, InForce, Origin, Setting, Settings, in_force,
};
use crate::cli::logging::LogFilter;
use crate::observe::collectors::Reloads;
use crate::observe::moment::Moment;
use kernel::maps::ProgramConfig;
use pods::scope::{Marks, Selection};
use sources::directory::{Directory, consistently};
use status_view::settings::{SettingStatus, SettingsStatus};

/// Maximum size of the file in bytes.
const FILE_MAX: u64 = 64 << 10;
/// A file written more recently may be incomplete: a program that writes in place truncates it first. The files of a mounted
/// ConfigMap are complete before they appear.
const BEING_WRITTEN: Duration = Duration::from_millis(80);
/// How many times to wait for [`BEING_WRITTEN`] before a file that is written all the time is read anyway.
const PATIENCE: usize = 10;

/// The current settings.
pub struct LiveSettings {
    path: Option<PathBuf>,
    given: Given,
    base: Settings,
    log: LogFilter,
    state: Mutex<State>,
    selection: watch::Sender<Selection>,
}

/// The state of the settings.
struct State {
    /// The current settings.
    settings: Settings,
    /// The same, each with its origin.
    rows: Vec<InForce>,
    /// The file as last read; `None` if it has never existed.
    last: Option<Result<FileSettings, Vec<String>>>,
    read: Option<(Instant, SystemTime)>,
    succeeded: u64,
    failed: u64,
}

/// The parts of the daemon that a change applies to, beside the sources of pods and the log.
pub struct Applies {
    /// The configuration of the programs.
    pub program_config: ProgramConfig,
    /// The kernel path, if it is used.
    pub kernel_path: Option<watch::Sender<Option<Arc<KernelPath>>>>,
}

impl LiveSettings {
    /// The settings of `config`, and of its file as it is now.
    pub fn read(config: &AgentConfig, log: LogFilter) -> Self {
        let base = config.settings();
        let (settings, rows) = in_force(&base, &config.given, &FileSettings::new());
        let this = Self {
            path: config.settings.clone(),
            given: config.given.clone(),
            selection: watch::Sender::new(selection(&settings)),
            base,
            log,
            state: Mutex::new(State {
                settings,
                rows,
                last: None,
                read: None,
                succeeded: 0,
                failed: 0,
            }),
        };
        if let Some(path) = &this.path {
            let _changed = this.note(path, read(path));
        }
        this
    }

    /// The current settings.
    pub fn now(&self) -> Settings {
        self.state.lock().settings.clone()
    }

    /// Which pods are served or observed.
    pub fn selection(&self) -> watch::Receiver<Selection> {
        self.selection.subscribe()
    }

    /// The problem with the settings, for `status`.
    pub fn problems(&self) -> Vec<String> {
        let Some(path) = &self.path else {
            return Vec::new();
        };
        let state = self.state.lock();
        let mistakes = mistakes(&state).into_iter();
        let mistakes =
            mistakes.map(|mistake| format!("settings not loaded: {}: {mistake}", path.display()));
        mistakes
            .chain(state.rows.iter().filter_map(|row| overridden(path, row)))
            .collect()
    }

    /// The state of the file, for metrics.
    pub fn reloads(&self) -> Reloads {
        let state = self.state.lock();
        Reloads {
            loaded: mistakes(&state).is_empty(),
            succeeded: state.succeeded,
            failed: state.failed,
            last: state.read.map(|(_, at)| at),
        }
    }

    /// The state that `status` shows.
    pub fn status(&self, now: Moment) -> SettingsStatus {
        let state = self.state.lock();
        SettingsStatus {
            file: self.path.as_ref().map(|path| path.display().to_string()),
            loaded: mistakes(&state).is_empty(),
            read_age_ms: state.read.map(|(at, _)| now.age_ms(at)),
            read_at: state.read.map(|(at, _)| now.time_of(at)),
            mistakes: mistakes(&state),
            values: state
                .rows
                .iter()
                .map(|row| SettingStatus {
                    name: row.setting.name().to_owned(),
                    value: row.value.clone(),
                    from: row.origin.name().to_owned(),
                    overridden: row.overridden.clone(),
                })
                .collect(),
        }
    }

    /// Handles the file as it was read. Returns the current settings, if they have changed.
    fn note(&self, path: &Path, found: io::Result<Option<String>>) -> Option<Settings> {
        let mut state = self.state.lock();
        let found = match found {
            Ok(None) if state.last.is_none() => return None,
            // A ConfigMap that is deleted by mistake must not change all nodes at once.
            Ok(None) => Err(vec![
                "the file was removed, and its last good settings stay in use; create it again, without settings to end them"
                    .to_owned(),
            ]),
            Ok(Some(text)) => settings::read(&text),
            Err(error) => Err(vec![format!("it can't be read: {error}; make it readable")]),
        };
        if state.last.as_ref() == Some(&found) {
            return None;
        }
        state.read = Some((Instant::now(), SystemTime::now()));
        let before = state.settings.clone();
        match &found {
            Ok(file) => {
                state.succeeded += 1;
                (state.settings, state.rows) = in_force(&self.base, &self.given, file);
            }
            Err(mistakes) => {
                state.failed += 1;
                let meanwhile = match state.succeeded {
                    0 => "the settings of flags and variables are in use",
                    _ => "the last good settings stay in use",
                };
                for mistake in mistakes {
                    tracing::error!(path = %path.display(), meanwhile, "settings not loaded: {mistake}");
                }
            }
        }
        let loaded = found.is_ok();
        state.last = Some(found);
        if !loaded {
            return None;
        }
        for row in &state.rows {
            if let Some(problem) = overridden(path, row) {
                tracing::warn!("{problem}");
            }
        }
        // Changes the filter before the line below is logged, so that the new filter decides about it.
        if state.settings.log != before.log
            && let Err(error) = self.log.set(&state.settings.log)
        {
            tracing::error!(error, "cannot change the filter of the log");
        }
        tracing::info!(
            path = %path.display(), settings = described(&state.rows),
            "settings loaded"
        );
        let _ = self.selection.send_if_modified(|selected| {
            let new = selection(&state.settings);
            std::mem::replace(selected, new) != new
        });
        (state.settings != before).then(|| state.settings.clone())
    }
}

/// The settings of the file, in one line.
fn described(rows: &[InForce]) -> String {
    let of_file = rows.iter().filter(|row| row.origin == Origin::File);
    let pairs: Vec<String> = of_file
        .map(|row| format!("{}={}", row.setting, row.value))
        .collect();
    pairs.join(" ")
}

/// The mistakes in the file.
fn mistakes(state: &State) -> Vec<String> {
    match &state.last {
        Some(Err(mistakes)) => mistakes.clone(),
        _ => Vec::new(),
    }
}

/// A value in the file that has no effect.
fn overridden(path: &Path, row: &InForce) -> Option<String> {
    let in_file = row.overridden.as_ref()?;
    let (setting, value) = (row.setting, &row.value);
    let (what, by) = match row.origin {
        Origin::Environment => ("variable", variable(setting)),
        _ => ("flag", format!("--{setting}")),
    };
    Some(format!(
        "{setting}: {in_file} in {} has no effect, because {what} {by} sets {value}; remove one of them",
        path.display()
    ))
}

fn variable(setting: Setting) -> String {
    format!(
        "PROBE_HANDLER_{}",
        setting.name().replace('-', "_").to_uppercase()
    )
}

fn selection(settings: &Settings) -> Selection {
    Selection {
        scope: settings.scope,
        mode: settings.mode,
        namespace: Marks::default(),
    }
}

/// Applies changes of the file as long as the daemon runs.
pub async fn follow(live: Arc<LiveSettings>, applies: Applies) {
    let Some(path) = live.path.clone() else {
        return std::future::pending().await;
    };
    let mut directory = Directory::new(path.parent().unwrap_or(&path).to_owned());
    // `None`: the file is read in any case.
    let mut last = None;
    loop {
        for _ in 0..PATIENCE {
            let Some(wait) = fresh(&path) else { break };
            sleep(wait).await;
        }
        let now = Some(stamp(&path));
        if last != now {
            let reading = path.clone();
            let found = tokio::task::spawn_blocking(move || read(&reading)).await;
            // The outer error means that the runtime is shutting down.
            last = now.filter(|_| matches!(found, Ok(Ok(_))));
            if let Ok(found) = found
                && let Some(settings) = live.note(&path, found)
            {
                applies.apply(&settings);
            }
        }
        directory.changed().await;
    }
}

impl Applies {
    fn apply(&self, settings: &Settings) {
        let outlive_ns = u64::try_from(settings.outlive.as_nanos()).unwrap_or(u64::MAX);
        let applied = self.program_config.update(|config| {
            config.outlive_ns = outlive_ns;
            config.verbose = u8::from(settings.kernel_log);
        });
        if let Err(error) = applied {
            tracing::error!(%error, "cannot change outlive and kernel-log of the programs; restart the daemon");
        }
        if let Some(kernel_path) = &self.kernel_path {
            let _ = kernel_path.send_if_modified(|path| {
                path.as_ref()
                    .is_some_and(|path| path.set_http(settings.http))
            });
        }
    }
}

/// Values of which at least one differs after each change of the file, because it is not read before [`BEING_WRITTEN`]: its
/// identity, its length, and the times of its content and attributes. `None` if the file can't be found.
fn stamp(path: &Path) -> Option<[i64; 7]> {
    let file = fs::metadata(path).ok()?;
    Some([
        file.dev().cast_signed(),
        file.ino().cast_signed(),
        file.len().cast_signed(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
    ])
}

/// How long to wait because the file may be incomplete.
fn fresh(path: &Path) -> Option<Duration> {
    let written = fs::metadata(path).and_then(|file| file.modified()).ok()?;
    let age = SystemTime::now().duration_since(written).ok()?;
    BEING_WRITTEN
        .checked_sub(age)
        .filter(|wait| !wait.is_zero())
}

/// The text of the file; `None` if it does not exist.
fn read(path: &Path) -> io::Result<Option<String>> {
    let directory = path.parent().unwrap_or(path);
    let name = path.file_name().unwrap_or_default();
    let open = |directory: &Path| {
        let file = File::options()
            .read(true)
            // Does not wait for a writer if the file is a FIFO.
            .custom_flags(libc::O_NONBLOCK)
            .open(directory.join(name))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut text = String::new();
        let _ = file.take(FILE_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > FILE_MAX {
            let why = format!("it is larger than {} KiB", FILE_MAX >> 10);
            return Err(io::Error::other(why));
        }
        Ok(text)
    };
    match consistently(directory, open).flatten() {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
