//! Envoy's configuration in a pod of Istio: the listeners and clusters that Istio's control plane creates for a pod
//! (istio 86c9f01, pilot/pkg/networking/core), without routes, telemetry and services.

use std::path::Path;

use serde_json::{Value, json};

use crate::rules::Proxy;

/// The port of the admin server, at 127.0.0.1.
pub(super) const ADMIN: u16 = 15000;
const MARK: u32 = 1337;
const TYPES: &str = "type.googleapis.com/envoy.extensions";
/// Address families: a range of all addresses, the source of connections to the app, a name.
const FAMILIES: [(&str, &str, &str); 2] = [
    ("0.0.0.0", "127.0.0.6", "InboundPassthroughClusterIpv4"),
    ("::", "::6", "InboundPassthroughClusterIpv6"),
];

/// The settings that differ between pods.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The inbound port.
    pub inbound: u16,
    /// The outbound port.
    pub outbound: u16,
    /// TPROXY: Envoy accepts connections to the pod's address and connects to the app from the client's
    /// address.
    pub transparent: bool,
    /// Forwards plaintext too (PERMISSIVE).
    pub permissive: bool,
    /// The port whose requests it parses as HTTP; it forwards the bytes of all others.
    pub http: u16,
}

impl Settings {
    /// A STRICT sidecar that parses HTTP on `http`.
    pub const fn strict(proxy: Proxy, http: u16) -> Self {
        Self {
            inbound: proxy.inbound_port,
            outbound: proxy.outbound_port,
            transparent: proxy.transparent,
            permissive: false,
            http,
        }
    }

    /// PERMISSIVE instead of STRICT.
    #[must_use]
    pub const fn permissive(mut self) -> Self {
        self.permissive = true;
        self
    }
}

/// The whole configuration; `certificates` is the directory of the mesh's certificates.
pub(super) fn bootstrap(settings: Settings, certificates: &Path) -> Value {
    let mut clusters = vec![
        json!({
            "name": "BlackHoleCluster", "type": "STATIC", "connect_timeout": "10s",
        }),
        original_destination("PassthroughCluster", &[]),
        original_destination("inbound", &FAMILIES.map(|(_, source, _)| source)),
    ];
    clusters.extend(FAMILIES.map(|(_, source, name)| original_destination(name, &[source])));
    json!({
        "admin": {"address": address("127.0.0.1", ADMIN)},
        "static_resources": {
            "listeners": [inbound(settings, certificates), outbound(settings.outbound)],
            "clusters": clusters,
        },
    })
}

fn address(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}

/// A cluster that connects to the client's original destination, from the first of `sources` in its family.
fn original_destination(name: &str, sources: &[&str]) -> Value {
    let mut cluster = json!({
        "name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "10s",
    });
    let any_port = |ip: &str| json!({"address": ip, "port_value": 0});
    if let Some((first, others)) = sources.split_first() {
        let others: Vec<_> = others
            .iter()
            .map(|ip| json!({"address": any_port(ip)}))
            .collect();
        cluster["upstream_bind_config"] =
            json!({"source_address": any_port(first), "extra_source_addresses": others});
    }
    cluster
}

fn extension(name: &str, kind: &str, config: Value) -> Value {
    let mut config = config;
    config["@type"] = format!("{TYPES}.{kind}").into();
    json!({"name": name, "typed_config": config})
}

fn tcp_proxy(cluster: &str) -> Value {
    extension(
        "envoy.filters.network.tcp_proxy",
        "filters.network.tcp_proxy.v3.TcpProxy",
        json!({"stat_prefix": cluster, "cluster": cluster}),
    )
}

fn http_proxy(cluster: &str) -> Value {
    let router = extension(
        "envoy.filters.http.router",
        "filters.http.router.v3.Router",
        json!({}),
    );
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}});
    extension(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": cluster,
            "server_name": "istio-envoy",
            "http_filters": [router],
            "route_config": {"virtual_hosts": [{"name": "inbound", "domains": ["*"], "routes": [route]}]},
        }),
    )
}

fn listener_filter(name: &str, kind: &str, config: Value) -> Value {
    extension(
        &format!("envoy.filters.listener.{name}"),
        &format!("filters.listener.{name}.v3.{kind}"),
        config,
    )
}

