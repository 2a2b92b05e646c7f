//! Linkerd: flags of proxy-init (linkerd2-proxy-init proxy-init/cmd/root.go), the proxy's variable, and annotations.

use k8s_openapi::api::core::v1::Pod;

use super::flags::Flag;
use super::{both, named, ranges, variable};
use crate::mesh::annotation;
use model::Mesh;
use model::inbound::{Inbound, Ports};

const INIT: [&str; 1] = ["linkerd-init"];
const PORT: Flag = Flag::new("incoming-proxy-port", 'p');
/// The only ports that are redirected.
const INCLUDED: Flag = Flag::new("ports-to-redirect", 'r');
const EXCLUDED: Flag = Flag::long("inbound-ports-to-ignore");
/// Variable of container linkerd-proxy (linkerd2 charts/partials/templates/_proxy.tpl).
pub(super) const LISTEN: &str = "LINKERD2_PROXY_INBOUND_LISTEN_ADDR";
/// Annotations that Linkerd's injector reads (linkerd2 pkg/k8s/labels.go).
pub(super) const PORT_ANNOTATION: &str = "config.linkerd.io/inbound-port";
const EXCLUDED_ANNOTATION: &str = "config.linkerd.io/skip-inbound-ports";

pub(super) fn inbound(pod: &Pod) -> Inbound {
    let flag = |flag: Flag| named(pod, &INIT).find_map(|init| flag.of(init));
    let listens = || {
        let listen = named(pod, &["linkerd-proxy"]).find_map(|proxy| variable(proxy, LISTEN))?;
        listen.rsplit_once(':')?.1.parse::<u16>().ok()
    };
    let number = |text: &str| text.trim().parse().ok();
    let port = flag(PORT)
        .and_then(number)
        .or_else(listens)
        .or_else(|| annotation(pod, PORT_ANNOTATION).and_then(number))
        .or(Mesh::Linkerd.inbound_port());
    let excluded = flag(EXCLUDED).or_else(|| annotation(pod, EXCLUDED_ANNOTATION));
    let excluded = ranges(excluded.unwrap_or_default());
    let taken = match flag(INCLUDED) {
        // Ignored ports take precedence (linkerd2-proxy-init pkg/iptables/iptables.go). This list has no ranges.
        Some(list) => {
            let mut included = ranges(list);
            included.retain(|one| !excluded.iter().any(|range| range.contains(one.start())));
            Ports::Only(included)
        }
        None => Ports::AllBut(excluded),
    };
    both(port, taken)
}
