//! Situations in which another process could get the exemption, or the kubelet could lose it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use kernel::exemption::{CONNECTION_MARK, Family, Matcher, TABLE, remove};
use kernel::netns::Netns;
use kernel::orphans;
use probe_handler_common::counters::Counter;
use probe_handler_common::endpoint::{GATE, KERNEL, REDIRECT};
use probe_handler_common::maps::CONNECTING;
use socket2::SockRef;

use super::client::{Client, answer, is_the_apps};
use super::node::{Node, inbound, seen_by_the_mesh};
use crate::app::AppSpec;
use crate::bpf::{self, Map};
use crate::command;
use crate::kubelet::Probe;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::wait;

const HTTP: u16 = 8080;
const CLOSED: u16 = 5433;
/// Port of the listener whose accept queue is full.
const FULL: u16 = 7000;

pub(super) fn run(cases: &mut Cases, node: &mut Node) -> Result<()> {
    for (name, rules) in [
        ("redirect", RuleSet::IstioRedirect),
        ("tproxy", RuleSet::IstioTproxy),
    ] {
        if !cases.wants(name) && !cases.wants(&format!("{name}/")) {
            continue;
        }
        let pod = PodSpec::new(name)
            .rules(rules)
            .app(AppSpec::new().http(HTTP))
            .start(&node.run);
        let pod = match pod {
            Ok(pod) => pod,
            Err(error) => {
                cases.case(name, || Err(error));
                continue;
            }
        };
        node.exempt_by_kernel(&pod, &[HTTP, CLOSED, FULL])?;
        of_pod(cases, node, &pod, name);
    }
    cases.case("stale/an-address-that-is-another-pods", || {
        address_of_another(node)
    });
    Ok(())
}

fn of_pod(cases: &mut Cases, node: &mut Node, pod: &Pod, name: &str) {
    let case = |what: &str| format!("{name}/{what}");
    for (family, ip) in ["v4", "v6"].into_iter().zip(pod.ns.ips()) {
        let case = |what: &str| format!("{name}/{family}/{what}");
        cases.case(&case("the-kubelets-port-is-a-strangers-at-once"), || {
            port_of_the_kubelets(node, pod, ip)
        });
        cases.case(&case("captured-and-exempt-in-turn"), || {
            in_turn(node, pod, ip)
        });
        cases.case(&case("what-was-never-answered-is-for-nobody"), || {
            never_answered(node, pod, ip)
        });
        cases.case(&case("an-entry-lives-as-long-as-the-connect"), || {
            while_connecting(node, pod, ip)
        });
        // One set of rules is enough, because rules do not matter here.
        if name == "redirect" {
            cases.case(&case("an-entry-without-a-connect-is-removed"), || {
                orphaned(node, pod, ip)
            });
        }
        cases.case(&case("marks-of-a-strangers-own"), || {
            forged_marks(node, pod, ip)
        });
    }
    cases.case(&case("options-in-the-header"), || {
        let mut client = Client::new(&node.run, pod.ns.ipv4().into(), HTTP, 20_000);
        client.ip_options = true;
        let got = answer(client.connect_exempt(&node.maps.connecting)??);
        ensure!(is_the_apps(&got), "{got:?}");
        let got = client.connect().map(answer);
        ensure!(!got.as_ref().is_ok_and(|got| is_the_apps(got)), "{got:?}");
        Ok(())
    });
    cases.case(&case("rules-are-replaced-under-load"), || {
        replaced(node, pod)
    });
    cases.case(&case("the-kernel-path-stands-in-for-the-handler"), || {
        stands_in(node, pod)
    });
    cases.case(&case("without-rules-the-mesh-has-all"), || {
        taken_away(node, pod)
    });
}

