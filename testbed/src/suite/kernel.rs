//! The eBPF programs without the daemon: behaviour that cannot be observed through the daemon.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kernel::dial::PodDialer;
use kernel::maps::FlowMap;
use kernel::netns::Netns;
use kernel::nsid::Nsids;
use kernel::programs::{AnswerIs, LoadOptions, Maps, Programs};
use model::Mesh;
use probe::dial::Dial;
use probe_handler_common::counters::Counter;
use probe_handler_common::endpoint::{EndpointValue, GATE, REDIRECT};
use reconcile::EndpointWriter;
use serve::flows::{ConnectionId, Flows};
use serve::pulse::Pulse;
use serve::saved_syn;

use super::cases::Cases;
use crate::app::AppSpec;
use crate::cgroup::Cgroup;
use crate::kubelet::{Kubelet, Probe};
use crate::pace;
use crate::pod::{Pod, PodSpec};
use crate::run::Run;

const HTTP: u16 = 8080;

pub fn run(cases: &mut Cases) -> Result<()> {
    let run = Run::new()?;
    let cgroup = Cgroup::new(&run, "kubelet")?;
    let kubelet = Kubelet::start(&run, &cgroup, "kubelet")?;
    let pod = PodSpec::new("plain")
        .app(AppSpec::new().http(HTTP))
        .start(&run)?;
    cases.case("handler-gone", || handler_gone(&cgroup, &kubelet, &pod));
    cases.case("nothing-attached-nothing-seen", || {
        detached(&cgroup, &kubelet, &pod)
    });
    cases.case("datagrams-are-none-of-ours", || {
        datagrams(&cgroup, &kubelet, &pod)
    });
    match Netns::current()?.cookie() {
        Some(own) => cases.case("another-namespace-is-not-the-kubelets", || {
            another_namespace(&run, &cgroup, &pod, own)
        }),
        None => cases.skip(
            "another-namespace-is-not-the-kubelets",
            "namespaces have no cookies before Linux 5.14",
        ),
    }
    cases.case("a-dial-needs-the-pods-address", || needs_its_address(&pod));
    Ok(())
}

/// A namespace that has lost its address would connect to the new owner of the address.
fn needs_its_address(pod: &Pod) -> Result<()> {
    let netns = Arc::new(Netns::open(&pod.ns.path())?);
    let own = SocketAddr::new(pod.ns.ipv4().into(), HTTP);
    let lost = SocketAddr::from(([192, 0, 2, 7], HTTP));
    for (mesh, uid) in [
        (Mesh::IstioAmbient, None),
        (Mesh::Linkerd, None),
        (Mesh::Osm, None),
        (Mesh::Consul, Some(5995)),
    ] {
        let dialer = PodDialer::new(Arc::clone(&netns), mesh, uid);
        let _socket = dialer.socket(own)?;
        let error = dialer.socket(lost).err().context("it is not bound")?;
        ensure!(
            error.kind() == io::ErrorKind::AddrNotAvailable,
            "{mesh:?}: {error}"
        );
    }
    Ok(())
}

/// Attaches programs to `cgroup` that redirect probes of `pod` to a handler at `port`.
fn attach(cgroup: &Cgroup, pod: &Pod, port: u16) -> Result<(Programs, Maps)> {
    let (mut programs, mut maps) = Programs::load(&LoadOptions::default())?;
    maps.config.update(|config| {
        config.handler_port_v4 = port;
        config.handler_ports_v6 = [port; 16];
        config.heartbeat_timeout_ns = 60_000_000_000;
    })?;
    maps.heartbeat.beat();
    let netns_id = Nsids::new()?.assign(&Netns::open(&pod.ns.path())?)?;
    for ip in pod.ns.ips() {
        maps.endpoints.put(
            SocketAddr::new(ip, HTTP),
            EndpointValue {
                netns_id,
                flags: GATE | REDIRECT,
                mesh_port: 15006,
            },
        )?;
    }
    programs.attach(cgroup.path(), AnswerIs::LeftOut)?;
    Ok((programs, maps))
}

fn count(maps: &Maps, counter: Counter) -> u64 {
    maps.counters.read()[counter as usize]
}

