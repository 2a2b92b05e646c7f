//! Which processes count as the kubelet, and which do not.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use super::*;

#[test]
fn a_running_process_has_a_start_time() {
    let own = std::process::id();
    assert_eq!(start_time(own), start_time(own));
    assert!(start_time(own).is_some_and(|ticks| ticks > 0));
    assert_eq!(start_time(u32::MAX), None);
}

#[test]
fn a_process_whose_name_is_not_utf_8_has_a_start_time_too() {
    let started = std::thread::spawn(|| {
        nix::sys::prctl::set_name(c"\xff(").expect("a name");
        start_time(nix::unistd::gettid().as_raw().unsigned_abs())
    });
    assert!(started.join().expect("a thread").is_some());
}

#[test]
fn names_are_truncated_as_the_kernel_does() {
    assert_eq!(truncated("kubelet"), "kubelet");
    assert_eq!(truncated("kubelet-stand-in-4711"), "kubelet-stand-i");
}

fn finder(name: &str, cgroup: Option<&Path>) -> Finder {
    Finder::new(Search {
        names: vec![name.into()],
        cgroup: cgroup.map(Path::to_owned),
        allow_root: true,
    })
    .expect("cgroup v2")
}

/// A name of at most 15 bytes, as the kernel stores them, that no other run of these tests on this machine uses.
fn name(stem: &str) -> String {
    format!("{stem}-{}", std::process::id())
}

/// A process that changes its name on request, and ends with the test.
struct Late {
    _directory: tempfile::TempDir,
    process: Child,
}

