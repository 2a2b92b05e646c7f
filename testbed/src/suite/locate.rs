//! Finding a pod's network namespace by its UID: every cgroup layout, sandboxes that are created, recreated
//! and removed, and how soon the daemon notices.
//!
//! The cgroups are real, below directories that are used as the hierarchies' roots; the containers are
//! real processes in real network namespaces.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kernel::locate::{Locator, NotFound, Placement, hierarchies};
use model::netns::NetnsId;
use nix::unistd::{Uid, setfsuid};
use support::missing::Missing;
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;

use super::cases::Cases;
use crate::cgroup;
use crate::pace;
use crate::run::Run;
use crate::sandbox::{Hierarchies, Network, PodCgroup};
use crate::wait;

const UID: &str = "3f2e1d0c-1111-2222-3333-444455556666";
/// UID of a static pod: the hash of its manifest.
const HASH: &str = "5f0c9a1e2b3d4c5f6a7b8c9d0e1f2a3b";
/// Time limit for an expected event on a busy machine.
const SOON: Duration = Duration::from_secs(5);
/// How long to watch for an event that must not happen.
const QUIET: Duration = Duration::from_millis(300);
/// Number of pods that start at the same time.
const MANY: usize = 100;
/// Number of pods that the runtime starts in parallel.
const WORKERS: usize = 8;
/// Minimum time between the start of a sandbox and of its pod's first container: the kubelet makes three calls for it, in
/// which the runtime prepares a file system and runs runc.
const CONTAINER_IS_MADE: Duration = Duration::from_millis(20);
/// Number of directories that are created and removed while events are not read: more than the default of
/// fs.inotify.max_queued_events, 16384.
const FLOOD: usize = 10_000;
/// After this many equal observations the state counts as final.
const SETTLED: usize = 20;

/// Layouts: name, the pod's UID, its cgroup's path.
fn layouts() -> Vec<(&'static str, &'static str, String)> {
    let slice = UID.replace('-', "_");
    vec![
        ("cgroupfs-guaranteed", UID, format!("kubepods/pod{UID}")),
        (
            "cgroupfs-burstable",
            UID,
            format!("kubepods/burstable/pod{UID}"),
        ),
        (
            "cgroupfs-static",
            HASH,
            format!("kubepods/burstable/pod{HASH}"),
        ),
        (
            "cgroupfs-kind",
            UID,
            format!("kubelet/kubepods/besteffort/pod{UID}"),
        ),
        (
            "systemd-guaranteed",
            UID,
            format!("kubepods.slice/kubepods-pod{slice}.slice"),
        ),
        (
            "systemd-besteffort",
            UID,
            format!(
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{slice}.slice"
            ),
        ),
        (
            "systemd-static",
            HASH,
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice"),
        ),
        (
            "systemd-kind",
            UID,
            format!(
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                 kubelet-kubepods-burstable-pod{slice}.slice"
            ),
        ),
        (
            "runtime-without-systemd",
            UID,
            format!(
                "system.slice/containerd.service/kubepods-burstable-pod{slice}.slice:cri-containerd:0123"
            ),
        ),
    ]
}

pub fn run(cases: &mut Cases) -> Result<()> {
    let run = Run::new()?;
    let v2 = cgroup::mount()?;
    // Not cpuset: its cgroups accept processes only after processors and memory are assigned.
    let v1: Vec<PathBuf> = hierarchies(None)?
        .into_iter()
        .filter(|mount| *mount != v2 && !mount.ends_with("cpuset"))
        .collect();
    let hybrid = [std::slice::from_ref(&v2), v1.as_slice()].concat();
    for (name, mounts) in [
        ("v2", vec![v2.clone()]),
        ("v1", v1.clone()),
        ("hybrid", hybrid.clone()),
    ] {
        for (layout, uid, path) in layouts() {
            let case = format!("{name}/{layout}");
            if v1.is_empty() && name != "v2" {
                cases.skip(&case, "no cgroup v1 hierarchy is mounted");
                continue;
            }
            cases.case(&case, || one_layout(&run, &mounts, uid, &path));
        }
    }
    // The following cases do not depend on the layout.
    let node = || Node::new(&run, &hybrid);
    cases.case("sandbox-made-anew", || made_anew(&node()?));
    cases.case("sandbox-replaced", || replaced(&node()?));
    cases.case("app-outlives-its-sandbox", || outlived(&node()?));
    cases.case("host-network", || host_network(&node()?));
    cases.case("a-users-own-cgroups-are-no-pods", || delegated(&node()?));
    cases.case("monitor-in-the-nodes-network", || monitor(&node()?));
    cases.case("namespace-inside-a-container", || nested(&node()?));
    cases.case("many-at-once", || many_at_once(&node()?));
    cases.case("churn-leaves-nothing", || churn(&node()?));
    let v1_or_v2 = v1.first().unwrap_or(&v2);
    cases.case("events-lost", || {
        events_lost(&Node::new(&run, std::slice::from_ref(v1_or_v2))?)
    });
    Ok(())
}

