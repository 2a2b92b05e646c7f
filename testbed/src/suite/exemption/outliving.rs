//! The parts of the kernel path that remain when the daemon ends, in each way in which it can end.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use kernel::exemption::TABLE;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use probe_handler_common::maps::CONNECTING_PIN;

use super::declared::{self, BOTH, CLOSED, HTTP, OPEN, by_kernel};
use super::results::Results;
use crate::app::AppSpec;
use crate::bpf;
use crate::cgroup::Cgroup;
use crate::command;
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::{Kubelet, Probe};
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::run::Run;
use crate::suite::cases::Cases;
use crate::suite::env::{GRACE, HANDLER_PATH};
use crate::suite::pod_pair::{Family, declare, http_get, tcp_socket};
use crate::{pace, tc, wait};

const SOON: Duration = Duration::from_secs(5);
/// How soon a daemon pins its attachments again after the owner of the pins has ended.
const BACK: Duration = Duration::from_secs(10);
/// The daemon's programs on the kubelet's cgroup.
const PROGRAMS: u32 = 6;

/// How often a daemon is killed, or ends, during probes: less often on an emulated processor, where the kernel takes seconds
/// to verify the programs.
fn times() -> u32 {
    match pace::factor() {
        1 => 5,
        _ => 2,
    }
}

pub(super) fn run(cases: &mut Cases) -> Result<()> {
    if !cases.wants("outliving/") {
        return Ok(());
    }
    with_node(cases, None, all)
}

/// With a tc filter in the pod, which outlives the daemon too.
pub(super) fn by_tc(cases: &mut Cases) -> Result<()> {
    if !cases.wants("outliving/") {
        return Ok(());
    }
    with_node(cases, Some("--kernel-path-tc"), |cases, node, pod| {
        let mut daemon = node.daemon("first", None, &[])?;
        cases.show_on_failure(daemon.log_path());
        let pods = daemon.pods().to_owned();
        daemon.serve(pod)?;
        node.served(&daemon, pod)?;
        let path = daemon.pod_status(pod.name())?.unwrap_or_default()["path"].clone();
        ensure!(path == "kernel_tc", "{path}");
        cases.case("outliving/a-daemon-that-is-killed-is-not-missed", || {
            let _status = daemon.kill()?;
            node.right(pod)?;
            node.captured(node.bystander, pod)
        });
        drop(daemon);
        // It takes minutes there, and the daemon's part is the same as without tc.
        if !cases.skip_if_emulated("outliving/upgraded-under-probes") {
            cases.case("outliving/upgraded-under-probes", || {
                upgraded(node, pod, &pods)
            });
        }
        cases.case("outliving/cleanup-leaves-nothing", || {
            cleaned_up(node, pod, &pods)
        });
        Ok(())
    })
}

/// Runs cases with a node, whose daemons get `arg`, and a pod.
pub(super) fn with_node(
    cases: &mut Cases,
    arg: Option<&'static str>,
    run_cases: impl FnOnce(&mut Cases, &Node<'_>, &mut Pod) -> Result<()> + Send,
) -> Result<()> {
    let run = Run::new()?;
    let cgroup = Cgroup::new(&run, "kubelet")?;
    let kubelet = Kubelet::start(&run, &cgroup, "kubelet")?;
    let bystander = Kubelet::bystander()?;
    let mut pod = declared::pod("outliving").start(&run)?;
    // A separate mount that is removed when the test ends, even if it is killed: it is in a mount namespace that only
    // this thread and its children have.
    thread::scope(|scope| {
        let cases = scope.spawn(|| {
            let node = Node {
                bpffs: private_bpffs(&run)?,
                arg,
                run: &run,
                cgroup: &cgroup,
                kubelet: &kubelet,
                bystander: &bystander,
            };
            run_cases(cases, &node, &mut pod)
        });
        cases.join().map_err(|_| anyhow!("the cases panicked"))?
    })
}

fn private_bpffs(run: &Run) -> Result<PathBuf> {
    let directory = run.dir().join("bpf");
    fs::create_dir(&directory)?;
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
    let nothing = None::<&str>;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        nothing,
    )?;
    mount(
        Some("bpf"),
        &directory,
        Some("bpf"),
        MsFlags::empty(),
        nothing,
    )
    .context("a bpffs")?;
    Ok(directory)
}

