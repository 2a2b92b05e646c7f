//! Kuma (kuma 348b652, pkg/transparentproxy/iptables/builder/builder_table_nat.go), proxy user 5678.

use super::{Family, Step, restore};

pub(super) fn steps() -> Vec<Step> {
    restore(
        |Family {
             loopback,
             passthrough_source,
             ..
         }| {
            format!(
                "*nat\n\
             -N KUMA_MESH_INBOUND\n\
             -N KUMA_MESH_OUTBOUND\n\
             -N KUMA_MESH_INBOUND_REDIRECT\n\
             -N KUMA_MESH_OUTBOUND_REDIRECT\n\
             -A PREROUTING -p tcp -j KUMA_MESH_INBOUND\n\
             -A OUTPUT -p tcp -j KUMA_MESH_OUTBOUND\n\
             -A KUMA_MESH_INBOUND -p tcp -j KUMA_MESH_INBOUND_REDIRECT\n\
             -A KUMA_MESH_OUTBOUND -s {passthrough_source} -o lo -j RETURN\n\
             -A KUMA_MESH_OUTBOUND -p tcp -o lo ! -d {loopback} -m owner --uid-owner 5678 \
             -j KUMA_MESH_INBOUND_REDIRECT\n\
             -A KUMA_MESH_OUTBOUND -p tcp -o lo -m owner ! --uid-owner 5678 -j RETURN\n\
             -A KUMA_MESH_OUTBOUND -m owner --uid-owner 5678 -j RETURN\n\
             -A KUMA_MESH_OUTBOUND -d {loopback} -j RETURN\n\
             -A KUMA_MESH_OUTBOUND -j KUMA_MESH_OUTBOUND_REDIRECT\n\
             -A KUMA_MESH_INBOUND_REDIRECT -p tcp -j REDIRECT --to-ports 15006\n\
             -A KUMA_MESH_OUTBOUND_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n\
             COMMIT\n"
            )
        },
    )
}