/// A separate node, and a locator for it on a separate thread.
struct Node {
    locator: Arc<Locator>,
    runtime: Runtime,
    hierarchies: Hierarchies,
}

impl Node {
    fn new(run: &Run, mounts: &[PathBuf]) -> Result<Self> {
        let hierarchies = Hierarchies::new(run, "node", mounts)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let locator = {
            let _inside = runtime.enter();
            let locator = Locator::at(hierarchies.roots().to_vec())?;
            let _keeper = tokio::spawn(locator.keep(Missing::default()));
            locator
        };
        Ok(Self {
            locator,
            runtime,
            hierarchies,
        })
    }

    fn follow(&self, uid: &str) -> Followed {
        let mut following = self.locator.follow(uid);
        let (news, receiver) = channel();
        let task = self.runtime.spawn(async move {
            loop {
                // The namespace itself is closed at once.
                let place = match following.next().await {
                    Placement::In(netns) => Ok(netns.id()),
                    Placement::Nowhere(why) => Err(why),
                };
                if news.send((Instant::now(), place)).is_err() {
                    return;
                }
            }
        });
        Followed {
            news: receiver,
            task: task.abort_handle(),
        }
    }

    /// A pod with its cgroups, as the kubelet creates them.
    fn pod(&self, uid: &str) -> Result<PodCgroup> {
        let pod = self
            .hierarchies
            .pod(&format!("kubepods/burstable/pod{uid}"));
        pod.make()?;
        Ok(pod)
    }
}

type News = (Instant, Result<NetnsId, NotFound>);

/// What the locator reports about a pod.
struct Followed {
    news: Receiver<News>,
    task: AbortHandle,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Followed {
    fn next(&self) -> Result<News> {
        self.news
            .recv_timeout(pace::stretch(SOON))
            .context("nothing was told in time")
    }

    /// The next reported namespace, and when it was reported.
    fn found(&self) -> Result<(Instant, NetnsId)> {
        let end = Instant::now() + pace::stretch(SOON);
        while Instant::now() < end {
            if let (at, Ok(netns)) = self.next()? {
                return Ok((at, netns));
            }
        }
        bail!("not found in time")
    }

    /// When the locator reported that the pod has no namespace, which must be its next report.
    fn lost(&self) -> Result<Instant> {
        match self.next()? {
            (at, Err(_)) => Ok(at),
            (_, Ok(netns)) => bail!("told {netns:?} of a pod that ended"),
        }
    }

    fn quiet(&self) -> Result<()> {
        match self.news.recv_timeout(QUIET) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            told => bail!("nothing should be told: {told:?}"),
        }
    }
}

fn one_layout(run: &Run, mounts: &[PathBuf], uid: &str, path: &str) -> Result<()> {
    let node = Node::new(run, mounts)?;
    let mut pod = node.hierarchies.pod(path);
    let early = node.follow(uid);
    ensure!(
        matches!(early.next()?, (_, Err(NotFound::NoCgroup))),
        "there is no pod yet"
    );
    // The directories above the pod's do not exist yet either.
    pod.make()?;
    let sandbox = pod.container(Network::New)?;
    let runs = Instant::now();
    let (at, netns) = early.found()?;
    ensure!(netns == sandbox.netns()?, "another namespace was found");
    let late = node.follow(uid);
    ensure!(
        matches!(late.next()?, (_, Ok(found)) if found == netns),
        "what is there already is found at once"
    );
    // Another daemon, started later.
    let second = {
        let _inside = node.runtime.enter();
        Locator::at(node.hierarchies.roots().to_vec())?
    };
    let placement = node.runtime.block_on(second.follow(uid).next());
    ensure!(
        matches!(placement, Placement::In(found) if found.id() == netns),
        "a locator that starts later finds it at once"
    );
    let killed = sandbox.kill();
    let lost = early.lost()?;
    println!(
        "     found {} the sandbox ran, its end seen after {:?}",
        before_or_after(at, runs),
        lost.saturating_duration_since(killed)
    );
    pod.remove()
}

