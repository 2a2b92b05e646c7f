//! Connections that match no declared probe are not exempt: on a probed port the mesh handles them as
//! without the daemon, and without a mesh they reach the app unchanged.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cases::Cases;
use super::env::{Env, HANDLER_PATH};
use super::pod_pair::{Family, declare, grpc_of, http_get, https_get};
use crate::app::tls::Certificate;
use crate::app::{AppSpec, Bind, Protocol};
use crate::kubelet::{Ended, Probe};
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::sidecar::Counts;

const HTTP: u16 = 8080;
const HTTPS: u16 = 8443;
const GRPC: u16 = 9090;
const ECHO: u16 = 7000;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const LARGE: usize = 5 << 20;

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &["--scope", "all", HANDLER_PATH])?;
    meshed(cases, &env)?;
    plain(cases, &env)
}

fn spec(name: &str) -> PodSpec {
    let app = AppSpec::new()
        .http(HTTP)
        .https(HTTPS, Certificate::SelfSigned)
        .grpc(GRPC)
        .listen(Protocol::Echo, Bind::DualStack, ECHO);
    declare(
        PodSpec::new(name).app(app),
        [
            http_get(HTTP, "/healthy?declared=yes"),
            http_get(ECHO, "/healthy?declared=yes"),
            https_get(HTTPS, "/healthy"),
            grpc_of(GRPC, "ok"),
        ],
    )
}

/// Requests on an HTTP port that match no declared probe.
fn undeclared() -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: &str| text.as_bytes().to_vec();
    let declared = "/healthy?declared=yes";
    vec![
        (
            "other-path",
            text("GET /admin HTTP/1.1\r\nHost: app\r\n\r\n"),
        ),
        (
            "no-query",
            text("GET /healthy HTTP/1.1\r\nHost: app\r\n\r\n"),
        ),
        (
            "other-query",
            text("GET /healthy?declared=no HTTP/1.1\r\nHost: app\r\n\r\n"),
        ),
        (
            "longer-query",
            text(&format!("GET {declared}&x HTTP/1.1\r\nHost: app\r\n\r\n")),
        ),
        (
            "post",
            text(&format!(
                "POST {declared} HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody"
            )),
        ),
        (
            "head",
            text(&format!("HEAD {declared} HTTP/1.1\r\nHost: app\r\n\r\n")),
        ),
        (
            "get-with-a-body",
            text(&format!(
                "GET {declared} HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody"
            )),
        ),
        (
            "chunked-body",
            text(&format!(
                "GET {declared} HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n\
                 4\r\nbody\r\n0\r\n\r\n"
            )),
        ),
        (
            "second-request-behind-it",
            text(&format!(
                "GET {declared} HTTP/1.1\r\nHost: app\r\n\r\nGET /admin HTTP/1.1\r\nHost: app\r\n\r\n"
            )),
        ),
        (
            "absolute-target",
            text(&format!(
                "GET http://app{declared} HTTP/1.1\r\nHost: app\r\n\r\n"
            )),
        ),
        (
            "upgrade-to-http2",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        ),
        ("garbage", (0..=255).rev().collect()),
        (
            "huge-head",
            text(&format!(
                "GET {declared} HTTP/1.1\r\nHost: app\r\nX-Huge: {}\r\n\r\n",
                "x".repeat(20 << 10)
            )),
        ),
    ]
}

/// In a STRICT mesh: the sidecar resets the connection, like that of any process.
fn meshed(cases: &mut Cases, env: &Env) -> Result<()> {
    let pod = env.pod(spec("meshed").rules(RuleSet::IstioRedirect))?;
    for family in FAMILIES {
        let ip = family.ip(&pod.ns);
        cases.case(&format!("meshed/{}/declared", family.name()), || {
            let before = counts(&pod)?;
            for probe in [
                Probe::http(ip, HTTP, "/healthy?declared=yes"),
                Probe::https(ip, HTTPS, "/healthy"),
                Probe::grpc(ip, GRPC, "ok"),
            ] {
                let _passed = env.passes(&probe)?;
            }
            let after = counts(&pod)?;
            ensure!(before == after, "the mesh saw them: {before:?} {after:?}");
            Ok(())
        });
        for (name, bytes) in undeclared() {
            cases.case(&format!("meshed/{}/{name}", family.name()), || {
                meets_the_mesh(env, &pod, family, HTTP, &bytes)
            });
        }
        let plaintext = b"GET /healthy HTTP/1.1\r\nHost: app\r\n\r\n";
        for (name, port) in [("https", HTTPS), ("grpc", GRPC)] {
            let case = format!("meshed/{}/plaintext-on-{name}", family.name());
            cases.case(&case, || meets_the_mesh(env, &pod, family, port, plaintext));
        }
    }
    Ok(())
}

