//! The manifests of the test's pods: an app served by the testbed's program, in a pod like those that Istio's
//! injector produces, with Istio's rules and a sidecar that accepts only mutual TLS.

use serde_json::{Map, Value, json};

/// The namespace of the test's pods.
pub const NAMESPACE: &str = "probe-handler-e2e";
/// The rules in each pod, by their name in the testbed.
const RULES: &str = "istio-redirect";

/// Node and image of test pods.
#[derive(Clone, Debug)]
pub struct Place {
    /// The node they are bound to.
    pub node: String,
    /// The testbed's image.
    pub image: String,
}

/// How the pod's sidecar is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sidecar {
    /// As an init container that keeps running.
    Native,
    /// As a regular container.
    Regular,
    /// No sidecar and no rules: a pod without a mesh.
    None,
}

/// A pod of the test.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its sidecar.
    pub sidecar: Sidecar,
    /// Fields of its container `app` besides name, image and arguments, above all the probes.
    pub app: Value,
    /// Annotations besides those of Istio's injector.
    pub annotations: Value,
    /// `ISTIO_KUBE_APP_PROBERS`, if its probes are rewritten.
    pub probers: Option<Value>,
    /// Fields of a second app, an init container that starts before the first app and keeps running; it
    /// serves HTTP on 8081.
    pub early: Option<Value>,
}

impl Pod {
    /// A pod with a native sidecar.
    pub fn new(name: &str, app: Value) -> Self {
        Self {
            name: name.to_owned(),
            sidecar: Sidecar::Native,
            app,
            annotations: json!({}),
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
            "args": ["rules", RULES, "--identity", "/mesh"],
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
        let mut annotations = match self.sidecar {
            Sidecar::None => json!({}),
            // The parts of what Istio's injector writes that are read.
            _ => json!({"sidecar.istio.io/status": "{\"initContainers\":[\"istio-init\"]}"}),
        };
        merge(&mut annotations, &self.annotations);
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": NAMESPACE,
                "annotations": annotations,
                // These pods have their own mesh; the cluster's mesh must not inject a sidecar.
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
        let probers = self
            .probers
            .clone()
            .unwrap_or_else(|| json!({}))
            .to_string();
        let args = [
            "sidecar",
            "--until-terminated",
            "--identity",
            "/mesh",
            "--mesh",
            RULES,
            "--pod-ip",
            "$(INSTANCE_IP)",
            "--probers",
            &probers,
        ];
        let mut proxy = container("istio-proxy", place, &args);
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

/// A pod in the host network that runs the testbed's program once: a process that is not the
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

/// A pod in the node's pid namespace that sends a signal to a process of another pod, and again to each that the kubelet starts
/// in its place.
pub fn signal_pod(
    name: &str,
    uid: &str,
    verb: &str,
    signal: &str,
    times: u32,
    place: &Place,
) -> Value {
    let times = times.to_string();
    let args = [
        "signal",
        "--pod-uid",
        uid,
        "--verb",
        verb,
        "--signal",
        signal,
        "--times",
        &times,
    ];
    let mut pod = host_network_pod(name, &args, place);
    pod["spec"]["hostPID"] = true.into();
    pod
}

/// The namespace; privileged, because the rules' init container needs NET_ADMIN.
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

/// The listeners of every app: HTTP 8080, HTTPS 8443, gRPC 9090, TCP 5432. Path or service of a probe decides
/// the answer.
const LISTENERS: &str = r#"{"listeners":[
{"protocol":"http","bind":"any-v4","port":8080},
{"protocol":{"https":{"certificate":"self-signed","h2":true}},"bind":"any-v4","port":8443},
{"protocol":"grpc","bind":"any-v4","port":9090},
{"protocol":"tcp","bind":"any-v4","port":5432}]}"#;

/// The listener of the second app.
const EARLY: &str = r#"{"listeners":[{"protocol":"http","bind":"any-v4","port":8081}]}"#;

/// Makes an init container keep running, as a native sidecar does.
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
