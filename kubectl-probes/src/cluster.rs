//! The client of the API server, from the user's kubeconfig.

use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::cli::ClusterArgs;
use crate::daemons::{self, Daemons};
use support::error_chain::chain;

/// The cluster, and how its daemons are requested.
pub struct Cluster {
    client: Client,
    /// The namespace of the daemons.
    pub namespace: String,
    /// The time for one node's answer.
    pub timeout: Duration,
    /// How many nodes are requested at the same time.
    pub parallel: usize,
}

/// Why there is no access to the cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No kubeconfig, or it is invalid.
    #[error(
        "no usable kubeconfig: {0}; set KUBECONFIG or --kubeconfig, as for kubectl, and check it with 'kubectl version'"
    )]
    Config(String),
    /// The kubeconfig's credentials or certificates can't be used.
    #[error("the kubeconfig can't be used: {0}; check it with 'kubectl version'")]
    Client(String),
}

/// Creates a client for the context of the kubeconfig. Sends no request yet.
///
/// # Errors
/// There is no usable kubeconfig.
pub async fn connect(args: &ClusterArgs) -> Result<Cluster, Error> {
    let options = KubeConfigOptions {
        context: args.context.clone(),
        ..KubeConfigOptions::default()
    };
    let invalid = |error: &dyn std::error::Error| Error::Config(chain(error));
    let read = match (&args.kubeconfig, &args.context) {
        (Some(path), _) => Some(Kubeconfig::read_from(path)),
        (None, Some(_)) => Some(Kubeconfig::read()),
        (None, None) => None,
    };
    let config = match read {
        Some(kubeconfig) => {
            let kubeconfig = kubeconfig.map_err(|error| invalid(&error))?;
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
            config.map_err(|error| invalid(&error))?
        }
        None => Config::infer().await.map_err(|error| invalid(&error))?,
    };
    let client = Client::try_from(config).map_err(|error| Error::Client(chain(&error)))?;
    Ok(Cluster {
        client,
        namespace: args.daemon_namespace.clone(),
        timeout: args.timeout,
        parallel: usize::from(args.parallel),
    })
}

impl Cluster {
    /// The daemons of all nodes.
    ///
    /// # Errors
    /// The API server does not list them, or there is none.
    pub async fn daemons(&self) -> Result<Daemons, daemons::Error> {
        daemons::list(&self.client, &self.namespace).await
    }

    /// The version of the API server, if it may be read.
    pub async fn version(&self) -> Option<String> {
        let version = tokio::time::timeout(self.timeout, self.client.apiserver_version()).await;
        Some(version.ok()?.ok()?.git_version)
    }
}
