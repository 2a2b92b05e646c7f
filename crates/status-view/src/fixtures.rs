//! A daemon's state for tests.

use std::collections::BTreeMap;

use crate::status::{
    CanaryState, CanaryStatus, HookStatus, KubeletStatus, LastVerdict, NetnsStatus, OtherPod,
    PathStatus, PodStatus, ProbeStatus, Refusal, SkippedProbe, SourceStatus, State, Status,
};

/// A probe without result.
pub fn probe(kind: &str, protocol: &str, port: u16) -> ProbeStatus {
    ProbeStatus {
        container: "app".to_owned(),
        probe: kind.to_owned(),
        mode: "transparent".to_owned(),
        protocol: protocol.to_owned(),
        port,
        target: None,
        service: None,
        timeout_ms: Some(1000),
        period_ms: Some(10_000),
        failure_threshold: Some(3),
        success_threshold: Some(1),
        failures_in_a_row: 0,
        shared_with: 0,
        is_shared: false,
        last: None,
        success: 0,
        failure: 0,
        unknown: 0,
    }
}

/// A result of a probe.
pub fn last(outcome: &str, reason: &str, status: Option<u16>) -> Option<LastVerdict> {
    Some(LastVerdict {
        outcome: outcome.to_owned(),
        status,
        reason: reason.to_owned(),
        detail: "the app said so".to_owned(),
        latency_us: Some(412),
        age_ms: 1200,
        at: "2026-11-30T03:12:40Z".to_owned(),
    })
}

/// A pod without probes.
pub fn pod(name: &str) -> PodStatus {
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
        by_kernel_alone: false,
        canary: CanaryStatus {
            state: CanaryState::Passed,
            detail: String::new(),
            checked_age_ms: Some(61_000),
            checked_at: None,
        },
        warnings: Vec::new(),
        path: PathStatus::default(),
        skipped: Vec::new(),
        probes: Vec::new(),
    }
}

/// A daemon with two pods in scope and one that is not.
pub fn status() -> Status {
    let cart = PodStatus {
        skipped: vec![SkippedProbe {
            container: "app".to_owned(),
            probe: "prestop".to_owned(),
            why: "exec".to_owned(),
        }],
        probes: vec![
            ProbeStatus {
                target: Some("/healthz?full=1".to_owned()),
                last: last("success", "healthy", Some(200)),
                success: 90,
                failure: 1,
                ..probe("liveness", "http", 8080)
            },
            probe("readiness", "tcp", 5432),
            ProbeStatus {
                service: Some("cart".to_owned()),
                last: last("unknown", "spliced", None),
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
            checked_at: None,
        },
        path: PathStatus::Handler(Some("SNAT".to_owned())),
        ..pod("web-0")
    };
    Status {
        version: "0.1.0".to_owned(),
        pid: 77,
        uptime_seconds: 3720,
        started_at: "2026-11-30T02:00:00Z".to_owned(),
        time: "2026-11-30T03:02:00Z".to_owned(),
        state: State::Serving,
        pending: Vec::new(),
        missing: Vec::new(),
        kubelet: KubeletStatus {
            names: vec!["kubelet".to_owned()],
            pid: Some(1234),
            cgroup: Some("/sys/fs/cgroup/kubelet.slice".to_owned()),
            attached: true,
            attached_age_ms: Some(3_719_000),
            attached_at: None,
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
        not_served: vec![OtherPod {
            namespace: "kube-system".to_owned(),
            name: "proxy".to_owned(),
            uid: "u2".to_owned(),
            why: "it is in the node's network namespace (hostNetwork)".to_owned(),
            skipped: Vec::new(),
        }],
        settings: None,
        observed: Vec::new(),
    }
}
