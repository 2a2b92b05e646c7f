//! The redirect rules and other settings of each mesh in its pods.
//!
//! One file per mesh. The rules are written manually. They equal those that the mesh's own tools create for
//! a pod without special annotations, with both address families; each file names its source and the
//! commit.

mod ambient;
mod consul;
mod istio;
mod istio_nft;
mod istio_tproxy;
mod kuma;
mod linkerd;

use std::fmt;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command;
use crate::netns::NetNs;
use crate::sidecar::Refusal;

/// A mesh's rule set in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleSet {
    /// A pod without a mesh.
    None,
    /// Istio sidecar, REDIRECT, with the nftables backend of iptables.
    IstioRedirect,
    /// Istio sidecar, REDIRECT, with the legacy backend of iptables.
    IstioRedirectLegacy,
    /// Istio sidecar, REDIRECT, to other ports than the default ones (`meshConfig.proxyInboundListenPort`).
    IstioPorts,
    /// Istio sidecar, TPROXY.
    IstioTproxy,
    /// Istio sidecar, REDIRECT, with nftables' own rules (`global.nativeNftables`).
    IstioNft,
    /// Istio sidecar, REDIRECT, without rules for IPv6: Istio's default in a pod whose IPv4 address comes first, unless dual
    /// stack is enabled. Not in [`RuleSet::all`], because nothing is captured over IPv6.
    IstioIpv4,
    /// Istio sidecar, REDIRECT, with DNS capture of all servers.
    IstioDns,
    /// Istio sidecar, REDIRECT, with a loopback range and the pods' range in
    /// `includeOutboundIPRanges`.
    IstioLoopbackRange,
    /// Istio ambient: ztunnel's rules in the pod.
    IstioAmbient,
    /// Linkerd.
    Linkerd,
    /// Kuma.
    Kuma,
    /// Consul Connect with transparent proxy. Consul's own tool creates only IPv4 rules; the IPv6
    /// rules here are derived from them.
    Consul,
}

/// The reason why this machine does not support a rule set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl std::error::Error for Unavailable {}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a mesh's proxy runs in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Name of its container.
    pub container: &'static str,
    /// The port to which the rules redirect inbound connections.
    pub inbound_port: u16,
    /// The port to which the rules redirect outbound connections.
    pub outbound_port: u16,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Packet mark of its own connections, by which ambient's rules identify them.
    pub mark: Option<u32>,
    /// Whether it connects to the app from `127.0.0.6` and `::6`.
    pub passthrough_source: bool,
    /// Whether its inbound listener accepts connections to addresses that are not its own, and it connects to the app from
    /// the client's address (TPROXY).
    pub transparent: bool,
    /// How it ends a plaintext connection.
    pub refusal: Refusal,
}

/// One command that applies rules in a namespace.
struct Step {
    program: &'static str,
    args: Vec<&'static str>,
    stdin: String,
}

/// Values that differ between the families in otherwise equal rules.
#[derive(Clone, Copy)]
struct Family {
    loopback: &'static str,
    passthrough_source: &'static str,
    /// The range of all pod addresses in the testbed.
    pods: &'static str,
    /// A range of loopback addresses; IPv6 has only one.
    loopback_range: &'static str,
    probe_source: &'static str,
}

const IPV4: Family = Family {
    loopback: "127.0.0.1/32",
    passthrough_source: "127.0.0.6/32",
    pods: "10.0.0.0/8",
    loopback_range: "127.1.0.0/16",
    probe_source: "169.254.7.127",
};
const IPV6: Family = Family {
    loopback: "::1/128",
    passthrough_source: "::6/128",
    pods: "fd00::/8",
    loopback_range: "::1/128",
    probe_source: "fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
};

