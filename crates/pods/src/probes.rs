//! Reads the probes of a Pod's spec: what the kubelet would do, and which probes the daemon does not serve.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, GRPCAction, HTTPGetAction, LifecycleHandler, Pod, Probe as ProbeSpec,
    TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::mesh;
use crate::skipped::{SkipReason, SkippedProbe};
use crate::target::request_target;
use model::bounds::{REQUEST_HEADERS_LIMIT, REQUEST_LIMIT, truncated};
use model::{Action, Probe, ProbeKind, Schedule, Scheme};

/// `timeoutSeconds` when it is not set.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of a header line besides name and value: colon, space, CR, LF.
const LINE_BYTES: usize = 4;

/// One probe or hook as a container declares it, not yet interpreted.
#[derive(Clone, Copy, Debug)]
pub struct Declared<'a> {
    /// The container; may be an init container that keeps running.
    pub container: &'a Container,
    /// The kind of probe or hook.
    pub kind: ProbeKind,
    /// `exec`.
    pub exec: bool,
    /// `sleep` (hooks only).
    pub sleep: bool,
    /// `httpGet`.
    pub http: Option<&'a HTTPGetAction>,
    /// `tcpSocket`.
    pub tcp: Option<&'a TCPSocketAction>,
    /// `grpc` (probes only).
    pub grpc: Option<&'a GRPCAction>,
    /// `timeoutSeconds` (probes only).
    pub timeout_seconds: Option<i32>,
    /// `periodSeconds`, `failureThreshold` and `successThreshold` (probes only).
    pub schedule: Schedule,
}

/// Every probe and hook of `pod` that the kubelet would run, in the order of the containers. Init
/// containers count if they keep running (`restartPolicy: Always`); the kubelet never probes others.
pub fn declared(pod: &Pod) -> Vec<Declared<'_>> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    spec.init_containers
        .iter()
        .flatten()
        .filter(|init| init.restart_policy.as_deref() == Some("Always"))
        .chain(&spec.containers)
        .flat_map(of_container)
        .collect()
}

fn of_container(container: &Container) -> impl Iterator<Item = Declared<'_>> {
    let lifecycle = container.lifecycle.as_ref();
    let probes = [
        (ProbeKind::Liveness, &container.liveness_probe),
        (ProbeKind::Readiness, &container.readiness_probe),
        (ProbeKind::Startup, &container.startup_probe),
    ];
    let hooks = [
        (
            ProbeKind::PostStart,
            lifecycle.and_then(|l| l.post_start.as_ref()),
        ),
        (
            ProbeKind::PreStop,
            lifecycle.and_then(|l| l.pre_stop.as_ref()),
        ),
    ];
    let probes = probes
        .into_iter()
        .filter_map(move |(kind, probe)| Some(probe_of(container, kind, probe.as_ref()?)));
    let hooks = hooks
        .into_iter()
        .filter_map(move |(kind, hook)| Some(hook_of(container, kind, hook?)));
    probes.chain(hooks)
}

fn probe_of<'a>(container: &'a Container, kind: ProbeKind, probe: &'a ProbeSpec) -> Declared<'a> {
    Declared {
        container,
        kind,
        exec: probe.exec.is_some(),
        sleep: false,
        http: probe.http_get.as_ref(),
        tcp: probe.tcp_socket.as_ref(),
        grpc: probe.grpc.as_ref(),
        timeout_seconds: probe.timeout_seconds,
        schedule: schedule(probe),
    }
}

fn hook_of<'a>(
    container: &'a Container,
    kind: ProbeKind,
    hook: &'a LifecycleHandler,
) -> Declared<'a> {
    Declared {
        container,
        kind,
        exec: hook.exec.is_some(),
        sleep: hook.sleep.is_some(),
        http: hook.http_get.as_ref(),
        tcp: hook.tcp_socket.as_ref(),
        grpc: None,
        timeout_seconds: None,
        schedule: Schedule::default(),
    }
}

