//! The Secret and the MutatingWebhookConfiguration in the API server. Each write names the version that it is based
//! on, so that it fails if another replica wrote it first.

use std::time::Duration;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, TestOperation};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use super::trust::Trust;
use support::error_chain::chain;

/// Timeout of one request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// The names of the objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The webhook's namespace.
    pub namespace: String,
    /// Its Service.
    pub service: String,
    /// The Secret with its certificates.
    pub secret: String,
    /// The MutatingWebhookConfiguration that names it.
    pub configuration: String,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another replica has written to the object first.
    #[error("another replica wrote it first")]
    Conflict,
    /// The request is forbidden.
    #[error(
        "the API server does not allow us to {verb}: apply deploy/webhook again, with its Secret, its Role and ClusterRole and their bindings to the ServiceAccount. Its message: {message}"
    )]
    Forbidden {
        /// The attempted request.
        verb: String,
        /// The API server's message.
        message: String,
    },
    /// The API server can't be reached, did not answer in time, or returned an error.
    #[error("can't {verb}: {message}")]
    Failed {
        /// The attempted request.
        verb: String,
        /// Why it failed.
        message: String,
    },
}

/// Access to both objects.
#[derive(Clone)]
pub struct Store {
    secrets: Api<Secret>,
    configurations: Api<MutatingWebhookConfiguration>,
    names: Names,
}

/// The Secret as it was read; `None` if it does not exist.
pub struct Stored(Option<Secret>);

/// The MutatingWebhookConfiguration as it was read.
pub struct Configured(MutatingWebhookConfiguration);

impl Store {
    /// Sends requests with `client`.
    pub fn new(client: Client, names: Names) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &names.namespace),
            configurations: Api::all(client),
            names,
        }
    }

    /// Reads the Secret.
    ///
    /// # Errors
    /// It can't be read.
    pub async fn secret(&self) -> Result<Stored, StoreError> {
        let secret = &self.names.secret;
        let verb = format!("get Secret {}/{secret}", self.names.namespace);
        ask(verb, self.secrets.get_opt(secret)).await.map(Stored)
    }

    /// Writes `trust` to the Secret, which must not have changed since `stored` was read.
    ///
    /// # Errors
    /// It has changed, or can't be written.
    pub async fn write(&self, stored: Stored, trust: &Trust) -> Result<(), StoreError> {
        let Names {
            namespace, secret, ..
        } = &self.names;
        let params = PostParams::default();
        let is_new = stored.0.is_none();
        let mut object = stored.0.unwrap_or_else(|| Secret {
            metadata: ObjectMeta {
                name: Some(secret.clone()),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        });
        trust.write(object.data.get_or_insert_default());
        let written = if is_new {
            let verb = format!(
                "create Secret {namespace}/{secret} (`kubectl apply -k deploy/webhook` creates it, empty)"
            );
            ask(verb, self.secrets.create(&params, &object)).await
        } else {
            let verb = format!("update Secret {namespace}/{secret}");
            ask(verb, self.secrets.replace(secret, &params, &object)).await
        };
        written.map(drop)
    }

    /// Reads the MutatingWebhookConfiguration.
    ///
    /// # Errors
    /// It does not exist, or can't be read.
    pub async fn configuration(&self) -> Result<Configured, StoreError> {
        let name = &self.names.configuration;
        let verb = format!("get MutatingWebhookConfiguration {name}");
        ask(verb, self.configurations.get(name))
            .await
            .map(Configured)
    }

    /// Whether `bundle` is the caBundle of our webhooks.
    pub fn trusts(&self, configured: &Configured, bundle: &str) -> bool {
        let ours = configured.ours(&self.names);
        !ours.is_empty() && ours.into_iter().all(|(_, has)| is(has, bundle))
    }

    /// Sets `bundle` as the caBundle of our webhooks; the object must not have changed since `configured` was read.
    /// Returns whether there was anything to change.
    ///
    /// # Errors
    /// It has changed, has no webhook that calls us, or can't be written.
    pub async fn trust(&self, configured: &Configured, bundle: &str) -> Result<bool, StoreError> {
        let name = &self.names.configuration;
        let verb = format!("patch MutatingWebhookConfiguration {name}");
        let ours = configured.ours(&self.names);
        if ours.is_empty() {
            let message = format!(
                "none of its webhooks calls Service {}/{}",
                self.names.namespace, self.names.service
            );
            return Err(StoreError::Failed { verb, message });
        }
        let mut patch: Vec<PatchOperation> = Vec::new();
        for (index, has) in ours {
            if !is(has, bundle) {
                let index = index.to_string();
                let tokens = ["webhooks", &index, "clientConfig", "caBundle"];
                patch.push(PatchOperation::Add(AddOperation {
                    path: PointerBuf::from_tokens(tokens),
                    value: json!(ByteString(bundle.as_bytes().to_vec())),
                }));
            }
        }
        if patch.is_empty() {
            return Ok(false);
        }
        let version = configured.0.metadata.resource_version.as_deref();
        let test = TestOperation {
            path: PointerBuf::from_tokens(["metadata", "resourceVersion"]),
            value: json!(version),
        };
        patch.insert(0, PatchOperation::Test(test));
        let patch: Patch<()> = Patch::Json(JsonPatch(patch));
        let params = PatchParams::default();
        let patched = self.configurations.patch(name, &params, &patch);
        // If the test operation fails, the API server answers 422.
        ask_unless(&[CONFLICT, UNPROCESSABLE], verb, patched)
            .await
            .map(|_| true)
    }
}

impl Stored {
    /// Its content, if it has our keys.
    pub fn trust(&self) -> Option<Trust> {
        self.0.as_ref()?.data.as_ref().and_then(Trust::read)
    }
}

impl Configured {
    /// The webhooks that call our Service: index and bundle.
    fn ours(&self, names: &Names) -> Vec<(usize, Option<&ByteString>)> {
        let webhooks = self.0.webhooks.iter().flatten().enumerate();
        webhooks
            .filter(|(_, webhook)| {
                webhook
                    .client_config
                    .service
                    .as_ref()
                    .is_some_and(|called| {
                        called.name == names.service && called.namespace == names.namespace
                    })
            })
            .map(|(index, webhook)| (index, webhook.client_config.ca_bundle.as_ref()))
            .collect()
    }
}

fn is(has: Option<&ByteString>, bundle: &str) -> bool {
    has.is_some_and(|has| has.0 == bundle.as_bytes())
}

/// HTTP 409: another update or creation came first.
const CONFLICT: u16 = 409;
/// HTTP 422.
const UNPROCESSABLE: u16 = 422;

async fn ask<T>(
    verb: String,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, StoreError> {
    ask_unless(&[CONFLICT], verb, request).await
}

/// The API server's answer to `request`. The statuses `conflicts` mean that the object has changed since it was read.
async fn ask_unless<T>(
    conflicts: &[u16],
    verb: String,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, StoreError> {
    let error = match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => error,
        Err(_) => {
            let message = "the API server did not answer in time".to_owned();
            return Err(StoreError::Failed { verb, message });
        }
    };
    Err(match &error {
        kube::Error::Api(status) => match status.code {
            code if conflicts.contains(&code) => StoreError::Conflict,
            403 => StoreError::Forbidden {
                verb,
                message: status.message.clone(),
            },
            code => StoreError::Failed {
                verb,
                message: format!("{} (HTTP {code})", status.message),
            },
        },
        error => StoreError::Failed {
            verb,
            message: chain(error),
        },
    })
}
