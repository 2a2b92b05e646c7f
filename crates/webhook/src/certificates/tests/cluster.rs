//! The objects of a cluster that certificates use: the Secret, and the MutatingWebhookConfiguration with the caBundle.

use std::ops::Deref;

use api_server_double::ApiServer;
use kube::{Client, Config};
use serde_json::{Value, json};

use super::{NAMESPACE, SERVICE};
use sources::kube::client;

pub const SECRET: &str = "probe-handler-webhook-tls";
pub const CONFIGURATION: &str = "10-probe-handler";
pub const CONFIGURATIONS: &str = "mutatingwebhookconfigurations";

/// The double of the API server.
pub struct Cluster(ApiServer);

impl Deref for Cluster {
    type Target = ApiServer;

    fn deref(&self) -> &ApiServer {
        &self.0
    }
}

impl Cluster {
    /// Starts one with the MutatingWebhookConfiguration of deploy/webhook, to which a foreign webhook is added.
    pub async fn start() -> Self {
        let server = ApiServer::start().await;
        let webhook = |name: &str, service: &str| {
            json!({
                "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"service": {"name": service, "namespace": NAMESPACE, "path": "/mutate"}},
            })
        };
        let configuration = json!({
            "metadata": {"name": CONFIGURATION},
            "webhooks": [webhook("other.example.com", "other"), webhook("probes.probe-handler.io", SERVICE)],
        });
        let _ = server.put(CONFIGURATIONS, configuration);
        Self(server)
    }

    pub fn client(&self) -> Client {
        client::client(Config::new(self.url())).expect("a client")
    }

    /// Creates an empty Secret, like deploy/webhook.
    pub fn put_empty_secret(&self) {
        let secret =
            json!({"type": "Opaque", "metadata": {"name": SECRET, "namespace": NAMESPACE}});
        let _ = self.put("secrets", secret);
    }

    /// The Secret's data.
    pub fn data(&self) -> super::Data {
        let secret = self.get("secrets", NAMESPACE, SECRET);
        let data = secret.unwrap_or_default()["data"].take();
        serde_json::from_value(data).unwrap_or_default()
    }

    fn configuration(&self) -> Value {
        self.get(CONFIGURATIONS, "", CONFIGURATION)
            .expect("it is there")
    }

    /// The caBundle of each webhook.
    pub fn bundles(&self) -> Vec<Option<String>> {
        let configuration = self.configuration();
        let webhooks = configuration["webhooks"].as_array().expect("webhooks");
        let bundle = |webhook: &Value| {
            let bundle = webhook["clientConfig"].get("caBundle")?.clone();
            let bytes: k8s_openapi::ByteString = serde_json::from_value(bundle).expect("base64");
            String::from_utf8(bytes.0).ok()
        };
        webhooks.iter().map(bundle).collect()
    }

    /// Removes the caBundles, like a careless `kubectl replace`.
    pub fn remove_bundles(&self) {
        let mut configuration = self.configuration();
        for webhook in configuration["webhooks"].as_array_mut().expect("webhooks") {
            let client = webhook["clientConfig"].as_object_mut().expect("a client");
            drop(client.remove("caBundle"));
        }
        let _ = self.put(CONFIGURATIONS, configuration);
    }
}
