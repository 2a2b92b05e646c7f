#!/usr/bin/env bash
# A parser of the text format 0.0.4 accepts the output of crate prometheus-client, but finds no counter in it.
# Needs cargo with a registry of crates, and python3 with pip and a registry of packages.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cargo init --quiet --name finding
cargo add --quiet 'prometheus-client@=0.25.2'
cat > src/main.rs <<'RUST'
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

fn main() {
    let mut registry = Registry::default();
    registry.register("events", "Events", <Counter>::default());
    let mut text = String::new();
    encode(&mut text, &registry).expect("text");
    print!("{text}");
}
RUST
cargo run --quiet > metrics.txt
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check prometheus-client==0.26.0
cat > finding.py <<'PYTHON'
import prometheus_client.openmetrics.parser as openmetrics
import prometheus_client.parser as text

for parser in (openmetrics, text):
    for family in parser.text_string_to_metric_families(open("metrics.txt").read()):
        print(family.type, [sample.name for sample in family.samples], end=" ")
PYTHON
seen=$(python/bin/python finding.py)
grep -A1 '^name = "prometheus-client"' Cargo.lock
python/bin/pip freeze
echo "It is OpenMetrics, whose comments name a counter without _total: as text the counter has no samples, and the sample no type."
echo "seen: $seen"
[ "$seen" = "counter ['events_total'] counter [] unknown ['events_total'] " ]
