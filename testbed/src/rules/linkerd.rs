//! Linkerd (linkerd2-proxy-init 183e791, pkg/iptables/iptables.go), proxy user 2102, inbound 4143,
//! outbound 4140, with the ports that it skips by default.

use super::{Step, restore};

pub(super) fn steps() -> Vec<Step> {
    restore(|_| {
        "*nat\n\
         -N PROXY_INIT_REDIRECT\n\
         -A PROXY_INIT_REDIRECT -p tcp -m multiport --dports 4190,4191,4567,4568 -j RETURN\n\
         -A PROXY_INIT_REDIRECT -p tcp -j REDIRECT --to-ports 4143\n\
         -A PREROUTING -j PROXY_INIT_REDIRECT\n\
         -N PROXY_INIT_OUTPUT\n\
         -A PROXY_INIT_OUTPUT -m owner --uid-owner 2102 -j RETURN\n\
         -A PROXY_INIT_OUTPUT -o lo -j RETURN\n\
         -A PROXY_INIT_OUTPUT -p tcp -m multiport --dports 4567,4568 -j RETURN\n\
         -A PROXY_INIT_OUTPUT -p tcp -j REDIRECT --to-ports 4140\n\
         -A OUTPUT -j PROXY_INIT_OUTPUT\n\
         COMMIT\n"
            .to_owned()
    })
}
