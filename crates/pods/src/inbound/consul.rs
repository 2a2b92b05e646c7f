//! Consul: its redirect configuration (consul sdk/iptables `Config`), and annotations.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::{both, port, port_list, ranges};
use crate::mesh::{annotation, consul_traffic};
use model::Mesh;
use model::inbound::{Inbound, Ports};

const EXCLUDED: &str = "consul.hashicorp.com/transparent-proxy-exclude-inbound-ports";

pub(super) fn inbound(pod: &Pod) -> Inbound {
    let config: Value = consul_traffic(pod)
        .and_then(|config| serde_json::from_str(config).ok())
        .unwrap_or_default();
    let in_config = config.get("ProxyInboundPort").and_then(port);
    let excluded = config.get("ExcludeInboundPorts").and_then(port_list);
    let excluded =
        excluded.unwrap_or_else(|| ranges(annotation(pod, EXCLUDED).unwrap_or_default()));
    both(
        in_config.or(Mesh::Consul.inbound_port()),
        Ports::AllBut(excluded),
    )
}