impl RuleSet {
    /// The rule set with that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Self> {
        let found = Self::all().iter().find(|rules| rules.name() == name);
        found.copied().with_context(|| {
            let names: Vec<_> = Self::all().iter().map(|rules| rules.name()).collect();
            format!(
                "unknown rule set {name:?}: expected one of {}",
                names.join(", ")
            )
        })
    }

    /// Every mesh's rules, without [`RuleSet::None`].
    pub const fn all() -> &'static [Self] {
        &[
            Self::IstioRedirect,
            Self::IstioRedirectLegacy,
            Self::IstioPorts,
            Self::IstioTproxy,
            Self::IstioNft,
            Self::IstioDns,
            Self::IstioLoopbackRange,
            Self::IstioAmbient,
            Self::Linkerd,
            Self::Kuma,
            Self::Consul,
        ]
    }

    /// Name in tables; letters, digits and dashes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::IstioRedirect => "istio-redirect",
            Self::IstioRedirectLegacy => "istio-redirect-legacy",
            Self::IstioPorts => "istio-ports",
            Self::IstioTproxy => "istio-tproxy",
            Self::IstioNft => "istio-nft",
            Self::IstioIpv4 => "istio-ipv4",
            Self::IstioDns => "istio-dns",
            Self::IstioLoopbackRange => "istio-loopback-range",
            Self::IstioAmbient => "istio-ambient",
            Self::Linkerd => "linkerd",
            Self::Kuma => "kuma",
            Self::Consul => "consul",
        }
    }

    /// How this mesh's proxy runs; `None` for [`RuleSet::None`].
    pub const fn proxy(self) -> Option<Proxy> {
        let istio = Proxy {
            container: "istio-proxy",
            inbound_port: 15006,
            outbound_port: 15001,
            uid: 1337,
            gid: 1337,
            mark: None,
            passthrough_source: true,
            transparent: false,
            refusal: Refusal::Reset,
        };
        Some(match self {
            Self::None => return None,
            Self::IstioRedirect
            | Self::IstioRedirectLegacy
            | Self::IstioNft
            | Self::IstioIpv4
            | Self::IstioDns
            | Self::IstioLoopbackRange => istio,
            Self::IstioPorts => Proxy {
                inbound_port: istio::OTHER_INBOUND,
                outbound_port: istio::OTHER_OUTBOUND,
                ..istio
            },
            // Binding the address of another host requires CAP_NET_ADMIN.
            Self::IstioTproxy => Proxy {
                uid: 0,
                mark: Some(1337),
                passthrough_source: false,
                transparent: true,
                ..istio
            },
            // ztunnel has no container in the pod, only sockets.
            Self::IstioAmbient => Proxy {
                container: "ztunnel",
                uid: 0,
                gid: 0,
                mark: Some(0x539),
                passthrough_source: false,
                refusal: Refusal::CloseOrReset,
                ..istio
            },
            Self::Linkerd => Proxy {
                container: "linkerd-proxy",
                inbound_port: 4143,
                outbound_port: 4140,
                uid: 2102,
                gid: 2102,
                passthrough_source: false,
                refusal: Refusal::Deny,
                ..istio
            },
            Self::Kuma => Proxy {
                container: "kuma-sidecar",
                uid: 5678,
                gid: 5678,
                refusal: Refusal::Close,
                ..istio
            },
            Self::Consul => Proxy {
                container: "consul-dataplane",
                inbound_port: 20000,
                uid: 5995,
                gid: 5995,
                passthrough_source: false,
                refusal: Refusal::Close,
                ..istio
            },
        })
    }

    /// Whether the pod's own connections to TCP port 53 go to the mesh's resolver.
    pub const fn captures_dns(self) -> bool {
        matches!(self, Self::IstioDns | Self::IstioAmbient)
    }

    /// Whether pilot-agent answers on 15020 in such a pod.
    pub const fn has_pilot_agent(self) -> bool {
        matches!(
            self,
            Self::IstioRedirect
                | Self::IstioRedirectLegacy
                | Self::IstioPorts
                | Self::IstioTproxy
                | Self::IstioNft
                | Self::IstioIpv4
                | Self::IstioDns
                | Self::IstioLoopbackRange
        )
    }

    /// The container that the mesh adds to the Pod, by which it is recognised.
    pub const fn sidecar_container(self) -> Option<&'static str> {
        match (self, self.proxy()) {
            (Self::IstioAmbient, _) | (_, None) => None,
            (_, Some(proxy)) => Some(proxy.container),
        }
    }

    /// The annotations that the mesh writes on the Pod.
    pub const fn annotations(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::None => &[],
            Self::IstioTproxy => &[
                ("sidecar.istio.io/status", ISTIO_STATUS),
                ("sidecar.istio.io/interceptionMode", "TPROXY"),
            ],
            Self::IstioLoopbackRange => &[
                ("sidecar.istio.io/status", ISTIO_STATUS),
                (
                    "traffic.sidecar.istio.io/includeOutboundIPRanges",
                    "127.1.0.0/16,::1/128,10.0.0.0/8,fd00::/8",
                ),
            ],
            Self::IstioRedirect
            | Self::IstioRedirectLegacy
            | Self::IstioPorts
            | Self::IstioNft
            | Self::IstioIpv4
            | Self::IstioDns => &[("sidecar.istio.io/status", ISTIO_STATUS)],
            Self::IstioAmbient => &[("ambient.istio.io/redirection", "enabled")],
            Self::Linkerd => &[("linkerd.io/proxy-version", "stable")],
            Self::Kuma => &[("kuma.io/sidecar-injected", "true")],
            Self::Consul => &[
                ("consul.hashicorp.com/connect-inject-status", "injected"),
                ("consul.hashicorp.com/transparent-proxy-status", "enabled"),
            ],
        }
    }

    /// The init container that the mesh adds to the Pod, if it is known from its arguments which ports are redirected.
    pub fn init_container(self) -> Option<Value> {
        let proxy = self.proxy().filter(|_| self.has_pilot_agent())?;
        let mode = match proxy.transparent {
            true => "TPROXY",
            false => "REDIRECT",
        };
        Some(json!({
            "name": "istio-init",
            "image": "proxyv2",
            "args": [
                "istio-iptables", "-p", proxy.outbound_port.to_string(), "-z", proxy.inbound_port.to_string(),
                "-u", "1337", "-m", mode, "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020",
                "--log_output_level=default:info",
            ],
        }))
    }

    /// Applies the rules in a namespace.
    ///
    /// # Errors
    /// Those of [`RuleSet::apply_here`].
    pub fn apply(self, ns: &NetNs) -> Result<()> {
        ns.run(move || self.apply_here())
    }

    /// Applies the rules in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Unavailable`] when this machine does not support them: a missing program or kernel module, with the
    /// message of the failed program. Any other failure is a mistake in the rules.
    pub fn apply_here(self) -> Result<()> {
        let steps = match self {
            Self::None => return Ok(()),
            Self::IstioRedirect => istio::steps(istio::Backend::Nft, istio::Variant::Plain),
            Self::IstioRedirectLegacy => {
                istio::steps(istio::Backend::Legacy, istio::Variant::Plain)
            }
            Self::IstioPorts => istio::steps(istio::Backend::Nft, istio::Variant::Ports),
            Self::IstioIpv4 => {
                let mut steps = istio::steps(istio::Backend::Nft, istio::Variant::Plain);
                steps.retain(|step| step.program == "iptables-nft-restore");
                steps
            }
            Self::IstioDns => istio::steps(istio::Backend::Nft, istio::Variant::Dns),
            Self::IstioLoopbackRange => {
                istio::steps(istio::Backend::Nft, istio::Variant::LoopbackRange)
            }
            Self::IstioTproxy => istio_tproxy::steps(),
            Self::IstioNft => istio_nft::steps(),
            Self::IstioAmbient => ambient::steps(),
            Self::Linkerd => linkerd::steps(),
            Self::Kuma => kuma::steps(),
            Self::Consul => consul::steps(),
        };
        steps
            .iter()
            .try_for_each(|step| {
                command::run(step.program, &step.args, &step.stdin)
                    .map(drop)
                    .context("putting the rules into the pod")
            })
            .map_err(|error| match is_missing(&error) {
                true => Unavailable(format!("{error:#}")).into(),
                false => error,
            })
    }
}

