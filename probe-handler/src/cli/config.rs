//! Configuration: flags and environment variables in, one validated value out. All mistakes are
//! reported together. Values arrive as text from clap, which reads the environment; nothing else here
//! reads it.

mod args;
mod config_errors;
mod parse;
pub mod settings;
mod webhook;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::logging::LogFormat;
pub use args::{AgentArgs, DEFAULT_ADMIN_SOCKET, DEFAULT_BPFFS, SharedArgs};
pub use config_errors::{ConfigError, ConfigErrors};
pub use webhook::{CertificateSource, SettingsSource, WebhookArgs, WebhookConfig};

use ::webhook::rewrite::Rewriting;
use model::HttpBy;
use pods::scope::{Mode, Scope};
use settings::{Given, Settings};

/// Source of pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PodSource {
    /// A directory of Pod manifests.
    Dir(PathBuf),
    /// The Kubernetes API: the pods of one node.
    Kubernetes {
        /// The node's name, as in `spec.nodeName`.
        node: String,
        /// File with the last known pods, for a start while the API is unreachable.
        last_known: Option<PathBuf>,
    },
}

/// How to find the kubelet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KubeletConfig {
    /// Its cgroup2 directory; `None`: the one of its process.
    pub cgroup: Option<PathBuf>,
    /// Process names of the kubelet.
    pub names: Vec<String>,
    /// Whether attaching to the root cgroup is allowed.
    pub allow_root_cgroup: bool,
}

/// Configuration of `preflight`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PreflightConfig {
    /// How to find the kubelet.
    pub kubelet: KubeletConfig,
    /// Where pods' cgroups are; `None`: all mounted cgroup file systems.
    pub cgroup_root: Option<PathBuf>,
    /// The handler's port; 0: any free port.
    pub handler_port: u16,
    /// The admin server's address; `None`: not over TCP.
    pub admin_addr: Option<SocketAddr>,
    /// The admin server's Unix socket.
    pub admin_socket: PathBuf,
    /// Whether the kernel path is used.
    pub kernel_path: bool,
    /// Where the kernel path is pinned.
    pub bpffs: PathBuf,
}

/// The daemon's configuration, validated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AgentConfig {
    /// Source of pods.
    pub pods: PodSource,
    /// Whether Events of pods are reported.
    pub events: bool,
    /// Whether the node's condition is maintained.
    pub node_condition: bool,
    /// The key of the taint to remove from the node.
    pub startup_taint: Option<String>,
    /// The file of settings that may change while the daemon runs.
    pub settings: Option<PathBuf>,
    /// The settings that flags or variables have set, which the file does not change.
    #[serde(skip)]
    pub given: Given,
    /// How to find the kubelet.
    pub kubelet: KubeletConfig,
    /// Where pods' cgroups are; `None`: all mounted cgroup file systems.
    pub cgroup_root: Option<PathBuf>,
    /// What is done with the probes of pods in scope.
    pub mode: Mode,
    /// Which pods are in scope.
    pub scope: Scope,
    /// The handler's port; 0: any free port.
    pub handler_port: u16,
    /// The admin server's address; `None`: not over TCP.
    pub admin_addr: Option<SocketAddr>,
    /// The admin server's Unix socket.
    pub admin_socket: PathBuf,
    /// Maximum time of a drain.
    #[serde(rename = "drain_timeout_seconds", serialize_with = "as_seconds")]
    pub drain_timeout: Duration,
    /// Maximum age of the handler's heartbeat; while it is older, the programs leave connections unchanged.
    #[serde(rename = "heartbeat_timeout_ms", serialize_with = "as_millis")]
    pub heartbeat_timeout: Duration,
    /// Whether the kernel path serves the endpoints that it can.
    pub kernel_path: bool,
    /// With `kernel_path`: whether a tc filter matches exempt connections although the kernel has xt_bpf.
    pub kernel_path_tc: bool,
    /// With `kernel_path`: what serves plaintext HTTP.
    pub http: HttpBy,
    /// Directory of the pins that outlive the daemon.
    pub bpffs: PathBuf,
    /// How long the kernel path outlives the daemon.
    #[serde(rename = "outlive_seconds", serialize_with = "as_seconds")]
    pub outlive: Duration,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// Filter of log lines.
    pub log: String,
    /// Whether the eBPF programs log every decision.
    pub kernel_log: bool,
    /// Capacity of the kernel's map of endpoints.
    pub endpoints_capacity: u32,
}