/// A connection of the kubelet ends, and another process gets its source port: the conntrack entry of the first does
/// not exempt the second.
fn port_of_the_kubelets(node: &Node, pod: &Pod, ip: IpAddr) -> Result<()> {
    for (turn, source) in (0..6).zip(21_000..) {
        let client = Client::new(&node.run, ip, HTTP, source);
        let stream = client.connect_exempt(&node.maps.connecting)??;
        // Either the app closes first, or the kubelet resets.
        if turn % 2 == 0 {
            let got = answer(stream);
            ensure!(is_the_apps(&got), "turn {turn}: not exempt: {got:?}");
        } else {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            drop(stream);
        }
        let before = inbound(pod)?;
        let got = answer(client.connect().context("another process's connect")?);
        ensure!(!is_the_apps(&got), "turn {turn}: got past the mesh");
        ensure!(inbound(pod)? == before + 1, "turn {turn}: not captured");
    }
    // A closed port leaves an entry behind too.
    let client = Client::new(&node.run, ip, CLOSED, 21_100);
    let refused = client.connect_exempt(&node.maps.connecting)?;
    let error = refused.err().context("a closed port accepts")?;
    ensure!(
        error.kind() == io::ErrorKind::ConnectionRefused,
        "{error:?}"
    );
    let before = inbound(pod)?;
    let _captured = client
        .connect()
        .context("the mesh does not capture another process")?;
    seen_by_the_mesh(pod, before + 1)
}

/// The kubelet and other processes use the same few source ports.
fn in_turn(node: &Node, pod: &Pod, ip: IpAddr) -> Result<()> {
    for turn in 0..60 {
        let client = Client::new(&node.run, ip, HTTP, 22_000 + turn % 3);
        let before = inbound(pod)?;
        // Three connections of one kind, then three of the other: each follows leftovers of both kinds.
        let exempt = turn / 3 % 2 == 0 || turn % 4 == 0;
        let connected = if exempt {
            client.connect_exempt(&node.maps.connecting)?
        } else {
            client.connect()
        };
        let got = answer(connected.with_context(|| format!("turn {turn}, exempt: {exempt}"))?);
        ensure!(
            is_the_apps(&got) == exempt && inbound(pod)? == before + u64::from(!exempt),
            "turn {turn}, exempt: {exempt}: {got:?}"
        );
    }
    Ok(())
}

/// A listener in the pod whose accept queue is full.
fn full_queue(pod: &Pod, ip: IpAddr) -> Result<TcpListener> {
    let listener = pod.ns.run(|| {
        use socket2::{Domain, Socket, Type};
        let address = SocketAddr::new(ip, FULL);
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(0)?;
        Ok(TcpListener::from(socket))
    })?;
    Ok(listener)
}

/// The kubelet gives up on a full accept queue; then the app accepts again, and another process has the port.
fn never_answered(node: &Node, pod: &Pod, ip: IpAddr) -> Result<()> {
    let listener = full_queue(pod, ip)?;
    let connect = |source: u16| {
        let mut client = Client::new(&node.run, ip, FULL, source);
        client.patience = Duration::from_millis(300);
        client
    };
    let first = connect(23_000).connect_exempt(&node.maps.connecting)??;
    let given_up = connect(23_001);
    let error = given_up.connect_exempt(&node.maps.connecting)?.err();
    let error = error.context("a full queue takes connections")?;
    ensure!(error.kind() == io::ErrorKind::TimedOut, "{error:?}");
    let (accepted, _) = listener.accept()?;
    listener.set_nonblocking(true)?;
    drop((first, accepted));
    // It may be dropped or captured, but the app must not receive it.
    let other_client = given_up.connect();
    let seen = listener.accept();
    ensure!(
        seen.as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock),
        "another process reached the app: {seen:?}, {other_client:?}"
    );
    Ok(())
}

/// The entry of the kubelet's socket exists only while the socket is connecting.
fn while_connecting(node: &Node, pod: &Pod, ip: IpAddr) -> Result<()> {
    let _listener = full_queue(pod, ip)?;
    let mut client = Client::new(&node.run, ip, FULL, 23_100);
    client.patience = Duration::from_millis(300);
    let _first = client.connect_exempt(&node.maps.connecting)??;
    node.nothing_is_recorded()?;
    let probe = Probe::tcp(ip, FULL).timeout(Duration::from_millis(600));
    let pending = node.kubelet.begin(&probe)?;
    wait::until("an entry", Duration::from_secs(2), || {
        let connections = node.maps.connecting.connections();
        connections
            .iter()
            .any(|(_, to)| to.ip() == ip)
            .then_some(())
    })?;
    let result = pending.wait()?;
    ensure!(!result.passed(), "{result:?}");
    wait::until("the entry's end", Duration::from_secs(2), || {
        node.nothing_is_recorded().ok()
    })
}

