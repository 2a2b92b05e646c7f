//! Unusual pods: the app's sockets are in another namespace, the sidecar is dead, the rules capture the
//! daemon's own connections.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::cases::Cases;
use super::env::{Env, HANDLER_PATH};
use super::sample_pod::{self, CLOSED, GRPC, HTTP, OPEN};
use crate::app::{App, AppSpec};
use crate::kubelet::Probe;
use crate::netns::NetNs;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::{command, wait};

/// ztunnel's port for plaintext.
const ZTUNNEL: u16 = 15006;
const SOON: Duration = Duration::from_secs(5);
/// A pod whose rules were corrected must be served again within this time.
const PUT_RIGHT: Duration = Duration::from_secs(5);

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[HANDLER_PATH])?;
    cases.case("sockets-elsewhere", || {
        let spec = sample_pod::pod("sandboxed").annotation("sidecar.istio.io/status", "{}");
        sockets_elsewhere(&env, spec)
    });
    cases.case("sockets-elsewhere-behind-ztunnel", || {
        let spec = sample_pod::pod("guest").annotation("ambient.istio.io/redirection", "enabled");
        sockets_elsewhere(&env, spec)
    });
    cases.case("sidecar-dies", || sidecar_dies(&env));
    cases.case("sidecar-not-started-yet", || no_sidecar_yet(&env));
    cases.case("captured", || captured(&env));
    Ok(())
}

fn served(env: &Env, pod: &mut Pod) -> Result<()> {
    pod.publish(env.daemon.pods())?;
    known(env, pod)
}

fn known(env: &Env, pod: &Pod) -> Result<()> {
    wait::until("the pod's endpoints", SOON, || {
        let status = env.daemon.pod_status(pod.name()).ok()??;
        let known = status["netns"]["known"].is_object();
        let addresses = status["addresses"].as_array()?.len();
        (known && addresses == 2).then_some(())
    })
}

/// As with gVisor or Kata: the pod's namespace has the address, but forwards packets for it to another network stack, which
/// contains the sockets of the app and the rest of the pod. Only ztunnel listens in the pod's namespace.
fn sockets_elsewhere(env: &Env, spec: PodSpec) -> Result<()> {
    let spec = spec.rules(RuleSet::None).app(AppSpec::new());
    let mut pod = spec.start(&env.run)?;
    let mut manifest = pod.manifest();
    manifest["spec"]["runtimeClassName"] = json!("kata");
    let _ztunnel = match manifest["metadata"]["annotations"]["ambient.istio.io/redirection"] {
        Value::Null => None,
        _ => Some(App::start(&pod.ns, &AppSpec::new().tcp(ZTUNNEL))?),
    };
    let sandbox = NetNs::new(&env.run, &format!("{}-sandbox", pod.name()))?;
    let (ip4, ip6) = (pod.ns.ipv4(), pod.ns.ipv6());
    // This link replaces the virtual machine's tap device.
    pod.ns.ip(&format!(
        "link add tap0 type veth peer name tap0 netns {}\n",
        sandbox.name()
    ))?;
    pod.ns.run(|| {
        // It forwards packets, and answers ARP for the address that is no longer its own.
        for (setting, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/eth0/proxy_arp", "1"),
            ("ipv4/neigh/eth0/proxy_delay", "0"),
            // Replies come from the address that eth0 still has.
            ("ipv4/conf/tap0/accept_local", "1"),
            ("ipv6/conf/all/forwarding", "1"),
        ] {
            std::fs::write(format!("/proc/sys/net/{setting}"), value)?;
        }
        Ok(())
    })?;
    pod.ns.ip(&format!(
        "address add 169.254.77.1/32 dev tap0\n\
         address add fe80::77/64 dev tap0 nodad\n\
         link set tap0 up\n\
         route del local {ip4} dev eth0 table local\n\
         route add {ip4}/32 dev tap0\n\
         route del local {ip6} dev eth0 table local\n\
         route add {ip6}/128 dev tap0 metric 1\n"
    ))?;
    sandbox.ip(&format!(
        "link del eth0\n\
         link set tap0 up\n\
         address add {ip4}/32 dev tap0\n\
         address add {ip6}/128 dev tap0 nodad\n\
         route add default via 169.254.77.1 dev tap0 onlink\n\
         route add ::/0 via fe80::77 dev tap0 onlink\n"
    ))?;
    let app = App::start(&sandbox, &AppSpec::new().http(HTTP).grpc(GRPC).tcp(OPEN))?;
    pod.publish_as(env.daemon.pods(), &manifest)?;
    known(env, &pod)?;
    for ip in pod.ns.ips() {
        let before = (
            env.daemon.counter("no_listener")?,
            env.daemon.counter("redirected")?,
            env.daemon.counter("refused")?,
        );
        sample_pod::check_verdicts(&env.kubelet, ip)?;
        let after = (
            env.daemon.counter("no_listener")?,
            env.daemon.counter("redirected")?,
            env.daemon.counter("refused")?,
        );
        let made = sample_pod::probes(ip).len() as u64;
        ensure!(
            after.0 >= before.0 + made && (after.1, after.2) == (before.1, before.2),
            "not unchanged: {before:?} before, {after:?} after (no listener, redirected, refused)"
        );
    }
    let requests = app.take_recorded()?;
    ensure!(!requests.is_empty(), "the app in the sandbox was not asked");
    Ok(())
}

