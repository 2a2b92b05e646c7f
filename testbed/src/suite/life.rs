//! Pods, namespaces and addresses are created and removed: no answer comes from the wrong pod, and no resource is
//! leaked.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kernel::addresses::Routes;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::cases::Cases;
use super::env::Env;
use super::sample_pod::{self, HTTP, Probing, TimedProbe};
use crate::kubelet::Probe;
use crate::netns::NetNs;
use crate::pod::Pod;
use crate::{command, pace, wait};

const SOON: Duration = Duration::from_secs(5);
/// The maximum number of pods in the churn, and its maximum duration.
const CHURN: usize = 200;
const CHURN_TIME: Duration = Duration::from_secs(20);
/// How many equal readings in a row count as the idle daemon's resources.
const SETTLED: usize = 50;
/// The status that only the second pod of a pair returns.
const OTHER: u16 = 418;

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[])?;
    cases.case("removed", || removed(&env));
    cases.case("namespace-gone-and-back", || gone_and_back(&env));
    cases.case("address-moved", || moved(&env));
    cases.case("address-claimed-twice", || claimed_twice(&env));
    cases.case("address-before-its-route", || before_its_route(&env));
    cases.case("no-time-wait-in-the-pod", || no_time_wait(&env));
    let full = Env::start(cases, &["--endpoints-capacity", "2"])?;
    cases.case("map-full", || map_full(&full));
    drop(full);
    cases.case("full-accept-queue", || full_accept_queue(&env));
    cases.case("churn", || churn(&env));
    Ok(())
}

/// An app that closes a connection first keeps it in TIME_WAIT for a minute, and with it one of the pod's ports; a
/// probe must not cause that.
fn no_time_wait(env: &Env) -> Result<()> {
    let pod = env.pod(sample_pod::pod("waiting"))?;
    let waiting = || {
        let mut count = 0;
        for table in ["tcp", "tcp6"] {
            let table = fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
            // Column "st": TCP_TIME_WAIT of include/net/tcp_states.h.
            count += table
                .lines()
                .filter(|line| line.split_ascii_whitespace().nth(3) == Some("06"))
                .count();
        }
        Ok(count)
    };
    let before = pod.ns.run(waiting)?;
    for ip in pod.ns.ips() {
        for _ in 0..10 {
            let _passed = env.passes(&Probe::http(ip, HTTP, "/healthy"))?;
        }
    }
    // The last connection is closed after the probe was answered.
    wait::until("the pod to be as before", SOON, || {
        (pod.ns.run(waiting).ok()? <= before).then_some(())
    })
}

/// With a blackhole route for a block of addresses and a separate route for each (Calico), an address of the block must
/// count neither as the node's nor as unknown.
fn before_its_route(env: &Env) -> Result<()> {
    let node = NetNs::new(&env.run, "blocks")?;
    for kind in ["blackhole", "unreachable", "prohibit"] {
        let routes = ["192.0.2.0/26", "2001:db8::/122"];
        node.ip(&routes
            .map(|block| format!("route add {kind} {block}\n"))
            .concat())?;
        node.run(|| {
            let routes = Routes::new()?;
            for address in ["192.0.2.1", "2001:db8::1"] {
                let is_local = routes.is_local(address.parse()?);
                ensure!(
                    matches!(is_local, Ok(false)),
                    "{kind} {address}: {is_local:?}"
                );
            }
            Ok(())
        })?;
        node.ip(&routes
            .map(|block| format!("route del {kind} {block}\n"))
            .concat())?;
    }
    Ok(())
}

fn endpoints(env: &Env) -> Result<f64> {
    env.daemon.metric("probe_handler_endpoints")
}

fn same(a: f64, b: f64) -> bool {
    (a - b).abs() < f64::EPSILON
}

/// Waits until the daemon serves `number` endpoints.
fn wait_endpoints(env: &Env, number: f64) -> Result<()> {
    wait::until(&format!("{number} endpoints"), SOON, || {
        same(endpoints(env).ok()?, number).then_some(())
    })
}

fn removed(env: &Env) -> Result<()> {
    let before = endpoints(env)?;
    let mut pod = env.pod(sample_pod::pod("removed"))?;
    sample_pod::check_verdicts(&env.kubelet, pod.ns.ipv4().into())?;
    ensure!(endpoints(env)? > before, "a pod without endpoints");
    pod.withdraw()?;
    let begun = Instant::now();
    wait_endpoints(env, before)?;
    println!(
        "     a removed pod's endpoints went within {:?}",
        begun.elapsed()
    );
    for ip in pod.ns.ips() {
        sample_pod::check_mesh_only(&env.kubelet, ip)?;
    }
    ensure!(
        env.daemon.pod_status(pod.name())?.is_none(),
        "status still knows the pod"
    );
    Ok(())
}

