//! Puts the webhook together: which parts start in which order, and how it ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::raise_descriptor_limit;
use super::shutdown::Shutdown;
use crate::cli::config::{CertificateSource, SettingsSource, WebhookConfig};
use crate::observe::collectors::register_readiness;
use serve::metrics::PREFIX;
use sources::kube::client;
use support::readiness::Readiness;
use webhook::Rewriting;
use webhook::certificates::authority::Lifetimes;
use webhook::certificates::cert_manager::CertManager;
use webhook::certificates::store::{Names, Store};
use webhook::certificates::trust::Needs;
use webhook::certificates::{self, Serving};
use webhook::metrics::Metrics;
use webhook::server::{Admission, Limits, Observation, Phase, Server};
use webhook::settings::{Holder, config_map, files};

/// How long new connections are still served after SIGTERM: the cluster takes about that long to route them to
/// other replicas.
const LEAVING: Duration = Duration::from_secs(3);
/// The file with a pod's namespace (kubernetes plugin/pkg/admission/serviceaccount).
const OWN_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Builds the webhook and runs it until a signal stops it and it has drained.
///
/// # Errors
/// The start failed (with what to do next), or a part of the webhook ended.
pub fn run(config: WebhookConfig) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(async {
            let mut stop = Shutdown::new()?;
            let webhook = tokio::select! {
                webhook = build(config) => webhook?,
                _ = stop.signal() => return Ok(()),
            };
            webhook.serve(&mut stop).await
        })
}

/// A running webhook.
struct Webhook {
    readiness: Readiness,
    phase: watch::Sender<Phase>,
    drain_timeout: Duration,
    servers: JoinSet<()>,
    tasks: JoinSet<()>,
}

async fn build(config: WebhookConfig) -> anyhow::Result<Webhook> {
    // The usual soft limit of 1,024 is lower than the number of connections that the webhook accepts.
    raise_descriptor_limit();
    let readiness = Readiness::default();
    let mut registry = Registry::with_prefix(PREFIX);
    let metrics = Arc::new(Metrics::new(&mut registry));
    register_readiness(&mut registry, readiness.clone());

    let (rewriting, settings) = watch::channel(Arc::new(match config.settings {
        SettingsSource::Defaults => Rewriting::default(),
        // Nothing is rewritten before the settings have been read.
        SettingsSource::Dir(_) | SettingsSource::ConfigMap(_) => Rewriting {
            enabled: false,
            ..Rewriting::default()
        },
    }));
    metrics.set_enabled(settings.borrow().enabled);

    let limits = Limits::default();
    let serving = Arc::new(Serving::default());
    let admission = Admission::new(settings, readiness.clone(), Arc::clone(&metrics), &limits);
    let resolver = Arc::clone(&serving);
    let admission = Server::admission(config.listen, resolver, admission, limits)?;

    let mut tasks = JoinSet::new();
    let mut cluster = Cluster::new(config.namespace);
    let holder = || {
        let first = readiness.block("settings");
        Holder::new(rewriting, Arc::clone(&metrics), first)
    };
    match config.settings {
        SettingsSource::Defaults => {}
        SettingsSource::Dir(path) => {
            let _ = tasks.spawn(files::follow(path, holder()));
        }
        SettingsSource::ConfigMap(name) => {
            let (client, namespace) = cluster.get().await?;
            let holder = holder();
            let _ = tasks.spawn(async move {
                config_map::follow(client, &namespace, &name, holder).await;
            });
        }
    }
    let first = readiness.block("certificate");
    match config.certificate {
        CertificateSource::Dir(path) => {
            let follow = certificates::files::follow(path, serving, Arc::clone(&metrics), first);
            let _ = tasks.spawn(follow);
        }
        CertificateSource::SelfSigned {
            service,
            secret,
            configuration,
        } => {
            metrics.register_in_place(&mut registry);
            let (client, namespace) = cluster.get().await?;
            let names = Names {
                namespace,
                service,
                secret,
                configuration,
            };
            let keeper = keeper(client, names, serving, &metrics);
            let _ = tasks.spawn(keeper.run(first));
        }
    }

    let (phase, phases) = watch::channel(Phase::Serving);
    let mut servers = JoinSet::new();
    let listening = admission.address();
    metrics.register_connections(&mut registry, admission.connections());
    let observation = config
        .admin_addr
        .map(|address| {
            let observation = Observation {
                registry: Arc::new(registry),
                readiness: readiness.clone(),
            };
            Server::observation(address, observation).map_err(|error| {
                anyhow::anyhow!(
                    "{error:#}; if another program uses that port, set --admin-addr to another one (or none)"
                )
            })
        })
        .transpose()?;
    let admin = observation
        .as_ref()
        .map_or_else(|| "none".to_owned(), |server| server.address().to_string());
    let _ = servers.spawn(admission.serve(phases.clone()));
    if let Some(observation) = observation {
        let _ = servers.spawn(observation.serve(phases));
    }
    tracing::info!(%listening, %admin, "serving admission");
    Ok(Webhook {
        readiness,
        phase,
        drain_timeout: config.drain_timeout,
        servers,
        tasks,
    })
}

