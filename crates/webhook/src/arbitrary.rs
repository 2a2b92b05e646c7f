//! Pods for property tests.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::annotations::REWRITE;
use super::reading::{Before, Reading};
use pods::probers::{ISTIO_PROBERS, ISTIO_PROBES_LOCALHOST, PROBES};

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => (1..=65535).prop_map(|port| json!(port)),
        2 => Just(json!("http")),
        1 => Just(json!("8081")),
        1 => Just(json!("missing")),
        1 => Just(json!("udp")),
        1 => Just(json!(15020)),
        1 => Just(json!(0)),
    ]
}

/// An object with a random selection of these fields.
fn object(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let fields: Vec<_> = fields
        .into_iter()
        .map(|(name, value)| proptest::option::of(value).prop_map(move |value| (name, value)))
        .collect();
    fields
        .prop_map(|fields| {
            let set = fields
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)));
            Value::Object(set.collect())
        })
        .boxed()
}

fn with_port(fields: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    (fields, port())
        .prop_map(|(mut action, port)| {
            action["port"] = port;
            action
        })
        .boxed()
}

fn text() -> BoxedStrategy<Value> {
    "[a-z:15020]{0,8}".prop_map(|text| json!(text)).boxed()
}

fn http() -> BoxedStrategy<Value> {
    let header = (
        prop_oneof![Just("Host"), Just("X-A")],
        "[a-z]{1,5}(:15020|:80)?",
    )
        .prop_map(|(name, value)| json!({"name": name, "value": value}));
    with_port(object(vec![
        ("path", prop_oneof![3 => Just(json!("/healthz?x=1")), 1 => text(), 1 => Just(json!("//x")), 1 => Just(json!("/app-health/web/livez"))].boxed()),
        ("scheme", prop_oneof![Just(json!("HTTP")), Just(json!("HTTPS")), Just(json!(""))].boxed()),
        ("host", prop_oneof![5 => Just(json!("")), 1 => Just(json!(null)), 1 => Just(json!("elsewhere"))].boxed()),
        ("httpHeaders", proptest::collection::vec(header, 0..3).prop_map(|headers| json!(headers)).boxed()),
    ]))
}

fn action() -> BoxedStrategy<Value> {
    let tcp = with_port(object(vec![("host", Just(json!("")).boxed())]));
    let grpc = (
        object(vec![
            ("service", prop_oneof![Just(json!(null)), text()].boxed()),
            (
                "mode",
                prop_oneof![3 => Just(json!(null)), 1 => Just(json!("TLS"))].boxed(),
            ),
        ]),
        1..=65535,
    )
        .prop_map(|(mut grpc, port)| {
            grpc["port"] = json!(port);
            grpc
        });
    prop_oneof![
        4 => http().prop_map(|http| json!({"httpGet": http})),
        3 => tcp.prop_map(|tcp| json!({"tcpSocket": tcp})),
        2 => grpc.prop_map(|grpc| json!({"grpc": grpc})),
        1 => Just(json!({"exec": {"command": ["true"]}})),
        1 => Just(json!({})),
    ]
    .boxed()
}

fn probe() -> BoxedStrategy<Value> {
    let timing = object(vec![
        (
            "timeoutSeconds",
            (0..5).prop_map(|seconds| json!(seconds)).boxed(),
        ),
        ("periodSeconds", Just(json!(3)).boxed()),
        ("terminationGracePeriodSeconds", Just(json!(9)).boxed()),
        ("tomorrow", Just(json!([1, {"a": null}])).boxed()),
    ]);
    (timing, action())
        .prop_map(|(mut probe, action)| {
            for (name, value) in action.as_object().unwrap() {
                probe[name] = value.clone();
            }
            probe
        })
        .boxed()
}

fn hook() -> BoxedStrategy<Value> {
    let tcp = port().prop_map(|port| json!({"tcpSocket": {"port": port}}));
    prop_oneof![
        3 => http().prop_map(|http| json!({"httpGet": http})),
        2 => tcp,
        1 => Just(json!({"sleep": {"seconds": 1}})),
    ]
    .boxed()
}

