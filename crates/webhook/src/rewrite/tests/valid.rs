//! Kubernetes' rules for a Pod's probes, to check that rewriting never makes a valid Pod invalid.

use super::*;

/// The rules of kubernetes pkg/apis/core/validation/validation.go (`validateHandler`,
/// `validateHTTPGetAction`, `validateTCPSocketAction`, `validateGRPCAction`, `ValidatePortNumOrName`) and
/// of pod-security-admission policy/check_hostProbesAndhostLifecycle.go, after the defaults of
/// pkg/apis/core/v1/defaults.go (path `/`, scheme `HTTP`).
fn check_handler(handler: &Value) -> Result<(), String> {
    const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    let present: Vec<_> = HANDLERS
        .into_iter()
        .filter(|name| handler.get(name).is_some_and(|value| !value.is_null()))
        .collect();
    let [name] = present[..] else {
        return Err(format!("handlers {present:?}, must be exactly one"));
    };
    let action = &handler[name];
    if matches!(name, "httpGet" | "tcpSocket" | "grpc") {
        match &action["port"] {
            Value::Number(port) if port.as_i64().is_some_and(|p| (1..=65535).contains(&p)) => {}
            // A name: an IANA service name, whether or not the container has it.
            Value::String(name)
                if (1..=15).contains(&name.len())
                    && name.bytes().any(|b| b.is_ascii_alphabetic()) => {}
            port => return Err(format!("port {port}")),
        }
    }
    if name == "httpGet" {
        if action["path"] == "" {
            return Err("empty path".to_owned());
        }
        match &action["scheme"] {
            Value::Null => {}
            Value::String(scheme) if matches!(scheme.as_str(), "HTTP" | "HTTPS") => {}
            scheme => return Err(format!("scheme {scheme}")),
        }
    }
    match &action["host"] {
        Value::Null => Ok(()),
        Value::String(host) if host.is_empty() => Ok(()),
        host => Err(format!("host {host}")),
    }
}

/// Annotation keys of apimachinery pkg/api/validation/objectmeta.go `ValidateAnnotations`: a qualified
/// name, of which the part after the `/` has at most 63 bytes of letters, digits, `-`, `_` and `.`.
fn check_annotations(annotations: &Value) -> Result<(), String> {
    for key in annotations
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key)
    {
        let name = key.rsplit('/').next().unwrap_or_default();
        let good = (1..=63).contains(&name.len())
            && key.split('/').count() <= 2
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.ends_with(|c: char| c.is_ascii_alphanumeric());
        if !good {
            return Err(format!("annotation {key}"));
        }
    }
    Ok(())
}

/// Checks all probes and hooks and the annotations of a Pod.
pub fn check(pod: &Value) -> Result<(), String> {
    check_annotations(&pod["metadata"]["annotations"])?;
    let list = |name: &str| pod["spec"][name].as_array().cloned().unwrap_or_default();
    for container in list("initContainers").iter().chain(&list("containers")) {
        for handler in [
            "/livenessProbe",
            "/readinessProbe",
            "/startupProbe",
            "/lifecycle/postStart",
            "/lifecycle/preStop",
        ]
        .into_iter()
        .filter_map(|field| container.pointer(field))
        {
            check_handler(handler).map_err(|why| format!("{handler}: {why}"))?;
        }
    }
    Ok(())
}

#[test]
fn the_rules_are_checked() {
    for good in [
        json!({"httpGet": {"port": 80}}),
        json!({"httpGet": {"port": "http", "path": "/", "scheme": "HTTPS", "host": ""}}),
        json!({"tcpSocket": {"port": 65535}, "httpGet": null}),
    ] {
        assert_eq!(check_handler(&good), Ok(()), "{good}");
    }
    for bad in [
        json!({}),
        json!({"httpGet": {"port": 80}, "tcpSocket": {"port": 80}}),
        json!({"httpGet": {"port": 0}}),
        json!({"httpGet": {"port": 65536}}),
        json!({"httpGet": {"port": ""}}),
        json!({"httpGet": {"port": 80, "path": ""}}),
        json!({"httpGet": {"port": 80, "scheme": "ftp"}}),
        json!({"httpGet": {"port": 80, "host": "127.0.0.1"}}),
    ] {
        assert!(check_handler(&bad).is_err(), "{bad}");
    }
    assert!(check_annotations(&json!({"a/b/c": ""})).is_err());
}
