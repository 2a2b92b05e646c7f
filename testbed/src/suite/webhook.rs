//! Pods that the real webhook admits: the daemon serves the probes that the webhook writes, and the kubelet's results
//! are correct.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cases::Cases;
use super::env::Env;
use super::rewritten::{AGENT, Original, app, originals, same_as_original};
use crate::kubelet::Probe;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::wait;
use crate::webhook::Webhook;
use crate::webhook::client::Client;

const ANNOTATION: &str = "probe-handler.io/probes";
const OPT_OUT: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
const ENABLED: &str = "rewriteAppHTTPProbe";
/// A changed setting must take effect within this time.
const APPLIED: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(10);

pub fn run(cases: &mut Cases) -> Result<()> {
    let mut env = Env::start(cases, &[])?;
    let mut webhook = Webhook::start(&env.run, cases.daemon())?;
    let client = webhook.client()?;
    let plain = PodSpec::new("original").app(app()).start(&env.run)?;
    let (pod, admitted) = admitted(&env, &client, "admitted")?;
    for original in originals() {
        let case = format!("{}-{}", original.container, original.end);
        cases.case(&case, || {
            names_the_handler(&admitted, &original)?;
            same_as_original(&env, &pod, &plain, &original)
        });
    }
    cases.case("status-says-so", || {
        let status = env.daemon.pod_status(pod.name())?.context("unknown pod")?;
        let rows = status["probes"].as_array().context("probes")?;
        let rewritten = rows.iter().all(|row| row["mode"] == "rewrite");
        ensure!(rows.len() == originals().len() && rewritten, "{rows:#?}");
        Ok(())
    });
    cases.case("reinvoked-it-changes-nothing", || {
        let again = client.admit(&admitted)?;
        ensure!(
            again.operations == 0 && again.object == admitted,
            "{again:?}"
        );
        Ok(())
    });
    cases.case("a-container-added-later-is-rewritten-on-reinvocation", || {
        let mut later = admitted.clone();
        let added = json!({"name": "late", "image": "app", "livenessProbe": {"tcpSocket": {"port": 1}}});
        later["spec"]["containers"].as_array_mut().context("containers")?.push(added);
        let again = client.admit(&later)?.object;
        let containers = again["spec"]["containers"].as_array().context("containers")?;
        let late = containers.last().context("a container")?;
        ensure!(late["livenessProbe"]["httpGet"]["path"] == "/app-health/late/livez", "{late}");
        Ok(())
    });
    cases.case("a-pod-that-opts-out-is-served-transparently", || {
        opted_out(&env, &client)
    });
    cases.case("switched-off-and-on-for-all", || {
        switched(&webhook, &client, &admitted)?;
        // Pods that were admitted before are served all the time.
        let original = originals().remove(0);
        same_as_original(&env, &pod, &plain, &original)
    });
    cases.case("it-ends-in-order", || {
        let status = webhook.stop(GRACE)?;
        ensure!(status.success(), "{status}: {}", webhook.log());
        Ok(())
    });
    cases.case("webhook-stopped/pods-admitted-before-are-served", || {
        for original in originals().into_iter().take(3) {
            same_as_original(&env, &pod, &plain, &original)?;
        }
        Ok(())
    });
    let program = cases.daemon().map(Path::to_owned);
    cases.case("from-files", || {
        let webhook = Webhook::start_from_files(&env.run, program.as_deref())?;
        switched(&webhook, &webhook.client()?, &admitted)?;
        // A new certificate, without a restart.
        renewed(&webhook)
    });
    daemon_stopped(cases, &mut env, &pod)
}

/// A pod with each original probe as its author wrote it.
fn spec(name: &str) -> PodSpec {
    let mut containers: Vec<Value> = Vec::new();
    for original in originals() {
        let index = match containers
            .iter()
            .position(|c| c["name"] == original.container)
        {
            Some(index) => index,
            None => {
                containers.push(json!({"name": original.container, "image": "app"}));
                containers.len() - 1
            }
        };
        let container = &mut containers[index];
        match original.end {
            "livez" => container["livenessProbe"] = original.action,
            "readyz" => container["readinessProbe"] = original.action,
            "startupz" => container["startupProbe"] = original.action,
            "poststartz" => container["lifecycle"]["postStart"] = original.action,
            _ => container["lifecycle"]["preStop"] = original.action,
        }
    }
    let spec = PodSpec::new(name).rules(RuleSet::IstioRedirect).app(app());
    containers.into_iter().fold(spec, PodSpec::container)
}

/// Creates a pod, lets the webhook admit it, and passes the admitted pod to the daemon.
fn admitted(env: &Env, client: &Client, name: &str) -> Result<(Pod, Value)> {
    let mut pod = spec(name).start(&env.run)?;
    let answer = client.admit(&pod.manifest())?;
    ensure!(answer.operations > 0, "nothing was rewritten: {answer:?}");
    ensure!(answer.warnings.is_empty(), "{:?}", answer.warnings);
    pod.publish_as(env.daemon.pods(), &answer.object)?;
    env.daemon.wait_served(&pod)?;
    Ok((pod, answer.object))
}

