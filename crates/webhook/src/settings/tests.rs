//! Reading the settings, and following changes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use api_server_double::ApiServer;
use kube::Config;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::files::read;
use super::*;
use sources::kube::client;

/// No step of a test takes this long: changes are applied within 5 s.
const LATE: Duration = Duration::from_secs(5);
const NAMESPACE: &str = "probe-handler-system";
const NAME: &str = "probe-handler";

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("directory");
    for (name, text) in files {
        fs::write(directory.path().join(name), text).expect("file");
    }
    directory
}

#[test]
fn a_missing_key_has_its_default() {
    assert_eq!(
        read(directory(&[]).path()).expect("good"),
        Rewriting::default()
    );
    let empty = directory(&[(ENABLED, "\n"), (PORT, ""), ("other", "x")]);
    assert_eq!(read(empty.path()).expect("good"), Rewriting::default());
}

#[test]
fn each_key_is_read() {
    let all = directory(&[(ENABLED, "false\n"), (PORT, "15999"), (PREFIX, "/probes")]);
    let settings = read(all.path()).expect("good");
    assert!(!settings.enabled);
    assert_eq!(settings.port.get(), 15999);
    assert_eq!(settings.prefix.to_string(), "/probes");
    for (text, enabled) in [("T", true), ("1", true), ("F", false), ("False", false)] {
        let settings = read(directory(&[(ENABLED, text)]).path()).expect("as Go reads booleans");
        assert_eq!(settings.enabled, enabled, "{text}");
    }
}

#[test]
fn one_invalid_value_makes_all_settings_invalid() {
    for (key, value) in [
        (ENABLED, "yes"),
        (ENABLED, "flase"),
        (PORT, "0"),
        (PORT, "65536"),
        (PORT, "http"),
        (PREFIX, "no/slash"),
        (PREFIX, "/a b"),
        (PREFIX, &"/a".repeat(4096)),
    ] {
        let error = read(directory(&[(key, value)]).path()).expect_err(value);
        assert!(error.to_string().starts_with(key), "{error}");
    }
    assert!(read(Path::new("/nonexistent")).is_err());
}

