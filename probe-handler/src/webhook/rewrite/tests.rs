//! The rules of rewriting, one table each.

use serde_json::json;

use super::*;

/// The Pod after admission, and the warnings.
fn admitted(pod: &Value) -> (Value, Vec<String>) {
    let admission = admit(pod, &Rewriting::default());
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &admission.patch).expect("the patch applies");
    (pod, admission.warnings)
}

#[test]
fn an_http_probe_points_to_the_rewrite_port() {
    let pod = json!({
        "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "web",
            "ports": [{"name": "http", "containerPort": 8080}],
            "livenessProbe": {"httpGet": {"path": "/live", "port": "http", "scheme": "HTTPS",
                "httpHeaders": [{"name": "X", "value": "1"}]}, "periodSeconds": 3}}]}});
    let (rewritten, warnings) = admitted(&pod);
    assert_eq!(warnings, [""; 0]);
    assert_eq!(
        rewritten,
        json!({
            "metadata": {"name": "web", "annotations": {
                "probe-handler.io/probes": r#"{"/app-health/web/livez":{"declaredPort":"http","httpGet":{"httpHeaders":[{"name":"X","value":"1"}],"path":"/live","port":8080,"scheme":"HTTPS"}}}"#,
                "sidecar.istio.io/rewriteAppHTTPProbers": "false"}},
            "spec": {"containers": [{"name": "web",
                "ports": [{"name": "http", "containerPort": 8080}],
                "livenessProbe": {"httpGet": {"path": "/app-health/web/livez", "port": 15020,
                    "scheme": "HTTP", "httpHeaders": [{"name": "X", "value": "1"}]},
                    "periodSeconds": 3}}]}})
    );
    assert_eq!(admitted(&rewritten), (rewritten, Vec::new()));
}