fn pending(env: &Env, pod: &Pod) -> Option<String> {
    let status = env.daemon.pod_status(pod.name()).ok()??;
    Some(status["netns"]["pending"].as_str()?.to_owned())
}

fn gone_and_back(env: &Env) -> Result<()> {
    let before = endpoints(env)?;
    let mut pod = env.pod(sample_pod::pod("phoenix"))?;
    let inode = |status: Value| status["netns"]["known"]["inode"].as_u64();
    let first = env.daemon.pod_status(pod.name())?.and_then(inode);
    pod.die()?;
    let begun = Instant::now();
    let why = wait::until("status to say that the namespace is gone", SOON, || {
        pending(env, &pod)
    })?;
    println!("     noticed after {:?}: {why}", begun.elapsed());
    let path = pod.ns.path().display().to_string();
    ensure!(
        why.contains("gone") || why.contains(&path),
        "it does not say why: {why}"
    );
    wait_endpoints(env, before)?;
    wait::until("the kernel to free the namespace", SOON, || {
        (!pod.ns.lives()).then_some(())
    })?;
    // Without its own route, packets to the address would leave this machine.
    let route = format!("unreachable {}/32", pod.ns.ipv4());
    command::ip_batch(&format!("route add {route}\n"))?;
    let answered = [
        env.fails(&Probe::tcp(pod.ns.ipv4(), sample_pod::OPEN)),
        env.fails(&Probe::http(pod.ns.ipv4(), HTTP, "/healthy")),
    ];
    command::ip_batch(&format!("route del {route}\n"))?;
    for answered in answered {
        let result = answered?;
        ensure!(result.status.is_none(), "an answer: {result:?}");
    }
    let shown = env.daemon.status_command(&[])?;
    ensure!(
        shown.contains("no network namespace"),
        "`status` does not show it:\n{shown}"
    );

    pod.revive(&env.run)?;
    let begun = Instant::now();
    env.daemon.wait_served(&pod)?;
    println!("     served again after {:?}", begun.elapsed());
    let second = env.daemon.pod_status(pod.name())?.and_then(inode);
    ensure!(
        second.is_some() && first.is_some(),
        "no inode in status: {first:?}, {second:?}"
    );
    for ip in pod.ns.ips() {
        sample_pod::check_verdicts(&env.kubelet, ip)?;
    }
    Ok(())
}

/// Two pods whose `/healthy` answers differ, and an additional address of the first one.
fn pair(env: &Env, names: [&str; 2]) -> Result<([Pod; 2], IpAddr)> {
    let first = env.pod(sample_pod::pod(names[0]))?;
    let second = env.pod(sample_pod::pod(names[1]))?;
    second.app.set_status("/healthy", OTHER)?;
    let (_, ip, _) = env.run.next_pod_ips();
    let ip = IpAddr::V4(ip);
    give(env, &first, ip)?;
    Ok(([first, second], ip))
}

/// Adds the address to the pod, and a route to it.
fn give(env: &Env, pod: &Pod, ip: IpAddr) -> Result<()> {
    pod.ns.ip(&format!("address add {ip}/32 dev eth0\n"))?;
    pod.ns.route(ip, &env.run)
}

fn take(pod: &Pod, ip: IpAddr) -> Result<()> {
    pod.ns.ip(&format!("address del {ip}/32 dev eth0\n"))
}

fn wait_status(env: &Env, ip: IpAddr, status: u16) -> Result<()> {
    wait::until(&format!("{status} from {ip}"), SOON, || {
        let result = env.kubelet.probe(&Probe::http(ip, HTTP, "/healthy")).ok()?;
        (result.status == Some(status)).then_some(())
    })
}

fn moved(env: &Env) -> Result<()> {
    let ([first, second], ip) = pair(env, ["mover", "taker"])?;
    wait_status(env, ip, 200)?;
    let probe = Probe::http(ip, HTTP, "/healthy").timeout(Duration::from_millis(300));
    let kubelet = Arc::clone(&env.kubelet);
    let probing = Probing::start(&kubelet, vec![probe.clone(), probe.clone(), probe]);
    let mut there = (&first, &second, 200, OTHER);
    for _ in 0..4 {
        let (from, to, old, new) = there;
        take(from, ip)?;
        let taken = Instant::now();
        give(env, to, ip)?;
        wait_status(env, ip, new)?;
        println!(
            "     the new owner's answer came after {:?}",
            taken.elapsed()
        );
        let made = wait::until("enough probes of the new owner", SOON, || {
            let made = probing.so_far();
            let since = made.iter().filter(|made| made.begun > taken).count();
            (since >= 50).then_some(made)
        })?;
        judge(&made, old, taken)?;
        there = (to, from, new, old);
    }
    let made = probing.stop()?;
    println!("     {} probes, none answered by the wrong pod", made.len());
    Ok(())
}

