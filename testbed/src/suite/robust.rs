//! An unprivileged process, or a feature that the node lacks, must not prevent the daemon from starting or from
//! serving probes. `status` reports what is missing.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{Uid, setfsuid};
use serde_json::Value;

use super::cases::Cases;
use super::sample_pod;
use crate::cgroup::Cgroup;
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::Kubelet;
use crate::node::Node;
use crate::pod::Pod;
use crate::rules::Unavailable;
use crate::run::Run;
use crate::wait;
use crate::worker::testbed_program;

/// The user id of `nobody`.
const NOBODY: u32 = 65534;
/// Deadline for operations that the daemon retries every few seconds.
const SOON: Duration = Duration::from_secs(10);

pub fn run(cases: &mut Cases) -> Result<()> {
    let program = cases.daemon().map(Path::to_owned);
    let program = program.as_deref();
    cases.case("set-uid-program-of-its-name", || set_uid(program));
    cases.case("several-kubelets", || several(program));
    let served = |body: fn(&Setup) -> Result<()>| body(&Setup::new(program)?);
    cases.case("admin-port-taken-on-loopback", || {
        served(|node| port_taken(node, Ipv4Addr::LOCALHOST.into()))
    });
    cases.case("admin-port-taken-everywhere", || {
        served(|node| port_taken(node, Ipv6Addr::UNSPECIFIED.into()))
    });
    cases.case("admin-socket-impossible", || served(socket_impossible));
    cases.case("neither-admin-port-nor-socket", || served(neither));
    cases.case("log-closed", || served(|node| log(node, "2>&-", false)));
    cases.case("log-full", || served(|node| log(node, "2>/dev/full", true)));
    cases.case("mount-whose-name-is-not-utf-8", || served(odd_mount));
    cases.case("no-inotify-for-manifests", || served(manifests_untold));
    cases.case("no-inotify-for-cgroups", || cgroups_untold(program));
    cases.case("last-known-unwritable", || last_known(program));
    Ok(())
}

/// A kubelet, a pod, and the settings of a daemon.
struct Setup {
    kubelet: Kubelet,
    cgroup: Cgroup,
    spec: DaemonSpec,
    run: Run,
}

impl Setup {
    fn new(program: Option<&Path>) -> Result<Self> {
        let run = Run::new()?;
        let cgroup = Cgroup::new(&run, "kubelet")?;
        let kubelet = Kubelet::start(&run, &cgroup, "kubelet")?;
        let spec = DaemonSpec::new("daemon")
            .program(program)
            .kubelet_cgroup(&cgroup);
        Ok(Self {
            kubelet,
            cgroup,
            spec,
            run,
        })
    }

    /// Starts a daemon of `spec`, and checks that it is ready and serves a pod with correct probe results.
    fn serve(&self, spec: DaemonSpec) -> Result<(Daemon, Pod)> {
        let daemon = spec.start(&self.run)?;
        let pod = truth(&self.run, &daemon, &self.kubelet)?;
        Ok((daemon, pod))
    }
}

/// Checks that the daemon serves a pod with correct probe results.
fn truth(run: &Run, daemon: &Daemon, kubelet: &Kubelet) -> Result<Pod> {
    let mut pod = sample_pod::pod("probed").start(run)?;
    daemon.serve(&mut pod)?;
    sample_pod::check_verdicts(kubelet, pod.ns.ipv4().into())?;
    Ok(pod)
}

/// The reason in `status` why the part is missing.
fn why_missing(status: &Value, part: &str) -> Option<String> {
    let missing = status["missing"].as_array()?;
    let missing = missing.iter().find(|missing| missing["part"] == part)?;
    missing["why"].as_str().map(str::to_owned)
}

/// Checks that `status` reports the part with these words, the log does so once, and the daemon is still ready.
fn is_missing(daemon: &Daemon, part: &str, words: &[&str]) -> Result<()> {
    let why = wait::until(&format!("{part} to be missing"), SOON, || {
        why_missing(&daemon.status().ok()?, part)
    })?;
    for word in words {
        ensure!(why.contains(word), "{word:?} is not in: {why}");
    }
    let (code, body) = daemon.get("/readyz")?;
    ensure!(code == 200, "/readyz answers {code}: {body}");
    let said = format!("part=\"{part}\"");
    let log = daemon.wait_logged(&["a part is missing", &said])?;
    let lines = log.lines().filter(|line| line.contains(&said));
    let times = lines.clone().count();
    ensure!(times == 1, "the log says it {times} times");
    ensure!(
        lines
            .clone()
            .all(|line| words.iter().all(|word| line.contains(word))),
        "the log says less than status: {log}"
    );
    Ok(())
}

