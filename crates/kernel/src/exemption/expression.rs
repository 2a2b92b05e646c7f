//! The nftables expressions that the rules use (linux/netfilter/nf_tables.h, "Netfilter expressions").
//!
//! All of them use the same register.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use super::message::Attributes;

/// `NFT_REG_VERDICT` and `NFT_REG_1`.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;
/// `NFTA_LIST_ELEM`.
const LIST_ELEMENT: u16 = 1;

/// How rules refer to program `exempt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// By the path of its pin, which `nft list ruleset` in the pod shows.
    Pinned(PathBuf),
    /// By a descriptor of the process that sends the rules, if the program can't be pinned.
    Descriptor(RawFd),
}

/// What matches the SYN of an exempt connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Match<'a> {
    /// Program `exempt`, by xt_bpf.
    Program(&'a Program),
    /// The packet's priority, which program `classify` sets at tc.
    Priority(Classified<'a>),
}

/// What program `classify` sets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Classified<'a> {
    /// The priority of exempt packets.
    pub priority: u32,
    /// The interfaces at which it runs.
    pub interfaces: &'a [u32],
}

/// `struct xt_bpf_info_v1`: mode, two unused bytes, descriptor, path, and a pointer for the kernel's use.
const MATCH_INFO: usize = 2 + 2 + 4 + PATH + 8;
/// `XT_BPF_PATH_MAX`, which includes the terminating zero byte.
const PATH: usize = 512;

impl Program {
    /// By the path of its pin, if it is short enough for a rule.
    pub fn pinned(path: &Path) -> Option<Self> {
        (path.as_os_str().len() < PATH).then(|| Self::Pinned(path.to_owned()))
    }

    /// The match's parameters (`struct xt_bpf_info_v1`).
    fn info(&self) -> [u8; MATCH_INFO] {
        const PATH_PINNED: u16 = 1;
        const DESCRIPTOR: u16 = 2;
        let mut info = [0; MATCH_INFO];
        match self {
            Self::Pinned(path) => {
                info[..2].copy_from_slice(&PATH_PINNED.to_ne_bytes());
                let path = path.as_os_str().as_encoded_bytes();
                for (to, from) in info[8..8 + PATH - 1].iter_mut().zip(path) {
                    *to = *from;
                }
            }
            Self::Descriptor(fd) => {
                info[..2].copy_from_slice(&DESCRIPTOR.to_ne_bytes());
                info[4..8].copy_from_slice(&fd.to_ne_bytes());
            }
        }
        info
    }
}

/// A property of a packet or of its connection.
#[derive(Clone, Copy)]
pub(super) enum Field {
    /// `NFT_META_PRIORITY`.
    Priority,
    /// `NFT_META_MARK`.
    Mark,
    /// `NFT_META_IIF`: the index of the input interface.
    Interface,
    /// `NFT_META_L4PROTO`.
    Protocol,
    /// `NFT_CT_STATE`.
    ConnectionState,
    /// `NFT_CT_MARK`.
    ConnectionMark,
}

impl Field {
    const fn key(self) -> u32 {
        match self {
            Self::Priority => 2,
            Self::Mark => 3,
            Self::Interface => 4,
            Self::Protocol => 16,
            Self::ConnectionState => 0,
            Self::ConnectionMark => 3,
        }
    }

    const fn is_of_connection(self) -> bool {
        matches!(self, Self::ConnectionState | Self::ConnectionMark)
    }
}

/// A header of a packet.
#[derive(Clone, Copy)]
pub(super) enum Header {
    /// `NFT_PAYLOAD_NETWORK_HEADER`.
    Network = 1,
    /// `NFT_PAYLOAD_TRANSPORT_HEADER`.
    Transport = 2,
}

/// The list of expressions of a rule.
pub(super) struct Expressions<'a, 'b>(pub &'a mut Attributes<'b>);