/// An entry whose socket no longer exists, because no program noticed its end, is removed; an entry whose socket is
/// connecting is not, however old it is.
fn orphaned(node: &Node, pod: &Pod, ip: IpAddr) -> Result<()> {
    /// Entries younger than 2 s are kept.
    const OLD: Duration = Duration::from_millis(2_500);
    let _listener = full_queue(pod, ip)?;
    let mut client = Client::new(&node.run, ip, FULL, 23_200);
    client.patience = Duration::from_millis(300);
    let _first = client.connect_exempt(&node.maps.connecting)??;
    node.nothing_is_recorded()?;
    let pending = node.kubelet.begin(&Probe::tcp(ip, FULL).timeout(2 * OLD))?;
    let connecting = wait::until("an entry", Duration::from_secs(2), || {
        node.maps.connecting.connections().pop()
    })?;

    let map = Map::held_by(std::process::id(), CONNECTING)?;
    let (source, to) = connecting;
    let orphan = (SocketAddr::new(source.ip(), 23_201), to);
    let key = [bpf::key(orphan.0), bpf::key(orphan.1)].concat();
    // A cookie, the time of the node's start, not arrived.
    let value: Vec<u8> = [7_u64, 0, 0]
        .into_iter()
        .flat_map(u64::to_ne_bytes)
        .collect();
    map.insert(&key, &value)?;
    ensure!(node.maps.connecting.connections().contains(&orphan));
    ensure!(orphans::remove(&node.maps.connecting)? == 1, "it remains");
    let begun = Instant::now();
    while begun.elapsed() < OLD {
        ensure!(orphans::remove(&node.maps.connecting)? == 0, "removed");
        ensure!(node.maps.connecting.connections() == [connecting]);
    }
    let _timed_out = pending.wait()?;
    wait::until("the entry's end", Duration::from_secs(2), || {
        node.nothing_is_recorded().ok()
    })
}

/// Packet marks do not reach a pod.
fn forged_marks(node: &Node, pod: &Pod, ip: IpAddr) -> Result<()> {
    for (mark, source) in [1337, CONNECTION_MARK].into_iter().zip(24_000..) {
        let mut client = Client::new(&node.run, ip, HTTP, source);
        client.mark = mark;
        let before = inbound(pod)?;
        let got = answer(client.connect()?);
        ensure!(!is_the_apps(&got), "mark {mark:#x} got past the mesh");
        ensure!(inbound(pod)? == before + 1, "mark {mark:#x}: not captured");
    }
    Ok(())
}

/// After repeated installation there is one set of rules, and never none.
fn replaced(node: &Node, pod: &Pod) -> Result<()> {
    let netns = Netns::open(&pod.ns.path())?;
    thread::scope(|scope| {
        let replacing = scope.spawn(|| {
            let begun = Instant::now();
            let done =
                (0..20).try_for_each(|_| node.exemption.put(&netns, &Family::ALL, node.matcher));
            println!("     40 transactions in {:?}", begun.elapsed());
            done
        });
        let mut probed = Ok(());
        for ip in pod.ns.ips().into_iter().cycle() {
            if replacing.is_finished() || probed.is_err() {
                break;
            }
            probed = node
                .passes(pod, &Probe::http(ip, HTTP, "/healthy"))
                .and_then(|()| node.is_refused(pod, &Probe::tcp(ip, CLOSED)));
        }
        let replaced = replacing.join();
        probed?;
        let replaced = replaced.map_err(|_| anyhow!("replacing panicked"))?;
        anyhow::Ok(replaced?)
    })?;
    for family in Family::ALL {
        let rules = list(pod, family)?;
        let chains = rules.matches("chain ").count();
        let expected = match node.matcher {
            Matcher::XtBpf => 4,
            Matcher::Tc => 5,
        };
        ensure!(chains == expected, "{rules}");
    }
    Ok(())
}

