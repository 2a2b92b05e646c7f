//! One function for each kind of value: from text to what it means, or what is wrong with it.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::config_errors::InvalidValue;
use super::{PodSource, Scope};
use crate::cli::logging::{self, LogFormat};
use kernel::locate::hierarchies;
use reconcile::path::HttpBy;
use webhook::prefix::Prefix;

pub(super) const PODS_REMEDY: &str = "give kube, the Kubernetes API (the default in a pod of a cluster), or dir:PATH, a directory of Pod manifests";
pub(super) const NODE_NAME_REMEDY: &str =
    "give this node's name, as `kubectl get nodes` shows it; in a pod, spec.nodeName by fieldRef";
/// Longest path of a Unix socket: sun_path has 108 bytes, of which one ends it (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// Longest DNS subdomain (RFC 1123).
const NODE_NAME_MAX: usize = 253;
pub(super) const CERTIFICATE_REMEDY: &str =
    "give the directory of a certificate, or --self-signed to have one made";
const DRAIN_SECONDS: RangeInclusive<u64> = 0..=3600;
const HEARTBEAT_MILLIS: RangeInclusive<u64> = 500..=60_000;
const OUTLIVE_SECONDS: RangeInclusive<u64> = 1..=720 * 3600;
const CAPACITY: RangeInclusive<u32> = 1..=1_048_576;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(super) fn pods(text: &str) -> Result<PodSource, InvalidValue> {
    let Some(path) = text.strip_prefix("dir:") else {
        return Err(InvalidValue::new("no source of pods", PODS_REMEDY));
    };
    directory(path)?;
    Ok(PodSource::Dir(path.into()))
}

/// A DNS subdomain (kubernetes pkg/apis/core/validation, ValidateNodeName): it becomes part of a field
/// selector, where anything else could select other pods.
pub(super) fn node_name(text: &str) -> Result<String, InvalidValue> {
    if is_subdomain(text) {
        Ok(text.to_owned())
    } else {
        Err(InvalidValue::new("no name of a node", NODE_NAME_REMEDY))
    }
}

/// A DNS subdomain, as the names of most objects are: it becomes part of a path and of a certificate.
pub(super) fn object_name(text: &str) -> Result<String, InvalidValue> {
    if is_subdomain(text) {
        Ok(text.to_owned())
    } else {
        Err(InvalidValue::new(
            "no name of an object",
            "give lower-case letters, digits, - and .",
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

/// The kubelet's cgroup. It need not be there: systemd removes it while the kubelet is stopped.
pub(super) fn cgroup(text: &str) -> Result<PathBuf, InvalidValue> {
    const REMEDY: &str = "give the kubelet's directory below the cgroup2 mount (`mount -t cgroup2` shows it), or leave it out";
    let path = Path::new(text);
    let existing = path.ancestors().find(|path| path.exists());
    let Some(nearest) = existing.filter(|_| path.is_absolute()) else {
        return Err(InvalidValue::new("no absolute path", REMEDY));
    };
    if nearest == path {
        directory(text).map_err(|wrong| InvalidValue::new(wrong.reason, REMEDY))?;
    }
    let filesystem = statfs(nearest)
        .map_err(|error| InvalidValue::new(format!("can't be looked at: {error}"), REMEDY))?;
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
            "give the node's /sys/fs/cgroup or a directory in it, or leave it out",
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
            "no time from 500 ms to 60 s",
            "give it in seconds (2s) or milliseconds (1500ms)",
        )
    })
}

pub(super) fn existing_directory(text: &str) -> Result<PathBuf, InvalidValue> {
    directory(text)?;
    Ok(text.into())
}

/// For a flag that excludes `other`, which is given too.
pub(super) fn both<T>(other: &str) -> Result<T, InvalidValue> {
    Err(InvalidValue::new(
        format!("given with {other}"),
        "give one of the two",
    ))
}

fn directory(path: &str) -> Result<(), InvalidValue> {
    const REMEDY: &str = "give the path of a directory that exists";
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
            "no process name",
            "give the bare name, for instance kubelet",
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
            "give true or false",
        )),
    }
}

pub(super) fn port(text: &str) -> Result<u16, InvalidValue> {
    text.parse()
        .map_err(|_| InvalidValue::new("no port", "give 0 (any free port) to 65535"))
}

