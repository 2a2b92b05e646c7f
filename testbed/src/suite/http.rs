//! HTTP probes: whatever the app does, the kubelet gets the same result as in plain Kubernetes, and the app
//! gets the same requests.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::cases::Cases;
use super::env::Env;
use super::pod_pair::{Family, PodPair, declare, http_get, https_get};
use crate::app::tls::Certificate;
use crate::app::{AppSpec, Bind, Protocol};
use crate::kubelet::{Ended, Outcome, Probe};
use crate::pod::PodSpec;
use crate::wait;

const PORT: u16 = 8080;
/// A path that the app serves and no probe declares.
const OTHER: u16 = 8081;
const TLS: u16 = 8440;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Some statuses of apps; 3xx without Location.
const STATUSES: [u16; 43] = [
    200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 299, 300, 301, 302, 303, 304, 305, 307, 308,
    399, 400, 401, 403, 404, 405, 408, 410, 412, 418, 421, 429, 431, 451, 499, 500, 501, 502, 503,
    504, 505, 511, 598, 599,
];
/// Unusual answers that are valid.
const PASSING: [&str; 9] = [
    "/large-headers?kb=8",
    "/large-body?kb=64",
    "/endless-body",
    "/slow-body?ms=4",
    "/slow-headers?ms=4",
    "/chunked",
    "/http10",
    "/continue",
    "/slow?ms=500",
];
/// Answers that are invalid or late, and the reason.
const FAILING: [(&str, &str); 6] = [
    ("/slow?ms=1500", "timed_out"),
    ("/slow-headers", "timed_out"),
    ("/endless-headers", "bad_response"),
    ("/early-close", "connection_closed"),
    ("/reset", "connection_closed"),
    ("/garbage", "bad_response"),
];
/// Answers whose body breaks off or does not end: the kubelet's prober gets an error, and the kubelet discards the result.
const DISCARDED: [&str; 2] = ["/slow-body", "/cut-body"];
/// Redirects that the kubelet follows, and their results.
const REDIRECTS: [(&str, bool); 13] = [
    ("/redirect/same", true),
    ("/redirect/same?status=301", true),
    ("/redirect/same?status=303", true),
    ("/redirect/same?status=307", true),
    ("/redirect/same?status=308", true),
    ("/redirect/relative", true),
    ("/redirect/absolute", true),
    ("/redirect/absolute?port=8081", true),
    ("/redirect/https?port=8440", true),
    ("/redirect/failing", false),
    ("/redirect/loop", false),
    ("/redirect/bad", false),
    ("/redirect/ftp", false),
];
/// Unusual paths.
const PATHS: [&str; 9] = [
    "/healthy",
    "/echo?deep=1&x=%zz",
    "/echo?",
    "?only=query",
    "no-slash",
    "/part#fragment",
    "/a%2fb//c",
    "/with space",
    "",
];
const LARGE: &str = "/large-headers?kb=17";
const HANG: &str = "/hang";
/// Longer than any case waits.
const NEVER: &str = "/slow?ms=60000";
/// The timeout of probes of a slow app.
const PATIENT: Duration = Duration::from_secs(30);
/// Time limit for an expected event.
const SOON: Duration = Duration::from_secs(5);
const OTHER_HOST: &str = "/redirect/other";
const NOT_MODIFIED_WITH_LOCATION: &str = "/redirect/same?status=304";

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[])?;
    let pods = PodPair::start(&env, "http", spec)?;
    cases.case("mesh-is-strict", || pods.mesh_is_strict(PORT));
    answers(cases, &pods);
    discarded(cases, &pods);
    redirects(cases, &pods);
    requests(cases, &pods);
    tls(cases, &pods);
    cases.case("large-headers/beyond-16-kib-fail", || {
        large_headers(&env, &pods)
    });
    cases.case_to_the_millisecond("timeout", || timeout(&pods));
    cases.case("kubelet-hangs-up-first", || hang_up(&env, &pods));
    cases.case("only-the-status-reaches-the-kubelet", || {
        only_the_status(&env, &pods)
    });
    Ok(())
}

/// The certificates, with and without HTTP/2, each on a separate port.
fn tls_ports() -> impl Iterator<Item = (u16, Certificate, bool)> {
    let kinds = Certificate::all()
        .iter()
        .flat_map(|kind| [(*kind, true), (*kind, false)]);
    (TLS..)
        .zip(kinds)
        .map(|(port, (kind, h2))| (port, kind, h2))
}

