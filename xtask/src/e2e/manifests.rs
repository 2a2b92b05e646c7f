//! The pods of the test: an app that the testbed's program serves, in a pod that looks as Istio's
//! injector leaves it, with Istio's rules and a sidecar that takes nothing but mutual TLS.

use serde_json::{Map, Value, json};

/// Where all of it lives.
pub const NAMESPACE: &str = "probe-handler-e2e";
/// The proxy's user and group in Istio, by which its rules know it.
const PROXY_USER: u32 = 1337;

/// Where test pods run, and from what image.
#[derive(Clone, Debug)]
pub struct Place {
    /// The node that they are bound to.
    pub node: String,
    /// The testbed's image.
    pub image: String,
}

/// How the pod gets its sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sidecar {
    /// An init container that keeps running.
    Native,
    /// A container beside the app.
    Regular,
    /// None, and no rules: a pod of no mesh.
    None,
}

/// A pod of the test.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its sidecar.
    pub sidecar: Sidecar,
    /// What its container `app` has besides name, image and arguments: the probes above all.
    pub app: Value,
    /// `ISTIO_KUBE_APP_PROBERS`, where its probes are rewritten.
    pub probers: Option<Value>,
    /// What a second app has, which runs as an init container before the first and beside it; it listens to
    /// HTTP 8081.
    pub early: Option<Value>,
}

impl Pod {
    /// A pod with a native sidecar.
    pub fn new(name: &str, app: Value) -> Self {
        Self {
            name: name.to_owned(),
            sidecar: Sidecar::Native,
            app,
            probers: None,
            early: None,
        }
    }

    /// The object to create.
    pub fn manifest(&self, place: &Place) -> Value {
        let mut app = container(
            "app",
            place,
            &["app", "--until-terminated", "--spec", LISTENERS],
        );
        merge(&mut app, &self.app);
        let proxy = self.proxy(place);
        let rules = json!({
            "name": "istio-init",
            "image": place.image,
            "imagePullPolicy": "IfNotPresent",
            "args": ["rules", "istio-redirect", "--identity", "/mesh"],
            "volumeMounts": [{"name": "mesh", "mountPath": "/mesh"}],
            "securityContext": {
                "runAsUser": 0,
                "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
            },
        });
        let (mut init, containers) = match self.sidecar {
            Sidecar::None => (vec![], vec![app]),
            Sidecar::Regular => (vec![rules], vec![proxy, app]),
            Sidecar::Native => (vec![rules, kept_running(proxy)], vec![app]),
        };
        if let Some(fields) = &self.early {
            let mut early = container(
                "early",
                place,
                &["app", "--until-terminated", "--spec", EARLY],
            );
            merge(&mut early, fields);
            init.push(kept_running(early));
        }
        let annotations = match self.sidecar {
            Sidecar::None => json!({}),
            // As Istio's injector writes it, so far as anybody reads it.
            _ => json!({"sidecar.istio.io/status": "{\"initContainers\":[\"istio-init\"]}"}),
        };
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": NAMESPACE,
                "annotations": annotations,
                // Whatever mesh the cluster has, these pods bring their own.
                "labels": {"sidecar.istio.io/inject": "false"},
            },
            "spec": {
                "nodeName": place.node,
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 2,
                "initContainers": init,
                "containers": containers,
                "volumes": [{"name": "mesh", "emptyDir": {}}],
            },
        })
    }

    fn proxy(&self, place: &Place) -> Value {
        let spec = json!({
            "inbound_port": 15006,
            "outbound_port": 15001,
            "uid": PROXY_USER,
            "mark": null,
            "passthrough_source": true,
            "transparent": false,
            "pilot_agent": true,
            "pod_ip": "$(INSTANCE_IP)",
            "probers": self.probers.clone().unwrap_or_else(|| json!({})),
        });
        let mut proxy = container("istio-proxy", place, &["sidecar", "--until-terminated"]);
        let args = ["--identity", "/mesh", "--spec"].map(Value::from);
        if let Some(list) = proxy["args"].as_array_mut() {
            list.extend(args);
            list.push(spec.to_string().into());
        }
        let mut env = vec![json!({
            "name": "INSTANCE_IP",
            "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}},
        })];
        if let Some(probers) = &self.probers {
            env.push(json!({"name": "ISTIO_KUBE_APP_PROBERS", "value": probers.to_string()}));
        }
        proxy["env"] = env.into();
        proxy["volumeMounts"] = json!([{"name": "mesh", "mountPath": "/mesh", "readOnly": true}]);
        proxy
    }
}

/// A pod of the node's own network that runs the testbed's program once: some process that is not the
/// kubelet.
pub fn host_network_pod(name: &str, args: &[&str], place: &Place) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeName": place.node,
            "hostNetwork": true,
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "containers": [container("app", place, args)],
        },
    })
}

/// The namespace: the rules' init container needs NET_ADMIN.
pub fn namespace() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "privileged"},
        },
    })
}

/// What every app listens to: HTTP 8080, HTTPS 8443, gRPC 9090, TCP 5432. What is probed on it decides
/// whether it is healthy.
const LISTENERS: &str = r#"{"listeners":[
{"protocol":"http","bind":"any-v4","port":8080},
{"protocol":{"https":{"certificate":"self-signed","h2":true}},"bind":"any-v4","port":8443},
{"protocol":"grpc","bind":"any-v4","port":9090},
{"protocol":"tcp","bind":"any-v4","port":5432}]}"#;

/// What the second app listens to.
const EARLY: &str = r#"{"listeners":[{"protocol":"http","bind":"any-v4","port":8081}]}"#;

/// An init container that does not end, as native sidecars are declared.
fn kept_running(mut container: Value) -> Value {
    container["restartPolicy"] = json!("Always");
    container
}

fn container(name: &str, place: &Place, args: &[&str]) -> Value {
    json!({
        "name": name,
        "image": place.image,
        "imagePullPolicy": "IfNotPresent",
        "args": args,
        "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}},
    })
}

fn merge(into: &mut Value, from: &Value) {
    let empty = Map::new();
    let from = from.as_object().unwrap_or(&empty);
    if let Some(into) = into.as_object_mut() {
        into.extend(from.clone());
    }
}
