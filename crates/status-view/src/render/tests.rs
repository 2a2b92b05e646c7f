//! The output of `status`.

use super::*;
use crate::fixtures::status;
use crate::status::State;

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
fn the_table_has_the_state_of_the_daemon_unless_it_is_filtered() {
    let (all, _) = table(&status(), true, None);
    assert!(all.starts_with(HEADER), "{all}");
    let (selected, _) = table(&status(), false, None);
    assert_eq!(all, format!("{HEADER}\n{selected}"));
    assert!(selected.starts_with("  PROBE "), "{selected}");
}

#[test]
fn a_long_line_of_the_state_is_broken() {
    let (text, _) = table(&status(), true, Some(80));
    assert!(
        text.contains("attached 1h1m ago; every\n            process in that cgroup"),
        "{text}"
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
}

#[test]
fn wide_adds_pods_and_probes_that_are_not_served() {
    let text = wide(&status(), true);
    assert!(text.starts_with(HEADER), "{text}");
    let rest = &text[text.find("\nNAMESPACE  POD     UID").expect("pods")..];
    assert_eq!(
        rest,
        "
NAMESPACE  POD     UID  MESH   ADDRESSES  NETNS              CANARY                       PATH
shop       cart-0  u1   istio  10.0.0.1   4026532001 (id 3)  passed 1m1s ago              handler
shop       web-0   u1   istio  10.0.0.1   4026532001 (id 3)  failed: 10.0.0.2:1 accepted  handler: SNAT

NAMESPACE    POD     CONTAINER  PROBE    NOT SERVED BECAUSE
kube-system  proxy   -          -        it is in the node's network namespace (hostNetwork)
shop         cart-0  app        prestop  exec
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
        not_served: Vec::new(),
        observed: Vec::new(),
        ..status()
    };
    let text = table(&starting, true, None).0;
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