pub(super) struct Node<'a> {
    pub run: &'a Run,
    cgroup: &'a Cgroup,
    pub kubelet: &'a Kubelet,
    bystander: &'a Kubelet,
    bpffs: PathBuf,
    /// An argument of all daemons.
    arg: Option<&'static str>,
}

impl Node<'_> {
    /// A daemon that follows the manifests in `pods`, or in a directory of its own.
    pub fn daemon(&self, name: &str, pods: Option<&Path>, args: &[&str]) -> Result<Daemon> {
        let mut spec = DaemonSpec::new(name)
            .kubelet_cgroup(self.cgroup)
            .arg("--bpffs")
            .arg(&self.pins().display().to_string());
        if !args.contains(&HANDLER_PATH) {
            spec = spec.arg("--kernel-path");
        }
        for arg in self.arg.iter().chain(args) {
            spec = spec.arg(arg);
        }
        if let Some(pods) = pods {
            spec = spec.pods(pods);
        }
        spec.start(self.run)
    }

    fn pins(&self) -> PathBuf {
        self.bpffs.join("probe-handler")
    }

    /// Number of pinned attachments, without those that are being replaced.
    fn pinned_links(&self) -> Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(self.pins())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            count += usize::from(name.starts_with("link-") && !name.contains("-new-"));
        }
        Ok(count)
    }

    /// Waits until the kernel path serves the pod, and no earlier daemon's programs are there.
    pub fn served(&self, daemon: &Daemon, pod: &Pod) -> Result<()> {
        by_kernel(daemon, pod)?;
        wait::until("the earlier programs' end", SOON, || {
            (bpf::attached(self.cgroup.path()).ok()? == PROGRAMS).then_some(())
        })
    }

    /// The kubelet's probes are right, but for those that the handler must see.
    pub fn right(&self, pod: &Pod) -> Result<()> {
        for family in Family::ALL {
            let ip = family.ip(&pod.ns);
            declared::opaque(self.kubelet, ip, &|probe| family.form(probe))?;
            let http = family.form(Probe::http(ip, HTTP, "/healthy"));
            let result = self.kubelet.probe(&http)?;
            ensure!(result.passed(), "{result:?}");
        }
        Ok(())
    }

    /// Others meet the mesh.
    fn captured(&self, who: &Kubelet, pod: &Pod) -> Result<()> {
        for ip in pod.ns.ips() {
            let http = who.probe(&Probe::http(ip, BOTH, "/healthy"))?;
            ensure!(!http.passed(), "bypassed the mesh: {http:?}");
            let closed = who.probe(&Probe::tcp(ip, CLOSED))?;
            ensure!(closed.passed(), "not captured: {closed:?}");
        }
        Ok(())
    }
}

