//! Runs the real daemon: `probe-handler agent`, with its own directory of manifests, kubelet's cgroup and
//! Unix socket.

mod answer;
mod command;
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
/// Mount point of a pod's ServiceAccount volume.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How many bytes at the end of a log are shown after a failure.
const LOG_TAIL: u64 = 8 << 10;

/// The settings of a daemon to start.
#[derive(Clone, Debug)]
pub struct DaemonSpec {
    name: String,
    program: Option<PathBuf>,
    kubelet_cgroup: Option<PathBuf>,
    pods: Option<PathBuf>,
    admin_socket: Option<PathBuf>,
    admin_addr: String,
    /// TCP address for the testbed's requests, instead of the admin socket.
    asked_at: Option<SocketAddr>,
    /// A command that runs the program; the program and its arguments are appended.
    wrapper: Vec<String>,
    args: Vec<String>,
    /// The node whose pods the daemon requests.
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

    /// Uses this program instead of the `probe-handler` in the directory of this program.
    #[must_use]
    pub fn program(mut self, program: Option<&Path>) -> Self {
        self.program = program.map(Path::to_path_buf);
        self
    }

    /// Serves the kubelet in this cgroup; disables the detection.
    #[must_use]
    pub fn kubelet_cgroup(mut self, cgroup: &Cgroup) -> Self {
        self.kubelet_cgroup = Some(cgroup.path().to_path_buf());
        self
    }

    /// Reads the pods from this directory instead of its own, as a second daemon does.
    #[must_use]
    pub fn pods(mut self, dir: &Path) -> Self {
        self.pods = Some(dir.to_path_buf());
        self
    }

    /// Reads the pods of `node` from the API server in `kubeconfig`.
    #[must_use]
    pub fn kube(mut self, node: &str, kubeconfig: &Path) -> Self {
        self.node = Some(node.to_owned());
        self.env("KUBECONFIG", &kubeconfig.display().to_string())
    }

    /// Reads the pods of `node` as in a cluster: from the API server at `address`, with the files of a
    /// ServiceAccount's volume in `volume`.
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
            // Prevents the use of the kubeconfig of the user who runs the testbed.
            .env("HOME", &volume.display().to_string())
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Uses this admin socket instead of its own.
    #[must_use]
    pub fn admin_socket(mut self, path: &Path) -> Self {
        self.admin_socket = Some(path.to_path_buf());
        self
    }

    /// Serves health and metrics at this address; by default there is none.
    #[must_use]
    pub fn admin_addr(mut self, address: &str) -> Self {
        address.clone_into(&mut self.admin_addr);
        self
    }

    /// Serves health, metrics and state at this loopback address, to which the testbed's requests go instead of the admin socket.
    #[must_use]
    pub fn asked_at(mut self, address: SocketAddr) -> Self {
        self.asked_at = Some(address);
        self.admin_addr(&address.to_string())
    }

    /// Runs it with this command, to which the program and its arguments are appended.
    #[must_use]
    pub fn wrapped(mut self, command: &[&str]) -> Self {
        self.wrapper = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The daemon's program.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn the_program(&self) -> Result<PathBuf> {
        match &self.program {
            Some(path) => Ok(path.clone()),
            None => sibling("probe-handler"),
        }
    }

    /// Drops a capability, named as in setpriv(1): `net_admin`.
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

    /// Keeps only these capabilities, named as in setpriv(1), as a container runtime would.
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

    /// Runs it in its own time namespace, whose monotonic clock is `seconds` ahead of the kernel's.
    #[must_use]
    pub fn monotonic_clock_ahead(mut self, seconds: i64) -> Self {
        let offset = format!("--monotonic={seconds}");
        self.wrapper = ["unshare", "--time", &offset, "--fork", "--kill-child"]
            .map(str::to_owned)
            .to_vec();
        self
    }

    /// Runs it in `cgroup` as a container runtime would: with its own cgroup namespace and mounts, and the
    /// node's cgroups mounted at `host`.
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

    /// Adds an argument of `probe-handler agent`.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Starts it without waiting.
    ///
    /// # Errors
    /// When the program does not exist or cannot be started.
    pub fn spawn(self, run: &Run) -> Result<Daemon> {
        let program = self.the_program()?;
        let dir = run.dir().join(&self.name);
        let pods = self.pods.clone().unwrap_or_else(|| dir.join("pods"));
        fs::create_dir_all(&pods).with_context(|| format!("making {}", pods.display()))?;
        fs::create_dir_all(&dir)?;
        let socket = self.admin_socket.clone();
        let socket = socket.unwrap_or_else(|| dir.join("admin.sock"));
        let log = dir.join("log");
        let output = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let mut command = self.command(run, &program, &pods, &socket);
        let child = command
            // Ctrl-C must reach only the run, which stops its daemons in order.
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
    /// Those of [`DaemonSpec::spawn`]; also when it ends or is not ready within 20 s, with the end of its
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

    /// Path of the running program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The directory of its manifests.
    pub fn pods(&self) -> &Path {
        &self.pods
    }

    /// Path of its log.
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

    /// Sends a request to its admin server, on the Unix socket or at [`DaemonSpec::asked_at`]; returns status and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.get_as(path, "application/openmetrics-text, */*;q=0.1")
    }