fn before_or_after(at: Instant, event: Instant) -> String {
    match at.checked_duration_since(event) {
        Some(late) => format!("{late:?} after"),
        None => format!("{:?} before", event.duration_since(at)),
    }
}

/// The old sandbox ends before the new one starts.
fn made_anew(node: &Node) -> Result<()> {
    let mut pod = node.pod(UID)?;
    let followed = node.follow(UID);
    let first = pod.container(Network::New)?;
    let (_, one) = followed.found()?;
    ensure!(one == first.netns()?, "the first sandbox's");
    let _when = first.kill();
    let _when = followed.lost()?;
    let second = pod.container(Network::New)?;
    let runs = Instant::now();
    let (at, two) = followed.found()?;
    ensure!(two == second.netns()?, "the second sandbox's");
    println!("     found {} the sandbox ran", before_or_after(at, runs));
    Ok(())
}

/// The new sandbox starts before the old one ends.
fn replaced(node: &Node) -> Result<()> {
    let mut pod = node.pod(UID)?;
    let followed = node.follow(UID);
    let first = pod.container(Network::New)?;
    let (_, one) = followed.found()?;
    let second = pod.container(Network::New)?;
    followed.quiet()?;
    let two = second.netns()?;
    ensure!(one == first.netns()? && one != two, "two namespaces");
    let killed = first.kill();
    match followed.next()? {
        (at, Ok(netns)) if netns == two => {
            println!("     followed after {:?}", at - killed);
            Ok(())
        }
        other => bail!("the pod is in the second sandbox: {other:?}"),
    }
}

/// The sandbox's process ends while an app of the pod continues.
fn outlived(node: &Node) -> Result<()> {
    let mut pod = node.pod(UID)?;
    let followed = node.follow(UID);
    let sandbox = pod.container(Network::New)?;
    let (_, one) = followed.found()?;
    let app = pod.container(Network::Of(&sandbox))?;
    ensure!(app.netns()? == one, "both are in one namespace");
    let _when = sandbox.kill();
    followed.quiet()?;
    let _when = app.kill();
    followed.lost().map(drop)
}

fn host_network(node: &Node) -> Result<()> {
    let mut pod = node.pod(UID)?;
    let _app = pod.container(Network::Host)?;
    let followed = node.follow(UID);
    ensure!(
        matches!(followed.next()?, (_, Err(NotFound::Host))),
        "the node's namespace is no pod's"
    );
    followed.quiet()
}

/// systemd lets a user create cgroups below its own. Those with a pod's name are ignored there.
fn delegated(node: &Node) -> Result<()> {
    const USER: u32 = 65534;
    for above in ["user.slice/user@1000.service", "a.slice"] {
        let mut pod = node.hierarchies.pod(&format!("{above}/kubepods/pod{UID}"));
        for root in node.hierarchies.roots() {
            let given = root.join(above);
            fs::create_dir_all(&given)?;
            std::os::unix::fs::chown(&given, Some(USER), None)?;
        }
        // The user owns what it creates.
        as_user(USER, || pod.make())?;
        let followed = node.follow(UID);
        let _impostor = pod.container(Network::New)?;
        let (_, told) = followed.next()?;
        ensure!(
            matches!(told, Err(NotFound::NoCgroup)),
            "told {told:?} of a pod that has no cgroup yet"
        );
        followed.quiet()?;
    }
    Ok(())
}

/// Runs `work` with the file permissions of user `uid`.
fn as_user<T: Send>(uid: u32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let user = || {
        // Only for this thread, which ends afterwards.
        let _before = setfsuid(Uid::from_raw(uid));
        work()
    };
    thread::scope(|scope| {
        let done = scope.spawn(user).join();
        done.map_err(|_| anyhow!("the user's work panicked"))?
    })
}

/// CRI-O can have its monitor, which is in the node's network namespace, in the pod's cgroup.
fn monitor(node: &Node) -> Result<()> {
    let mut pod = node.pod(UID)?;
    let _monitor = pod.container(Network::Host)?;
    let followed = node.follow(UID);
    let sandbox = pod.container(Network::New)?;
    let (_, netns) = followed.found()?;
    ensure!(netns == sandbox.netns()?, "the sandbox's");
    Ok(())
}

