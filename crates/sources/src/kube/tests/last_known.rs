//! A start while the API server is unreachable.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use super::*;
use crate::kube::last_known::LastKnown;
use support::missing::Missing;

/// A file of last known pods.
struct StoredPods {
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl StoredPods {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            file: directory.path().join("pods.json"),
            _directory: directory,
        }
    }

    fn by(&self, node: &str) -> LastKnown {
        LastKnown::new(self.file.clone(), node.to_owned(), Missing::default())
    }

    fn source(&self, server: http::Uri) -> Source {
        let client = client::client(Config::new(server)).unwrap();
        let options = Options {
            node: NODE.to_owned(),
            selection: watch::channel(Selection::default()).1,
            timeouts: timeouts(),
            last_known: Some(self.by(NODE)),
        };
        Source::with_options(client, options)
    }

    /// A source has received pod `a`, has stored it, and has ended; so has its API server.
    async fn with_a_pod() -> Self {
        let kept = Self::new();
        let server = server().await;
        let mut source = kept.source(server.url());
        source.until_pods(&["a"]).await;
        kept.until(|text| text.contains("uid-a")).await;
        kept
    }

    async fn until(&self, condition: impl Fn(&str) -> bool) {
        let written = async {
            while !fs::read_to_string(&self.file).is_ok_and(|text| condition(&text)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LATE, written).await.expect("it is written");
    }
}

#[tokio::test]
async fn the_last_known_pods_are_sent_before_the_api_server_answers() {
    let kept = StoredPods::with_a_pod().await;
    let server = ApiServer::start().await;
    let url = server.url();
    let stopped = server.stop().await;

    let mut source = kept.source(url);
    source.until_pods(&["a"]).await;
    source.until_problem("the last known pods are served").await;
    // The pods do not count as listed until the API server answers.
    assert!(!source.is_listed());

    // In the meantime `a` has been deleted.
    let server = stopped.start().await;
    let _ = server.put("namespaces", namespace("shop", None));
    let _ = server.put("pods", pod("b"));
    source.until_pods(&["b"]).await;
    source.until(|source| source.problems.is_empty()).await;
    assert!(source.is_listed());
    kept.until(|text| text.contains("uid-b") && !text.contains("uid-a"))
        .await;
}

#[tokio::test]
async fn a_pod_is_read_as_it_was_written() {
    let kept = StoredPods::with_a_pod().await;
    let server = server().await;
    let mut source = Source::start(&server);
    source.until_pods(&["a"]).await;
    let read = kept.by(NODE).read();
    assert_eq!(read.len(), 1);
    // Only its addresses may belong to another sandbox by now.
    let mut read_back = read[0].pod.as_deref().expect("a pod").clone();
    assert!(std::mem::take(&mut read_back.ips_are_old));
    assert_eq!(Some(&read_back), source.pods[0].pod.as_deref());
    let mode = fs::metadata(&kept.file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn an_unsuitable_file_is_ignored() {
    let kept = StoredPods::with_a_pod().await;
    let known = || kept.by(NODE).read().len();
    assert_eq!(known(), 1);
    assert_eq!(kept.by("other-node").read().len(), 0);

    fs::set_permissions(&kept.file, fs::Permissions::from_mode(0o620)).unwrap();
    assert_eq!(known(), 0);
    fs::set_permissions(&kept.file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(known(), 1);

    let text = fs::read_to_string(&kept.file).unwrap();
    for (good, bad) in [
        (env!("CARGO_PKG_VERSION"), "0.0.0-other"),
        ("\"liveness\"", "\"loveliness\""),
        ("]", ""),
    ] {
        fs::write(&kept.file, text.replace(good, bad)).unwrap();
        assert_eq!(known(), 0, "{bad}");
    }
    // A path in the file is ignored.
    let with_path = text.replace("\"netns\":null", "\"netns\":\"/proc/1/ns/net\"");
    assert_ne!(with_path, text);
    fs::write(&kept.file, with_path).unwrap();
    assert_eq!(kept.by(NODE).read()[0].pod.as_ref().unwrap().netns, None);

    let elsewhere = kept.file.with_extension("elsewhere");
    fs::rename(&kept.file, &elsewhere).unwrap();
    symlink(&elsewhere, &kept.file).unwrap();
    assert_eq!(known(), 0);
    fs::remove_file(&kept.file).unwrap();
    assert_eq!(known(), 0);
}
