//! Two pods from the same spec: one in a STRICT mesh and served by the daemon, one with neither. The
//! kubelet's result for the second is the expected result for the first.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::env::Env;
use crate::app::Recorded;
use crate::kubelet::{Outcome, Probe, ProbeResult};
use crate::netns::NetNs;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::wait;

/// How soon a verdict must appear in `status`.
const NOTED: Duration = Duration::from_secs(2);

/// Address family of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv4, from an IPv6 socket.
    Mapped,
    /// IPv6.
    V6,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::V4, Self::Mapped, Self::V6];

    /// Name in cases.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::Mapped => "mapped",
            Self::V6 => "v6",
        }
    }

    /// The pod's address.
    pub const fn ip(self, ns: &NetNs) -> IpAddr {
        match self {
            Self::V4 | Self::Mapped => IpAddr::V4(ns.ipv4()),
            Self::V6 => IpAddr::V6(ns.ipv6()),
        }
    }

    /// The probe, from a socket of this family.
    pub fn form(self, probe: Probe) -> Probe {
        match self {
            Self::Mapped => probe.mapped(),
            Self::V4 | Self::V6 => probe,
        }
    }
}

/// Both pods.
#[derive(Debug)]
pub struct PodPair<'a> {
    env: &'a Env,
    /// With Istio's REDIRECT rules and a sidecar that accepts only mutual TLS; served by the daemon.
    pub meshed: Pod,
    /// As in plain Kubernetes, and not published to the daemon.
    pub plain: Pod,
}

/// The kubelet's results for both pods.
#[derive(Clone, Debug)]
pub struct Pair {
    /// With the mesh and the daemon.
    pub ours: ProbeResult,
    /// With neither.
    pub plain: ProbeResult,
}

impl<'a> PodPair<'a> {
    /// Creates both pods from `spec`, which gets their names.
    ///
    /// # Errors
    /// When one cannot be created, or the first is not served.
    pub fn start(env: &'a Env, name: &str, spec: impl Fn(&str) -> PodSpec) -> Result<Self> {
        let meshed = env.pod(spec(name).rules(RuleSet::IstioRedirect))?;
        let plain = spec(&format!("{name}-plain")).start(&env.run)?;
        Ok(Self { env, meshed, plain })
    }

    /// Fails unless the meshed pod refuses a process that is not the kubelet at `port`; otherwise the cases
    /// would prove nothing.
    ///
    /// # Errors
    /// When it gets an answer.
    pub fn mesh_is_strict(&self, port: u16) -> Result<()> {
        let result =
            self.env
                .bystander
                .probe(&Probe::http(self.meshed.ns.ipv4(), port, "/healthy"))?;
        ensure!(!result.passed(), "plaintext bypassed the mesh: {result:?}");
        Ok(())
    }

    /// Probes both pods at the same time.
    ///
    /// # Errors
    /// When a prober has ended.
    pub fn both(&self, family: Family, probe: impl Fn(IpAddr) -> Probe) -> Result<Pair> {
        let of = |pod: &Pod| family.form(probe(family.ip(&pod.ns)));
        let ours = self.env.kubelet.begin(&of(&self.meshed))?;
        let plain = self.env.bystander.begin(&of(&self.plain))?;
        Ok(Pair {
            ours: ours.wait()?,
            plain: plain.wait()?,
        })
    }

    /// Probes both pods; fails unless the kubelet gets the same result, with the same status if the app sent
    /// one.
    ///
    /// # Errors
    /// When it does not.
    pub fn same(&self, family: Family, probe: impl Fn(IpAddr) -> Probe) -> Result<Pair> {
        let pair = self.both(family, probe)?;
        let Pair { ours, plain } = &pair;
        ensure!(
            ours.outcome == plain.outcome,
            "the result differs from that without mesh and daemon: {pair:?}"
        );
        let app_answered = plain.passed() || plain.message.contains("statuscode");
        if app_answered {
            ensure!(
                ours.status == plain.status && ours.message_kind() == plain.message_kind(),
                "the status differs from that without mesh and daemon: {pair:?}"
            );
        }
        Ok(pair)
    }

    /// Like [`PodPair::same`], and the probe passes.
    ///
    /// # Errors
    /// When it does not, or not in both.
    pub fn both_pass(&self, family: Family, probe: impl Fn(IpAddr) -> Probe) -> Result<Pair> {
        let pair = self.same(family, probe)?;
        ensure!(pair.ours.passed(), "both should pass: {pair:?}");
        Ok(pair)
    }

