//! Many cheap pods, each with a namespace, an address, a manifest, and an app that this process serves.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::prober::{Prober, Target};
use testbed::daemon::Daemon;
use testbed::netns::NetNs;
use testbed::pod::PodSpec;
use testbed::rules::RuleSet;
use testbed::run::Run;
use testbed::wait;

const PORT: u16 = 8080;
const PATHS: [&str; 2] = ["/live", "/ready"];
const SERVED: Duration = Duration::from_secs(120);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// A growing number of pods.
pub(super) struct ManyPods {
    pods: Vec<NetNs>,
    apps: tokio::runtime::Runtime,
}

impl ManyPods {
    pub(super) fn new() -> Result<Self> {
        let apps = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        Ok(Self {
            pods: Vec::new(),
            apps,
        })
    }

    /// Creates pods until there are `count`, waits until `daemon` serves them all, and makes each of their
    /// probes twice.
    pub(super) fn grow(
        &mut self,
        run: &Run,
        daemon: &Daemon,
        prober: &Prober,
        count: usize,
    ) -> Result<()> {
        while self.pods.len() < count {
            let pod = self.pod(run, daemon.pods())?;
            self.pods.push(pod);
        }
        wait::until(&format!("{count} pods to be served"), SERVED, || {
            let status = daemon.status().ok()?;
            let known = |pod: &&serde_json::Value| pod["netns"]["known"].is_object();
            (status["pods"].as_array()?.iter().filter(known).count() >= count).then_some(())
        })
        .with_context(|| daemon.log_tail())?;
        for pod in &self.pods {
            let targets = PATHS.map(|path| Target::Http {
                address: SocketAddr::new(pod.ipv4().into(), PORT),
                path: path.to_owned(),
            });
            let _warm = prober.measure(targets, 2)?;
        }
        Ok(())
    }

    fn pod(&self, run: &Run, manifests: &Path) -> Result<NetNs> {
        let name = format!("c{}", self.pods.len());
        let ns = NetNs::new(run, &name)?;
        let address = SocketAddr::new(ns.ipv4().into(), PORT);
        let listener = ns.run(|| {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        let _detached = self.apps.spawn(serve(listener));
        let [live, ready] =
            PATHS.map(|path| json!({"httpGet": {"path": path, "port": PORT}, "periodSeconds": 10}));
        let manifest = PodSpec::new(&name)
            .rules(RuleSet::IstioRedirect)
            .container(json!({
                "name": "app", "image": "app", "livenessProbe": live, "readinessProbe": ready,
            }))
            .manifest(&ns);
        let path = manifests.join(format!("{name}.yaml"));
        fs::write(&path, manifest.to_string()).with_context(|| path.display().to_string())?;
        Ok(ns)
    }
}

/// Answers every request with 200.
async fn serve(listener: TcpListener) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        let _detached = tokio::spawn(async move {
            let mut request = [0; 1024];
            let _length = stream.read(&mut request).await?;
            stream.write_all(ANSWER).await?;
            stream.shutdown().await
        });
    }
}
