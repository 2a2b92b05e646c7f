//! Kuma: flags of `kumactl install transparent-proxy`, the annotation with the whole configuration, and annotations for single
//! settings, which Kuma 2 reads (kuma pkg/plugins/runtime/k8s/metadata/annotations.go, pkg/transparentproxy/config).

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::flags::Flag;
use super::{named, port, port_list, ranges};
use crate::mesh::annotation;
use model::Mesh;
use model::inbound::{Inbound, Ports};

const INIT: [&str; 1] = ["kuma-init"];
const ENABLED: Flag = Flag::long("redirect-inbound");
const PORT: Flag = Flag::long("redirect-inbound-port");
/// Up to Kuma 2.8.
const PORT_V6: Flag = Flag::long("redirect-inbound-port-v6");
const EXCLUDED: Flag = Flag::long("exclude-inbound-ports");
const FAMILIES: Flag = Flag::long("ip-family-mode");
/// The configuration as YAML.
pub(super) const CONFIG: &str = "traffic.kuma.io/transparent-proxy-config";
/// The port for IPv4; "0": not redirected.
pub(super) const PORT_ANNOTATION: &str = "kuma.io/transparent-proxying-inbound-port";
/// The same for IPv6, up to Kuma 2.8; 15010 by default.
pub(super) const PORT_V6_ANNOTATION: &str = "kuma.io/transparent-proxying-inbound-v6-port";
const EXCLUDED_ANNOTATION: &str = "traffic.kuma.io/exclude-inbound-ports";
const FAMILIES_ANNOTATION: &str = "kuma.io/transparent-proxying-ip-family-mode";
/// A delegated gateway: inbound connections are not redirected.
const GATEWAY: &str = "kuma.io/gateway";

pub(super) fn inbound(pod: &Pod) -> Inbound {
    let config = config(pod);
    let configured = |path: &str| config.pointer(path);
    let text = |path: &str| configured(path).and_then(Value::as_str);
    let flag = |flag: Flag| named(pod, &INIT).find_map(|init| flag.of(init));
    let number = |text: &str| text.trim().parse::<u16>().ok();
    let noted = |key: &str| annotation(pod, key).and_then(number);

    let v4 = flag(PORT)
        .and_then(number)
        .or_else(|| configured("/redirect/inbound/port").and_then(port))
        .or_else(|| noted(PORT_ANNOTATION))
        .or(Mesh::Kuma.inbound_port());
    let v6 = flag(PORT_V6)
        .and_then(number)
        .or_else(|| noted(PORT_V6_ANNOTATION))
        .or(v4);
    let families = flag(FAMILIES)
        .or_else(|| text("/ipFamilyMode"))
        .or_else(|| annotation(pod, FAMILIES_ANNOTATION));
    let is_off = match flag(ENABLED) {
        Some(enabled) => enabled == "false",
        None => match configured("/redirect/inbound/enabled").and_then(Value::as_bool) {
            Some(enabled) => !enabled,
            None => matches!(annotation(pod, GATEWAY), Some("enabled" | "true")),
        },
    };
    let redirected = |port: &u16| *port != 0 && !is_off;
    Inbound {
        v4: v4.filter(redirected),
        v6: v6.filter(redirected).filter(|_| families != Some("ipv4")),
        taken: taken(pod, &config, flag(EXCLUDED)),
    }
}

fn taken(pod: &Pod, config: &Value, excluded: Option<&str>) -> Ports {
    let configured = |path: &str| config.pointer(path).and_then(port_list);
    let excluded = match excluded {
        Some(list) => ranges(list),
        None => configured("/redirect/inbound/excludePorts")
            .unwrap_or_else(|| ranges(annotation(pod, EXCLUDED_ANNOTATION).unwrap_or_default())),
    };
    // Included ports take precedence (kuma pkg/transparentproxy/iptables/builder/builder_table_nat.go).
    match configured("/redirect/inbound/includePorts") {
        Some(included) if !included.is_empty() => Ports::Only(included),
        _ => Ports::AllBut(excluded),
    }
}

/// The configuration in the annotation, or in the init container's arguments; `Null` if there is none.
fn config(pod: &Pod) -> Value {
    let text = annotation(pod, CONFIG).or_else(|| {
        let given = named(pod, &INIT).find_map(|init| Flag::long("config").of(init));
        given.filter(|text| text.contains(':'))
    });
    let parsed = text.and_then(|text| {
        let documents = yaml::tree::parse(text).ok()?;
        documents.first()?.to_json(1).ok()
    });
    parsed.unwrap_or_default()
}
