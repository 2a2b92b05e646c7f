//! The rules of the design for the webhook's manifests.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use probe_handler::cli::Command;
use probe_handler::cli::config::WebhookConfig;
use serde_json::Value;

use super::has;
use super::rules::{Rule, image_of, one, parsed};

/// All rules.
pub const RULES: &[(&str, Rule)] = &[
    ("a-webhook-that-is-away-keeps-no-pod-out", admission),
    ("asked-before-the-meshes-injectors", order),
    ("two-replicas-and-one-always-there", replicas),
    ("an-update-never-waits-for-a-port-of-a-node", update),
    ("the-ports-are-those-that-it-listens-on", ports),
    ("has-no-privileges", privileges),
    ("the-image-is-the-one-that-xtask-writes", image),
];

/// The component that puts the webhook on the nodes' network.
const HOST_NETWORK: &str = "webhook-host-network";
/// Port of the node that the daemon uses (`--admin-addr`).
const DAEMONS_PORT: u16 = 15026;
/// The longest time that an API server may wait for the webhook, in seconds.
const TIMEOUT: i32 = 5;

fn admission(_: &str, objects: &[Value]) -> Result<()> {
    let configuration: MutatingWebhookConfiguration = one(objects, "MutatingWebhookConfiguration")?;
    let webhooks = configuration.webhooks.unwrap_or_default();
    ensure!(!webhooks.is_empty(), "no webhooks");
    for webhook in webhooks {
        let name = &webhook.name;
        ensure!(
            webhook.failure_policy.as_deref() == Some("Ignore"),
            "{name}: failurePolicy"
        );
        ensure!(
            webhook
                .timeout_seconds
                .is_some_and(|seconds| seconds <= TIMEOUT),
            "{name}: timeoutSeconds"
        );
        ensure!(
            webhook.reinvocation_policy.as_deref() == Some("IfNeeded"),
            "{name}: reinvocationPolicy"
        );
        ensure!(
            webhook.match_conditions.is_some(),
            "{name}: matchConditions"
        );
    }
    Ok(())
}

/// API servers call mutating webhooks in the order of their configurations' names
/// (apiserver pkg/admission/configuration/mutating_webhook_manager.go).
fn order(_: &str, objects: &[Value]) -> Result<()> {
    let configuration: MutatingWebhookConfiguration = one(objects, "MutatingWebhookConfiguration")?;
    let name = configuration.metadata.name.context("no name")?;
    for injector in ["consul-", "istio-", "kuma-", "linkerd-"] {
        ensure!(*name < *injector, "{name} comes after {injector}");
    }
    Ok(())
}

fn replicas(_: &str, objects: &[Value]) -> Result<()> {
    let deployment: Deployment = one(objects, "Deployment")?;
    let replicas = deployment.spec.and_then(|spec| spec.replicas);
    ensure!(replicas >= Some(2), "{replicas:?} replicas");
    let budget: PodDisruptionBudget = one(objects, "PodDisruptionBudget")?;
    let spec = budget.spec.context("no spec")?;
    // minAvailable would block the drain of a node forever if the Deployment had only one replica.
    ensure!(
        spec.max_unavailable == Some(IntOrString::Int(1)) && spec.min_available.is_none(),
        "PodDisruptionBudget"
    );
    Ok(())
}

/// On the host's network each declared port is a hostPort (kubernetes pkg/apis/core/v1/defaults.go), so a surge pod waits
/// for a node without a replica, which there may not be. Elsewhere no replica may be missing during an update.
fn update(rendering: &str, objects: &[Value]) -> Result<()> {
    let deployment: Deployment = one(objects, "Deployment")?;
    let strategy = deployment.spec.and_then(|spec| spec.strategy);
    let rolling = strategy.and_then(|strategy| strategy.rolling_update);
    let rolling = rolling.context("no rolling update")?;
    let found = (rolling.max_surge, rolling.max_unavailable);
    let (surge, unavailable) = match has(rendering, HOST_NETWORK) {
        true => (0, 1),
        false => (1, 0),
    };
    let expected = [surge, unavailable].map(|count| Some(IntOrString::Int(count)));
    ensure!(
        [found.0.clone(), found.1.clone()] == expected,
        "maxSurge, maxUnavailable: {found:?}"
    );
    Ok(())
}

