//! Istio ambient: the rules of istio-cni in an enrolled pod, with DNS capture, its default (istio 86c9f01,
//! cni/pkg/iptables/iptables.go). ztunnel's own connections carry mark 0x539.

use super::{Family, Step, restore};

pub(super) fn steps() -> Vec<Step> {
    routes().chain(rules()).collect()
}

/// Connections of ztunnel, and the app's answers to them, stay in the pod.
fn routes() -> impl Iterator<Item = Step> {
    [("-4", "0.0.0.0/0"), ("-6", "::/0")]
        .into_iter()
        .map(|(family, all)| Step {
            program: "ip",
            args: vec![family, "-batch", "-"],
            stdin: format!(
                "rule add fwmark 0x111/0xfff pref 32764 lookup 100\nroute add local {all} dev lo table 100\n"
            ),
        })
}

fn rules() -> Vec<Step> {
    restore(
        |Family {
             loopback,
             probe_source,
             ..
         }| {
            format!(
                "*mangle\n\
             -N ISTIO_PRERT\n\
             -N ISTIO_OUTPUT\n\
             -A PREROUTING -j ISTIO_PRERT\n\
             -A OUTPUT -j ISTIO_OUTPUT\n\
             -A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff\n\
             -A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark \
             --nfmask 0xffffffff --ctmask 0xffffffff\n\
             COMMIT\n\
             *nat\n\
             -N ISTIO_PRERT\n\
             -N ISTIO_OUTPUT\n\
             -A PREROUTING -j ISTIO_PRERT\n\
             -A OUTPUT -j ISTIO_OUTPUT\n\
             -A ISTIO_PRERT -s {probe_source} -p tcp -m tcp -j ACCEPT\n\
             -A ISTIO_PRERT ! -d {loopback} -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff \
             -j REDIRECT --to-ports 15006\n\
             -A ISTIO_OUTPUT -d {probe_source} -p tcp -m tcp -j ACCEPT\n\
             -A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 \
             -j REDIRECT --to-port 15053\n\
             -A ISTIO_OUTPUT ! -d {loopback} -p tcp --dport 53 -m mark ! --mark 0x539/0xfff \
             -j REDIRECT --to-ports 15053\n\
             -A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT\n\
             -A ISTIO_OUTPUT ! -d {loopback} -o lo -j ACCEPT\n\
             -A ISTIO_OUTPUT ! -d {loopback} -p tcp -m mark ! --mark 0x539/0xfff \
             -j REDIRECT --to-ports 15001\n\
             COMMIT\n"
            )
        },
    )
}
