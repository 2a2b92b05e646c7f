//! From a command line to the configuration, or to all mistakes in it.

use clap::{Args, Command, FromArgMatches};
use probe_handler_common::maps::ENDPOINTS_CAPACITY;

use super::*;

/// Parses `flags` like the verb `agent`, but without reading the environment of the tests.
fn parse(flags: &[&str]) -> Result<AgentConfig, ConfigErrors> {
    let matches = AgentArgs::augment_args(Command::new("agent"))
        .mut_args(|arg| arg.env(None::<&'static str>))
        .try_get_matches_from(["agent"].iter().chain(flags))
        .expect("clap takes any text");
    AgentArgs::from_arg_matches(&matches)
        .expect("clap takes any text")
        .try_into()
}

/// The flags of the mistakes; all other flags are valid.
fn wrong(flags: &[&str]) -> Vec<&'static str> {
    let pods = ["--pods", "dir:/"];
    let flags: Vec<_> = pods.iter().chain(flags).copied().collect();
    match parse(&flags) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes.0.iter().map(|mistake| mistake.flag).collect(),
    }
}

#[test]
fn only_the_source_of_pods_is_required() {
    assert_eq!(
        parse(&["--pods", "dir:/"]),
        Ok(AgentConfig {
            pods: PodSource::Dir("/".into()),
            events: false,
            node_condition: false,
            startup_taint: None,
            settings: None,
            given: Given::new(),
            kubelet: KubeletConfig {
                cgroup: None,
                names: ["kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent"]
                    .map(str::to_owned)
                    .to_vec(),
                allow_root_cgroup: false,
            },
            cgroup_root: None,
            mode: Mode::Serve,
            scope: Scope::Meshed,
            handler_port: 0,
            admin_addr: "[::]:15026".parse().ok(),
            admin_socket: DEFAULT_ADMIN_SOCKET.into(),
            drain_timeout: Duration::from_secs(20),
            heartbeat_timeout: Duration::from_secs(1),
            log_format: LogFormat::Auto,
            log: "info".to_owned(),
            kernel_path: true,
            kernel_path_tc: false,
            http: HttpBy::Handler,
            bpffs: "/sys/fs/bpf/probe-handler".into(),
            outlive: Duration::from_secs(24 * 3600),
            kernel_log: false,
            endpoints_capacity: ENDPOINTS_CAPACITY,
        })
    );
}

#[test]
fn every_flag_can_be_set() {
    let config = parse(&[
        "--pods=dir:/",
        "--kubelet-name=kubelet",
        "--kubelet-name=my-kubelet",
        "--allow-root-cgroup",
        "--scope=all",
        "--handler-port=65535",
        "--admin-addr=[::]:0",
        "--admin-socket=admin.sock",
        "--drain-timeout=0",
        "--log-format=json",
        "--log=info,serve=debug",
        "--kernel-log=true",
        "--endpoints-capacity=1",
    ])
    .expect("right");
    assert_eq!(config.kubelet.names, ["kubelet", "my-kubelet"]);
    assert!(config.kubelet.allow_root_cgroup && config.kernel_log);
    assert_eq!(config.scope, Scope::All);
    assert_eq!(config.handler_port, 65535);
    assert_eq!(config.admin_addr, "[::]:0".parse().ok());
    assert_eq!(config.drain_timeout, Duration::ZERO);
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(config.endpoints_capacity, 1);
    let config = parse(&["--pods=dir:/", "--admin-addr=none"]).expect("right");
    assert_eq!(config.admin_addr, None);
}

