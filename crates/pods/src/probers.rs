//! Recovers the originals of probes that Istio's injector or our webhook rewrote before the kubelet saw
//! the pod.
//!
//! Both write the same JSON: an object that maps each rewritten path to
//! `{"httpGet"|"tcpSocket"|"grpc": <Kubernetes action>, "timeoutSeconds": N}` with integer ports
//! (istio pilot/cmd/pilot-agent/status/server.go, pkg/kube/inject/app_probe.go).

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, Pod, TCPSocketAction};
use serde::Deserialize;
use serde_json::Value;

use crate::mesh::{annotation, containers};
use crate::probes::{grpc_action, http_action, tcp_action, timeout};
use crate::skipped::{SkipReason, SkippedProbe};
use model::bounds::truncated;
use model::{Action, Probe, ProbeKind, ProbeMode, Rewritten, Schedule, Scheme};

/// Annotation with the originals of the probes that our webhook rewrote.
pub const PROBES: &str = "probe-handler.io/probes";
/// Variable of container `istio-proxy` that makes pilot-agent probe localhost instead of the pod's address.
pub const ISTIO_PROBES_LOCALHOST: &str = "REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION";
/// Variable of container `istio-proxy` with the originals of the probes that Istio's injector rewrote.
pub const ISTIO_PROBERS: &str = "ISTIO_KUBE_APP_PROBERS";
/// Annotation with Istio's status port; `"0"` turns pilot-agent's probing off.
pub const ISTIO_STATUS_PORT: &str = "status.sidecar.istio.io/port";
/// Default of Istio's status port and of our rewrite port.
pub const DEFAULT_PORT: u16 = 15020;

/// The originals of a pod's rewritten probes.
#[derive(Debug, Default, PartialEq)]
pub struct Originals {
    /// By rewritten path: the original.
    pub usable: BTreeMap<String, Probe>,
    /// By rewritten path: why its original can't be served.
    pub unusable: BTreeMap<String, SkipReason>,
    /// Keys that are not rewritten paths.
    pub unknown: Vec<String>,
}

/// The container and kind that a rewritten path names:
/// `/(app-health|app-lifecycle)/<container>/(livez|readyz|startupz|prestopz|poststartz)`, with
/// any prefix (our webhook can be configured with one; Istio has none).
pub fn parse_path(path: &str) -> Option<(&str, ProbeKind)> {
    let after = |directory: &str| {
        path.rfind(directory)
            .map(|at| &path[at + directory.len()..])
    };
    let rest = match (after("/app-health/"), after("/app-lifecycle/")) {
        (Some(health), Some(lifecycle)) if lifecycle.len() < health.len() => lifecycle,
        (Some(health), _) => health,
        (None, lifecycle) => lifecycle?,
    };
    let (container, kind) = rest.split_once('/')?;
    let kind = match kind {
        "livez" => ProbeKind::Liveness,
        "readyz" => ProbeKind::Readiness,
        "startupz" => ProbeKind::Startup,
        "prestopz" => ProbeKind::PreStop,
        "poststartz" => ProbeKind::PostStart,
        _ => return None,
    };
    (!container.is_empty()).then_some((container, kind))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    http_get: Option<HTTPGetAction>,
    tcp_socket: Option<TCPSocketAction>,
    grpc: Option<GRPCAction>,
    timeout_seconds: Option<i32>,
}

/// Reads the JSON of originals. `ips` are the pod's addresses. A probe's timeout is `None` if the JSON does
/// not set one.
///
/// # Errors
/// The text is not a JSON object. Invalid entries are not errors: the result lists them.
pub fn parse(json: &str, ips: &[IpAddr]) -> Result<Originals, serde_json::Error> {
    let mut originals = Originals::default();
    for (path, entry) in serde_json::from_str::<BTreeMap<String, Value>>(json)? {
        let Some((container, kind)) = parse_path(&path) else {
            originals.unknown.push(path);
            continue;
        };
        match parse_entry(container, kind, entry, ips) {
            Ok(probe) => drop(originals.usable.insert(path, probe)),
            Err(why) => drop(originals.unusable.insert(path, why)),
        }
    }
    Ok(originals)
}

