//! The test's pods: their probes, and what the kubelet must conclude.

use serde_json::{Value, json};

use super::manifests::{Pod, Sidecar};

/// Kind of a failing probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its container is not ready.
    Readiness,
    /// Its container is restarted.
    Liveness,
    /// Its container is restarted, and never starts.
    Startup,
}

impl Kind {
    /// The first word of the kubelet's event.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
            Self::Startup => "Startup",
        }
    }
}

/// A pod whose app is unhealthy, and the event that the kubelet must send.
#[derive(Clone, Debug)]
pub struct Failing {
    /// The pod.
    pub pod: Pod,
    /// Which of its probes fails.
    pub kind: Kind,
    /// Part of the kubelet's event.
    pub says: &'static str,
}

/// Pods whose app is healthy: ready, and never restarted. Each is probed every second and must not fail
/// once.
pub fn healthy() -> Vec<Pod> {
    let both = |action: &Value| {
        let probe = strict(action);
        json!({"livenessProbe": probe, "readinessProbe": probe})
    };
    let mut pods = vec![
        Pod::new("http", both(&http("/healthy"))),
        Pod::new("https", both(&https("/healthy"))),
        http_on_the_kernel_path(),
        Pod::new("tcp", both(&tcp(5432))),
        Pod::new("grpc", both(&grpc("ok"))),
        Pod::new(
            "exec",
            both(&json!({"exec": {"command": ["/testbed", "help"]}})),
        ),
        Pod::new(
            "mixed",
            json!({
                "livenessProbe": strict(&tcp(8080)),
                "readinessProbe": strict(&http("/healthy")),
            }),
        ),
        Pod::new(
            "startup",
            json!({
                "startupProbe": strict(&http("/healthy")),
                "livenessProbe": strict(&grpc("ok")),
                "readinessProbe": strict(&https("/healthy")),
            }),
        ),
        Pod::new(
            "named-port",
            json!({
                "ports": [{"name": "web", "containerPort": 8080}],
                "readinessProbe": strict(&json!({"httpGet": {"path": "/healthy", "port": "web"}})),
            }),
        ),
    ];
    let mut regular = Pod::new("regular-sidecar", both(&http("/healthy")));
    regular.sidecar = Sidecar::Regular;
    pods.push(regular);
    pods.push(taken_over());
    pods.push(hooked());
    pods.push(body_breaks());
    pods
}

/// The healthy pods all of whose probes take the kernel path, if the node has it.
pub fn on_the_kernel_path() -> Vec<Pod> {
    let names = ["http-by-the-kernel", "https", "tcp", "grpc"];
    let mut pods = healthy();
    pods.retain(|pod| names.contains(&pod.name.as_str()));
    pods
}

/// A pod whose HTTP probes take the kernel path, though the handler serves such probes by default.
fn http_on_the_kernel_path() -> Pod {
    let probe = strict(&http("/healthy"));
    let mut pod = Pod::new(
        "http-by-the-kernel",
        json!({"livenessProbe": probe, "readinessProbe": probe}),
    );
    pod.annotations = json!({"probe-handler.io/http": "kernel"});
    pod
}

/// A pod that is restarted when its app no longer answers.
pub fn stalls() -> Pod {
    Pod::new("stalls", json!({"livenessProbe": strict(&grpc("ok"))}))
}

/// A pod whose liveness probe gets a status and a truncated body: the kubelet discards such a result, and does not restart
/// the container.
pub fn body_breaks() -> Pod {
    Pod::new(
        "body-breaks",
        json!({
            "livenessProbe": strict(&http("/cut-body")),
            "readinessProbe": strict(&http("/healthy")),
        }),
    )
}

/// A pod with lifecycle hooks. The kubelet calls postStart once, as soon as the container runs, when its own
/// app does not listen yet; so the hook targets an app that started before. preStop gets a 503, which is a
/// success like any other status.
pub fn hooked() -> Pod {
    let early = json!({"path": "/healthy", "port": 8081});
    let mut pod = Pod::new(
        "hooks",
        json!({
            "lifecycle": {"postStart": {"httpGet": early}, "preStop": http("/failing")},
            "readinessProbe": strict(&http("/healthy")),
        }),
    );
    // The next container starts only when this one has started, so it listens by then.
    pod.early = Some(json!({"startupProbe": strict_but_patient(&json!({"httpGet": early}))}));
    pod
}

/// Pods whose app is unhealthy.
pub fn failing() -> Vec<Failing> {
    let code = "HTTP probe failed with statuscode: 503";
    let readiness = |name: &str, action: &Value, says| Failing {
        pod: Pod::new(name, json!({"readinessProbe": strict(action)})),
        kind: Kind::Readiness,
        says,
    };
    let liveness = |name: &str, action: &Value, says| Failing {
        pod: Pod::new(name, json!({"livenessProbe": strict(action)})),
        kind: Kind::Liveness,
        says,
    };
    let not_serving = "service unhealthy (responded with \"NOT_SERVING\")";
    vec![
        readiness("http-503", &http("/failing"), code),
        readiness("https-503", &https("/failing"), code),
        readiness(
            "http-closed",
            &json!({"httpGet": {"port": 81}}),
            "connection refused",
        ),
        // The daemon answers before the kubelet gives up.
        readiness("http-hangs", &http("/hang"), "statuscode: 504"),
        readiness("tcp-closed", &tcp(5433), "connection refused"),
        readiness("grpc-down", &grpc("down"), not_serving),
        liveness("live-http-503", &http("/failing"), code),
        liveness("live-https-503", &https("/failing"), code),
        liveness("live-tcp-closed", &tcp(5433), "connection refused"),
        liveness("live-grpc-down", &grpc("down"), not_serving),
        Failing {
            pod: Pod::new(
                "never-starts",
                json!({
                    "startupProbe": strict(&http("/failing")),
                    "readinessProbe": strict(&http("/healthy")),
                }),
            ),
            kind: Kind::Startup,
            says: code,
        },
    ]
}

