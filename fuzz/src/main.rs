//! Fuzz targets, one for each parser of bytes from outside. `cargo xtask fuzz` runs them.
//!
//! All targets are in one program, because linking one for each takes minutes. `FUZZ_TARGET` selects the target.

#![no_main]

mod node;
mod objects;
mod text;
mod wire;

use std::sync::LazyLock;

type Target = fn(&[u8]);

/// The targets and their names, which are also the names of their corpora.
const TARGETS: [(&str, Target); 14] = [
    ("request-head", wire::request_head),
    ("response-head", wire::response_head),
    ("http2-answer", wire::http2_answer),
    ("grpc-answer", wire::grpc_answer),
    ("redirect", wire::redirect),
    ("certificate", wire::certificate),
    ("first-bytes", wire::first_bytes),
    ("probers", objects::probers),
    ("pod", objects::pod),
    ("admission", objects::admission),
    ("review", objects::review),
    ("yaml", text::yaml),
    ("inject", text::inject),
    ("proc", node::proc),
];

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    match TARGETS.iter().find(|(known, _)| *known == name) {
        Some((_, target)) => *target,
        None => panic!(
            "FUZZ_TARGET is {name:?}: set it to one of {:?}",
            TARGETS.map(|(name, _)| name)
        ),
    }
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
