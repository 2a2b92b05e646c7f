//! The rules in a pod for one family: a table with four chains, all at prerouting, and a fifth where program `classify` matches
//! packets.
//!
//! | chain | at | does |
//! |---|---|---|
//! | origin | first | resets the priority by which `classify` matches packets, where that program does not run |
//! | guard | after conntrack | lets only the kubelet use an existing conntrack entry of an exempt connection |
//! | before | before mangle | sets Istio's own mark on the SYN, so that TPROXY rules do not capture it |
//! | after | after mangle | clears that mark on the packet, and replaces it on the connection |
//! | nat | before the mesh's redirect | sets up NAT to the unchanged destination, so that no later NAT rule applies |

use super::expression::{Classified, Expressions, Field, Match};
use super::message::{Attributes, Batch, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Part, Sealed};

/// The name of the table, in families ip and ip6. No mesh uses this name.
pub const TABLE: &str = "probe_handler";

/// The conntrack mark of exempt connections. Meshes' own marks: 1337 (Istio), 0x111 (ambient).
pub const CONNECTION_MARK: u32 = 0x7068_0001;

/// Istio's mark for connections that TPROXY must not capture.
const ISTIO_MARK: u32 = 1337;

/// Of `enum nf_tables_msg_types`.
const NEW_TABLE: u8 = 0;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const NEW_RULE: u8 = 6;
const NEW_OBJECT: u8 = 18;
/// `NFT_OBJECT_CT_TIMEOUT`.
const CT_TIMEOUT: u32 = 7;
/// The name of the timeout policy.
const FORGET_CLOSED: &str = "forget_closed";
/// The index of `lo` in every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// Priorities of chains at prerouting. Conntrack is at -200, mangle at -150, nat at -100.
const ORIGIN: i32 = -450;
const GUARD: i32 = -199;
const BEFORE_MANGLE: i32 = -151;
const AFTER_MANGLE: i32 = -149;
const BEFORE_NAT: i32 = -110;

/// A protocol family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`: the same as AF_INET and AF_INET6.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// Its name in nft.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// Offset and length of the destination address in the IP header.
    const fn destination(self) -> (u32, u32) {
        match self {
            Self::V4 => (16, 4),
            Self::V6 => (24, 16),
        }
    }
}

/// The transaction that installs the rules in a namespace without them. With them it fails with EEXIST.
pub(super) fn create(family: Family, how: Match<'_>) -> Sealed {
    let mut rules = Rules::begin(family);
    rules.table(NLM_F_EXCL);
    rules.chains(how);
    rules.batch.end()
}

/// The transaction that installs the rules and replaces existing ones. The kernel takes many times as long for it,
/// because it waits until no packet is in the old chains.
pub(super) fn replace(family: Family, how: Match<'_>) -> Sealed {
    let mut rules = Rules::begin(family);
    // Created before it is deleted, because deleting a missing table would fail the transaction.
    rules.table(0);
    rules.delete();
    rules.table(0);
    rules.chains(how);
    rules.batch.end()
}

/// The transaction that removes the rules. It fails if there are none.
pub(super) fn remove(family: Family) -> Sealed {
    let mut rules = Rules::begin(family);
    rules.delete();
    rules.batch.end()
}

struct Rules {
    family: Family,
    batch: Batch,
}

impl Rules {
    fn begin(family: Family) -> Self {
        Self {
            family,
            batch: Batch::begin(),
        }
    }

    fn delete(&mut self) {
        self.message(DELETE_TABLE, 0, Part::Table, |table| table.text(1, TABLE));
    }

    fn chains(&mut self, how: Match<'_>) {
        self.origin(how);
        self.guard(how);
        self.before(how);
        self.after(how);
        self.nat(how);
    }

    fn table(&mut self, flags: u16) {
        self.message(NEW_TABLE, NLM_F_CREATE | flags, Part::Table, |table| {
            table.text(1, TABLE);
        });
    }

    /// Makes the priority of exempt packets valid only on packets from the interfaces at which program `classify` runs, which
    /// resets it on all others there.
    fn origin(&mut self, how: Match<'_>) {
        let Match::Priority(Classified {
            priority,
            interfaces,
        }) = how
        else {
            return;
        };
        self.chain("origin", "filter", ORIGIN, Part::Chain);
        for interface in interfaces {
            self.rule("origin", |rule| {
                rule.is(Field::Interface, &interface.to_ne_bytes());
                rule.accept();
            });
        }
        self.rule("origin", |rule| {
            rule.is(Field::Priority, &priority.to_ne_bytes());
            rule.set(Field::Priority, 0);
        });
    }

