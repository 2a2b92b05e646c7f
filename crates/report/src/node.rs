//! Condition `ProbeHandlerReady` of the daemon's node, and the removal of its startup taint.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use json_patch::Patch as JsonPatch;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::event::time;
use support::backoff::{Backoff, Timeouts};
use support::error_chain::chain;

/// The condition's type.
pub const CONDITION: &str = "ProbeHandlerReady";
/// How often the condition is written without a change: as often as the kubelet writes its own.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// Maximum time for a request.
const REQUEST: Duration = Duration::from_secs(10);

/// What the condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    /// The daemon serves.
    True,
    /// It does not.
    False {
        /// A CamelCase word.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
}

/// What is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's name.
    pub node: String,
    /// Whether the condition is written.
    pub condition: bool,
    /// The key of the taint that is removed once the daemon serves.
    pub taint: Option<String>,
    /// Pauses after failures.
    pub pauses: Timeouts,
}

/// Writes the condition that `ready` contains, and removes the taint, until the sender is dropped. Writes nothing while
/// `ready` has no value.
pub async fn run(client: Client, options: Options, mut ready: watch::Receiver<Option<Ready>>) {
    let mut writer = Writer {
        nodes: Api::all(client),
        backoff: Backoff::new(&options.pauses),
        written: None,
        tainted: options.taint.is_some(),
        trouble: false,
        options,
    };
    loop {
        let now = ready.borrow_and_update().clone();
        let wait = writer.write(now.as_ref()).await;
        tokio::select! {
            changed = ready.changed() => if changed.is_err() {
                return;
            },
            () = sleep(wait) => {}
        }
    }
}

struct Writer {
    nodes: Api<Node>,
    options: Options,
    backoff: Backoff,
    /// What was written last, and when.
    written: Option<(Ready, Instant)>,
    /// Whether the node may have the taint.
    tainted: bool,
    /// Whether a failure was logged, and nothing has succeeded since.
    trouble: bool,
}

impl Writer {
    /// Writes what is due; returns the time until something is due again.
    async fn write(&mut self, ready: Option<&Ready>) -> Duration {
        let Some(ready) = ready else {
            return HEARTBEAT;
        };
        let mut done = Ok(());
        if self.options.condition && self.is_due(ready) {
            done = self.condition(ready).await;
            if done.is_ok() {
                self.written = Some((ready.clone(), Instant::now()));
            }
        }
        if done.is_ok() && self.tainted && *ready == Ready::True {
            done = self.untaint().await;
            self.tainted = done.is_err();
        }
        match done {
            Ok(()) => {
                if std::mem::take(&mut self.trouble) {
                    tracing::info!("the node's condition and taints can be written again");
                }
                self.backoff.reset();
                let since = self.written.as_ref().map(|(_, at)| at.elapsed());
                since.map_or(HEARTBEAT, |since| HEARTBEAT.saturating_sub(since))
            }
            Err(why) => {
                if !std::mem::replace(&mut self.trouble, true) {
                    tracing::warn!(node = self.options.node, "{why}");
                }
                self.backoff.pause()
            }
        }
    }

    fn is_due(&self, ready: &Ready) -> bool {
        let last = self.written.as_ref();
        last.is_none_or(|(written, at)| written != ready || at.elapsed() >= HEARTBEAT)
    }

    async fn condition(&self, ready: &Ready) -> Result<(), String> {
        let name = &self.options.node;
        let wrong = |why| {
            format!(
                "cannot write condition {CONDITION}: {why}; if the API server forbids it, install component node-condition of deploy/"
            )
        };
        let node = request(self.nodes.get(name)).await.map_err(wrong)?;
        let conditions = node.status.and_then(|status| status.conditions);
        let before = conditions.unwrap_or_default();
        let before = before.iter().find(|one| one.type_ == CONDITION);
        let now = condition(before, ready, now_ms());
        // The patch contains only this condition, so all others are unchanged.
        let patch = Patch::Strategic(json!({"status": {"conditions": [now]}}));
        let how = PatchParams::default();
        let patched = self.nodes.patch_status(name, &how, &patch);
        request(patched).await.map(drop).map_err(wrong)
    }

    async fn untaint(&self) -> Result<(), String> {
        let (name, taint) = (&self.options.node, self.options.taint.as_deref());
        let taint = taint.unwrap_or_default();
        let wrong = |why| {
            format!(
                "cannot remove taint {taint}: {why}; if the API server forbids it, install component startup-taint of deploy/"
            )
        };
        let node = request(self.nodes.get(name)).await.map_err(wrong)?;
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let Some(patch) = without(&taints, taint) else {
            return Ok(());
        };
        let patch: JsonPatch =
            serde_json::from_value(patch).map_err(|error| wrong(error.to_string()))?;
        let (patch, how) = (Patch::Json::<()>(patch), PatchParams::default());
        let patched = self.nodes.patch(name, &how, &patch);
        // If the taints have changed meanwhile, this fails, and is tried again.
        let _node = request(patched).await.map_err(wrong)?;
        tracing::info!(node = name, taint, "removed the node's startup taint");
        Ok(())
    }
}

