//! Istio's sidecar, TPROXY mode (istio 86c9f01, tools/istio-iptables/pkg/capture/run.go and its
//! golden files): inbound with mangle rules and policy routing, outbound as in REDIRECT mode.

use super::istio::{Variant, output_chains};
use super::{Family, Step, restore};

pub(super) fn steps() -> Vec<Step> {
    let mut steps = restore(|family| {
        let Family {
            loopback,
            passthrough_source,
            ..
        } = family;
        let mut rules = format!(
            "*mangle\n\
             -N ISTIO_DIVERT\n\
             -N ISTIO_TPROXY\n\
             -N ISTIO_INBOUND\n\
             -A ISTIO_DIVERT -j MARK --set-mark 1337\n\
             -A ISTIO_DIVERT -j ACCEPT\n\
             -A ISTIO_TPROXY ! -d {loopback} -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff \
             --on-port 15006\n\
             -A PREROUTING -p tcp -j ISTIO_INBOUND\n\
             -A ISTIO_INBOUND -p tcp -m mark --mark 1337 -j RETURN\n\
             -A ISTIO_INBOUND -p tcp -s {passthrough_source} -i lo -j RETURN\n\
             -A ISTIO_INBOUND -p tcp -i lo -m mark ! --mark 1338 -j RETURN\n"
        );
        for port in [15090, 15021, 15020] {
            rules += &format!("-A ISTIO_INBOUND -p tcp --dport {port} -j RETURN\n");
        }
        rules += &format!(
            "-A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT\n\
             -A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY\n\
             -A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark\n\
             -A OUTPUT -p tcp -o lo -m mark --mark 1337 -j RETURN\n\
             -A OUTPUT ! -d {loopback} -p tcp -o lo -m owner --uid-owner 1337 -j MARK \
             --set-mark 1338\n\
             -A OUTPUT ! -d {loopback} -p tcp -o lo -m owner --gid-owner 1337 -j MARK \
             --set-mark 1338\n\
             -A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark\n\
             COMMIT\n"
        );
        rules += "*nat\n";
        rules += &output_chains(family, Variant::Plain);
        rules += "COMMIT\n";
        rules
    });
    for (family, default) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        steps.push(Step {
            program: "ip",
            args: vec![family, "-batch", "-"],
            stdin: format!(
                "rule add fwmark 1337 lookup 133\nroute add local {default} dev lo table 133\n"
            ),
        });
    }
    steps
}
