//! Why our rules can't be in a pod, and what to do about it.

use std::io;

use super::message::Part;
use super::rules::Family;

/// The pod's kernel does not take our rules.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pod's namespace can't be entered, or has no socket for it.
    #[error("no netlink socket in the pod's network namespace")]
    Socket(#[source] io::Error),
    /// What our rules need is not there.
    #[error("the kernel has {missing} for family {}", family.name())]
    Missing {
        /// Of which family the rules are.
        family: Family,
        /// What is missing.
        missing: Missing,
    },
    /// The kernel refuses them for another reason.
    #[error("the kernel refuses the rules of family {} ({part})", family.name())]
    Refused {
        /// Of which family the rules are.
        family: Family,
        /// What it refuses.
        part: Part,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What our rules need, and a kernel may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// nftables.
    NfTables,
    /// iptables' matches for nftables.
    Compat,
    /// The match that asks a BPF program.
    BpfMatch,
    /// nftables' view of conntrack.
    Conntrack,
    /// Timeouts for single connections.
    CtTimeout,
    /// NAT.
    Nat,
}

impl Missing {
    /// The module, as modprobe(8) knows it, and the option of the kernel's build.
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
            Self::Compat => "no iptables matches in nftables",
            Self::BpfMatch => "no match that asks a BPF program",
            Self::Conntrack => "no conntrack in nftables",
            Self::CtTimeout => "no timeouts for single connections in conntrack",
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
            Self::NatChain => f.write_str("the chain for NAT"),
            Self::Rule => f.write_str("a rule"),
            Self::Expression(name) => write!(f, "expression {name}"),
        }
    }
}

impl Error {
    /// Whether it is that our table is there already.
    pub(super) fn is_there_already(&self) -> bool {
        matches!(self, Self::Refused { part: Part::Table, source, .. }
            if source.raw_os_error() == Some(libc::EEXIST))
    }

    /// What to do about it.
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
                "the handler serves the pod meanwhile; `nft list ruleset` in the pod's network namespace shows what is \
                 there"
                    .to_owned()
            }
        }
    }

    /// All there is to tell an operator: the error with its causes, and what to do.
    pub fn told(self) -> String {
        let remedy = self.remedy();
        format!("{:#}; {remedy}", anyhow::Error::from(self))
    }
}

/// What is missing where the kernel refuses `part` with `errno`; none where it is something else. `has_compat` is
/// whether nft_compat is there.
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
    fn what_is_missing_follows_from_what_is_refused() {
        let told = |part, errno, has_compat: bool| missing(part, errno, || has_compat);
        for (part, expected) in [
            (Part::Transaction, Missing::NfTables),
            (Part::Timeout, Missing::CtTimeout),
            (Part::NatChain, Missing::Nat),
            (Part::Expression("nat"), Missing::Nat),
            (Part::Expression("match"), Missing::BpfMatch),
        ] {
            assert_eq!(told(part, libc::ENOENT, true), Some(expected));
            assert_eq!(told(part, libc::EOPNOTSUPP, true), Some(expected));
            assert_eq!(
                told(part, libc::EPERM, true),
                None,
                "forbidden is not missing"
            );
        }
        let compat = told(Part::Expression("match"), libc::ENOENT, false);
        assert_eq!(compat, Some(Missing::Compat));
        assert_eq!(told(Part::Rule, libc::ENOENT, true), None);
    }

    #[test]
    fn an_error_names_the_module_to_load() {
        let error = Error::Missing {
            family: Family::V4,
            missing: Missing::BpfMatch,
        };
        let told = error.told();
        assert!(told.contains("modprobe xt_bpf"), "{told}");
        assert!(told.contains("family ip"), "{told}");
    }
}
