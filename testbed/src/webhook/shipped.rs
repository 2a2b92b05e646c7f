//! Applies deploy/webhook to the API server double: its objects, only the permissions of its ServiceAccount, and the
//! arguments of its container.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use crate::manifests;
use crate::node::api::Api;
use crate::run::Run;

/// The namespace that kustomize sets.
pub const NAMESPACE: &str = "probe-handler-system";
const CONFIGURATIONS: &str = "mutatingwebhookconfigurations";
const SETTINGS: &str = "probe-handler";

const CONFIG_MAP: &str = include_str!("../../../deploy/webhook/configmap.yaml");
const SECRET: &str = include_str!("../../../deploy/webhook/secret.yaml");
const CONFIGURATION: &str = include_str!("../../../deploy/webhook/webhookconfiguration.yaml");
const RBAC: &str = include_str!("../../../deploy/webhook/rbac.yaml");
const DEPLOYMENT: &str = include_str!("../../../deploy/webhook/deployment.yaml");

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    api: Api,
    configuration: String,
}

impl Cluster {
    /// Applies all objects.
    ///
    /// # Errors
    /// When a manifest is not as expected.
    pub fn start(run: &Run) -> Result<Self> {
        let api = Api::start(run, "webhook")?;
        for (resource, text) in [("configmaps", CONFIG_MAP), ("secrets", SECRET)] {
            let mut object = manifest(text)?;
            object["metadata"]["namespace"] = json!(NAMESPACE);
            api.put(resource, object)?;
        }
        let mut configuration = manifest(CONFIGURATION)?;
        let webhooks = configuration["webhooks"].as_array_mut();
        for webhook in webhooks.context("the configuration's webhooks")? {
            webhook["clientConfig"]["service"]["namespace"] = json!(NAMESPACE);
        }
        let name = configuration["metadata"]["name"].as_str();
        let name = name.context("the configuration's name")?.to_owned();
        api.put(CONFIGURATIONS, configuration)?;
        let account = &manifest(DEPLOYMENT)?["spec"]["template"]["spec"]["serviceAccountName"];
        let account = account.as_str().context("the container's ServiceAccount")?;
        api.grant(RBAC, NAMESPACE, account)?;
        Ok(Self {
            api,
            configuration: name,
        })
    }

    /// The container's arguments.
    ///
    /// # Errors
    /// When the manifest has none.
    pub fn arguments() -> Result<Vec<String>> {
        let mut deployment = manifest(DEPLOYMENT)?;
        let arguments = &mut deployment["spec"]["template"]["spec"]["containers"][0]["args"];
        serde_json::from_value(arguments.take()).context("the container's arguments")
    }

    /// Kubeconfig of its API server.
    pub fn kubeconfig(&self) -> PathBuf {
        self.api.kubeconfig()
    }

    /// The caBundle, which must be the same in all webhooks.
    ///
    /// # Errors
    /// When it is not set yet.
    pub fn bundle(&self) -> Result<Vec<u8>> {
        let configuration = self
            .api
            .order(|server| server.get(CONFIGURATIONS, "", &self.configuration))?
            .context("the configuration is gone")?;
        let webhooks = configuration["webhooks"].as_array().context("webhooks")?;
        let bundles = webhooks.iter().map(|webhook| {
            let bundle = webhook["clientConfig"].get("caBundle");
            serde_json::from_value(bundle.context("no caBundle yet")?.clone())
                .context("a caBundle that is no base64")
        });
        let bundles: Vec<ByteString> = bundles.collect::<Result<_>>()?;
        let first = bundles.first().context("no webhook")?;
        ensure!(
            bundles.iter().all(|bundle| bundle == first),
            "not all alike"
        );
        Ok(first.0.clone())
    }

    /// Changes one of the settings in the ConfigMap.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let mut settings = self
            .api
            .order(|server| server.get("configmaps", NAMESPACE, SETTINGS))?
            .context("the ConfigMap is gone")?;
        settings["data"][key] = json!(value);
        self.api.put("configmaps", settings)
    }
}

/// The only object of a manifest.
fn manifest(text: &str) -> Result<Value> {
    let object = manifests::parse(text.as_bytes())?.pop();
    object.context("an empty manifest")
}
