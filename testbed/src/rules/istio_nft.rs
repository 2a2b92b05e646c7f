//! Istio's sidecar, REDIRECT mode, with native nftables rules (istio 86c9f01,
//! tools/istio-nftables/pkg/capture and its golden files): one table for both families.

use super::Step;

pub(super) fn steps() -> Vec<Step> {
    vec![Step {
        program: "nft",
        args: vec!["-f", "-"],
        stdin: RULES.to_owned(),
    }]
}

const RULES: &str = "
table inet istio-proxy-nat {
  chain istio-redirect { meta l4proto tcp redirect to :15001; }
  chain istio-in-redirect { meta l4proto tcp redirect to :15006; }
  chain istio-inbound {
    tcp dport 15008 return
    tcp dport { 15090, 15021, 15020 } return
    meta l4proto tcp jump istio-in-redirect
  }
  chain istio-output {
    oifname lo ip saddr 127.0.0.6/32 return
    oifname lo ip6 saddr ::6/128 return
    oifname lo ip daddr != 127.0.0.1/32 tcp dport != 15008 skuid 1337 jump istio-in-redirect
    oifname lo ip6 daddr != ::1/128 tcp dport != 15008 skuid 1337 jump istio-in-redirect
    oifname lo skuid != 1337 return
    skuid 1337 return
    oifname lo ip daddr != 127.0.0.1/32 tcp dport != 15008 skgid 1337 jump istio-in-redirect
    oifname lo ip6 daddr != ::1/128 tcp dport != 15008 skgid 1337 jump istio-in-redirect
    oifname lo skgid != 1337 return
    skgid 1337 return
    ip daddr 127.0.0.1/32 return
    ip6 daddr ::1/128 return
    jump istio-redirect
  }
  chain prerouting {
    type nat hook prerouting priority -100;
    meta l4proto tcp jump istio-inbound
  }
  chain output {
    type nat hook output priority -100;
    jump istio-output
  }
}
";
