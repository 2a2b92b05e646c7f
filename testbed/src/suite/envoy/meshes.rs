//! Each of Istio's rule sets, in both address families: all kinds of probes, healthy and failing.

use std::net::IpAddr;

use anyhow::Result;

use super::pod::{self, HTTP, MeshTraffic, Meshed};
use super::{Bed, case};
use crate::envoy::Settings;
use crate::rules::RuleSet;
use crate::suite::cases::Cases;

const FAMILIES: [&str; 2] = ["v4", "v6"];

/// The rule sets that redirect to a sidecar of Istio.
fn rule_sets() -> impl Iterator<Item = RuleSet> {
    let all = RuleSet::all().iter().copied();
    all.filter(|rules| rules.has_pilot_agent())
}

pub(super) fn names() -> Vec<String> {
    let names = |rules: RuleSet| FAMILIES.map(|family| name(rules, family));
    rule_sets().flat_map(names).collect()
}

fn name(rules: RuleSet, family: &str) -> String {
    format!("{}/{family}", rules.name())
}

pub(super) fn run(cases: &mut Cases, bed: Bed<'_>) {
    for (index, rules) in rule_sets().enumerate() {
        let wants = |family| cases.wants(&format!("{}/{}", bed.way.name, name(rules, family)));
        if !FAMILIES.into_iter().any(wants) {
            continue;
        }
        let Some(proxy) = rules.proxy() else { continue };
        let settings = Settings::strict(proxy, HTTP);
        let spec = pod::spec(&format!("envoy{index}"), rules);
        match Meshed::start(bed, spec, settings) {
            Ok(meshed) => {
                for (family, ip) in FAMILIES.into_iter().zip(meshed.pod.ns.ips()) {
                    case(cases, bed.way, &name(rules, family), || {
                        all(bed, &meshed, ip)
                    });
                }
            }
            // A failed start fails the cases, or skips them if the machine lacks the rules' tools.
            Err(error) => {
                for family in FAMILIES {
                    let text = format!("{error:#}");
                    let error = match error.downcast_ref::<crate::rules::Unavailable>() {
                        Some(missing) => missing.clone().into(),
                        None => anyhow::anyhow!(text),
                    };
                    case(cases, bed.way, &name(rules, family), || Err(error));
                }
            }
        }
    }
}

fn all(bed: Bed<'_>, meshed: &Meshed, ip: IpAddr) -> Result<()> {
    meshed.serves_the_mesh(bed, ip)?;
    meshed.verdicts(bed, ip)?;
    meshed.refuses_strangers(bed, ip)?;
    let traffic = MeshTraffic::start(bed.env.run.mesh(), ip);
    for case in pod::probes(ip) {
        let result = bed.env.kubelet.probe(&case.probe)?;
        anyhow::ensure!(case.matches(&result), "{:?}: {result:?}", case.probe);
    }
    traffic.stop().map(drop)
}