impl Webhook {
    /// Serves until a signal arrives, then drains; a second signal ends the drain at once.
    ///
    /// # Errors
    /// A part ended unexpectedly.
    async fn serve(mut self, stop: &mut Shutdown) -> anyhow::Result<()> {
        let ended = tokio::select! {
            signal = stop.signal() => Ok(signal),
            ended = self.tasks.join_next(), if !self.tasks.is_empty() => Err(ended),
            ended = self.servers.join_next() => Err(ended),
        };
        tracing::info!(?ended, "draining: in-flight requests are answered");
        self.readiness.drain();
        let _ = self.phase.send_replace(Phase::Leaving);
        let drained = async {
            sleep(LEAVING.min(self.drain_timeout)).await;
            let _ = self.phase.send_replace(Phase::Ending);
            while self.servers.join_next().await.is_some() {}
        };
        tokio::select! {
            done = timeout(self.drain_timeout, drained) => match done {
                Ok(()) => tracing::info!("drained"),
                Err(_) => tracing::warn!(timeout_seconds = self.drain_timeout.as_secs(), "drain timeout: closing the remaining connections"),
            },
            signal = stop.signal() => tracing::warn!(signal, "second signal: closing the remaining connections"),
        }
        tracing::info!("ended");
        match ended {
            Ok(_) => Ok(()),
            Err(ended) => anyhow::bail!("a part of the webhook ended: {ended:?}"),
        }
    }
}

/// The task that keeps a self-signed certificate in `names` valid.
fn keeper(
    client: kube::Client,
    names: Names,
    serving: Arc<Serving>,
    metrics: &Arc<Metrics>,
) -> CertManager {
    let needs = Needs {
        names: dns_names(&names),
        lifetimes: Lifetimes::default(),
    };
    CertManager::new(
        Store::new(client, names),
        needs,
        Arc::new(SystemTime::now),
        serving,
        Arc::clone(metrics),
    )
}

/// The names under which API servers and other clients call the Service.
fn dns_names(names: &Names) -> Vec<String> {
    let short = format!("{}.{}", names.service, names.namespace);
    vec![
        format!("{short}.svc"),
        format!("{short}.svc.cluster.local"),
        short,
    ]
}

/// The client of the API server, created on first use.
struct Cluster {
    namespace: Option<String>,
    client: Option<Client>,
}

impl Cluster {
    fn new(namespace: Option<String>) -> Self {
        Self {
            namespace,
            client: None,
        }
    }

    /// The client, and the webhook's own namespace.
    ///
    /// # Errors
    /// The client can't be created, or the own namespace is not known.
    async fn get(&mut self) -> anyhow::Result<(Client, String)> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(client::connect().await?).clone(),
        };
        let namespace = match &self.namespace {
            Some(namespace) => namespace.clone(),
            None => own_namespace()?,
        };
        Ok((client, namespace))
    }
}

fn own_namespace() -> anyhow::Result<String> {
    let text = std::fs::read_to_string(OWN_NAMESPACE).with_context(|| {
        format!("cannot read the pod's own namespace from {OWN_NAMESPACE}; set --namespace")
    })?;
    Ok(text.trim().to_owned())
}
