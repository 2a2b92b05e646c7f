//! Detects the mesh of a pod from what the meshes' injectors add to it.

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;

use model::Mesh;

/// Consul's annotation with the iptables configuration of the pod, as JSON of consul sdk/iptables
/// `Config`; set only with Consul's CNI plugin.
const CONSUL_TRAFFIC_ANNOTATION: &str = "consul.hashicorp.com/redirect-traffic-config";
/// The same configuration without the CNI plugin: a variable of Consul's init container.
const CONSUL_TRAFFIC_ENV: &str = "CONSUL_REDIRECT_TRAFFIC_CONFIG";
/// Set to `injected` by Consul's webhook.
const CONSUL_STATUS: &str = "consul.hashicorp.com/connect-inject-status";
/// Default uid of Consul's proxy (consul-k8s `sidecarUserAndGroupID`).
pub const CONSUL_PROXY_UID: u32 = 5995;

/// The mesh that `pod` is in; `None` when nothing indicates one.
pub fn mesh_of(pod: &Pod) -> Option<Mesh> {
    containers(pod)
        .find_map(|container| mesh_of_proxy(pod, &container.name))
        .or_else(|| by_annotation(pod))
}

/// Whether container `name` of `pod` is the mesh's own proxy. The mesh does not redirect probes of
/// its proxy.
pub fn is_proxy(pod: &Pod, name: &str) -> bool {
    mesh_of_proxy(pod, name).is_some()
}

/// Whether the mesh's proxy runs, by the container statuses of `pod`; `None` if they do not contain it.
pub fn proxy_runs(pod: &Pod) -> Option<bool> {
    let status = pod.status.as_ref()?;
    let lists = [&status.init_container_statuses, &status.container_statuses];
    let all = lists.into_iter().flatten().flatten();
    all.filter(|one| is_proxy(pod, &one.name))
        .map(|one| {
            let state = one.state.as_ref();
            state.is_some_and(|state| state.running.is_some())
        })
        .reduce(|one, other| one || other)
}

fn mesh_of_proxy(pod: &Pod, container: &str) -> Option<Mesh> {
    match container {
        "istio-proxy" => Some(Mesh::Istio),
        "linkerd-proxy" => Some(Mesh::Linkerd),
        "kuma-sidecar" => Some(Mesh::Kuma),
        "consul-dataplane" | "envoy-sidecar" | "consul-connect-envoy-sidecar" => Some(Mesh::Consul),
        // A pod with several Consul services has one proxy per service, named after the service.
        _ if (container.starts_with("consul-dataplane-")
            || container.starts_with("envoy-sidecar-")
            || container.starts_with("consul-connect-"))
            && is_consul(pod) =>
        {
            Some(Mesh::Consul)
        }
        // "envoy" is a common name, so a mark of OSM's injector is required too.
        "envoy" if has_osm_mark(pod) => Some(Mesh::Osm),
        _ => None,
    }
}

fn by_annotation(pod: &Pod) -> Option<Mesh> {
    if annotation(pod, "sidecar.istio.io/status").is_some() {
        Some(Mesh::Istio)
    } else if annotation(pod, "linkerd.io/proxy-version").is_some() {
        Some(Mesh::Linkerd)
    } else if annotation(pod, "kuma.io/sidecar-injected") == Some("true") {
        Some(Mesh::Kuma)
    } else if is_consul(pod) {
        Some(Mesh::Consul)
    } else if annotation(pod, "ambient.istio.io/redirection") == Some("enabled") {
        Some(Mesh::IstioAmbient)
    } else {
        None
    }
}

fn is_consul(pod: &Pod) -> bool {
    annotation(pod, CONSUL_STATUS) == Some("injected")
}

/// OSM's injector adds label `osm-proxy-uuid` and init container `osm-init`; its settings are labels
/// and annotations under openservicemesh.io.
fn has_osm_mark(pod: &Pod) -> bool {
    let meta = &pod.metadata;
    let init = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .any(|init| init.name == "osm-init");
    init || meta
        .labels
        .iter()
        .flatten()
        .chain(meta.annotations.iter().flatten())
        .any(|(key, _)| key == "osm-proxy-uuid" || key.starts_with("openservicemesh.io/"))
}