fn parse_entry(
    container: &str,
    kind: ProbeKind,
    entry: Value,
    ips: &[IpAddr],
) -> Result<Probe, SkipReason> {
    let entry: Entry = serde_path_to_error::deserialize(entry)
        .map_err(|error| SkipReason::MalformedOriginal(truncated(&error.to_string())))?;
    // The ports are resolved already, so no container is needed to look up names.
    let nameless = Container::default();
    let action = match (entry.http_get, entry.tcp_socket, entry.grpc) {
        (Some(http), None, None) => http_action(&http, &nameless, ips)?,
        (None, Some(tcp), None) => tcp_action(&tcp, &nameless, ips)?,
        (None, None, Some(grpc)) => grpc_action(&grpc)?,
        (http, tcp, grpc) => {
            return Err(SkipReason::Actions(
                usize::from(http.is_some())
                    + usize::from(tcp.is_some())
                    + usize::from(grpc.is_some()),
            ));
        }
    };
    let set = entry.timeout_seconds.filter(|&seconds| seconds > 0);
    Ok(Probe {
        container: container.to_owned(),
        kind,
        action,
        timeout: set.and_then(|_| timeout(kind, set)),
        // The JSON contains no schedule, because rewriting keeps it in the probe of the spec.
        schedule: Schedule::default(),
    })
}

/// A pod's probes, separated into those sent to the app's own ports and those that were rewritten.
#[derive(Debug, Default, PartialEq)]
pub struct Recovered {
    /// Probes sent to the app's own ports.
    pub native: Vec<Probe>,
    /// Rewritten probes with their originals.
    pub rewritten: Option<Rewritten>,
    /// Rewritten probes without a usable original, and other probes of the rewrite port.
    pub skipped: Vec<SkippedProbe>,
    /// What could not be read.
    pub warnings: Vec<String>,
}

/// Finds the originals of the rewritten probes among `declared`, the probes in the spec. A rewritten path is
/// served only if a probe in the spec uses it. `ips` are the pod's addresses.
pub fn recover(pod: &Pod, declared: Vec<Probe>, ips: &[IpAddr]) -> Recovered {
    let mut warnings = Vec::new();
    let ours = annotation(pod, PROBES)
        .and_then(|json| read(PROBES, json, ips, &mut warnings))
        .and_then(|originals| {
            Some((
                ProbeMode::Rewrite,
                rewrite_port(&declared, &originals)?,
                originals,
            ))
        });
    let istios = istio_probers(pod)
        .and_then(|json| read(ISTIO_PROBERS, json, ips, &mut warnings))
        .and_then(|originals| {
            Some((
                ProbeMode::Takeover,
                status_port(pod, &declared, &mut warnings)?,
                originals,
            ))
        })
        .filter(|(_, port, _)| declared.iter().any(|probe| is_rewritten(probe, *port)))
        .filter(|(_, port, _)| {
            // The handler accepts every connection to a port that it takes over, so this probe would always
            // pass. Without a takeover, pilot-agent answers all these probes, which bypass the mesh.
            let tcp = declared
                .iter()
                .any(|p| p.action == Action::Tcp { port: *port });
            if tcp {
                warnings.push(format!(
                    "a tcpSocket probe uses Istio's status port {port}: no probe of this pod is taken over"
                ));
            }
            !tcp
        });
    if ours.is_some() && istios.is_some() {
        warnings.push(format!(
            "both {PROBES} and {ISTIO_PROBERS} are set and in use: {PROBES} applies"
        ));
    }
    let Some((way, port, originals)) = ours.or(istios) else {
        return Recovered {
            native: declared,
            warnings,
            ..Recovered::default()
        };
    };
    let mut recovered = sort(way, port, originals, declared);
    warnings.append(&mut recovered.warnings);
    recovered.warnings = warnings;
    recovered
}

