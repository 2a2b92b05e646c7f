//! The client of the API server: configured by kubeconfig or ServiceAccount, with connections that detect a dead peer.

use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use super::token::TokenFile;
use support::error_chain::chain;

/// Timeout for connecting.
const CONNECT: Duration = Duration::from_secs(5);
/// TCP keepalive: idle time before the first probe, interval between probes, and their number.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// Why no client of the API server can be created.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is neither a kubeconfig nor a ServiceAccount.
    #[error(
        "no access to the Kubernetes API is configured: {0}; run this program as a pod with a ServiceAccount (and \
         automountServiceAccountToken not false), or set KUBECONFIG to a kubeconfig"
    )]
    NotConfigured(String),
    /// The configuration is unusable.
    #[error("the configured access to the Kubernetes API can't be used: {0}")]
    Unusable(String),
}

/// Creates a client from the kubeconfig (`KUBECONFIG`, `~/.kube/config`) or else from the pod's ServiceAccount.
/// Sends no request yet.
///
/// # Errors
/// There is no configuration, or it is unusable.
pub async fn connect() -> Result<Client, ConnectError> {
    let config = Config::infer()
        .await
        .map_err(|error| ConnectError::NotConfigured(chain(&error)))?;
    let server = config.cluster_url.to_string();
    let client = client(config)?;
    tracing::info!(server, "using the Kubernetes API");
    Ok(client)
}

/// Creates a client from `config`; it reads token and certificates again when they change. It omits kube's layers
/// that log each failure, retry or decompress, because the watches do this themselves where they need it.
///
/// # Errors
/// Certificates or tokens can't be read.
pub fn client(mut config: Config) -> Result<Client, ConnectError> {
    let unusable = |error: kube::Error| ConnectError::Unusable(chain(&error));
    if config.proxy_url.is_some() {
        return Err(ConnectError::Unusable(
            "a proxy is configured, which is not supported".to_owned(),
        ));
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    let https = config
        .rustls_https_connector_with_connector(tcp)
        .map_err(unusable)?;
    let token = config.auth_info.token_file.take().map(TokenFile::new);
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(unusable)?)
        .layer(config.extra_headers_layer().map_err(unusable)?)
        .filter(move |request| match &token {
            Some(token) => token.authorize(request),
            None => Ok(request),
        })
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}