impl Declared<'_> {
    /// The probe, to be served on the port that it names.
    ///
    /// # Errors
    /// Why it is not served.
    pub fn parse_pod(&self, pod: &Pod, ips: &[IpAddr]) -> Result<Probe, SkipReason> {
        if mesh::is_proxy(pod, &self.container.name) {
            return Err(SkipReason::MeshProxy);
        }
        // The kubelet rejects such a hook before it sends anything; a rewritten one is an httpGet.
        if self.kind.is_hook() && self.tcp.is_some() && self.actions() == 1 {
            return Err(SkipReason::TcpHook);
        }
        Ok(Probe {
            container: self.container.name.clone(),
            kind: self.kind,
            action: self.action(ips)?,
            timeout: timeout(self.kind, self.timeout_seconds),
            schedule: self.schedule,
        })
    }

    /// This probe as one that is not served.
    pub fn skipped(&self, why: SkipReason) -> SkippedProbe {
        SkippedProbe {
            container: self.container.name.clone(),
            kind: self.kind,
            why,
        }
    }

    fn actions(&self) -> usize {
        [
            self.exec,
            self.sleep,
            self.http.is_some(),
            self.tcp.is_some(),
            self.grpc.is_some(),
        ]
        .into_iter()
        .filter(|&set| set)
        .count()
    }

    fn action(&self, ips: &[IpAddr]) -> Result<Action, SkipReason> {
        match self.actions() {
            1 => {}
            n => return Err(SkipReason::Actions(n)),
        }
        if self.exec {
            Err(SkipReason::Exec)
        } else if let Some(http) = self.http {
            http_action(http, self.container, ips)
        } else if let Some(tcp) = self.tcp {
            tcp_action(tcp, self.container, ips)
        } else if let Some(grpc) = self.grpc {
            grpc_action(grpc)
        } else {
            Err(SkipReason::Sleep)
        }
    }
}

/// The probes of `pod` on the app's own ports, and the probes that are not served. `ips` are the pod's addresses.
pub fn probes(pod: &Pod, ips: &[IpAddr]) -> (Vec<Probe>, Vec<SkippedProbe>) {
    let mut probes = Vec::new();
    let mut skipped = Vec::new();
    for declared in declared(pod) {
        match declared.parse_pod(pod, ips) {
            Ok(probe) => probes.push(probe),
            Err(why) => skipped.push(declared.skipped(why)),
        }
    }
    (probes, skipped)
}

/// The timeout of a probe: 1 s unless a positive number of seconds is set. Hooks have none.
pub fn timeout(kind: ProbeKind, seconds: Option<i32>) -> Option<Duration> {
    if kind.is_hook() {
        return None;
    }
    match seconds.map(u64::try_from) {
        Some(Ok(seconds)) if seconds > 0 => Some(Duration::from_secs(seconds)),
        _ => Some(DEFAULT_TIMEOUT),
    }
}

/// The schedule of a probe: a number that is not set, or not positive, counts as its default.
fn schedule(probe: &ProbeSpec) -> Schedule {
    let default = Schedule::default();
    let positive = |set: Option<i32>| {
        set.and_then(|set| u32::try_from(set).ok())
            .filter(|&set| set > 0)
    };
    Schedule {
        period: positive(probe.period_seconds).map_or(default.period, |seconds| {
            Duration::from_secs(seconds.into())
        }),
        failure_threshold: positive(probe.failure_threshold).unwrap_or(default.failure_threshold),
        success_threshold: positive(probe.success_threshold).unwrap_or(default.success_threshold),
    }
}

