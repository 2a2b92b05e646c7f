//! The kernel path with a tc filter that matches the kubelet's connections, as on kernels without xt_bpf.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kernel::exemption::{CONNECTION_MARK, Family, HANDLE, Matcher, TABLE, remove_all};
use kernel::netns::Netns;

use super::node::Node;
use super::{declared, meshes, outliving};
use crate::app::AppSpec;
use crate::command;
use crate::guest;
use crate::kubelet::Probe;
use crate::netns::NetNs;
use crate::pod::{Pod, PodSpec};
use crate::rules::{RuleSet, Unavailable};
use crate::suite::cases::Cases;
use crate::suite::env::Env;
use crate::tc::{Foreign, filters, has_clsact, remove_clsact};
use crate::wait;

/// How soon the kernel path serves a pod, or again. After work in a pod the daemon waits for 20 times what that has cost, which
/// takes long where the processor is emulated.
const SOON: Duration = Duration::from_secs(15);
const HTTP: u16 = 8080;
const CLOSED: u16 = 5433;

pub fn run(cases: &mut Cases) -> Result<()> {
    let mut node = Node::start()?;
    node.matcher = Matcher::Tc;
    for rules in [RuleSet::IstioRedirect, RuleSet::IstioTproxy] {
        meshes::of_rules(cases, &mut node, rules);
    }
    for (name, case) in [
        (
            "a-priority-that-the-sender-sets",
            a_senders_priority as fn(&mut Node) -> Result<()>,
        ),
        ("an-interface-that-is-added", another_interface),
        ("a-foreign-filter-ends-the-run", foreign_filter_ends),
        ("a-foreign-tcx-program-ends-the-run", foreign_tcx_ends),
        ("only-our-filter-is-replaced-and-removed", only_ours),
        ("nothing-is-left-of-it", nothing_is_left),
        ("xt-bpf-takes-over-and-gives-way", switched),
    ] {
        cases.case(name, || case(&mut node));
    }
    drop(node);
    cases.case_in("the-daemon-keeps-the-filters", kept);
    outliving::by_tc(cases)?;
    let name = "chosen-without-xt-bpf";
    if guest::is_here() {
        cases.case_in(name, chosen);
    } else {
        cases.skip(
            name,
            "it unloads module xt_bpf: left to the virtual machines",
        );
    }
    Ok(())
}

/// A pod with our rules and filters, whose app listens on [`HTTP`].
fn pod(node: &mut Node, name: &str) -> Result<Pod> {
    let pod = bare_pod(node, name)?;
    node.exempt_by_kernel(&pod, &[HTTP, CLOSED])?;
    Ok(pod)
}

/// The same without rules and filters.
fn bare_pod(node: &Node, name: &str) -> Result<Pod> {
    let spec = PodSpec::new(name).rules(RuleSet::IstioRedirect);
    spec.app(AppSpec::new().http(HTTP)).start(&node.run)
}

fn put(node: &Node, pod: &Pod, matcher: Matcher) -> Result<()> {
    let netns = Netns::open(&pod.ns.path())?;
    node.exemption.put(&netns, &Family::ALL, matcher)?;
    Ok(())
}

/// The kubelet's probes have correct results in both families.
fn is_exempt(node: &Node, pod: &Pod) -> Result<()> {
    for ip in pod.ns.ips() {
        node.passes(pod, &Probe::http(ip, HTTP, "/healthy"))?;
        node.is_refused(pod, &Probe::tcp(ip, CLOSED))?;
    }
    Ok(())
}

/// The mesh captures the connections of all processes but the kubelet.
fn others_are_captured(node: &Node, pod: &Pod) -> Result<()> {
    for ip in pod.ns.ips() {
        for who in [&node.bystander, &node.sibling] {
            node.is_captured(who, pod, ip, (HTTP, CLOSED))?;
        }
    }
    Ok(())
}

/// The mesh captures the connections of every process.
fn all_are_captured(node: &Node, pod: &Pod) -> Result<()> {
    for ip in pod.ns.ips() {
        node.is_captured(&node.kubelet, pod, ip, (HTTP, CLOSED))?;
    }
    others_are_captured(node, pod)
}

fn rules(ns: &NetNs, family: Family) -> Result<String> {
    let args = ["list", "table", family.name(), TABLE];
    let listed = ns.run(|| command::run("nft", &args, ""))?;
    Ok(String::from_utf8_lossy(&listed.stdout).into_owned())
}

