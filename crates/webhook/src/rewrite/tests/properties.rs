//! Properties that hold for every Pod.

use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;

use super::*;
use crate::arbitrary::{is_original, pod};
use crate::reading::{Before, Reading};
use crate::revert::revert;
use ::pods::parse::parse_pod;
use ::pods::probers::recover;
use ::pods::probes::probes;
use ::pods::scope::Selection;
use model::{Probe, ProbeMode};

/// The probes of a Pod as the daemon serves them: the originals of rewritten probes, and native probes.
fn served(pod: &Value) -> Vec<Probe> {
    let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
    let recovered = recover(&typed, probes(&typed, &[]).0, &[]);
    let mut served = recovered.native;
    served.extend(
        recovered
            .rewritten
            .into_iter()
            .flat_map(|rewritten| rewritten.originals)
            .map(|(_, probe)| probe),
    );
    served.sort_by(|a, b| (&a.container, a.kind).cmp(&(&b.container, b.kind)));
    served
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn rewriting_is_idempotent(pod in pod()) {
        let once = apply(&pod, &admit(&pod, &Rewriting::default()));
        let again = admit(&once, &Rewriting::default());
        prop_assert_eq!(again.patch, vec![]);
        prop_assert_eq!(again.changed, 0);
    }

    #[test]
    fn reverting_restores_the_pod(pod in pod()) {
        prop_assume!(is_original(&pod));
        let admission = admit(&pod, &Rewriting::default());
        let rewritten = apply(&pod, &admission);
        let back = revert(&rewritten);
        if admission.patch.is_empty() {
            prop_assert_eq!(back.patch, vec![]);
        } else {
            prop_assert_eq!(back.changed, admission.changed);
            prop_assert_eq!(apply(&rewritten, &back), pod);
        }
    }

    #[test]
    fn the_daemon_serves_what_was_declared(pod in pod()) {
        let before = served(&pod);
        let mut after = served(&apply(&pod, &admit(&pod, &Rewriting::default())));
        // Two kinds of probes work only once they are rewritten: the kubelet rejects tcpSocket hooks, and
        // a native probe of the rewrite port can't be distinguished from a rewritten one.
        let reading = Reading::new(&pod).unwrap();
        let begun = match reading.before {
            Before::Ours { port, .. } => Some(port),
            _ => None,
        };
        let gained: Vec<_> = reading
            .declared()
            .iter()
            .filter_map(|declared| Some((declared, reading.parse_pod(declared).ok()?)))
            .filter(|(declared, probe)| {
                let hook = declared.kind.is_hook() && declared.tcp.is_some();
                hook || begun == Some(probe.action.port())
            })
            .map(|(_, probe)| probe)
            .collect();
        after.retain(|probe| before.contains(probe) || !gained.contains(probe));
        prop_assert_eq!(after, before);
    }

    #[test]
    fn the_daemon_serves_a_rewritten_pod(pod in pod()) {
        prop_assume!(is_original(&pod));
        let admission = admit(&pod, &Rewriting::default());
        let rewritten = apply(&pod, &admission);
        let typed: Pod = serde_json::from_value(rewritten).unwrap();
        let parsed = parse_pod(&typed).select(&Selection::default());
        let found = parsed.pod.and_then(|pod| pod.rewritten.clone());
        // Probes that Istio's injector rewrote are taken over unchanged.
        let found = found.filter(|found| found.mode != ProbeMode::Takeover);
        prop_assert_eq!(
            found.as_ref().map(|found| (found.mode, found.port, found.originals.len())),
            (admission.changed > 0).then_some((ProbeMode::Rewrite, DEFAULT_PORT, admission.changed))
        );
    }

    #[test]
    fn a_valid_pod_stays_valid(pod in pod()) {
        if valid::check(&pod).is_ok() {
            let rewritten = apply(&pod, &admit(&pod, &Rewriting::default()));
            prop_assert_eq!(valid::check(&rewritten), Ok(()));
        }
    }

    #[test]
    fn every_rewritten_probe_uses_the_rewrite_port(pod in pod(), port in 1..=65535u16) {
        prop_assume!(is_original(&pod));
        let rewriting = Rewriting {
            port: NonZeroU16::new(port).unwrap(),
            ..Rewriting::default()
        };
        let admission = admit(&pod, &rewriting);
        let rewritten = apply(&pod, &admission);
        let typed: Pod = serde_json::from_value(rewritten).unwrap();
        let recovered = recover(&typed, probes(&typed, &[]).0, &[]);
        if admission.changed > 0 {
            prop_assert_eq!(recovered.rewritten.map(|rewritten| rewritten.port), Some(port));
            prop_assert_eq!(recovered.skipped, vec![]);
        }
    }
}
