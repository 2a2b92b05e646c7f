//! The rules of probe-handler's design for its manifests. Each rule checks the rendered result, so that an
//! overlay can't undo settings of the base.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use probe_handler::cli::Command;
use probe_handler::cli::config::settings::{self, FileSettings};
use probe_handler::cli::config::{AgentConfig, PodSource};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::combined::{REGISTRY, SETTINGS};
use super::{has, plugin};

/// A rule for the objects of a rendering, whose name is the first argument.
pub type Rule = fn(&str, &[Value]) -> Result<()>;

/// All rules.
pub const RULES: &[(&str, Rule)] = &[
    ("two-daemons-overlap-in-an-upgrade", upgrade),
    ("no-port-of-the-node-is-claimed", ports),
    ("probes-ask-the-daemons-own-socket", probes),
    ("on-every-node-and-not-evicted", everywhere),
    ("sees-the-nodes-network-and-processes", node),
    (
        "mounts-are-read-only-but-its-own-and-not-propagated",
        mounts,
    ),
    ("privileges-are-as-the-overlay-says", privileges),
    ("may-read-pods-and-namespaces-and-nothing-else", permissions),
    ("the-image-is-the-one-that-xtask-writes", image),
    ("the-daemon-understands-its-arguments", arguments),
    ("an-operators-settings-are-not-overwritten", settings),
    ("the-drain-fits-the-grace-period", drain),
    ("memory-fits-what-was-measured", memory),
    ("a-second-daemon-fits-on-a-full-node", small),
];

/// The image, as `cargo xtask image` names it.
const IMAGE: &str = concat!("registry.invalid/probe-handler:", env!("CARGO_PKG_VERSION"));
/// The image in the documentation's example of a registry.
const OWN_IMAGE: &str = concat!(
    "registry.example.com/mesh/probe-handler:",
    env!("CARGO_PKG_VERSION")
);

/// The image that `rendering` must run.
pub fn image_of(rendering: &str) -> &'static str {
    match has(rendering, REGISTRY) {
        true => OWN_IMAGE,
        false => IMAGE,
    }
}

/// The key of the ConfigMap with settings.
const SETTINGS_KEY: &str = "settings.yaml";

const MIB: u64 = 1 << 20;
/// Resident memory of the daemon with 250 pods on a node, in bytes, as `cargo xtask bench` measures it.
const MEASURED: u64 = 20 * MIB;

fn all<T: DeserializeOwned>(objects: &[Value], kind: &str) -> Result<Vec<T>> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .map(|object| Ok(serde_json::from_value(object.clone())?))
        .collect()
}

/// The only object of a kind.
///
/// # Errors
/// There is none, there are several, or it does not match its schema.
pub fn one<T: DeserializeOwned>(objects: &[Value], kind: &str) -> Result<T> {
    let mut found = all(objects, kind)?;
    ensure!(found.len() == 1, "{} objects of kind {kind}", found.len());
    found.pop().context("it was just there")
}

fn pod(objects: &[Value]) -> Result<PodSpec> {
    let daemon_set: DaemonSet = one(objects, "DaemonSet")?;
    let template = daemon_set.spec.context("no spec")?.template;
    template.spec.context("no pod")
}

fn agent(objects: &[Value]) -> Result<Container> {
    let mut pod = pod(objects)?;
    ensure!(
        pod.init_containers.unwrap_or_default().is_empty() && pod.containers.len() == 1,
        "the pod has more than one container"
    );
    pod.containers.pop().context("it was just there")
}

fn upgrade(_: &str, objects: &[Value]) -> Result<()> {
    let daemon_set: DaemonSet = one(objects, "DaemonSet")?;
    let spec = daemon_set.spec.context("no spec")?;
    ensure!(
        spec.min_ready_seconds.is_some_and(|seconds| seconds > 0),
        "minReadySeconds"
    );
    let strategy = spec.update_strategy;
    let rolling = strategy.and_then(|strategy| strategy.rolling_update);
    let rolling = rolling.context("no rolling update")?;
    // A percentage, so that the duration does not grow with the number of nodes.
    let surge = Some(IntOrString::String("10%".to_owned()));
    ensure!(rolling.max_surge == surge, "{:?}", rolling.max_surge);
    ensure!(
        rolling.max_unavailable == Some(IntOrString::Int(0)),
        "maxUnavailable"
    );
    Ok(())
}

