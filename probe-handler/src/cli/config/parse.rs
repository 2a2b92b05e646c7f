//! One function for each kind of value: parses text, or returns why it is invalid.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::config_errors::InvalidValue;
use super::{Mode, PodSource, Scope};
use crate::cli::logging::{self, LogFormat};
use kernel::locate::hierarchies;
use model::HttpBy;
use webhook::prefix::Prefix;

pub(super) const PODS_REMEDY: &str = "expected kube, the Kubernetes API (the default in a pod of a cluster), or dir:PATH, a directory of Pod manifests";
pub(super) const NODE_NAME_REMEDY: &str = "expected this node's name, as `kubectl get nodes` shows it; in a pod, set it from spec.nodeName by fieldRef";
/// Longest path of a Unix socket: sun_path has 108 bytes, one of which is the final zero byte (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// Longest DNS subdomain (RFC 1123).
const NODE_NAME_MAX: usize = 253;
pub(super) const CERTIFICATE_REMEDY: &str =
    "expected the directory of a certificate, or set --self-signed to create one";
const DRAIN_SECONDS: RangeInclusive<u64> = 0..=3600;
const HEARTBEAT_MILLIS: RangeInclusive<u64> = 500..=60_000;
const OUTLIVE_SECONDS: RangeInclusive<u64> = 1..=720 * 3600;
const CAPACITY: RangeInclusive<u32> = 1..=1_048_576;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(super) fn pods(text: &str) -> Result<PodSource, InvalidValue> {
    let Some(path) = text.strip_prefix("dir:") else {
        return Err(InvalidValue::new("invalid source of pods", PODS_REMEDY));
    };
    directory(path)?;
    Ok(PodSource::Dir(path.into()))
}

/// A DNS subdomain (kubernetes pkg/apis/core/validation, ValidateNodeName). It becomes part of a field
/// selector, where other text could select other pods.
pub(super) fn node_name(text: &str) -> Result<String, InvalidValue> {
    if is_subdomain(text) {
        Ok(text.to_owned())
    } else {
        Err(InvalidValue::new("invalid node name", NODE_NAME_REMEDY))
    }
}

/// A DNS subdomain, like the names of most objects. It becomes part of a path and of a certificate.
pub(super) fn object_name(text: &str) -> Result<String, InvalidValue> {
    if is_subdomain(text) {
        Ok(text.to_owned())
    } else {
        Err(InvalidValue::new(
            "invalid object name",
            "expected lower-case letters, digits, - and .",
        ))
    }
}

fn is_subdomain(text: &str) -> bool {
    let is_label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(inner)
    };
    text.len() <= NODE_NAME_MAX && text.split('.').all(is_label)
}

/// The kubelet's cgroup. It need not exist: systemd removes it while the kubelet is stopped.
pub(super) fn cgroup(text: &str) -> Result<PathBuf, InvalidValue> {
    const REMEDY: &str = "expected the kubelet's directory below the cgroup2 mount (`mount -t cgroup2` shows it); or omit the flag";
    let path = Path::new(text);
    let existing = path.ancestors().find(|path| path.exists());
    let Some(nearest) = existing.filter(|_| path.is_absolute()) else {
        return Err(InvalidValue::new("not an absolute path", REMEDY));
    };
    if nearest == path {
        directory(text).map_err(|wrong| InvalidValue::new(wrong.reason, REMEDY))?;
    }
    let filesystem = statfs(nearest).map_err(|error| {
        InvalidValue::new(format!("cannot read its file system: {error}"), REMEDY)
    })?;
    if filesystem.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(InvalidValue::new("not in a cgroup2 file system", REMEDY));
    }
    Ok(path.to_owned())
}

pub(super) fn cgroup_root(text: &str) -> Result<PathBuf, InvalidValue> {
    directory(text)?;
    let path = PathBuf::from(text);
    match hierarchies(Some(&path)) {
        Ok(_) => Ok(path),
        Err(error) => Err(InvalidValue::new(
            error.to_string(),
            "expected the node's /sys/fs/cgroup or a directory in it; or omit the flag",
        )),
    }
}