/// Waits until the part is available.
fn is_there_again(daemon: &Daemon, part: &str) -> Result<()> {
    wait::until(&format!("{part} to be there"), SOON, || {
        let status = daemon.status().ok()?;
        why_missing(&status, part).is_none().then_some(())
    })
}

/// A process, killed on drop.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Any user can run a set-uid program of root through a link with any name: it is not the kubelet, and must not
/// prevent the daemon from finding the kubelet.
fn set_uid(program: Option<&Path>) -> Result<()> {
    let run = Run::new()?;
    let name = format!("ks{}", run.id());
    let cgroup = Cgroup::new(&run, "true")?;
    let kubelet = Kubelet::start(&run, &cgroup, &name)?;
    let directory = run.dir().join("anybodys");
    fs::create_dir(&directory)?;
    let copy = directory.join("sleep-of-roots");
    let _length = fs::copy(find("sleep")?, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o4755))?;
    let link = directory.join(&name);
    symlink(&copy, &link)?;
    let impostor = Process(
        Command::new("setpriv")
            .args(["--reuid", &NOBODY.to_string(), "--clear-groups"])
            .arg(&link)
            .arg("120")
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting setpriv")?,
    );
    let pid = impostor.0.id();
    wait::until("the set-uid program to run", SOON, || {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (comm.trim() == name).then_some(())
    })?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    if !status.contains(&format!("Uid:\t{NOBODY}\t0\t0\t0")) {
        let why = format!("{} is mounted nosuid", run.dir().display());
        return Err(Unavailable(why).into());
    }
    let daemon = DaemonSpec::new("among-impostors")
        .program(program)
        .arg("--kubelet-name")
        .arg(&name)
        .start(&run)?;
    let _pod = truth(&run, &daemon, &kubelet)?;
    let served = daemon.status()?["kubelet"]["pid"].take();
    ensure!(served == kubelet.pid(), "{served} is taken for the kubelet");
    let log = daemon.log()?;
    ensure!(!log.contains("several processes"), "{log}");
    Ok(())
}

/// Two processes of root have the kubelet's name: one is served, and the log reports it. A more likely one replaces
/// it when it starts.
fn several(program: Option<&Path>) -> Result<()> {
    let run = Run::new()?;
    let name = format!("km{}", run.id());
    let cgroups = [
        Cgroup::new(&run, "shared")?,
        Cgroup::new(&run, "own")?,
        Cgroup::new(&run, "late")?,
    ];
    let shared = Kubelet::start(&run, &cgroups[0], &name)?;
    let _beside = Kubelet::start(&run, &cgroups[0], "beside")?;
    let mut own = Kubelet::start(&run, &cgroups[1], &name)?;
    let daemon = DaemonSpec::new("of-several")
        .program(program)
        .arg("--kubelet-name")
        .arg(&name)
        .start(&run)?;
    let pod = truth(&run, &daemon, &own)?;
    let log = daemon.wait_logged(&["several processes could be the kubelet"])?;
    for said in [
        &format!("chosen={}", own.pid()),
        &shared.pid().to_string(),
        "fewer other processes",
        "--kubelet-cgroup",
    ] {
        ensure!(log.contains(said), "{said:?} is not in: {log}");
    }
    let ip = pod.ns.ipv4().into();
    sample_pod::check_mesh_only(&shared, ip)?;

    // Both are links to another program, but the executable of this one has the kubelet's name itself.
    let link = run.dir().join(&name);
    fs::remove_file(&link)?;
    let testbed = testbed_program()?;
    if fs::hard_link(&testbed, &link).is_err() {
        let _length = fs::copy(&testbed, &link)?;
    }
    let late = Kubelet::start(&run, &cgroups[2], &name)?;
    let serves = |kubelet: &Kubelet| {
        let pid = kubelet.pid();
        wait::until("the daemon to follow the kubelet", SOON, || {
            (daemon.status().ok()?["kubelet"]["process_filter"] == pid).then_some(())
        })
    };
    serves(&late)?;
    sample_pod::check_verdicts(&late, ip)?;
    let _log = daemon.wait_logged(&["another process is more likely the kubelet"])?;
    own.kill()?;
    sample_pod::check_verdicts(&late, ip)
}