async fn request<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match timeout(REQUEST, request).await {
        Ok(done) => done.map_err(|error| chain(&error)),
        Err(_) => Err(format!("no answer within {REQUEST:?}")),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// The condition at `now_ms`. Its transition time is that of the last change of its status.
fn condition(before: Option<&NodeCondition>, ready: &Ready, now_ms: u64) -> NodeCondition {
    let (status, reason, message) = match ready {
        Ready::True => (
            "True",
            "Serving",
            "the daemon is attached to the kubelet and serves probes",
        ),
        Ready::False { reason, message } => ("False", *reason, message.as_str()),
    };
    let same = before.filter(|before| before.status == status);
    let since = same.and_then(|before| before.last_transition_time.clone());
    NodeCondition {
        type_: CONDITION.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(time(now_ms)),
        last_transition_time: Some(since.unwrap_or_else(|| time(now_ms))),
    }
}

/// The JSON patch that removes the taints with `key`, and no others: it fails if the list of taints has changed meanwhile.
/// `None` if there is no such taint.
fn without(taints: &[Taint], key: &str) -> Option<Value> {
    let of_key = taints
        .iter()
        .enumerate()
        .filter(|(_, taint)| taint.key == key);
    // Removes the last one first, so that the indices of the others stay valid.
    let steps: Vec<Value> = of_key
        .rev()
        .flat_map(|(index, taint)| {
            let path = format!("/spec/taints/{index}");
            [
                json!({"op": "test", "path": format!("{path}/key"), "value": taint.key}),
                json!({"op": "test", "path": format!("{path}/effect"), "value": taint.effect}),
                json!({"op": "remove", "path": path}),
            ]
        })
        .collect();
    (!steps.is_empty()).then_some(Value::Array(steps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{client, pauses};
    use api_server_double::{ApiServer, Fault};
    use tokio::task::JoinHandle;

    const TAINT: &str = "probe-handler.io/starting";

    fn node(server: &ApiServer) -> Value {
        server.get("nodes", "", "node-1").expect("the node")
    }

    async fn server() -> ApiServer {
        let server = ApiServer::start().await;
        let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
        let _ = server.put(
            "nodes",
            json!({"metadata": {"name": "node-1"},
                "spec": {"taints": [taint(TAINT), taint("other"), taint(TAINT)]},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
        );
        server
    }

    struct Running {
        ready: watch::Sender<Option<Ready>>,
        task: JoinHandle<()>,
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn start(server: &ApiServer, ready: Option<Ready>) -> Running {
        let options = Options {
            node: "node-1".to_owned(),
            condition: true,
            taint: Some(TAINT.to_owned()),
            pauses: pauses(),
        };
        let (sender, receiver) = watch::channel(ready);
        Running {
            ready: sender,
            task: tokio::spawn(run(client(server), options, receiver)),
        }
    }

    fn ours(server: &ApiServer) -> Value {
        let node = node(server);
        let conditions = node["status"]["conditions"].as_array().cloned();
        let mut conditions = conditions.unwrap_or_default().into_iter();
        conditions
            .find(|one| one["type"] == CONDITION)
            .unwrap_or_default()
    }

    async fn until(server: &ApiServer, condition: impl Fn() -> bool) {
        let holds = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), holds)
            .await
            .unwrap_or_else(|_| panic!("{}", node(server)));
    }

    fn not_attached() -> Ready {
        Ready::False {
            reason: "KubeletNotAttached",
            message: "waiting for: kubelet".to_owned(),
        }
    }

    #[tokio::test]
    async fn the_condition_follows_and_others_stay() {
        let server = server().await;
        let running = start(&server, Some(not_attached()));
        until(&server, || ours(&server)["status"] == "False").await;
        assert_eq!(ours(&server)["reason"], "KubeletNotAttached");
        let _ = running.ready.send(Some(Ready::True));
        until(&server, || ours(&server)["status"] == "True").await;
        assert_eq!(node(&server)["status"]["conditions"][0]["type"], "Ready");
    }

    #[tokio::test]
    async fn only_the_own_taint_is_removed_and_not_before_the_daemon_serves() {
        let server = server().await;
        let running = start(&server, Some(not_attached()));
        until(&server, || ours(&server)["status"] == "False").await;
        let taints = |server: &ApiServer| node(server)["spec"]["taints"].clone();
        assert_eq!(taints(&server).as_array().map(Vec::len), Some(3));
        // Another client changes the node meanwhile.
        server.fail("nodes", false, Fault::Status(409, "Conflict", "changed"));
        let _ = running.ready.send(Some(Ready::True));
        let other = json!([{"key": "other", "effect": "NoSchedule"}]);
        until(&server, || taints(&server) == other).await;
    }

    #[tokio::test]
    async fn nothing_is_written_before_it_is_known() {
        let server = server().await;
        let running = start(&server, None);
        tokio::task::yield_now().await;
        assert!(server.asked().is_empty());
        let _ = running.ready.send(Some(Ready::True));
        until(&server, || ours(&server)["status"] == "True").await;
    }

    #[test]
    fn the_transition_time_is_that_of_the_last_change() {
        let first = condition(None, &Ready::True, 1_000);
        assert_eq!(first.last_transition_time, Some(time(1_000)));
        let again = condition(Some(&first), &Ready::True, 9_000);
        assert_eq!(again.last_transition_time, Some(time(1_000)));
        assert_eq!(again.last_heartbeat_time, Some(time(9_000)));
        let other = condition(Some(&again), &not_attached(), 10_000);
        assert_eq!(other.last_transition_time, Some(time(10_000)));
    }

    #[test]
    fn a_node_without_the_taint_is_not_changed() {
        assert_eq!(without(&[], TAINT), None);
        let other = Taint {
            key: "probe-handler.io/other".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        assert_eq!(without(&[other], TAINT), None);
    }
}
