//! The wire format of nftables messages: netlink messages with nested attributes in one transaction (a batch).
//!
//! Encoded by hand, because only a small part of linux/netfilter/nf_tables.h is needed.

/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u8 = 10;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Flags of netlink messages.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// The offset of the flags in a netlink message, and the length of its header.
const FLAGS_AT: usize = 6;
const HEADER: usize = 16;

/// A part of the batch: identifies in errors what the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The transaction as a whole.
    Transaction,
    /// The table.
    Table,
    /// The conntrack timeout policy that deletes a closed connection immediately.
    Timeout,
    /// A chain of type filter.
    Chain,
    /// A chain of type nat.
    NatChain,
    /// A rule, without a specific expression.
    Rule,
    /// An expression of a rule, by its name.
    Expression(&'static str),
}

/// A transaction under construction.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// The offset and the part of each message, indexed by sequence number.
    messages: Vec<(usize, Part)>,
    /// The offset and the name of each expression's attribute.
    expressions: Vec<(usize, &'static str)>,
}

impl Batch {
    /// Begins a transaction.
    pub fn begin() -> Self {
        let mut batch = Self {
            bytes: Vec::with_capacity(8 * 1024),
            messages: Vec::new(),
            expressions: Vec::new(),
        };
        batch.header(BATCH_BEGIN, 0, 0, NFTABLES.into(), Part::Transaction);
        batch.close();
        batch
    }

    /// Adds an nftables message: `kind` of `enum nf_tables_msg_types`, for protocol family `family`.
    pub fn message(
        &mut self,
        kind: u8,
        flags: u16,
        family: u8,
        part: Part,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let kind = u16::from(NFTABLES) << 8 | u16::from(kind);
        self.header(kind, flags, family, 0, part);
        fill(&mut Attributes {
            bytes: &mut self.bytes,
            expressions: &mut self.expressions,
        });
        self.close();
    }

    /// Ends the transaction. The kernel acknowledges the last message before the end marker if it accepts all messages.
    pub fn end(mut self) -> Sealed {
        if let Some((start, _)) = self.messages.last() {
            let at = start + FLAGS_AT;
            let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | NLM_F_ACK;
            self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
        self.header(BATCH_END, 0, 0, NFTABLES.into(), Part::Transaction);
        self.close();
        Sealed(self)
    }

    /// Adds a netlink header, followed by the nfnetlink header.
    fn header(&mut self, kind: u16, flags: u16, family: u8, resource: u16, part: Part) {
        let sequence = self.messages.len() as u32;
        self.messages.push((self.bytes.len(), part));
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
    }

    /// Writes the length of the last message.
    fn close(&mut self) {
        if let Some((start, _)) = self.messages.last() {
            let length = (self.bytes.len() - start) as u32;
            self.bytes[*start..start + 4].copy_from_slice(&length.to_ne_bytes());
        }
    }
}

/// A transaction that is ready to be sent.
#[derive(Debug)]
pub(super) struct Sealed(Batch);

impl Sealed {
    /// The bytes to send.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The sequence number of the message that is acknowledged.
    pub fn last(&self) -> u32 {
        // The message before the end marker.
        (self.0.messages.len() - 2) as u32
    }

    /// The part that message `sequence` contains; if the kernel reports the `offset` of the refused attribute in the
    /// message, the expression at that offset.
    pub fn part(&self, sequence: u32, offset: Option<u32>) -> Part {
        let Some((start, part)) = self.0.messages.get(sequence as usize) else {
            return Part::Transaction;
        };
        let at = offset.map(|offset| start + offset as usize);
        let expression = self
            .0
            .expressions
            .iter()
            .find(|(begin, _)| Some(*begin) == at);
        expression.map_or(*part, |(_, name)| Part::Expression(name))
    }
}

/// The attributes of a message, or of a nest in it.
pub(crate) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
    expressions: &'a mut Vec<(usize, &'static str)>,
}

