//! What a client without a certificate sees of the real Envoy, and of the stand-in for it (`crate::sidecar`), with which the
//! other groups test.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Bed;
use super::pod::{self, CLOSED, HTTP, Meshed, short};
use crate::envoy::Settings;
use crate::kubelet::Ended::{self, Closed, Open, Reset};
use crate::kubelet::Probe;
use crate::pod::PodSpec;
use crate::rules::RuleSet;

/// What a client sends and whether it then ends its side, and how the connection ends: with Envoy, and whether the stand-in
/// must do the same. Neither sends a byte.
const EXCHANGES: [(&[u8], bool, Ended, bool); 8] = [
    (
        b"GET /healthy HTTP/1.1\r\nHost: app\r\n\r\n",
        false,
        Reset,
        true,
    ),
    (
        b"GET /healthy HTTP/1.1\r\nHost: app\r\n\r\n",
        true,
        Reset,
        true,
    ),
    (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        false,
        Reset,
        true,
    ),
    (b"", false, Open, true),
    (b"", true, Closed, true),
    (b"\x16\x03", false, Open, true),
    // Envoy decides after five bytes, a TLS record's header; the stand-in after one.
    (b"G", false, Open, false),
    // Envoy does not read what it refuses, so its close becomes a reset.
    (b"\x16\x03\x01\x00\x05hello", false, Reset, false),
];

/// How long a connection must stay open to count as such.
const STAYS_OPEN: Duration = Duration::from_millis(200);

pub(super) fn refusals(bed: Bed<'_>, name: &str) -> Result<()> {
    let rules = RuleSet::IstioRedirect;
    let settings = Settings::strict(rules.proxy().context("no proxy")?, HTTP);
    let meshed = Meshed::start(bed, pod::spec(name, rules), settings)?;
    let stand_in = PodSpec::new(&format!("{name}-stand-in"))
        .rules(rules)
        .app(pod::app())
        .start(&bed.env.run)?;
    for (index, ip) in meshed.pod.ns.ips().into_iter().enumerate() {
        for (send, finish, ended, same) in EXCHANGES {
            let exchange = |ip| {
                let probe = match finish {
                    true => Probe::raw_to_the_end(ip, HTTP, send),
                    false => Probe::raw(ip, HTTP, send),
                };
                // Nothing but this timeout ends a connection that stays open.
                let probe = match ended {
                    Open => probe.timeout(STAYS_OPEN),
                    _ => probe,
                };
                bed.env.bystander.probe(&probe)
            };
            let sent = String::from_utf8_lossy(send);
            let result = exchange(ip)?;
            ensure!(
                result.ended == Some(ended) && result.body.is_empty(),
                "Envoy, to {sent:?}: {result:?}"
            );
            if same {
                let result = exchange(stand_in.ns.ips()[index])?;
                ensure!(
                    result.ended == Some(ended) && result.body.is_empty(),
                    "the stand-in, to {sent:?}: {result:?}"
                );
            }
        }
    }
    for ns in [&meshed.pod.ns, &stand_in.ns] {
        for ip in ns.ips() {
            for probe in [
                Probe::https(ip, HTTP, "/healthy"),
                Probe::https(ip, CLOSED, "/healthy"),
                short(Probe::grpc(ip, HTTP, "ok")),
            ] {
                let result = bed.env.bystander.probe(&probe)?;
                ensure!(
                    !result.passed() && result.status.is_none(),
                    "{probe:?}: {result:?}"
                );
            }
            let closed = bed
                .env
                .run
                .mesh()
                .request(ip, CLOSED, "GET / HTTP/1.0\r\n\r\n");
            ensure!(
                closed.as_ref().map_or(true, String::is_empty),
                "a closed port answers the mesh: {closed:?}"
            );
        }
    }
    Ok(())
}
