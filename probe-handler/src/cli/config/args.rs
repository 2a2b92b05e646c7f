//! Flags, and the environment variables that set them. All values are text here, so that clap rejects
//! none of them and all mistakes can be reported together.

use clap::Args;
use probe_handler_common::maps::ENDPOINTS_CAPACITY;

use super::settings::Given;

/// Where the admin server's Unix socket is by default.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/probe-handler/admin.sock";

/// The default directory of the agent's pins.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/probe-handler";

/// The variable that sets `--node-name`, by its conventional name.
pub(super) const NODE_NAME: &str = "NODE_NAME";

/// The variable with the API server's address. The kubelet sets it in every container, regardless of
/// `enableServiceLinks` (kubernetes pkg/kubelet/kubelet_pods.go, getServiceEnvVarMap), and a
/// ServiceAccount can't be used without it.
pub(super) const KUBERNETES_SERVICE_HOST: &str = "KUBERNETES_SERVICE_HOST";

const KUBELET_NAMES: &str = "kubelet,kubelite,k3s,k3s-server,k3s-agent";

/// Flags of `agent`, as text; [`super::AgentConfig`] has the parsed values.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Source of pods: kube, the Kubernetes API (by kubeconfig or ServiceAccount; the default in a pod
    /// of a cluster), or dir:PATH, a directory of Pod manifests, which is watched
    #[arg(long, value_name = "kube|dir:PATH", env = "PROBE_HANDLER_PODS")]
    pub(super) pods: Option<String>,

    /// Name of this node, required with --pods kube; in a cluster, set it from spec.nodeName by the downward API
    #[arg(long, value_name = "NAME", env = NODE_NAME)]
    pub(super) node_name: Option<String>,

    /// With --pods kube, file in which the daemon keeps the last known pods, so that a restarted daemon can serve
    /// them while the API server is unreachable; without this flag they are not kept
    #[arg(long, value_name = "PATH", env = "PROBE_HANDLER_LAST_KNOWN")]
    pub(super) last_known: Option<String>,

    /// Set by the kubelet in every container of a cluster. Not meant as a flag; declared so that clap reads
    /// the variable
    #[arg(long, hide = true, env = KUBERNETES_SERVICE_HOST)]
    pub(super) kubernetes_service_host: Option<String>,

    /// YAML file with settings that may change while the daemon runs, which reads it again when it changes: mode, scope,
    /// http, outlive, drain-timeout, log, kernel-log. A flag or variable takes precedence over the file; the file need not exist
    #[arg(long, value_name = "FILE", env = "PROBE_HANDLER_SETTINGS")]
    pub(super) settings: Option<String>,

    /// Which settings of that file flags or variables have set
    #[arg(skip)]
    pub(crate) given: Given,

    #[command(flatten)]
    pub(super) shared: SharedArgs,

    /// With --pods kube, report Events of pods: failing and recovered probes with the true reason, pods that are not served, and
    /// ports that the mesh hides. Needs the rights of component events of deploy/
    #[arg(
        long,
        value_name = "true|false",
        env = "PROBE_HANDLER_EVENTS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide_default_value = true
    )]
    pub(super) events: String,

    /// With --pods kube, maintain condition ProbeHandlerReady of this node. Needs the rights of component node-condition of deploy/
    #[arg(
        long,
        value_name = "true|false",
        env = "PROBE_HANDLER_NODE_CONDITION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide_default_value = true
    )]
    pub(super) node_condition: String,

    /// With --pods kube, remove the taint with this key from this node once the daemon serves. Needs the rights of component
    /// startup-taint of deploy/
    #[arg(long, value_name = "KEY", env = "PROBE_HANDLER_STARTUP_TAINT")]
    pub(super) startup_taint: Option<String>,

    /// What to do with the probes of the pods in scope: serve them, or observe them: change nothing, repeat each probe and
    /// report those whose result would change. Label probe-handler.io/mode (serve, observe or off) of a pod or its namespace
    /// takes precedence
    #[arg(
        long,
        value_name = "serve|observe",
        env = "PROBE_HANDLER_MODE",
        default_value = "serve"
    )]
    pub(super) mode: String,

    /// Pods in scope: those in a mesh (meshed), those with label probe-handler.io/mode on themselves or their namespace
    /// (labeled), or all
    #[arg(
        long,
        value_name = "meshed|labeled|all",
        env = "PROBE_HANDLER_SCOPE",
        default_value = "meshed"
    )]
    pub(super) scope: String,

    /// Seconds that in-flight checks may take to finish after SIGTERM (0 to 3600)
    #[arg(
        long,
        value_name = "SECONDS",
        env = "PROBE_HANDLER_DRAIN_TIMEOUT",
        allow_hyphen_values = true,
        default_value = "20"
    )]
    pub(super) drain_timeout: String,

    /// Maximum age of the handler's heartbeat (500ms to 60s; one is sent every 100 ms): while it is older, the eBPF
    /// programs leave all connections unchanged, as if the daemon did not run
    #[arg(
        long,
        value_name = "DURATION",
        env = "PROBE_HANDLER_HEARTBEAT_TIMEOUT",
        allow_hyphen_values = true,
        default_value = "1s"
    )]
    pub(super) heartbeat_timeout: String,

    /// With --kernel-path, what serves plaintext HTTP: the handler, which exempts only declared paths and returns only
    /// status codes (the kernel path while the handler does not answer), or only the kernel path
    #[arg(
        long,
        value_name = "handler|kernel",
        env = "PROBE_HANDLER_HTTP",
        default_value = "handler"
    )]
    pub(super) http: String,

    /// With --kernel-path, match exempt connections by a tc filter although the kernel has xt_bpf; for tests
    #[arg(
        long,
        value_name = "true|false",
        env = "PROBE_HANDLER_KERNEL_PATH_TC",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide = true
    )]
    pub(super) kernel_path_tc: String,

    /// With --kernel-path, how long it outlives a daemon that ends and has no successor (1s to 720h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "PROBE_HANDLER_OUTLIVE",
        allow_hyphen_values = true,
        default_value = "24h"
    )]
    pub(super) outlive: String,

    /// Format of log lines; auto is text on a terminal, else JSON
    #[arg(
        long,
        value_name = "auto|text|json",
        env = "PROBE_HANDLER_LOG_FORMAT",
        default_value = "auto"
    )]
    pub(super) log_format: String,

    /// What to log: a level (error, warn, info, debug, trace, off), then MODULE=LEVEL pairs, separated by
    /// commas
    #[arg(
        long,
        value_name = "FILTER",
        env = "PROBE_HANDLER_LOG",
        default_value = "info"
    )]
    pub(super) log: String,

    /// Log what the eBPF programs decide on each of the kubelet's connections to an endpoint (slows them down)
    #[arg(
        long,
        value_name = "true|false",
        env = "PROBE_HANDLER_KERNEL_LOG",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide_default_value = true
    )]
    pub(super) kernel_log: String,

    /// Maximum number of addresses and ports served at once (1 to 1048576); each costs about 100
    /// bytes of kernel memory
    #[arg(
        long,
        value_name = "N",
        env = "PROBE_HANDLER_ENDPOINTS_CAPACITY",
        default_value_t = ENDPOINTS_CAPACITY.to_string()
    )]
    pub(super) endpoints_capacity: String,
}

