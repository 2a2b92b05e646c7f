//! Decides whether a spliced TLS connection is idle: the app has answered the last request.
//!
//! The kubelet's client of lifecycle hooks keeps connections open for reuse, for 90 s. Such a connection is not work in
//! flight, and must not hold up the end of the daemon. The bytes are encrypted, but the headers of TLS records are not, and
//! their lengths show enough. If the lengths are ambiguous, the connection counts as busy.
//!
//! The lengths were recorded from Go 1.26 (net/http with crypto/tls), with which the kubelet is built.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::observed::{End, Observer};

/// Types of TLS records (RFC 8446, B.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// What encryption adds to a record in TLS 1.3: the inner type and the tag. Bytes.
const OVERHEAD: usize = 17;
/// Longest record with the kubelet's Finished in TLS 1.3, which looks like application data. Bytes.
const FINISHED: usize = 52 + OVERHEAD;
/// Length of a Finished in TLS 1.2. Bytes.
const FINISHED_12: usize = 16;
/// Go's client begins HTTP/2 with 70 bytes, and a request of the kubelet over HTTP/1 is longer than this. Bytes.
const LONGEST_PREFACE: usize = 100;
/// Longest frame of a client over HTTP/2 that is certainly not a request: WINDOW_UPDATE. Bytes.
const LONGEST_CONTROL: usize = 13;
/// Lengths of what a server sends over HTTP/2 besides answers and its first SETTINGS: acknowledgement of SETTINGS (9),
/// WINDOW_UPDATE (13), PING (17), and several of them in one record.
const NO_ANSWER: [usize; 7] = [9, 13, 17, 22, 26, 30, 39];

/// Reads the headers of records in a stream.
#[derive(Default)]
struct Records {
    header: Vec<u8>,
    /// Remaining bytes of the current record.
    left: usize,
}

impl Records {
    /// Calls `each` with type and length of each record that begins in `bytes`.
    fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8, usize)) {
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            let taken = (5 - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if let [kind, _, _, high, low] = self.header[..] {
                self.left = usize::from(u16::from_be_bytes([high, low]));
                each(kind, self.left);
                self.header.clear();
            }
        }
    }
}

/// What the records of a connection have shown.
struct RecordsState {
    kubelet: Records,
    app: Records,
    /// Whether the client is like the kubelet, which resumes no session: then the app sends no session tickets in TLS 1.3,
    /// which would look like an answer (RFC 8446, 4.2.9).
    is_kubelet: bool,
    changed_cipher: bool,
    /// What encryption adds to a record, once it is known.
    overhead: Option<usize>,
    /// The protocol, once the first request is known.
    http2: Option<bool>,
    has_settings: bool,
    is_answered: bool,
    last: Instant,
}

/// A connection that may become idle.
pub(super) struct Watch(Mutex<RecordsState>);

impl Watch {
    /// A connection that begins with `hello`, the kubelet's first bytes.
    pub(super) fn new(hello: &[u8]) -> Self {
        let watch = Self(Mutex::new(RecordsState {
            kubelet: Records::default(),
            app: Records::default(),
            is_kubelet: resumes_sessions(hello) == Some(false),
            changed_cipher: false,
            overhead: None,
            http2: None,
            has_settings: false,
            is_answered: false,
            last: Instant::now(),
        }));
        watch.see(End::Kubelet, hello);
        watch
    }

    /// How long it has been idle. `None` while a request is, or may be, in flight.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        let state = self.0.lock();
        (state.is_kubelet && state.is_answered).then(|| state.last.elapsed())
    }
}

impl Observer for Watch {
    fn see(&self, from: End, bytes: &[u8]) {
        let mut state = self.0.lock();
        let mut records = Vec::new();
        let side = match from {
            End::Kubelet => &mut state.kubelet,
            End::App => &mut state.app,
        };
        side.feed(bytes, |kind, length| records.push((kind, length)));
        for (kind, length) in records {
            match from {
                End::Kubelet => state.kubelet_sent(kind, length),
                End::App => state.app_sent(kind, length),
            }
        }
        state.last = Instant::now();
    }
}

impl RecordsState {
    fn kubelet_sent(&mut self, kind: u8, length: usize) {
        match (kind, self.overhead) {
            (CHANGE_CIPHER_SPEC, _) => self.changed_cipher = true,
            // Finished, in TLS 1.2.
            (HANDSHAKE, None) if self.changed_cipher => {
                self.overhead = length.checked_sub(FINISHED_12);
            }
            // Finished, in TLS 1.3.
            (APPLICATION_DATA, _) if self.http2.is_none() && length <= FINISHED => {
                self.overhead = Some(OVERHEAD);
            }
            (APPLICATION_DATA, Some(overhead)) => {
                let length = length.saturating_sub(overhead);
                let http2 = *self.http2.get_or_insert(length <= LONGEST_PREFACE);
                if !http2 || length > LONGEST_CONTROL {
                    self.is_answered = false;
                }
            }
            _ => {}
        }
    }

    fn app_sent(&mut self, kind: u8, length: usize) {
        let Some(overhead) = self.overhead.filter(|_| kind == APPLICATION_DATA) else {
            return;
        };
        let length = length.saturating_sub(overhead);
        match self.http2 {
            Some(false) => self.is_answered = true,
            // A server begins with its SETTINGS, perhaps before the client.
            _ if !self.has_settings => self.has_settings = true,
            Some(true) if !NO_ANSWER.contains(&length) => self.is_answered = true,
            _ => {}
        }
    }
}

