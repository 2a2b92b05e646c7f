//! The pods: one at each place, with any of several meshes' rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::judge::{App as State, Kind};
use super::schedule::PodAction;
use super::world::World;
use crate::app::tls::Certificate;
use crate::app::{App, AppSpec};
use crate::envoy::{Envoy, Settings};
use crate::kubelet::Probe;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::run::Run;
use crate::sidecar::{Sidecar, Traffic};
use crate::suite::pod_pair::{declare, grpc_of, http_get, https_get, tcp_socket};
use crate::wait;

const HTTP: u16 = 8080;
const HTTPS: u16 = 8443;
const GRPC: u16 = 9090;
const OPEN: u16 = 5432;
const CLOSED: u16 = 5433;
const PATH: &str = "/healthy";
const RULES: [RuleSet; 4] = [
    RuleSet::IstioRedirect,
    RuleSet::IstioNft,
    RuleSet::IstioTproxy,
    RuleSet::Linkerd,
];
/// The statuses of a place's pods, one after the other.
const STATUSES: std::ops::Range<u16> = 210..290;
/// How long a new pod may take until its probes have the right results, if a daemon serves.
const STARTS: Duration = Duration::from_millis(1500);

pub(super) fn probe(ip: IpAddr, kind: Kind) -> Probe {
    match kind {
        Kind::Http => Probe::http(ip, HTTP, PATH),
        Kind::Https => Probe::https(ip, HTTPS, PATH),
        Kind::Grpc => Probe::grpc(ip, GRPC, "ok"),
        Kind::Tcp => Probe::tcp(ip, OPEN),
        Kind::Closed => Probe::tcp(ip, CLOSED),
    }
}

/// A mesh's proxy: the stand-in or Envoy.
#[derive(Debug)]
struct Proxy {
    _stand_in: Option<Sidecar>,
    envoy: Option<Envoy>,
}

#[derive(Debug)]
struct Place {
    ips: (Ipv4Addr, Ipv6Addr),
    /// The number of pods that it has had.
    count: u16,
    proxy: Option<Proxy>,
    pod: Option<Pod>,
    pod_since: Duration,
}

/// All places.
#[derive(Debug)]
pub(super) struct Pods<'a> {
    run: &'a Run,
    world: &'a World,
    manifests: PathBuf,
    envoy: Option<PathBuf>,
    places: Vec<Place>,
}

impl<'a> Pods<'a> {
    /// Starts a pod at each place.
    pub(super) fn start(
        run: &'a Run,
        world: &'a World,
        manifests: &Path,
        envoy: Option<&Path>,
        count: usize,
    ) -> Result<Self> {
        let places = (0..count).map(|_| {
            let (_, ipv4, ipv6) = run.next_pod_ips();
            Place {
                ips: (ipv4, ipv6),
                count: 0,
                proxy: None,
                pod: None,
                pod_since: Duration::ZERO,
            }
        });
        let mut pods = Self {
            run,
            world,
            manifests: manifests.to_owned(),
            envoy: envoy.map(Path::to_owned),
            places: places.collect(),
        };
        for place in 0..count {
            pods.comes(place)?;
        }
        Ok(pods)
    }

    /// The addresses of each place.
    pub(super) fn ips(&self) -> Vec<[IpAddr; 2]> {
        let ips = self.places.iter().map(|place| place.ips);
        ips.map(|(ipv4, ipv6)| [ipv4.into(), ipv6.into()]).collect()
    }

    pub(super) fn act(&mut self, place: usize, action: PodAction) -> Result<()> {
        match action {
            PodAction::Goes { deleted_first } => self.goes(place, deleted_first),
            PodAction::Comes => self.comes(place),
            PodAction::AppDies => self.app(place, State::Down, |pod| pod.app.kill()),
            PodAction::AppStarts => {
                let status = self.places[place].status();
                self.app(place, State::Healthy(status), |pod| {
                    pod.app = App::start(&pod.ns, &app(status))?;
                    Ok(())
                })
            }
            PodAction::AppFails => {
                self.app(place, State::Failing, |pod| pod.app.set_status(PATH, 503))
            }
            PodAction::AppRecovers => {
                let status = self.places[place].status();
                self.app(place, State::Healthy(status), |pod| {
                    pod.app.set_status(PATH, status)
                })
            }
            PodAction::SidecarDies => {
                self.places[place].proxy = None;
                Ok(())
            }
            PodAction::SidecarDrains => {
                let proxy = &mut self.places[place].proxy;
                if let Some(envoy) = proxy.as_ref().and_then(|proxy| proxy.envoy.as_ref()) {
                    let _ok = envoy.ask("POST", "/drain_listeners?inboundonly&graceful")?;
                } else {
                    *proxy = None;
                }
                Ok(())
            }
            PodAction::SidecarStarts => self.sidecar(place),
        }
    }