/// In the host's network each container port is a port of the node, so that two daemons could not run at the same time.
fn ports(_: &str, objects: &[Value]) -> Result<()> {
    let ports = agent(objects)?.ports.unwrap_or_default();
    ensure!(ports.is_empty(), "the container has ports: {ports:?}");
    Ok(())
}

/// Over TCP another daemon on the node could answer.
fn probes(_: &str, objects: &[Value]) -> Result<()> {
    let agent = agent(objects)?;
    let asks = |probe: Option<Probe>, flag: &str| -> Result<()> {
        let probe = probe.with_context(|| format!("no probe asks {flag}"))?;
        let command = probe.exec.and_then(|exec| exec.command);
        let command = command.context("the probe is no command")?;
        ensure!(
            command == ["/probe-handler", "status", flag],
            "the probe's command is {command:?}"
        );
        parsed(&command).map(drop)
    };
    // A process that hangs ignores SIGTERM.
    let liveness = agent.liveness_probe.as_ref();
    let grace = liveness.and_then(|probe| probe.termination_grace_period_seconds);
    ensure!(
        grace.is_some_and(|seconds| seconds <= 5),
        "a daemon that hangs has {grace:?} s to end"
    );
    asks(agent.startup_probe, "--alive")?;
    asks(agent.liveness_probe, "--alive")?;
    asks(agent.readiness_probe, "--ready")
}

fn everywhere(_: &str, objects: &[Value]) -> Result<()> {
    let pod = pod(objects)?;
    let tolerates_all = |toleration: &k8s_openapi::api::core::v1::Toleration| {
        toleration.operator.as_deref() == Some("Exists")
            && toleration.key.is_none()
            && toleration.effect.is_none()
    };
    ensure!(
        pod.tolerations
            .unwrap_or_default()
            .iter()
            .any(tolerates_all),
        "some taint is not tolerated"
    );
    // It tolerates all taints, so it would be scheduled to these nodes too.
    let affinity = serde_json::to_string(&pod.affinity)?;
    for none in ["fargate", "virtual-kubelet"] {
        ensure!(affinity.contains(none), "{none} runs no DaemonSet");
    }
    ensure!(
        pod.priority_class_name.as_deref() == Some("system-node-critical"),
        "priorityClassName"
    );
    Ok(())
}

fn node(_: &str, objects: &[Value]) -> Result<()> {
    let pod = pod(objects)?;
    ensure!(pod.host_network == Some(true), "hostNetwork");
    ensure!(pod.host_pid == Some(true), "hostPID");
    let node_name = agent(objects)?
        .env
        .unwrap_or_default()
        .into_iter()
        .any(|variable| {
            let source = variable.value_from.and_then(|source| source.field_ref);
            variable.name == "NODE_NAME"
                && source.is_some_and(|field| field.field_path == "spec.nodeName")
        });
    ensure!(node_name, "NODE_NAME is not the node's");
    Ok(())
}

fn mounts(_: &str, objects: &[Value]) -> Result<()> {
    let security = agent(objects)?.security_context;
    let read_only = security.and_then(|security| security.read_only_root_filesystem);
    ensure!(read_only == Some(true), "readOnlyRootFilesystem");
    let mounts = agent(objects)?.volume_mounts.unwrap_or_default();
    for volume in pod(objects)?.volumes.unwrap_or_default() {
        // The daemon's own directory, and for the kernel path its pins in the node's BPF file system.
        let own = volume.empty_dir.is_some() || volume.name == "bpffs";
        let read_only = mounts
            .iter()
            .filter(|mount| mount.name == volume.name)
            .all(|mount| mount.read_only == Some(true));
        ensure!(own || read_only, "volume {} can be written", volume.name);
    }
    // A container with a propagated mount does not start on a node where the source is not a shared mount.
    for mount in &mounts {
        let propagation = &mount.mount_propagation;
        ensure!(propagation.is_none(), "{}: {propagation:?}", mount.name);
    }
    Ok(())
}

fn privileges(overlay: &str, objects: &[Value]) -> Result<()> {
    let security = agent(objects)?.security_context.context("no context")?;
    let least = has(overlay, "least-privilege");
    ensure!(security.privileged == Some(!least), "privileged");
    ensure!(security.run_as_user == Some(0), "runAsUser");
    if least {
        ensure!(
            security.allow_privilege_escalation == Some(false),
            "allowPrivilegeEscalation"
        );
        let seccomp = security.seccomp_profile.context("no seccompProfile")?;
        ensure!(seccomp.type_ == "RuntimeDefault", "{seccomp:?}");
        // The unit tests of the `kernel` crate compare the added ones with the code.
        let dropped = security.capabilities.and_then(|set| set.drop);
        ensure!(dropped == Some(vec!["ALL".to_owned()]), "drop: {dropped:?}");
    }
    Ok(())
}

