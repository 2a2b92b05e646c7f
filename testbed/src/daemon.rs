//! The real daemon: `probe-handler agent`, with a directory of manifests, a kubelet's cgroup and a
//! Unix socket of its own.

mod answer;
mod stopped;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::metrics::Scrape;
use crate::pace;
use crate::pod::Pod;
use crate::run::Run;
use crate::wait;
use crate::worker::sibling;
pub use stopped::Stopped;

const READY: Duration = Duration::from_secs(20);
const SERVED: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(5);
const LOGGED: Duration = Duration::from_secs(5);
/// Where a pod finds its ServiceAccount's volume.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What is shown of a log when something failed.
const LOG_TAIL: u64 = 8 << 10;

/// A daemon to be started.
#[derive(Clone, Debug)]
pub struct DaemonSpec {
    name: String,
    program: Option<PathBuf>,
    kubelet_cgroup: Option<PathBuf>,
    pods: Option<PathBuf>,
    admin_socket: Option<PathBuf>,
    admin_addr: String,
    /// Where to ask it over TCP, instead of on the admin socket.
    asked_at: Option<SocketAddr>,
    /// A command that runs the program, with the program's own words appended.
    wrapper: Vec<String>,
    args: Vec<String>,
    /// Name of the node whose pods are asked for.
    node: Option<String>,
    env: Vec<(String, String)>,
}