/// The uid of Consul's proxy in `pod`, with which the in-pod dial must create its socket: from Consul's
/// own redirect configuration, else the proxy container's `runAsUser`, else [`CONSUL_PROXY_UID`].
/// The second value is a warning about what could not be read.
pub fn consul_proxy_uid(pod: &Pod) -> (u32, Option<String>) {
    let mut warning = None;
    if let Some(config) = consul_traffic(pod) {
        match redirect_uid(config) {
            Some(uid) => return (uid, None),
            None => {
                warning = Some(format!(
                    "{CONSUL_TRAFFIC_ANNOTATION} (or {CONSUL_TRAFFIC_ENV}) has no usable ProxyUserID"
                ));
            }
        }
    }
    // Consul's init container has the prefix of a proxy's name, and may run as root.
    let run_as = containers(pod)
        .filter(|container| is_proxy(pod, &container.name) && !ends(pod, container))
        .find_map(|container| container.security_context.as_ref()?.run_as_user)
        .and_then(|uid| u32::try_from(uid).ok());
    (run_as.unwrap_or(CONSUL_PROXY_UID), warning)
}

/// Consul's own redirect configuration of `pod`, as JSON of consul sdk/iptables `Config`.
pub fn consul_traffic(pod: &Pod) -> Option<&str> {
    annotation(pod, CONSUL_TRAFFIC_ANNOTATION).or_else(|| {
        containers(pod)
            .flat_map(|container| container.env.iter().flatten())
            .find(|env| env.name == CONSUL_TRAFFIC_ENV)
            .and_then(|env| env.value.as_deref())
    })
}

/// Whether `container` is an init container of `pod` that ends before the other containers start.
fn ends(pod: &Pod, container: &Container) -> bool {
    let inits = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    container.restart_policy.as_deref() != Some("Always")
        && inits.into_iter().any(|init| std::ptr::eq(init, container))
}

fn redirect_uid(config: &str) -> Option<u32> {
    match serde_json::from_str::<Value>(config)
        .ok()?
        .get("ProxyUserID")?
    {
        Value::String(uid) => uid.parse().ok(),
        Value::Number(uid) => u32::try_from(uid.as_u64()?).ok(),
        _ => None,
    }
}

/// All containers of `pod`, init containers first.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| {
        spec.init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
    })
}