fn permissions(overlay: &str, objects: &[Value]) -> Result<()> {
    let role: ClusterRole = one(objects, "ClusterRole")?;
    let rules = role.rules.unwrap_or_default();
    let [rule, others @ ..] = &rules[..] else {
        bail!("no rule");
    };
    let sorted = |list: &Option<Vec<String>>| {
        let mut list = list.clone().unwrap_or_default();
        list.sort();
        list
    };
    ensure!(sorted(&rule.api_groups) == [""], "apiGroups");
    ensure!(
        sorted(&rule.resources) == ["namespaces", "pods"],
        "resources"
    );
    ensure!(rule.verbs == ["get", "list", "watch"], "verbs");
    ensure!(rule.non_resource_urls.is_none(), "nonResourceURLs");
    // What the overlays add, in the order of their names.
    let mut expected = Vec::new();
    if has(overlay, "events") {
        expected.push((vec!["events"], vec!["create", "patch"]));
    }
    let mut found: Vec<_> = others
        .iter()
        .map(|rule| (sorted(&rule.resources), rule.verbs.clone()))
        .collect();
    if has(overlay, "node-condition") {
        expected.push((vec!["nodes"], vec!["get"]));
        expected.push((vec!["nodes/status"], vec!["patch"]));
    }
    if has(overlay, "startup-taint") {
        expected.push((vec!["nodes"], vec!["get", "patch"]));
    }
    expected.sort();
    found.sort();
    let same = found.len() == expected.len()
        && found
            .iter()
            .zip(&expected)
            .all(|(found, expected)| found.0 == expected.0 && found.1 == expected.1);
    ensure!(same, "{found:?}, not {expected:?}");
    let core = |rule: &PolicyRule| sorted(&rule.api_groups) == [""];
    ensure!(others.iter().all(core), "another API group");
    let is_other = |object: &&Value| object["kind"] == "Role" && !plugin::is_role(object);
    ensure!(
        !objects.iter().any(|object| is_other(&object)),
        "a Role besides"
    );
    let binding: ClusterRoleBinding = one(objects, "ClusterRoleBinding")?;
    let account = pod(objects)?.service_account_name;
    let [subject] = &binding.subjects.unwrap_or_default()[..] else {
        bail!("not one subject");
    };
    let daemon_set: DaemonSet = one(objects, "DaemonSet")?;
    ensure!(
        Some(&subject.name) == account.as_ref()
            && subject.namespace == daemon_set.metadata.namespace
            && Some(&binding.role_ref.name) == role.metadata.name.as_ref(),
        "the role is bound to somebody else"
    );
    Ok(())
}

fn image(rendering: &str, objects: &[Value]) -> Result<()> {
    let image = agent(objects)?.image.context("no image")?;
    let expected = image_of(rendering);
    ensure!(image == expected, "{image}, not {expected}");
    Ok(())
}

/// A command line as the daemon's program parses it.
///
/// # Errors
/// It is not valid; the program has printed why.
pub fn parsed(words: &[String]) -> Result<Command> {
    let line = words.join(" ");
    Command::parse(words.iter().map(Into::into))
        .ok()
        .with_context(|| format!("`{line}` is no command of ours"))
}

/// The configuration that results from the daemon's arguments.
fn config(objects: &[Value]) -> Result<AgentConfig> {
    let agent = agent(objects)?;
    ensure!(
        agent.command.is_none(),
        "the image's entry point is replaced"
    );
    let mut words = vec!["probe-handler".to_owned()];
    words.extend(agent.args.unwrap_or_default());
    // The value comes from the downward API.
    words.push("--node-name=node".to_owned());
    match parsed(&words)? {
        Command::Agent(args) => Ok(AgentConfig::try_from(*args)?),
        _ => bail!("it does not run the agent"),
    }
}

