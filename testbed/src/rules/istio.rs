//! Istio's sidecar, REDIRECT mode, with iptables (istio 86c9f01, tools/istio-iptables/pkg/capture/run.go
//! and its golden files), inbound ports `*`, proxy user and group 1337.

use super::{Family, Step, restore_with};

/// Which iptables.
#[derive(Clone, Copy)]
pub(super) enum Backend {
    Nft,
    Legacy,
}

/// `meshConfig.proxyInboundListenPort` and `proxyListenPort` of a mesh that sets them.
pub(super) const OTHER_INBOUND: u16 = 15106;
pub(super) const OTHER_OUTBOUND: u16 = 15101;

/// What the mesh's configuration adds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    Plain,
    /// [`OTHER_INBOUND`] and [`OTHER_OUTBOUND`] instead of the default ports.
    Ports,
    /// DNS capture of all servers: TCP and UDP port 53 go to 15053, also towards the pod itself.
    Dns,
    /// A loopback range in the included outbound ranges removes the exemption of loopback.
    LoopbackRange,
}

pub(super) fn steps(backend: Backend, variant: Variant) -> Vec<Step> {
    let (v4, v6) = match backend {
        Backend::Nft => ("iptables-nft-restore", "ip6tables-nft-restore"),
        Backend::Legacy => ("iptables-legacy-restore", "ip6tables-legacy-restore"),
    };
    restore_with(v4, v6, |family| {
        let mut rules = String::from("*nat\n");
        rules += "-N ISTIO_INBOUND\n-A PREROUTING -p tcp -j ISTIO_INBOUND\n";
        rules += "-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN\n";
        for port in [15090, 15021, 15020] {
            rules += &format!("-A ISTIO_INBOUND -p tcp --dport {port} -j RETURN\n");
        }
        rules += &output_chains(family, variant);
        rules += "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\nCOMMIT\n";
        match variant {
            Variant::Dns => rules + RAW_DNS,
            Variant::Ports => rules
                .replace("--to-ports 15006", &format!("--to-ports {OTHER_INBOUND}"))
                .replace("--to-ports 15001", &format!("--to-ports {OTHER_OUTBOUND}")),
            Variant::Plain | Variant::LoopbackRange => rules,
        }
    })
}

/// The chains that TPROXY mode also uses.
pub(super) fn output_chains(family: Family, variant: Variant) -> String {
    let Family {
        loopback,
        passthrough_source,
        pods,
        loopback_range,
        ..
    } = family;
    let mut rules = format!(
        "-N ISTIO_REDIRECT\n\
         -N ISTIO_IN_REDIRECT\n\
         -N ISTIO_OUTPUT\n\
         -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n\
         -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006\n\
         -A OUTPUT -j ISTIO_OUTPUT\n\
         -A ISTIO_OUTPUT -o lo -s {passthrough_source} -j RETURN\n"
    );
    for owner in ["uid", "gid"] {
        let not_dns_nor_hbone = match (variant, owner) {
            (Variant::Dns, "uid") => "-m multiport ! --dports 53,15008",
            _ => "! --dport 15008",
        };
        rules += &format!(
            "-A ISTIO_OUTPUT -o lo ! -d {loopback} -p tcp {not_dns_nor_hbone} \
             -m owner --{owner}-owner 1337 -j ISTIO_IN_REDIRECT\n"
        );
        rules += &match variant {
            Variant::Plain | Variant::Ports => {
                format!("-A ISTIO_OUTPUT -o lo -m owner ! --{owner}-owner 1337 -j RETURN\n")
            }
            Variant::Dns => format!(
                "-A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --{owner}-owner 1337 \
                 -j RETURN\n"
            ),
            Variant::LoopbackRange => String::new(),
        };
        rules += &format!("-A ISTIO_OUTPUT -m owner --{owner}-owner 1337 -j RETURN\n");
    }
    if variant == Variant::Dns {
        rules += "-N ISTIO_OUTPUT_DNS\n\
                  -A ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS\n\
                  -A ISTIO_OUTPUT_DNS -p tcp --dport 53 -j REDIRECT --to-ports 15053\n\
                  -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --uid-owner 1337 -j RETURN\n\
                  -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --gid-owner 1337 -j RETURN\n\
                  -A ISTIO_OUTPUT_DNS -p udp --dport 53 -j REDIRECT --to-ports 15053\n";
    }
    rules += &format!("-A ISTIO_OUTPUT -d {loopback} -j RETURN\n");
    rules += &match variant {
        Variant::LoopbackRange => format!(
            "-A ISTIO_OUTPUT -d {loopback_range} -j ISTIO_REDIRECT\n\
             -A ISTIO_OUTPUT -d {pods} -j ISTIO_REDIRECT\n"
        ),
        Variant::Plain | Variant::Ports | Variant::Dns => {
            "-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n".to_owned()
        }
    };
    rules
}

/// Conntrack zones, so that captured and upstream DNS do not share an entry.
const RAW_DNS: &str = "*raw\n\
    -N ISTIO_OUTPUT_DNS\n\
    -N ISTIO_INBOUND\n\
    -A OUTPUT -j ISTIO_OUTPUT_DNS\n\
    -A PREROUTING -j ISTIO_INBOUND\n\
    -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --uid-owner 1337 -j CT --zone 1\n\
    -A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --uid-owner 1337 -j CT --zone 2\n\
    -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --gid-owner 1337 -j CT --zone 1\n\
    -A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --gid-owner 1337 -j CT --zone 2\n\
    -A ISTIO_OUTPUT_DNS -p udp --dport 53 -j CT --zone 2\n\
    -A ISTIO_INBOUND -p udp --sport 53 -j CT --zone 1\n\
    COMMIT\n";
