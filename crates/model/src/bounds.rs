//! Limits on what is kept of one pod, so that no pod uses up the memory or map entries that all pods share.

use std::borrow::Cow;

/// Maximum length of the head of a request or an answer. Bytes.
pub const HEAD_LIMIT: usize = 16 * 1024;
/// Maximum number of headers of a request or an answer.
pub const HEADERS_LIMIT: usize = 256;

/// Maximum number of probes and hooks served for one pod: five for each of 200 containers.
pub const PROBES_LIMIT: usize = 1000;
/// Maximum total length of the paths, services and User-Agents that are kept of one pod. Bytes.
pub const TEXT_LIMIT: usize = 64 * 1024;
/// Maximum number of skipped probes of one pod that are kept with the reason.
pub const SKIPPED_LIMIT: usize = 256;

/// Reserved for the kubelet's own part of a request's head: request line, Host, User-Agent, Accept, Connection. Bytes.
const KUBELETS_BYTES: usize = 1024;
/// Maximum number of headers that the kubelet adds itself.
const KUBELETS_HEADERS: usize = 4;
/// Maximum length of what a Pod adds to a request that the handler reads, or to a gRPC call. Bytes.
pub const REQUEST_LIMIT: usize = HEAD_LIMIT - KUBELETS_BYTES;
/// Maximum number of headers that a Pod adds to such a request.
pub const REQUEST_HEADERS_LIMIT: usize = HEADERS_LIMIT - KUBELETS_HEADERS;

/// Maximum length of a text for display that a Pod's author chose. Bytes.
const CLIPPED: usize = 256;

/// Counts what the daemon keeps of one pod.
#[derive(Default)]
pub struct Quota {
    probes: usize,
    text: usize,
}

impl Quota {
    /// Whether one more probe with `text` bytes of text fits; if so, counts it.
    pub fn one_more(&mut self, text: usize) -> bool {
        let fits = self.probes < PROBES_LIMIT && self.text + text <= TEXT_LIMIT;
        if fits {
            self.probes += 1;
            self.text += text;
        }
        fits
    }
}

/// `text`, which a Pod's author chose, truncated for display.
pub fn truncated(text: &str) -> String {
    truncated_to(CLIPPED, text)
}

/// `text` truncated to at most `most` bytes, with `...` appended if it was longer.
pub fn truncated_to<'a>(most: usize, text: impl Into<Cow<'a, str>>) -> String {
    let text = text.into();
    match text.len() > most {
        true => format!("{}...", &text[..text.floor_char_boundary(most)]),
        false => text.into_owned(),
    }
}