fn spec(name: &str) -> PodSpec {
    let mut app = AppSpec::new().http(PORT).http(OTHER);
    let mut probes: Vec<Value> = Vec::new();
    for (port, certificate, h2) in tls_ports() {
        let protocol = Protocol::Https { certificate, h2 };
        app = app.listen(protocol, Bind::DualStack, port);
        probes.extend(["/healthy", "/failing"].map(|path| https_get(port, path)));
    }
    let patient = |path: &str| {
        let mut probe = http_get(PORT, path);
        probe["timeoutSeconds"] = json!(PATIENT.as_secs());
        probe
    };
    probes.push(patient(HANG));
    probes.extend(PASSING.map(patient));
    let paths = FAILING
        .into_iter()
        .map(|(path, _)| path)
        .chain(DISCARDED)
        .chain(REDIRECTS.map(|(path, _)| path))
        .chain(PATHS)
        .chain([
            "/failing",
            NEVER,
            LARGE,
            OTHER_HOST,
            "/redirect/none",
            NOT_MODIFIED_WITH_LOCATION,
        ])
        .map(|path| http_get(PORT, path));
    probes.extend(paths);
    probes.extend(STATUSES.map(|status| http_get(PORT, &format!("/status/{status}"))));
    declare(PodSpec::new(name).app(app), probes)
}

fn answers(cases: &mut Cases, pods: &PodPair<'_>) {
    for status in STATUSES {
        cases.case(&format!("status/{status}"), || {
            let path = format!("/status/{status}");
            for family in FAMILIES {
                let pair = pods.same(family, |ip| Probe::http(ip, PORT, &path))?;
                ensure!(
                    pair.ours.status == Some(status) && pair.ours.attempts == 1,
                    "the app's own status, at once: {pair:?}"
                );
            }
            Ok(())
        });
    }
    for path in PASSING {
        cases.case(&format!("passes{path}"), || {
            FAMILIES.into_iter().try_for_each(|family| {
                let probe = |ip| Probe::http(ip, PORT, path).timeout(PATIENT);
                let pair = pods.both_pass(family, probe)?;
                ensure!(pair.ours.body.is_empty(), "no body: {pair:?}");
                ensure!(pods.reason(PORT, path)? == "healthy");
                Ok(())
            })
        });
    }
    for (path, why) in FAILING {
        let name = format!("fails{path}");
        let body = || {
            let pair = pods.both_fail(Family::V4, |ip| Probe::http(ip, PORT, path))?;
            let reason = pods.reason(PORT, path)?;
            ensure!(reason == why, "because of {why}, not {reason}: {pair:?}");
            // The next probe is not affected.
            let next = |ip| Probe::http(ip, PORT, "/healthy");
            pods.both_pass(Family::V4, next).map(drop)
        };
        match why {
            // The daemon's timeout ends some milliseconds before the kubelet's.
            "timed_out" => cases.case_to_the_millisecond(&name, body),
            _ => cases.case(&name, body),
        }
    }
}

fn discarded(cases: &mut Cases, pods: &PodPair<'_>) {
    for path in DISCARDED {
        let name = format!("discarded{path}");
        let body = || {
            let pair = pods.same(Family::V4, |ip| Probe::http(ip, PORT, path))?;
            ensure!(
                pair.ours.outcome == Outcome::Discarded
                    && pair.ours.attempts == pair.plain.attempts
                    && pair.ours.status == pair.plain.status,
                "an error each time: {pair:?}"
            );
            ensure!(pods.reason(PORT, path)? == "body_incomplete");
            let next = |ip| Probe::http(ip, PORT, "/healthy");
            pods.both_pass(Family::V4, next).map(drop)
        };
        match path {
            "/slow-body" => cases.case_to_the_millisecond(&name, body),
            _ => cases.case(&name, body),
        }
    }
}

