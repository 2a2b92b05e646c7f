//! Real directories: what is found, what is sent, and when it is sent again.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::SystemTime;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use pods::scope::{Marks, Mode, Scope};

const ALL: Selection = Selection {
    scope: Scope::All,
    mode: Mode::Serve,
    namespace: Marks {
        mode: None,
        http: None,
    },
};
/// Far longer than any step takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn pod(name: &str, port: i64) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: web\n    \
         livenessProbe:\n      tcpSocket:\n        port: {port}\n"
    )
}

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).unwrap();
}

/// Puts the file in place as `kubectl` and configuration management do.
fn replace(dir: &Path, name: &str, text: &str) {
    write(dir, ".new", text);
    fs::rename(dir.join(".new"), dir.join(name)).unwrap();
}

/// `name:port` of each pod served.
fn served(pods: &[Arc<SelectedPod>]) -> Vec<String> {
    pods.iter()
        .filter_map(|parsed| parsed.pod.as_ref())
        .map(|pod| {
            let ports: Vec<_> = pod
                .probes
                .iter()
                .map(|p| p.action.port().to_string())
                .collect();
            format!("{}:{}", pod.id.name, ports.join(","))
        })
        .collect()
}

fn scan_of(dir: &TempDir) -> Scan {
    Scanner::new(dir.path().to_owned(), ALL)
        .scan()
        .unwrap()
        .unwrap()
}

#[test]
fn manifests_are_found_by_their_ending() {
    let dir = TempDir::new().unwrap();
    for name in ["a.yaml", "b.yml", "e.txt", ".f.yaml", "g.yaml.bak", "yaml"] {
        write(dir.path(), name, &pod(&name.replace(['.'], ""), 1));
    }
    write(
        dir.path(),
        "c.json",
        r#"{"kind":"Pod","metadata":{"name":"cjson"},"spec":{"containers":[
            {"name":"web","livenessProbe":{"grpc":{"port":2}}}]}}"#,
    );
    let scan = scan_of(&dir);
    assert_eq!(scan.problems, Vec::<String>::new());
    assert_eq!(served(&scan.pods), ["ayaml:1", "byml:1", "cjson:2"]);
}