/// The value of annotation `key` of `pod`.
pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn a_mesh_is_detected_by_its_sidecar_or_its_annotations() {
        let named = |name: &str| json!({"spec": {"containers": [{"name": "web"}, {"name": name}]}});
        let native = |name: &str| {
            json!({"spec": {"containers": [{"name": "web"}],
                "initContainers": [{"name": name, "restartPolicy": "Always"}]}})
        };
        let annotated = |key: &str, value: &str| {
            json!({"metadata": {"annotations": {key: value}},
                "spec": {"containers": [{"name": "web"}]}})
        };
        for (manifest, mesh) in [
            (named("istio-proxy"), Some(Mesh::Istio)),
            (native("istio-proxy"), Some(Mesh::Istio)),
            (native("linkerd-proxy"), Some(Mesh::Linkerd)),
            (named("kuma-sidecar"), Some(Mesh::Kuma)),
            (named("consul-dataplane"), Some(Mesh::Consul)),
            (named("envoy-sidecar"), Some(Mesh::Consul)),
            (named("consul-dataplane-web"), None),
            (named("envoy"), None),
            (named("sidecar"), None),
            (
                annotated("sidecar.istio.io/status", "{}"),
                Some(Mesh::Istio),
            ),
            (
                annotated("linkerd.io/proxy-version", "edge-26.1.1"),
                Some(Mesh::Linkerd),
            ),
            (
                annotated("kuma.io/sidecar-injected", "true"),
                Some(Mesh::Kuma),
            ),
            (annotated("kuma.io/sidecar-injected", "false"), None),
            (annotated(CONSUL_STATUS, "injected"), Some(Mesh::Consul)),
            (
                annotated("ambient.istio.io/redirection", "enabled"),
                Some(Mesh::IstioAmbient),
            ),
            (annotated("ambient.istio.io/redirection", "disabled"), None),
        ] {
            assert_eq!(mesh_of(&pod(manifest.clone())), mesh, "{manifest}");
        }
    }

    #[test]
    fn a_sidecar_takes_precedence_over_ambient() {
        let pod = pod(json!({
            "metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}},
            "spec": {"containers": [{"name": "istio-proxy"}]}}));
        assert_eq!(mesh_of(&pod), Some(Mesh::Istio));
    }

    #[test]
    fn a_container_named_envoy_is_osms_proxy_only_with_a_mark_of_osm() {
        for marks in [
            json!({"labels": {"osm-proxy-uuid": "x"}}),
            json!({"annotations": {"openservicemesh.io/sidecar-injection": "enabled"}}),
        ] {
            let pod = pod(json!({"metadata": marks, "spec": {"containers": [{"name": "envoy"}]}}));
            assert_eq!(mesh_of(&pod), Some(Mesh::Osm), "{marks}");
        }
    }

    #[test]
    fn whether_the_proxy_runs_is_read_from_the_container_statuses() {
        let status = |field: &str, name: &str, state: Value| {
            let one = json!({"name": name, "state": state, "image": "", "imageID": "",
                "ready": false, "restartCount": 0});
            proxy_runs(&pod(
                json!({"spec": {"containers": []}, "status": {field: [one]}}),
            ))
        };
        for field in ["containerStatuses", "initContainerStatuses"] {
            let running = status(field, "istio-proxy", json!({"running": {}}));
            assert_eq!(running, Some(true));
            let waiting = status(field, "istio-proxy", json!({"waiting": {}}));
            assert_eq!(waiting, Some(false));
            assert_eq!(status(field, "web", json!({"running": {}})), None);
        }
        assert_eq!(proxy_runs(&pod(json!({"spec": {"containers": []}}))), None);
    }

    #[test]
    fn several_consul_proxies_are_recognized_by_prefix() {
        let pod = pod(json!({
            "metadata": {"annotations": {CONSUL_STATUS: "injected"}},
            "spec": {"containers": [{"name": "web"}, {"name": "consul-dataplane-web"}]}}));
        assert!(is_proxy(&pod, "consul-dataplane-web"));
        assert!(!is_proxy(&pod, "web"));
    }

    #[test]
    fn consuls_uid_comes_from_its_redirect_configuration() {
        let with = |config: &str| {
            pod(json!({
                "metadata": {"annotations": {CONSUL_TRAFFIC_ANNOTATION: config}},
                "spec": {"containers": [{"name": "consul-dataplane"}]}}))
        };
        let config = r#"{"ConsulDNSIP":"","ProxyUserID":"101","ProxyInboundPort":20000}"#;
        assert_eq!(consul_proxy_uid(&with(config)), (101, None));
        assert_eq!(
            consul_proxy_uid(&with(r#"{"ProxyUserID":102}"#)),
            (102, None)
        );
        for bad in ["", "{", "{}", r#"{"ProxyUserID":"x"}"#] {
            let (uid, warning) = consul_proxy_uid(&with(bad));
            assert_eq!(uid, CONSUL_PROXY_UID, "{bad}");
            assert!(warning.is_some(), "{bad}");
        }
    }

    #[test]
    fn without_the_annotation_consuls_uid_comes_from_its_init_container_or_proxy() {
        let by_env = pod(json!({"spec": {
            "initContainers": [{"name": "consul-connect-inject-init", "env": [
                {"name": CONSUL_TRAFFIC_ENV, "value": r#"{"ProxyUserID":"1000"}"#}]}],
            "containers": [{"name": "consul-dataplane"}]}}));
        assert_eq!(consul_proxy_uid(&by_env), (1000, None));
        let by_user = pod(json!({"spec": {"containers": [
            {"name": "consul-dataplane", "securityContext": {"runAsUser": 1_000_650_000}}]}}));
        assert_eq!(consul_proxy_uid(&by_user), (1_000_650_000, None));
        let plain = pod(json!({"spec": {"containers": [{"name": "consul-dataplane"}]}}));
        assert_eq!(consul_proxy_uid(&plain), (CONSUL_PROXY_UID, None));
        // In consul-k8s up to 0.49 the init container sets up the redirection as root.
        let older = pod(
            json!({"metadata": {"annotations": {CONSUL_STATUS: "injected"}}, "spec": {
            "initContainers": [{"name": "consul-connect-inject-init", "securityContext": {"runAsUser": 0}}],
            "containers": [{"name": "envoy-sidecar", "securityContext": {"runAsUser": 5995}}]}}),
        );
        assert_eq!(consul_proxy_uid(&older), (5995, None));
    }
}
