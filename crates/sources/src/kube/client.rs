//! The way to the API server: kubeconfig or ServiceAccount, and a connection that notices when it is dead.

use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use super::token::TokenFile;
use support::error_chain::chain;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// When to ask whether the other end still lives, and how often.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a kubeconfig nor a ServiceAccount.
    #[error(
        "no access to the Kubernetes API is configured: {0}; run this program as a pod with a ServiceAccount (and \
         automountServiceAccountToken not false), or set KUBECONFIG to a kubeconfig"
    )]
    NotConfigured(String),
    /// What is configured can't be used.
    #[error("the configured access to the Kubernetes API can't be used: {0}")]
    Unusable(String),
}

/// A client as kubeconfig (`KUBECONFIG`, `~/.kube/config`) or else the pod's ServiceAccount say. Does not
/// ask the server anything yet.
///
/// # Errors
/// Nothing is configured, or nothing usable.
pub async fn connect() -> Result<Client, ConnectError> {
    let config = Config::infer()
        .await
        .map_err(|error| ConnectError::NotConfigured(chain(&error)))?;
    let server = config.cluster_url.to_string();
    let client = client(config)?;
    tracing::info!(server, "using the Kubernetes API");
    Ok(client)
}

/// A client as `config` says: token and certificates are read again when they change. Of kube's own layers
/// those are left out that log each failure, try again by themselves or unpack: the watches do what they
/// need of it.
///
/// # Errors
/// Certificates or tokens that can't be read.
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
