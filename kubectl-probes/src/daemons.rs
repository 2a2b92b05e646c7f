//! The daemons of a cluster: one for each node, and the port of its admin server.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::ListParams;
use kube::{Api, Client};

use support::error_chain::chain;

/// The label of the daemons' pods.
const SELECTOR: &str = "app.kubernetes.io/name=probe-handler";
/// How many pods the API server lists in one answer.
const PAGE: u32 = 500;
/// Maximum time for the list.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Flag and variable with the address of the admin server.
const FLAG: &str = "--admin-addr";
const VARIABLE: &str = "PROBE_HANDLER_ADMIN_ADDR";
/// The admin server's port, if the pod sets none.
pub const DEFAULT_PORT: u16 = 15026;

/// The daemon of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// The node.
    pub node: String,
    /// The daemon's pod.
    pub pod: String,
    /// The port of its admin server, or why it can't be requested.
    pub port: Result<u16, String>,
    /// Whether its container was restarted, so that the log of the previous one exists.
    pub has_restarted: bool,
}

/// All daemons, and the client for their namespace.
pub struct Daemons {
    /// Pods of the daemons' namespace.
    pub api: Api<Pod>,
    /// Sorted by node.
    pub all: Vec<Daemon>,
}

/// Why there is no list of daemons.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No permission.
    #[error(
        "no permission to list the daemons: {0}; component plugin of deploy/ has the Role that this needs"
    )]
    Forbidden(String),
    /// The API server does not answer.
    #[error("the API server does not list the daemons: {0}")]
    Api(String),
    /// There is none.
    #[error(
        "no daemon runs in namespace {namespace:?} (pods with label {SELECTOR}): is probe-handler installed in another one? \
         Set --daemon-namespace"
    )]
    None {
        /// The namespace.
        namespace: String,
    },
}

/// Lists the daemons in `namespace`.
///
/// # Errors
/// The API server does not answer, or there is no daemon.
pub async fn list(client: &Client, namespace: &str) -> Result<Daemons, Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = tokio::time::timeout(TIMEOUT, pages(&api));
    let pods = pods
        .await
        .map_err(|_| Error::Api(format!("no answer within {} s", TIMEOUT.as_secs())))??;
    let all = of_pods(pods);
    if all.is_empty() {
        return Err(Error::None {
            namespace: namespace.to_owned(),
        });
    }
    Ok(Daemons { api, all })
}

async fn pages(api: &Api<Pod>) -> Result<Vec<Pod>, Error> {
    let mut pods = Vec::new();
    let mut params = ListParams::default().labels(SELECTOR).limit(PAGE);
    loop {
        let list = api.list(&params).await.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 403 => Error::Forbidden(status.message),
            kube::Error::Api(status) => Error::Api(status.message),
            error => Error::Api(chain(&error)),
        })?;
        pods.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(pods),
        }
    }
}

/// One daemon for each node. If a node has several, as during an upgrade, returns the newest one that is ready: they share
/// the port, and that one answers.
pub fn of_pods(pods: Vec<Pod>) -> Vec<Daemon> {
    let mut of_node: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for pod in pods {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        of_node
            .entry(node.unwrap_or_default())
            .or_default()
            .push(pod);
    }
    let mut daemons = Vec::new();
    for (node, pods) in of_node {
        if node.is_empty() {
            let waiting = pods.into_iter().map(|pod| Daemon {
                node: "(none)".to_owned(),
                pod: pod.metadata.name.unwrap_or_default(),
                port: Err("the daemon's pod is not scheduled to a node yet".to_owned()),
                has_restarted: false,
            });
            daemons.extend(waiting);
            continue;
        }
        let newest = pods.into_iter().max_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.clone();
            (is_running(pod), is_ready(pod), created.map(|time| time.0))
        });
        daemons.extend(newest.map(|pod| Daemon {
            port: port(&pod),
            has_restarted: has_restarted(&pod),
            pod: pod.metadata.name.unwrap_or_default(),
            node,
        }));
    }
    daemons
}

fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

fn is_running(pod: &Pod) -> bool {
    phase(pod) == "Running"
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
    conditions
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn has_restarted(pod: &Pod) -> bool {
    let statuses = pod
        .status
        .iter()
        .flat_map(|status| &status.container_statuses);
    statuses.flatten().any(|status| status.restart_count > 0)
}

/// The port of the admin server, or why it can't be requested.
fn port(pod: &Pod) -> Result<u16, String> {
    if !is_running(pod) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let waiting = waiting(pod).map_or_else(String::new, |why| format!(", {why}"));
        return Err(format!(
            "the daemon's pod {name} is {}{waiting}",
            phase(pod)
        ));
    }
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let Some(address) = containers.filter_map(admin_address).next() else {
        return Ok(DEFAULT_PORT);
    };
    let number = address.rsplit_once(':').map(|(_, port)| port.parse());
    match number {
        Some(Ok(port)) if port != 0 => Ok(port),
        _ if address == "none" => Err(format!(
            "the daemon has no admin port ({FLAG} none): run 'probe-handler status' in its pod"
        )),
        _ => Err(format!(
            "the port of the daemon's admin server is not known: {FLAG} is {address:?}"
        )),
    }
}