    /// Changes the app, which is then in `state`.
    fn app(
        &mut self,
        index: usize,
        state: State,
        change: impl FnOnce(&mut Pod) -> Result<()>,
    ) -> Result<()> {
        let place = &mut self.places[index];
        let pod = place.pod.as_mut().context("no pod runs")?;
        self.world.changes(index);
        change(pod)?;
        self.world.is(index, state, place.pod_since);
        Ok(())
    }

    fn goes(&mut self, index: usize, deleted_first: bool) -> Result<()> {
        self.world.changes(index);
        let place = &mut self.places[index];
        let mut pod = place.pod.take().context("no pod runs")?;
        if deleted_first {
            pod.withdraw()?;
        }
        place.proxy = None;
        pod.die()
    }

    fn comes(&mut self, index: usize) -> Result<()> {
        let place = &mut self.places[index];
        place.count += 1;
        let rules = RULES[index % RULES.len()];
        let name = format!("chaos{index}-{}", place.count);
        let spec = PodSpec::new(&name)
            .rules(rules)
            .app(app(place.status()))
            .without_sidecar();
        let declared = [
            http_get(HTTP, PATH),
            https_get(HTTPS, PATH),
            grpc_of(GRPC, "ok"),
            tcp_socket(OPEN),
            tcp_socket(CLOSED),
        ];
        let mut pod = declare(spec, declared).start_at(place.ips, self.run)?;
        let since = self.world.time();
        pod.publish(&self.manifests)?;
        (place.pod, place.pod_since) = (Some(pod), since);
        self.sidecar(index)?;
        let place = &self.places[index];
        let settled = |ip: IpAddr| {
            let (kubelet, _) = self.world.kubelet();
            let passes = |kind| {
                kubelet
                    .probe(&probe(ip, kind))
                    .map(|result| result.passed())
            };
            matches!(
                (passes(Kind::Tcp), passes(Kind::Closed)),
                (Ok(true), Ok(false))
            )
        };
        // Without a daemon the wait takes its whole time limit; the judge takes that into account.
        let (ipv4, ipv6) = place.ips;
        let _settled = wait::until("the new pod's probes", STARTS, || {
            (settled(ipv4.into()) && settled(ipv6.into())).then_some(())
        });
        let state = State::Healthy(place.status());
        self.world.is(index, state, since);
        Ok(())
    }

    fn sidecar(&mut self, index: usize) -> Result<()> {
        let place = &mut self.places[index];
        let pod = place.pod.as_ref().context("no pod runs")?;
        let rules = RULES[index % RULES.len()];
        let istio = rules.has_pilot_agent();
        // The previous sidecar still exists while it drains.
        place.proxy = None;
        let program = self
            .envoy
            .as_ref()
            .filter(|_| istio && index.is_multiple_of(2));
        let proxy = match (program, rules.proxy()) {
            (Some(program), Some(proxy)) => {
                let settings = Settings::strict(proxy, HTTP);
                Proxy {
                    _stand_in: None,
                    envoy: Some(Envoy::start(self.run, &pod.ns, program, settings)?),
                }
            }
            _ => Proxy {
                _stand_in: Some(Sidecar::start(
                    &pod.ns,
                    rules,
                    self.run.mesh(),
                    Traffic::default(),
                    0,
                    &BTreeMap::new(),
                    &[],
                )?),
                envoy: None,
            },
        };
        place.proxy = Some(proxy);
        Ok(())
    }
}

impl Place {
    fn status(&self) -> u16 {
        STATUSES.start + self.count % (STATUSES.end - STATUSES.start)
    }
}

fn app(status: u16) -> AppSpec {
    AppSpec::new()
        .http(HTTP)
        .https(HTTPS, Certificate::SelfSigned)
        .grpc(GRPC)
        .tcp(OPEN)
        .status(PATH, status)
}