#[test]
fn every_problem_names_its_file_and_place_and_the_others_work() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    write(
        at,
        "a.yaml",
        &format!("{}---\nkind: Service\n---\n{}", pod("a", 1), pod("a2", 2)),
    );
    write(at, "b.yaml", &pod("a", 3));
    write(at, "c.yaml", "{");
    write(at, "d.yaml", &pod("d", 65536));
    write(at, "e.yaml", "kind: Pod\nmetadata: {namespace: x}\n");
    fs::write(at.join("f.yaml"), [0xff, 0xfe]).unwrap();
    fs::create_dir(at.join("g.yaml")).unwrap();
    symlink("nowhere", at.join("h.yaml")).unwrap();
    File::create(at.join("i.yaml"))
        .unwrap()
        .set_len(MAX_FILE_LEN + 1)
        .unwrap();
    nix::unistd::mkfifo(&at.join("j.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let netns = pod("k", 4).replace(
        "  name: k",
        &format!("  name: k\n  annotations: {{{NETNS}: x}}"),
    );
    write(at, "k.yaml", &netns);
    let uid = "  uid: \"1\"\nspec:";
    write(at, "l.yaml", &pod("l", 5).replace("spec:", uid));
    write(at, "m.yaml", &pod("m", 6).replace("spec:", uid));
    let scan = scan_of(&dir);
    assert_eq!(served(&scan.pods), ["a:1", "a2:2", "k:4", "l:5"]);
    let problems: Vec<_> = scan.problems.iter().map(String::as_str).collect();
    let expected = [
        "a.yaml: document 2: kind is \"Service\", must be Pod or List",
        "b.yaml: document 1: default/a is already in a.yaml: document 1; this one is ignored",
        "c.yaml: document 1: line 2: while parsing a flow node, did not find expected node content",
        "d.yaml: document 1: default/d: container \"web\", livenessProbe: tcpSocket.port is 65536, must be 1 to 65535",
        "e.yaml: document 1: metadata.name is missing",
        "f.yaml: is not UTF-8 text: invalid utf-8 sequence of 1 bytes from index 0",
        "g.yaml: is not a regular file",
        "h.yaml: can't be read: No such file or directory (os error 2)",
        "i.yaml: is larger than 4 MiB, not read",
        "j.yaml: is not a regular file",
        "k.yaml: document 1: default/k: annotation probe-handler.io/netns is \"x\", must be an absolute path; ignored",
        "m.yaml: document 1: default/m has the UID of the pod in l.yaml: document 1; this one is ignored",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn the_path_of_the_network_namespace_comes_from_its_annotation() {
    let dir = TempDir::new().unwrap();
    let annotated = format!("  name: a\n  annotations: {{{NETNS}: /run/netns/a}}");
    write(
        dir.path(),
        "a.yaml",
        &pod("a", 1).replace("  name: a", &annotated),
    );
    let scan = scan_of(&dir);
    let served = scan.pods[0].pod.as_ref().unwrap();
    assert_eq!(served.netns.as_deref(), Some(Path::new("/run/netns/a")));
}

#[test]
fn only_what_has_changed_is_read_again() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let (old, future) = {
        let (now, minute) = (SystemTime::now(), Duration::from_secs(60));
        (now - minute, now + minute)
    };
    let stamp = |name: &str, time: SystemTime| {
        let file = File::options().write(true).open(at.join(name)).unwrap();
        file.set_modified(time).unwrap();
    };
    for name in ["a.yaml", "b.yaml", "c.yaml"] {
        write(at, name, &pod(&name[..1], 1));
        stamp(name, old);
    }
    let mut scanner = Scanner::new(at.to_owned(), ALL);
    let mut read = || {
        scanner
            .scan()
            .unwrap()
            .map(|scan| (scan.read, served(&scan.pods)))
    };
    assert_eq!(read().map(|(read, _)| read), Some(3));
    assert_eq!(read(), None);
    write(at, "b.yaml", &pod("b", 2));
    // As if just written, however slow the machine is.
    stamp("b.yaml", future);
    fs::remove_file(at.join("c.yaml")).unwrap();
    let pods = vec!["a:1".to_owned(), "b:2".to_owned()];
    assert_eq!(read(), Some((1, pods.clone())));
    // It may change again within the same tick of the clock.
    assert_eq!(read(), Some((1, pods.clone())));
    stamp("b.yaml", old);
    assert_eq!(read(), Some((1, pods)));
    assert_eq!(read(), None);
    fs::remove_file(at.join("b.yaml")).unwrap();
    assert_eq!(read(), Some((0, vec!["a:1".to_owned()])));
}

#[test]
fn a_directory_that_is_gone_keeps_its_known_pods() {
    let parent = TempDir::new().unwrap();
    let at = parent.path().join("pods");
    fs::create_dir(&at).unwrap();
    write(&at, "a.yaml", &pod("a", 1));
    let mut scanner = Scanner::new(at.clone(), ALL);
    let first = scanner.scan().unwrap().unwrap();
    assert_eq!(served(&first.pods), ["a:1"]);
    fs::rename(&at, parent.path().join("away")).unwrap();
    assert!(scanner.scan().is_err());
    fs::rename(parent.path().join("away"), &at).unwrap();
    // The pods are sent again although they are unchanged, because the problem is over.
    let again = scanner.scan().unwrap().unwrap();
    assert_eq!(served(&again.pods), ["a:1"]);
}

/// A running source and what it has sent.
struct Running {
    rx: mpsc::Receiver<SourceEvent>,
    task: tokio::task::JoinHandle<Result<(), DirError>>,
    pods: Vec<String>,
    problems: Vec<String>,
}

impl Running {
    fn start(path: &Path) -> Self {
        let (tx, rx) = mpsc::channel(8);
        Self {
            rx,
            task: tokio::spawn(run(
                path.to_owned(),
                watch::channel(ALL).1,
                tx,
                Missing::default(),
            )),
            pods: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Receives until the last pods and problems are as expected.
    async fn until(&mut self, expected: impl Fn(&Self) -> bool) {
        let started = std::time::Instant::now();
        while !expected(self) {
            let left = PATIENCE.saturating_sub(started.elapsed());
            match timeout(left, self.rx.recv()).await {
                Ok(Some(SourceEvent::Replace(pods))) => self.pods = served(&pods),
                Ok(Some(SourceEvent::Problems(problems))) => self.problems = problems,
                Ok(None) => panic!("the source has ended"),
                Err(_) => panic!("last sent: {:?}, {:?}", self.pods, self.problems),
            }
        }
    }

    async fn until_pods(&mut self, expected: &[&str]) {
        self.until(|running| running.pods == expected).await;
    }
}

#[tokio::test]
async fn adding_changing_and_removing_a_file_is_sent() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let mut running = Running::start(at);
    // An empty directory is sent too: it replaces any earlier pods.
    let first = timeout(PATIENCE, running.rx.recv()).await.unwrap();
    assert_eq!(first, Some(SourceEvent::Replace(Vec::new())));
    write(at, "a.yaml", &pod("a", 1));
    running.until_pods(&["a:1"]).await;
    write(at, "a.yaml", &pod("a", 2));
    running.until_pods(&["a:2"]).await;
    replace(at, "a.yaml", &pod("a", 3));
    running.until_pods(&["a:3"]).await;
    write(at, "b.yaml", &pod("b", 4));
    running.until_pods(&["a:3", "b:4"]).await;
    fs::rename(at.join("a.yaml"), at.join("a.off")).unwrap();
    running.until_pods(&["b:4"]).await;
    fs::remove_file(at.join("b.yaml")).unwrap();
    running.until_pods(&[]).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_followed() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let publish = |version: &str, port| {
        fs::create_dir(at.join(version)).unwrap();
        write(&at.join(version), "a.yaml", &pod("a", port));
        symlink(version, at.join("..data_tmp")).unwrap();
        fs::rename(at.join("..data_tmp"), at.join("..data")).unwrap();
    };
    publish("..1", 1);
    symlink("..data/a.yaml", at.join("a.yaml")).unwrap();
    let mut running = Running::start(at);
    running.until_pods(&["a:1"]).await;
    publish("..2", 2);
    running.until_pods(&["a:2"]).await;
}

#[tokio::test]
async fn problems_come_and_go() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "a.yaml", "kind: Service");
    write(dir.path(), "b.yaml", &pod("b", 1));
    let mut running = Running::start(dir.path());
    running
        .until(|running| running.problems.len() == 1 && running.pods == ["b:1"])
        .await;
    write(dir.path(), "a.yaml", &pod("a", 2));
    running
        .until(|running| running.problems.is_empty() && running.pods == ["a:2", "b:1"])
        .await;
}

