//! A malicious app or local process does not affect the probes of other pods.

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde_json::json;

use super::cases::Cases;
use super::env::Env;
use super::sample_pod::{self, HTTP, Probing};
use crate::app::{AppSpec, Bind, Protocol};
use crate::kubelet::Probe;
use crate::pace;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::wait;

/// Number of concurrent probes of the hostile pod.
const AT_ONCE: usize = 50;
/// Number of hostile pods at the same time, and of probers for each.
const APPS: usize = 30;
const PROBERS: usize = 2;
/// How long a prober runs during each misbehaviour, and the minimum number of its probes.
const WHILE: Duration = Duration::from_secs(2);
const AT_LEAST: usize = 50;
/// A latency that few probes of the well-behaved pod may reach; its timeout is 1 s.
const SANE: Duration = Duration::from_millis(500);
/// A port on which the app never accepts, and one on which it never answers.
const DEAF: u16 = 8081;
const MUTE: u16 = 8082;
const FLOOD: usize = 2000;
const FLOODERS: usize = 4;
const SOON: Duration = Duration::from_secs(5);

const PATHS: [(&str, &str); 6] = [
    ("slow-headers", "/slow-headers?ms=50"),
    ("endless-headers", "/endless-headers"),
    ("endless-body", "/endless-body"),
    ("slow-body", "/slow-body?ms=50"),
    ("redirect-loop", "/redirect/loop"),
    ("garbage", "/garbage"),
];

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[])?;
    let victim = env.pod(sample_pod::pod("victim"))?;
    let hostile = env.pod(hostile("hostile"))?;
    let ip = hostile.ns.ipv4();
    for (name, path) in PATHS {
        cases.case(name, || {
            beside(&env, &victim, many(&Probe::http(ip, HTTP, path)))
        });
    }
    cases.case("never-accepts", || {
        beside(&env, &victim, many(&Probe::http(ip, DEAF, "/")))
    });
    cases.case("never-answers", || {
        beside(&env, &victim, many(&Probe::http(ip, MUTE, "/")))
    });
    cases.case("many-apps-at-once", || many_apps(&env, &victim));
    cases.case("checks-in-flight-are-bounded", || bound(&env, &hostile));
    cases.case("flood-of-the-handlers-port", || flood(&env, &victim));
    Ok(())
}

fn hostile(name: &str) -> PodSpec {
    let app = AppSpec::new()
        .http(HTTP)
        .listen(Protocol::Deaf, Bind::DualStack, DEAF)
        .tcp(MUTE);
    let mut spec = PodSpec::new(name).rules(RuleSet::IstioRedirect).app(app);
    let paths = PATHS.map(|(name, path)| (name, HTTP, path));
    let others = [
        ("deaf", DEAF, "/"),
        ("mute", MUTE, "/"),
        ("slow", HTTP, "/slow?ms=2000"),
    ];
    for (name, port, path) in paths.into_iter().chain(others) {
        let mut probe = sample_pod::http(port, path);
        if name == "slow" {
            probe["timeoutSeconds"] = json!(5);
        }
        spec = spec.container(json!({"name": name, "image": "app", "livenessProbe": probe}));
    }
    spec
}

/// Many probers for one probe.
fn many(probe: &Probe) -> Vec<Probe> {
    vec![probe.clone(); pace::fewer(AT_ONCE)]
}

/// Many hostile pods at the same time, which misbehave in different ways.
fn many_apps(env: &Env, victim: &Pod) -> Result<()> {
    let mut pods = Vec::new();
    let mut probes = Vec::new();
    let targets = PATHS.map(|(_, path)| (HTTP, path));
    let targets = targets.into_iter().chain([(DEAF, "/"), (MUTE, "/")]);
    for (index, (port, path)) in targets.cycle().take(pace::fewer(APPS)).enumerate() {
        let pod = env.pod(hostile(&format!("hostile-{index}")))?;
        let probe = Probe::http(pod.ns.ipv4(), port, path);
        probes.extend(std::iter::repeat_n(probe, PROBERS));
        pods.push(pod);
    }
    beside(env, victim, probes)
}

/// Probes the victim while `hostile` probes are made, each by its own prober.
fn beside(env: &Env, victim: &Pod, hostile: Vec<Probe>) -> Result<()> {
    let kubelet = Arc::clone(&env.kubelet);
    let before = env.daemon.metric("probe_handler_accepted_total")?;
    let probers = hostile.len();
    let attack = Probing::start(&kubelet, hostile);
    wait::until("the attack to be under way", SOON, || {
        // Slow answers have not arrived yet; it suffices that the handler has the connections.
        let accepted = env.daemon.metric("probe_handler_accepted_total").ok()?;
        (accepted - before >= probers as f64).then_some(())
    })?;
    let made = victim_probed(env, victim)?;
    let attacks = attack.stop()?;
    report(&made, &format!("{} hostile probes", attacks.len()))
}

