//! The real admission webhook: `probe-handler webhook` as in deploy/webhook or its overlay for cert-manager, and
//! requests as an API server sends them.

pub mod client;
mod shipped;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use webhook::certificates::authority::{Lifetimes, make};

use crate::run::Run;
use crate::wait;
use crate::worker::sibling;
use client::Client;
use shipped::Cluster;

/// The name in the certificate: that of the Service in deploy/webhook.
pub const NAME: &str = "probe-handler-webhook.probe-handler-system.svc";
const READY: Duration = Duration::from_secs(20);

/// A running webhook, killed on drop.
#[derive(Debug)]
pub struct Webhook {
    child: Child,
    dir: PathBuf,
    /// The API server with its objects; `None`: they are files.
    cluster: Option<Cluster>,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Webhook {
    /// Starts `program` (by default `probe-handler` in the directory of this program) on loopback as deploy/webhook does,
    /// and waits until it listens and its certificate is trusted.
    ///
    /// # Errors
    /// When it cannot be started, or ends.
    pub fn start(run: &Run, program: Option<&Path>) -> Result<Self> {
        let cluster = Cluster::start(run)?;
        let mut command = command(program)?;
        command
            .args(Cluster::arguments()?)
            .env("KUBECONFIG", cluster.kubeconfig())
            .env("PROBE_HANDLER_NAMESPACE", shipped::NAMESPACE);
        Self::listening(command, run.dir().join("webhook"), Some(cluster))
    }

    /// The same with a certificate and settings from directories, as in the overlay for cert-manager.
    ///
    /// # Errors
    /// Those of [`Webhook::start`].
    pub fn start_from_files(run: &Run, program: Option<&Path>) -> Result<Self> {
        let dir = run.dir().join("webhook-from-files");
        for part in ["certificate", "settings"] {
            fs::create_dir_all(dir.join(part))?;
        }
        write_certificate(&dir)?;
        let mut command = command(program)?;
        command.arg("webhook");
        command.arg("--cert-dir").arg(dir.join("certificate"));
        command.arg("--config-dir").arg(dir.join("settings"));
        Self::listening(command, dir, None)
    }

    fn listening(mut command: Command, dir: PathBuf, cluster: Option<Cluster>) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        let log = dir.join("log");
        let output = File::create(&log)?;
        let child = command
            .args(["--listen", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"])
            .args(["--log-format", "text"])
            // Ctrl-C must reach only the run, which stops the webhook.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting the webhook")?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut webhook = Self {
            child,
            dir,
            cluster,
            address: nowhere,
            admin: nowhere,
        };
        let listening = wait::until("the webhook to listen and be trusted", READY, || {
            if let Ok(Some(status)) = webhook.child.try_wait() {
                return Some(Err(status));
            }
            let log = fs::read_to_string(&log).ok()?;
            log.contains("serving a new certificate").then_some(())?;
            let _trusted = webhook.authorities().ok()?;
            Some(Ok((
                address(&log, "listening=")?,
                address(&log, " admin=")?,
            )))
        });
        match listening {
            Ok(Ok((address, admin))) => {
                webhook.address = address;
                webhook.admin = admin;
                Ok(webhook)
            }
            Ok(Err(status)) => bail!("the webhook ended ({status}):\n{}", webhook.log()),
            Err(error) => bail!("{error:#}:\n{}", webhook.log()),
        }
    }

    /// The current caBundle, in PEM format.
    fn authorities(&self) -> Result<Vec<u8>> {
        match &self.cluster {
            Some(cluster) => cluster.bundle(),
            None => Ok(fs::read(self.dir.join("authority.pem"))?),
        }
    }

    /// A client that trusts the current certificate.
    ///
    /// # Errors
    /// When there is none.
    pub fn client(&self) -> Result<Client> {
        Client::new(self.address, &self.authorities()?)
    }

    /// Address of the admission server.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Address of health and metrics.
    pub const fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Changes a global setting, in the ConfigMap or in the directory of settings.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        if let Some(cluster) = &self.cluster {
            return cluster.set(key, value);
        }
        let settings = self.dir.join("settings");
        let partial = settings.join(format!(".{key}"));
        fs::write(&partial, value)?;
        fs::rename(&partial, settings.join(key)).context("a setting")
    }

    /// Replaces the certificate files with a certificate of another authority.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn renew(&self) -> Result<()> {
        write_certificate(&self.dir)
    }

    /// Its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    /// Path of its log.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Ends it as Kubernetes does.
    ///
    /// # Errors
    /// When it has not ended within `grace`.
    pub fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGTERM).context("signalling the webhook")?;
        let ended = wait::until("the webhook to end", grace, || {
            self.child.try_wait().ok()?
        });
        ended.with_context(|| self.log())
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        if let Err(error) = self.child.wait() {
            eprintln!("testbed: ending the webhook: {error}");
        }
    }
}

/// `program`, by default the `probe-handler` in the directory of this program.
fn command(program: Option<&Path>) -> Result<Command> {
    let program = match program {
        Some(path) => path.to_owned(),
        None => sibling("probe-handler")?,
    };
    Ok(Command::new(program))
}

/// Writes a certificate as cert-manager does, and its authority next to the directory.
fn write_certificate(dir: &Path) -> Result<()> {
    let made = make(&[NAME.to_owned()], &Lifetimes::default(), SystemTime::now())?;
    fs::write(dir.join("authority.pem"), made.authority)?;
    // Writes the key first: for a moment key and certificate do not match, and the webhook keeps the old
    // pair.
    fs::write(dir.join("certificate/tls.key"), made.key)?;
    fs::write(dir.join("certificate/tls.crt"), made.certificate)?;
    Ok(())
}

/// The address that follows `field` in a log.
fn address(log: &str, field: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once(field)?;
    let end = rest.find([' ', '\n'])?;
    rest[..end].parse().ok()
}