    /// As [`Daemon::get`], with this value of `Accept`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn get_as(&self, path: &str, accept: &str) -> Result<(u16, String)> {
        match self.asked_at {
            Some(address) => {
                let stream = TcpStream::connect(address)
                    .with_context(|| format!("connecting to {address}"))?;
                stream.set_read_timeout(Some(pace::stretch(ANSWER)))?;
                answer::ask(stream, path, accept)
            }
            None => {
                let stream = UnixStream::connect(&self.socket)
                    .with_context(|| format!("connecting to {}", self.socket.display()))?;
                stream.set_read_timeout(Some(pace::stretch(ANSWER)))?;
                answer::ask(stream, path, accept)
            }
        }
    }

    /// The content of `/metrics`.
    ///
    /// # Errors
    /// When it does not answer, or the answer is not OpenMetrics.
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
    /// Those of [`Daemon::metrics`].
    pub fn metric(&self, name: &str) -> Result<f64> {
        Ok(self.metrics()?.sum(name, &[]))
    }

    /// The number of its descriptors and threads.
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

    /// The addresses of its handler, from `status`.
    ///
    /// # Errors
    /// Those of [`Daemon::status`].
    pub fn handler(&self) -> Result<Vec<SocketAddr>> {
        let handler = self.status()?["handler"].take();
        serde_json::from_value(handler).context("status without handler")
    }

    /// The output of `probe-handler status -o json`.
    ///
    /// # Errors
    /// When it does not answer, or the answer is not JSON.
    pub fn status(&self) -> Result<Value> {
        let (status, body) = self.get("/status")?;
        if status != 200 {
            bail!("/status answers {status}: {body}");
        }
        serde_json::from_str(&body).context("/status is not JSON")
    }

    /// One of the kernel side's counters; 0 if no counter has that name.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn counter(&self, name: &str) -> Result<u64> {
        Ok(self.status()?["counters"][name]
            .as_u64()
            .unwrap_or_default())
    }

    /// Publishes a pod and waits until the daemon serves it: its namespace is known and its canary has passed.
    ///
    /// # Errors
    /// When that takes longer than 10 s; the message contains the daemon's status of the pod.
    pub fn serve(&self, pod: &mut Pod) -> Result<()> {
        pod.publish(&self.pods)?;
        self.wait_served(pod)
    }

    /// Waits until a published pod is served.
    ///
    /// # Errors
    /// Those of [`Daemon::serve`].
    pub fn wait_served(&self, pod: &Pod) -> Result<()> {
        self.wait_served_by_name(pod.name())
    }

    /// Waits until the pod with this name is served.
    ///
    /// # Errors
    /// Those of [`Daemon::serve`].
    pub fn wait_served_by_name(&self, name: &str) -> Result<()> {
        let mut last = Value::Null;
        wait::until(&format!("pod {name} to be served"), SERVED, || {
            last = self.pod_status(name).ok()??;
            let known = last["netns"]["known"].is_object();
            (known && last["canary"]["state"] == "passed").then_some(())
        })
        .with_context(|| format!("the daemon's status of it: {last}\n{}", self.log_tail()))
    }

    /// The daemon's status of a pod; `None` if it does not know the pod.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn pod_status(&self, name: &str) -> Result<Option<Value>> {
        let status = self.status()?;
        let pods = status["pods"].as_array().context("status without pods")?;
        Ok(pods.iter().find(|pod| pod["name"] == name).cloned())
    }

    /// Runs `probe-handler status` with these arguments for this daemon; returns its output.
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

    /// Stops all of its threads until the value is dropped.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn stand_still(&self) -> Result<Stopped<'_>> {
        self.signal(Signal::SIGSTOP)?;
        Ok(Stopped::new(self))
    }

    /// Terminates it with a signal and waits for its end.
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

    /// Waits until the log contains all of `words`, and returns the whole log. The daemon writes its log
    /// asynchronously, so an effect may be visible before its log line.
    ///
    /// # Errors
    /// When it does not contain them within 5 s; the message contains the end of the log.
    pub fn wait_logged(&self, words: &[&str]) -> Result<String> {
        wait::until(&format!("the log to contain {words:?}"), LOGGED, || {
            let log = self.log().ok()?;
            words.iter().all(|word| log.contains(word)).then_some(log)
        })
        .with_context(|| self.log_tail())
    }

    /// The log as far as it is written. It is complete only after the daemon has ended:
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