/// `old` must not be returned after its pod has lost the address.
fn judge(made: &[TimedProbe], old: u16, taken: Instant) -> Result<()> {
    for made in made {
        if made.result.status == Some(old) && made.begun > taken {
            bail!(
                "an answer from the wrong pod, begun {:?} after the address was taken: {made:?}",
                made.begun.saturating_duration_since(taken)
            );
        }
    }
    Ok(())
}

fn claimed_twice(env: &Env) -> Result<()> {
    let ([first, second], ip) = pair(env, ["claim-a", "claim-b"])?;
    wait_status(env, ip, 200)?;
    let alone = endpoints(env)?;
    second.ns.ip(&format!("address add {ip}/32 dev eth0\n"))?;
    wait::until("the address in conflict not to be served", SOON, || {
        (endpoints(env).ok()? < alone).then_some(())
    })?;
    for owner in [&first, &second] {
        owner.ns.route(ip, &env.run)?;
        sample_pod::check_mesh_only(&env.kubelet, ip)?;
    }
    let _log = env
        .daemon
        .wait_logged(&["two pods have the same address"])?;
    wait::until("both to be counted", SOON, || {
        let pods = env.daemon.metrics().ok()?;
        same(
            pods.sum("probe_handler_pods", &[("state", "conflict")]),
            2.0,
        )
        .then_some(())
    })?;
    let table = env.daemon.status_command(&[])?;
    ensure!(
        table.contains(&format!("another pod also has its address {ip}")),
        "status does not say so:\n{table}"
    );
    // Their other addresses are still served.
    sample_pod::check_verdicts(&env.kubelet, first.ns.ipv4().into())?;
    let result = env
        .kubelet
        .probe(&Probe::http(second.ns.ipv4(), HTTP, "/healthy"))?;
    ensure!(
        result.status == Some(OTHER),
        "the second pod's own address: {result:?}"
    );
    take(&second, ip)?;
    first.ns.route(ip, &env.run)?;
    wait_status(env, ip, 200)
}

/// Endpoints that do not fit into the kernel's map are subject to the mesh and are reported; the others are served.
fn map_full(env: &Env) -> Result<()> {
    let pod = env.pod(sample_pod::pod("too-many"))?;
    let failed = env.daemon.metric("probe_handler_endpoints_failed")?;
    ensure!(
        same(endpoints(env)?, 2.0) && failed > 0.5,
        "{} endpoints, {failed} failed",
        endpoints(env)?
    );
    let table = env.daemon.status_command(&[])?;
    ensure!(
        table.contains("problem") && table.contains("--endpoints-capacity"),
        "status does not say so:\n{table}"
    );
    drop(pod);
    wait::until("what failed to be forgotten", SOON, || {
        let failed = env.daemon.metric("probe_handler_endpoints_failed").ok()?;
        same(failed, 0.0).then_some(())
    })
}

/// The daemon's resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holds {
    descriptors: usize,
    threads: usize,
    endpoints: usize,
    ids: usize,
}

fn holds(env: &Env) -> Result<Holds> {
    let (descriptors, threads) = env.daemon.descriptors_and_threads()?;
    let ids = command::run("ip", &["netns", "list-id"], "")?;
    let (_, shown) = env.daemon.get("/metrics")?;
    let endpoints = shown
        .lines()
        .find_map(|line| line.strip_prefix("probe_handler_endpoints "))
        .context("no probe_handler_endpoints")?;
    Ok(Holds {
        descriptors,
        threads,
        endpoints: endpoints.parse()?,
        ids: String::from_utf8_lossy(&ids.stdout).lines().count(),
    })
}