/// Whether a ClientHello offers to resume sessions (`psk_key_exchange_modes`, RFC 8446, 4.2.9). `None` if `hello` is not a
/// complete ClientHello in one record.
fn resumes_sessions(hello: &[u8]) -> Option<bool> {
    const PSK_KEY_EXCHANGE_MODES: u16 = 45;
    // Headers of record and message, version, random.
    let mut rest = hello.strip_prefix(&[HANDSHAKE])?.get(8 + 34..)?;
    let mut field = |length_of_length: usize| -> Option<&[u8]> {
        let (length, after) = rest.split_at_checked(length_of_length)?;
        let length = length
            .iter()
            .fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        let (field, after) = after.split_at_checked(length)?;
        rest = after;
        Some(field)
    };
    let (_session, _ciphers, _compressions) = (field(1)?, field(2)?, field(1)?);
    let mut extensions = field(2)?;
    while let Some((kind, after)) = extensions.split_first_chunk() {
        let (length, after) = after.split_first_chunk()?;
        if u16::from_be_bytes(*kind) == PSK_KEY_EXCHANGE_MODES {
            return Some(true);
        }
        extensions = after.get(usize::from(u16::from_be_bytes(*length))..)?;
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records as Go 1.26 sends them as client (`>`) and server (`<`): type and length. `!` marks where the server has
    /// answered the latest request.
    const RECORDED: [&str; 7] = [
        // HTTP/1.1, TLS 1.2; then 1.3.
        ">22:1496 <22:74 <22:854 <22:300 <22:4 >22:37 >20:1 >22:40 <20:1 <22:40 >23:138 <23:99! >23:138 <23:142!",
        ">22:1496 <22:1210 <20:1 <23:38 <23:874 <23:281 <23:53 >20:1 >23:53 >23:131 <23:92! >23:131 <23:135!",
        // HTTP/2, TLS 1.2: the first answer at once; then late.
        ">22:1496 <22:68 <22:854 <22:300 <22:4 >22:37 >20:1 >22:40 <20:1 <22:40 >23:94 >23:80 <23:63 >23:33 <23:37 \
         <23:33 <23:61! >23:43 <23:36! >23:45 <23:69!",
        ">22:1496 <22:68 <22:854 <22:300 <22:4 >22:37 >20:1 >22:40 <20:1 <22:40 <23:63 >23:94 >23:80 <23:37 <23:33 \
         >23:33 <23:61! >23:43 <23:59!",
        // HTTP/2, TLS 1.3: at once; late; and at once, followed by the client's acknowledgement of a PING.
        ">22:1496 <22:1210 <20:1 <23:32 <23:874 <23:281 <23:53 >20:1 >23:53 >23:87 >23:73 <23:56 <23:76! >23:26! \
         >23:36 <23:29! >23:38 <23:62!",
        ">22:1496 <22:1210 <20:1 <23:32 <23:874 <23:281 <23:53 >20:1 >23:53 >23:87 >23:73 <23:56 <23:39 >23:26 \
         <23:54! >23:36 <23:52!",
        ">22:1496 <22:1210 <20:1 <23:32 <23:874 <23:281 <23:53 >20:1 >23:53 >23:87 >23:73 <23:56 <23:76! <23:34! >23:34",
    ];

    /// A ClientHello of 1496 bytes with this extension.
    fn hello(extension: u16) -> Vec<u8> {
        let mut hello = vec![HANDSHAKE, 3, 1, 5, 216];
        hello.resize(5 + 4 + 34, 0);
        // No session, one cipher suite, no compression.
        hello.extend([0, 0, 2, 0x13, 1, 1, 0]);
        let length = 5 + 1496 - hello.len() - 2;
        hello.extend(u16::try_from(length).expect("length").to_be_bytes());
        hello.extend(extension.to_be_bytes());
        hello.extend(u16::try_from(length - 4).expect("length").to_be_bytes());
        hello.resize(5 + 1496, 0);
        hello
    }

    fn replay(recorded: &str, first: &[u8], piece: usize) -> Vec<(String, bool)> {
        let watch = Watch::new(first);
        let mut states = Vec::new();
        for record in recorded.split_whitespace().skip(1) {
            let (from, rest) = match record.strip_prefix('>') {
                Some(rest) => (End::Kubelet, rest),
                None => (End::App, &record[1..]),
            };
            let (kind, length) = rest.trim_end_matches('!').split_once(':').expect("fields");
            let length: u16 = length.parse().expect("a length");
            let mut bytes = vec![kind.parse().expect("a type"), 3, 3];
            bytes.extend(length.to_be_bytes());
            bytes.resize(5 + usize::from(length), 0);
            for piece in bytes.chunks(piece) {
                watch.see(from, piece);
            }
            states.push((record.to_owned(), watch.idle_for().is_some()));
        }
        states
    }

    #[tokio::test]
    async fn a_connection_is_idle_once_the_app_has_answered_and_until_the_next_request() {
        for recorded in RECORDED {
            for piece in [1, 7, 4096] {
                for (record, idle) in replay(recorded, &hello(43), piece) {
                    assert_eq!(idle, record.ends_with('!'), "{record} in {recorded}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_client_that_resumes_sessions_is_never_idle() {
        for first in [hello(45), crate::tests::client_hello("10.0.0.7")] {
            let states = replay(RECORDED[1], &first, 4096);
            assert!(states.iter().all(|(_, idle)| !idle), "{states:?}");
        }
    }
}