#[tokio::test]
async fn a_directory_that_vanishes_is_reported_and_found_again() {
    let parent = TempDir::new().unwrap();
    let at = parent.path().join("pods");
    fs::create_dir(&at).unwrap();
    write(&at, "a.yaml", &pod("a", 1));
    let mut running = Running::start(&at);
    running.until_pods(&["a:1"]).await;
    fs::remove_dir_all(&at).unwrap();
    // Its files vanish one by one before the directory itself does; both end in the same problem.
    running.until(|running| running.problems.len() == 1).await;
    assert!(running.problems[0].contains("can't be read"));
    fs::create_dir(&at).unwrap();
    write(&at, "b.yaml", &pod("b", 2));
    running
        .until(|running| running.problems.is_empty() && running.pods == ["b:2"])
        .await;
    // The directory is watched again.
    write(&at, "c.yaml", &pod("c", 3));
    running.until_pods(&["b:2", "c:3"]).await;
}

#[tokio::test]
async fn another_directory_in_its_place_is_noticed() {
    let parent = TempDir::new().unwrap();
    let (one, two) = (parent.path().join("one"), parent.path().join("two"));
    for (dir, port) in [(&one, 1), (&two, 2)] {
        fs::create_dir(dir).unwrap();
        write(dir, "a.yaml", &pod("a", port));
    }
    let link = parent.path().join("link");
    symlink(&one, &link).unwrap();
    let mut running = Running::start(&link);
    running.until_pods(&["a:1"]).await;
    symlink(&two, parent.path().join("new")).unwrap();
    fs::rename(parent.path().join("new"), &link).unwrap();
    running.until_pods(&["a:2"]).await;
    write(&two, "a.yaml", &pod("a", 3));
    running.until_pods(&["a:3"]).await;
}

#[tokio::test]
async fn a_missing_directory_is_an_error_at_the_start() {
    let dir = TempDir::new().unwrap();
    let (tx, _rx) = mpsc::channel(1);
    let error = run(
        dir.path().join("none"),
        watch::channel(ALL).1,
        tx,
        Missing::default(),
    )
    .await
    .unwrap_err();
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(
        text.contains("none") && text.matches("No such file").count() == 1,
        "{text}"
    );
}

#[tokio::test]
async fn a_file_in_place_of_the_directory_is_an_error_at_the_start() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "file", "");
    let (tx, _rx) = mpsc::channel(1);
    let error = run(
        dir.path().join("file"),
        watch::channel(ALL).1,
        tx,
        Missing::default(),
    )
    .await
    .unwrap_err();
    let text = format!("{:#}", anyhow::Error::from(error));
    assert_eq!(text.matches("Not a directory").count(), 1, "{text}");
}

#[tokio::test]
async fn the_source_ends_when_the_receiver_is_dropped() {
    let dir = TempDir::new().unwrap();
    let mut running = Running::start(dir.path());
    let _first = timeout(PATIENCE, running.rx.recv()).await.unwrap();
    drop(running.rx);
    let ended = timeout(PATIENCE, running.task).await.unwrap().unwrap();
    assert!(ended.is_ok());
}