fn churn(env: &Env) -> Result<()> {
    // The first pods trigger everything that is created only once.
    for index in 0..3 {
        one_life(env, index)?;
    }
    let (mut before, mut alike) = (None, 0);
    wait::until("the daemon to settle", SOON, || {
        let now = holds(env).ok()?;
        let same = before.replace(now) == Some(now);
        alike = if same { alike + 1 } else { 0 };
        // On slow machines fewer readings take the same time.
        (alike >= pace::fewer(SETTLED)).then_some(())
    })?;
    let before = before.context("nothing was counted")?;
    let begun = Instant::now();
    let mut lives = 0;
    while lives < CHURN && begun.elapsed() < CHURN_TIME {
        lives += 1;
        one_life(env, 3 + lives)?;
    }
    let took = begun.elapsed();
    let mut after = before;
    let settled = wait::until("the daemon to hold what it held before", SOON, || {
        after = holds(env).ok()?;
        let back = after.descriptors <= before.descriptors
            // A thread that reads the directory stays until no read is requested; a second one starts if the
            // first was slow to report its end.
            && after.threads <= before.threads + 1
            && after.endpoints == before.endpoints
            // Other runs may create and remove namespaces.
            && after.ids <= before.ids + lives / 10;
        back.then_some(())
    });
    println!("     {lives} pods lived and died in {took:?}; before {before:?}, after {after:?}");
    settled.with_context(|| format!("before {before:?}, after {after:?}"))
}

/// Publishes `ns` as a pod with this liveness probe; returns the manifest's path.
fn serve_bare(env: &Env, name: &str, ns: &NetNs, probe: Value) -> Result<PathBuf> {
    let manifest = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "testbed",
            "labels": {"probe-handler.io/mode": "serve"},
            "annotations": {"probe-handler.io/netns": ns.path()},
        },
        "spec": {"containers": [{"name": "web", "image": "app", "livenessProbe": probe}]},
    });
    let file = env.daemon.pods().join(format!("{name}.json"));
    fs::write(&file, manifest.to_string())?;
    wait::until(&format!("{name} to be served"), SOON, || {
        let status = env.daemon.pod_status(name).ok()??;
        status["netns"]["known"].is_object().then_some(())
    })?;
    Ok(file)
}

/// An app that accepts no connections for a while is healthy if it answers within the probe's timeout: the
/// kernel drops SYNs that do not fit into the queue, and they are sent again after 1, 3 and 7 s.
fn full_accept_queue(env: &Env) -> Result<()> {
    let ns = NetNs::new(&env.run, "full-queue")?;
    let queue = ns.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, HTTP)).into())?;
        socket.listen(0)?;
        Ok(socket)
    })?;
    let app = TcpListener::from(queue);
    let mut probe = sample_pod::http(HTTP, "/healthy");
    probe["timeoutSeconds"] = json!(15);
    let file = serve_bare(env, "full-queue", &ns, probe)?;
    let _in_the_way = TcpStream::connect((ns.ipv4(), HTTP))?;

    let probe = Probe::http(ns.ipv4(), HTTP, "/healthy").timeout(Duration::from_secs(15));
    let begun = Instant::now();
    let pending = env.kubelet.begin(&probe)?;
    wait::pass(Duration::from_secs(4))?;
    let served = thread::spawn(move || -> Result<()> {
        let _in_the_way = app.accept()?;
        let (mut client, _) = app.accept()?;
        let mut request = [0; 1024];
        let _length = client.read(&mut request)?;
        Ok(client.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?)
    });
    let result = pending.wait()?;
    ensure!(
        result.passed() && begun.elapsed() > Duration::from_secs(4),
        "{result:?} after {:?}",
        begun.elapsed()
    );
    fs::remove_file(&file)?;
    match served.join() {
        Ok(served) => served,
        Err(_) => bail!("the app panicked"),
    }
}

/// Creates, serves, probes and removes a pod with an app in this process, which is fast.
fn one_life(env: &Env, index: usize) -> Result<()> {
    let name = format!("churn{index}");
    let ns = NetNs::new(&env.run, &name)?;
    let app = ns.run(|| Ok(TcpListener::bind(("::", HTTP))?))?;
    let served = thread::spawn(move || -> Result<()> {
        let (mut client, _) = app.accept()?;
        let mut request = [0; 1024];
        let _length = client.read(&mut request)?;
        Ok(client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?)
    });
    let file = serve_bare(env, &name, &ns, sample_pod::http(HTTP, "/healthy"))?;
    let redirected = env.daemon.counter("redirected")?;
    let passed = env.passes(&Probe::http(ns.ipv4(), HTTP, "/healthy"));
    fs::remove_file(&file)?;
    let _passed = passed?;
    ensure!(
        env.daemon.counter("redirected")? == redirected + 1,
        "the probe did not go through the handler"
    );
    match served.join() {
        Ok(served) => served?,
        Err(_) => bail!("the app panicked"),
    }
    ns.remove()?;
    wait::until(&format!("{name}'s namespace to go"), SOON, || {
        (!ns.lives()).then_some(())
    })
}
