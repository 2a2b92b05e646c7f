#!/usr/bin/env bash
# With crate socket2 a linger of half a second resets the connection at once, as a linger of 0 does.
# Needs cargo and a registry of crates.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cargo init --quiet --name finding
cargo add --quiet 'socket2@=0.6.5'
cat > src/main.rs <<'RUST'
use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

fn main() {
    for millis in [1900, 500] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let linger = Some(Duration::from_millis(millis));
        client.set_linger(linger).expect("linger");
        let address = listener.local_addr().expect("an address");
        client.connect(&address.into()).expect("a connection");
        let (mut server, _) = listener.accept().expect("a connection");
        drop(client);
        let end = server.read(&mut [0]).map_err(|error| error.kind());
        print!("{millis} ms: {end:?} ");
    }
}
RUST
seen=$(cargo run --quiet)
grep -A1 '^name = "socket2"' Cargo.lock
echo "set_linger cuts the duration to whole seconds, so below one second close() sends a RST instead of waiting."
echo "seen: $seen"
[ "$seen" = "1900 ms: Ok(0) 500 ms: Err(ConnectionReset) " ]