impl DaemonSpec {
    /// A daemon with this name in the run's directory.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            program: None,
            kubelet_cgroup: None,
            pods: None,
            admin_socket: None,
            admin_addr: "none".to_owned(),
            asked_at: None,
            wrapper: Vec::new(),
            args: Vec::new(),
            node: None,
            env: Vec::new(),
        }
    }

    /// Another program than the `probe-handler` beside this one.
    #[must_use]
    pub fn program(mut self, program: Option<&Path>) -> Self {
        self.program = program.map(Path::to_path_buf);
        self
    }

    /// Serves the kubelet in this cgroup, without looking for it.
    #[must_use]
    pub fn kubelet_cgroup(mut self, cgroup: &Cgroup) -> Self {
        self.kubelet_cgroup = Some(cgroup.path().to_path_buf());
        self
    }

    /// Takes the pods from this directory instead of one of its own, as a second daemon does.
    #[must_use]
    pub fn pods(mut self, dir: &Path) -> Self {
        self.pods = Some(dir.to_path_buf());
        self
    }

    /// Takes the pods of `node` from the API server that `kubeconfig` names.
    #[must_use]
    pub fn kube(mut self, node: &str, kubeconfig: &Path) -> Self {
        self.node = Some(node.to_owned());
        self.env("KUBECONFIG", &kubeconfig.display().to_string())
    }

    /// Takes the pods of `node` as a pod of the cluster does: from the API server at `address`, with the
    /// files of a ServiceAccount's volume in `volume`.
    #[must_use]
    pub fn in_cluster(mut self, node: &str, address: SocketAddr, volume: &Path) -> Self {
        const MOUNT: &str = r#"mount --bind "$1" "$2" && shift 2 && exec "$@""#;
        self.node = Some(node.to_owned());
        self.wrapper = [
            "unshare",
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-c",
            MOUNT,
            "sh",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain([volume.display().to_string(), SERVICE_ACCOUNT.to_owned()])
        .collect();
        self.env("KUBERNETES_SERVICE_HOST", &address.ip().to_string())
            .env("KUBERNETES_SERVICE_PORT", &address.port().to_string())
            // No kubeconfig of the user who runs the testbed.
            .env("HOME", &volume.display().to_string())
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another admin socket than one of its own.
    #[must_use]
    pub fn admin_socket(mut self, path: &Path) -> Self {
        self.admin_socket = Some(path.to_path_buf());
        self
    }

    /// Serves health and metrics there; nowhere by default.
    #[must_use]
    pub fn admin_addr(mut self, address: &str) -> Self {
        address.clone_into(&mut self.admin_addr);
        self
    }

    /// Serves health, metrics and state at this address of loopback, and is asked there instead of on its admin socket.
    #[must_use]
    pub fn asked_at(mut self, address: SocketAddr) -> Self {
        self.asked_at = Some(address);
        self.admin_addr(&address.to_string())
    }

    /// Runs it by this command, with the program and its own words appended.
    #[must_use]
    pub fn wrapped(mut self, command: &[&str]) -> Self {
        self.wrapper = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The daemon's program.
    ///
    /// # Errors
    /// When it is not there.
    pub fn the_program(&self) -> Result<PathBuf> {
        match &self.program {
            Some(path) => Ok(path.clone()),
            None => sibling("probe-handler"),
        }
    }

    /// Drops a capability, named as setpriv(1) does: `net_admin`.
    #[must_use]
    pub fn without_capability(mut self, name: &str) -> Self {
        let dropped = format!("-{name}");
        self.wrapper = [
            "setpriv",
            "--bounding-set",
            &dropped,
            "--inh-caps",
            &dropped,
        ]
        .map(str::to_owned)
        .to_vec();
        self
    }

    /// Leaves it no capabilities but these, named as setpriv(1) does, as a container runtime would.
    #[must_use]
    pub fn with_capabilities_only(mut self, names: &[String]) -> Self {
        let only = names
            .iter()
            .fold("-all".to_owned(), |list, name| format!("{list},+{name}"));
        self.wrapper = ["setpriv", "--bounding-set", &only, "--inh-caps", "-all"]
            .map(str::to_owned)
            .to_vec();
        self
    }

    /// Runs it in a time namespace of its own, whose monotonic clock is `seconds` ahead of the kernel's.
    #[must_use]
    pub fn monotonic_clock_ahead(mut self, seconds: i64) -> Self {
        let offset = format!("--monotonic={seconds}");
        self.wrapper = ["unshare", "--time", &offset, "--fork", "--kill-child"]
            .map(str::to_owned)
            .to_vec();
        self
    }

    /// Runs it in `cgroup` as a container runtime would: with a cgroup namespace and mounts of its own, and
    /// the node's cgroups mounted at `host`.
    #[must_use]
    pub fn in_container(mut self, cgroup: &Cgroup, host: &Path, cgroup2: &Path) -> Self {
        const JOIN: &str = r#"echo 0 >"$1/cgroup.procs" && shift && exec "$@""#;
        const MOUNT: &str = r#"mkdir -p "$1" && mount --rbind /sys/fs/cgroup "$1" &&
            umount -l "$2" && mount -t cgroup2 none "$2" && shift 2 && exec "$@""#;
        let path = |path: &Path| path.display().to_string();
        self.wrapper = ["sh", "-c", JOIN, "sh", &path(cgroup.path())]
            .into_iter()
            .chain(["unshare", "--cgroup", "--mount", "--propagation", "slave"])
            .chain(["sh", "-c", MOUNT, "sh", &path(host), &path(cgroup2)])
            .map(str::to_owned)
            .collect();
        self
    }

    /// One more argument of `probe-handler agent`.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Starts it, without waiting for anything.
    ///
    /// # Errors
    /// When the program is not there or cannot be started.
    pub fn spawn(self, run: &Run) -> Result<Daemon> {
        let program = self.the_program()?;
        let dir = run.dir().join(&self.name);
        let pods = self.pods.unwrap_or_else(|| dir.join("pods"));
        fs::create_dir_all(&pods).with_context(|| format!("making {}", pods.display()))?;
        fs::create_dir_all(&dir)?;
        let socket = self.admin_socket.unwrap_or_else(|| dir.join("admin.sock"));
        let log = dir.join("log");
        let output = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let mut command = match self.wrapper.split_first() {
            None => Command::new(&program),
            Some((wrapper, words)) => {
                let mut command = Command::new(wrapper);
                let _ = command.args(words).arg(&program);
                command
            }
        };
        command.arg("agent").arg("--pods");
        match &self.node {
            None => command.arg(format!("dir:{}", pods.display())),
            Some(node) => command.args(["kube", "--node-name", node]).envs(self.env),
        };
        command
            .arg("--admin-socket")
            .arg(&socket)
            .arg("--admin-addr")
            .arg(&self.admin_addr)
            .args(["--log-format", "text"]);
        if let Some(path) = &self.kubelet_cgroup {
            command.arg("--kubelet-cgroup").arg(path);
        }
        let child = command
            .args(&self.args)
            // Ctrl-C is for the run, which stops its daemons in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Daemon {
            program,
            child,
            socket,
            asked_at: self.asked_at,
            log,
            pods,
        })
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// As [`DaemonSpec::spawn`]; and when it ends or is not ready within 20 s, with the end of its
    /// log.
    pub fn start(self, run: &Run) -> Result<Daemon> {
        let mut daemon = self.spawn(run)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }
}

/// A running daemon, killed on drop.
#[derive(Debug)]
pub struct Daemon {
    program: PathBuf,
    child: Child,
    socket: PathBuf,
    asked_at: Option<SocketAddr>,
    log: PathBuf,
    pods: PathBuf,
}

impl Daemon {
    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// When it ends, or is not ready within 20 s; the message holds the end of its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = wait::until("the daemon to become ready", READY, || {
            match self.child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => return Some(Err(status)),
                Err(_) => return None,
            }
            match self.get("/readyz") {
                Ok((200, _)) => Some(Ok(())),
                _ => None,
            }
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("the daemon ended ({status}):\n{}", self.log_tail()),
            Err(error) => bail!("{error:#}:\n{}", self.log_tail()),
        }
    }

    /// The program that runs.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The directory whose manifests it serves.
    pub fn pods(&self) -> &Path {
        &self.pods
    }

    /// The file of its log.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its admin socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks its admin server over the Unix socket, or where [`DaemonSpec::asked_at`] says: status and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        match self.asked_at {
            Some(address) => {
                let stream = TcpStream::connect(address)
                    .with_context(|| format!("connecting to {address}"))?;
                stream.set_read_timeout(Some(pace::stretch(ANSWER)))?;
                answer::ask(stream, path)
            }
            None => {
                let stream = UnixStream::connect(&self.socket)
                    .with_context(|| format!("connecting to {}", self.socket.display()))?;
                stream.set_read_timeout(Some(pace::stretch(ANSWER)))?;
                answer::ask(stream, path)
            }
        }
    }

    /// What `/metrics` shows.
    ///
    /// # Errors
    /// When it does not answer, or not in OpenMetrics.
    pub fn metrics(&self) -> Result<Scrape> {
        let (status, body) = self.get("/metrics")?;
        if status != 200 {
            bail!("/metrics answers {status}: {body}");
        }
        Scrape::parse(&body)
    }

    /// The sum of a metric over all its labels.
    ///
    /// # Errors
    /// As [`Daemon::metrics`].
    pub fn metric(&self, name: &str) -> Result<f64> {
        Ok(self.metrics()?.sum(name, &[]))
    }

    /// How many descriptors and threads it has.
    ///
    /// # Errors
    /// When it has ended.
    pub fn descriptors_and_threads(&self) -> Result<(usize, usize)> {
        let count = |what: &str| -> Result<usize> {
            let path = format!("/proc/{}/{what}", self.pid());
            Ok(fs::read_dir(&path).with_context(|| path.clone())?.count())
        };
        Ok((count("fd")?, count("task")?))
    }

    /// Where its handler listens, as it says itself.
    ///
    /// # Errors
    /// As [`Daemon::status`].
    pub fn handler(&self) -> Result<Vec<SocketAddr>> {
        let handler = self.status()?["handler"].take();
        serde_json::from_value(handler).context("status without handler")
    }

    /// What `probe-handler status -o json` shows.
    ///
    /// # Errors
    /// When it does not answer, or not in JSON.
    pub fn status(&self) -> Result<Value> {
        let (status, body) = self.get("/status")?;
        if status != 200 {
            bail!("/status answers {status}: {body}");
        }
        serde_json::from_str(&body).context("/status is no JSON")
    }

    /// One of the kernel side's counters; 0 where there is none of that name.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn counter(&self, name: &str) -> Result<u64> {
        Ok(self.status()?["counters"][name]
            .as_u64()
            .unwrap_or_default())
    }

    /// Hands a pod to it and waits until the pod is served: its namespace known, its canary passed.
    ///
    /// # Errors
    /// When that has not come about within 10 s; the message holds what the daemon says of the pod.
    pub fn serve(&self, pod: &mut Pod) -> Result<()> {
        pod.publish(&self.pods)?;
        self.wait_served(pod)
    }

    /// Waits until a pod that was handed over is served.
    ///
    /// # Errors
    /// As [`Daemon::serve`].
    pub fn wait_served(&self, pod: &Pod) -> Result<()> {
        self.wait_served_by_name(pod.name())
    }

    /// Waits until the pod of this name is served.
    ///
    /// # Errors
    /// As [`Daemon::serve`].
    pub fn wait_served_by_name(&self, name: &str) -> Result<()> {
        let mut last = Value::Null;
        wait::until(&format!("pod {name} to be served"), SERVED, || {
            last = self.pod_status(name).ok()??;
            let known = last["netns"]["known"].is_object();
            (known && last["canary"]["state"] == "passed").then_some(())
        })
        .with_context(|| format!("the daemon says of it: {last}\n{}", self.log_tail()))
    }

    /// What the daemon says of one pod; none when it does not know it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn pod_status(&self, name: &str) -> Result<Option<Value>> {
        let status = self.status()?;
        let pods = status["pods"].as_array().context("status without pods")?;
        Ok(pods.iter().find(|pod| pod["name"] == name).cloned())
    }

    /// Runs `probe-handler status` with these arguments against this daemon; gives what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn status_command(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .arg("status")
            .arg("--admin-socket")
            .arg(&self.socket)
            .args(args)
            .output()
            .with_context(|| format!("starting {}", self.program.display()))?;
        if !output.status.success() {
            bail!("status: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).context("signalling the daemon")
    }

    /// Lets it stand still, all of its threads, until the value is dropped.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn stand_still(&self) -> Result<Stopped<'_>> {
        self.signal(Signal::SIGSTOP)?;
        Ok(Stopped::new(self))
    }

    /// Stops it in order and waits for its end.
    ///
    /// # Errors
    /// When it has not ended within `grace`; then it is killed.
    pub fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait_end(grace)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended within `grace`.
    pub fn wait_end(&mut self, grace: Duration) -> Result<ExitStatus> {
        let ended = wait::until("the daemon to end", grace, || self.child.try_wait().ok()?);
        ended.with_context(|| self.log_tail())
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        let _gone = self.child.kill();
        Ok(self.child.wait()?)
    }

    /// Waits until the log has all of `words`, and gives the whole log: the daemon goes on before a line of
    /// its own is written, so what it does may be seen before what it says.
    ///
    /// # Errors
    /// When it does not say them within 5 s; the message holds the end of it.
    pub fn wait_logged(&self, words: &[&str]) -> Result<String> {
        wait::until(&format!("the log to say {words:?}"), LOGGED, || {
            let log = self.log().ok()?;
            words.iter().all(|word| log.contains(word)).then_some(log)
        })
        .with_context(|| self.log_tail())
    }

    /// The whole log, as far as it is written. Only that of a daemon that has ended is all that it had to say:
    /// see [`Daemon::wait_logged`].
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())
    }

    /// The end of the log, for messages.
    pub fn log_tail(&self) -> String {
        let tail = || {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&text).into_owned())
        };
        tail().unwrap_or_else(|error| format!("(no log: {error})"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("testbed: ending the daemon: {error:#}");
        }
    }
}