/// The priority of exempt packets, as nft shows it in the pod: two hexadecimal numbers.
fn priority(pod: &Pod) -> Result<u32> {
    let rules = rules(&pod.ns, Family::V4)?;
    let shown = rules.split("meta priority ").nth(1);
    let shown = shown.and_then(|rest| rest.split_whitespace().next()?.split_once(':'));
    let (major, minor) = shown.with_context(|| rules.clone())?;
    Ok(u32::from_str_radix(major, 16)? << 16 | u32::from_str_radix(minor, 16)?)
}

fn our_filters(pod: &Pod, interface: &str) -> Result<usize> {
    let all = filters(&pod.ns, interface)?;
    Ok(all.iter().filter(|(handle, _)| *handle == HANDLE).count())
}

/// A sender that knew the priority would gain nothing: the program resets it. (On its way through a veth pair a packet loses
/// its priority; so a program in the pod, before ours, sets it here.)
fn a_senders_priority(node: &mut Node) -> Result<()> {
    let pod = pod(node, "forged")?;
    let priority = Some(priority(&pod)?);
    let ends = false;
    Foreign { priority, ends }.attach(&pod.ns, "eth0", 1, 1)?;
    let first = filters(&pod.ns, "eth0")?.into_iter().next();
    ensure!(
        first.as_ref().is_some_and(|(handle, _)| *handle == 1),
        "the foreign filter does not run first: {first:?}"
    );
    others_are_captured(node, &pod)?;
    is_exempt(node, &pod)
}

/// On an interface that is added later the program does not run, so no connection is exempt there, regardless of the packets'
/// priority, until the rules are installed again.
fn another_interface(node: &mut Node) -> Result<()> {
    let pod = pod(node, "added")?;
    let (node4, _) = node.run.node_ips();
    let (ns, ip) = (pod.ns.name(), pod.ns.ipv4());
    let host = format!("w{}h", node.run.id());
    command::ip_batch(&format!(
        "link add {host} type veth peer name eth1 netns {ns}\n\
         address add {node4}/32 dev {host}\n\
         link set {host} up\n"
    ))?;
    // Without an address of the interface the kernel can't redirect, and drops the packet.
    pod.ns.ip(&format!(
        "address add 198.18.0.1/32 dev eth1\nlink set eth1 up\nroute replace default via {node4} dev eth1 onlink\n"
    ))?;
    command::ip_batch(&format!("route replace {ip}/32 dev {host} src {node4}\n"))?;
    let captured = || -> Result<()> {
        for who in [&node.kubelet, &node.bystander, &node.sibling] {
            node.is_captured(who, &pod, ip.into(), (HTTP, CLOSED))?;
        }
        Ok(())
    };
    captured().context("without a filter")?;
    let priority = Some(priority(&pod)?);
    let ends = false;
    Foreign { priority, ends }.attach(&pod.ns, "eth1", 1, 1)?;
    captured().context("with the priority of exempt packets")?;
    // Ours is added before it, and it must not set the priority after that.
    let priority = None;
    Foreign { priority, ends }.attach(&pod.ns, "eth1", 1, 1)?;
    put(node, &pod, Matcher::Tc)?;
    ensure!(our_filters(&pod, "eth1")? == 1, "no filter at eth1");
    node.is_captured(&node.bystander, &pod, ip.into(), (HTTP, CLOSED))?;
    node.passes(&pod, &Probe::http(ip, HTTP, "/healthy"))
}

/// A foreign filter before ours prevents the exemption, and exempts no other process.
fn foreign_filter_ends(node: &mut Node) -> Result<()> {
    for (name, priority) in [("ends", None), ("guesses", Some(CONNECTION_MARK))] {
        let pod = pod(node, name)?;
        let ends = true;
        Foreign { priority, ends }.attach(&pod.ns, "eth0", 1, 1)?;
        all_are_captured(node, &pod).context(name)?;
    }
    Ok(())
}

fn foreign_tcx_ends(node: &mut Node) -> Result<()> {
    let pod = pod(node, "tcx")?;
    for priority in [None, Some(CONNECTION_MARK)] {
        let foreign = Foreign {
            priority,
            ends: true,
        };
        let link = foreign
            .attach_tcx(&pod.ns, "eth0")
            .map_err(|error| Unavailable(format!("{error:#}")))?;
        all_are_captured(node, &pod)?;
        drop(link);
        is_exempt(node, &pod)?;
    }
    Ok(())
}