fn inbound(settings: Settings, certificates: &Path) -> Value {
    let mut listener_filters = vec![listener_filter("original_dst", "OriginalDst", json!({}))];
    if settings.transparent {
        listener_filters.push(listener_filter(
            "original_src",
            "OriginalSrc",
            json!({"mark": MARK}),
        ));
    }
    listener_filters.push(listener_filter("tls_inspector", "TlsInspector", json!({})));
    let mut chains = vec![json!({
        "name": "virtualInbound-blackhole",
        "filter_chain_match": {"destination_port": settings.inbound},
        "filters": [tcp_proxy("BlackHoleCluster")],
    })];
    let protocols: &[_] = match settings.permissive {
        false => &["tls"],
        true => &["tls", "raw_buffer"],
    };
    for protocol in protocols {
        let mut add = |matched: Value, filter: Value| {
            let mut chain = json!({"filter_chain_match": matched, "filters": [filter]});
            chain["name"] = format!("{}", chains.len()).into();
            chain["filter_chain_match"]["transport_protocol"] = (*protocol).into();
            if *protocol == "tls" {
                chain["transport_socket"] = mutual_tls(certificates);
            }
            chains.push(chain);
        };
        add(
            json!({"destination_port": settings.http}),
            http_proxy("inbound"),
        );
        for (any, _, cluster) in FAMILIES {
            let range = json!([{"address_prefix": any, "prefix_len": 0}]);
            add(json!({"prefix_ranges": range}), tcp_proxy(cluster));
        }
    }
    json!({
        "name": "virtualInbound",
        "stat_prefix": "virtualInbound",
        "traffic_direction": "INBOUND",
        "address": address("0.0.0.0", settings.inbound),
        "additional_addresses": [{"address": address("::", settings.inbound)}],
        "transparent": settings.transparent,
        "listener_filters": listener_filters,
        "listener_filters_timeout": "0s",
        "continue_on_listener_filters_timeout": true,
        "filter_chains": chains,
    })
}

/// TLS that requires a certificate of the mesh.
fn mutual_tls(certificates: &Path) -> Value {
    let file = |name: &str| json!({"filename": certificates.join(name)});
    extension(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        json!({
            "require_client_certificate": true,
            "common_tls_context": {
                "tls_certificates": [{"certificate_chain": file("server.pem"), "private_key": file("server.key")}],
                "validation_context": {"trusted_ca": file("ca.pem")},
            },
        }),
    )
}

fn outbound(port: u16) -> Value {
    json!({
        "name": "virtualOutbound",
        "stat_prefix": "virtualOutbound",
        "traffic_direction": "OUTBOUND",
        "address": address("0.0.0.0", port),
        "additional_addresses": [{"address": address("::", port)}],
        "listener_filters": [listener_filter("original_dst", "OriginalDst", json!({}))],
        "filter_chains": [{"filters": [tcp_proxy("PassthroughCluster")]}],
    })
}

/// The inbound listener's counters of connections: forwarded or refused by TLS; without a filter chain; ended by the client
/// before, or by an error of, the listener filters.
pub(super) const FATES: [&str; 4] = [
    "downstream_cx_total",
    "no_filter_chain_match",
    "downstream_listener_filter_remote_close",
    "downstream_listener_filter_error",
];

/// The value of the statistic `name` in the admin server's text.
pub(super) fn value(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
    value.trim().parse().ok()
}

/// The values of the statistics `PREFIX...SUFFIX: value` in the admin server's text.
pub(super) fn values(text: &str, prefix: &str, suffix: &str) -> Vec<u64> {
    let value = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        let matches = name.starts_with(prefix) && name.ends_with(suffix);
        matches.then(|| value.trim().parse().ok()).flatten()
    };
    text.lines().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Settings = Settings {
        inbound: 15006,
        outbound: 15001,
        transparent: false,
        permissive: false,
        http: 8080,
    };

    fn chains(settings: Settings) -> Vec<Value> {
        let config = bootstrap(settings, Path::new("/certificates"));
        let listener = &config["static_resources"]["listeners"][0];
        let chains = listener["filter_chains"].as_array().cloned();
        chains.unwrap_or_default()
    }

    #[test]
    fn a_strict_sidecar_forwards_only_clients_with_a_certificate() {
        for chain in &chains(STRICT)[1..] {
            assert_eq!(chain["filter_chain_match"]["transport_protocol"], "tls");
            let tls = &chain["transport_socket"]["typed_config"];
            assert_eq!(tls["require_client_certificate"], true);
        }
    }

    #[test]
    fn a_permissive_sidecar_forwards_plaintext_too() {
        let plaintext =
            |chain: &Value| chain["filter_chain_match"]["transport_protocol"] == "raw_buffer";
        assert!(!chains(STRICT).iter().any(plaintext));
        let plain = chains(STRICT.permissive()).into_iter().filter(plaintext);
        assert!(plain.clone().count() > 0);
        for chain in plain {
            assert!(chain["transport_socket"].is_null());
        }
    }

    #[test]
    fn its_connections_to_the_app_come_from_the_address_that_the_rules_exempt() {
        let config = bootstrap(STRICT, Path::new("/certificates"));
        let clusters = config["static_resources"]["clusters"].to_string();
        for source in ["127.0.0.6", "::6"] {
            assert!(clusters.contains(&format!(r#""address":"{source}""#)));
        }
    }

    #[test]
    fn statistics_are_selected_by_the_ends_of_their_names() {
        let text = "listener.a.cx_total: 3\nlistener.b.cx_total: 4\nlistener.a.cx_active: 9\nserver.x: text\n";
        assert_eq!(values(text, "listener.", ".cx_total"), [3, 4]);
        assert_eq!(value(text, "listener.b.cx_total"), Some(4));
        assert_eq!(value(text, "listener.b.cx"), None);
        assert_eq!(value(text, "server.x"), None);
    }
}