impl Expressions<'_, '_> {
    fn add(&mut self, name: &'static str, fill: impl FnOnce(&mut Attributes<'_>)) {
        const NAME: u16 = 1;
        const DATA: u16 = 2;
        self.0.mark_expression(name);
        self.0.nest(LIST_ELEMENT, |expression| {
            expression.text(NAME, name);
            expression.nest(DATA, fill);
        });
    }

    /// Continues if the field equals `value`.
    pub fn is(&mut self, field: Field, value: &[u8]) {
        self.load(field);
        self.compare(Comparison::Equal, value);
    }

    /// Continues if the field differs from `value`.
    pub fn is_not(&mut self, field: Field, value: &[u8]) {
        self.load(field);
        self.compare(Comparison::NotEqual, value);
    }

    /// Continues if the connection is new.
    pub fn is_new(&mut self) {
        // NF_CT_STATE_BIT(IP_CT_NEW).
        const NEW: u32 = 1 << 3;
        self.load(Field::ConnectionState);
        self.mask(&NEW.to_ne_bytes());
        self.compare(Comparison::NotEqual, &[0; 4]);
    }

    /// Continues if the packet is a SYN without ACK.
    pub fn is_syn(&mut self) {
        const TCP: u8 = 6;
        const FLAGS_AT: u32 = 13;
        // FIN, SYN, RST, ACK.
        const FLAGS: u8 = 0b0001_0111;
        const SYN: u8 = 0b0000_0010;
        self.is(Field::Protocol, &[TCP]);
        self.payload(Header::Transport, FLAGS_AT, 1);
        self.mask(&[FLAGS]);
        self.compare(Comparison::Equal, &[SYN]);
    }

    /// Continues if the packet is the SYN of an exempt connection.
    pub fn is_exempt(&mut self, how: Match<'_>) {
        self.is_syn();
        match how {
            Match::Program(program) => self.is_matched_by(program),
            Match::Priority(Classified { priority, .. }) => {
                self.is(Field::Priority, &priority.to_ne_bytes());
            }
        }
    }

    /// Continues if the program matches the packet, by xt_bpf: match `bpf` of iptables, revision 1.
    fn is_matched_by(&mut self, program: &Program) {
        let info = program.info();
        self.add("match", |data| {
            data.text(1, "bpf");
            data.number(2, 1);
            data.bytes(3, &info);
        });
    }

    /// Sets a field.
    pub fn set(&mut self, field: Field, value: u32) {
        self.immediate(value);
        if field.is_of_connection() {
            self.add("ct", |data| {
                data.number(2, field.key());
                data.number(4, REGISTER);
            });
        } else {
            self.add("meta", |data| {
                data.number(2, field.key());
                data.number(3, REGISTER);
            });
        }
    }

    /// Assigns an object of the rules' table to the connection: `kind` of `NFT_OBJECT_*`.
    pub fn use_object(&mut self, kind: u32, name: &str) {
        self.add("objref", |data| {
            data.number(1, kind);
            data.text(2, name);
        });
    }

    /// DNAT to the packet's own destination. This sets up NAT for the connection, so that later NAT rules do not apply.
    pub fn dnat_to_itself(&mut self, family: u8, address_at: u32, length: u32) {
        const DNAT: u32 = 1;
        self.payload(Header::Network, address_at, length);
        self.add("nat", |data| {
            data.number(1, DNAT);
            data.number(2, family.into());
            data.number(3, REGISTER);
        });
    }

    /// `NF_ACCEPT`: continue with the next chain.
    pub fn accept(&mut self) {
        self.verdict(1);
    }

    /// `NF_DROP`.
    pub fn drop(&mut self) {
        self.verdict(0);
    }

    fn verdict(&mut self, code: u32) {
        self.add("immediate", |data| {
            data.number(1, VERDICT);
            // NFTA_DATA_VERDICT, NFTA_VERDICT_CODE.
            data.nest(2, |value| {
                value.nest(2, |verdict| verdict.number(1, code));
            });
        });
    }

    fn immediate(&mut self, value: u32) {
        self.add("immediate", |data| {
            data.number(1, REGISTER);
            data.nest(2, |data| data.bytes(1, &value.to_ne_bytes()));
        });
    }

    fn load(&mut self, field: Field) {
        if field.is_of_connection() {
            self.add("ct", |data| {
                data.number(1, REGISTER);
                data.number(2, field.key());
            });
        } else {
            self.add("meta", |data| {
                data.number(1, REGISTER);
                data.number(2, field.key());
            });
        }
    }

    fn payload(&mut self, header: Header, offset: u32, length: u32) {
        self.add("payload", |data| {
            data.number(1, REGISTER);
            data.number(2, header as u32);
            data.number(3, offset);
            data.number(4, length);
        });
    }

    /// Keeps only the bits of the register that are set in `mask`.
    fn mask(&mut self, mask: &[u8]) {
        let none = vec![0; mask.len()];
        self.add("bitwise", |data| {
            data.number(1, REGISTER);
            data.number(2, REGISTER);
            data.number(3, mask.len() as u32);
            data.nest(4, |value| value.bytes(1, mask));
            data.nest(5, |value| value.bytes(1, &none));
        });
    }

    fn compare(&mut self, comparison: Comparison, value: &[u8]) {
        self.add("cmp", |data| {
            data.number(1, REGISTER);
            data.number(2, comparison as u32);
            data.nest(3, |data| data.bytes(1, value));
        });
    }
}

/// `enum nft_cmp_ops`.
#[derive(Clone, Copy)]
enum Comparison {
    Equal = 0,
    NotEqual = 1,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_program_is_referred_to_by_a_path_that_fits() {
        let program = Program::pinned(Path::new("/sys/fs/bpf/x")).expect("short");
        let info = program.info();
        assert_eq!(info.len(), 528);
        assert_eq!(info[..2], 1_u16.to_ne_bytes());
        assert_eq!(&info[8..22], b"/sys/fs/bpf/x\0");
        let long = format!("/{}", "x".repeat(510));
        let info = Program::pinned(Path::new(&long)).expect("511 bytes").info();
        assert_eq!((info[8 + 510], info[8 + 511]), (b'x', 0));
        assert_eq!(Program::pinned(Path::new(&format!("{long}x"))), None);
    }

    #[test]
    fn an_unpinned_program_is_referred_to_by_descriptor() {
        let info = Program::Descriptor(7).info();
        assert_eq!(info[..2], 2_u16.to_ne_bytes());
        assert_eq!(info[4..8], 7_i32.to_ne_bytes());
    }
}