fn list(pod: &Pod, family: Family) -> Result<String> {
    let listed = pod
        .ns
        .run(|| command::run("nft", &["list", "table", family.name(), TABLE], ""))?;
    Ok(String::from_utf8_lossy(&listed.stdout).into_owned())
}

/// An endpoint with both paths: the handler while it answers, else the kernel.
fn stands_in(node: &mut Node, pod: &Pod) -> Result<()> {
    let handler = TcpListener::bind("127.0.0.1:0").context("a port")?;
    let port = handler.local_addr()?.port();
    node.maps.config.update(|config| {
        config.handler_port_v4 = port;
        config.heartbeat_timeout_ns = 60_000_000_000;
    })?;
    node.endpoints(pod, &[HTTP], KERNEL | REDIRECT)?;
    let probe = Probe::http(pod.ns.ipv4(), HTTP, "/healthy");
    let redirected = || node.count(Counter::Redirected);
    let before = redirected();
    // The handler has never been alive: it listens, but has no heartbeat.
    node.passes(pod, &probe)?;
    ensure!(redirected() == before, "sent to a handler that hangs");

    use serve::pulse::Pulse as _;
    node.maps.heartbeat.beat();
    let opened = node.kubelet.probe(&Probe::tcp(pod.ns.ipv4(), HTTP))?;
    ensure!(
        opened.passed() && redirected() == before + 1,
        "not sent to a handler that is alive: {opened:?}"
    );
    // Nothing listens.
    drop(handler);
    node.passes(pod, &probe)?;
    ensure!(redirected() == before + 1, "sent to a dead handler");
    node.maps.heartbeat.stop();
    node.endpoints(pod, &[HTTP], KERNEL)
}

/// Without our rules the kubelet is captured, and no other process gets access. They can be removed twice, and installed again.
fn taken_away(node: &mut Node, pod: &Pod) -> Result<()> {
    let netns = Netns::open(&pod.ns.path())?;
    for turn in 0..2 {
        for family in Family::ALL {
            let removed = remove(&netns, family)?;
            ensure!(removed == (turn == 0), "turn {turn}: removed: {removed}");
            ensure!(list(pod, family).is_err(), "the table is still there");
        }
        for ip in pod.ns.ips() {
            for who in [&node.kubelet, &node.bystander] {
                node.is_captured(who, pod, ip, (HTTP, CLOSED))?;
            }
        }
    }
    node.exempt_by_kernel(pod, &[HTTP, CLOSED])?;
    for ip in pod.ns.ips() {
        node.passes(pod, &Probe::http(ip, HTTP, "/healthy"))?;
    }
    node.nothing_is_recorded()
}

/// The daemon is dead, and a pod has ended. Connections to a new pod with its addresses, and perhaps with its namespace's
/// id, go through the mesh as if there were no endpoint. Otherwise the gate would look into the new pod's namespace, and
/// the handler would receive connections for another pod.
fn address_of_another(node: &mut Node) -> Result<()> {
    let spec = PodSpec::new("stale").rules(RuleSet::IstioRedirect);
    let mut pod = spec.app(AppSpec::new().http(HTTP)).start(&node.run)?;
    node.exempt_by_kernel(&pod, &[HTTP, CLOSED])?;
    node.is_refused(&pod, &Probe::tcp(pod.ns.ipv4(), CLOSED))?;
    for flags in [KERNEL, GATE | REDIRECT | KERNEL, GATE | REDIRECT] {
        node.endpoints(&pod, &[HTTP, CLOSED], flags)?;
        pod.die()?;
        wait::until("the namespace's end", Duration::from_secs(10), || {
            (!pod.ns.lives()).then_some(())
        })?;
        pod.revive(&node.run)?;
        for ip in pod.ns.ips() {
            for who in [&node.kubelet, &node.bystander] {
                node.is_captured(who, &pod, ip, (HTTP, CLOSED))
                    .with_context(|| format!("flags {flags}"))?;
            }
        }
    }
    node.nothing_is_recorded()
}