fn victim_probed(env: &Env, victim: &Pod) -> Result<Vec<sample_pod::TimedProbe>> {
    let probes = sample_pod::probes(victim.ns.ipv4().into());
    let probing = Probing::start(
        &env.kubelet,
        probes.iter().map(|case| case.probe.clone()).collect(),
    );
    let begun = Instant::now();
    wait::until("enough probes of the victim", WHILE * 5, || {
        let enough = begun.elapsed() >= WHILE && probing.so_far().len() >= pace::fewer(AT_LEAST);
        enough.then_some(())
    })?;
    let made = probing.stop()?;
    for made in &made {
        let case = probes.iter().find(|case| case.probe == made.probe);
        ensure!(
            case.is_some_and(|case| case.matches(&made.result)),
            "the victim's probe is wrong: {made:?}"
        );
    }
    Ok(made)
}

fn report(made: &[sample_pod::TimedProbe], beside: &str) -> Result<()> {
    let (p50, p99) = (
        sample_pod::percentile(made, 50),
        sample_pod::percentile(made, 99),
    );
    println!(
        "     {} probes beside {beside}: all true, p50 {p50:?}, p99 {p99:?}",
        made.len()
    );
    // Not the p99, because with few probes a single stall of the machine determines it.
    let p90 = sample_pod::percentile(made, 90);
    ensure!(p90 < pace::stretch(SANE), "p90 is {p90:?}");
    Ok(())
}

/// The number of a pod's concurrent checks is limited according to its declared probes; the rest fail at once.
fn bound(env: &Env, hostile: &Pod) -> Result<()> {
    // Four for each declared check, sixteen at least (pods/registry.rs).
    let limit = (4 * (PATHS.len() + 3)).max(16);
    let probe =
        Probe::http(hostile.ns.ipv4(), HTTP, "/slow?ms=2000").timeout(Duration::from_secs(5));
    let _earlier = hostile.app.take_recorded()?;
    let begun: Vec<_> = (0..AT_ONCE)
        .map(|_| env.kubelet.begin(&probe))
        .collect::<Result<_>>()?;
    let results: Vec<_> = begun
        .into_iter()
        .map(|pending| pending.wait())
        .collect::<Result<_>>()?;
    let passed = results.iter().filter(|result| result.passed()).count();
    let asked = hostile
        .app
        .take_recorded()?
        .iter()
        .filter(|request| request.head.starts_with("GET /slow?"))
        .count();
    println!("     of {AT_ONCE} checks at once {passed} were made; the limit is {limit}");
    ensure!(
        passed == limit && asked == limit,
        "{passed} passed, {asked} reached the app, the limit is {limit}"
    );
    let overloaded = env
        .daemon
        .metrics()?
        .sum("probe_handler_probes_total", &[("reason", "overloaded")]);
    ensure!(
        overloaded >= (AT_ONCE - limit) as f64,
        "only {overloaded} counted as overloaded"
    );
    Ok(())
}

/// A local process opens connection after connection to the handler.
fn flood(env: &Env, victim: &Pod) -> Result<()> {
    let handler = env.daemon.handler()?;
    let to = handler[0];
    ensure!(to.ip().is_loopback(), "the handler listens on {to}");
    let before = env.daemon.metric("probe_handler_unknown_peers_total")?;
    let flooders: Vec<_> = (0..FLOODERS)
        .map(|_| {
            thread::spawn(move || -> Result<usize> {
                let mut answered = 0;
                for _ in 0..FLOOD / FLOODERS {
                    // A reset may come before connect() returns.
                    let Ok(mut stream) = TcpStream::connect_timeout(&to, pace::stretch(SOON))
                    else {
                        continue;
                    };
                    stream.set_read_timeout(Some(pace::stretch(SOON)))?;
                    let mut byte = [0];
                    answered += usize::from(matches!(stream.read(&mut byte), Ok(1..)));
                }
                Ok(answered)
            })
        })
        .collect();
    let made = victim_probed(env, victim)?;
    for flooder in flooders {
        let answered = flooder
            .join()
            .map_err(|_| anyhow!("a flooder panicked"))??;
        ensure!(
            answered == 0,
            "{answered} connections of other processes were answered"
        );
    }
    wait::until("every connection to be counted", SOON, || {
        let counted = env
            .daemon
            .metric("probe_handler_unknown_peers_total")
            .ok()?
            - before;
        (counted >= FLOOD as f64).then_some(())
    })?;
    report(&made, &format!("{FLOOD} connections by hand"))
}