/// Whether a step failed because the machine lacks the program, or the kernel lacks a feature that it needs.
fn is_missing(error: &anyhow::Error) -> bool {
    /// The messages of iptables, ip6tables, nft and ip in that case.
    const WORDS: [&str; 7] = [
        "do you need to insmod",
        "can't initialize ip",
        "missing kernel module",
        "Couldn't load match",
        "Couldn't load target",
        "Could not fetch rule set generation id",
        "Operation not supported",
    ];
    let no_program = error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    let text = format!("{error:#}");
    no_program || WORDS.iter().any(|words| text.contains(words))
}

const ISTIO_STATUS: &str =
    r#"{"initContainers":["istio-init"],"containers":["istio-proxy"],"revision":"default"}"#;

/// Loads iptables rules, IPv4 and IPv6, with the nftables backend.
fn restore(rules: impl Fn(Family) -> String) -> Vec<Step> {
    restore_with("iptables-nft-restore", "ip6tables-nft-restore", rules)
}

fn restore_with(v4: &'static str, v6: &'static str, rules: impl Fn(Family) -> String) -> Vec<Step> {
    [(v4, IPV4), (v6, IPV6)]
        .into_iter()
        .map(|(program, family)| Step {
            program,
            args: vec!["--noflush"],
            stdin: rules(family),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_machine_lacks_is_unavailable() {
        let missing =
            command::run("no-such-program", &[], "").context("putting the rules into the pod");
        assert!(is_missing(&missing.expect_err("there is none")));
        for (said, is_so) in [
            (
                "iptables v1.8.9 (legacy): can't initialize iptables table `nat': Table does not exist (do you need to insmod?)",
                true,
            ),
            (
                "Warning: Extension TPROXY revision 0 not supported, missing kernel module?",
                true,
            ),
            ("Bad argument `--to-prots'", false),
            ("Error: syntax error, unexpected string", false),
            ("Another app is currently holding the xtables lock", false),
        ] {
            assert_eq!(
                is_missing(&anyhow::anyhow!("{said} (exit status: 2)")),
                is_so,
                "{said}"
            );
        }
    }
}
