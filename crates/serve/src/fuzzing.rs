//! Entry points of the fuzz targets into private parsers.

use crate::client_hello::may_be_probe;
use crate::idle::Watch;
use crate::observed::{End, Observer as _};
use crate::saved_syn::isn;

/// The first bytes of a connection, and TLS records of both ends; the packet of a SYN.
pub fn first_bytes(bytes: &[u8]) {
    let _ = may_be_probe(bytes);
    let _ = isn(bytes);
    let (hello, rest) = bytes.split_at(bytes.len() / 2);
    let watch = Watch::new(hello);
    watch.see(End::App, rest);
    watch.see(End::Kubelet, rest);
    let _ = watch.idle_for();
}