pub(super) fn address(text: &str) -> Result<SocketAddr, InvalidValue> {
    text.parse()
        .map_err(|_| InvalidValue::new("no IP:PORT", "give for instance [::]:8443 or 0.0.0.0:8443"))
}

pub(super) fn admin_addr(text: &str) -> Result<Option<SocketAddr>, InvalidValue> {
    if text == "none" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        InvalidValue::new(
            "no IP:PORT",
            "give for instance [::]:15026 or 0.0.0.0:15026, or none",
        )
    })
}

pub(super) fn socket_path(text: &str) -> Result<PathBuf, InvalidValue> {
    let path = PathBuf::from(text);
    if text.len() > SOCKET_PATH_MAX {
        let reason = format!("longer than {SOCKET_PATH_MAX} bytes, the most for a Unix socket");
        return Err(InvalidValue::new(reason, "give a shorter path"));
    }
    if path.file_name().is_none() || text.ends_with('/') || path.is_dir() {
        return Err(InvalidValue::new(
            "no path of a file",
            "give for instance /run/probe-handler/admin.sock",
        ));
    }
    Ok(path)
}

/// A file that is ours to make.
pub(super) fn new_file(text: &str) -> Result<PathBuf, InvalidValue> {
    let path = PathBuf::from(text);
    if !path.is_absolute() || path.file_name().is_none() || path.is_dir() {
        return Err(InvalidValue::new(
            "no absolute path of a file",
            "give for instance /run/probe-handler/pods.json",
        ));
    }
    Ok(path)
}

/// What serves plaintext HTTP.
pub(super) fn http(text: &str) -> Result<HttpBy, InvalidValue> {
    match text {
        "handler" => Ok(HttpBy::Handler),
        "kernel" => Ok(HttpBy::Kernel),
        _ => Err(InvalidValue::new(
            "neither handler nor kernel",
            "give handler or kernel",
        )),
    }
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
            "no time from 1 s to 720 h",
            "give it in hours (24h), minutes (30m) or seconds (90s)",
        )
    })
}

/// A directory that may be made later.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, InvalidValue> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(InvalidValue::new(
            "no absolute path",
            "give for instance /sys/fs/bpf/probe-handler",
        ))
    }
}

/// A port that a probe can be rewritten to.
pub(super) fn nonzero_port(text: &str) -> Result<NonZeroU16, InvalidValue> {
    text.parse()
        .map_err(|_| InvalidValue::new("no port", "give 1 to 65535"))
}

/// What stands before the paths of rewritten probes.
pub(super) fn prefix(text: &str) -> Result<Prefix, InvalidValue> {
    text.parse().map_err(|_| {
        InvalidValue::new(
            "not a path prefix",
            "give nothing, or words of letters, digits, -, _ and . with a / before each",
        )
    })
}

pub(super) fn scope(text: &str) -> Result<Scope, InvalidValue> {
    text.parse()
        .map_err(|_| InvalidValue::new("no scope", "give meshed, annotated or all"))
}

pub(super) fn seconds(text: &str) -> Result<Duration, InvalidValue> {
    number(text, DRAIN_SECONDS, "no whole number of seconds").map(Duration::from_secs)
}

pub(super) fn capacity(text: &str) -> Result<u32, InvalidValue> {
    number(text, CAPACITY, "no such capacity")
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
            InvalidValue::new(reason, format!("give {} to {}", range.start(), range.end()))
        })
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, InvalidValue> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(InvalidValue::new(
            "no log format",
            "give auto, text or json",
        )),
    }
}

/// A bare word that is no level would be taken as a module, and silence all others.
pub(super) fn log_filter(text: &str) -> Result<String, InvalidValue> {
    const REMEDY: &str =
        "give error, warn, info, debug, trace or off, and MODULE=LEVEL pairs after commas";
    let is_pair = |directive: &str| directive.contains(['=', '[', ']', '{', '}']);
    let is_level = |directive: &str| {
        let lower = directive.trim().to_lowercase();
        LEVELS.contains(&lower.as_str())
    };
    if let Some(bare) = text
        .split(',')
        .find(|directive| !is_pair(directive) && !is_level(directive))
    {
        return Err(InvalidValue::new(format!("{bare:?} is no level"), REMEDY));
    }
    match logging::parse_filter(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(InvalidValue::new(error.to_string(), REMEDY)),
    }
}