    /// Makes conntrack delete a closed connection immediately: then conntrack treats the next connection with the same
    /// addresses and ports as new, whether the kubelet or another process opens it. A remaining entry of an exempt
    /// connection, for example of one that was never answered, lets only the kubelet's SYN through.
    fn guard(&mut self, how: Match<'_>) {
        self.chain("guard", "filter", GUARD, Part::Chain);
        self.forget_closed();
        self.rule("guard", |rule| {
            rule.is_not(Field::Interface, &LOOPBACK.to_ne_bytes());
            rule.is_new();
            rule.use_object(CT_TIMEOUT, FORGET_CLOSED);
        });
        self.rule("guard", |rule| {
            rule.is(Field::ConnectionMark, &CONNECTION_MARK.to_ne_bytes());
            rule.is_exempt(how);
            rule.accept();
        });
        self.rule("guard", |rule| {
            rule.is(Field::ConnectionMark, &CONNECTION_MARK.to_ne_bytes());
            rule.is_syn();
            rule.drop();
        });
    }

    fn before(&mut self, how: Match<'_>) {
        self.chain("before", "filter", BEFORE_MANGLE, Part::Chain);
        self.rule("before", |rule| {
            // Otherwise a connection that the mesh has already captured would get our mark, and chain guard would drop it.
            rule.is_new();
            rule.is_exempt(how);
            rule.set(Field::Mark, ISTIO_MARK);
        });
    }

    /// Clears Istio's mark: Istio's rules save the mark of a connection's first packet on the connection, and restore it on
    /// the answer, which would then take the wrong route.
    fn after(&mut self, how: Match<'_>) {
        self.chain("after", "filter", AFTER_MANGLE, Part::Chain);
        self.rule("after", |rule| {
            rule.is(Field::Mark, &ISTIO_MARK.to_ne_bytes());
            rule.is_exempt(how);
            rule.set(Field::Mark, 0);
            rule.is_not(Field::ConnectionMark, &[0; 4]);
            rule.set(Field::ConnectionMark, CONNECTION_MARK);
        });
    }

    fn nat(&mut self, how: Match<'_>) {
        let family = self.family;
        self.chain("nat", "nat", BEFORE_NAT, Part::NatChain);
        self.rule("nat", |rule| {
            rule.is_exempt(how);
            rule.set(Field::ConnectionMark, CONNECTION_MARK);
            let (at, length) = family.destination();
            rule.dnat_to_itself(family.number(), at, length);
        });
    }

    /// The conntrack timeout policy for TCP: an entry in state CLOSE expires immediately.
    fn forget_closed(&mut self) {
        const TCP: u8 = 6;
        const CLOSE: u16 = 8;
        let family = u16::from(self.family.number());
        self.message(NEW_OBJECT, NLM_F_CREATE, Part::Timeout, |object| {
            object.text(1, TABLE);
            object.text(2, FORGET_CLOSED);
            object.number(3, CT_TIMEOUT);
            object.nest(4, |policy| {
                policy.bytes(1, &family.to_be_bytes());
                policy.bytes(2, &[TCP]);
                policy.nest(3, |timeouts| timeouts.number(CLOSE, 0));
            });
        });
    }

    fn chain(&mut self, name: &str, kind: &str, priority: i32, part: Part) {
        /// `NF_INET_PRE_ROUTING`.
        const PREROUTING: u32 = 0;
        self.message(NEW_CHAIN, NLM_F_CREATE, part, |chain| {
            chain.text(1, TABLE);
            chain.text(3, name);
            chain.text(7, kind);
            chain.nest(4, |hook| {
                hook.number(1, PREROUTING);
                hook.number(2, priority.cast_unsigned());
            });
        });
    }

    fn rule(&mut self, chain: &str, fill: impl FnOnce(&mut Expressions<'_, '_>)) {
        self.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, Part::Rule, |rule| {
            rule.text(1, TABLE);
            rule.text(2, chain);
            rule.nest(4, |list| fill(&mut Expressions(list)));
        });
    }

    fn message(
        &mut self,
        kind: u8,
        flags: u16,
        part: Part,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.batch
            .message(kind, flags, self.family.number(), part, fill);
    }
}