/// How `inject` rewrites probes.
///
/// # Errors
/// All mistakes in the values.
pub fn rewriting(port: &str, prefix: &str) -> Result<Rewriting, ConfigErrors> {
    let mut mistakes = ConfigErrors::default();
    let port = mistakes.check("rewrite-port", port, parse::nonzero_port);
    let prefix = mistakes.check("rewrite-prefix", prefix, parse::prefix);
    match port.zip(prefix) {
        Some((port, prefix)) => Ok(Rewriting {
            enabled: true,
            port,
            prefix,
        }),
        None => Err(mistakes),
    }
}

/// Where `cleanup` looks for pins.
///
/// # Errors
/// Why the value is invalid.
pub fn bpffs(path: &str) -> Result<PathBuf, ConfigErrors> {
    let mut mistakes = ConfigErrors::default();
    let path = mistakes.check("bpffs", path, parse::absolute_path);
    path.ok_or(mistakes)
}

// === impl PodSource ===

impl std::fmt::Display for PodSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
            Self::Kubernetes { node, .. } => write!(f, "kube, node {node}"),
        }
    }
}

// === impl PreflightConfig ===

impl PreflightConfig {
    /// Validates `args`; `None` if `mistakes` were added.
    fn check(args: &SharedArgs, mistakes: &mut ConfigErrors) -> Option<Self> {
        let cgroup = match &args.kubelet_cgroup {
            Some(path) => mistakes
                .check("kubelet-cgroup", path, parse::cgroup)
                .map(Some),
            None => Some(None),
        };
        let names = mistakes.check("kubelet-name", &args.kubelet_name.join(","), parse::names);
        let allow_root = mistakes.check("allow-root-cgroup", &args.allow_root_cgroup, parse::flag);
        let cgroup_root = match &args.cgroup_root {
            Some(path) => mistakes
                .check("cgroup-root", path, parse::cgroup_root)
                .map(Some),
            None => Some(None),
        };
        let handler_port = mistakes.check("handler-port", &args.handler_port, parse::port);
        let admin_addr = mistakes.check("admin-addr", &args.admin_addr, parse::admin_addr);
        let admin_socket = mistakes.check("admin-socket", &args.admin_socket, parse::socket_path);
        let kernel_path = mistakes.check("kernel-path", &args.kernel_path, parse::flag);
        let bpffs = mistakes.check("bpffs", &args.bpffs, parse::absolute_path);
        Some(Self {
            kubelet: KubeletConfig {
                cgroup: cgroup?,
                names: names?,
                allow_root_cgroup: allow_root?,
            },
            cgroup_root: cgroup_root?,
            handler_port: handler_port?,
            admin_addr: admin_addr?,
            admin_socket: admin_socket?,
            kernel_path: kernel_path?,
            bpffs: bpffs?,
        })
    }
}

impl TryFrom<SharedArgs> for PreflightConfig {
    type Error = ConfigErrors;

    fn try_from(args: SharedArgs) -> Result<Self, ConfigErrors> {
        let mut mistakes = ConfigErrors::default();
        Self::check(&args, &mut mistakes).ok_or(mistakes)
    }
}

// === impl AgentConfig ===

impl AgentConfig {
    /// The configuration as JSON, for `/debug/config`.
    pub fn to_json(&self) -> String {
        to_json(self)
    }

    /// The configuration as text, for the log.
    pub fn to_text(&self) -> String {
        to_text(self)
    }

    /// The settings of flags, variables and defaults.
    pub fn settings(&self) -> Settings {
        Settings {
            mode: self.mode,
            scope: self.scope,
            http: self.http,
            outlive: self.outlive,
            drain_timeout: self.drain_timeout,
            log: self.log.clone(),
            kernel_log: self.kernel_log,
        }
    }

    /// The same configuration with other settings.
    #[must_use]
    pub fn with(self, settings: Settings) -> Self {
        let Settings {
            mode,
            scope,
            http,
            outlive,
            drain_timeout,
            log,
            kernel_log,
        } = settings;
        Self {
            mode,
            scope,
            http,
            outlive,
            drain_timeout,
            log,
            kernel_log,
            ..self
        }
    }