    /// Like [`PodPair::same`], and the probe fails.
    ///
    /// # Errors
    /// When it does not, or not in both.
    pub fn both_fail(&self, family: Family, probe: impl Fn(IpAddr) -> Probe) -> Result<Pair> {
        let pair = self.same(family, probe)?;
        ensure!(!pair.ours.passed(), "both should fail: {pair:?}");
        Ok(pair)
    }

    /// Makes the same HTTP probe of both; fails unless both apps received the same requests, byte for
    /// byte, except for the pods' own addresses.
    ///
    /// # Errors
    /// When they did not, or received none.
    pub fn same_requests(
        &self,
        family: Family,
        probe: impl Fn(IpAddr) -> Probe,
    ) -> Result<Vec<Recorded>> {
        let _before = (
            self.meshed.app.take_recorded()?,
            self.plain.app.take_recorded()?,
        );
        let pair = self.both(family, probe)?;
        let ours = self.meshed.app.take_recorded()?;
        let plain = self.plain.app.take_recorded()?;
        let (meshed_ip, plain_ip) = (family.ip(&self.meshed.ns), family.ip(&self.plain.ns));
        let heads = |list: &[Recorded]| -> Vec<(u16, String)> {
            list.iter()
                .map(|one| {
                    let head = one
                        .head
                        .replace(&plain_ip.to_string(), &meshed_ip.to_string());
                    // The remaining time of a deadline always differs.
                    let lines = head.split_inclusive('\n');
                    let head = lines.filter(|line| !line.starts_with("grpc-timeout:"));
                    (one.port, head.collect())
                })
                .collect()
        };
        ensure!(!plain.is_empty(), "the app received nothing: {pair:?}");
        ensure!(
            heads(&ours) == heads(&plain),
            "the app received {ours:#?}, without mesh and daemon {plain:#?}"
        );
        Ok(ours)
    }

    /// The reason of the last verdict on the meshed pod's probe with this port and target.
    ///
    /// # Errors
    /// When there is no such probe, or no verdict on it.
    pub fn reason(&self, port: u16, target: &str) -> Result<String> {
        reason(self.env, &self.meshed, |probe| {
            probe["port"] == port && probe["target"] == target
        })
    }
}

impl ProbeResult {
    /// The message without the body, which the daemon does not send to the kubelet.
    fn message_kind(&self) -> &str {
        match self.outcome {
            // A failure has the prober's own message.
            Outcome::Success | Outcome::Discarded => "",
            Outcome::Warning => self.message.split(", ").next().unwrap_or_default(),
            Outcome::Failure => &self.message,
        }
    }
}

/// The reason of the last verdict on the first probe of `pod` in `status` that `select` picks.
///
/// # Errors
/// When there is none within 2 s.
pub fn reason(env: &Env, pod: &Pod, select: impl Fn(&Value) -> bool) -> Result<String> {
    let mut last = Value::Null;
    wait::until("a verdict", NOTED, || {
        last = env.daemon.pod_status(pod.name()).ok()??;
        let probe = last["probes"].as_array()?.iter().find(|one| select(one))?;
        probe["last"]["reason"].as_str().map(ToOwned::to_owned)
    })
    .with_context(|| format!("the daemon reports: {last}"))
}

/// Declares probes with these actions (`{"httpGet": ...}`), three per container, which is the maximum.
/// Keeps other fields of a probe.
pub fn declare(mut spec: PodSpec, probes: impl IntoIterator<Item = Value>) -> PodSpec {
    const FIELDS: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
    let probes: Vec<Value> = probes.into_iter().collect();
    for (index, three) in probes.chunks(FIELDS.len()).enumerate() {
        let mut container = json!({"name": format!("app{index}"), "image": "app"});
        for (field, probe) in FIELDS.iter().zip(three) {
            container[*field] = probe.clone();
        }
        spec = spec.container(container);
    }
    spec
}

/// A probe's `httpGet` of `path` on `port`.
pub fn http_get(port: u16, path: &str) -> Value {
    json!({"httpGet": {"port": port, "path": path}})
}

/// A probe's `httpGet` with TLS.
pub fn https_get(port: u16, path: &str) -> Value {
    json!({"httpGet": {"port": port, "path": path, "scheme": "HTTPS"}})
}

/// A probe's `tcpSocket`.
pub fn tcp_socket(port: u16) -> Value {
    json!({"tcpSocket": {"port": port}})
}

/// A probe's `grpc`.
pub fn grpc_of(port: u16, service: &str) -> Value {
    json!({"grpc": {"port": port, "service": service}})
}
