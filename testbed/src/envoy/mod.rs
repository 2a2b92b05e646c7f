//! The real Envoy as a pod's sidecar, configured as Istio's pilot-agent does.
//!
//! `cargo xtask setup` installs the program. It runs as Istio's user, with the files of the run's
//! [`crate::mesh::Identity`] as certificates.

mod config;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use config::Settings;

use crate::netns::{self, NetNs};
use crate::run::Run;
use crate::{pace, wait};

/// Name of the program in the run's directory.
pub(crate) const PROGRAM: &str = "envoy";
/// Istio's user and group.
const USER: u32 = 1337;
const READY: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(5);
const ENDED: Duration = Duration::from_secs(10);
/// How much of the end of its log is shown after a failure.
const LOG_TAIL: usize = 2 << 10;

/// A running Envoy, killed on drop.
#[derive(Debug)]
pub struct Envoy {
    child: Child,
    ns: PathBuf,
    log: PathBuf,
}

impl Envoy {
    /// Starts `program` in a pod's namespace and waits until it serves.
    ///
    /// # Errors
    /// When it can't be started, or is not ready within 10 s; the message contains the end of its log.
    pub fn start(run: &Run, ns: &NetNs, program: &Path, settings: Settings) -> Result<Self> {
        let config = run.dir().join(format!("{}-envoy.json", ns.name()));
        let log = config.with_extension("log");
        let text = serde_json::to_string_pretty(&config::bootstrap(settings, run.mesh().dir()))?;
        fs::write(&config, text).with_context(|| config.display().to_string())?;
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(accessible(run, program)?);
        command
            .arg("--config-path")
            .arg(&config)
            .args(["--concurrency", "1", "--log-level", "warning"])
            .args(["--disable-hot-restart", "--drain-time-s", "1"])
            // In TPROXY mode Istio's proxy runs as root, with the group by which the rules identify it.
            .uid(if settings.transparent { 0 } else { USER })
            .gid(USER)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = ns.run(move || command.spawn().context("starting Envoy"))?;
        let mut envoy = Self {
            child,
            ns: ns.path(),
            log,
        };
        envoy.wait_ready()?;
        Ok(envoy)
    }

    fn wait_ready(&mut self) -> Result<()> {
        wait::until("Envoy to be ready", READY, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(Err(anyhow::anyhow!("it ended with {status}")));
            }
            let live = self.ask("GET", "/ready").is_ok();
            live.then_some(Ok(()))
        })
        .flatten()
        .with_context(|| self.log_tail())
    }

    /// Sends a request to its admin server; returns the body.
    ///
    /// # Errors
    /// When it does not answer with 200.
    pub fn ask(&self, method: &str, path: &str) -> Result<String> {
        netns::run_in(&self.ns, || {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, config::ADMIN));
            let timeout = pace::stretch(ANSWER);
            let mut stream = TcpStream::connect_timeout(&address, timeout)?;
            stream.set_read_timeout(Some(timeout))?;
            write!(
                stream,
                "{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )?;
            let mut answer = String::new();
            let _bytes = stream.read_to_string(&mut answer)?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
            let (_head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
            Ok(body.to_owned())
        })
    }

    /// The sum of all its statistics whose name ends with `suffix`.
    ///
    /// # Errors
    /// When it does not answer, or has no such statistic.
    pub fn sum(&self, prefix: &str, suffix: &str) -> Result<u64> {
        let text = self.ask("GET", "/stats")?;
        let values = config::values(&text, prefix, suffix);
        ensure!(!values.is_empty(), "Envoy has no {prefix}*{suffix}");
        Ok(values.iter().sum())
    }

    /// The connections to its inbound port since its start, whose outcome is decided. Envoy does not count a
    /// connection when it accepts it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn inbound(&self) -> Result<u64> {
        let text = self.ask("GET", "/stats?filter=^listener.virtualInbound")?;
        let value = |name: &&str| config::value(&text, &format!("listener.virtualInbound.{name}"));
        let values = config::FATES.iter().map(value);
        let values: Option<Vec<u64>> = values.collect();
        let values = values.with_context(|| format!("{:?} in {text}", config::FATES))?;
        Ok(values.iter().sum())
    }

    /// One of its statistics.
    ///
    /// # Errors
    /// When it does not answer, or has no such statistic.
    pub fn stat(&self, name: &str) -> Result<u64> {
        let text = self.ask("GET", "/stats")?;
        config::value(&text, name).with_context(|| format!("Envoy has no {name}"))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).context("signalling Envoy")
    }

    /// Waits for its end after a signal.
    ///
    /// # Errors
    /// When it has not ended within 10 s.
    pub fn wait_end(&mut self) -> Result<()> {
        wait::until("Envoy to end", ENDED, || self.child.try_wait().ok()?).map(drop)
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill(&mut self) -> Result<()> {
        let _gone = self.child.kill();
        self.child.wait().map(drop).context("waiting for Envoy")
    }

    fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(LOG_TAIL)..];
        String::from_utf8_lossy(tail).into_owned()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("testbed: {error:#}");
        }
    }
}

/// The program mounted in the run's directory, because Envoy's user may have no access to the directory of this repository.
fn accessible(run: &Run, program: &Path) -> Result<PathBuf> {
    let here = run.dir().join(PROGRAM);
    if here.exists() {
        return Ok(here);
    }
    if !program.is_file() {
        bail!("{} is not a file", program.display());
    }
    let _file = File::create(&here)?;
    let none = None::<&str>;
    mount(Some(program), &here, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("mounting {} at {}", program.display(), here.display()))?;
    Ok(here)
}
