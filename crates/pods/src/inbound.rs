//! Reads from a Pod which inbound connections its mesh redirects.

use std::ops::RangeInclusive;

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::mesh::{annotation, consul_traffic, containers};
use model::Mesh;
use model::inbound::{Inbound, Ports};

/// Annotation set by Kuma's injector (kuma pkg/plugins/runtime/k8s/metadata/annotations.go). "0": not redirected.
const KUMA_PORT: &str = "kuma.io/transparent-proxying-inbound-port";
/// The same for IPv6, up to Kuma 2.8; 15010 by default.
const KUMA_PORT_V6: &str = "kuma.io/transparent-proxying-inbound-v6-port";
/// Variable of container linkerd-proxy (linkerd2 charts/partials/templates/_proxy.tpl).
const LINKERD_LISTEN: &str = "LINKERD2_PROXY_INBOUND_LISTEN_ADDR";
/// Istio's annotation: `*`, or the only ports that are redirected (istio tools/istio-iptables, `-b`).
const ISTIO_INCLUDE: &str = "traffic.sidecar.istio.io/includeInboundPorts";

/// The inbound redirection of `pod`, which is in `mesh`. Settings that can't be read have the mesh's defaults.
pub fn of(pod: &Pod, mesh: Mesh) -> Inbound {
    let default = mesh.inbound_port();
    let (v4, v6) = match mesh {
        Mesh::Kuma => {
            let port = |key| annotation(pod, key).and_then(|text| text.parse::<u16>().ok());
            let v4 = port(KUMA_PORT).or(default);
            (v4, port(KUMA_PORT_V6).or(v4))
        }
        Mesh::Linkerd => both(linkerd_port(pod).or(default)),
        Mesh::Consul => both(consul_port(pod).or(default)),
        Mesh::Istio | Mesh::IstioAmbient | Mesh::Osm | Mesh::Unknown => both(default),
    };
    let redirected = |port: &u16| *port != 0;
    Inbound {
        v4: v4.filter(redirected),
        v6: v6.filter(redirected),
        taken: taken(pod, mesh),
    }
}

const fn both(port: Option<u16>) -> (Option<u16>, Option<u16>) {
    (port, port)
}

/// Whether the pod sets a runtime class: the app's sockets may not be in the pod's network namespace.
fn is_sandboxed(pod: &Pod) -> bool {
    let class = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.runtime_class_name.as_deref());
    class.is_some_and(|class| !class.is_empty())
}

fn linkerd_port(pod: &Pod) -> Option<u16> {
    let listen = containers(pod)
        .filter(|container| container.name == "linkerd-proxy")
        .flat_map(|container| container.env.iter().flatten())
        .find(|env| env.name == LINKERD_LISTEN)?;
    let (_, port) = listen.value.as_deref()?.rsplit_once(':')?;
    port.parse().ok()
}

/// `ProxyInboundPort` of consul sdk/iptables `Config`.
fn consul_port(pod: &Pod) -> Option<u16> {
    let config: Value = serde_json::from_str(consul_traffic(pod)?).ok()?;
    u16::try_from(config.get("ProxyInboundPort")?.as_u64()?).ok()
}

fn taken(pod: &Pod, mesh: Mesh) -> Ports {
    let excluded = match mesh {
        Mesh::Istio => "traffic.sidecar.istio.io/excludeInboundPorts",
        Mesh::Linkerd => "config.linkerd.io/skip-inbound-ports",
        Mesh::Kuma => "traffic.kuma.io/exclude-inbound-ports",
        Mesh::Consul => "consul.hashicorp.com/transparent-proxy-exclude-inbound-ports",
        Mesh::Osm => "openservicemesh.io/inbound-port-exclusion-list",
        // ztunnel listens in the pod's network namespace even where the app runs in a virtual machine (Kata) or has
        // its sockets in a sandbox (gVisor). That no app listens in the namespace does not mean that its port is closed.
        Mesh::IstioAmbient if is_sandboxed(pod) => return Ports::Only(Vec::new()),
        Mesh::IstioAmbient | Mesh::Unknown => return Ports::AllBut(Vec::new()),
    };
    match annotation(pod, ISTIO_INCLUDE).map(str::trim) {
        // Included ports take precedence over excluded ones (istio tools/istio-iptables/pkg/capture/run.go).
        Some(list) if mesh == Mesh::Istio && list != "*" => Ports::Only(ranges(list)),
        _ => Ports::AllBut(ranges(annotation(pod, excluded).unwrap_or_default())),
    }
}

/// Reads `80,8000-8100`. Items that are not ports are ignored.
fn ranges(list: &str) -> Vec<RangeInclusive<u16>> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    // No pod may use up memory; nobody writes more ranges than that by hand.
    list.split(',')
        .filter_map(range)
        .take(RANGES_LIMIT)
        .collect()
}