/// `1s`, `1500ms`, or a number of seconds.
pub(super) fn heartbeat_timeout(text: &str) -> Result<Duration, InvalidValue> {
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(millis), _) => (millis, 1),
        (None, Some(seconds)) => (seconds, 1000),
        (None, None) => (text, 1000),
    };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let millis = is_number
        .then(|| number.parse::<u64>().ok()?.checked_mul(unit))
        .flatten()
        .filter(|millis| HEARTBEAT_MILLIS.contains(millis));
    millis.map(Duration::from_millis).ok_or_else(|| {
        InvalidValue::new(
            "invalid duration",
            "expected 500ms to 60s, in seconds (2s) or milliseconds (1500ms)",
        )
    })
}

pub(super) fn existing_directory(text: &str) -> Result<PathBuf, InvalidValue> {
    directory(text)?;
    Ok(text.into())
}

/// The key of a label or taint: a name of at most 63 characters, after a DNS subdomain and a slash (kubernetes
/// staging/src/k8s.io/apimachinery/pkg/util/validation, `IsQualifiedName`). The prefix is required here: a taint without one
/// may belong to another program.
pub(super) fn label_key(text: &str) -> Result<String, InvalidValue> {
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let is_name = |name: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let (first, last) = (name.bytes().next(), name.bytes().last());
        name.len() <= 63 && is_end(first) && is_end(last) && name.bytes().all(inner)
    };
    match text.split_once('/') {
        Some((prefix, name)) if is_subdomain(prefix) && is_name(name) => Ok(text.to_owned()),
        _ => Err(InvalidValue::new(
            "invalid key of a taint",
            "expected a key such as probe-handler.io/starting, without value and effect",
        )),
    }
}

/// The mistake of a flag that needs the API server.
pub(super) fn without_kube() -> InvalidValue {
    InvalidValue::new(
        "needs the API server, and pods come from a directory",
        "set --pods kube, or remove this flag",
    )
}

/// The mistake of a flag that can't be combined with `other`.
pub(super) fn both<T>(other: &str) -> Result<T, InvalidValue> {
    Err(InvalidValue::new(
        format!("cannot be combined with {other}"),
        "set only one of the two",
    ))
}

fn directory(path: &str) -> Result<(), InvalidValue> {
    const REMEDY: &str = "expected the path of an existing directory";
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(InvalidValue::new("not a directory", REMEDY)),
        Err(error) => Err(InvalidValue::new(error.to_string(), REMEDY)),
    }
}

pub(super) fn names(text: &str) -> Result<Vec<String>, InvalidValue> {
    let names: Vec<String> = text.split(',').map(str::to_owned).collect();
    let bad = |name: &String| name.is_empty() || name.contains('/') || name.trim() != name;
    if names.iter().any(bad) {
        return Err(InvalidValue::new(
            "invalid process name",
            "expected the name without a path, such as kubelet",
        ));
    }
    Ok(names)
}

pub(super) fn flag(text: &str) -> Result<bool, InvalidValue> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(InvalidValue::new(
            "neither true nor false",
            "expected true or false",
        )),
    }
}

pub(super) fn port(text: &str) -> Result<u16, InvalidValue> {
    text.parse()
        .map_err(|_| InvalidValue::new("invalid port", "expected 0 to 65535 (0 picks a free one)"))
}

pub(super) fn address(text: &str) -> Result<SocketAddr, InvalidValue> {
    text.parse().map_err(|_| {
        InvalidValue::new(
            "invalid address",
            "expected IP:PORT, such as [::]:8443 or 0.0.0.0:8443",
        )
    })
}

pub(super) fn admin_addr(text: &str) -> Result<Option<SocketAddr>, InvalidValue> {
    if text == "none" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        InvalidValue::new(
            "invalid address",
            "expected IP:PORT, such as [::]:15026 or 0.0.0.0:15026, or none",
        )
    })
}

pub(super) fn socket_path(text: &str) -> Result<PathBuf, InvalidValue> {
    let path = PathBuf::from(text);
    if text.len() > SOCKET_PATH_MAX {
        let reason = format!("longer than {SOCKET_PATH_MAX} bytes, the maximum for a Unix socket");
        return Err(InvalidValue::new(reason, "expected a shorter path"));
    }
    if path.file_name().is_none() || text.ends_with('/') || path.is_dir() {
        return Err(InvalidValue::new(
            "not the path of a file",
            "expected a path such as /run/probe-handler/admin.sock",
        ));
    }
    Ok(path)
}