fn redirects(cases: &mut Cases, pods: &PodPair<'_>) {
    for (path, passes) in REDIRECTS {
        cases.case(&path[1..], || {
            for family in FAMILIES {
                let pair = pods.same(family, |ip| Probe::http(ip, PORT, path))?;
                ensure!(pair.ours.passed() == passes, "passes: {passes}: {pair:?}");
            }
            Ok(())
        });
    }
    cases.case("redirect/requests-are-the-same", || {
        redirected_requests(pods)
    });
    for path in [OTHER_HOST, "/redirect/none", NOT_MODIFIED_WITH_LOCATION] {
        cases.case(&format!("not-followed{path}"), || {
            let pair = pods.both_pass(Family::V4, |ip| Probe::http(ip, PORT, path))?;
            ensure!(pair.ours.outcome == Outcome::Warning, "{pair:?}");
            Ok(())
        });
    }
}

/// Each request of a chain has the same request line and headers; only in the first one are they in the kubelet's order.
fn redirected_requests(pods: &PodPair<'_>) -> Result<()> {
    let sorted = |app: &crate::app::App, ip: IpAddr| -> Result<Vec<Vec<String>>> {
        let recorded = app.take_recorded()?;
        Ok(recorded
            .iter()
            .map(|one| {
                let head = one.head.replace(&ip.to_string(), "POD");
                let mut lines: Vec<String> = head.lines().map(ToOwned::to_owned).collect();
                lines[1..].sort();
                lines.insert(0, format!("port {}", one.port));
                lines
            })
            .collect())
    };
    for path in [
        "/redirect/same",
        "/redirect/relative",
        "/redirect/absolute?port=8081",
        "/redirect/loop",
    ] {
        for host in [None, Some("app.example")] {
            let (_, _) = (
                pods.meshed.app.take_recorded()?,
                pods.plain.app.take_recorded()?,
            );
            let pair = pods.same(Family::V4, |ip| {
                let probe = Probe::http(ip, PORT, path).header("X-Custom", "1");
                match host {
                    Some(host) => probe.header("Host", host),
                    None => probe,
                }
            })?;
            let ours = sorted(&pods.meshed.app, pods.meshed.ns.ipv4().into())?;
            let plain = sorted(&pods.plain.app, pods.plain.ns.ipv4().into())?;
            ensure!(plain.len() > 1, "a redirect was followed: {pair:?}");
            ensure!(ours == plain, "{path}: {ours:#?}, not {plain:#?}");
        }
    }
    Ok(())
}

fn requests(cases: &mut Cases, pods: &PodPair<'_>) {
    for path in PATHS {
        let name = path.replace('/', "|");
        cases.case(&format!("request/path {name:?}"), || {
            for family in FAMILIES {
                let _same = pods.same_requests(family, |ip| Probe::http(ip, PORT, path))?;
            }
            Ok(())
        });
    }
    let kinds: [(&str, &[(&str, &str)]); 7] = [
        ("custom", &[("X-Custom", "one"), ("x-lower-case", "two")]),
        ("several-values", &[("X-Same", "b"), ("X-Same", "a")]),
        ("host", &[("Host", "app.example")]),
        ("host-with-port", &[("host", "app.example:8080")]),
        ("user-agent", &[("User-Agent", "my-own/1")]),
        ("no-accept", &[("Accept", "")]),
        (
            "cookies-and-credentials",
            &[("Authorization", "Bearer x"), ("Cookie", "a=b; c=d")],
        ),
    ];
    for (name, headers) in kinds {
        cases.case(&format!("request/headers-{name}"), || {
            let recorded = pods.same_requests(Family::V4, |ip| {
                headers
                    .iter()
                    .fold(Probe::http(ip, PORT, "/healthy"), |probe, (name, value)| {
                        probe.header(name, value)
                    })
            })?;
            let head = &recorded[0].head;
            for (_, value) in headers {
                ensure!(head.contains(value), "{value:?} is not in {head:?}");
            }
            Ok(())
        });
    }
    cases.case("request/is-exactly-the-kubelets", || {
        let recorded = pods.same_requests(Family::V4, |ip| Probe::http(ip, PORT, "/healthy"))?;
        let ip = pods.meshed.ns.ipv4();
        let expected = format!(
            "GET /healthy HTTP/1.1\r\nHost: {ip}:{PORT}\r\nUser-Agent: kube-probe/1.36\r\n\
             Accept: */*\r\nConnection: close\r\n\r\n"
        );
        ensure!(
            recorded.len() == 1 && recorded[0].head == expected,
            "{recorded:#?}"
        );
        Ok(())
    });
}

