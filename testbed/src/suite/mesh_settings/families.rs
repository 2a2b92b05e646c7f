//! Meshes that treat the families of a dual-stack pod differently, and proxies that connect as the client.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use crate::kubelet::Probe;
use crate::pod::Pod;
use crate::rules::RuleSet;
use crate::sidecar::Traffic;
use crate::suite::cases::Cases;
use crate::suite::env::Env;
use crate::suite::sample_pod::{self, CLOSED, HTTP};

pub(super) fn run(cases: &mut Cases, env: &Env) {
    // Istio's default unless dual stack is enabled: no rules for IPv6, no ::6, and the proxy listens on IPv4 only.
    cases.case("no-ipv6-rules", || {
        let pod = pod(env, "no-ipv6-rules", RuleSet::IstioIpv4)?;
        is_captured(env, pod.ns.ipv4().into())?;
        let ip = pod.ns.ipv6();
        let past = env.bystander.probe(&Probe::http(ip, HTTP, "/healthy"))?;
        ensure!(past.passed(), "something captures IPv6: {past:?}");
        is_judged_as_declared(env, &pod)
    });
    // Native nftables has one table for both families.
    cases.case("ipv6-redirected-to-no-listener", || {
        let pod = pod(env, "ipv6-to-nobody", RuleSet::IstioNft)?;
        is_captured(env, pod.ns.ipv4().into())?;
        for port in [HTTP, CLOSED] {
            let refused = env.bystander.probe(&Probe::tcp(pod.ns.ipv6(), port))?;
            ensure!(
                refused.message.contains("refused"),
                "IPv6 reaches a listener: {refused:?}"
            );
        }
        is_judged_as_declared(env, &pod)
    });
    // The proxy runs as uid 0 and gid 1337, and binds the client's address.
    cases.case("proxy-connects-as-the-client", || {
        const REQUEST: &str = "GET /healthy HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n";
        let spec = sample_pod::pod("as-the-client").rules(RuleSet::IstioTproxy);
        let pod = env.pod(spec)?;
        let (node4, node6) = env.run.node_ips();
        let nodes: [IpAddr; 2] = [node4.into(), node6.into()];
        for (ip, node) in pod.ns.ips().into_iter().zip(nodes) {
            let _before = pod.app.take_recorded()?;
            let answer = env.run.mesh().request(ip, HTTP, REQUEST)?;
            ensure!(answer.contains("X-App"), "not the app's: {answer:?}");
            let seen = pod.app.take_recorded()?;
            let peer: IpAddr = seen.first().context("no request")?.peer.ip().to_canonical();
            ensure!(peer == node, "the app should see {node}: {seen:?}");
            is_captured(env, ip)?;
        }
        is_judged_as_declared(env, &pod)
    });
}

/// A dual-stack pod whose proxy listens on IPv4 only.
fn pod(env: &Env, name: &str, rules: RuleSet) -> Result<Pod> {
    let traffic = Traffic {
        ipv4_only: true,
        ..Traffic::default()
    };
    let spec = sample_pod::pod(name).rules(rules).traffic(traffic);
    env.pod(spec.without_v6_passthrough_source())
}

fn is_judged_as_declared(env: &Env, pod: &Pod) -> Result<()> {
    for ip in pod.ns.ips() {
        sample_pod::check_verdicts(&env.kubelet, ip)?;
    }
    Ok(())
}

fn is_captured(env: &Env, ip: IpAddr) -> Result<()> {
    sample_pod::check_mesh_only(&env.bystander, ip)
}
