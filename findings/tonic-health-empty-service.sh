#!/usr/bin/env bash
# A server of crate tonic-health answers SERVING for the empty service, even if every service that it was given is not serving.
# Needs cargo and a registry of crates.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cargo init --quiet --name finding
cargo add --quiet 'tonic-health@=0.14.9'
cargo add --quiet 'tokio@=1.54.1' --features rt,macros
cat > src/main.rs <<'RUST'
use tonic_health::ServingStatus::NotServing;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (reporter, server) = tonic_health::server::health_reporter();
    reporter.set_service_status("shop.Cart", NotServing).await;
    let mut client = HealthClient::new(server);
    for service in ["shop.Cart", ""] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = client.check(request).await.expect("an answer").into_inner();
        print!("{service:?}: {:?} ", answer.status());
    }
}
RUST
seen=$(cargo run --quiet)
grep -A1 '^name = "tonic-health"' Cargo.lock
echo "The empty service, which a kubelet's gRPC probe without \"service\" requests, is SERVING from the start and independent of the others."
echo "seen: $seen"
[ "$seen" = '"shop.Cart": NotServing "": Serving ' ]