#[test]
fn all_mistakes_are_reported_together() {
    let mistakes = parse(&[
        "--handler-port=70000",
        "--scope=some",
        "--admin-addr=15026",
        "--drain-timeout=20s",
        "--kubelet-cgroup=/proc",
    ])
    .expect_err("wrong");
    assert_eq!(
        mistakes.to_string(),
        r#"probe-handler: 6 mistakes in the configuration:
  --pods (or PROBE_HANDLER_PODS): required, but not set; expected kube, the Kubernetes API (the default in a pod of a cluster), or dir:PATH, a directory of Pod manifests
  --kubelet-cgroup (or PROBE_HANDLER_KUBELET_CGROUP) = "/proc": not in a cgroup2 file system; expected the kubelet's directory below the cgroup2 mount (`mount -t cgroup2` shows it); or omit the flag
  --handler-port (or PROBE_HANDLER_HANDLER_PORT) = "70000": invalid port; expected 0 to 65535 (0 picks a free one)
  --admin-addr (or PROBE_HANDLER_ADMIN_ADDR) = "15026": invalid address; expected IP:PORT, such as [::]:15026 or 0.0.0.0:15026, or none
  --scope (or PROBE_HANDLER_SCOPE) = "some": invalid scope; expected meshed, labeled or all
  --drain-timeout (or PROBE_HANDLER_DRAIN_TIMEOUT) = "20s": not a whole number of seconds; expected 0 to 3600
"#
    );
}

#[test]
fn each_value_is_checked() {
    for (flag, value) in [
        ("pods", "dir:"),
        ("pods", "dir:/nonexistent"),
        ("pods", "dir:/proc/self/status"),
        ("pods", "/etc"),
        ("pods", "kubernetes"),
        ("kubelet-cgroup", "/nonexistent"),
        ("kubelet-cgroup", ""),
        ("cgroup-root", "/nonexistent"),
        ("cgroup-root", "/proc"),
        ("kubelet-name", ""),
        ("kubelet-name", "/usr/bin/kubelet"),
        ("kubelet-name", "kubelet, k3s"),
        ("allow-root-cgroup", "yes"),
        ("scope", "Meshed"),
        ("handler-port", "65536"),
        ("handler-port", "-1"),
        ("handler-port", ""),
        ("admin-addr", "localhost:15026"),
        ("admin-addr", "0.0.0.0:65536"),
        ("admin-socket", ""),
        ("admin-socket", "/run/"),
        ("admin-socket", "/proc"),
        ("drain-timeout", "3601"),
        ("drain-timeout", "-1"),
        ("drain-timeout", "1.5"),
        ("log-format", "yaml"),
        ("log", "verbose"),
        ("log", "info,handler"),
        ("log", "handler=loud"),
        ("log", ""),
        ("kernel-log", "maybe"),
        ("kernel-path", "maybe"),
        ("http", "both"),
        ("bpffs", "here"),
        ("outlive", "0s"),
        ("outlive", "721h"),
        ("outlive", "1d"),
        ("endpoints-capacity", "0"),
        ("endpoints-capacity", "1048577"),
    ] {
        let given = format!("--{flag}={value}");
        let flags = if flag == "pods" {
            parse(&[&given]).map_or_else(
                |mistakes| mistakes.0.iter().map(|mistake| mistake.flag).collect(),
                |_| Vec::new(),
            )
        } else {
            wrong(&[&given])
        };
        assert_eq!(flags, [flag], "{given}");
    }
}

#[test]
fn a_socket_path_has_at_most_107_bytes() {
    let path = |length: usize| format!("--admin-socket={:x<length$}", "/");
    assert_eq!(wrong(&[&path(107)]), [""; 0]);
    assert_eq!(wrong(&[&path(108)]), ["admin-socket"]);
}

#[test]
fn the_kubernetes_source_needs_the_nodes_name() {
    let config = parse(&["--pods=kube", "--node-name=ip-10-0-0-1.ec2.internal"]).expect("right");
    let node = "ip-10-0-0-1.ec2.internal".to_owned();
    let last_known = None;
    assert_eq!(config.pods, PodSource::Kubernetes { node, last_known });
    let mistakes = parse(&["--pods=kube"]).expect_err("no node");
    let text = mistakes.to_string();
    assert!(
        text.contains("--node-name (or NODE_NAME): required, but not set"),
        "{text}"
    );
    let long = "x".repeat(254);
    for bad in [
        "", "A", "a,b", "a=b", "a..b", "-a", "a-", "a b", "a/b", &long,
    ] {
        let node = format!("--node-name={bad}");
        let mistakes = parse(&["--pods=kube", &node]).expect_err(bad);
        assert_eq!(mistakes.0.len(), 1, "{bad}");
        assert_eq!(mistakes.0[0].flag, "node-name", "{bad}");
    }
    // Other sources do not use it.
    assert!(parse(&["--pods=dir:/", "--node-name="]).is_ok());
}

