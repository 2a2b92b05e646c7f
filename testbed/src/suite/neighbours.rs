//! A pod's actions in its own network namespace delay neither other pods nor the daemon.
//!
//! Each attack is bounded in number and ends with its case.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kernel::cputime::thread_cpu_time;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::cases::Cases;
use super::env::{Env, has_kernel_path};
use super::sample_pod::{self, HTTP, Probing};
use crate::app::AppSpec;
use crate::bpf::Map;
use crate::kubelet::Probe;
use crate::netns::NetNs;
use crate::pod::{Pod, PodSpec};
use crate::{command, pace, wait};

const SOON: Duration = Duration::from_secs(10);
/// How soon a new pod must be served during an attack. Without an attack it takes 25 ms; it took more than 600 ms when the daemon's
/// main thread inspected namespaces and dialled.
const SERVED: Duration = Duration::from_millis(300);
/// Number of new pods; the median is compared.
const NEW: usize = 5;
/// Processor time of a dial in the expensive pod.
const COST: Duration = Duration::from_millis(100);
/// Number of rules in a chain, and how often a second chain traverses it.
const RULES: usize = 500;
const ROUNDS: usize = 100;
/// Maximum number of traversals of the second chain per packet.
const JUMPS: usize = 4_000;
/// Number of addresses and listeners of the changing pod; fewer if the descriptor limit is lower.
const ADDRESSES: usize = 1_000;
const LISTENERS: usize = 18_000;
const FIRST_LISTENER: u16 = 40_000;
/// Maximum number of times that addresses are added and removed, and how many at a time.
const FLAPS: usize = 2_000;
const AT_ONCE: usize = 20;

/// Number of pods with costly rules, and of pods that start beside them.
const WAITING: usize = 6;

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &["--scope", "all"])?;
    cases.case("lo-down", || lo_down(&env));
    for (name, case) in [
        ("rules-that-cost", rules_that_cost as fn(&Env) -> Result<()>),
        ("addresses-and-listeners-that-flap", flapping),
        ("dials-that-wait-for-others", dials_that_wait),
        ("rules-that-begin-to-cost", rules_that_begin_to_cost),
    ] {
        if !cases.skip_if_emulated(name) {
            cases.case(name, || case(&env));
        }
    }
    Ok(())
}

/// A pod without a mesh that answers 200 on `/healthy`.
fn plain(name: &str) -> PodSpec {
    PodSpec::new(name)
        .app(AppSpec::new().http(HTTP))
        .container(sample_pod::container(
            "web",
            sample_pod::http(HTTP, "/healthy"),
            sample_pod::http(HTTP, "/failing"),
        ))
}

fn obstacle(env: &Env, pod: &Pod) -> Option<String> {
    let status = env.daemon.pod_status(pod.name()).ok()??;
    Some(status["obstacle"].as_str()?.to_owned())
}

fn pods_in_state(env: &Env, state: &str) -> Result<f64> {
    let metrics = env.daemon.metrics()?;
    Ok(metrics.sum("probe_handler_pods", &[("state", state)]))
}

/// A dial inside the pod uses lo, the kubelet's connection does not: a probe that passes without the daemon must pass with it.
fn lo_down(env: &Env) -> Result<()> {
    let pod = env.pod(plain("no-loopback"))?;
    let probe = |path: &str| Probe::http(pod.ns.ipv4(), HTTP, path).timeout(Duration::from_secs(2));
    let served = |path: &str| -> Result<bool> {
        let before = env.daemon.counter("redirected")?;
        let result = env.kubelet.probe(&probe(path))?;
        let expected = if path == "/healthy" { 200 } else { 503 };
        ensure!(result.status == Some(expected), "{path}: {result:?}");
        Ok(env.daemon.counter("redirected")? > before)
    };
    ensure!(served("/healthy")?, "the pod is not served to begin with");
    pod.ns.ip("link set lo down\n")?;
    let why = wait::until("the pod not to be served", SOON, || obstacle(env, &pod))?;
    ensure!(why.contains("lo"), "it does not say why: {why}");
    for path in ["/healthy", "/failing"] {
        ensure!(!served(path)?, "{path} went through the handler");
    }
    ensure!(
        pods_in_state(env, "lo_down")? > 0.5,
        "metrics do not say so"
    );
    let table = env.daemon.status_command(&[])?;
    let what = match has_kernel_path() {
        true => "served only by the kernel path",
        false => "not served",
    };
    ensure!(
        table.contains(&format!("no-loopback is {what}: its loopback interface")),
        "status does not say so:\n{table}"
    );
    pod.ns.ip("link set lo up\n")?;
    wait::until("the pod to be served again", SOON, || {
        obstacle(env, &pod).is_none().then_some(())
    })?;
    for path in ["/healthy", "/failing"] {
        ensure!(served(path)?, "{path} did not go through the handler");
    }

    // A pod whose lo was never up.
    let unfinished = plain("never-loopback").start(&env.run)?;
    unfinished.ns.ip("link set lo down\n")?;
    let mut unfinished = unfinished;
    unfinished.publish(env.daemon.pods())?;
    wait::until("the pod not to be served", SOON, || {
        obstacle(env, &unfinished)
    })?;
    let _passed = env.passes(&Probe::http(unfinished.ns.ipv4(), HTTP, "/healthy"))?;
    Ok(())
}

