//! Why rules can't be installed in a pod, and what to do about it.

use std::io;

use super::message::Part;
use super::rules::Family;

/// The kernel does not accept the rules.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pod's namespace can't be entered, or a netlink socket can't be opened in it.
    #[error("cannot open a netlink socket in the pod's network namespace")]
    Socket(#[source] io::Error),
    /// The kernel lacks a feature that the rules need.
    #[error("the kernel has {missing} for family {}", family.name())]
    Missing {
        /// The family of the rules.
        family: Family,
        /// The missing feature.
        missing: Missing,
    },
    /// The kernel refuses the rules for another reason.
    #[error("the kernel refuses the rules of family {} ({part})", family.name())]
    Refused {
        /// The family of the rules.
        family: Family,
        /// The refused part.
        part: Part,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A feature that the rules need and that a kernel may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// nftables.
    NfTables,
    /// Support for iptables matches in nftables.
    Compat,
    /// The match that runs a BPF program.
    BpfMatch,
    /// Access to conntrack in nftables.
    Conntrack,
    /// Per-connection timeouts in conntrack.
    CtTimeout,
    /// NAT in nftables.
    Nat,
}

impl Missing {
    /// The module's name for modprobe(8), and the kernel's build option.
    pub const fn module(self) -> (&'static str, &'static str) {
        match self {
            Self::NfTables => ("nf_tables", "CONFIG_NF_TABLES"),
            Self::Compat => ("nft_compat", "CONFIG_NFT_COMPAT"),
            Self::BpfMatch => ("xt_bpf", "CONFIG_NETFILTER_XT_MATCH_BPF"),
            Self::Conntrack => ("nft_ct", "CONFIG_NFT_CT"),
            Self::CtTimeout => ("nft_ct", "CONFIG_NF_CONNTRACK_TIMEOUT"),
            Self::Nat => ("nft_chain_nat", "CONFIG_NFT_NAT"),
        }
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NfTables => "no nftables",
            Self::Compat => "no support for iptables matches in nftables",
            Self::BpfMatch => "no match that runs a BPF program",
            Self::Conntrack => "no access to conntrack in nftables",
            Self::CtTimeout => "no per-connection timeouts in conntrack",
            Self::Nat => "no NAT in nftables",
        })
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Transaction => f.write_str("the transaction"),
            Self::Table => f.write_str("the table"),
            Self::Timeout => f.write_str("the timeout policy"),
            Self::Chain => f.write_str("a chain"),
            Self::NatChain => f.write_str("the NAT chain"),
            Self::Rule => f.write_str("a rule"),
            Self::Expression(name) => write!(f, "expression {name}"),
        }
    }
}

impl Error {
    /// Whether the error is that the table exists already.
    pub(super) fn is_there_already(&self) -> bool {
        matches!(self, Self::Refused { part: Part::Table, source, .. }
            if source.raw_os_error() == Some(libc::EEXIST))
    }

    /// What to do about the error.
    pub fn remedy(&self) -> String {
        match self {
            Self::Missing { missing, .. } => {
                let (module, option) = missing.module();
                format!(
                    "load module {module} on the node (`modprobe {module}`), or use a kernel with {option}; until then \
                     the handler serves the pod"
                )
            }
            Self::Refused { source, .. } | Self::Socket(source)
                if source.raw_os_error() == Some(libc::EPERM) =>
            {
                "the daemon needs CAP_NET_ADMIN, and a seccomp profile that allows netlink; until then the handler \
                 serves the pod"
                    .to_owned()
            }
            Self::Refused { .. } | Self::Socket(_) => {
                "the handler serves the pod meanwhile; `nft list ruleset` in the pod's network namespace shows the \
                 current rules"
                    .to_owned()
            }
        }
    }

    /// The message for the operator: the error with its causes, and what to do.
    pub fn told(self) -> String {
        let remedy = self.remedy();
        format!("{:#}; {remedy}", anyhow::Error::from(self))
    }
}

/// The feature whose absence makes the kernel refuse `part` with `errno`; `None` if there is another reason.
/// `has_compat` returns whether nft_compat is available.
pub(super) fn missing(
    part: Part,
    errno: i32,
    has_compat: impl FnOnce() -> bool,
) -> Option<Missing> {
    let is_missing = matches!(
        errno,
        libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT
    );
    if !is_missing {
        return None;
    }
    match part {
        Part::Transaction | Part::Table | Part::Chain => Some(Missing::NfTables),
        Part::Timeout => Some(Missing::CtTimeout),
        Part::NatChain | Part::Expression("nat") => Some(Missing::Nat),
        Part::Expression("ct") => Some(Missing::Conntrack),
        Part::Expression("objref") => Some(Missing::CtTimeout),
        Part::Expression("match") if has_compat() => Some(Missing::BpfMatch),
        Part::Expression("match") => Some(Missing::Compat),
        Part::Rule | Part::Expression(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refused_part_shows_which_feature_is_missing() {
        let missing_for = |part, errno, has_compat: bool| missing(part, errno, || has_compat);
        for (part, expected) in [
            (Part::Transaction, Missing::NfTables),
            (Part::Timeout, Missing::CtTimeout),
            (Part::NatChain, Missing::Nat),
            (Part::Expression("nat"), Missing::Nat),
            (Part::Expression("match"), Missing::BpfMatch),
        ] {
            assert_eq!(missing_for(part, libc::ENOENT, true), Some(expected));
            assert_eq!(missing_for(part, libc::EOPNOTSUPP, true), Some(expected));
            assert_eq!(
                missing_for(part, libc::EPERM, true),
                None,
                "EPERM means forbidden, not missing"
            );
        }
        let compat = missing_for(Part::Expression("match"), libc::ENOENT, false);
        assert_eq!(compat, Some(Missing::Compat));
        assert_eq!(missing_for(Part::Rule, libc::ENOENT, true), None);
    }

    #[test]
    fn an_error_names_the_module_to_load() {
        let error = Error::Missing {
            family: Family::V4,
            missing: Missing::BpfMatch,
        };
        let text = error.told();
        assert!(text.contains("modprobe xt_bpf"), "{text}");
        assert!(text.contains("family ip"), "{text}");
    }
}