    fn check(args: &AgentArgs, mistakes: &mut ConfigErrors) -> Option<Self> {
        let in_cluster = args
            .kubernetes_service_host
            .as_ref()
            .is_some_and(|host| !host.is_empty());
        let pods = match args.pods.as_deref().or(in_cluster.then_some("kube")) {
            Some("kube") => {
                let node = match &args.node_name {
                    Some(name) => mistakes.check("node-name", name, parse::node_name),
                    None => mistakes.missing("node-name", parse::NODE_NAME_REMEDY),
                };
                let last_known = match &args.last_known {
                    Some(path) => mistakes
                        .check("last-known", path, parse::new_file)
                        .map(Some),
                    None => Some(None),
                };
                node.zip(last_known)
                    .map(|(node, last_known)| PodSource::Kubernetes { node, last_known })
            }
            Some(pods) => mistakes.check("pods", pods, parse::pods),
            None => mistakes.missing("pods", parse::PODS_REMEDY),
        };
        let by_kube = matches!(pods, Some(PodSource::Kubernetes { .. }) | None);
        let only_by_kube = |text: &str| match parse::flag(text)? {
            true if !by_kube => Err(parse::without_kube()),
            wanted => Ok(wanted),
        };
        let events = mistakes.check("events", &args.events, only_by_kube);
        let node_condition = mistakes.check("node-condition", &args.node_condition, only_by_kube);
        let startup_taint = match &args.startup_taint {
            Some(key) => mistakes
                .check("startup-taint", key, |key| match by_kube {
                    true => parse::label_key(key),
                    false => Err(parse::without_kube()),
                })
                .map(Some),
            None => Some(None),
        };
        let settings = match &args.settings {
            Some(path) => mistakes.check("settings", path, settings::path).map(Some),
            None => Some(None),
        };
        let shared = PreflightConfig::check(&args.shared, mistakes);
        let mode = mistakes.check("mode", &args.mode, parse::mode);
        let scope = mistakes.check("scope", &args.scope, parse::scope);
        let drain_timeout = mistakes.check("drain-timeout", &args.drain_timeout, parse::seconds);
        let heartbeat_timeout = mistakes.check(
            "heartbeat-timeout",
            &args.heartbeat_timeout,
            parse::heartbeat_timeout,
        );
        let http = mistakes.check("http", &args.http, parse::http);
        let kernel_path_tc = mistakes.check("kernel-path-tc", &args.kernel_path_tc, parse::flag);
        let outlive = mistakes.check("outlive", &args.outlive, parse::outlive);
        let log_format = mistakes.check("log-format", &args.log_format, parse::log_format);
        let log = mistakes.check("log", &args.log, parse::log_filter);
        let kernel_log = mistakes.check("kernel-log", &args.kernel_log, parse::flag);
        let capacity = mistakes.check(
            "endpoints-capacity",
            &args.endpoints_capacity,
            parse::capacity,
        );
        let PreflightConfig {
            kubelet,
            cgroup_root,
            handler_port,
            admin_addr,
            admin_socket,
            kernel_path,
            bpffs,
        } = shared?;
        Some(Self {
            pods: pods?,
            events: events?,
            node_condition: node_condition?,
            startup_taint: startup_taint?,
            settings: settings?,
            given: args.given.clone(),
            kubelet,
            cgroup_root,
            mode: mode?,
            scope: scope?,
            handler_port,
            admin_addr,
            admin_socket,
            drain_timeout: drain_timeout?,
            heartbeat_timeout: heartbeat_timeout?,
            kernel_path,
            kernel_path_tc: kernel_path_tc?,
            http: http?,
            bpffs,
            outlive: outlive?,
            log_format: log_format?,
            log: log?,
            kernel_log: kernel_log?,
            endpoints_capacity: capacity?,
        })
    }
}

impl TryFrom<AgentArgs> for AgentConfig {
    type Error = ConfigErrors;

    fn try_from(args: AgentArgs) -> Result<Self, ConfigErrors> {
        let mut mistakes = ConfigErrors::default();
        Self::check(&args, &mut mistakes).ok_or(mistakes)
    }
}

fn to_json(config: &impl Serialize) -> String {
    // Plain data with text keys: only a path that is not UTF-8 could not be JSON, and these paths are
    // parsed from text.
    serde_json::to_string(config).unwrap_or_else(|error| format!(r#"{{"error":"{error}"}}"#))
}

/// Each setting as `name=value`; those of a group have its name before theirs.
fn to_text(config: &impl Serialize) -> String {
    let mut text = Vec::new();
    // As for JSON.
    let config = serde_json::to_value(config).unwrap_or_default();
    flatten("", &config, &mut text);
    text.join(" ")
}

fn flatten(name: &str, value: &Value, text: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                match name {
                    "" => flatten(field, value, text),
                    _ => flatten(&format!("{name}.{field}"), value, text),
                }
            }
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(plain).collect();
            text.push(format!("{name}={}", items.join(",")));
        }
        Value::Null => text.push(format!("{name}=none")),
        _ => text.push(format!("{name}={}", plain(value))),
    }
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn as_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

fn as_millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