fn counts(pod: &Pod) -> Result<Counts> {
    pod.sidecar.as_ref().context("a sidecar")?.counts()
}

/// Fails unless the sidecar ends the kubelet's connection like that of any other process, and the app
/// receives nothing of it.
fn meets_the_mesh(env: &Env, pod: &Pod, family: Family, port: u16, bytes: &[u8]) -> Result<()> {
    let _before = pod.app.take_recorded()?;
    let probe = Probe::raw(family.ip(&pod.ns), port, bytes);
    let before = counts(pod)?;
    let ours = env.kubelet.probe(&probe)?;
    let after = counts(pod)?;
    let anybody = env.bystander.probe(&probe)?;
    ensure!(
        after.refused == before.refused + 1,
        "refused by the sidecar once: {before:?}, {after:?}, {ours:?}"
    );
    ensure!(
        ours.ended == Some(Ended::Reset) && ours.ended == anybody.ended && ours.body.is_empty(),
        "reset as anybody's: {ours:?} {anybody:?}"
    );
    let heard = pod.app.take_recorded()?;
    ensure!(heard.is_empty(), "the app heard of it: {heard:?}");
    Ok(())
}

/// Without a mesh: the app receives every byte, and the kubelet every byte of the answer.
fn plain(cases: &mut Cases, env: &Env) -> Result<()> {
    let pod = env.pod(spec("plain"))?;
    for family in FAMILIES {
        let ip = family.ip(&pod.ns);
        for (name, bytes) in undeclared() {
            cases.case(&format!("no-mesh/{}/{name}", family.name()), || {
                echoed(env, &pod, family, &bytes)
            });
        }
        cases.case(
            &format!("no-mesh/{}/5-mib-both-ways", family.name()),
            || {
                let mut bytes = format!("POST /up HTTP/1.1\r\nContent-Length: {LARGE}\r\n\r\n");
                bytes.extend((0..LARGE).map(|index| char::from(b'a' + (index * index % 23) as u8)));
                echoed(env, &pod, family, bytes.as_bytes())
            },
        );
        cases.case(
            &format!("no-mesh/{}/answer-unchanged", family.name()),
            || {
                let request =
                    b"GET /large-body?kb=64 HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n";
                let probe = Probe::raw(ip, HTTP, request);
                let ours = env.kubelet.probe(&probe)?;
                let plain = env.bystander.probe(&probe)?;
                ensure!(
                    ours.body == plain.body
                        && ours.ended == plain.ended
                        && ours.body.len() > 64 << 10,
                    "{ours:?} {plain:?}"
                );
                Ok(())
            },
        );
    }
    Ok(())
}

fn echoed(env: &Env, pod: &Pod, family: Family, bytes: &[u8]) -> Result<()> {
    let _before = pod.app.take_recorded()?;
    let probe =
        Probe::raw_to_the_end(family.ip(&pod.ns), ECHO, bytes).timeout(Duration::from_secs(20));
    let result = env.kubelet.probe(&probe)?;
    // Bytes that are not text are replaced.
    let expected = String::from_utf8_lossy(bytes);
    ensure!(
        result.body == expected && result.ended == Some(Ended::Closed),
        "{} bytes of {} came back, {:?} {}",
        result.body.len(),
        expected.len(),
        result.ended,
        result.message,
    );
    // There may be another connection without data, which the daemon opened before it had recognised the request.
    let (node4, node6) = env.run.node_ips();
    let seen = pod.app.take_recorded()?;
    let relayed = seen.iter().filter(|one| {
        let ip = one.peer.ip().to_canonical();
        one.protocol == "echo" && (ip == node4 || ip == node6)
    });
    ensure!(
        relayed.count() == 1,
        "one connection from the node: {seen:?}"
    );
    Ok(())
}
