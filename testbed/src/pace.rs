//! Stretches time limits on slow machines.
//!
//! On an emulated processor everything takes many times as long. There the suite multiplies all times by the
//! same factor: the kubelet's timeouts, those in manifests, the apps' delays and the deadlines of all waits.
//! So every case asserts the same as on a node.

use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

/// Environment variable with the factor, for the suite and all its child processes; 1 if it is not set.
pub const VARIABLE: &str = "TESTBED_PACE";

/// The factor by which time is stretched.
pub fn factor() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let value = std::env::var(VARIABLE).ok();
        value.and_then(|value| parse(&value)).unwrap_or(1)
    })
}

/// A duration multiplied by the factor.
pub fn stretch(duration: Duration) -> Duration {
    duration * factor()
}

/// The number that causes the same load on this machine as `many` on a node.
pub fn fewer(many: usize) -> usize {
    many.div_ceil(factor() as usize)
}

/// Stretches the timeouts of all probes in a Pod's containers.
pub fn stretch_probes(containers: &mut [Value]) {
    if factor() > 1 {
        multiply(containers, factor());
    }
}

fn multiply(containers: &mut [Value], factor: u32) {
    for container in containers.iter_mut().filter_map(Value::as_object_mut) {
        let probes = container
            .iter_mut()
            .filter(|(name, _)| name.ends_with("Probe"));
        for probe in probes.filter_map(|(_, probe)| probe.as_object_mut()) {
            // The default is one second.
            let seconds = probe
                .get("timeoutSeconds")
                .and_then(Value::as_u64)
                .unwrap_or(1);
            let _old = probe.insert(
                "timeoutSeconds".to_owned(),
                (seconds * u64::from(factor)).into(),
            );
        }
    }
}

fn parse(value: &str) -> Option<u32> {
    value
        .parse()
        .ok()
        .filter(|factor| (1..=100).contains(factor))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{multiply, parse};

    #[test]
    fn probes_get_more_time_and_hooks_have_none() {
        let mut containers = [json!({
            "name": "app",
            "livenessProbe": {"tcpSocket": {"port": 1}},
            "readinessProbe": {"tcpSocket": {"port": 1}, "timeoutSeconds": 3},
            "lifecycle": {"preStop": {"tcpSocket": {"port": 1}}},
        })];
        multiply(&mut containers, 5);
        let expected = json!({
            "name": "app",
            "livenessProbe": {"tcpSocket": {"port": 1}, "timeoutSeconds": 5},
            "readinessProbe": {"tcpSocket": {"port": 1}, "timeoutSeconds": 15},
            "lifecycle": {"preStop": {"tcpSocket": {"port": 1}}},
        });
        assert_eq!(containers[0], expected);
    }

    #[test]
    fn time_is_never_shortened_nor_stopped() {
        assert_eq!(parse("5"), Some(5));
        for bad in ["0", "-1", "1000", "fast", ""] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
