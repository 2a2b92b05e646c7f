//! The sidecar's process: binds its ports as root, then switches to the proxy's user, by which the pod's
//! rules identify it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::inbound::Inbound;
use super::pilot_agent::PilotAgent;
use super::{Counts, Refusal, Traffic};
use crate::mesh::Identity;
use crate::rules::RuleSet;
use crate::{cgroup, netns, rpc};

const DNS_PORT: u16 = 15053;
const STATUS_PORT: u16 = 15020;
const BACKLOG: i32 = 1024;

/// Arguments of `testbed sidecar`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Network namespace to enter
    #[arg(long)]
    netns: Option<PathBuf>,
    /// Directory of the mesh's certificates
    #[arg(long)]
    identity: PathBuf,
    /// The proxy, as JSON
    #[arg(long, required_unless_present = "mesh")]
    spec: Option<String>,
    /// The proxy of a rule set, by its name as in the suite's tables (a pod of a test cluster)
    #[arg(long, conflicts_with = "spec", requires = "pod_ip")]
    mesh: Option<String>,
    /// With --mesh: the pod's address
    #[arg(long)]
    pod_ip: Option<IpAddr>,
    /// With --mesh: the probes that pilot-agent answers, as JSON
    #[arg(long, default_value = "{}")]
    probers: String,
    /// Serve until SIGTERM instead of the end of standard input, as a container does
    #[arg(long)]
    until_terminated: bool,
    /// Cgroups to move into before anything else
    #[arg(long)]
    cgroup: Vec<PathBuf>,
}

/// The settings of this proxy.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    pub(super) inbound_port: u16,
    pub(super) outbound_port: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mark: Option<u32>,
    pub(super) passthrough_source: bool,
    pub(super) transparent: bool,
    pub(super) refusal: Refusal,
    pub(super) traffic: Traffic,
    pub(super) pilot_agent: bool,
    pub(super) pod_ip: IpAddr,
    pub(super) probers: BTreeMap<String, Value>,
}

impl Spec {
    /// The proxy of a pod with these rules.
    ///
    /// # Errors
    /// When the rules have no proxy.
    pub(super) fn of(
        rules: RuleSet,
        pod_ip: IpAddr,
        probers: BTreeMap<String, Value>,
    ) -> Result<Self> {
        let proxy = rules
            .proxy()
            .with_context(|| format!("{} has no sidecar", rules.name()))?;
        Ok(Self {
            inbound_port: proxy.inbound_port,
            outbound_port: proxy.outbound_port,
            uid: proxy.uid,
            gid: proxy.gid,
            mark: proxy.mark,
            passthrough_source: proxy.passthrough_source,
            transparent: proxy.transparent,
            refusal: proxy.refusal,
            traffic: Traffic::default(),
            pilot_agent: rules.has_pilot_agent(),
            pod_ip,
            probers,
        })
    }

    fn from_args(args: &Args) -> Result<Self> {
        match (&args.spec, &args.mesh, args.pod_ip) {
            (Some(spec), ..) => serde_json::from_str(spec).context("--spec"),
            (None, Some(mesh), Some(pod_ip)) => {
                let probers = serde_json::from_str(&args.probers).context("--probers")?;
                Self::of(RuleSet::named(mesh)?, pod_ip, probers)
            }
            _ => bail!("neither --spec nor --mesh with --pod-ip is given"),
        }
    }
}

/// The counters behind [`Counts`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) inbound: AtomicU64,
    pub(super) forwarded: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) outbound: AtomicU64,
    pub(super) dns: AtomicU64,
    pub(super) pilot_agent: AtomicU64,
}

impl Counters {
    fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            inbound: read(&self.inbound),
            forwarded: read(&self.forwarded),
            refused: read(&self.refused),
            outbound: read(&self.outbound),
            dns: read(&self.dns),
            pilot_agent: read(&self.pilot_agent),
        }
    }
}

/// Counts one more; returns the previous number.
pub(super) fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed)
}

