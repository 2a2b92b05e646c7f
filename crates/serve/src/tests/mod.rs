//! Tests of the handler over real sockets on loopback, with stand-ins for the eBPF programs.

mod harness;
mod hooks;
mod lanes;
mod native;
mod relay;
mod rewritten;
mod servers;
mod serving;
mod splice;

pub(super) use harness::client_hello;