/// Path of a command.
fn find(name: &str) -> Result<std::path::PathBuf> {
    // The guest's first process has no PATH.
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("no {name} in PATH"))
}

/// Listens at the address as an unprivileged user.
fn take_port(address: SocketAddr) -> Result<TcpListener> {
    thread::scope(|scope| {
        let taken = scope.spawn(|| {
            // Applies only to this thread, which ends: a socket belongs to the file system user of its creator.
            let _before = setfsuid(Uid::from_raw(NOBODY));
            TcpListener::bind(address)
        });
        let taken = taken.join().map_err(|_| anyhow!("binding panicked"))?;
        taken.with_context(|| format!("binding {address}"))
    })
}

/// Any user can listen on the admin port, because it is above 1023.
fn port_taken(node: &Setup, ip: std::net::IpAddr) -> Result<()> {
    let taken = take_port(SocketAddr::new(ip, 0))?;
    let port = taken.local_addr()?.port();
    let address = format!("[::]:{port}");
    let spec = node.spec.clone().admin_addr(&address);
    let (daemon, _pod) = node.serve(spec)?;
    is_missing(&daemon, "admin port", &["in use", &address, "--admin-addr"])?;
    let text = daemon.status_command(&[])?;
    ensure!(
        text.lines()
            .any(|line| line.starts_with("missing:") && line.contains("admin port")),
        "{text}"
    );
    let said = preflight(node, &["--admin-addr", &address])?;
    ensure!(
        said.contains("admin port") && said.contains("warn"),
        "{said}"
    );
    drop(taken);
    is_there_again(&daemon, "admin port")?;
    let _connected = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    Ok(())
}

/// The output of `preflight`, which succeeds because the agent can run.
fn preflight(node: &Setup, args: &[&str]) -> Result<String> {
    let program = node.spec.the_program()?;
    let output = Command::new(program)
        .args(["preflight", "--kubelet-cgroup"])
        .arg(node.cgroup.path())
        .args(args)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "preflight fails: {text}");
    Ok(text)
}

/// A free port on loopback.
fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The admin socket's directory is below a file.
fn socket_impossible(node: &Setup) -> Result<()> {
    let file = node.run.dir().join("a-file");
    fs::write(&file, "")?;
    let socket = file.join("probe-handler/admin.sock");
    let address = free_port()?;
    let spec = node.spec.clone().admin_socket(&socket).asked_at(address);
    let (daemon, _pod) = node.serve(spec)?;
    let shown = socket.display().to_string();
    is_missing(&daemon, "admin socket", &[&shown, "--admin-socket"])?;
    let said = preflight(node, &["--admin-addr", "none", "--admin-socket", &shown])?;
    ensure!(
        said.contains("admin socket") && said.contains("warn"),
        "{said}"
    );
    fs::remove_file(&file)?;
    is_there_again(&daemon, "admin socket")?;
    let _status = daemon.status_command(&[])?;
    Ok(())
}