fn ports(rendering: &str, objects: &[Value]) -> Result<()> {
    let config = config(objects)?;
    let admin = config.admin_addr.context("no --admin-addr")?.port();
    let container = pod(objects)?.containers.pop().context("no container")?;
    let declared: Vec<(Option<String>, i32)> = container
        .ports
        .unwrap_or_default()
        .into_iter()
        .map(|port| (port.name, port.container_port))
        .collect();
    let expected = [("https", config.listen.port()), ("metrics", admin)]
        .map(|(name, port)| (Some(name.to_owned()), i32::from(port)));
    ensure!(declared == expected, "{declared:?}, not {expected:?}");
    let deployment: Deployment = one(objects, "Deployment")?;
    let template = deployment.spec.context("no spec")?.template;
    let annotations = template.metadata.and_then(|meta| meta.annotations);
    let scraped = annotations.and_then(|mut all| all.remove("prometheus.io/port"));
    ensure!(scraped == Some(admin.to_string()), "scraped at {scraped:?}");
    // The daemon uses its port on every node.
    let shared = has(rendering, HOST_NETWORK) && admin == DAEMONS_PORT;
    ensure!(!shared, "port {admin} of the node is the daemon's");
    Ok(())
}

fn privileges(rendering: &str, objects: &[Value]) -> Result<()> {
    let pod = pod(objects)?;
    let host_network = has(rendering, HOST_NETWORK).then_some(true);
    ensure!(
        pod.host_network == host_network && pod.host_pid.is_none(),
        "the node's namespaces"
    );
    let user = pod.security_context.context("no securityContext")?;
    ensure!(user.run_as_non_root == Some(true), "runAsNonRoot");
    for container in pod.containers {
        let context = container
            .security_context
            .context("no securityContext of the container")?;
        ensure!(
            context.read_only_root_filesystem == Some(true),
            "root file system"
        );
        ensure!(
            context.allow_privilege_escalation == Some(false),
            "escalation"
        );
        let capabilities = context.capabilities.context("no capabilities")?;
        ensure!(
            capabilities.drop == Some(vec!["ALL".to_owned()]) && capabilities.add.is_none(),
            "capabilities"
        );
    }
    Ok(())
}

fn image(rendering: &str, objects: &[Value]) -> Result<()> {
    let expected = image_of(rendering);
    for container in pod(objects)?.containers {
        let image = container.image.context("no image")?;
        ensure!(image == expected, "{image}, not {expected}");
    }
    Ok(())
}

fn pod(objects: &[Value]) -> Result<PodSpec> {
    let deployment: Deployment = one(objects, "Deployment")?;
    let template = deployment.spec.context("no spec")?.template;
    template.spec.context("the template has no spec")
}

/// The configuration that results from the arguments and the environment of the webhook's container.
///
/// # Errors
/// They are not valid.
pub fn config(objects: &[Value]) -> Result<WebhookConfig> {
    let container = pod(objects)?.containers.pop().context("no container")?;
    let mut words = vec!["probe-handler".to_owned()];
    words.extend(container.args.unwrap_or_default());
    for variable in container.env.unwrap_or_default() {
        let flag = variable.name.strip_prefix("PROBE_HANDLER_");
        let flag = flag.with_context(|| format!("variable {}", variable.name))?;
        let flag = flag.to_lowercase().replace('_', "-");
        let value = variable.value.context("a variable without a value")?;
        words.push(format!("--{flag}={value}"));
    }
    // The flags require directories that exist; in the container they are volumes.
    let mounts = container.volume_mounts.unwrap_or_default();
    for word in &mut words {
        if let Some((flag, path)) = word.split_once("-dir=") {
            let mounted = mounts.iter().any(|mount| mount.mount_path == path);
            ensure!(mounted, "{path} is not mounted");
            *word = format!("{flag}-dir=/");
        }
    }
    match parsed(&words)? {
        Command::Webhook(args) => Ok(WebhookConfig::try_from(*args)?),
        _ => bail!("it does not run the webhook"),
    }
}
