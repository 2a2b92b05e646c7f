//! The handler over real sockets on loopback, with a stand-in for the kernel side.

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