impl Attributes<'_> {
    /// An attribute of raw bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.bytes.extend(value);
        self.finish(start);
    }

    /// A string attribute, terminated by a zero byte.
    pub fn text(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.bytes.extend(value.as_bytes());
        self.bytes.push(0);
        self.finish(start);
    }

    /// A number attribute, in network byte order like nearly all numbers of nftables.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A nested attribute.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.open(kind | NESTED);
        fill(&mut Attributes {
            bytes: self.bytes,
            expressions: self.expressions,
        });
        self.finish(start);
    }

    /// Records that the next attribute is expression `name`.
    pub fn mark_expression(&mut self, name: &'static str) {
        self.expressions.push((self.bytes.len(), name));
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend(0_u16.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        start
    }

    /// Writes the length, which excludes the padding.
    fn finish(&mut self, start: usize) {
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

/// A single request to nfnetlink: `kind` is the subsystem and the message's type in it.
pub(crate) fn request(
    kind: u16,
    flags: u16,
    family: u8,
    fill: impl FnOnce(&mut Attributes<'_>),
) -> Vec<u8> {
    let mut request = Batch {
        bytes: Vec::new(),
        messages: Vec::new(),
        expressions: Vec::new(),
    };
    request.header(kind, flags, family, 0, Part::Transaction);
    fill(&mut Attributes {
        bytes: &mut request.bytes,
        expressions: &mut request.expressions,
    });
    request.close();
    request.bytes
}

/// The value of the first attribute of type `kind` among `attributes`.
pub(crate) fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..length)?;
        if u16_at(attributes, 2)? & !NESTED == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// A query to nft_compat for a match with this name and revision (`NFNL_MSG_COMPAT_GET`).
pub(super) fn compat_query(name: &str, revision: u32) -> Vec<u8> {
    /// `NFNL_SUBSYS_NFT_COMPAT`.
    const COMPAT: u16 = 11;
    const IPV4: u8 = 2;
    request(COMPAT << 8, NLM_F_ACK, IPV4, |query| {
        query.text(1, name);
        query.number(2, revision);
        query.number(3, 0);
    })
}

/// The kernel's reply to one message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// The message's sequence number.
    pub sequence: u32,
    /// 0, or the error's number.
    pub errno: i32,
    /// Offset of the refused attribute in the message.
    pub offset: Option<u32>,
}

/// The replies in a datagram from the kernel; skips other and truncated messages.
pub(crate) fn replies(mut datagram: &[u8]) -> Vec<Reply> {
    const NLMSG_ERROR: u16 = 2;
    let mut replies = Vec::new();
    while let Some(length) = u32_at(datagram, 0).map(|length| length as usize)
        && let Some(message) = datagram.get(..length)
        && length >= HEADER
    {
        if u16_at(message, 4) == Some(NLMSG_ERROR) {
            replies.extend(reply(message));
        }
        let next = length.next_multiple_of(4);
        datagram = datagram.get(next..).unwrap_or_default();
    }
    replies
}

/// Parses a message of type NLMSG_ERROR: the error, the header of the message to which it refers, and attributes.
fn reply(message: &[u8]) -> Option<Reply> {
    const NLM_F_ACK_TLVS: u16 = 0x200;
    const NLM_F_CAPPED: u16 = 0x100;
    let flags = u16_at(message, FLAGS_AT)?;
    let errno = u32_at(message, HEADER)?.cast_signed().checked_neg()?;
    let about = message.get(HEADER + 4..)?;
    let copied = if flags & NLM_F_CAPPED == 0 && errno != 0 {
        u32_at(about, 0)? as usize
    } else {
        HEADER
    };
    let attributes = (flags & NLM_F_ACK_TLVS != 0)
        .then(|| about.get(copied.next_multiple_of(4)..))
        .flatten();
    Some(Reply {
        sequence: u32_at(about, 8)?,
        errno,
        offset: attributes.and_then(offset),
    })
}

/// `NLMSGERR_ATTR_OFFS` among the attributes of an error.
fn offset(mut attributes: &[u8]) -> Option<u32> {
    const OFFSET: u16 = 2;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        if length < 4 {
            return None;
        }
        if u16_at(attributes, 2)? == OFFSET {
            return u32_at(attributes, 4);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(two.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Sealed {
        let mut batch = Batch::begin();
        batch.message(0, NLM_F_CREATE, 2, Part::Table, |table| {
            table.text(1, "four");
        });
        batch.message(6, NLM_F_CREATE, 2, Part::Rule, |rule| {
            rule.nest(4, |list| {
                list.mark_expression("meta");
                list.nest(1, |expression| expression.text(1, "meta"));
            });
        });
        batch.end()
    }

    #[test]
    fn lengths_exclude_padding_and_attributes_are_padded() {
        let batch = batch();
        // The begin marker is a header of 20 bytes.
        assert_eq!(u32_at(batch.bytes(), 0), Some(20));
        // Table: an attribute of 4 + 5 bytes takes 12.
        assert_eq!(u32_at(batch.bytes(), 20), Some(32));
        assert_eq!(u16_at(batch.bytes(), 40), Some(9));
        assert_eq!(&batch.bytes()[44..52], b"four\0\0\0\0");
        // Rule: two nests, a string; then the end marker.
        assert_eq!(u32_at(batch.bytes(), 52), Some(40));
        assert_eq!(u16_at(batch.bytes(), 74), Some(4 | NESTED));
        assert_eq!(u32_at(batch.bytes(), 92), Some(20));
        assert_eq!(batch.bytes().len(), 112);
    }

    #[test]
    fn only_the_last_message_requests_an_acknowledgement() {
        let batch = batch();
        let flags = |at: usize| u16_at(batch.bytes(), at + FLAGS_AT);
        assert_eq!(batch.last(), 2);
        assert_eq!(flags(20), Some(NLM_F_REQUEST | NLM_F_CREATE));
        assert_eq!(flags(52), Some(NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK));
        assert_eq!(flags(92), Some(NLM_F_REQUEST));
    }

    #[test]
    fn a_refused_part_is_identified_by_message_and_offset() {
        let batch = batch();
        assert_eq!(batch.part(0, None), Part::Transaction);
        assert_eq!(batch.part(1, None), Part::Table);
        assert_eq!(batch.part(2, None), Part::Rule);
        assert_eq!(batch.part(2, Some(24)), Part::Expression("meta"));
        assert_eq!(batch.part(2, Some(20)), Part::Rule);
        assert_eq!(batch.part(99, None), Part::Transaction);
    }

    /// An error reply of the kernel to message 7, capped, with the offset of an attribute.
    fn refusal() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(44_u32.to_ne_bytes());
        bytes.extend(2_u16.to_ne_bytes());
        bytes.extend(0x300_u16.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend((-2_i32).to_ne_bytes());
        bytes.extend(400_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(8_u16.to_ne_bytes());
        bytes.extend(2_u16.to_ne_bytes());
        bytes.extend(24_u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn an_error_reply_identifies_message_and_attribute() {
        let expected = || Reply {
            sequence: 7,
            errno: 2,
            offset: Some(24),
        };
        assert_eq!(replies(&refusal()), [expected()]);
        let two = [refusal(), refusal()].concat();
        assert_eq!(replies(&two), [expected(), expected()]);
    }

    #[test]
    fn a_truncated_datagram_contains_no_reply() {
        let whole = refusal();
        for length in 0..whole.len() {
            assert_eq!(replies(&whole[..length]), [], "{length}");
        }
        assert_eq!(replies(&[0; 64]), []);
    }
}