/// Flags of `agent` and `preflight`.
#[derive(Debug, Args)]
pub struct SharedArgs {
    /// The kubelet's cgroup2 directory [default: that of the kubelet's process]
    #[arg(long, value_name = "PATH", env = "PROBE_HANDLER_KUBELET_CGROUP")]
    pub(super) kubelet_cgroup: Option<String>,

    /// Process name of the kubelet; can be repeated, or contain several names separated by commas
    #[arg(
        long,
        value_name = "NAME",
        env = "PROBE_HANDLER_KUBELET_NAME",
        default_value = KUBELET_NAMES,
        value_delimiter = ','
    )]
    pub(super) kubelet_name: Vec<String>,

    /// Attach to the root cgroup if the kubelet is in it; only the kubelet's own process is served
    #[arg(
        long,
        value_name = "true|false",
        env = "PROBE_HANDLER_ALLOW_ROOT_CGROUP",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide_default_value = true
    )]
    pub(super) allow_root_cgroup: String,

    /// Where pods' cgroups are: a directory of a cgroup file system, or the directory below which the node's
    /// cgroup file systems are mounted [default: all mounted cgroup file systems]
    #[arg(long, value_name = "PATH", env = "PROBE_HANDLER_CGROUP_ROOT")]
    pub(super) cgroup_root: Option<String>,

    /// Port of the handler on 127.0.0.1, and the first of its 16 ports on ::1 (0 to 65535); 0 picks free ports
    #[arg(
        long,
        value_name = "PORT",
        env = "PROBE_HANDLER_HANDLER_PORT",
        default_value = "0"
    )]
    pub(super) handler_port: String,

    /// Address of health and metrics, or none
    #[arg(
        long,
        value_name = "IP:PORT|none",
        env = "PROBE_HANDLER_ADMIN_ADDR",
        default_value = "[::]:15026"
    )]
    pub(super) admin_addr: String,

    /// Unix socket for `probe-handler status`; each daemon needs a different one
    #[arg(
        long,
        value_name = "PATH",
        env = "PROBE_HANDLER_ADMIN_SOCKET",
        default_value = DEFAULT_ADMIN_SOCKET
    )]
    pub(super) admin_socket: String,

    /// Serve TCP, HTTPS and gRPC probes by the kernel path: the kubelet's own connection reaches the app, because nftables
    /// rules in the pod keep it out of the mesh's redirect. Needs nft_compat and xt_bpf in the kernel, or sch_ingress
    /// and cls_bpf; otherwise the handler serves the pods
    #[arg(
        long,
        value_name = "true|false",
        env = "PROBE_HANDLER_KERNEL_PATH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "true",
        hide_default_value = true
    )]
    pub(super) kernel_path: String,

    /// With --kernel-path, directory in a BPF file system, by which the kernel path outlives this process; without a BPF
    /// file system it ends with the process. Nothing is mounted
    #[arg(
        long,
        value_name = "PATH",
        env = "PROBE_HANDLER_BPFFS",
        default_value = DEFAULT_BPFFS
    )]
    pub(super) bpffs: String,
}