/// The daemon has no admin listener at all, and still serves probes.
fn neither(node: &Setup) -> Result<()> {
    let file = node.run.dir().join("a-file");
    fs::write(&file, "")?;
    let taken = take_port(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let daemon = node
        .spec
        .clone()
        .admin_socket(&file.join("admin.sock"))
        .asked_at(taken.local_addr()?)
        .spawn(&node.run)?;
    let mut pod = sample_pod::pod("unasked").start(&node.run)?;
    pod.publish(daemon.pods())?;
    let probes = || sample_pod::check_verdicts(&node.kubelet, pod.ns.ipv4().into());
    wait::until("truthful probes", SOON, || probes().ok()).with_context(|| daemon.log_tail())?;
    drop(taken);
    is_there_again(&daemon, "admin port")?;
    ensure!(
        why_missing(&daemon.status()?, "admin socket").is_some(),
        "the admin socket is there"
    );
    probes()
}

/// Standard error is closed, or its file system is full.
fn log(node: &Setup, redirection: &str, told: bool) -> Result<()> {
    let script = format!("exec \"$@\" {redirection}");
    let spec = node.spec.clone().wrapped(&["sh", "-c", &script, "sh"]);
    let (daemon, _pod) = node.serve(spec)?;
    let why = why_missing(&daemon.status()?, "log");
    ensure!(why.is_some() == told, "status says of the log: {why:?}");
    ensure!(
        daemon.log()?.is_empty(),
        "something was logged: {}",
        daemon.log()?
    );
    Ok(())
}

/// Users may mount file systems (fusermount) at a path of any bytes.
fn odd_mount(node: &Setup) -> Result<()> {
    let _mounted = Mounted::at(node.run.dir().join(OsStr::from_bytes(b"\xff")))?;
    node.serve(node.spec.clone()).map(drop)
}

/// A mounted file system.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path)?;
        let none: Option<&str> = None;
        mount(none, &path, Some("tmpfs"), MsFlags::empty(), none)?;
        Ok(Self(path))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("testbed: {}: {error}", self.0.display());
        }
    }
}

/// The command prefix that runs a program without inotify.
fn without_inotify() -> Result<[String; 2]> {
    let testbed = testbed_program()?.display().to_string();
    Ok([testbed, "without-inotify".to_owned()])
}

fn manifests_untold(node: &Setup) -> Result<()> {
    let [testbed, verb] = without_inotify()?;
    let spec = node.spec.clone().wrapped(&[&testbed, &verb]);
    let (daemon, pod) = node.serve(spec)?;
    for part in ["watch on manifests", "watch on cgroups"] {
        is_missing(&daemon, part, &["max_user_instances"])?;
    }
    // The daemon notices a change of the directory.
    drop(pod);
    wait::until("the pod to go", SOON, || {
        let pods = daemon.status().ok()?["pods"].as_array()?.len();
        (pods == 0).then_some(())
    })?;
    let _pod = truth(&node.run, &daemon, &node.kubelet)?;
    Ok(())
}

/// The daemon finds pods' cgroups by polling.
fn cgroups_untold(program: Option<&Path>) -> Result<()> {
    let [testbed, verb] = without_inotify()?;
    of_a_cluster(
        |spec, _| spec.program(program).wrapped(&[&testbed, &verb]),
        |daemon| is_missing(daemon, "watch on cgroups", &["max_user_instances"]),
    )
}

fn last_known(program: Option<&Path>) -> Result<()> {
    of_a_cluster(
        |spec, run| {
            let file = run.dir().join("a-file").join("pods.json");
            let file = file.display().to_string();
            spec.program(program).arg("--last-known").arg(&file)
        },
        |daemon| {
            is_missing(
                daemon,
                "file of last-known pods",
                &["a-file", "--last-known"],
            )
        },
    )
}

/// Pods of an API server, one created before the daemon's start and one after, have correct probe results.
fn of_a_cluster(
    spec: impl FnOnce(DaemonSpec, &Run) -> DaemonSpec,
    missing: impl FnOnce(&Daemon) -> Result<()>,
) -> Result<()> {
    let run = Arc::new(Run::new()?);
    fs::write(run.dir().join("a-file"), "")?;
    let node = Node::start(&run, "node")?;
    let cgroup = Cgroup::new(&run, "kubelet")?;
    let kubelet = Kubelet::start(&run, &cgroup, "kubelet")?;
    let mut before = node.bind(sample_pod::pod("before"))?;
    before.run()?;
    let spec = spec(DaemonSpec::new("daemon").kubelet_cgroup(&cgroup), &run);
    let daemon = node.serve(spec).start(&run)?;
    let mut after = node.bind(sample_pod::pod("after"))?;
    after.run()?;
    for pod in [&before, &after] {
        daemon.wait_served_by_name(pod.name())?;
        sample_pod::check_verdicts(&kubelet, pod.ns()?.ipv4().into())?;
    }
    missing(&daemon)?;
    after.delete()?;
    drop(after);
    let mut again = node.bind(sample_pod::pod("again"))?;
    again.run()?;
    daemon.wait_served_by_name(again.name())?;
    sample_pod::check_verdicts(&kubelet, again.ns()?.ipv4().into())
}
