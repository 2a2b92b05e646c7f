//! Messages for nftables, as they go over the wire: netlink messages in one transaction (a batch), whose attributes nest.
//!
//! Encoded by hand: what we need of linux/netfilter/nf_tables.h is little.

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
/// Where a netlink message has its flags, and how long its header is.
const FLAGS_AT: usize = 6;
const HEADER: usize = 16;

/// A part of the batch, for telling which one the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The transaction as such.
    Transaction,
    /// The table.
    Table,
    /// Conntrack's policy that forgets a closed connection at once.
    Timeout,
    /// A chain of type filter.
    Chain,
    /// A chain of type nat.
    NatChain,
    /// A rule, but none of its expressions in particular.
    Rule,
    /// An expression of a rule, by its name.
    Expression(&'static str),
}

/// One transaction.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Where each message begins, by its sequence number, and what it is for.
    messages: Vec<(usize, Part)>,
    /// Where each expression's attribute begins.
    expressions: Vec<(usize, &'static str)>,
}

impl Batch {
    /// An open transaction.
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

    /// Adds a message of nftables: `kind` of `enum nf_tables_msg_types`, for the protocol family `family`.
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

    /// Ends the transaction. The kernel acknowledges the last message before the end, which it reaches if all are well.
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

    /// A netlink header, and nfnetlink's own behind it.
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
    /// What to send.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The sequence number of the message that is acknowledged.
    pub fn last(&self) -> u32 {
        // The one before the end of the batch.
        (self.0.messages.len() - 2) as u32
    }

    /// The part to which message `sequence` belongs; the expression in it where the kernel says which attribute it did
    /// not take, by its `offset` in the message.
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
pub(super) struct Attributes<'a> {
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

    /// A text, which ends with a zero byte.
    pub fn text(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.bytes.extend(value.as_bytes());
        self.bytes.push(0);
        self.finish(start);
    }

    /// A number, in network byte order as nearly all of nftables' are.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Attributes within an attribute.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.open(kind | NESTED);
        fill(&mut Attributes {
            bytes: self.bytes,
            expressions: self.expressions,
        });
        self.finish(start);
    }

    /// Notes that the attribute that comes next is expression `name`.
    pub fn mark_expression(&mut self, name: &'static str) {
        self.expressions.push((self.bytes.len(), name));
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend(0_u16.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        start
    }

    /// Writes the length, without the padding that follows.
    fn finish(&mut self, start: usize) {
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

/// Asks nft_compat whether there is a match of this name and revision (`NFNL_MSG_COMPAT_GET`).
pub(super) fn compat_question(name: &str, revision: u32) -> Vec<u8> {
    /// `NFNL_SUBSYS_NFT_COMPAT`.
    const COMPAT: u16 = 11;
    const IPV4: u8 = 2;
    let mut question = Batch {
        bytes: Vec::new(),
        messages: Vec::new(),
        expressions: Vec::new(),
    };
    question.header(COMPAT << 8, NLM_F_ACK, IPV4, 0, Part::Transaction);
    let mut attributes = Attributes {
        bytes: &mut question.bytes,
        expressions: &mut question.expressions,
    };
    attributes.text(1, name);
    attributes.number(2, revision);
    attributes.number(3, 0);
    question.close();
    question.bytes
}

/// What the kernel says of one message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// The message's sequence number.
    pub sequence: u32,
    /// 0, or the error's number.
    pub errno: i32,
    /// Where in the message the attribute stands that it did not take.
    pub offset: Option<u32>,
}

/// The replies in a datagram of the kernel's; what is none, or is cut short, is passed over.
pub(super) fn replies(mut datagram: &[u8]) -> Vec<Reply> {
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

/// A message of type NLMSG_ERROR: the error, the header of what it is about, and attributes.
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
    fn a_message_is_as_long_as_it_says_and_attributes_are_padded() {
        let batch = batch();
        // Begin, a header of 20 bytes.
        assert_eq!(u32_at(batch.bytes(), 0), Some(20));
        // Table: an attribute of 4 + 5 bytes takes 12.
        assert_eq!(u32_at(batch.bytes(), 20), Some(32));
        assert_eq!(u16_at(batch.bytes(), 40), Some(9));
        assert_eq!(&batch.bytes()[44..52], b"four\0\0\0\0");
        // Rule: two nests, a text; then the end.
        assert_eq!(u32_at(batch.bytes(), 52), Some(40));
        assert_eq!(u16_at(batch.bytes(), 74), Some(4 | NESTED));
        assert_eq!(u32_at(batch.bytes(), 92), Some(20));
        assert_eq!(batch.bytes().len(), 112);
    }

    #[test]
    fn the_last_message_of_all_is_acknowledged_and_no_other() {
        let batch = batch();
        let flags = |at: usize| u16_at(batch.bytes(), at + FLAGS_AT);
        assert_eq!(batch.last(), 2);
        assert_eq!(flags(20), Some(NLM_F_REQUEST | NLM_F_CREATE));
        assert_eq!(flags(52), Some(NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK));
        assert_eq!(flags(92), Some(NLM_F_REQUEST));
    }

    #[test]
    fn what_the_kernel_refuses_is_told_by_message_and_offset() {
        let batch = batch();
        assert_eq!(batch.part(0, None), Part::Transaction);
        assert_eq!(batch.part(1, None), Part::Table);
        assert_eq!(batch.part(2, None), Part::Rule);
        assert_eq!(batch.part(2, Some(24)), Part::Expression("meta"));
        assert_eq!(batch.part(2, Some(20)), Part::Rule);
        assert_eq!(batch.part(99, None), Part::Transaction);
    }

    /// An error of the kernel's about message 7, capped, with the offset of an attribute.
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
    fn an_error_tells_the_message_and_the_attribute() {
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
    fn a_datagram_that_is_cut_short_is_no_trouble() {
        let whole = refusal();
        for length in 0..whole.len() {
            assert_eq!(replies(&whole[..length]), [], "{length}");
        }
        assert_eq!(replies(&[0; 64]), []);
    }
}