struct Followed {
    settings: watch::Receiver<Arc<Rewriting>>,
    first: oneshot::Receiver<()>,
    registry: Registry,
    task: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Followed {
    fn directory(path: &Path) -> Self {
        let path = path.to_owned();
        Self::new(|holder| tokio::spawn(files::follow(path, holder)))
    }

    fn config_map(server: &ApiServer) -> Self {
        let client = client::client(Config::new(server.url())).expect("client");
        let follow = |holder| async move {
            config_map::follow(client, NAMESPACE, NAME, holder).await;
        };
        Self::new(|holder| tokio::spawn(follow(holder)))
    }

    fn new(follow: impl FnOnce(Holder<oneshot::Sender<()>>) -> JoinHandle<()>) -> Self {
        let none = Rewriting {
            enabled: false,
            ..Rewriting::default()
        };
        let (tx, settings) = watch::channel(Arc::new(none));
        let (guard, first) = oneshot::channel::<()>();
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let task = follow(Holder::new(tx, metrics, guard));
        Self {
            settings,
            first,
            registry,
            task,
        }
    }

    async fn until(&mut self, condition: impl Fn(&Rewriting) -> bool) {
        let wait = self.settings.wait_for(|settings| condition(settings));
        let _ = timeout(LATE, wait)
            .await
            .expect("in time")
            .expect("the task runs");
    }

    /// Whether valid settings have been read.
    fn is_ready(&mut self) -> bool {
        self.first.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    fn scrape(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("text");
        text
    }

    async fn until_metric(&self, line: &str) {
        let poll = async {
            while !self.scrape().contains(line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LATE, poll)
            .await
            .unwrap_or_else(|_| panic!("{line}: {}", self.scrape()));
    }
}

#[tokio::test]
async fn a_change_is_applied_and_a_mistake_is_not() {
    let directory = directory(&[(ENABLED, "true")]);
    let write = |text| fs::write(directory.path().join(ENABLED), text).expect("written");
    let mut followed = Followed::directory(directory.path());
    followed.until(|settings| settings.enabled).await;
    assert!(followed.is_ready());
    write("false");
    followed.until(|settings| !settings.enabled).await;
    followed.until_metric("webhook_rewrite_enabled 0").await;
    write("ture");
    followed
        .until_metric("webhook_settings_reloads_total{result=\"failed\"} 1")
        .await;
    assert!(
        !followed.settings.borrow().enabled,
        "the last good settings stay in use"
    );
    write("true");
    followed.until(|settings| settings.enabled).await;
    // A directory that disappears changes nothing.
    drop(directory);
    followed
        .until_metric("webhook_settings_reloads_total{result=\"failed\"} 2")
        .await;
    assert!(followed.settings.borrow().enabled);
}

/// When a ConfigMap is deleted, the kubelet leaves an empty directory.
#[test]
fn the_last_settings_stay_in_use_when_the_files_disappear() {
    let directory = directory(&[(ENABLED, "false"), ("other", "")]);
    assert!(!files::is_empty(directory.path()));
    fs::remove_file(directory.path().join(ENABLED)).expect("removed");
    assert!(files::is_empty(directory.path()));

    let (tx, settings) = watch::channel(Arc::new(Rewriting::default()));
    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    let mut holder = Holder::new(tx, metrics, ());
    let disabled = Rewriting {
        enabled: false,
        ..Rewriting::default()
    };
    holder.read("here", Ok(disabled));
    holder.missing("here");
    assert!(!settings.borrow().enabled);
}

/// The change is applied when the API server is back.
#[tokio::test]
async fn a_change_while_the_api_server_was_unreachable_is_applied() {
    let server = ApiServer::start().await;
    set(&server, "true");
    let mut followed = Followed::config_map(&server);
    followed.until(|settings| settings.enabled).await;
    let stopped = server.stop().await;
    let server = stopped.start().await;
    set(&server, "false");
    followed.until(|settings| !settings.enabled).await;
    assert!(
        !followed.scrape().contains("result=\"failed\""),
        "an unreachable API server is not an invalid setting"
    );
}

#[tokio::test]
async fn nothing_is_rewritten_before_valid_settings_are_read() {
    let directory = directory(&[(ENABLED, "?")]);
    let mut followed = Followed::directory(directory.path());
    followed
        .until_metric("webhook_settings_reloads_total{result=\"failed\"} 1")
        .await;
    assert!(!followed.settings.borrow().enabled);
    assert!(!followed.is_ready());
    fs::write(directory.path().join(ENABLED), "true").expect("written");
    followed.until(|settings| settings.enabled).await;
}

/// Sets the value in the ConfigMap.
fn set(server: &ApiServer, enabled: &str) {
    let _ = server.put(
        "configmaps",
        json!({"metadata": {"namespace": NAMESPACE, "name": NAME}, "data": {ENABLED: enabled}}),
    );
}

#[tokio::test]
async fn a_change_of_the_config_map_is_applied_and_a_mistake_is_not() {
    let server = ApiServer::start().await;
    set(&server, "false");
    let other =
        json!({"metadata": {"namespace": NAMESPACE, "name": "other"}, "data": {ENABLED: "?"}});
    let _ = server.put("configmaps", other);
    let mut followed = Followed::config_map(&server);
    followed
        .until_metric("webhook_settings_reloads_total{result=\"ok\"} 1")
        .await;
    assert!(!followed.settings.borrow().enabled && followed.is_ready());
    set(&server, "true");
    followed.until(|settings| settings.enabled).await;
    set(&server, "flase");
    followed
        .until_metric("webhook_settings_reloads_total{result=\"failed\"} 1")
        .await;
    assert!(
        followed.settings.borrow().enabled,
        "the last good settings stay in use"
    );
    set(&server, "false");
    followed.until(|settings| !settings.enabled).await;
}

#[tokio::test]
async fn without_a_config_map_the_defaults_apply_and_after_its_deletion_the_last_settings() {
    let server = ApiServer::start().await;
    let mut followed = Followed::config_map(&server);
    followed.until(|settings| settings.enabled).await;
    assert!(followed.is_ready());
    set(&server, "false");
    followed.until(|settings| !settings.enabled).await;
    let _ = server.delete("configmaps", NAMESPACE, NAME);
    let port = json!({"metadata": {"namespace": NAMESPACE, "name": NAME},
        "data": {ENABLED: "false", PORT: "15999"}});
    let _ = server.put("configmaps", port);
    // This is seen after the deletion, which has changed nothing.
    followed
        .until(|settings| settings.port.get() == 15999)
        .await;
    assert!(!followed.scrape().contains("reloads_total{result=\"ok\"} 4"));
}

#[tokio::test]
async fn without_permission_to_read_the_config_map_nothing_is_rewritten() {
    let server = ApiServer::start().await;
    set(&server, "true");
    server.forbid("configmaps", true);
    let mut followed = Followed::config_map(&server);
    followed
        .until_metric("webhook_settings_reloads_total{result=\"failed\"} 1")
        .await;
    assert!(!followed.settings.borrow().enabled && !followed.is_ready());
    server.forbid("configmaps", false);
    followed.until(|settings| settings.enabled).await;
}
