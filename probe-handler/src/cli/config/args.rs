//! Flags, and the environment variables that stand in for them. Everything is text still, so that
//! clap refuses nothing by itself and all mistakes can be reported together.

use clap::Args;
use probe_handler_common::maps::ENDPOINTS_CAPACITY;

/// Where the admin server's Unix socket is by default.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/probe-handler/admin.sock";

/// Where the agent's pins are by default.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/probe-handler";

/// The variable that stands in for `--node-name`: the name that everybody gives it.
pub(super) const NODE_NAME: &str = "NODE_NAME";

/// The variable that tells a container where the API server is. The kubelet sets it in every container,
/// whatever `enableServiceLinks` says (kubernetes pkg/kubelet/kubelet_pods.go, getServiceEnvVarMap), and a
/// ServiceAccount is of no use without it.
pub(super) const KUBERNETES_SERVICE_HOST: &str = "KUBERNETES_SERVICE_HOST";

const KUBELET_NAMES: &str = "kubelet,kubelite,k3s,k3s-server,k3s-agent";

/// Flags of `agent`. Text still: [`super::AgentConfig`] is what they mean.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Where pods come from: kube, the Kubernetes API (reached by kubeconfig or ServiceAccount; the
    /// default in a pod of a cluster), or dir:PATH, a directory of Pod manifests that is watched
    #[arg(long, value_name = "kube|dir:PATH", env = "PROBE_HANDLER_PODS")]
    pub(super) pods: Option<String>,

    /// Name of this node, needed with --pods kube: in a cluster from spec.nodeName by the downward API
    #[arg(long, value_name = "NAME", env = NODE_NAME)]
    pub(super) node_name: Option<String>,

    /// File in which the pods are kept as last known, for a daemon that is started anew while the API server
    /// is away; for --pods kube alone, and nowhere where not given
    #[arg(long, value_name = "PATH", env = "PROBE_HANDLER_LAST_KNOWN")]
    pub(super) last_known: Option<String>,

    /// Set by the kubelet in every container: we are in a cluster. No flag, but its variable is read as
    /// theirs are
    #[arg(long, hide = true, env = KUBERNETES_SERVICE_HOST)]
    pub(super) kubernetes_service_host: Option<String>,

    #[command(flatten)]
    pub(super) shared: SharedArgs,

    /// Whose probes to serve: pods in a mesh (meshed), those that ask for it by annotation
    /// (annotated), or all
    #[arg(
        long,
        value_name = "meshed|annotated|all",
        env = "PROBE_HANDLER_SCOPE",
        default_value = "meshed"
    )]
    pub(super) scope: String,

    /// How long checks in flight may take to finish after SIGTERM, in seconds (0 to 3600)
    #[arg(
        long,
        value_name = "SECONDS",
        env = "PROBE_HANDLER_DRAIN_TIMEOUT",
        allow_hyphen_values = true,
        default_value = "20"
    )]
    pub(super) drain_timeout: String,

    /// How old the handler's last sign of life may be before the eBPF programs leave all connections alone, as if the
    /// daemon did not run (500ms to 60s; it gives one every 100 ms)
    #[arg(
        long,
        value_name = "DURATION",
        env = "PROBE_HANDLER_HEARTBEAT_TIMEOUT",
        allow_hyphen_values = true,
        default_value = "1s"
    )]
    pub(super) heartbeat_timeout: String,

    /// Serve TCP, HTTPS and gRPC probes by the kernel path: the kubelet's own connection reaches the app, kept out of the
    /// mesh's redirect by rules of ours in the pod. Needs nftables, with nft_compat and xt_bpf; pods without are served by
    /// the handler
    #[arg(
        long,
        value_name = "true|false",
        env = "PROBE_HANDLER_KERNEL_PATH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide_default_value = true
    )]
    pub(super) kernel_path: String,

    /// With --kernel-path, what serves plaintext HTTP: the handler, which exempts declared paths and gives status codes
    /// only (and the kernel path while it does not answer), or the kernel path alone
    #[arg(
        long,
        value_name = "handler|kernel",
        env = "PROBE_HANDLER_HTTP",
        default_value = "handler"
    )]
    pub(super) http: String,

    /// With --kernel-path, directory in a BPF file system, by which the kernel path outlives this process; where there is
    /// no such file system it ends with it. Nothing is mounted
    #[arg(
        long,
        value_name = "PATH",
        env = "PROBE_HANDLER_BPFFS",
        default_value = DEFAULT_BPFFS
    )]
    pub(super) bpffs: String,

    /// With --kernel-path, how long it outlives a daemon that ends and has no successor (1s to 720h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "PROBE_HANDLER_OUTLIVE",
        allow_hyphen_values = true,
        default_value = "24h"
    )]
    pub(super) outlive: String,

    /// How log lines look; auto is text on a terminal, else JSON
    #[arg(
        long,
        value_name = "auto|text|json",
        env = "PROBE_HANDLER_LOG_FORMAT",
        default_value = "auto"
    )]
    pub(super) log_format: String,

    /// What to log: a level (error, warn, info, debug, trace, off), and MODULE=LEVEL pairs after
    /// commas
    #[arg(
        long,
        value_name = "FILTER",
        env = "PROBE_HANDLER_LOG",
        default_value = "info"
    )]
    pub(super) log: String,

    /// Log what the eBPF programs decide on each connection of the kubelet's to an endpoint (costs time)
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

    /// Most addresses and ports that can be served at once (1 to 1048576); each costs about 100
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
    /// The kubelet's cgroup2 directory; found from its process where not given
    #[arg(long, value_name = "PATH", env = "PROBE_HANDLER_KUBELET_CGROUP")]
    pub(super) kubelet_cgroup: Option<String>,

    /// Process name of the kubelet; may be repeated, or hold several separated by commas
    #[arg(
        long,
        value_name = "NAME",
        env = "PROBE_HANDLER_KUBELET_NAME",
        default_value = KUBELET_NAMES,
        value_delimiter = ','
    )]
    pub(super) kubelet_name: Vec<String>,

    /// Attach to the root cgroup if the kubelet lives there; only its own process is served
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

    /// Directory of a cgroup file system below which pods' cgroups are, or one below which the node's
    /// cgroup file systems are mounted; found from what is mounted where not given
    #[arg(long, value_name = "PATH", env = "PROBE_HANDLER_CGROUP_ROOT")]
    pub(super) cgroup_root: Option<String>,

    /// Port of the handler on loopback (0 to 65535); 0 takes any free one
    #[arg(
        long,
        value_name = "PORT",
        env = "PROBE_HANDLER_HANDLER_PORT",
        default_value = "0"
    )]
    pub(super) handler_port: String,

    /// Where to serve health and metrics, or none
    #[arg(
        long,
        value_name = "IP:PORT|none",
        env = "PROBE_HANDLER_ADMIN_ADDR",
        default_value = "[::]:15026"
    )]
    pub(super) admin_addr: String,

    /// Unix socket for `probe-handler status`; one for each daemon
    #[arg(
        long,
        value_name = "PATH",
        env = "PROBE_HANDLER_ADMIN_SOCKET",
        default_value = DEFAULT_ADMIN_SOCKET
    )]
    pub(super) admin_socket: String,
}