fn all(cases: &mut Cases, node: &Node<'_>, pod: &mut Pod) -> Result<()> {
    let mut daemon = node.daemon("first", None, &[])?;
    cases.show_on_failure(daemon.log_path());
    let pods = daemon.pods().to_owned();
    daemon.serve(pod)?;
    node.served(&daemon, pod)?;

    cases.case("outliving/a-daemon-that-is-killed-is-not-missed", || {
        let _status = daemon.kill()?;
        node.right(pod)?;
        node.captured(node.bystander, pod)
    });
    // The next cases begin without a daemon, also where this one was not selected.
    drop(daemon);
    cases.case("outliving/several-kinds-on-one-port", || {
        for ip in pod.ns.ips() {
            for (probe, passes) in [
                (Probe::http(ip, BOTH, "/healthy"), true),
                (Probe::http(ip, BOTH, "/failing"), false),
                (Probe::tcp(ip, BOTH), true),
            ] {
                let result = node.kubelet.probe(&probe)?;
                ensure!(result.passed() == passes, "{probe:?}: {result:?}");
            }
        }
        Ok(())
    });
    cases.case("outliving/killed-and-started-under-probes", || {
        under_probes(node, pod, |turn| {
            let mut daemon = node.daemon(&format!("killed{turn}"), Some(&pods), &[])?;
            node.served(&daemon, pod)?;
            daemon.kill().map(drop)
        })
    });
    cases.case("outliving/upgraded-under-probes", || {
        upgraded(node, pod, &pods)
    });
    cases.case("outliving/results-are-known-after-an-upgrade", || {
        let old = node.daemon("old", Some(&pods), &[])?;
        node.served(&old, pod)?;
        let new = node.daemon("new", Some(&pods), &[])?;
        by_kernel(&new, pod)?;
        drop(old);
        node.served(&new, pod)?;
        for family in Family::ALL {
            let results = Results::of(&new, pod)?;
            let ip = family.ip(&pod.ns);
            declared::opaque(node.kubelet, ip, &|probe| family.form(probe))?;
            results.grow(declared::OPAQUE)?;
        }
        ensure!(node.pins().join("link-answer").exists(), "not pinned");
        Ok(())
    });
    // An upgrade that is rolled back: the new daemon has replaced the pins, and dies.
    cases.case("outliving/pins-of-a-dead-daemon-are-taken-back", || {
        let old = node.daemon("old", Some(&pods), &[])?;
        node.served(&old, pod)?;
        let mut new = node.daemon("new", Some(&pods), &[])?;
        by_kernel(&new, pod)?;
        let pinned = || fs::metadata(node.pins().join("link-sock_ops"));
        let of_new = pinned()?.ino();
        let _status = new.kill()?;
        wait::until("the old daemon to pin again", BACK, || {
            (pinned().ok()?.ino() != of_new).then_some(())
        })?;
        node.served(&old, pod)?;
        fs::remove_dir_all(node.pins())?;
        // Waits for all pins, because a daemon that is killed between two pins leaves only the first.
        wait::until("the old daemon to pin again", BACK, || {
            (node.pinned_links().ok()? == PROGRAMS as usize).then_some(())
        })?;
        drop(old);
        node.right(pod)
    });
    // Two daemons with separate maps would replace each other's rules, and with the rules of a killed daemon
    // connections go to the mesh.
    cases.case(
        "outliving/a-daemon-without-pins-does-not-change-rules",
        || {
            let owner = node.daemon("owner", Some(&pods), &[])?;
            node.served(&owner, pod)?;
            for turn in 0..times() {
                let mut beside = without_pins(node, &format!("beside{turn}"), &pods)?;
                let why = wait::until("why it does not change the rules", SOON, || {
                    beside.pod_status(pod.name()).ok()??["path"]["handler"]
                        .as_str()
                        .map(str::to_owned)
                })?;
                ensure!(why.contains("another daemon"), "{why}");
                let _status = beside.kill()?;
                node.right(pod)?;
                node.captured(node.bystander, pod)?;
            }
            Ok(())
        },
    );
    cases.case(
        "outliving/pins-that-fail-are-shown-and-leftovers-removed",
        || {
            let leftover = node.pins().join("link-sock_ops-new-4194305");
            let map = bpf::make_map(HASH, 4, 4, 1, 0)?;
            bpf::pin(&map, &leftover)?;
            let pin = node.pins().join("link-connect4");
            let _none = fs::remove_file(&pin);
            // Nothing can replace a directory.
            fs::create_dir(&pin)?;
            let daemon = node.daemon("unpinned", Some(&pods), &[])?;
            by_kernel(&daemon, pod)?;
            let problems = || Some(daemon.status().ok()?["source"]["problems"].to_string());
            wait::until("the problem", SOON, || {
                problems()?.contains("cannot pin connect4").then_some(())
            })?;
            ensure!(!leftover.exists(), "{} remains", leftover.display());
            fs::remove_dir(&pin)?;
            wait::until("the daemon to pin again", BACK, || {
                (!problems()?.contains("cannot pin")).then_some(())
            })?;
            node.right(pod)
        },
    );
    cases.case("outliving/a-lease-ends-it", || {
        let mut daemon = node.daemon("leased", Some(&pods), &["--outlive", "1s"])?;
        node.served(&daemon, pod)?;
        let _status = daemon.kill()?;
        wait::until("the end of the lease", SOON, || {
            node.captured(node.kubelet, pod).ok()
        })
    });
    cases.case("outliving/a-daemon-without-it-removes-it", || {
        let mut daemon = node.daemon("before", Some(&pods), &[])?;
        node.served(&daemon, pod)?;
        let _status = daemon.kill()?;
        let without = node.daemon("without", Some(&pods), &[HANDLER_PATH])?;
        without.wait_served(pod)?;
        wait::until("the pins to go", SOON, || {
            (!node.pins().exists()).then_some(())
        })?;
        drop(without);
        wait::until("the mesh", SOON, || node.captured(node.kubelet, pod).ok())
    });
    cases.case("outliving/cleanup-leaves-nothing", || {
        cleaned_up(node, pod, &pods)
    });
    cases.case("outliving/cleanup-during-a-drain-leaves-nothing", || {
        cleaned_up_during_a_drain(node)
    });
    cases.case("outliving/a-foreign-map-is-unchanged", || {
        fs::create_dir_all(node.pins())?;
        let pin = node.pins().join(CONNECTING_PIN);
        let _none = std::fs::remove_file(&pin);
        let map = bpf::make_map(HASH, 4, 4, 1, 0)?;
        bpf::pin(&map, &pin)?;
        let daemon = node.daemon("foreign", Some(&pods), &[])?;
        by_kernel(&daemon, pod)?;
        node.right(pod)?;
        let problems = daemon.status()?["source"]["problems"].to_string();
        ensure!(problems.contains(CONNECTING_PIN), "{problems}");
        ensure!(
            !problems.contains("stay active with its endpoints"),
            "{problems}"
        );
        // The same, if an earlier daemon's attachments are pinned.
        drop(daemon);
        let attachment = node.pins().join("link-sock_ops");
        bpf::pin(&map, &attachment)?;
        let daemon = node.daemon("foreign-beside", Some(&pods), &[])?;
        let problems = daemon.status()?["source"]["problems"].to_string();
        ensure!(
            problems.contains("stay active with its endpoints"),
            "{problems}"
        );
        std::fs::remove_file(&attachment)?;
        std::fs::remove_file(&pin)?;
        Ok(())
    });
    cases.case("outliving/the-last-daemon-without-pins-takes-over", || {
        fs::remove_dir_all(node.pins())?;
        let mut first = without_pins(node, "first-without", &pods)?;
        by_kernel(&first, pod)?;
        let second = without_pins(node, "second-without", &pods)?;
        second.wait_served(pod)?;
        let status = first.stop(GRACE)?;
        ensure!(status.success(), "{status}");
        // Served by the handler, whose refusals are EPERM before Linux 6.1.
        for ip in pod.ns.ips() {
            for (probe, passes) in [
                (Probe::http(ip, HTTP, "/healthy"), true),
                (Probe::tcp(ip, CLOSED), false),
            ] {
                let result = node.kubelet.probe(&probe)?;
                ensure!(result.passed() == passes, "{probe:?}: {result:?}");
            }
        }
        by_kernel(&second, pod)?;
        node.right(pod)
    });
    Ok(())
}