/// Installing and removing our filter changes no other, and a later filter has the priority of the earlier one.
fn only_ours(node: &mut Node) -> Result<()> {
    let pod = bare_pod(node, "beside")?;
    let foreign = Foreign {
        priority: None,
        ends: false,
    };
    foreign.attach(&pod.ns, "eth0", 1, 1)?;
    foreign.attach(&pod.ns, "eth0", 7, 9)?;
    let others = || -> Result<Vec<_>> {
        let mut all = filters(&pod.ns, "eth0")?;
        all.retain(|(handle, _)| *handle != HANDLE);
        Ok(all)
    };
    let before = others()?;
    ensure!(before.len() == 2, "{before:?}");
    node.exempt_by_kernel(&pod, &[HTTP, CLOSED])?;
    let first = priority(&pod)?;
    for _ in 0..3 {
        put(node, &pod, Matcher::Tc)?;
        ensure!(others()? == before, "{:?}, not {before:?}", others());
        ensure!(our_filters(&pod, "eth0")? == 1, "several filters");
        ensure!(priority(&pod)? == first, "another priority");
    }
    is_exempt(node, &pod)?;
    let netns = Netns::open(&pod.ns.path())?;
    ensure!(remove_all(&netns)?, "nothing was removed");
    ensure!(!remove_all(&netns)?, "removed twice");
    ensure!(filters(&pod.ns, "eth0")? == before, "others are gone");
    all_are_captured(node, &pod)
}

/// Our filter and the qdisc that we have made are removed, but not a qdisc that has other filters by then.
fn nothing_is_left(node: &mut Node) -> Result<()> {
    for used_by_others in [false, true] {
        let pod = pod(node, if used_by_others { "used" } else { "unused" })?;
        if used_by_others {
            let foreign = Foreign {
                priority: None,
                ends: false,
            };
            foreign.attach(&pod.ns, "eth0", 2, 1)?;
        }
        ensure!(remove_all(&Netns::open(&pod.ns.path())?)?);
        ensure!(our_filters(&pod, "eth0")? == 0, "our filter is left");
        ensure!(has_clsact(&pod.ns)? == used_by_others, "qdisc clsact");
    }
    Ok(())
}

/// A pod changes from one matcher to the other and back; the kubelet is exempt throughout.
fn switched(node: &mut Node) -> Result<()> {
    let pod = pod(node, "switched")?;
    for matcher in [Matcher::XtBpf, Matcher::Tc, Matcher::XtBpf] {
        put(node, &pod, matcher)?;
        is_exempt(node, &pod)?;
        others_are_captured(node, &pod)?;
        let by_tc = matcher == Matcher::Tc;
        ensure!(our_filters(&pod, "eth0")? == usize::from(by_tc));
        ensure!(has_clsact(&pod.ns)? == by_tc);
        let rules = rules(&pod.ns, Family::V6)?;
        ensure!(rules.contains("chain origin") == by_tc, "{rules}");
    }
    Ok(())
}

/// The daemon shows what matches, restores a removed filter at once, and adds one if an interface gets an address.
fn kept(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &["--kernel-path", "--kernel-path-tc"])?;
    let pod = env.pod(declared::pod("kept"))?;
    declared::by_kernel(&env.daemon, &pod)?;
    let shown = env.daemon.status_command(&["-o", "wide"])?;
    ensure!(shown.contains("kernel (tc)"), "{shown}");
    remove_clsact(&pod.ns, "eth0")?;
    let removed = Instant::now();
    wait::until("our filter", SOON, || {
        let result = env.kubelet.probe(&Probe::tcp(pod.ns.ipv4(), CLOSED)).ok()?;
        (!result.passed()).then_some(())
    })?;
    println!("     our filter was back within {:?}", removed.elapsed());
    pod.ns.ip(
        "link add eth1 type veth peer name eth2\naddress add 198.18.0.1/32 dev eth1\n\
         link set eth2 up\nlink set eth1 up\n",
    )?;
    wait::until("a filter at eth1", SOON, || {
        (our_filters(&pod, "eth1").ok()? == 1).then_some(())
    })?;
    for ip in pod.ns.ips() {
        declared::opaque(&env.kubelet, ip, &|probe| probe)?;
    }
    Ok(())
}

/// If the kernel has no xt_bpf, the daemon uses tc without being configured to.
fn chosen(cases: &mut Cases) -> Result<()> {
    guest::without_module(c"xt_bpf", || {
        let env = Env::start(cases, &["--kernel-path", "--http", "kernel"])?;
        let pod = env.pod(declared::pod("chosen"))?;
        wait::until("the kernel path by tc", SOON, || {
            let status = env.daemon.pod_status(pod.name()).ok()??;
            (status["path"] == "kernel_tc").then_some(())
        })?;
        for ip in pod.ns.ips() {
            declared::opaque(&env.kubelet, ip, &|probe| probe)?;
            let got = env.bystander.probe(&Probe::http(ip, HTTP, "/healthy"))?;
            ensure!(!got.passed(), "bypassed the mesh: {got:?}");
        }
        Ok(())
    })
}
