//! Pods in which trials prove nothing, or not at their first address.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::declared::{self, HTTP, by_kernel};
use super::outliving::{Node, with_node};
use crate::command;
use crate::daemon::Daemon;
use crate::kubelet::Probe;
use crate::pod::Pod;
use crate::suite::cases::Cases;
use crate::wait;

const SOON: Duration = Duration::from_secs(10);
/// A trial without an answer takes a second for each address family.
const AT_ONCE: Duration = Duration::from_millis(700);

/// Drops packets to ports on which nothing listens, as network policies do. The app's ports are lower.
const NO_ANSWER: &str = "table inet no-answer {
    chain input { type filter hook input priority 0; iifname eth0 tcp dport 61000-65535 drop; }
}";

pub(super) fn run(cases: &mut Cases) -> Result<()> {
    if !cases.wants("unproven/") {
        return Ok(());
    }
    with_node(cases, None, |cases, node, pod| {
        let mut first = node.daemon("first", None, &[])?;
        cases.show_on_failure(first.log_path());
        let pods = first.pods().to_owned();
        first.serve(pod)?;
        node.served(&first, pod)?;
        cases.case("unproven/an-address-that-the-node-does-not-reach", || {
            // Of the discard prefix (RFC 6666); it sorts before the pod's own.
            ip(pod, "address add 100::1/128 dev eth0")?;
            let again = node.daemon("again", Some(&pods), &[])?;
            by_kernel(&again, pod)?;
            node.right(pod)?;
            ip(pod, "address delete 100::1/128 dev eth0")
        });
        by_kernel(&first, pod)?;
        nft(pod, NO_ANSWER)?;
        cases.case("unproven/the-next-daemon-is-not-missed-either", || {
            first.kill()?;
            let mut second = node.daemon("second", Some(&pods), &[])?;
            is_fallback(&second, pod)?;
            second.kill()?;
            right_soon(node, pod)
        });
        cases.case("unproven/a-change-of-addresses-keeps-the-fallback", || {
            let mut daemon = node.daemon("changing", Some(&pods), &[])?;
            is_fallback(&daemon, pod)?;
            let before = trials(&daemon)?;
            // A documentation prefix: the node does not reach it either.
            ip(pod, "address add 2001:db8::1/128 dev eth0")?;
            wait::until("another trial", SOON, || {
                (trials(&daemon).ok()? > before).then_some(())
            })?;
            is_fallback(&daemon, pod)?;
            daemon.kill()?;
            right_soon(node, pod)
        });
        let later = cases.wants("unproven/a-later-pod-does-not-wait");
        let second = node.daemon("later", None, &[])?;
        let mut new = declared::pod("later").start(node.run)?;
        nft(&new, NO_ANSWER)?;
        let begun = Instant::now();
        second.serve(&mut new)?;
        let served = later.then(|| served_after(node, &new, begun));
        if let Some(served) = served {
            cases.case_to_the_millisecond("unproven/a-later-pod-does-not-wait", || {
                let served = served?;
                ensure!(served < AT_ONCE, "served after {served:?}");
                Ok(())
            });
        }
        Ok(())
    })
}

/// Until the heartbeat is too old the gate refuses connections, which is EPERM before Linux 6.1.
fn right_soon(node: &Node<'_>, pod: &Pod) -> Result<()> {
    wait::until("right results without a daemon", SOON, || {
        node.right(pod).ok()
    })
}

fn served_after(node: &Node<'_>, pod: &Pod, begun: Instant) -> Result<Duration> {
    let probe = Probe::http(pod.ns.ipv4(), HTTP, "/healthy");
    wait::until("the pod to be served", SOON, || {
        node.kubelet.probe(&probe).ok()?.passed().then_some(())
    })?;
    Ok(begun.elapsed())
}

/// How often the daemon has logged the result of the first trial after a look at a pod.
fn trials(daemon: &Daemon) -> Result<usize> {
    let log = fs::read_to_string(daemon.log_path())?;
    Ok(log.matches("served by the handler").count())
}

/// Waits until the handler serves the pod, and the kernel path without it.
fn is_fallback(daemon: &Daemon, pod: &Pod) -> Result<()> {
    wait::until("the fallback", SOON, || {
        let status = daemon.pod_status(pod.name()).ok()??;
        let why = status["path"]["handler"].as_str()?;
        why.contains("while the handler does not answer")
            .then_some(())
    })
    .with_context(|| format!("{:?}", daemon.pod_status(pod.name())))
}

fn ip(pod: &Pod, arguments: &str) -> Result<()> {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    pod.ns.run(|| command::run("ip", &arguments, "")).map(drop)
}

fn nft(pod: &Pod, rules: &str) -> Result<()> {
    pod.ns
        .run(|| command::run("nft", &["-f", "-"], rules))
        .map(drop)
}