#[test]
fn last_known_is_the_absolute_path_of_a_file() {
    let kept_in = |path: &str| {
        let file = format!("--last-known={path}");
        parse(&["--pods=kube", "--node-name=node", &file])
    };
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pods.json");
    let config = kept_in(&file.display().to_string()).expect("right");
    assert!(
        matches!(config.pods, PodSource::Kubernetes { last_known: Some(path), .. } if path == file)
    );
    for bad in ["", "/", "pods.json", "/proc"] {
        let mistakes = kept_in(bad).expect_err(bad);
        assert_eq!(mistakes.0[0].flag, "last-known", "{bad}");
    }
}

#[test]
fn in_a_cluster_the_default_source_of_pods_is_the_kubernetes_api() {
    let host = "--kubernetes-service-host=10.96.0.1";
    let node = "--node-name=node";
    let config = parse(&[host, node]).expect("right");
    let kube = PodSource::Kubernetes {
        node: "node".to_owned(),
        last_known: None,
    };
    assert_eq!(config.pods, kube);
    let config = parse(&[host, node, "--pods=dir:/"]).expect("right");
    assert_eq!(config.pods, PodSource::Dir("/".into()));
    // The source has a default; the node's name is missing.
    let mistakes = parse(&[host]).expect_err("no node");
    assert_eq!(mistakes.0[0].flag, "node-name");
    let mistakes = parse(&["--kubernetes-service-host=", node]).expect_err("no source");
    assert_eq!(mistakes.0[0].flag, "pods");
}

#[test]
fn hostile_values_are_printed_escaped() {
    let mistakes = parse(&["--pods=\u{1b}[2J"]).expect_err("wrong");
    assert!(!mistakes.to_string().contains('\u{1b}'));
}

#[test]
fn the_configuration_is_readable_json() {
    let config = parse(&["--pods=dir:/"]).expect("right");
    let value: serde_json::Value = serde_json::from_str(&config.to_json()).expect("JSON");
    assert_eq!(value["pods"]["dir"], "/");
    assert_eq!(value["scope"], "meshed");
    assert_eq!(value["drain_timeout_seconds"], 20);
    assert_eq!(value["admin_addr"], "[::]:15026");
    let flags = ["--pods=kube", "--node-name=a", "--last-known=/run/x.json"];
    let config = parse(&flags).expect("right");
    let value: serde_json::Value = serde_json::from_str(&config.to_json()).expect("JSON");
    let expected = serde_json::json!({"kubernetes": {"node": "a", "last_known": "/run/x.json"}});
    assert_eq!(value["pods"], expected);
}

#[test]
fn the_log_has_the_configuration_without_json() {
    let config = parse(&["--pods=dir:/"]).expect("right").to_text();
    let settings: Vec<&str> = config.split(' ').collect();
    for expected in [
        "pods.dir=/",
        "scope=meshed",
        "drain_timeout_seconds=20",
        "kubelet.names=kubelet,kubelite,k3s,k3s-server,k3s-agent",
        "startup_taint=none",
        "kernel_path=true",
    ] {
        assert!(settings.contains(&expected), "{expected} not in {config}");
    }
}

#[test]
fn what_is_written_at_the_api_server_needs_it() {
    let flags = [
        "--events",
        "--node-condition",
        "--startup-taint=probe-handler.io/starting",
    ];
    assert_eq!(wrong(&flags), ["events", "node-condition", "startup-taint"]);
    let kube = [&["--pods=kube", "--node-name=n"][..], &flags[..]].concat();
    let config = parse(&kube).expect("right");
    assert!(config.events && config.node_condition);
    assert_eq!(
        config.startup_taint.as_deref(),
        Some("probe-handler.io/starting")
    );
    for key in ["starting", "a/b/c", "a/", "/b", "A/b", "a.b/c:NoSchedule"] {
        let taint = format!("--startup-taint={key}");
        let mistakes = parse(&["--pods=kube", "--node-name=n", &taint]).expect_err(key);
        assert_eq!(mistakes.0[0].flag, "startup-taint", "{key}");
    }
}
