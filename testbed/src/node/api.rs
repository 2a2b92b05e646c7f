//! The API server double with TLS, and a kubeconfig for the daemon. The calls block.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use api_server_double::{ApiServer, Stopped};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::manifests;
use crate::run::Run;

/// The only token that it accepts, unless a test changes it.
const TOKEN: &str = "the-daemons-own-token";
/// Deadline for stopping a server.
const STOP: Duration = Duration::from_secs(5);

/// An API server, which a test may stop and restart.
pub struct Api {
    state: Mutex<State>,
    runtime: Runtime,
    dir: PathBuf,
}

enum State {
    Up(ApiServer),
    Down(Option<Box<Stopped>>),
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Api {
    /// Starts an empty server, and writes a kubeconfig into the run's directory.
    ///
    /// # Errors
    /// When the kubeconfig cannot be written.
    pub fn start(run: &Run, name: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("api-server")
            .enable_all()
            .build()?;
        let (server, certificate) = runtime.block_on(ApiServer::start_tls());
        server.require_token(Some(TOKEN));
        let dir = run.dir().join(format!("{name}-api"));
        std::fs::create_dir_all(&dir)?;
        let (authority, token) = (dir.join("ca.crt"), dir.join("token"));
        std::fs::write(&authority, certificate.pem())?;
        std::fs::write(&token, TOKEN)?;
        std::fs::write(dir.join("namespace"), "probe-handler")?;
        let url = server.url().to_string();
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "node",
            "clusters": [{"name": "double", "cluster":
                {"server": url.trim_end_matches('/'), "certificate-authority": authority}}],
            "users": [{"name": "daemon", "user": {"tokenFile": token}}],
            "contexts": [{"name": "node", "context": {"cluster": "double", "user": "daemon"}}],
        });
        let this = Self {
            state: Mutex::new(State::Up(server)),
            runtime,
            dir,
        };
        let path = this.kubeconfig();
        std::fs::write(&path, kubeconfig.to_string())
            .with_context(|| path.display().to_string())?;
        Ok(this)
    }

    /// The kubeconfig's path.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Its address.
    ///
    /// # Errors
    /// While it is stopped.
    pub fn address(&self) -> Result<SocketAddr> {
        let url = self.order(ApiServer::url)?;
        let authority = url.authority().context("a URL without an address")?;
        authority.as_str().parse().context("no address")
    }

    /// Its directory contains the files of a ServiceAccount's volume.
    pub fn volume(&self) -> &Path {
        &self.dir
    }

    /// The file with the token that a daemon sends.
    pub fn token(&self) -> PathBuf {
        self.dir.join("token")
    }

    /// Calls a method of the server.
    ///
    /// # Errors
    /// While it is stopped.
    pub fn order<T>(&self, order: impl FnOnce(&ApiServer) -> T) -> Result<T> {
        match &*self.state() {
            State::Up(server) => Ok(order(server)),
            State::Down(_) => Err(anyhow!("the API server is stopped")),
        }
    }

    /// From now on a client has the rights that the bindings in `manifest` grant to ServiceAccount `account` of
    /// `namespace`, in addition to those granted before, and no others.
    ///
    /// # Errors
    /// When it can't be parsed, binds nothing, or binds a role that it does not contain; while the server is stopped.
    pub fn grant(&self, manifest: &str, namespace: &str, account: &str) -> Result<()> {
        let objects = manifests::parse(manifest.as_bytes())?;
        // Kustomize sets the namespace.
        let subject = json!({"kind": "ServiceAccount", "name": account});
        let mut granted = 0;
        for binding in &objects {
            let within = match binding["kind"].as_str() {
                Some("RoleBinding") => Some(namespace),
                Some("ClusterRoleBinding") => None,
                _ => continue,
            };
            let subjects = binding["subjects"].as_array().context("subjects")?;
            if !subjects.contains(&subject) {
                continue;
            }
            let role = &binding["roleRef"];
            let role = objects
                .iter()
                .find(|object| {
                    object["kind"] == role["kind"] && object["metadata"]["name"] == role["name"]
                })
                .with_context(|| format!("{role} is not there"))?;
            let rules = role["rules"].as_array().context("rules")?;
            self.order(|server| server.allow(within, rules))?;
            granted += 1;
        }
        ensure!(granted > 0, "nothing is bound to {subject}");
        Ok(())
    }

    /// Writes an object.
    ///
    /// # Errors
    /// While it is stopped.
    pub fn put(&self, resource: &str, object: Value) -> Result<()> {
        self.order(|server| server.put(resource, object)).map(drop)
    }

    /// Stops it: connections break, and its address is not listened on.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop(&self) -> Result<()> {
        let mut state = self.state();
        if let State::Up(server) = std::mem::replace(&mut *state, State::Down(None)) {
            let stopping = async { tokio::time::timeout(STOP, server.stop()).await };
            let stopped = self.runtime.block_on(stopping);
            let stopped = stopped.context("the API server does not stop")?;
            *state = State::Down(Some(Box::new(stopped)));
        }
        Ok(())
    }

    /// Restarts it at the same address, with its objects but without its events.
    ///
    /// # Errors
    /// When it was not stopped.
    pub fn start_again(&self) -> Result<()> {
        let mut state = self.state();
        let stopped = match &mut *state {
            State::Down(stopped) => stopped.take(),
            State::Up(_) => None,
        };
        let stopped = stopped.context("the API server was not stopped")?;
        *state = State::Up(self.runtime.block_on(stopped.start()));
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