/// Each dial inside the pod traverses millions of its rules, and its addresses change continuously so that the daemon
/// dials repeatedly.
fn rules_that_cost(env: &Env) -> Result<()> {
    let victim = env.pod(sample_pod::pod("victim-of-rules"))?;
    let mut pod = plain("costly").start(&env.run)?;
    let cost = make_costly(&pod.ns)?;
    println!("     a dial in the pod costs {cost:?} of processor time");
    pod.publish(env.daemon.pods())?;
    let flaps = Flaps::start(&pod.ns, 1);
    let begun = Instant::now();
    let beside = beside(env, &victim, "rules");
    let why = wait::until("the costly pod not to be served", SOON, || {
        obstacle(env, &pod)
    })?;
    println!("     not served after {:?} at most: {why}", begun.elapsed());
    ensure!(
        why.contains("netfilter rules cost") && pods_in_state(env, "costly")? > 0.5,
        "it does not say why: {why}"
    );
    println!("     {} changes of its addresses meanwhile", flaps.stop()?);
    beside?;
    let probe = Probe::http(pod.ns.ipv4(), HTTP, "/healthy").timeout(Duration::from_secs(5));
    let redirected = env.daemon.counter("redirected")?;
    let _passed = env.passes(&probe)?;
    ensure!(
        env.daemon.counter("redirected")? == redirected,
        "its probe went through the handler"
    );
    let _log = env
        .daemon
        .wait_logged(&["costly", "does not serve it: its own netfilter rules cost"])?;

    // After two cheap dials in a row it is served again.
    pod.ns
        .run(|| command::run("nft", &["delete", "table", "inet", "costly"], "").map(drop))?;
    let begun = Instant::now();
    // The pod's next turn comes after twenty times the cost of its last dial, which is made twice, and after other work of
    // the pod.
    let turns = 2 * 20 * 2 * cost;
    wait::until("the pod to be served again", 2 * SOON + turns, || {
        obstacle(env, &pod).is_none().then_some(())
    })?;
    println!("     served again {:?} later", begun.elapsed());
    env.daemon.wait_served(&pod)
}

/// A pod that is served gets rules that make each dial costly, while the kubelet probes it: its neighbours' probes still have
/// correct results.
fn rules_that_begin_to_cost(env: &Env) -> Result<()> {
    let victim = env.pod(sample_pod::pod("neighbour-of-rules"))?;
    let mut pod = plain("becomes-costly").start(&env.run)?;
    env.daemon.serve(&mut pod)?;
    let costly = Probe::http(pod.ns.ipv4(), HTTP, "/healthy");
    let _passed = env.passes(&costly)?;
    let expected = sample_pod::probes(victim.ns.ipv4().into());
    let neighbours = || expected.iter().map(|case| case.probe.clone()).collect();

    let before = Probing::start(&env.kubelet, neighbours());
    before.more(50)?;
    let before = before.stop()?;
    let cost = make_costly(&pod.ns)?;
    let during = Probing::start(&env.kubelet, neighbours());
    let attack = Probing::start(&env.kubelet, vec![costly; 4]);
    let why = wait::until("the pod not to be served", 4 * SOON, || obstacle(env, &pod))?;
    during.more(50)?;
    let attack = attack.stop()?;
    let during = during.stop()?;
    println!(
        "     a dial costs {cost:?}; {} probes of the pod, until: {why}; neighbours' p50 and p99 before {:?} {:?}, during {:?} {:?}",
        attack.len(),
        sample_pod::percentile(&before, 50),
        sample_pod::percentile(&before, 99),
        sample_pod::percentile(&during, 50),
        sample_pod::percentile(&during, 99),
    );
    for made in before.iter().chain(&during) {
        let case = expected.iter().find(|case| case.probe == made.probe);
        ensure!(
            case.is_some_and(|case| case.matches(&made.result)),
            "a neighbour's probe is wrong: {made:?}"
        );
    }
    Ok(())
}