/// Checks the probe that the kubelet receives: it has the rewrite port, a separate path, and all other fields.
fn names_the_handler(admitted: &Value, original: &Original) -> Result<()> {
    let containers = admitted["spec"]["containers"]
        .as_array()
        .context("containers")?;
    let container = containers
        .iter()
        .find(|container| container["name"] == original.container)
        .context("the container")?;
    let probe = match original.end {
        "livez" => &container["livenessProbe"],
        "readyz" => &container["readinessProbe"],
        "startupz" => &container["startupProbe"],
        "poststartz" => &container["lifecycle"]["postStart"],
        _ => &container["lifecycle"]["preStop"],
    };
    let get = &probe["httpGet"];
    let kinds = ["httpGet", "tcpSocket", "grpc", "exec"];
    ensure!(
        get["path"] == *original.path()
            && get["port"] == AGENT
            && get.get("host").is_none()
            && get.get("scheme").is_none_or(|scheme| scheme == "HTTP")
            && kinds
                .iter()
                .filter(|kind| probe.get(kind).is_some())
                .count()
                == 1,
        "{probe}"
    );
    Ok(())
}

fn opted_out(env: &Env, client: &Client) -> Result<()> {
    let mut pod = spec("opted-out")
        .annotation(OPT_OUT, "false")
        .start(&env.run)?;
    let answer = client.admit(&pod.manifest())?;
    ensure!(
        answer.operations == 0 && answer.warnings.is_empty(),
        "{answer:?}"
    );
    pod.publish_as(env.daemon.pods(), &answer.object)?;
    env.daemon.wait_served(&pod)?;
    let ip = IpAddr::V4(pod.ns.ipv4());
    let _passed = env.passes(&Probe::http(ip, 8080, "/healthy?deep=1"))?;
    let _failed = env.fails(&Probe::http(ip, 8080, "/failing"))?;
    let status = env.daemon.pod_status(pod.name())?.context("unknown pod")?;
    let rows = status["probes"].as_array().context("probes")?;
    ensure!(
        rows.iter().all(|row| row["mode"] == "transparent"),
        "{rows:#?}"
    );
    Ok(())
}

/// The global setting applies to pods without their own setting, and changes without a restart.
fn switched(webhook: &Webhook, client: &Client, admitted: &Value) -> Result<()> {
    let plain = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "new", "namespace": "testbed"},
        "spec": {"containers": [{"name": "web", "image": "web",
            "livenessProbe": {"httpGet": {"path": "/", "port": 80}}}]},
    });
    let mut willing = plain.clone();
    willing["metadata"]["annotations"] = json!({OPT_OUT: "true"});
    let rewritten = |pod: &Value| -> Result<bool> {
        let object = client.admit(pod)?.object;
        Ok(object["metadata"]["annotations"].get(ANNOTATION).is_some())
    };
    wait::until("the default to apply", APPLIED, || {
        rewritten(&plain).ok().filter(|rewritten| *rewritten)
    })?;
    for (value, enabled) in [("false", false), ("true", true), ("0", false)] {
        webhook.set(ENABLED, value)?;
        wait::until(&format!("{ENABLED}: {value} to apply"), APPLIED, || {
            rewritten(&plain)
                .ok()
                .filter(|rewritten| *rewritten == enabled)
        })?;
        ensure!(rewritten(&willing)?, "the pod's own word counts more");
        ensure!(
            client.admit(admitted)?.operations == 0,
            "what was admitted stays as it is"
        );
    }
    webhook.set(ENABLED, "flase")?;
    wait::until("the mistake to be noticed", APPLIED, || {
        webhook
            .log()
            .contains("the last good settings stay in use")
            .then_some(())
    })?;
    ensure!(!rewritten(&plain)?, "the last good value holds");
    webhook.set(ENABLED, "true")?;
    wait::until("the good value to apply", APPLIED, || {
        rewritten(&plain).ok().filter(|rewritten| *rewritten)
    })
    .map(drop)
}

fn renewed(webhook: &Webhook) -> Result<()> {
    let before = webhook.client()?;
    webhook.renew()?;
    let after = webhook.client()?;
    let pod = json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": []}});
    wait::until("the new certificate to be served", APPLIED, || {
        after.admit(&pod).ok()
    })?;
    let error = before
        .admit(&pod)
        .err()
        .context("the old authority is trusted still")?;
    ensure!(
        format!("{error:#}").contains("invalid peer certificate"),
        "{error:#}"
    );
    Ok(())
}

/// While the daemon is stopped, nothing answers a rewritten probe: pilot-agent, which has that port, does not know our
/// paths.
fn daemon_stopped(cases: &mut Cases, env: &mut Env, pod: &Pod) -> Result<()> {
    if !cases.wants("daemon-stopped") {
        return Ok(());
    }
    env.stop_daemon()?;
    cases.case("daemon-stopped/pilot-agent-answers-400", || {
        let original = originals().remove(0);
        let result = env.fails(&original.rewritten(pod.ns.ipv4().into()))?;
        ensure!(result.status == Some(400), "{result:?}");
        Ok(())
    });
    Ok(())
}