/// Daemons replace one another while the kubelet probes.
fn upgraded(node: &Node<'_>, pod: &Pod, pods: &Path) -> Result<()> {
    let mut old = node.daemon("upgraded", Some(pods), &[])?;
    under_probes(node, pod, |turn| {
        let new = node.daemon(&format!("upgraded{turn}"), Some(pods), &[])?;
        by_kernel(&new, pod)?;
        let status = std::mem::replace(&mut old, new).stop(GRACE)?;
        ensure!(status.success(), "{status}");
        node.served(&old, pod)
    })?;
    // The last one ends as Kubernetes ends it, and has no successor.
    let status = old.stop(GRACE)?;
    ensure!(status.success(), "{status}");
    node.right(pod)?;
    node.captured(node.bystander, pod)
}

/// `cleanup` removes what a killed daemon has left behind.
fn cleaned_up(node: &Node<'_>, pod: &Pod, pods: &Path) -> Result<()> {
    let mut daemon = node.daemon("cleaned", Some(pods), &[])?;
    node.served(&daemon, pod)?;
    let program = daemon.program().to_owned();
    let _status = daemon.kill()?;
    node.right(pod)?;
    cleanup(node, &program, pod)?;
    node.captured(node.kubelet, pod)?;
    nothing_left(node, pod)
}

/// A daemon that still drains puts nothing of it back.
fn cleaned_up_during_a_drain(node: &Node<'_>) -> Result<()> {
    // Longer than a daemon takes to look at its pins, and than a thread of it may hang.
    let check = format!("/slow?ms={}", 12_000 / pace::factor());
    let mut slow = http_get(HTTP, &check);
    slow["timeoutSeconds"] = 20.into();
    let pod = PodSpec::new("draining").rules(RuleSet::IstioRedirect);
    let pod = declare(
        pod.app(AppSpec::new().http(HTTP).tcp(OPEN)),
        [slow, tcp_socket(OPEN)],
    );
    let mut pod = pod.start(node.run)?;
    let mut daemon = node.daemon("draining", None, &[])?;
    daemon.serve(&mut pod)?;
    node.served(&daemon, &pod)?;
    let probe = Probe::http(pod.ns.ipv4(), HTTP, &check).timeout(Duration::from_secs(20));
    let pending = node.kubelet.begin(&probe)?;
    wait::until("the app to be asked", SOON, || {
        (!pod.app.take_recorded().ok()?.is_empty()).then_some(())
    })?;
    daemon.signal(Signal::SIGTERM)?;
    let _log = daemon.wait_logged(&["draining"])?;
    cleanup(node, daemon.program(), &pod)?;
    let result = pending.wait()?;
    ensure!(result.passed(), "the check in flight was lost: {result:?}");
    let _status = daemon.wait_end(GRACE)?;
    nothing_left(node, &pod)
}

