//! What is read from the injectors' arguments, variables and annotations.

use serde_json::json;

use super::kuma::{
    CONFIG as KUMA_CONFIG, PORT_ANNOTATION as KUMA_PORT, PORT_V6_ANNOTATION as KUMA_PORT_V6,
};
use super::linkerd::LISTEN as LINKERD_LISTEN;
use super::*;

/// Istio's annotation: `*`, or the only ports that are redirected.
const ISTIO_INCLUDE: &str = "traffic.sidecar.istio.io/includeInboundPorts";

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
    let traffic =
        json!({"consul.hashicorp.com/redirect-traffic-config": r#"{"ProxyInboundPort":20001}"#});
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
        let annotations =
            json!({ISTIO_INCLUDE: include, "traffic.sidecar.istio.io/excludeInboundPorts": "80"});
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

/// A Pod with this init container.
fn with_init(mesh: Mesh, annotations: Value, name: &str, init: Value) -> Inbound {
    let mut init = init;
    init["name"] = json!(name);
    inbound(
        mesh,
        annotations,
        json!({"containers": [], "initContainers": [init]}),
    )
}

#[test]
fn arguments_of_istios_init_container_take_precedence() {
    let annotations = json!({"traffic.sidecar.istio.io/excludeInboundPorts": "81"});
    let args = |args: &[&str]| json!({"args": args});
    for name in ["istio-init", "istio-validation"] {
        let istio = |init| with_init(Mesh::Istio, annotations.clone(), name, init);
        let one = istio(args(&[
            "istio-iptables",
            "-p",
            "15001",
            "-z",
            "15106",
            "-u",
            "1337",
            "-m",
            "REDIRECT",
            "-i",
            "*",
            "-x",
            "",
            "-b",
            "*",
            "-d",
            "15090,15021,80",
        ]));
        assert_eq!(one.v4, Some(15106), "{name}");
        assert_eq!(one.v6, Some(15106), "{name}");
        assert_eq!(accepts(&one, "10.0.0.1:80"), None, "{name}");
        assert_eq!(accepts(&one, "10.0.0.1:81"), Some(15106), "{name}");
        let long = istio(args(&[
            "--inbound-capture-port=15107",
            "--istio-inbound-ports=80",
        ]));
        assert_eq!(accepts(&long, "10.0.0.1:80"), Some(15107), "{name}");
        assert_eq!(accepts(&long, "10.0.0.1:82"), None, "{name}");
        let none = istio(args(&["-b", ""]));
        assert_eq!(accepts(&none, "10.0.0.1:80"), None, "{name}");
        // A flag that is not given leaves its variable in effect, and then the annotation.
        let env = json!([{"name": "INBOUND_CAPTURE_PORT", "value": "15108"}]);
        let by_env = istio(json!({"args": ["istio-iptables", "-b", "*"], "env": env}));
        assert_eq!(accepts(&by_env, "10.0.0.1:80"), Some(15108), "{name}");
        assert_eq!(accepts(&by_env, "10.0.0.1:81"), None, "{name}");
    }
    // Another container's arguments are its own.
    let another = with_init(Mesh::Istio, json!({}), "setup", args(&["-z", "15106"]));
    assert_eq!(another.v4, Some(15006));
}

#[test]
fn istio_redirects_nothing_in_mode_none() {
    let mode = |annotations, env: Value| {
        let proxy = json!({"name": "istio-proxy", "env": env});
        inbound(Mesh::Istio, annotations, json!({"containers": [proxy]})).v4
    };
    let none = json!([{"name": "ISTIO_META_INTERCEPTION_MODE", "value": "NONE"}]);
    assert_eq!(mode(json!({}), none), None);
    let key = "sidecar.istio.io/interceptionMode";
    assert_eq!(mode(json!({key: "NONE"}), json!([])), None);
    assert_eq!(mode(json!({key: "TPROXY"}), json!([])), Some(15006));
    let config = "interceptionMode: NONE\nstatusPort: 15020\n";
    let config = json!({"proxy.istio.io/config": config});
    assert_eq!(mode(config.clone(), json!([])), None);
    let redirect = json!([{"name": "ISTIO_META_INTERCEPTION_MODE", "value": "REDIRECT"}]);
    assert_eq!(mode(config, redirect), Some(15006), "what is in effect");
}

#[test]
fn linkerds_ports_are_read_from_proxy_inits_arguments_and_annotations() {
    let init = |args: &[&str]| {
        let key = "config.linkerd.io/skip-inbound-ports";
        let args = json!({"args": args});
        with_init(Mesh::Linkerd, json!({key: "80"}), "linkerd-init", args)
    };
    let one = init(&[
        "--incoming-proxy-port",
        "4243",
        "--outgoing-proxy-port",
        "4140",
        "--inbound-ports-to-ignore",
        "4190,4191,90-91",
    ]);
    let of = |one: &Inbound, port: u16| accepts(one, &format!("10.0.0.1:{port}"));
    assert_eq!((of(&one, 80), of(&one, 90)), (Some(4243), None));
    let short = init(&[
        "-p",
        "4244",
        "-r",
        "80,81",
        "--inbound-ports-to-ignore",
        "81",
    ]);
    let ports = [80, 81, 82].map(|port| of(&short, port));
    assert_eq!(ports, [Some(4244), None, None]);
    let annotated = inbound(
        Mesh::Linkerd,
        json!({linkerd::PORT_ANNOTATION: "4245"}),
        NO_SPEC(),
    );
    assert_eq!(annotated.v4, Some(4245));
}

#[test]
fn kumas_ports_are_read_from_its_configuration_and_arguments() {
    let of = |one: &Inbound, port: u16| accepts(one, &format!("10.0.0.1:{port}"));
    let yaml = "ipFamilyMode: ipv4\nredirect:\n  inbound:\n    enabled: true\n    port: 25006\n    excludePorts:\n    - 9000\n    - 9902\n";
    let kuma = |annotations| inbound(Mesh::Kuma, annotations, NO_SPEC());
    let one = kuma(json!({KUMA_CONFIG: yaml}));
    assert_eq!((one.v4, one.v6), (Some(25006), None));
    assert_eq!((of(&one, 80), of(&one, 9000)), (Some(25006), None));
    let off = kuma(json!({KUMA_CONFIG: "redirect: {inbound: {enabled: false}}"}));
    assert_eq!((off.v4, off.v6), (None, None));
    let only = kuma(json!({KUMA_CONFIG: "redirect: {inbound: {includePorts: \"80,81\"}}"}));
    assert_eq!((of(&only, 80), of(&only, 82)), (Some(15006), None));
    let gateway = kuma(json!({"kuma.io/gateway": "enabled"}));
    assert_eq!((gateway.v4, gateway.v6), (None, None));

    let args = json!({"args": [
        "--redirect-outbound-port", "15001",
        "--redirect-inbound=true",
        "--redirect-inbound-port", "25007",
        "--redirect-inbound-port-v6", "25010",
        "--exclude-inbound-ports", "9001",
        "--ip-family-mode", "dualstack",
    ]});
    let two = with_init(Mesh::Kuma, json!({KUMA_PORT: "1"}), "kuma-init", args);
    assert_eq!((two.v4, two.v6), (Some(25007), Some(25010)));
    assert_eq!(of(&two, 9001), None);
    let args = json!({"args": ["--redirect-inbound=false"]});
    let off = with_init(Mesh::Kuma, json!({}), "kuma-init", args);
    assert_eq!(off.v4, None);
}

#[test]
fn consuls_excluded_ports_are_read_from_its_configuration() {
    let config = r#"{"ProxyInboundPort":20001,"ExcludeInboundPorts":["9002","8000-8001"]}"#;
    let annotations = json!({
        "consul.hashicorp.com/redirect-traffic-config": config,
        "consul.hashicorp.com/transparent-proxy-exclude-inbound-ports": "80",
    });
    let one = inbound(Mesh::Consul, annotations, NO_SPEC());
    let ports = ["10.0.0.1:80", "10.0.0.1:9002", "10.0.0.1:8001"];
    assert_eq!(
        ports.map(|endpoint| accepts(&one, endpoint)),
        [Some(20001), None, None]
    );
}