/// Runs the sidecar until standard input ends, or SIGTERM.
///
/// # Errors
/// When the namespace cannot be entered, a port cannot be bound, or the user cannot be changed.
pub fn main(args: &Args) -> Result<()> {
    for path in &args.cgroup {
        cgroup::join(path, 0)?;
    }
    if let Some(path) = &args.netns {
        netns::enter(path)?;
    }
    let spec = Spec::from_args(args)?;
    let tls = Identity::existing(args.identity.clone()).server_config()?;
    let families: &[bool] = match spec.traffic.ipv4_only {
        true => &[false],
        false => &[false, true],
    };
    let listen = |port| -> Vec<_> {
        families
            .iter()
            .map(|v6| listener(port, *v6, spec.transparent))
            .collect()
    };
    let inbound = listen(spec.inbound_port);
    let outbound = listen(spec.outbound_port);
    let dns = listen(DNS_PORT);
    let status = spec.pilot_agent.then(|| listen(STATUS_PORT));
    let (uid, gid) = (Uid::from_raw(spec.uid), Gid::from_raw(spec.gid));
    if gid.as_raw() != 0 {
        setgroups(&[gid])
            .and_then(|()| setgid(gid))
            .with_context(|| format!("becoming group {gid}"))?;
    }
    if !uid.is_root() {
        setuid(uid).with_context(|| format!("becoming user {uid}"))?;
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(async {
            let counters = Arc::new(Counters::default());
            let proxy = Inbound {
                acceptor: TlsAcceptor::from(Arc::new(tls)),
                mark: spec.mark,
                passthrough_source: spec.passthrough_source,
                transparent: spec.transparent,
                refusal: spec.refusal,
                traffic: spec.traffic,
                counters: Arc::clone(&counters),
            };
            serve(inbound, move |stream| proxy.clone().serve(stream))?;
            // Outbound connections of the app are counted and closed.
            for (listeners, which) in [(outbound, Closed::Outbound), (dns, Closed::Dns)] {
                let counters = Arc::clone(&counters);
                serve(listeners, move |_| {
                    let _before = count(match which {
                        Closed::Outbound => &counters.outbound,
                        Closed::Dns => &counters.dns,
                    });
                    async { Ok(()) }
                })?;
            }
            if let Some(listeners) = status {
                let agent = Arc::new(PilotAgent::new(spec.traffic.app(spec.pod_ip), spec.probers));
                let counters = Arc::clone(&counters);
                serve(listeners, move |stream| {
                    let counters = Arc::clone(&counters);
                    Arc::clone(&agent).serve(stream, move || {
                        let _before = count(&counters.pilot_agent);
                    })
                })?;
            }
            rpc::serve(&"ready", move |()| {
                let counts = counters.counts();
                async move { counts }
            })
            .await?;
            match args.until_terminated {
                true => rpc::terminated().await,
                false => Ok(()),
            }
        })
}

#[derive(Clone, Copy)]
enum Closed {
    Outbound,
    Dns,
}

/// Each family has its own socket, because an IPv6 socket does not return the original destination of an
/// IPv4 connection.
fn listener(port: u16, v6: bool, transparent: bool) -> Result<Socket> {
    let ip: IpAddr = match v6 {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    let address = SocketAddr::new(ip, port);
    let listen = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        if v6 {
            socket.set_only_v6(true)?;
        }
        if transparent {
            // The kernel accepts the IPv4 option on IPv6 sockets too, and it applies to both families.
            socket.set_ip_transparent_v4(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(socket)
    };
    listen().with_context(|| format!("listening on {address}"))
}

fn serve<F>(
    listeners: Vec<Result<Socket>>,
    work: impl Fn(TcpStream) -> F + Clone + Send + 'static,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    for listener in listeners {
        let listener = TcpListener::from_std(listener?.into())?;
        let work = work.clone();
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    // Refused and aborted connections are normal for a sidecar.
                    Ok((stream, _)) => drop(tokio::spawn(work(stream))),
                    Err(error) => eprintln!("testbed sidecar: accept: {error}"),
                }
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_pod_of_a_cluster_names_its_mesh_only() -> Result<()> {
        for rules in RuleSet::all() {
            let words = ["sidecar", "--identity=/mesh", "--pod-ip=10.0.0.1", "--mesh"];
            let words = words.into_iter().chain([rules.name()]);
            let spec = Spec::from_args(&Command::try_parse_from(words)?.args);
            match rules.proxy() {
                Some(proxy) => assert_eq!(spec?.gid, proxy.gid),
                None => assert!(spec.is_err(), "{}", rules.name()),
            }
        }
        Ok(())
    }
}
