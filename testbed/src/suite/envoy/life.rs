//! What happens to Envoy and the app while the kubelet probes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::pod::{self, CLOSED, HTTP, MeshTraffic, Meshed, OPEN, TRIALS};
use super::{Bed, case};
use crate::app::{App, AppSpec};
use crate::command;
use crate::envoy::Settings;
use crate::kubelet::Probe;
use crate::pod::PodSpec;
use crate::rules::RuleSet;
use crate::suite::cases::Cases;
use crate::suite::sample_pod::{self, Case, Probing};
use crate::wait;

type Event = fn(Bed<'_>, &str) -> Result<()>;

const EVENTS: [(&str, Event); 10] = [
    ("refusals", super::refusals::refusals),
    ("app-starts-late", app_starts_late),
    ("envoy-starts-late", envoy_starts_late),
    ("envoy-drains", envoy_drains),
    ("envoy-ends", envoy_ends),
    ("envoy-crashes", envoy_crashes),
    ("permissive", permissive),
    ("excluded-port", excluded_port),
    ("another-mesh's-client", foreign_client),
    ("connections-do-not-grow", connections_do_not_grow),
];
const RULES: RuleSet = RuleSet::IstioRedirect;
const SOON: Duration = Duration::from_secs(5);
/// Number of probes of each prober during and after an event.
const MORE: usize = 5;

pub(super) fn names() -> Vec<String> {
    EVENTS.map(|(name, _)| name.to_owned()).to_vec()
}

pub(super) fn run(cases: &mut Cases, bed: Bed<'_>) {
    for (index, (name, event)) in EVENTS.into_iter().enumerate() {
        case(cases, bed.way, name, || event(bed, &format!("life{index}")));
    }
}

fn strict() -> Result<Settings> {
    let proxy = RULES.proxy().context("no proxy")?;
    Ok(Settings::strict(proxy, HTTP))
}

fn start(bed: Bed<'_>, spec: PodSpec) -> Result<Meshed> {
    Meshed::start(bed, spec, strict()?)
}

/// Probes of both addresses.
fn both(meshed: &Meshed) -> Vec<Case> {
    let ips = meshed.pod.ns.ips().into_iter();
    ips.flat_map(pod::probes).collect()
}

/// Probes the pod continuously while `event` happens; checks that no result is wrong.
fn while_probed(
    bed: Bed<'_>,
    meshed: &mut Meshed,
    event: impl FnOnce(&mut Meshed, &Probing) -> Result<()>,
) -> Result<()> {
    let expected = both(meshed);
    let probes = expected.iter().map(|case| case.probe.clone()).collect();
    let probing = Probing::every(
        &Arc::clone(&bed.env.kubelet),
        probes,
        Duration::from_millis(10),
    );
    probing.more(MORE)?;
    event(meshed, &probing)?;
    probing.more(MORE)?;
    let made = probing.stop()?;
    let wrong = made
        .iter()
        .filter(|made| !sample_pod::is_expected(&expected, made));
    let wrong: Vec<_> = wrong.collect();
    println!("     {} probes, {} wrong", made.len(), wrong.len());
    sample_pod::none_wrong("meanwhile", &wrong)
}

/// Waits until the mesh's client gets no answer, because Envoy accepts no connection.
fn mesh_is_gone(bed: Bed<'_>, ip: IpAddr) -> Result<()> {
    wait::until("the mesh's client to be refused", SOON, || {
        pod::request(bed.env.run.mesh(), ip).is_err().then_some(())
    })
}

/// Envoy accepts each connection, but the kubelet's probes fail until the app listens.
fn app_starts_late(bed: Bed<'_>, name: &str) -> Result<()> {
    let spec = pod::spec(name, RULES).app(AppSpec::new());
    let mut meshed = start(bed, spec)?;
    for turn in 0..2 {
        for case in both(&meshed) {
            let result = bed.env.kubelet.probe(&pod::short(case.probe.clone()))?;
            ensure!(
                !result.passed() && result.status.is_none(),
                "the app does not listen: {:?}: {result:?}",
                case.probe
            );
        }
        let stranger = Probe::tcp(meshed.pod.ns.ipv4(), OPEN);
        let stranger = bed.env.bystander.probe(&stranger)?;
        ensure!(stranger.passed(), "Envoy does not listen: {stranger:?}");
        meshed.pod.app = App::start(&meshed.pod.ns, &pod::app())?;
        for ip in meshed.pod.ns.ips() {
            meshed
                .verdicts(bed, ip)
                .with_context(|| format!("turn {turn}"))?;
        }
        meshed.pod.app.kill()?;
    }
    Ok(())
}

fn envoy_starts_late(bed: Bed<'_>, name: &str) -> Result<()> {
    let mut meshed = Meshed::without_envoy(bed, pod::spec(name, RULES), strict()?)?;
    let ips = meshed.pod.ns.ips();
    while_probed(bed, &mut meshed, |meshed, _| {
        meshed.start_envoy(bed)?;
        ips.into_iter()
            .try_for_each(|ip| meshed.serves_the_mesh(bed, ip))
    })
}

/// Drains Envoy as pilot-agent does before the pod ends.
fn envoy_drains(bed: Bed<'_>, name: &str) -> Result<()> {
    let mut meshed = start(bed, pod::spec(name, RULES))?;
    let ips = meshed.pod.ns.ips();
    while_probed(bed, &mut meshed, |meshed, probing| {
        meshed.serves_the_mesh(bed, ips[0])?;
        let graceful = "/drain_listeners?inboundonly&graceful";
        let _ok = meshed.envoy()?.ask("POST", graceful)?;
        probing.more(MORE)?;
        ips.into_iter().try_for_each(|ip| mesh_is_gone(bed, ip))
    })
}

fn envoy_ends(bed: Bed<'_>, name: &str) -> Result<()> {
    let mut meshed = start(bed, pod::spec(name, RULES))?;
    let ip = meshed.pod.ns.ipv4().into();
    while_probed(bed, &mut meshed, |meshed, _| {
        meshed.serves_the_mesh(bed, ip)?;
        let mut envoy = meshed.envoy.take().context("no Envoy runs")?;
        envoy.signal(Signal::SIGTERM)?;
        envoy.wait_end()?;
        mesh_is_gone(bed, ip)
    })
}

fn envoy_crashes(bed: Bed<'_>, name: &str) -> Result<()> {
    let mut meshed = start(bed, pod::spec(name, RULES))?;
    let ip = meshed.pod.ns.ipv4().into();
    while_probed(bed, &mut meshed, |meshed, probing| {
        for _ in 0..2 {
            meshed.serves_the_mesh(bed, ip)?;
            meshed.envoy.take().context("no Envoy runs")?.kill()?;
            mesh_is_gone(bed, ip)?;
            probing.more(MORE)?;
            meshed.start_envoy(bed)?;
        }
        meshed.serves_the_mesh(bed, ip)
    })
}

/// Envoy forwards plaintext of any client; the kubelet's probes still bypass it.
fn permissive(bed: Bed<'_>, name: &str) -> Result<()> {
    let mut meshed = Meshed::start(bed, pod::spec(name, RULES), strict()?.permissive())?;
    let ips = meshed.pod.ns.ips();
    for ip in ips {
        meshed.verdicts(bed, ip)?;
        meshed.serves_the_mesh(bed, ip)?;
        let before = meshed.envoy()?.inbound()?;
        let stranger = bed
            .env
            .bystander
            .probe(&Probe::http(ip, HTTP, "/healthy"))?;
        ensure!(stranger.status == Some(200), "{stranger:?}");
        ensure!(
            stranger.head.contains("istio-envoy") && meshed.envoy()?.inbound()? > before,
            "it bypassed Envoy: {stranger:?}"
        );
        let closed = bed.env.bystander.probe(&Probe::tcp(ip, CLOSED))?;
        ensure!(closed.passed(), "Envoy does not accept it: {closed:?}");
    }
    while_probed(bed, &mut meshed, |_, _| Ok(()))
}

/// A port that the rules exclude: every client reaches the app there, including the kubelet.
fn excluded_port(bed: Bed<'_>, name: &str) -> Result<()> {
    let ports = format!("{HTTP},{CLOSED}");
    let annotation = "traffic.sidecar.istio.io/excludeInboundPorts";
    let spec = pod::spec(name, RULES).annotation(annotation, &ports);
    let mut meshed = start(bed, spec)?;
    meshed.pod.ns.run(|| {
        for program in ["iptables-nft", "ip6tables-nft"] {
            for port in [HTTP, CLOSED] {
                let port = port.to_string();
                let rule = [
                    "-t",
                    "nat",
                    "-I",
                    "ISTIO_INBOUND",
                    "1",
                    "-p",
                    "tcp",
                    "--dport",
                ];
                let rule = [rule.as_slice(), &[&port, "-j", "RETURN"]].concat();
                let _done = command::run(program, &rule, "")?;
            }
        }
        Ok(())
    })?;
    for ip in meshed.pod.ns.ips() {
        meshed.verdicts(bed, ip)?;
        wait::until("probes that Envoy does not get", SOON, || {
            past_envoy(bed, &meshed, ip).transpose()
        })??;
    }
    while_probed(bed, &mut meshed, |_, _| Ok(()))
}

/// Probes that are no kubelet's; `None` if Envoy has counted a connection meanwhile. It counts each when it ends, so that may be
/// an earlier one.
fn past_envoy(bed: Bed<'_>, meshed: &Meshed, ip: IpAddr) -> Result<Option<()>> {
    let before = meshed.envoy()?.inbound()?;
    let stranger = bed
        .env
        .bystander
        .probe(&Probe::http(ip, HTTP, "/healthy"))?;
    ensure!(stranger.status == Some(200), "{stranger:?}");
    let closed = bed.env.bystander.probe(&Probe::tcp(ip, CLOSED))?;
    ensure!(!closed.passed(), "{closed:?}");
    Ok((meshed.envoy()?.inbound()? == before).then_some(()))
}

/// A certificate of another authority is refused.
fn foreign_client(bed: Bed<'_>, name: &str) -> Result<()> {
    let meshed = start(bed, pod::spec(name, RULES))?;
    let foreign = crate::mesh::Identity::create(bed.env.run.dir().join(format!("{name}-mesh")))?;
    for ip in meshed.pod.ns.ips() {
        meshed.serves_the_mesh(bed, ip)?;
        let trusted = foreign.trusting(bed.env.run.mesh())?;
        let answer = pod::request(&trusted, ip);
        ensure!(answer.is_err(), "Envoy accepts it: {answer:?}");
    }
    let name = "listener.virtualInbound.ssl.fail_verify_error";
    let failed = meshed.envoy()?.stat(name)?;
    ensure!(failed >= 2, "refused for another reason: {failed}");
    Ok(())
}

/// After many probes Envoy has accepted only the mesh's connections and a few trials of the daemon, and has none open.
fn connections_do_not_grow(bed: Bed<'_>, name: &str) -> Result<()> {
    const PROBES: usize = 2_500;
    let meshed = start(bed, pod::spec(name, RULES))?;
    let ip = meshed.pod.ns.ipv4().into();
    let before = meshed.envoy()?.inbound()?;
    let traffic = MeshTraffic::start(bed.env.run.mesh(), ip);
    let expected = both(&meshed);
    let probes: Vec<_> = expected.iter().map(|case| case.probe.clone()).collect();
    let probing = Probing::start(&bed.env.kubelet, probes);
    wait::until("all probes", Duration::from_secs(30), || {
        (probing.so_far().len() >= PROBES).then_some(())
    })?;
    let made = probing.stop()?;
    let answered = u64::try_from(traffic.stop()?)?;
    let wrong = made
        .iter()
        .filter(|made| !sample_pod::is_expected(&expected, made));
    sample_pod::none_wrong("meanwhile", &wrong.collect::<Vec<_>>())?;
    let envoy = meshed.envoy()?;
    let accepted = envoy.inbound()? - before;
    println!(
        "     {} probes, {answered} requests of the mesh, {accepted} connections of Envoy's",
        made.len()
    );
    ensure!(
        (answered..=answered + 4 * TRIALS).contains(&accepted),
        "Envoy accepted {accepted} connections for {answered} requests"
    );
    // Envoy keeps a connection to the app for further requests of the mesh.
    let open = || {
        let clients = envoy.stat("listener.virtualInbound.downstream_cx_active")?;
        let apps = envoy.sum("cluster.", ".upstream_cx_active")?;
        Ok::<_, anyhow::Error>((clients, apps))
    };
    wait::until("Envoy to close its connections", SOON, || {
        let (clients, apps) = open().ok()?;
        (clients == 0 && apps <= 1).then_some(())
    })
    .with_context(|| format!("from clients, to apps: {:?}", open()))
}
