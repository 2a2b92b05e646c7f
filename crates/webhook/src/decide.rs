//! Decides whether a pod's probes are rewritten: by its annotation, else by the global setting.

use super::annotations::REWRITE;
use pods::probers::parse_bool;

/// Whether to rewrite the probes of a pod whose annotation `sidecar.istio.io/rewriteAppHTTPProbers`
/// has `value`, and a warning if the value is invalid. `global` is the setting for all pods.
///
/// Like Istio: a boolean decides, any other value is treated as missing
/// (istio pkg/kube/inject/app_probe.go `ShouldRewriteAppHTTPProbers`).
pub fn decide(value: Option<&str>, global: bool) -> (bool, Option<String>) {
    let Some(value) = value else {
        return (global, None);
    };
    match parse_bool(value) {
        Some(rewrite) => (rewrite, None),
        None => {
            let warning = format!(
                "annotation {REWRITE} is {value:?}, must be \"true\" or \"false\"; the setting for all pods ({global}) applies"
            );
            (global, Some(warning))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_decides_with_any_boolean_of_gos() {
        for global in [true, false] {
            for value in ["1", "t", "T", "TRUE", "true", "True"] {
                assert_eq!(decide(Some(value), global), (true, None), "{value}");
            }
            for value in ["0", "f", "F", "FALSE", "false", "False"] {
                assert_eq!(decide(Some(value), global), (false, None), "{value}");
            }
            assert_eq!(decide(None, global), (global, None));
        }
    }

    #[test]
    fn a_value_that_is_not_a_boolean_is_treated_as_missing() {
        for value in [
            "", "yes", "no", "on", "tRUE", "fALSE", " true", "true ", "2", "-1", "00", "null",
        ] {
            for global in [true, false] {
                let (rewrite, warning) = decide(Some(value), global);
                assert_eq!(rewrite, global, "{value:?}");
                assert!(warning.is_some_and(|text| text.contains(&format!("{value:?}"))));
            }
        }
    }
}
