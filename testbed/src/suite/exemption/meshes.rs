//! Each mesh's rules, address family and kind of probe: the kubelet reaches the app, all others are subject to the mesh.

use anyhow::{Result, ensure};
use probe_handler_common::counters::Counter;

use super::node::Node;
use crate::app::AppSpec;
use crate::app::tls::Certificate;
use crate::kubelet::Probe;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::suite::pod_pair::Family;

const HTTP: u16 = 8080;
const HTTPS: u16 = 8443;
const GRPC: u16 = 9090;
const OPEN: u16 = 5432;
const CLOSED: u16 = 5433;
/// A port without a probe.
const UNDECLARED: u16 = 8081;
/// With DNS capture, the port whose traffic goes to the mesh's resolver.
const DNS: u16 = 53;

pub(super) fn run(cases: &mut Cases, node: &mut Node) {
    for rules in RuleSet::all() {
        of_rules(cases, node, *rules);
    }
}

/// The cases of one set of rules.
pub(super) fn of_rules(cases: &mut Cases, node: &mut Node, rules: RuleSet) {
    let name = rules.name();
    if !cases.wants(name) && !cases.wants(&format!("{name}/")) {
        return;
    }
    // A failed start fails the case, or skips it if the machine lacks the rules' tools.
    match start(node, name, rules) {
        Ok(pod) => one(cases, node, &pod, name, rules),
        Err(error) => cases.case(name, || Err(error)),
    }
}

fn start(node: &mut Node, name: &str, rules: RuleSet) -> Result<Pod> {
    let app = AppSpec::new()
        .http(HTTP)
        .http(UNDECLARED)
        .http(DNS)
        .https(HTTPS, Certificate::SelfSigned)
        .grpc(GRPC)
        .tcp(OPEN);
    let pod = PodSpec::new(name).rules(rules).app(app).start(&node.run)?;
    node.exempt_by_kernel(&pod, &[HTTP, HTTPS, GRPC, OPEN, CLOSED, DNS])?;
    Ok(pod)
}

fn one(cases: &mut Cases, node: &Node, pod: &Pod, name: &str, rules: RuleSet) {
    for family in Family::ALL {
        let ip = family.ip(&pod.ns);
        let form = |probe| family.form(probe);
        let case = |what: &str| format!("{name}/{}/{what}", family.name());
        cases.case(&case("http"), || {
            node.passes(pod, &form(Probe::http(ip, HTTP, "/healthy")))?;
            let failing = node
                .kubelet
                .probe(&form(Probe::http(ip, HTTP, "/failing")))?;
            ensure!(failing.status == Some(503), "not the app's: {failing:?}");
            Ok(())
        });
        cases.case(&case("https"), || {
            node.passes(pod, &form(Probe::https(ip, HTTPS, "/healthy")))?;
            node.fails(pod, &form(Probe::https(ip, HTTPS, "/failing")))
        });
        cases.case(&case("grpc"), || {
            node.passes(pod, &form(Probe::grpc(ip, GRPC, "ok")))?;
            node.fails(pod, &form(Probe::grpc(ip, GRPC, "down")))
        });
        cases.case(&case("tcp"), || {
            node.passes(pod, &form(Probe::tcp(ip, OPEN)))?;
            node.is_refused(pod, &form(Probe::tcp(ip, CLOSED)))
        });
        if rules.captures_dns() {
            cases.case(&case("app-on-port-53"), || {
                node.passes(pod, &form(Probe::http(ip, DNS, "/healthy")))
            });
        }
        cases.case(&case("each-connection-is-counted-once"), || {
            counted(node, pod, &form(Probe::tcp(ip, OPEN)))
        });
        cases.case(&case("others-are-captured"), || {
            for who in [&node.bystander, &node.sibling] {
                node.is_captured(who, pod, ip, (HTTP, CLOSED))?;
            }
            Ok(())
        });
        cases.case(&case("what-is-not-declared-is-captured"), || {
            node.is_captured(&node.kubelet, pod, ip, (UNDECLARED, UNDECLARED + 1))
        });
    }
}

/// Each connection was recorded before its SYN and exempt in the pod, and its entry was removed.
fn counted(node: &Node, pod: &Pod, probe: &Probe) -> Result<()> {
    const CONNECTIONS: u64 = 5;
    let counts = || (node.count(Counter::Recorded), node.count(Counter::Exempt));
    let before = counts();
    for _ in 0..CONNECTIONS {
        node.passes(pod, probe)?;
    }
    let expected = (before.0 + CONNECTIONS, before.1 + CONNECTIONS);
    ensure!(counts() == expected, "{:?}, not {expected:?}", counts());
    node.nothing_is_recorded()
}