fn tls(cases: &mut Cases, pods: &PodPair<'_>) {
    for (port, certificate, h2) in tls_ports() {
        let version = if h2 { "h2" } else { "http1" };
        let name = format!("https/{certificate:?}/{version}").to_lowercase();
        cases.case(&name, || {
            for family in FAMILIES {
                let healthy = |ip| Probe::https(ip, port, "/healthy").header("X-Custom", "1");
                let _passed = pods.both_pass(family, healthy)?;
                let failing = |ip| Probe::https(ip, port, "/failing");
                let pair = pods.both_fail(family, failing)?;
                ensure!(pair.ours.status == Some(503), "the app's status: {pair:?}");
                let recorded = pods.same_requests(family, healthy)?;
                let expected = if h2 { "h2" } else { "http/1.1" };
                ensure!(
                    recorded.iter().all(|one| one.protocol == expected),
                    "{recorded:?}"
                );
            }
            Ok(())
        });
    }
}

/// Our limit of 16 KiB is lower than Go's 10 MiB: a known difference, with a clear error.
fn large_headers(env: &Env, pods: &PodPair<'_>) -> Result<()> {
    let result = env.fails(&Probe::http(pods.meshed.ns.ipv4(), PORT, LARGE))?;
    let reason = pods.reason(PORT, LARGE)?;
    ensure!(
        result.status == Some(500) && reason == "bad_response",
        "{reason}: {result:?}"
    );
    Ok(())
}

/// The kubelet gets its answer at about the probe's timeout, not later.
fn timeout(pods: &PodPair<'_>) -> Result<()> {
    // The daemon's timeout ends some milliseconds before the kubelet's; a busy machine may need that time.
    const TRIES: usize = 5;
    let mut pair = pods.both_fail(Family::V4, |ip| Probe::http(ip, PORT, NEVER))?;
    for _ in 1..TRIES {
        if pair.ours.status.is_some() {
            break;
        }
        pair = pods.both_fail(Family::V4, |ip| Probe::http(ip, PORT, NEVER))?;
    }
    let took = pair.ours.latency;
    println!("     1 s probe of a slower app: answered after {took:?}");
    ensure!(
        pair.ours.status == Some(504) && took > Duration::from_millis(700),
        "{pair:?}"
    );
    Ok(())
}

/// The app sees the connection end, and the daemon drops the check.
fn hang_up(env: &Env, pods: &PodPair<'_>) -> Result<()> {
    let _before = pods.meshed.app.take_recorded()?;
    let request = format!("GET {HANG} HTTP/1.1\r\nHost: app\r\n\r\n");
    let probe = Probe::raw(pods.meshed.ns.ipv4(), PORT, request.as_bytes())
        .timeout(Duration::from_millis(200));
    let result = env.kubelet.probe(&probe)?;
    ensure!(result.ended == Some(Ended::Open), "no answer: {result:?}");
    let since = Instant::now();
    let mut seen = Vec::new();
    wait::until("the app to be hung up on", SOON, || {
        seen.extend(pods.meshed.app.take_recorded().ok()?);
        seen.iter()
            .any(|one| one.protocol == "hung-up")
            .then_some(())
    })
    .with_context(|| format!("the app saw {seen:?}"))?;
    println!("     the app was hung up on within {:?}", since.elapsed());
    ensure!(pods.reason(PORT, HANG)? == "cancelled");
    Ok(())
}

/// The kubelet gets neither the body nor the headers of the app.
fn only_the_status(env: &Env, pods: &PodPair<'_>) -> Result<()> {
    for (path, status) in [
        ("/healthy", "200 OK"),
        ("/failing", "503 Service Unavailable"),
        ("/status/418", "418 I'm a teapot"),
        ("/large-body?kb=64", "200 OK"),
        ("/large-headers?kb=8", "200 OK"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n");
        for family in FAMILIES {
            let ip = family.ip(&pods.meshed.ns);
            let result = env
                .kubelet
                .probe(&Probe::raw(ip, PORT, request.as_bytes()))?;
            let expected =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            if result.body != expected {
                bail!("{path}: {result:?}");
            }
            ensure!(result.ended == Some(Ended::Closed), "{result:?}");
        }
    }
    Ok(())
}