/// The pods that exist before the daemon, with readiness probes only: their result without the daemon,
/// and the correct one.
pub fn before() -> Vec<(Pod, bool, bool)> {
    let readiness =
        |name: &str, action: &Value| Pod::new(name, json!({"readinessProbe": strict(action)}));
    let mut taken_over = taken_over();
    taken_over.name = "before-taken-over".to_owned();
    vec![
        // (pod, ready without the daemon, ready with it)
        (readiness("before-http", &http("/healthy")), false, true),
        (readiness("before-https", &https("/healthy")), false, true),
        (readiness("before-grpc", &grpc("ok")), false, true),
        (
            readiness("before-http-503", &http("/failing")),
            false,
            false,
        ),
        // The sidecar accepts every port.
        (readiness("before-tcp-closed", &tcp(5433)), true, false),
        // pilot-agent in the pod answers these, with and without the daemon.
        (taken_over, true, true),
    ]
}

/// A pod whose probes Istio's injector has rewritten: they go to the status port, and the sidecar has the
/// originals.
fn taken_over() -> Pod {
    let probe = |kind: &str| {
        let path = format!("/app-health/app/{kind}");
        strict(&json!({"httpGet": {"path": path, "port": 15020}}))
    };
    let mut pod = Pod::new(
        "taken-over",
        json!({
            "livenessProbe": probe("livez"),
            "readinessProbe": probe("readyz"),
        }),
    );
    pod.probers = Some(json!({
        "/app-health/app/livez": {"tcpSocket": {"port": 5432}, "timeoutSeconds": 1},
        "/app-health/app/readyz": {
            "httpGet": {"path": "/healthy", "port": 8080, "scheme": "HTTP"},
            "timeoutSeconds": 1,
        },
    }));
    pod
}

/// One of many pods, which is restarted at its first wrong verdict.
pub fn one_of_many(name: &str, sidecar: Sidecar) -> Pod {
    let mut pod = Pod::new(name, json!({"livenessProbe": strict(&http("/healthy"))}));
    pod.sidecar = sidecar;
    pod
}

/// A probe every second whose first failure counts: the strictest settings in a manifest.
fn strict(action: &Value) -> Value {
    let mut probe = action.clone();
    if let Some(fields) = probe.as_object_mut() {
        fields.insert("periodSeconds".to_owned(), json!(1));
        fields.insert("failureThreshold".to_owned(), json!(1));
    }
    probe
}

/// The same for an app that is still starting.
fn strict_but_patient(action: &Value) -> Value {
    let mut probe = strict(action);
    probe["failureThreshold"] = json!(60);
    probe
}

fn http(path: &str) -> Value {
    json!({"httpGet": {"path": path, "port": 8080}})
}

fn https(path: &str) -> Value {
    json!({"httpGet": {"path": path, "port": 8443, "scheme": "HTTPS"}})
}

fn tcp(port: u16) -> Value {
    json!({"tcpSocket": {"port": port}})
}

fn grpc(service: &str) -> Value {
    json!({"grpc": {"port": 9090, "service": service}})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::e2e::manifests::Place;

    fn all() -> Vec<Pod> {
        let mut pods = healthy();
        pods.extend(failing().into_iter().map(|failing| failing.pod));
        pods.extend(before().into_iter().map(|(pod, ..)| pod));
        pods.push(stalls());
        pods
    }

    #[test]
    fn pod_names_are_unique() {
        let names: BTreeSet<_> = all().into_iter().map(|pod| pod.name).collect();
        assert_eq!(names.len(), all().len());
    }

    #[test]
    fn every_pod_on_the_kernel_path_is_a_healthy_one() {
        assert_eq!(on_the_kernel_path().len(), 4);
    }

    #[test]
    fn one_failure_decides_and_nothing_delays_it() {
        let place = Place {
            node: "node".to_owned(),
            image: "image".to_owned(),
        };
        for pod in all() {
            let manifest = pod.manifest(&place);
            let app = manifest["spec"]["containers"]
                .as_array()
                .and_then(|all| all.iter().find(|container| container["name"] == "app"))
                .cloned()
                .unwrap_or_default();
            let probes: Vec<_> = ["livenessProbe", "readinessProbe", "startupProbe"]
                .into_iter()
                .map(|field| app[field].clone())
                .filter(|probe| !probe.is_null())
                .collect();
            assert!(!probes.is_empty(), "{} is not probed", pod.name);
            for probe in probes {
                assert_eq!(probe["failureThreshold"], 1, "{}", pod.name);
                assert_eq!(probe["periodSeconds"], 1, "{}", pod.name);
                assert!(probe["initialDelaySeconds"].is_null(), "{}", pod.name);
            }
        }
    }
}