/// A pod whose canary dial has to wait for costly dials in other pods is served without it, and dialled later.
fn dials_that_wait(env: &Env) -> Result<()> {
    let mut pods = Vec::new();
    for index in 0..WAITING {
        let costly = plain(&format!("slow{index}")).start(&env.run)?;
        let _cost = make_costly(&costly.ns)?;
        pods.push(costly);
    }
    for index in 0..WAITING {
        pods.push(plain(&format!("waits{index}")).start(&env.run)?);
    }
    // All at once: each dial inside a costly pod keeps the others waiting.
    for pod in &mut pods {
        pod.publish(env.daemon.pods())?;
    }
    for pod in pods.iter().skip(WAITING) {
        wait::until("a canary dial that had to wait", 3 * SOON, || {
            let status = env.daemon.pod_status(pod.name()).ok()??;
            (status["canary"]["state"] == "passed").then_some(())
        })
        .with_context(|| format!("{:?}", env.daemon.pod_status(pod.name())))?;
    }
    Ok(())
}

/// Installs rules that make a dial inside the namespace cost [`COST`] or more; returns what it costs.
pub(super) fn make_costly(ns: &NetNs) -> Result<Duration> {
    costly(ns, "output", "oifname \"lo\"", |to| ns.run(|| dial(to)))
}

/// Like [`make_costly`], for a connection from the node.
pub(super) fn make_costly_from_outside(ns: &NetNs) -> Result<Duration> {
    costly(ns, "prerouting", "iifname != \"lo\"", dial)
}

fn costly(
    ns: &NetNs,
    hook: &str,
    interface: &str,
    dial: impl Fn(SocketAddr) -> Result<Duration>,
) -> Result<Duration> {
    let to = SocketAddr::new(ns.ipv4().into(), 65_000);
    let mut jumps = 10;
    loop {
        load(ns, hook, interface, jumps)?;
        // Other packets may be charged to this thread: the minimum counts.
        let costs = (0..3).map(|_| dial(to)).collect::<Result<Vec<_>>>()?;
        let cost = costs.into_iter().min().context("no dial")?;
        if cost >= COST {
            return Ok(cost);
        }
        ensure!(jumps < JUMPS, "{jumps} jumps cost no more than {cost:?}");
        let times = COST.as_nanos() / cost.as_nanos().max(1) + 2;
        jumps = (jumps * usize::try_from(times)?).min(JUMPS);
    }
}

fn load(ns: &NetNs, hook: &str, interface: &str, jumps: usize) -> Result<()> {
    let leaf = "meta mark 0x5eed drop\n".repeat(RULES);
    let twig = "jump leaf\n".repeat(ROUNDS);
    let all = format!("{interface} tcp flags & (syn | ack) == syn jump twig\n").repeat(jumps);
    let rules = format!(
        "table inet costly\ndelete table inet costly\ntable inet costly {{\nchain leaf {{\n{leaf}}}\nchain twig {{\n{twig}}}\n\
         chain each {{\ntype filter hook {hook} priority 0\n{all}}}\n}}\n"
    );
    ns.run(|| command::run("nft", &["-f", "-"], &rules).map(drop))
}

/// The cost of a dial to `to`, on which nothing listens.
fn dial(to: SocketAddr) -> Result<Duration> {
    let before = thread_cpu_time();
    let refused = TcpStream::connect(to).is_err();
    ensure!(refused, "something listens on {to}");
    Ok(thread_cpu_time() - before)
}