fn sort(mode: ProbeMode, port: u16, mut originals: Originals, declared: Vec<Probe>) -> Recovered {
    let mut recovered = Recovered::default();
    let mut live = BTreeMap::<String, Probe>::new();
    for probe in declared {
        if probe.action.port() != port {
            recovered.native.push(probe);
            continue;
        }
        let why =
            match rewritten_path(&probe) {
                None => SkipReason::RewritePort(port),
                Some(path) => {
                    if let Some(original) = originals.usable.get(path) {
                        // Container and kind are those of the spec, which the API server has validated, not
                        // those of the path.
                        let is_hook = probe.kind.is_hook();
                        let served = live.entry(path.to_owned()).or_insert_with(|| Probe {
                            container: probe.container.clone(),
                            kind: probe.kind,
                            action: original.action.clone(),
                            timeout: original.timeout.filter(|_| !is_hook),
                            schedule: probe.schedule,
                        });
                        // The JSON sets no timeout: the kubelet's applies. Several probes may use the same path.
                        if original.timeout.is_none() && !is_hook {
                            served.timeout = served.timeout.max(probe.timeout);
                        }
                        continue;
                    }
                    originals.unusable.get(path).cloned().unwrap_or_else(|| {
                        SkipReason::NoOriginal {
                            path: truncated(path),
                            port,
                        }
                    })
                }
            };
        recovered.skipped.push(SkippedProbe {
            container: probe.container,
            kind: probe.kind,
            why,
        });
    }
    recovered
        .warnings
        .extend(originals.unknown.drain(..).map(|key| {
            format!("originals of rewritten probes: {key:?} is not the path of a rewritten probe")
        }));
    if !live.is_empty() {
        recovered.rewritten = Some(Rewritten {
            mode,
            port,
            originals: live.into_iter().collect(),
        });
    }
    recovered
}

fn read(source: &str, json: &str, ips: &[IpAddr], warnings: &mut Vec<String>) -> Option<Originals> {
    parse(json, ips)
        .map_err(|error| warnings.push(format!("{source} is not a JSON object of probes: {error}")))
        .ok()
}

/// Istio's originals.
fn istio_probers(pod: &Pod) -> Option<&str> {
    of_istio_proxy(pod, ISTIO_PROBERS)
}

/// Whether Istio's proxy and agent connect to the app at localhost: its template sets the variable if
/// `meshConfig.inboundTrafficPolicy.mode` is LOCALHOST. An app that listens only there is healthy in such a mesh.
pub fn is_at_localhost(pod: &Pod) -> bool {
    of_istio_proxy(pod, ISTIO_PROBES_LOCALHOST).and_then(parse_bool) == Some(true)
}

/// The value of variable `name` of container `istio-proxy`.
fn of_istio_proxy<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    containers(pod)
        .filter(|container| container.name == "istio-proxy")
        .flat_map(|container| container.env.iter().flatten())
        .find(|env| env.name == name)
        .and_then(|env| env.value.as_deref())
}

/// Accepts exactly what Go's `strconv.ParseBool` accepts: Istio reads annotations and variables with it.
pub fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// The path of a probe that looks rewritten.
pub fn rewritten_path(probe: &Probe) -> Option<&str> {
    match &probe.action {
        Action::Http {
            scheme: Scheme::Http,
            target,
            ..
        } => parse_path(target).map(|_| target.as_str()),
        _ => None,
    }
}

fn is_rewritten(probe: &Probe, port: u16) -> bool {
    probe.action.port() == port && rewritten_path(probe).is_some()
}

/// The port of the probes whose originals these are.
fn rewrite_port(declared: &[Probe], originals: &Originals) -> Option<u16> {
    declared
        .iter()
        .find(|probe| {
            rewritten_path(probe).is_some_and(|path| {
                originals.usable.contains_key(path) || originals.unusable.contains_key(path)
            })
        })
        .map(|probe| probe.action.port())
}

/// Istio's status port in this pod: from the annotation, else the port of the rewritten probes. `None` if the
/// annotation turns it off or is not a port.
fn status_port(pod: &Pod, declared: &[Probe], warnings: &mut Vec<String>) -> Option<u16> {
    match annotation(pod, ISTIO_STATUS_PORT) {
        Some("0") => None,
        Some(port) => port
            .parse()
            .map_err(|_| {
                warnings.push(format!(
                    "annotation {ISTIO_STATUS_PORT} is {port:?}, which is not a port"
                ))
            })
            .ok()
            .filter(|&port| port != 0),
        None => Some(
            declared
                .iter()
                .find(|probe| rewritten_path(probe).is_some())
                .map_or(DEFAULT_PORT, |probe| probe.action.port()),
        ),
    }
}

#[cfg(test)]
mod tests;