fn nothing_left(node: &Node<'_>, pod: &Pod) -> Result<()> {
    ensure!(!node.pins().exists(), "pins are left");
    wait::until("the programs' end", SOON, || {
        (bpf::attached(node.cgroup.path()).ok()? == 0).then_some(())
    })?;
    let tables = pod
        .ns
        .run(|| command::run("nft", &["list", "tables"], ""))?;
    let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
    ensure!(!tables.contains(TABLE), "{tables}");
    ensure!(!tc::has_clsact(&pod.ns)?, "qdisc clsact is left");
    Ok(())
}

/// Runs `probe-handler cleanup --stay` where it can access only one pod's network namespace, because it would also
/// remove what other tests use. It ends on SIGTERM, which the kernel sends it when `unshare` ends.
fn cleanup(node: &Node<'_>, program: &Path, pod: &Pod) -> Result<()> {
    const SCRIPT: &str = r#"
        mount -t proc proc /proc && mkdir "$1" && : >"$1/pod" && mount --bind "$2" "$1/pod" &&
        mount --rbind "$1" /run/netns && exec "$3" cleanup --stay --bpffs "$4"
    "#;
    let mut parent = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child=SIGTERM"])
        .args(["sh", "-ec", SCRIPT, "sh"])
        .arg(node.run.dir().join(format!("netns-{}", pod.name())))
        .arg(pod.ns.path())
        .arg(program)
        .arg(node.pins())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = parent.stdout.take().context("no standard output")?;
    let (said, lines) = mpsc::channel();
    let _reader = thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        lines
            .take_while(|line| said.send(line.clone()).is_ok())
            .count()
    });
    let limit = pace::stretch(SOON);
    let removed = std::iter::from_fn(|| lines.recv_timeout(limit).ok())
        .find(|line| line.contains("rules were removed"));
    parent.kill()?;
    let _status = parent.wait()?;
    ensure!(
        removed.as_deref().is_some_and(|line| line.ends_with(": 1")),
        "{removed:?}"
    );
    let after = lines.recv_timeout(limit);
    ensure!(
        after == Err(mpsc::RecvTimeoutError::Disconnected),
        "it did not end on SIGTERM: {after:?}"
    );
    Ok(())
}

/// A daemon that can't pin anything.
fn without_pins(node: &Node<'_>, name: &str, pods: &Path) -> Result<Daemon> {
    let daemon = DaemonSpec::new(name)
        .kubelet_cgroup(node.cgroup)
        .arg("--kernel-path")
        .arg("--bpffs")
        .arg("/proc/no-such-directory")
        .pods(pods)
        .start(node.run)?;
    Ok(daemon)
}

/// `BPF_MAP_TYPE_HASH`.
const HASH: u32 = 1;

/// Does something to daemons again and again, while the kubelet probes: no verdict is wrong.
fn under_probes(node: &Node<'_>, pod: &Pod, mut work: impl FnMut(u32) -> Result<()>) -> Result<()> {
    let (over, probed) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let probing = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                for family in Family::ALL {
                    let ip = family.ip(&pod.ns);
                    declared::opaque(node.kubelet, ip, &|probe| family.form(probe))
                        .with_context(|| format!("after {probed:?} rounds"))?;
                    let _before = probed.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
        let worked = (0..times()).try_for_each(|turn| {
            ensure!(!probing.is_finished(), "a verdict was wrong");
            work(turn).with_context(|| format!("turn {turn}"))
        });
        over.store(true, Ordering::Relaxed);
        probing.join().map_err(|_| anyhow!("probing panicked"))??;
        worked
    })?;
    println!("     {} probes, none wrong", 6 * probed.into_inner());
    Ok(())
}