/// The environment, where Istio's injector puts the originals of the probes that it rewrote.
fn environment() -> BoxedStrategy<Value> {
    let probers = prop_oneof![
        2 => Just(json!(r#"{"/app-health/web/livez":{"tcpSocket":{"port":5432}}}"#)),
        1 => Just(json!("{}")),
        1 => text(),
    ];
    let variable = prop_oneof![
        6 => text().prop_map(|value| json!({"name": "A", "value": value})),
        2 => Just(json!({"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})),
        1 => probers.prop_map(|value| json!({"name": ISTIO_PROBERS, "value": value})),
        1 => prop_oneof![Just("true"), Just("no")]
            .prop_map(|value| json!({"name": ISTIO_PROBES_LOCALHOST, "value": value})),
    ];
    proptest::collection::vec(variable, 0..3)
        .prop_map(|variables| json!(variables))
        .boxed()
}

/// Other fields of a Pod's spec that decide whether it is rewritten; most pods have none of them.
fn surroundings() -> BoxedStrategy<Value> {
    let system = || prop_oneof![5 => Just("linux"), 1 => Just("windows")];
    let rarely =
        |value: BoxedStrategy<Value>| prop_oneof![3 => Just(json!(null)), 1 => value].boxed();
    object(vec![
        (
            "hostNetwork",
            rarely(any::<bool>().prop_map(|on| json!(on)).boxed()),
        ),
        (
            "os",
            rarely(system().prop_map(|name| json!({"name": name})).boxed()),
        ),
        (
            "nodeSelector",
            rarely(
                system()
                    .prop_map(|name| json!({"kubernetes.io/os": name}))
                    .boxed(),
            ),
        ),
    ])
}

fn container(name: &'static str) -> BoxedStrategy<Value> {
    object(vec![
        ("env", environment()),
        ("livenessProbe", probe()),
        ("readinessProbe", probe()),
        ("startupProbe", probe()),
        (
            "lifecycle",
            object(vec![
                ("postStart", hook()),
                ("preStop", hook()),
                ("stopSignal", Just(json!("SIGINT")).boxed()),
            ]),
        ),
        ("restartPolicy", Just(json!("Always")).boxed()),
        ("image", Just(json!("web:1")).boxed()),
    ])
    .prop_map(move |mut container| {
        container["name"] = json!(name);
        container["ports"] = json!([{"name": "http", "containerPort": 8080},
            {"name": "udp", "containerPort": 53, "protocol": "UDP"}]);
        container
    })
    .boxed()
}

/// A Pod with up to four containers and any mixture of probes and hooks, some of which can't be served.
pub fn pod() -> impl Strategy<Value = Value> {
    let annotations = object(vec![
        (REWRITE, prop_oneof![3 => Just(json!("true")), 1 => Just(json!("false")), 1 => Just(json!("nonsense"))].boxed()),
        ("a/b~c", text()),
        (PROBES, prop_oneof![20 => Just(json!(null)), 1 => text(), 1 => Just(json!(r#"{"/app-health/web/livez":{"grpc":{"port":5}}}"#))].boxed()),
    ]);
    (
        proptest::option::of(annotations),
        container("native"),
        container("web"),
        container("other"),
        container("istio-proxy"),
        surroundings(),
        0..8u8,
    )
        .prop_map(
            |(annotations, native, web, other, proxy, mut spec, which)| {
                let mut metadata = json!({"name": "web-0"});
                if which & 4 != 0 {
                    metadata["labels"] = json!({"app": "web"});
                }
                if let Some(Value::Object(mut annotations)) = annotations {
                    annotations.retain(|_, value| !value.is_null());
                    // Kubernetes treats an empty map like a missing one, and `revert` removes it.
                    if !annotations.is_empty() {
                        metadata["annotations"] = Value::Object(annotations);
                    }
                }
                let mut containers = vec![web, other];
                if which & 1 != 0 {
                    containers.insert(0, proxy);
                }
                if let Some(members) = spec.as_object_mut() {
                    members.retain(|_, value| !value.is_null());
                }
                spec["containers"] = json!(containers);
                spec["tomorrow"] = json!({"x": [null]});
                if which & 2 != 0 {
                    spec["initContainers"] = json!([native]);
                }
                json!({"metadata": metadata, "spec": spec, "apiVersion": "v1", "kind": "Pod"})
            },
        )
}

/// Whether our webhook has not rewritten the Pod before, so that `revert` has nothing else to restore.
pub fn is_original(pod: &Value) -> bool {
    Reading::new(pod).is_ok_and(|reading| !matches!(reading.before, Before::Ours { .. }))
}
