//! Reads from a Pod which inbound connections its mesh redirects.
//!
//! A mesh's injector writes that into the Pod: as arguments and variables of the init container that makes the rules, or as
//! annotations. Arguments take precedence, because they can't change after the pod has started.

mod consul;
mod flags;
mod istio;
mod kuma;
mod linkerd;

use std::ops::RangeInclusive;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;

use crate::mesh::{annotation, containers};
use model::Mesh;
use model::inbound::{Inbound, Ports};

/// The inbound redirection of `pod`, which is in `mesh`. Settings that can't be read have the mesh's defaults.
pub fn of(pod: &Pod, mesh: Mesh) -> Inbound {
    match mesh {
        Mesh::Istio => istio::inbound(pod),
        Mesh::Linkerd => linkerd::inbound(pod),
        Mesh::Kuma => kuma::inbound(pod),
        Mesh::Consul => consul::inbound(pod),
        Mesh::Osm => {
            let excluded = annotation(pod, "openservicemesh.io/inbound-port-exclusion-list");
            both(
                mesh.inbound_port(),
                Ports::AllBut(ranges(excluded.unwrap_or_default())),
            )
        }
        // ztunnel listens in the pod's network namespace even where the app runs in a virtual machine (Kata) or has its
        // sockets in a sandbox (gVisor). So the app's port may be open although nothing listens on it in the namespace.
        Mesh::IstioAmbient if is_sandboxed(pod) => {
            both(mesh.inbound_port(), Ports::Only(Vec::new()))
        }
        Mesh::IstioAmbient | Mesh::Unknown => Inbound::by_default(mesh),
    }
}

/// The same port for both address families.
const fn both(port: Option<u16>, taken: Ports) -> Inbound {
    Inbound {
        v4: port,
        v6: port,
        taken,
    }
}

/// Whether the pod sets a runtime class: the app's sockets may not be in the pod's network namespace.
fn is_sandboxed(pod: &Pod) -> bool {
    let class = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.runtime_class_name.as_deref());
    class.is_some_and(|class| !class.is_empty())
}

/// The containers of `pod` with one of these names.
fn named<'a>(pod: &'a Pod, names: &'a [&str]) -> impl Iterator<Item = &'a Container> {
    containers(pod).filter(|container| names.contains(&container.name.as_str()))
}

/// The value of variable `name` of `container`.
fn variable<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    let mut env = container.env.iter().flatten();
    env.find(|env| env.name == name)?.value.as_deref()
}

/// A port of a JSON object: a number or its text.
fn port(value: &Value) -> Option<u16> {
    match value {
        Value::Number(port) => u16::try_from(port.as_u64()?).ok(),
        Value::String(port) => port.trim().parse().ok(),
        _ => None,
    }
}

/// A port list of a JSON object: a text as [`ranges`] reads it, or an array of ports and ranges.
fn port_list(value: &Value) -> Option<Vec<RangeInclusive<u16>>> {
    match value {
        Value::String(list) => Some(ranges(list)),
        Value::Number(_) => Some(ranges(&value.to_string())),
        Value::Array(items) => {
            let item = |item: &Value| match item {
                Value::String(text) => ranges(text),
                _ => port(item).map(|port| port..=port).into_iter().collect(),
            };
            Some(items.iter().flat_map(item).take(RANGES_LIMIT).collect())
        }
        _ => None,
    }
}

/// Reads `80,8000-8100`. Items that are not ports are ignored.
fn ranges(list: &str) -> Vec<RangeInclusive<u16>> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    // Prevents a pod from using up memory; real pods have fewer ranges.
    list.split(',')
        .filter_map(range)
        .take(RANGES_LIMIT)
        .collect()
}

/// Maximum number of port ranges kept for one pod.
const RANGES_LIMIT: usize = 256;

#[cfg(test)]
mod tests;