/// A file that the daemon creates.
pub(super) fn new_file(text: &str) -> Result<PathBuf, InvalidValue> {
    let path = PathBuf::from(text);
    if !path.is_absolute() || path.file_name().is_none() || path.is_dir() {
        return Err(InvalidValue::new(
            "not the absolute path of a file",
            "expected a path such as /run/probe-handler/pods.json",
        ));
    }
    Ok(path)
}

/// What serves plaintext HTTP.
pub(super) fn http(text: &str) -> Result<HttpBy, InvalidValue> {
    let invalid = || InvalidValue::new("neither handler nor kernel", "expected handler or kernel");
    HttpBy::named(text).ok_or_else(invalid)
}

/// `90s`, `30m`, `24h`, or a number of seconds.
pub(super) fn outlive(text: &str) -> Result<Duration, InvalidValue> {
    let units = [('s', 1), ('m', 60), ('h', 3600)];
    let (number, unit) = units
        .into_iter()
        .find_map(|(letter, unit)| Some((text.strip_suffix(letter)?, unit)))
        .unwrap_or((text, 1));
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = is_number
        .then(|| number.parse::<u64>().ok()?.checked_mul(unit))
        .flatten()
        .filter(|seconds| OUTLIVE_SECONDS.contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| {
        InvalidValue::new(
            "invalid time",
            "expected 1s to 720h, in hours (24h), minutes (30m) or seconds (90s)",
        )
    })
}

/// A directory, which need not exist yet.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, InvalidValue> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(InvalidValue::new(
            "not an absolute path",
            "expected a path such as /sys/fs/bpf/probe-handler",
        ))
    }
}

/// A port that a probe can be rewritten to.
pub(super) fn nonzero_port(text: &str) -> Result<NonZeroU16, InvalidValue> {
    text.parse()
        .map_err(|_| InvalidValue::new("invalid port", "expected 1 to 65535"))
}

/// The prefix of the paths of rewritten probes.
pub(super) fn prefix(text: &str) -> Result<Prefix, InvalidValue> {
    text.parse().map_err(|_| {
        InvalidValue::new(
            "invalid path prefix",
            "expected nothing, or segments of letters, digits, -, _ and ., each after a /",
        )
    })
}

pub(super) fn scope(text: &str) -> Result<Scope, InvalidValue> {
    text.parse()
        .map_err(|_| InvalidValue::new("invalid scope", "expected meshed, labeled or all"))
}

pub(super) fn mode(text: &str) -> Result<Mode, InvalidValue> {
    // `off` is not a mode of the daemon.
    Mode::named(text)
        .filter(|mode| *mode != Mode::Off)
        .ok_or_else(|| InvalidValue::new("invalid mode", "expected serve or observe"))
}

pub(super) fn seconds(text: &str) -> Result<Duration, InvalidValue> {
    number(text, DRAIN_SECONDS, "not a whole number of seconds").map(Duration::from_secs)
}

pub(super) fn capacity(text: &str) -> Result<u32, InvalidValue> {
    number(text, CAPACITY, "not a whole number")
}

fn number<T>(text: &str, range: RangeInclusive<T>, reason: &str) -> Result<T, InvalidValue>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let reason = if is_number { "out of range" } else { reason };
    text.parse()
        .ok()
        .filter(|value| range.contains(value))
        .ok_or_else(|| {
            InvalidValue::new(
                reason,
                format!("expected {} to {}", range.start(), range.end()),
            )
        })
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, InvalidValue> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(InvalidValue::new(
            "invalid log format",
            "expected auto, text or json",
        )),
    }
}

/// The library would parse a word that is not a level as a module, and disable all others.
pub(super) fn log_filter(text: &str) -> Result<String, InvalidValue> {
    const REMEDY: &str = "expected error, warn, info, debug, trace or off, then MODULE=LEVEL pairs, separated by commas";
    let is_pair = |directive: &str| directive.contains(['=', '[', ']', '{', '}']);
    let is_level = |directive: &str| {
        let lower = directive.trim().to_lowercase();
        LEVELS.contains(&lower.as_str())
    };
    if let Some(bare) = text
        .split(',')
        .find(|directive| !is_pair(directive) && !is_level(directive))
    {
        return Err(InvalidValue::new(
            format!("{bare:?} is not a level"),
            REMEDY,
        ));
    }
    match logging::parse_filter(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(InvalidValue::new(error.to_string(), REMEDY)),
    }
}