/// What an `httpGet` of `container` does.
///
/// # Errors
/// Why it is not served.
pub fn http_action(
    http: &HTTPGetAction,
    container: &Container,
    ips: &[IpAddr],
) -> Result<Action, SkipReason> {
    check_host("httpGet.host", http.host.as_deref(), ips)?;
    let scheme = match http.scheme.as_deref() {
        None | Some("" | "HTTP") => Scheme::Http,
        Some("HTTPS") => Scheme::Https,
        Some(other) => return Err(SkipReason::UnknownScheme(truncated(other))),
    };
    let path = http.path.as_deref().unwrap_or_default();
    let target = request_target(path).ok_or_else(|| SkipReason::OddPath(truncated(path)))?;
    let headers = || http.http_headers.iter().flatten();
    let lines = headers().map(|header| header.name.len() + header.value.len() + LINE_BYTES);
    let bytes = target.len() + lines.sum::<usize>();
    if bytes > REQUEST_LIMIT {
        return Err(SkipReason::TooLong {
            field: "httpGet",
            bytes,
        });
    }
    let count = headers().count();
    if count > REQUEST_HEADERS_LIMIT {
        return Err(SkipReason::TooManyHeaders(count));
    }
    Ok(Action::Http {
        scheme,
        port: resolve_port("httpGet.port", &http.port, container)?,
        target,
        headers: headers()
            .map(|header| (header.name.clone(), header.value.clone()))
            .collect(),
    })
}

/// What a `tcpSocket` of `container` does.
///
/// # Errors
/// Why it is not served.
pub fn tcp_action(
    tcp: &TCPSocketAction,
    container: &Container,
    ips: &[IpAddr],
) -> Result<Action, SkipReason> {
    check_host("tcpSocket.host", tcp.host.as_deref(), ips)?;
    Ok(Action::Tcp {
        port: resolve_port("tcpSocket.port", &tcp.port, container)?,
    })
}

/// What a `grpc` probe does.
///
/// # Errors
/// [`SkipReason::PortOutOfRange`], [`SkipReason::TooLong`].
pub fn grpc_action(grpc: &GRPCAction) -> Result<Action, SkipReason> {
    let service = grpc.service.as_deref().unwrap_or_default();
    if service.len() > REQUEST_LIMIT {
        return Err(SkipReason::TooLong {
            field: "grpc.service",
            bytes: service.len(),
        });
    }
    Ok(Action::Grpc {
        port: checked_port("grpc.port", grpc.port.into())?,
        service: service.to_owned(),
    })
}

fn check_host(field: &'static str, host: Option<&str>, ips: &[IpAddr]) -> Result<(), SkipReason> {
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        return Ok(());
    };
    match host.parse::<IpAddr>() {
        Ok(ip) if ips.contains(&ip.to_canonical()) => Ok(()),
        _ => Err(SkipReason::ForeignHost {
            field,
            host: truncated(host),
        }),
    }
}

/// Resolves a port like the kubelet: a string is the name of a port of the same container, else a number
/// (kubernetes pkg/probe/util.go `ResolveContainerPort`).
fn resolve_port(
    field: &'static str,
    port: &IntOrString,
    container: &Container,
) -> Result<u16, SkipReason> {
    let name = match port {
        IntOrString::Int(port) => return checked_port(field, (*port).into()),
        IntOrString::String(name) => name,
    };
    let named = container
        .ports
        .iter()
        .flatten()
        .find(|port| port.name.as_ref() == Some(name));
    match named {
        // The port's protocol does not matter: the kubelet connects by TCP to the number of a UDP port too.
        Some(port) => checked_port(field, port.container_port.into()),
        None => {
            let port = name
                .parse::<i64>()
                .map_err(|_| SkipReason::UnresolvedPort {
                    field,
                    name: truncated(name),
                })?;
            checked_port(field, port)
        }
    }
}

fn checked_port(field: &'static str, port: i64) -> Result<u16, SkipReason> {
    u16::try_from(port)
        .ok()
        .filter(|&port| port != 0)
        .ok_or(SkipReason::PortOutOfRange { field, port })
}

#[cfg(test)]
mod tests;
