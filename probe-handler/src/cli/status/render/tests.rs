//! The output of `status`.

use std::collections::BTreeMap;

use super::*;
use crate::observe::status::{
    CanaryState, HookStatus, PodStatus, Refusal, SkippedProbe, SourceStatus, State,
};

fn probe(kind: &str, protocol: &str, port: u16) -> ProbeStatus {
    ProbeStatus {
        container: "app".to_owned(),
        probe: kind.to_owned(),
        mode: "transparent".to_owned(),
        protocol: protocol.to_owned(),
        port,
        target: None,
        service: None,
        timeout_ms: Some(1000),
        last: None,
        success: 0,
        failure: 0,
        unknown: 0,
    }
}

fn last(outcome: &str, reason: &str, status: u16) -> Option<LastVerdict> {
    Some(LastVerdict {
        outcome: outcome.to_owned(),
        status,
        reason: reason.to_owned(),
        detail: "the app said so".to_owned(),
        latency_us: Some(412),
        age_ms: 1200,
    })
}

fn pod(name: &str) -> PodStatus {
    PodStatus {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: "u1".to_owned(),
        mesh: "istio".to_owned(),
        addresses: vec![[10, 0, 0, 1].into()],
        conflicts: Vec::new(),
        netns: NetnsStatus::Known {
            inode: 4026532001,
            nsid: Some(3),
        },
        obstacle: None,
        canary: CanaryStatus {
            state: CanaryState::Passed,
            detail: String::new(),
            checked_age_ms: Some(61_000),
        },
        warnings: Vec::new(),
        path: PathStatus::default(),
        skipped: Vec::new(),
        probes: Vec::new(),
    }
}

fn status() -> Status {
    let cart = PodStatus {
        skipped: vec![SkippedProbe {
            container: "app".to_owned(),
            probe: "startup".to_owned(),
            why: "exec".to_owned(),
        }],
        probes: vec![
            ProbeStatus {
                target: Some("/healthz?full=1".to_owned()),
                last: last("success", "healthy", 200),
                success: 90,
                failure: 1,
                ..probe("liveness", "http", 8080)
            },
            probe("readiness", "tcp", 5432),
            ProbeStatus {
                service: Some("cart".to_owned()),
                last: last("unknown", "spliced", 200),
                unknown: 7,
                ..probe("startup", "grpc", 9000)
            },
        ],
        ..pod("cart-0")
    };
    let captured = PodStatus {
        canary: CanaryStatus {
            state: CanaryState::Failed,
            detail: "10.0.0.2:1 accepted".to_owned(),
            checked_age_ms: None,
        },
        path: PathStatus::Handler(Some("SNAT".to_owned())),
        ..pod("web-0")
    };
    Status {
        version: "0.1.0".to_owned(),
        pid: 77,
        uptime_seconds: 3720,
        state: State::Serving,
        pending: Vec::new(),
        missing: Vec::new(),
        kubelet: KubeletStatus {
            names: vec!["kubelet".to_owned()],
            pid: Some(1234),
            cgroup: Some("/sys/fs/cgroup/kubelet.slice".to_owned()),
            attached: true,
            attached_age_ms: Some(3_719_000),
            process_filter: None,
            shared_with: 0,
        },
        hooks: vec![
            HookStatus {
                program: "connect4".to_owned(),
                attached: true,
                program_id: Some(41),
            },
            HookStatus {
                program: "connect6".to_owned(),
                attached: false,
                program_id: Some(42),
            },
        ],
        refusal: Refusal::Econnrefused,
        handler: vec![([127, 0, 0, 1], 40001).into()],
        counters: BTreeMap::from([("seen".to_owned(), 98), ("refused".to_owned(), 0)]),
        source: SourceStatus {
            kind: "dir:/pods".to_owned(),
            problems: vec!["bad.yaml, document 2: spec.containers: missing".to_owned()],
        },
        pods: vec![cart, captured],
    }
}