/// A thousand addresses, some of which are added and removed, and thousands of listeners.
fn flapping(env: &Env) -> Result<()> {
    let victim = env.pod(sample_pod::pod("victim-of-flaps"))?;
    let mut pod = plain("restless").start(&env.run)?;
    let add = |index: usize| format!("address add {}/32 dev eth0\n", address(index));
    pod.ns.ip(&(0..ADDRESSES).map(add).collect::<String>())?;
    let listeners = listen(&pod.ns)?;
    println!("     {ADDRESSES} addresses, {} listeners", listeners.len());
    pod.publish(env.daemon.pods())?;
    let flaps = Flaps::start(&pod.ns, AT_ONCE);
    let beside = beside(env, &victim, "flaps");
    println!("     {} changes of its addresses meanwhile", flaps.stop()?);
    drop(listeners);
    beside
}

fn address(index: usize) -> IpAddr {
    // The address block for benchmarks (RFC 2544).
    let base = u32::from(Ipv4Addr::new(198, 18, 0, 1));
    Ipv4Addr::from(base + u32::try_from(index).unwrap_or(u32::MAX - base)).into()
}

fn listen(ns: &NetNs) -> Result<Vec<TcpListener>> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let count = LISTENERS.min(usize::try_from(most)?.saturating_sub(1_000));
    ns.run(|| {
        let ports = FIRST_LISTENER..=u16::MAX;
        let listeners = ports
            .take(count)
            .map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
        Ok(listeners.collect::<Result<_, _>>()?)
    })
}

/// Checks that new pods are served soon, and that all probes of an existing pod have correct results.
fn beside(env: &Env, victim: &Pod, name: &str) -> Result<()> {
    let probes = sample_pod::probes(victim.ns.ipv4().into());
    let probing = Probing::start(
        &env.kubelet,
        probes.iter().map(|case| case.probe.clone()).collect(),
    );
    let map = Map::held_by(env.daemon.pid(), "ENDPOINTS")?;
    let mut times = Vec::new();
    for index in 0..NEW {
        let mut pod = sample_pod::pod(&format!("new{index}-{name}")).start(&env.run)?;
        let begun = Instant::now();
        pod.publish(env.daemon.pods())?;
        let address = SocketAddr::new(pod.ns.ipv4().into(), HTTP);
        wait::until("a new pod to be served", 3 * SOON, || {
            map.has(address).ok()?.then_some(())
        })?;
        times.push(begun.elapsed());
        let result = env.passes(&Probe::http(pod.ns.ipv4(), HTTP, "/healthy"))?;
        ensure!(result.status == Some(200), "{result:?}");
    }
    let made = probing.stop()?;
    times.sort_unstable();
    println!(
        "     new pods were served after {times:?}; {} probes of a neighbour, p50 {:?}, p99 {:?}",
        made.len(),
        sample_pod::percentile(&made, 50),
        sample_pod::percentile(&made, 99)
    );
    for made in &made {
        let case = probes.iter().find(|case| case.probe == made.probe);
        ensure!(
            case.is_some_and(|case| case.matches(&made.result)),
            "a neighbour's probe is wrong: {made:?}"
        );
    }
    let middle = times[times.len() / 2];
    ensure!(
        middle < pace::stretch(SERVED),
        "new pods were served after {times:?}"
    );
    Ok(())
}

/// Adds and removes addresses of a pod until it is dropped.
struct Flaps {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<usize>>>,
}

impl Flaps {
    fn start(ns: &NetNs, at_once: usize) -> Self {
        let lines = |what: &str| -> String {
            let line = |index| {
                format!(
                    "address {what} {}/32 dev eth0\n",
                    address(ADDRESSES + index)
                )
            };
            (0..at_once).map(line).collect()
        };
        let lines = [lines("add"), lines("del")];
        let name = ns.name().to_owned();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut flaps = 0;
            while flaps < FLAPS && !stopped.load(Ordering::Relaxed) {
                let lines = &lines[flaps % 2];
                let _done = command::run("ip", &["-netns", &name, "-batch", "-"], lines)?;
                flaps += 1;
            }
            Ok(flaps)
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Stops; returns the number of changes.
    fn stop(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .map_err(|_| anyhow!("the attacker panicked"))?,
            None => bail!("ended before"),
        }
    }
}

impl Drop for Flaps {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