/// Without a sidecar that accepts its connections, a dead app's port refuses them.
fn sidecar_dies(env: &Env) -> Result<()> {
    let mut pod = env.pod(sample_pod::pod("widow"))?;
    if let Some(sidecar) = &mut pod.sidecar {
        sidecar.kill()?;
    }
    let before = env.daemon.counter("no_listener")?;
    for ip in pod.ns.ips() {
        sample_pod::check_verdicts(&env.kubelet, ip)?;
        // Other processes are refused at the sidecar's port.
        let other = env.bystander.probe(&Probe::http(ip, HTTP, "/healthy"))?;
        ensure!(!other.passed(), "a bystander gets in: {other:?}");
    }
    ensure!(
        env.daemon.counter("no_listener")? >= before + 2,
        "the closed ports were not left to the pod itself"
    );
    Ok(())
}

/// The app's container starts before the sidecar's: its probes are correct from the beginning.
fn no_sidecar_yet(env: &Env) -> Result<()> {
    let mut pod = sample_pod::pod("early").without_sidecar().start(&env.run)?;
    served(env, &mut pod)?;
    let canary = env.daemon.pod_status(pod.name())?.unwrap_or_default()["canary"].take();
    ensure!(
        canary["state"] == "pending",
        "the canary proves something already: {canary}"
    );
    for ip in pod.ns.ips() {
        sample_pod::check_verdicts(&env.kubelet, ip)?;
    }
    Ok(())
}

/// Replaces a namespace's NAT rules by those of another mesh.
fn replace_rules(ns: &NetNs, rules: RuleSet) -> Result<()> {
    ns.run(|| {
        for program in ["iptables-nft", "ip6tables-nft"] {
            for args in [["-t", "nat", "-F"], ["-t", "nat", "-X"]] {
                let _done = command::run(program, &args, "")?;
            }
        }
        Ok(())
    })?;
    rules.apply(ns)
}

/// A pod with Istio's annotations and Consul's rules, which capture all connections of root.
fn captured(env: &Env) -> Result<()> {
    let mut pod = sample_pod::pod("captive").start(&env.run)?;
    replace_rules(&pod.ns, RuleSet::Consul)?;
    let before = env.daemon.metrics()?;
    pod.publish(env.daemon.pods())?;
    wait::until("the canary to fail", SOON, || {
        let status = env.daemon.pod_status(pod.name()).ok()??;
        (status["canary"]["state"] == "failed").then_some(())
    })?;
    let (seen, now) = (env.daemon.counter("seen")?, env.daemon.metrics()?);
    let failures = "probe_handler_canary_failures_total";
    ensure!(
        now.sum(failures, &[]) > before.sum(failures, &[]),
        "{failures} does not say so"
    );
    let captured = now.sum(
        "probe_handler_pods",
        &[("mesh", "istio"), ("state", "captured")],
    );
    ensure!(
        (captured - 1.0).abs() < f64::EPSILON,
        "probe_handler_pods counts {captured} captured"
    );
    let shown = env.daemon.status_command(&[])?;
    ensure!(
        shown.contains("canary failed"),
        "`status` does not show it:\n{shown}"
    );
    let _log = env
        .daemon
        .wait_logged(&["the handler does not serve it: a dial from inside the pod"])?;
    // Not served: the kubelet's connections go to whatever listens, and there is no endpoint.
    for port in [HTTP, CLOSED] {
        let ip: IpAddr = pod.ns.ipv4().into();
        let result = env.kubelet.probe(&Probe::http(ip, port, "/healthy"))?;
        ensure!(!result.passed(), "it was answered: {result:?}");
    }
    ensure!(env.daemon.counter("seen")? == seen, "an endpoint was seen");

    replace_rules(&pod.ns, RuleSet::IstioRedirect)?;
    let begun = Instant::now();
    wait::until("the pod to be served again", PUT_RIGHT, || {
        let probe = Probe::http(pod.ns.ipv4(), HTTP, "/healthy");
        env.kubelet.probe(&probe).ok()?.passed().then_some(())
    })?;
    println!(
        "     served {:?} after its rules were put right",
        begun.elapsed()
    );
    for ip in pod.ns.ips() {
        sample_pod::check_verdicts(&env.kubelet, ip)?;
    }
    Ok(())
}