/// The reason why a container waits, such as `CrashLoopBackOff`.
fn waiting(pod: &Pod) -> Option<&str> {
    let statuses = pod.status.as_ref()?.container_statuses.iter().flatten();
    let mut waiting = statuses.filter_map(|status| status.state.as_ref()?.waiting.as_ref());
    waiting.find_map(|waiting| waiting.reason.as_deref())
}

/// The address that a container's arguments set, or else its environment.
fn admin_address(container: &Container) -> Option<String> {
    let args: Vec<_> = container
        .command
        .iter()
        .chain(&container.args)
        .flatten()
        .collect();
    let flag = args.iter().enumerate().rev().find_map(|(index, arg)| {
        let rest = arg.strip_prefix(FLAG)?;
        match rest.strip_prefix('=') {
            Some(value) => Some(value.to_owned()),
            None if rest.is_empty() => args.get(index + 1).map(|value| (*value).clone()),
            None => None,
        }
    });
    let variable = || {
        let mut variables = container.env.iter().flatten();
        variables
            .find(|variable| variable.name == VARIABLE)?
            .value
            .clone()
    };
    flag.or_else(variable)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, node: &str, status: &Value, container: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "creationTimestamp": format!("2026-11-30T0{}:00:00Z", name.len())},
            "spec": {"nodeName": node, "containers": [container]},
            "status": status,
        }))
        .expect("a Pod")
    }

    fn ready() -> Value {
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
    }

    fn port_of(container: &Value) -> Result<u16, String> {
        of_pods(vec![pod("a", "n", &ready(), container)])
            .remove(0)
            .port
    }

    #[test]
    fn the_newest_ready_daemon_of_a_node_is_requested() {
        let app = json!({"name": "agent"});
        let running = json!({"phase": "Running"});
        let daemons = of_pods(vec![
            pod("a", "n2", &ready(), &app),
            pod("bb", "n1", &ready(), &app),
            pod("ccc", "n1", &ready(), &app),
            pod("dddd", "n1", &running, &app),
        ]);
        let names: Vec<_> = daemons.iter().map(|one| (&*one.node, &*one.pod)).collect();
        assert_eq!(names, [("n1", "ccc"), ("n2", "a")]);
    }

    #[test]
    fn a_daemon_that_does_not_run_is_a_row_with_the_reason() {
        let waiting = json!({"phase": "Pending", "containerStatuses": [{
            "name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff"}},
        }]});
        let daemons = of_pods(vec![
            pod("a", "n1", &waiting, &json!({"name": "agent"})),
            pod(
                "bb",
                "",
                &json!({"phase": "Pending"}),
                &json!({"name": "agent"}),
            ),
        ]);
        let why = "the daemon's pod a is Pending, ImagePullBackOff".to_owned();
        assert_eq!(daemons[1].port, Err(why));
        assert!(
            daemons[0]
                .port
                .as_ref()
                .is_err_and(|why| why.contains("not scheduled"))
        );
    }

    #[test]
    fn the_port_is_that_of_the_flag_or_the_variable() {
        let name = "agent";
        for (container, port) in [
            (
                json!({"name": name, "args": ["agent", "--pods=kube"]}),
                DEFAULT_PORT,
            ),
            (
                json!({"name": name, "args": ["agent", "--admin-addr=[::]:15099"]}),
                15099,
            ),
            (
                json!({"name": name, "args": ["agent", "--admin-addr", "127.0.0.1:1"]}),
                1,
            ),
            (
                json!({"name": name, "env": [{"name": VARIABLE, "value": "127.0.0.1:2"}]}),
                2,
            ),
            (
                json!({"name": name, "args": ["--admin-addr=:3"], "env": [{"name": VARIABLE, "value": ":2"}]}),
                3,
            ),
        ] {
            assert_eq!(port_of(&container), Ok(port), "{container}");
        }
        for address in ["none", "x", ":0", "127.0.0.1:"] {
            let container = json!({"name": name, "args": [format!("--admin-addr={address}")]});
            assert!(port_of(&container).is_err(), "{address}");
        }
    }
}