impl Late {
    fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let program = directory.path().join(name);
        std::os::unix::fs::symlink("/bin/cat", &program).expect("link");
        let process = Command::new("/bin/sh")
            .args(["-c", "read go && exec \"$0\""])
            .arg(program)
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh");
        Self {
            _directory: directory,
            process,
        }
    }

    fn go(&mut self, name: &str) {
        let stdin = self.process.stdin.as_mut().expect("a pipe");
        stdin.write_all(b"\n").expect("written");
        while comm(self.process.id()).is_none_or(|comm| comm != name) {
            std::thread::yield_now();
        }
    }

    fn end(&mut self) {
        self.process.kill().expect("killed");
        let _ = self.process.wait().expect("reaped");
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A directory that looks like a cgroup of these processes.
fn cgroup_of(pids: &[u32]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("directory");
    put(directory.path(), pids);
    directory
}

fn put(cgroup: &Path, pids: &[u32]) {
    let lines: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
    std::fs::write(cgroup.join("cgroup.procs"), lines).expect("written");
}

#[test]
fn the_error_for_a_missing_kubelet_lists_the_names() {
    let error = finder("no-such-process", None)
        .find(None)
        .expect_err("no process has this name");
    assert!(error.to_string().contains("no-such-process"), "{error}");
}

#[test]
fn a_process_that_becomes_the_kubelet_late_is_found() {
    let mut kubelet = Late::new(&name("late"));
    let mut finder = finder(&name("late"), None);
    for _ in 0..2 * OLD_PROCESS_INTERVAL {
        assert!(finder.find_process().is_err());
    }
    // As if the process had been running for long.
    for times in finder.seen.values_mut() {
        *times = NEW_PROCESS_SEARCHES;
    }
    kubelet.go(&name("late"));
    let found = (0..OLD_PROCESS_INTERVAL).find_map(|_| finder.find_process().ok());
    assert_eq!(found, Some(kubelet.process.id()));
}

#[test]
fn a_process_of_another_user_does_not_match() {
    assert!(is_our_users(std::process::id()));
    assert!(!is_our_users(u32::MAX));
    if nix::unistd::geteuid().is_root() {
        use std::os::unix::process::CommandExt;
        let mut other = Command::new("/bin/cat")
            .uid(65534)
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat");
        assert!(!is_our_users(other.id()));
        other.kill().expect("killed");
        let _ = other.wait();
    } else {
        assert!(!is_our_users(1));
    }
}

#[test]
fn a_set_uid_program_of_another_user_does_not_match() {
    let status = |ids: &str| format!("Name:\tkubelet\nUid:\t{ids}\nGid:\t0\t0\t0\t0\n");
    assert!(all_uids_are(0, &status("0\t0\t0\t0")));
    // Real, effective, saved, file system: as execve(2) sets them for a set-uid file.
    assert!(!all_uids_are(0, &status("1000\t0\t0\t0")));
    for ids in [
        "0\t1000\t0\t0",
        "0\t0\t1000\t0",
        "0\t0\t0\t1000",
        "0\t0\t0",
        "",
    ] {
        assert!(!all_uids_are(0, &status(ids)), "{ids:?}");
    }
    assert!(!all_uids_are(0, ""));
}

#[test]
fn no_other_process_replaces_a_kubelet_that_is_restarting() {
    let mut kubelet = Late::new(&name("given"));
    kubelet.go(&name("given"));
    let pid = kubelet.process.id();
    let other = std::process::id();
    let cgroup = cgroup_of(&[other, pid]);
    let mut finder = finder(&name("given"), Some(cgroup.path()));
    let found = finder.find(None).expect("a kubelet");
    assert_eq!((found.pid, found.shared_with), (Some(pid), 1));
    assert!(!finder.is_gone(&found));
    kubelet.end();
    assert!(finder.is_gone(&found));
    put(cgroup.path(), &[other]);
    for last in [Some(&found), None] {
        assert!(matches!(finder.find(last), Err(Error::NotFound { .. })));
    }
}

#[test]
fn a_running_kubelet_is_not_replaced_by_its_child() {
    let (mut parent, mut child) = (Late::new(&name("forks")), Late::new(&name("forks")));
    parent.go(&name("forks"));
    child.go(&name("forks"));
    let (parent, child) = (parent.process.id(), child.process.id());
    let cgroup = cgroup_of(&[parent]);
    let mut finder = finder(&name("forks"), Some(cgroup.path()));
    let found = finder.find(None).expect("a kubelet");
    put(cgroup.path(), &[child, parent]);
    let again = finder.find(Some(&found)).expect("a kubelet");
    assert_eq!(again.pid, Some(parent));
}

#[test]
fn a_given_cgroup_without_a_kubelet_counts_as_a_whole() {
    let cgroup = cgroup_of(&[std::process::id()]);
    let mut finder = finder("no-such-process", Some(cgroup.path()));
    let found = finder.find(None).expect("a cgroup");
    assert_eq!((found.pid, found.filter), (None, None));
}

#[test]
fn the_root_cgroup_is_recognized_by_any_path() {
    let mount_point = cgroup::mount_point().expect("cgroup v2");
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("link");
    std::os::unix::fs::symlink(&mount_point, &path).expect("link");
    let mut finder = finder("no-such-process", Some(&path));
    finder.search.allow_root = false;
    let error = finder.find(None).expect_err("must not be attached to");
    let is_root = cgroup::identity(&mount_point).expect("a directory") == cgroup::ROOT;
    // In a cgroup namespace of its own, this process sees only its own part of the hierarchy.
    assert_eq!(matches!(error, Error::Root { .. }), is_root, "{error}");
    assert_eq!(matches!(error, Error::Own { .. }), !is_root, "{error}");
}

#[test]
fn the_cgroup_of_this_process_is_refused() {
    let mount_point = cgroup::mount_point().expect("cgroup v2");
    let own = cgroup::of_process(std::process::id(), &mount_point).expect("own cgroup");
    let mut finder = finder("no-such-process", Some(&own));
    assert!(matches!(finder.find(None), Err(Error::Own { .. })));
}

#[test]
fn a_kubelet_process_that_executes_another_program_is_gone() {
    let directory = tempfile::tempdir().expect("directory");
    let program = directory.path().join(name("execs"));
    std::os::unix::fs::symlink("/bin/sh", &program).expect("link");
    let mut process = Command::new(program)
        .args(["-c", "read go && exec /bin/cat"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh");
    let pid = process.id();
    // The name changes a moment after the start.
    while comm(pid) != Some(name("execs")) {
        std::thread::yield_now();
    }
    let mut finder = finder(&name("execs"), None);
    let found = finder.find(None).expect("a kubelet");
    assert_eq!(found.pid, Some(pid));
    let stdin = process.stdin.as_mut().expect("a pipe");
    stdin.write_all(b"\n").expect("written");
    while comm(pid).is_none_or(|comm| comm != "cat") {
        std::thread::yield_now();
    }
    let gone = finder.find(Some(&found)).expect_err("it is cat now");
    assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
    assert!(finder.is_gone(&found));
    process.kill().expect("killed");
    let _ = process.wait();
}

#[test]
fn a_zombie_is_not_the_kubelet() {
    let name = name("zombie");
    let mut dead = Late::new(&name);
    dead.go(&name);
    let started = start_time(dead.process.id());
    assert!(started.is_some());
    dead.process.kill().expect("killed");
    while start_time(dead.process.id()).is_some() {
        std::thread::yield_now();
    }
    assert_eq!(comm(dead.process.id()), Some(name.clone()), "still there");
    let by_name = finder(&name, None).find(None).expect_err("it is dead");
    assert!(matches!(by_name, Error::NotFound { .. }), "{by_name}");

    let mut living = Late::new(&name);
    living.go(&name);
    let cgroup = cgroup_of(&[dead.process.id(), living.process.id()]);
    let found = finder(&name, Some(cgroup.path())).find(None);
    assert_eq!(found.expect("a kubelet").pid, Some(living.process.id()));
}
