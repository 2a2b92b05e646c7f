//! On a gRPC port the app receives nothing before the kubelet has sent the complete HTTP/2 preface, and nothing of a
//! connection that the kubelet has abandoned.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::app::{AppSpec, Bind, Protocol};
use crate::command;
use crate::kubelet::{Ended, Probe};
use crate::pace;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::suite::env::{Env, HANDLER_PATH};
use crate::wait;

const PORT: u16 = 9090;
/// The HTTP/2 preface (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Its first line.
const FIRST_LINE: usize = 16;
const SOON: Duration = Duration::from_secs(5);
/// Timeout of the declared probe, in seconds.
const TIMEOUT: u32 = 5;
/// How long the kubelet delays the rest of the preface.
const PAUSE: Duration = Duration::from_millis(800);
/// How long the app must receive nothing.
const WATCHED: Duration = Duration::from_millis(400);
/// When the kubelet abandons an app whose handshake takes a second, because the kernel retransmits a SYN after that time.
const GIVEN_UP: Duration = Duration::from_millis(2500);

pub fn run(cases: &mut Cases) -> Result<()> {
    if !cases.wants("half-preface/waits") && !cases.wants("half-preface/reset") {
        return Ok(());
    }
    let env = Env::start(cases, &[HANDLER_PATH])?;
    let probe = json!({"grpc": {"port": PORT}, "timeoutSeconds": TIMEOUT});
    let pod = env.pod(
        PodSpec::new("preface")
            .rules(RuleSet::IstioRedirect)
            .app(AppSpec::new().listen(Protocol::Echo, Bind::DualStack, PORT))
            .container(json!({"name": "api", "image": "app", "livenessProbe": probe})),
    )?;
    for (name, ip) in [
        ("v4", IpAddr::V4(pod.ns.ipv4())),
        ("v6", IpAddr::V6(pod.ns.ipv6())),
    ] {
        cases.case(&format!("half-preface/waits/{name}"), || {
            waits(&env, &pod, ip)
        });
        cases.case(&format!("half-preface/reset/{name}"), || {
            reset(&env, &pod, ip)
        });
    }
    Ok(())
}

/// Waits until the handler has accepted one more connection than `before`.
fn accepted(env: &Env, before: f64) -> Result<()> {
    wait::until("the handler to accept the connection", SOON, || {
        let accepted = env.daemon.metric("probe_handler_accepted_total").ok()?;
        (accepted > before).then_some(())
    })
}

fn waits(env: &Env, pod: &Pod, ip: IpAddr) -> Result<()> {
    let _earlier = pod.app.take_recorded()?;
    let before = env.daemon.metric("probe_handler_accepted_total")?;
    let halves = PREFACE.split_at(FIRST_LINE);
    let probe = Probe::in_halves(ip, PORT, halves, PAUSE).timeout(SOON);
    let pending = env.kubelet.begin(&probe)?;
    accepted(env, before)?;
    wait::pass(pace::stretch(WATCHED))?;
    let heard = pod.app.take_recorded()?;
    let result = pending.wait()?;
    ensure!(
        heard.is_empty(),
        "the first line alone led to the app: {heard:?}"
    );
    ensure!(
        result.body.as_bytes() == PREFACE && result.ended == Some(Ended::Closed),
        "the whole preface was not spliced: {result:?}"
    );
    Ok(())
}

/// The kubelet gives up during the app's slow handshake: both have ended when the handler checks.
fn reset(env: &Env, pod: &Pod, ip: IpAddr) -> Result<()> {
    let _earlier = pod.app.take_recorded()?;
    let before = env.daemon.metric("probe_handler_accepted_total")?;
    let deaf = Deaf::make(pod)?;
    let probe = Probe::raw_then_reset(ip, PORT, PREFACE, GIVEN_UP).timeout(SOON);
    let pending = env.kubelet.begin(&probe)?;
    accepted(env, before)?;
    wait::pass(pace::stretch(WATCHED))?;
    let stopped = env.daemon.stand_still()?;
    drop(deaf);
    wait::until("the app to be connected", SOON, || {
        let recorded = pod.app.take_recorded().ok()?;
        recorded
            .iter()
            .any(|one| one.protocol == "echo")
            .then_some(())
    })?;
    let result = pending.wait()?;
    ensure!(result.passed(), "the kubelet did not reset: {result:?}");
    stopped.resume()?;
    let heard = wait::until("the app's connection to end", SOON, || {
        let mut recorded = pod.app.take_recorded().ok()?.into_iter();
        recorded.find(|one| one.protocol == "heard")
    })?;
    ensure!(
        heard.head.is_empty(),
        "of a connection that was given up the app heard {:?}",
        heard.head
    );
    Ok(())
}

/// While this value exists, no SYN reaches the app.
struct Deaf<'a>(&'a Pod);

impl<'a> Deaf<'a> {
    fn make(pod: &'a Pod) -> Result<Self> {
        let rules = format!(
            "table inet deaf {{\n chain input {{\n type filter hook input priority -300;\n \
             tcp dport {PORT} tcp flags & (syn | ack) == syn drop\n }}\n }}\n"
        );
        pod.ns.run(|| command::run("nft", &["-f", "-"], &rules))?;
        Ok(Self(pod))
    }
}

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        let delete = || command::run("nft", &["delete", "table", "inet", "deaf"], "");
        if let Err(error) = self.0.ns.run(delete) {
            eprintln!("testbed: {error:#}");
        }
    }
}