/// A container can create namespaces; the pod's namespace is that of its first process.
fn nested(node: &Node) -> Result<()> {
    let mut pod = node.pod(UID)?;
    let sandbox = pod.container(Network::New)?;
    // Start times have a resolution of 10 ms.
    wait::pass(Duration::from_millis(30))?;
    let inner = pod.container(Network::New)?;
    ensure!(inner.netns()? != sandbox.netns()?, "two namespaces");
    let (_, netns) = node.follow(UID).found()?;
    ensure!(netns == sandbox.netns()?, "the sandbox's");
    Ok(())
}

/// A pod's namespace is usually known before its first app runs. `bench` checks on an idle machine that it always is; here
/// the processes that start pods compete with the locator.
fn many_at_once(node: &Node) -> Result<()> {
    let uid = |index: usize| format!("{index:08x}-1111-2222-3333-444455556666");
    let followed: Vec<Followed> = (0..MANY).map(|index| node.follow(&uid(index))).collect();
    let next = AtomicUsize::new(0);
    let start = |index: usize| {
        let mut pod = node.pod(&uid(index))?;
        let sandbox = pod.container(Network::New)?;
        let sandbox_runs = Instant::now();
        wait::pass(pace::stretch(CONTAINER_IS_MADE))?;
        let app = pod.container(Network::Of(&sandbox))?;
        Ok((index, pod, sandbox, app, sandbox_runs, Instant::now()))
    };
    let worker = || -> Result<Vec<_>> {
        let mine = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
        mine.take_while(|index| *index < MANY).map(start).collect()
    };
    let begun = Instant::now();
    let started: Vec<Result<Vec<_>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("it panicked")))
            .collect()
    });
    let took = begun.elapsed();
    let mut lags = Vec::new();
    let mut late = 0;
    let mut pods = Vec::new();
    for start in started
        .into_iter()
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
    {
        let (index, pod, sandbox, app, sandbox_runs, app_runs) = start;
        let (at, netns) = followed[index].found()?;
        ensure!(netns == sandbox.netns()?, "another pod's namespace");
        lags.push(at.saturating_duration_since(sandbox_runs));
        late += usize::from(at > app_runs);
        pods.push((pod, sandbox, app));
    }
    lags.sort_unstable();
    println!(
        "     {MANY} pods in {took:?}; found after the sandbox ran: median {:?}, 99th {:?}, last {:?}; \
         {late} after the app ran",
        lags[MANY / 2],
        lags[MANY - 2],
        lags[MANY - 1]
    );
    ensure!(
        late <= MANY / 10,
        "{late} of {MANY} apps ran before their pod was found"
    );
    Ok(())
}

fn churn(node: &Node) -> Result<()> {
    let open = || fs::read_dir("/proc/self/fd").map(|entries| entries.count());
    let round = |index: usize| -> Result<()> {
        let uid = format!("{index:08x}-1111-2222-3333-444455556666");
        let mut pod = node.pod(&uid)?;
        let followed = node.follow(&uid);
        let sandbox = pod.container(Network::New)?;
        let _found = followed.found()?;
        let _when = sandbox.kill();
        let _when = followed.lost()?;
        pod.remove()
    };
    // The first pod creates what all pods share.
    round(0)?;
    let (mut size, mut alike) = ((0, 0), 0);
    wait::until("the first one to be let go of", SOON, || {
        let now = node.locator.size();
        alike = if now == size { alike + 1 } else { 0 };
        size = now;
        (size.1 == 0 && alike >= SETTLED).then_some(())
    })?;
    let before = open()?;
    for index in 1..50 {
        round(index)?;
    }
    // A search whose result is no longer needed may keep some descriptors open for a moment.
    let gone = wait::until("every watch to be gone", SOON, || {
        (node.locator.size() == size).then_some(())
    });
    gone.with_context(|| format!("{size:?}, then {:?}", node.locator.size()))?;
    wait::until("every descriptor to be closed", SOON, || {
        open().is_ok_and(|now| now <= before).then_some(())
    })
}

/// More events occur than the kernel queues.
fn events_lost(node: &Node) -> Result<()> {
    let followed = node.follow(UID);
    let _first = followed.next()?;
    let (resume, wait) = channel::<()>();
    let blocked = node.runtime.spawn(async move {
        let _ended = wait.recv();
    });
    let root = &node.hierarchies.roots()[0];
    for _ in 0..FLOOD {
        fs::create_dir(root.join("flood"))?;
        fs::remove_dir(root.join("flood"))?;
    }
    let mut pod = node.pod(UID)?;
    let sandbox = pod.container(Network::New)?;
    drop(resume);
    node.runtime.block_on(blocked)?;
    let (_, netns) = followed.found()?;
    ensure!(netns == sandbox.netns()?, "the sandbox's");
    Ok(())
}