/// If nothing listens on the handler's port, a probe is not redirected, and is counted as such.
fn handler_gone(cgroup: &Cgroup, kubelet: &Kubelet, pod: &Pod) -> Result<()> {
    let handler = std::net::TcpListener::bind("127.0.0.1:0").context("a port")?;
    let port = handler.local_addr()?.port();
    saved_syn::keep(&handler)?;
    let (_programs, maps) = attach(cgroup, pod, port)?;

    let tcp = kubelet.probe(&Probe::tcp(pod.ns.ipv4(), HTTP))?;
    ensure!(
        tcp.passed() && count(&maps, Counter::Redirected) == 1,
        "not redirected: {tcp:?}"
    );
    let (other_client, peer) = handler.accept()?;
    let flows: &FlowMap = &maps.flows;
    let isn = saved_syn::take_isn(&other_client).context("no SYN was kept")?;
    let connection = ConnectionId { peer, isn };
    let other = ConnectionId {
        isn: isn.wrapping_add(1),
        ..connection
    };
    ensure!(
        flows.take(other).is_none(),
        "another connection from its port got its flow"
    );
    let flow = flows
        .take(connection)
        .context("a redirected connection has a flow")?;
    ensure!(
        flow.original == SocketAddr::new(pod.ns.ipv4().into(), HTTP),
        "{flow:?}"
    );
    // The probe has closed its connection: another process may have its port.
    ensure!(flow.closed, "{flow:?}");
    ensure!(flows.take(connection).is_none(), "a flow was taken twice");
    drop((other_client, handler));

    for (gone, ip) in (1..).zip(pod.ns.ips()) {
        let http = kubelet.probe(&Probe::http(ip, HTTP, "/healthy"))?;
        ensure!(http.passed(), "the probe did not go its own way: {http:?}");
        ensure!(
            count(&maps, Counter::Fallback) == gone && count(&maps, Counter::Redirected) == 1,
            "{:?}",
            maps.counters.read()
        );
    }
    Ok(())
}

/// The kubelet's process also sends DNS queries: a UDP socket that is connected to an endpoint's address and port
/// keeps its peer.
fn datagrams(cgroup: &Cgroup, kubelet: &Kubelet, pod: &Pod) -> Result<()> {
    let handler = std::net::TcpListener::bind("127.0.0.1:0").context("a port")?;
    let (_programs, maps) = attach(cgroup, pod, handler.local_addr()?.port())?;
    for ip in pod.ns.ips() {
        let endpoint = SocketAddr::new(ip, HTTP);
        let app = pod.ns.run(|| Ok(UdpSocket::bind(endpoint)?))?;
        app.set_read_timeout(Some(pace::stretch(Duration::from_secs(5))))?;
        let sent = kubelet.probe(&Probe::datagram(ip, HTTP, b"hello"))?;
        ensure!(sent.peer == Some(endpoint), "{sent:?}");
        let mut received = [0; 16];
        let length = app.recv(&mut received).context("nothing came")?;
        ensure!(received[..length] == *b"hello", "{received:?}");
    }
    ensure!(
        count(&maps, Counter::Seen) == 0 && count(&maps, Counter::OtherProcess) == 0,
        "{:?}",
        maps.counters.read()
    );
    Ok(())
}

/// For a process in the kubelet's cgroup in another network namespace than the kubelet's (`own`), the handler's
/// address means another socket.
fn another_namespace(run: &Run, cgroup: &Cgroup, pod: &Pod, own: u64) -> Result<()> {
    let handler = std::net::TcpListener::bind("127.0.0.1:0").context("a port")?;
    let (_programs, maps) = attach(cgroup, pod, handler.local_addr()?.port())?;
    maps.config.update(|config| config.netns_cookie = own)?;
    let other_client = pod.ns.run(|| Kubelet::start(run, cgroup, "kubelet"))?;
    for (others, ip) in (1..).zip(pod.ns.ips()) {
        let http = other_client.probe(&Probe::http(ip, HTTP, "/healthy"))?;
        ensure!(http.passed(), "not unchanged: {http:?}");
        ensure!(
            count(&maps, Counter::OtherProcess) == others && count(&maps, Counter::Seen) == 0,
            "{:?}",
            maps.counters.read()
        );
    }
    Ok(())
}

/// Detached programs do not run, although they are still loaded.
fn detached(cgroup: &Cgroup, kubelet: &Kubelet, pod: &Pod) -> Result<()> {
    let (mut programs, maps) = attach(cgroup, pod, 1)?;
    let probe = Probe::http(pod.ns.ipv4(), HTTP, "/healthy");
    ensure!(kubelet.probe(&probe)?.passed(), "the app is not healthy");
    ensure!(
        count(&maps, Counter::Seen) == 1,
        "an attached program saw nothing"
    );
    programs.detach_connect();
    ensure!(kubelet.probe(&probe)?.passed(), "the app is not healthy");
    ensure!(
        count(&maps, Counter::Seen) == 1,
        "a program that was taken off still sees"
    );
    Ok(())
}