/// Writes the file in place, with a time stamp so old that it counts as finished.
fn write_long_ago(dir: &Path, name: &str, text: &str) {
    write(dir, name, text);
    let file = File::options().write(true).open(dir.join(name)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(10))
        .unwrap();
}

#[test]
fn a_file_being_written_counts_once_it_is_finished() {
    let dir = TempDir::new().unwrap();
    let both = format!("{}---\n{}", pod("a", 1), pod("b", 2));
    write_long_ago(dir.path(), "x.yaml", &both);
    let mut scanner = Scanner::new(dir.path().to_owned(), ALL);
    // However slow this machine is.
    scanner.being_written = Duration::from_secs(3600);
    let _first = scanner.scan().unwrap();
    for half in ["", &both[..20], &both[..60], &pod("a", 1), &pod("a", 3)] {
        write(dir.path(), "x.yaml", half);
        let scan = scanner.scan().unwrap().unwrap();
        assert!(scan.unfinished, "{half:?}");
        assert_eq!(scan.problems, Vec::<String>::new(), "{half:?}");
        assert_eq!(served(&scan.pods), ["a:1", "b:2"], "{half:?}");
    }
    scanner.being_written = Duration::ZERO;
    let scan = scanner.scan().unwrap().unwrap();
    assert_eq!(
        (served(&scan.pods), scan.unfinished),
        (vec!["a:3".to_owned()], false)
    );
    // A file that replaces another one is complete.
    scanner.being_written = Duration::from_secs(3600);
    replace(dir.path(), "x.yaml", &pod("c", 4));
    assert_eq!(served(&scanner.scan().unwrap().unwrap().pods), ["c:4"]);
}

#[test]
fn a_file_that_can_no_longer_be_parsed_keeps_its_last_known_pods() {
    for garbled in [
        "",
        "kind: [",
        "kind: Pod\nmetadata: 7\n",
        "metadata: {name: a}\n",
    ] {
        let dir = TempDir::new().unwrap();
        write_long_ago(dir.path(), "x.yaml", &pod("a", 1));
        let mut scanner = Scanner::new(dir.path().to_owned(), ALL);
        let _first = scanner.scan().unwrap();
        write_long_ago(dir.path(), "x.yaml", garbled);
        let scan = scanner.scan().unwrap().unwrap();
        assert_eq!(served(&scan.pods), ["a:1"], "{garbled:?}");
        let expected = "x.yaml: the pods that it contained before are still served";
        assert!(
            scan.problems.iter().any(|problem| problem == expected),
            "{:?}",
            scan.problems
        );
        // The definition in another file is newer.
        write_long_ago(dir.path(), "y.yaml", &pod("a", 2));
        assert_eq!(served(&scanner.scan().unwrap().unwrap().pods), ["a:2"]);
        fs::remove_file(dir.path().join("y.yaml")).unwrap();
        assert_eq!(served(&scanner.scan().unwrap().unwrap().pods), ["a:1"]);
        // Deleting the file removes its pods.
        fs::remove_file(dir.path().join("x.yaml")).unwrap();
        assert!(served(&scanner.scan().unwrap().unwrap().pods).is_empty());
    }
}

#[test]
fn a_document_that_is_not_a_pod_keeps_no_pods() {
    let dir = TempDir::new().unwrap();
    let service = "kind: Service\nmetadata: {name: s}\n";
    let both = format!("{service}---\n{}", pod("a", 1));
    write_long_ago(dir.path(), "x.yaml", &both);
    let mut scanner = Scanner::new(dir.path().to_owned(), ALL);
    assert_eq!(served(&scanner.scan().unwrap().unwrap().pods), ["a:1"]);
    write_long_ago(dir.path(), "x.yaml", service);
    assert!(served(&scanner.scan().unwrap().unwrap().pods).is_empty());
}

#[test]
fn a_changed_selection_applies_to_the_pods_that_are_there() {
    let dir = TempDir::new().unwrap();
    write_long_ago(dir.path(), "x.yaml", &pod("a", 1));
    write_long_ago(dir.path(), "y.yaml", &pod("b", 2));
    let mut scanner = Scanner::new(dir.path().to_owned(), ALL);
    let _first = scanner.scan().unwrap();
    // Also to those of a file that can't be parsed any more.
    write_long_ago(dir.path(), "y.yaml", "kind: [");
    let _second = scanner.scan().unwrap();
    let none = Selection {
        scope: Scope::Labeled,
        ..ALL
    };
    for (selection, expected) in [(none, &[][..]), (ALL, &["a:1", "b:2"])] {
        scanner.set_selection(selection);
        assert_eq!(served(&scanner.scan().unwrap().unwrap().pods), expected);
    }
    assert!(scanner.scan().unwrap().is_none(), "nothing has changed");
}