fn arguments(overlay: &str, objects: &[Value]) -> Result<()> {
    let config = config(objects)?;
    let PodSource::Kubernetes { last_known, .. } = &config.pods else {
        bail!("pods come from {}", config.pods);
    };
    ensure!(
        config.kubelet.allow_root_cgroup == has(overlay, "k3s"),
        "--allow-root-cgroup"
    );
    let outlives = config.kernel_path.then_some(config.bpffs.as_path());
    ensure!(
        outlives.is_none() == has(overlay, "handler-path"),
        "--kernel-path"
    );
    ensure!(config.events == has(overlay, "events"), "--events");
    ensure!(
        config.node_condition == has(overlay, "node-condition"),
        "--node-condition"
    );
    let taint = has(overlay, "startup-taint").then_some("probe-handler.io/starting");
    ensure!(config.startup_taint.as_deref() == taint, "--startup-taint");
    let file = config.settings.as_deref().context("no --settings")?;
    let mounts = agent(objects)?.volume_mounts.unwrap_or_default();
    let mut of_settings = mounts.iter().filter(|mount| mount.name == "settings");
    let mount = of_settings.next().context("no settings are mounted")?;
    ensure!(
        file == Path::new(&mount.mount_path).join(SETTINGS_KEY) && mount.sub_path.is_none(),
        "{} is not the mounted file",
        file.display()
    );
    let last_known = last_known.as_deref().context("no --last-known")?;
    let mounts = agent(objects)?.volume_mounts.unwrap_or_default();
    for file in [Some(&*config.admin_socket), Some(last_known), outlives]
        .into_iter()
        .flatten()
    {
        let directory = file.parent().context("no directory")?;
        ensure!(
            mounts
                .iter()
                .any(|mount| Path::new(&mount.mount_path) == directory),
            "{} can't be written",
            directory.display()
        );
    }
    Ok(())
}

/// A rendered ConfigMap without settings would take the place of the operator's, and a cluster that observes would serve.
fn settings(rendering: &str, objects: &[Value]) -> Result<()> {
    match settings_file(objects)? {
        None => ensure!(!has(rendering, SETTINGS), "no settings are rendered"),
        Some(found) => ensure!(
            has(rendering, SETTINGS) && !found.is_empty(),
            "a ConfigMap with {found:?} is rendered"
        ),
    }
    Ok(())
}

/// The settings in the ConfigMap that the daemon's pod mounts, if it is rendered.
///
/// # Errors
/// None is mounted, or it has mistakes.
pub fn settings_file(objects: &[Value]) -> Result<Option<FileSettings>> {
    let volumes = pod(objects)?.volumes.unwrap_or_default();
    let mut mounted = volumes.into_iter().filter_map(|volume| volume.config_map);
    let mounted = mounted.next().context("no ConfigMap is mounted")?;
    ensure!(mounted.optional == Some(true), "it is not optional");
    let map = objects
        .iter()
        .find(|object| object["kind"] == "ConfigMap" && object["metadata"]["name"] == mounted.name);
    let Some(map) = map else {
        return Ok(None);
    };
    let text = map["data"][SETTINGS_KEY].as_str().context("no settings")?;
    let found = settings::read(text).map_err(|mistakes| anyhow::anyhow!(mistakes.join("; ")))?;
    Ok(Some(found))
}

fn drain(_: &str, objects: &[Value]) -> Result<()> {
    let grace = pod(objects)?.termination_grace_period_seconds;
    let grace = u64::try_from(grace.context("no grace period")?)?;
    let drain = config(objects)?.drain_timeout.as_secs();
    ensure!(grace > drain, "{grace} s for a drain of {drain} s");
    Ok(())
}

/// In an upgrade the scheduler evicts other pods for a surge pod of this priority that does not fit. The daemon needs under 1 %
/// of a core (docs/environments.md).
fn small(_: &str, objects: &[Value]) -> Result<()> {
    let resources = agent(objects)?.resources.context("no resources")?;
    let request = resources.requests.and_then(|mut list| list.remove("cpu"));
    let request = request.context("no request of cpu")?.0;
    let milli: u64 = request.strip_suffix('m').context("not in m")?.parse()?;
    ensure!((10..=20).contains(&milli), "{request}");
    Ok(())
}

fn memory(_: &str, objects: &[Value]) -> Result<()> {
    let resources = agent(objects)?.resources.context("no resources")?;
    let bytes = |list: Option<std::collections::BTreeMap<String, _>>| -> Result<u64> {
        let quantity: k8s_openapi::apimachinery::pkg::api::resource::Quantity = list
            .and_then(|mut list| list.remove("memory"))
            .context("no memory")?;
        let mib = quantity.0.strip_suffix("Mi").context("not in Mi")?;
        Ok(mib.parse::<u64>()? * MIB)
    };
    let (request, limit) = (bytes(resources.requests)?, bytes(resources.limits)?);
    ensure!(
        request >= MEASURED && limit >= 4 * MEASURED,
        "{request} and {limit} bytes for the {MEASURED} that were measured"
    );
    Ok(())
}
