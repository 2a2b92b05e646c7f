//! Consul Connect with transparent proxy (consul 5123e1e, sdk/iptables/iptables.go), proxy user 5995.
//! Loopback is not exempt: only the proxy's own user and 127.0.0.1 are not redirected.

use super::{Family, Step, restore};

pub(super) fn steps() -> Vec<Step> {
    restore(|Family { loopback, .. }| {
        format!(
            "*nat\n\
             -N CONSUL_PROXY_INBOUND\n\
             -N CONSUL_PROXY_IN_REDIRECT\n\
             -N CONSUL_PROXY_OUTPUT\n\
             -N CONSUL_PROXY_REDIRECT\n\
             -A CONSUL_PROXY_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n\
             -A OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT\n\
             -A CONSUL_PROXY_OUTPUT -m owner --uid-owner 5995 -j RETURN\n\
             -A CONSUL_PROXY_OUTPUT -d {loopback} -j RETURN\n\
             -A CONSUL_PROXY_OUTPUT -j CONSUL_PROXY_REDIRECT\n\
             -A CONSUL_PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-ports 20000\n\
             -A PREROUTING -p tcp -j CONSUL_PROXY_INBOUND\n\
             -A CONSUL_PROXY_INBOUND -p tcp -j CONSUL_PROXY_IN_REDIRECT\n\
             COMMIT\n"
        )
    })
}
