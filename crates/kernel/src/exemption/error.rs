//! Why rules can't be installed in a pod, and what to do about it.

use std::io;
use std::path::PathBuf;

use super::expression::Program;
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
    /// The pin of the program to which the rules refer is gone.
    #[error("the pinned program {} does not exist", path.display())]
    NoPin {
        /// The pin.
        path: PathBuf,
    },
    /// The kernel lacks a feature that tc filters need.
    #[error("the kernel has {0}")]
    MissingForTc(Missing),
    /// The kernel does not load program `classify`.
    #[error("the kernel does not load the program for tc: {0}")]
    NotLoaded(String),
    /// There is no interface for tc filters.
    #[error("no interface of the pod except lo has an address")]
    NoInterface,
    /// The kernel refuses a part of a tc filter for another reason.
    #[error("the kernel refuses {what} at interface {interface}")]
    Tc {
        /// What it refuses.
        what: &'static str,
        /// The index of the interface.
        interface: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The map of the key can't be read.
    #[error("cannot read the key of program classify")]
    Key(#[source] aya::maps::MapError),
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
    /// The qdisc of tc filters at ingress.
    Clsact,
    /// tc filters that run a BPF program.
    ClsBpf,
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
            Self::Clsact => ("sch_ingress", "CONFIG_NET_SCH_INGRESS"),
            Self::ClsBpf => ("cls_bpf", "CONFIG_NET_CLS_BPF"),
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
            Self::Clsact => "no tc qdisc clsact",
            Self::ClsBpf => "no tc filters that run a BPF program",
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
    pub(super) fn is_existing_table(&self) -> bool {
        matches!(self, Self::Refused { part: Part::Table, source, .. }
            if source.raw_os_error() == Some(libc::EEXIST))
    }

    /// Returns [`Error::NoPin`] instead if the pin is missing, because the kernel refuses a rule whose pin does not exist
    /// with the same error number as a rule whose match does not exist.
    pub(super) fn or_no_pin(self, program: &Program) -> Self {
        match (self, program) {
            (
                Self::Missing {
                    missing: Missing::BpfMatch,
                    ..
                },
                Program::Pinned(path),
            ) if !path.exists() => Self::NoPin { path: path.clone() },
            (error, _) => error,
        }
    }

    /// Whether the kernel can't call program `exempt` from rules, so that the caller should try tc.
    pub const fn is_missing_match(&self) -> bool {
        matches!(
            self,
            Self::Missing {
                missing: Missing::Compat | Missing::BpfMatch,
                ..
            }
        )
    }

    /// For which of `families` the kernel lacks something, so that another attempt fails too until a module is loaded.
    pub fn missing_for(&self, families: &[Family]) -> Vec<Family> {
        match self {
            Self::Missing { family, .. } => vec![*family],
            Self::MissingForTc(_) | Self::NotLoaded(_) => families.to_vec(),
            _ => Vec::new(),
        }
    }

    /// What to do about the error.
    pub fn remedy(&self) -> String {
        match self {
            Self::Missing { missing, .. } | Self::MissingForTc(missing) => {
                let (module, option) = missing.module();
                format!(
                    "load module {module} on the node (`modprobe {module}`), or use a kernel with {option}; until then \
                     the handler serves the pod"
                )
            }
            Self::NoPin { .. } => "the daemon pins it again within seconds; if it does not, `probe-handler status` \
                                   and the log show why. Until then the handler serves the pod"
                .to_owned(),
            Self::NotLoaded(_) => "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF, or load module xt_bpf; until \
                                   then the handler serves the pod"
                .to_owned(),
            Self::NoInterface | Self::Key(_) => {
                "the handler serves the pod meanwhile, and the daemon tries again".to_owned()
            }
            Self::Tc { source, .. } | Self::Refused { source, .. } | Self::Socket(source)
                if source.raw_os_error() == Some(libc::EPERM) =>
            {
                "the daemon needs CAP_NET_ADMIN, and a seccomp profile that allows netlink; until then the handler \
                 serves the pod"
                    .to_owned()
            }
            Self::Tc { .. } => "the handler serves the pod meanwhile; `tc filter show dev INTERFACE ingress` in the pod's network \
                                namespace shows its filters"
                .to_owned(),
            Self::Refused { .. } | Self::Socket(_) => {
                "the handler serves the pod meanwhile; `nft list ruleset` in the pod's network namespace shows the \
                 current rules"
                    .to_owned()
            }
        }
    }

    /// The message for the operator: the error with its causes, and what to do.
    pub fn message(self) -> String {
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
    fn a_pin_that_is_gone_is_not_a_missing_module() {
        let missing = || Error::Missing {
            family: Family::V4,
            missing: Missing::BpfMatch,
        };
        let directory = tempfile::tempdir().expect("directory");
        let pin = directory.path().join("exempt");
        let named = Program::pinned(&pin).expect("a short path");
        let message = missing().or_no_pin(&named).message();
        assert!(message.contains("pins it again"), "{message}");
        assert!(!message.contains("modprobe"), "{message}");
        std::fs::write(&pin, "").expect("a file");
        for named in [named, Program::Descriptor(7)] {
            let message = missing().or_no_pin(&named).message();
            assert!(message.contains("modprobe xt_bpf"), "{message}");
        }
    }

    #[test]
    fn what_is_missing_for_one_family_is_not_missing_for_the_other() {
        let error = Error::Missing {
            family: Family::V6,
            missing: Missing::Nat,
        };
        assert!(!error.is_missing_match(), "tc needs it too");
        assert_eq!(error.missing_for(&Family::ALL), [Family::V6]);
        let error = Error::MissingForTc(Missing::ClsBpf);
        assert_eq!(error.missing_for(&Family::ALL), Family::ALL);
        assert!(error.message().contains("modprobe cls_bpf"));
        assert!(Error::NoInterface.missing_for(&Family::ALL).is_empty());
    }

    #[test]
    fn an_error_names_the_module_to_load() {
        let error = Error::Missing {
            family: Family::V4,
            missing: Missing::BpfMatch,
        };
        let text = error.message();
        assert!(text.contains("modprobe xt_bpf"), "{text}");
        assert!(text.contains("family ip"), "{text}");
    }
}