const HEADER: &str = "\
state:      serving; version 0.1.0, pid 77, up 1h2m
kubelet:    pid 1234 in /sys/fs/cgroup/kubelet.slice, attached 1h1m ago; every process in that cgroup is served
hooks:      connect4 (id 41), connect6 NOT ATTACHED; closed ports refused with ECONNREFUSED
handler:    127.0.0.1:40001
counters:   refused 0, seen 98
pods:       2 from dir:/pods
problem:    bad.yaml, document 2: spec.containers: missing
problem:    shop/web-0 is not served: canary failed: 10.0.0.2:1 accepted
";

#[test]
fn the_table_has_a_row_for_each_probe() {
    let expected = format!(
        "{HEADER}\
not served: 1 probes (-o wide shows why)

NAMESPACE  POD     CONTAINER  PROBE      MODE         CHECK                     LAST     REASON   STATUS  LATENCY  AGE   OK  FAIL
shop       cart-0  app        liveness   transparent  http:8080/healthz?full=1  success  healthy  200     412us    1.2s  90  1
shop       cart-0  app        readiness  transparent  tcp:5432                  -        -        -       -        -     0   0
shop       cart-0  app        startup    transparent  grpc:9000/cart            unknown  spliced  -       412us    1.2s  0   0
"
    );
    assert_eq!(table(&status()), expected);
}

#[test]
fn wide_adds_pods_and_probes_that_are_not_served() {
    let text = wide(&status());
    assert!(text.starts_with(HEADER), "{text}");
    let rest = &text[text.find("\nNAMESPACE  POD     UID").expect("pods")..];
    assert_eq!(
        rest,
        "
NAMESPACE  POD     UID  MESH   ADDRESSES  NETNS              CANARY                       PATH
shop       cart-0  u1   istio  10.0.0.1   4026532001 (id 3)  passed 1m1s ago              handler
shop       web-0   u1   istio  10.0.0.1   4026532001 (id 3)  failed: 10.0.0.2:1 accepted  handler: SNAT

NAMESPACE  POD     CONTAINER  PROBE    NOT SERVED BECAUSE
shop       cart-0  app        startup  exec
"
    );
    assert!(text.contains("  UNKNOWN  TIMEOUT  DETAIL\n"), "{text}");
    assert!(
        text.contains("  0     7        1.0s     the app said so\n"),
        "{text}"
    );
}

#[test]
fn a_starting_daemon_shows_what_it_waits_for() {
    let starting = Status {
        state: State::Starting,
        pending: vec!["kubelet".to_owned()],
        kubelet: KubeletStatus {
            names: vec!["kubelet".to_owned(), "k3s".to_owned()],
            ..KubeletStatus::default()
        },
        hooks: Vec::new(),
        handler: Vec::new(),
        pods: Vec::new(),
        ..status()
    };
    let text = table(&starting);
    for expected in [
        "state:      starting, not ready: waiting for kubelet; version",
        "kubelet:    NOT ATTACHED (looked for kubelet, k3s)\n",
        "hooks:      none loaded;",
        "handler:    -\n",
        "\nno probes to serve\n",
    ] {
        assert!(text.contains(expected), "{expected:?} not in\n{text}");
    }
}

#[test]
fn a_shared_cgroup_is_shown() {
    let shared = KubeletStatus {
        pid: Some(9),
        cgroup: Some("/sys/fs/cgroup".to_owned()),
        attached: true,
        process_filter: Some(9),
        shared_with: 12,
        ..KubeletStatus::default()
    };
    assert_eq!(
        kubelet(&shared),
        "pid 9 in /sys/fs/cgroup, attached; cgroup shared with 12 others: only pid 9 is served"
    );
}

#[test]
fn durations_are_short() {
    for (value, text) in [
        (0, "0ms"),
        (999, "999ms"),
        (1200, "1.2s"),
        (59_999, "59s"),
        (61_000, "1m1s"),
        (90_000_000, "1d1h"),
    ] {
        assert_eq!(millis(value), text);
    }
    for (value, text) in [(412, "412us"), (1500, "1.5ms"), (2_000_000, "2.0s")] {
        assert_eq!(micros(value), text);
    }
}