/// Maximum number of port ranges kept for one pod.
const RANGES_LIMIT: usize = 256;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inbound(mesh: Mesh, annotations: Value, spec: Value) -> Inbound {
        let pod = json!({"metadata": {"annotations": annotations}, "spec": spec});
        of(&serde_json::from_value(pod).expect("a Pod"), mesh)
    }

    fn accepts(inbound: &Inbound, endpoint: &str) -> Option<u16> {
        inbound.accepts_at(endpoint.parse().expect("an endpoint"))
    }

    const NO_SPEC: fn() -> Value = || json!({"containers": []});

    #[test]
    fn a_pod_without_settings_has_its_meshs_defaults() {
        for mesh in [
            Mesh::Istio,
            Mesh::IstioAmbient,
            Mesh::Linkerd,
            Mesh::Kuma,
            Mesh::Consul,
            Mesh::Osm,
            Mesh::Unknown,
        ] {
            let one = inbound(mesh, json!({}), NO_SPEC());
            assert_eq!(one, Inbound::by_default(mesh));
            assert_eq!(accepts(&one, "10.0.0.1:80"), mesh.inbound_port());
            assert_eq!(accepts(&one, "[fd00::1]:80"), mesh.inbound_port());
        }
    }

    #[test]
    fn the_meshs_port_is_read_from_the_pod() {
        let kuma = |annotations| inbound(Mesh::Kuma, annotations, NO_SPEC());
        let (v4, v6) = ("10.0.0.1:80", "[fd00::1]:80");
        let named = kuma(json!({KUMA_PORT: "15106", KUMA_PORT_V6: "15010"}));
        assert_eq!(
            (accepts(&named, v4), accepts(&named, v6)),
            (Some(15106), Some(15010))
        );
        assert_eq!(accepts(&named, "[::ffff:10.0.0.1]:80"), Some(15106));
        let same = kuma(json!({KUMA_PORT: "15106"}));
        assert_eq!(
            (accepts(&same, v4), accepts(&same, v6)),
            (Some(15106), Some(15106))
        );
        let off = kuma(json!({KUMA_PORT_V6: "0"}));
        assert_eq!((accepts(&off, v4), accepts(&off, v6)), (Some(15006), None));
        let odd = kuma(json!({KUMA_PORT: "many"}));
        assert_eq!(accepts(&odd, v4), Some(15006));

        for (listen, port) in [
            ("0.0.0.0:4443", 4443),
            ("[::]:4444", 4444),
            ("nonsense", 4143),
        ] {
            let env = json!([{"name": LINKERD_LISTEN, "value": listen}]);
            let spec = json!({"containers": [{"name": "linkerd-proxy", "env": env}]});
            assert_eq!(
                accepts(&inbound(Mesh::Linkerd, json!({}), spec), v4),
                Some(port)
            );
        }
        let traffic = json!({"consul.hashicorp.com/redirect-traffic-config": r#"{"ProxyInboundPort":20001}"#});
        assert_eq!(
            accepts(&inbound(Mesh::Consul, traffic, NO_SPEC()), v4),
            Some(20001)
        );
    }

    #[test]
    fn the_mesh_does_not_accept_connections_to_an_excluded_port() {
        for (mesh, key) in [
            (Mesh::Istio, "traffic.sidecar.istio.io/excludeInboundPorts"),
            (Mesh::Linkerd, "config.linkerd.io/skip-inbound-ports"),
            (Mesh::Kuma, "traffic.kuma.io/exclude-inbound-ports"),
            (
                Mesh::Consul,
                "consul.hashicorp.com/transparent-proxy-exclude-inbound-ports",
            ),
            (Mesh::Osm, "openservicemesh.io/inbound-port-exclusion-list"),
        ] {
            let one = inbound(mesh, json!({key: "80, 9000-9010,x,70000"}), NO_SPEC());
            for port in [80, 9000, 9010] {
                assert_eq!(
                    accepts(&one, &format!("10.0.0.1:{port}")),
                    None,
                    "{mesh:?} {port}"
                );
            }
            for port in [81, 8999, 9011] {
                let at = accepts(&one, &format!("10.0.0.1:{port}"));
                assert_eq!(at, mesh.inbound_port(), "{mesh:?} {port}");
            }
            // The mesh listens nevertheless.
            assert_eq!(
                one.port("10.0.0.1".parse().expect("IP")),
                mesh.inbound_port()
            );
        }
    }

    #[test]
    fn istio_may_redirect_only_some_ports() {
        let istio = |include: &str| {
            let annotations = json!({ISTIO_INCLUDE: include, "traffic.sidecar.istio.io/excludeInboundPorts": "80"});
            let one = inbound(Mesh::Istio, annotations, NO_SPEC());
            ["10.0.0.1:80", "10.0.0.1:81"].map(|endpoint| accepts(&one, endpoint))
        };
        assert_eq!(istio("*"), [None, Some(15006)]);
        assert_eq!(istio("80"), [Some(15006), None]);
        assert_eq!(istio(""), [None, None]);
    }

    #[test]
    fn ztunnel_accepts_nothing_for_an_app_in_a_virtual_machine() {
        let spec = |class: &str| json!({"containers": [], "runtimeClassName": class});
        let ambient = |class| inbound(Mesh::IstioAmbient, json!({}), spec(class));
        assert_eq!(accepts(&ambient("kata"), "10.0.0.1:80"), None);
        let address = "10.0.0.1".parse().expect("IP");
        assert_eq!(ambient("kata").port(address), Some(15006), "it listens");
        assert_eq!(accepts(&ambient(""), "10.0.0.1:80"), Some(15006));
        // A sidecar runs in the virtual machine too.
        let sidecar = inbound(Mesh::Istio, json!({}), spec("kata"));
        assert_eq!(accepts(&sidecar, "10.0.0.1:80"), Some(15006));
    }
}
