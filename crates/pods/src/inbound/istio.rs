//! Istio's sidecar: flags and variables of istio-iptables (istio tools/istio-iptables/pkg/cmd/root.go), which
//! the injector gives to `istio-init`, or with Istio's CNI plugin to `istio-validation`.

use k8s_openapi::api::core::v1::Pod;

use super::flags::Flag;
use super::{both, named, ranges, variable};
use crate::mesh::annotation;
use model::Mesh;
use model::inbound::{Inbound, Ports};

/// The containers that run istio-iptables.
const INIT: [&str; 2] = ["istio-init", "istio-validation"];
/// Variable of container istio-proxy with the interception mode in effect.
const MODE_OF_PROXY: &str = "ISTIO_META_INTERCEPTION_MODE";
/// Annotation with proxy settings (`meshConfig.defaultConfig`) of this pod, as YAML.
const PROXY_CONFIG: &str = "proxy.istio.io/config";

/// One setting. A flag takes precedence over a variable, and a variable over an annotation.
struct Setting {
    flag: Flag,
    variable: &'static str,
    annotation: Option<&'static str>,
}

/// The port to which inbound connections are redirected (`meshConfig.proxyInboundListenPort`).
const PORT: Setting = Setting {
    flag: Flag::new("inbound-capture-port", 'z'),
    variable: "INBOUND_CAPTURE_PORT",
    annotation: None,
};
/// `*`, or the only ports that are redirected.
const INCLUDED: Setting = Setting {
    flag: Flag::new("istio-inbound-ports", 'b'),
    variable: "ISTIO_INBOUND_PORTS",
    annotation: Some("traffic.sidecar.istio.io/includeInboundPorts"),
};
/// Ports that are not redirected.
const EXCLUDED: Setting = Setting {
    flag: Flag::new("istio-local-exclude-ports", 'd'),
    variable: "ISTIO_LOCAL_EXCLUDE_PORTS",
    annotation: Some("traffic.sidecar.istio.io/excludeInboundPorts"),
};
/// REDIRECT, TPROXY or NONE.
const MODE: Setting = Setting {
    flag: Flag::new("istio-inbound-interception-mode", 'm'),
    variable: "ISTIO_INBOUND_INTERCEPTION_MODE",
    annotation: Some("sidecar.istio.io/interceptionMode"),
};

impl Setting {
    fn of<'a>(&self, pod: &'a Pod) -> Option<&'a str> {
        let flag = named(pod, &INIT).find_map(|init| self.flag.of(init));
        let value = flag
            .or_else(|| named(pod, &INIT).find_map(|init| variable(init, self.variable)))
            .or_else(|| annotation(pod, self.annotation?))?;
        Some(value.trim())
    }
}

pub(super) fn inbound(pod: &Pod) -> Inbound {
    let port = PORT
        .of(pod)
        .and_then(|port| port.parse().ok())
        .or(Mesh::Istio.inbound_port());
    // Included ports take precedence over excluded ones (istio tools/istio-iptables/pkg/capture/run.go).
    let taken = match INCLUDED.of(pod) {
        Some(list) if list != "*" => Ports::Only(ranges(list)),
        _ => Ports::AllBut(ranges(EXCLUDED.of(pod).unwrap_or_default())),
    };
    both(port.filter(|_| !is_off(pod)), taken)
}

/// Whether the mode is NONE: then the injector adds no rules, and only apps that use the proxy by themselves are in the mesh.
fn is_off(pod: &Pod) -> bool {
    let of_proxy = || named(pod, &["istio-proxy"]).find_map(|proxy| variable(proxy, MODE_OF_PROXY));
    match of_proxy().or_else(|| MODE.of(pod)) {
        Some(mode) => mode == "NONE",
        None => mode_in_proxy_config(pod).as_deref() == Some("NONE"),
    }
}

fn mode_in_proxy_config(pod: &Pod) -> Option<String> {
    let config = annotation(pod, PROXY_CONFIG)?;
    let config = yaml::tree::parse(config).ok()?.first()?.to_json(1).ok()?;
    config.get("interceptionMode")?.as_str().map(str::to_owned)
}
