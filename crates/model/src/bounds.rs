//! How much is kept of one pod: none is to use up the memory, or the room in the kernel, that is for all.

use std::borrow::Cow;

/// Longest head of a request or an answer that is read. Bytes.
pub const HEAD_LIMIT: usize = 16 * 1024;
/// Most headers of either.
pub const HEADERS_LIMIT: usize = 256;

/// Most probes and hooks that are served of one pod: five for each of 200 containers.
pub const PROBES_LIMIT: usize = 1000;
/// Most bytes of paths, services and User-Agents that are kept of one pod.
pub const TEXT_LIMIT: usize = 64 * 1024;
/// Most probes of one pod of which is kept that, and why, they are left alone.
pub const SKIPPED_LIMIT: usize = 256;

/// What of a request's head is the kubelet's own at most: request line, Host, User-Agent, Accept, Connection. Bytes.
const KUBELETS_BYTES: usize = 1024;
/// As many headers at most.
const KUBELETS_HEADERS: usize = 4;
/// What a Pod may add to a request that the handler is to read, or to a gRPC call. Bytes.
pub const REQUEST_LIMIT: usize = HEAD_LIMIT - KUBELETS_BYTES;
/// As many headers at most.
pub const REQUEST_HEADERS_LIMIT: usize = HEADERS_LIMIT - KUBELETS_HEADERS;

/// Longest text kept where a Pod's author chose it. Bytes.
const CLIPPED: usize = 256;

/// What is kept of one pod.
#[derive(Default)]
pub struct Quota {
    probes: usize,
    text: usize,
}

impl Quota {
    /// Whether one probe more, with so many bytes of text, is kept too.
    pub fn one_more(&mut self, text: usize) -> bool {
        let fits = self.probes < PROBES_LIMIT && self.text + text <= TEXT_LIMIT;
        if fits {
            self.probes += 1;
            self.text += text;
        }
        fits
    }
}

/// As much of `text`, which a Pod's author chose, as is kept to be shown.
pub fn truncated(text: &str) -> String {
    truncated_to(CLIPPED, text)
}

/// The same, of at most so many bytes.
pub fn truncated_to<'a>(most: usize, text: impl Into<Cow<'a, str>>) -> String {
    let text = text.into();
    match text.len() > most {
        true => format!("{}...", &text[..text.floor_char_boundary(most)]),
        false => text.into_owned(),
    }
}
