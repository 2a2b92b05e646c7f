//! The requirements on the node, verified by trying them.

mod kernel_path;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::observe::admin_socket::{self, Found};
use crate::observe::finding::{Finding, State};
use kernel::kubelet::{Finder, Kubelet, Search};
use kernel::netns::Netns;
use kernel::nsid::Nsids;
use kernel::programs::{AnswerIs, LoadOptions, Programs};
use kernel::{capabilities, cgroup, dial, locate};
use support::listen::{self, Share};

/// What `preflight` checks.
#[derive(Clone, Debug)]
pub struct PreflightOptions {
    /// How to find the kubelet.
    pub search: Search,
    /// Where pods' cgroups are; `None`: all mounted cgroup file systems.
    pub cgroup_root: Option<PathBuf>,
    /// The admin address that the agent would bind, if any.
    pub admin: Option<SocketAddr>,
    /// The handler's port; 0: any free port.
    pub handler_port: u16,
    /// The Unix socket that the agent would create.
    pub admin_socket: PathBuf,
    /// Where the agent would pin the kernel path; `None` if it would not use it.
    pub pins: Option<PathBuf>,
}

/// Checks every requirement. The programs are attached to the kubelet's cgroup briefly, without any
/// endpoint, so no connection changes.
pub fn run(options: &PreflightOptions) -> Vec<Finding> {
    let mut findings = vec![
        kernel_release(),
        capabilities(),
        given_up(),
        group(),
        cgroup2(),
    ];
    let kubelet = Finder::new(options.search.clone()).and_then(|mut finder| finder.find(None));
    findings.push(kubelet_finding(&kubelet));
    findings.extend(programs(kubelet.as_ref().ok(), options.pins.as_deref()));
    findings.push(pods_cgroups(options.cgroup_root.as_deref()));
    findings.push(netns_ids());
    findings.extend(ports(options));
    findings.push(admin_socket(&options.admin_socket));
    findings
}

fn pass(requirement: &str, found: impl Into<String>) -> Finding {
    Finding {
        requirement: requirement.to_owned(),
        state: State::Pass,
        found: found.into(),
        remedy: String::new(),
    }
}

fn not_met(
    state: State,
    requirement: &str,
    found: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding {
        requirement: requirement.to_owned(),
        state,
        found: found.into(),
        remedy: remedy.into(),
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // The first lines of a verifier log show the cause.
        let line: String = cause
            .to_string()
            .lines()
            .take(3)
            .collect::<Vec<_>>()
            .join(" ");
        text.push_str(": ");
        text.push_str(&line);
        source = cause.source();
    }
    text
}

/// "5.10.0-28-amd64" is (5, 10).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel_release() -> Finding {
    let requirement = "kernel 5.10 or newer";
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else {
        return not_met(
            State::Warn,
            requirement,
            "cannot read /proc/sys/kernel/osrelease",
            "mount /proc",
        );
    };
    let release = release.trim().to_owned();
    match version(&release) {
        Some(version) if version >= (5, 10) => pass(requirement, release),
        // Distributions backport features, so only loading the programs is conclusive.
        _ => not_met(
            State::Warn,
            requirement,
            release,
            "older kernels are not tested; check below whether the programs load",
        ),
    }
}

fn capabilities() -> Finding {
    let requirement = "capabilities";
    let missing = capabilities::missing();
    if missing.is_empty() {
        return pass(requirement, "all required");
    }
    let list = |show: fn(&capabilities::Need) -> String| {
        missing
            .iter()
            .map(|need| show(need))
            .collect::<Vec<_>>()
            .join("; ")
    };
    not_met(
        State::Fail,
        requirement,
        format!(
            "missing {}",
            list(|need| format!("{} ({})", need.capability, need.reason))
        ),
        format!(
            "run as root in a privileged container, or add {}",
            list(|need| need.capability.to_string())
        ),
    )
}

/// The privileges that the agent keeps after its start, determined on a separate thread.
fn given_up() -> Finding {
    let requirement = "privileges kept after the start";
    let tried = std::thread::spawn(|| {
        capabilities::give_up_others()?;
        Ok(capabilities::effective())
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
    match tried {
        Ok(kept) if kept.is_empty() => not_met(
            State::Fail,
            requirement,
            "none",
            "run as root in a privileged container, or with the capabilities above",
        ),
        Ok(kept) => pass(requirement, format!("{}; no_new_privs", kept.join(" "))),
        Err(error) => not_met(
            State::Fail,
            requirement,
            error.to_string(),
            "allow capset(2) and prctl(2); a seccomp profile may forbid them",
        ),
    }
}

fn group() -> Finding {
    match dial::unsuitable_group() {
        None => pass("group", "not a proxy's"),
        Some(found) => not_met(State::Fail, "group", found, "run with gid 0"),
    }
}

fn cgroup2() -> Finding {
    match cgroup::mount_point() {
        Ok(path) => pass("cgroup2 mounted", path.display().to_string()),
        Err(error) => not_met(State::Fail, "cgroup2 mounted", "no", error.to_string()),
    }
}

/// Where the agent looks for pods, and whether inotify works there.
fn pods_cgroups(root: Option<&Path>) -> Finding {
    let requirement = "pods' cgroups";
    let found = match locate::hierarchies(root) {
        Ok(found) => found,
        Err(error) => {
            let remedy = "mount the node's /sys/fs/cgroup, or set --cgroup-root";
            return not_met(State::Fail, requirement, error.to_string(), remedy);
        }
    };
    let paths: Vec<_> = found
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    match locate::can_watch() {
        Ok(()) => pass(requirement, paths.join(", ")),
        Err(error) => not_met(
            State::Warn,
            requirement,
            format!("{}; inotify: {error}", paths.join(", ")),
            "without inotify the agent polls and finds pods later; raise fs.inotify.max_user_instances, or find out which \
             program of the same user has all instances",
        ),
    }
}

fn kubelet_finding(kubelet: &Result<Kubelet, kernel::kubelet::Error>) -> Finding {
    let requirement = "kubelet found";
    match kubelet {
        Ok(kubelet) => {
            let process = match kubelet.pid {
                Some(pid) => format!("process {pid}"),
                None => "every process".to_owned(),
            };
            let shared = match (kubelet.filter, kubelet.shared_with) {
                (Some(_), others) if others > 0 => {
                    format!(", shared with {others} processes that are not served")
                }
                (None, others) if others > 0 && kubelet.pid.is_some() => {
                    format!(
                        ", with {others} processes that can't be distinguished from it in this pid namespace"
                    )
                }
                _ => String::new(),
            };
            pass(
                requirement,
                format!("{process} in {}{shared}", kubelet.cgroup.display()),
            )
        }
        Err(error) => not_met(State::Fail, requirement, "no", error.to_string()),
    }
}

fn programs(kubelet: Option<&Kubelet>, pins: Option<&Path>) -> Vec<Finding> {
    let (loading, refusing, attaching) = (
        "programs load",
        "closed ports refused as ECONNREFUSED",
        "programs attach",
    );
    let mut programs = match Programs::load(&LoadOptions::default()) {
        Ok((programs, _maps)) => programs,
        Err(error) => {
            return vec![not_met(
                State::Fail,
                loading,
                chain(&error),
                error.remedy().unwrap_or_default(),
            )];
        }
    };
    let mut findings = vec![pass(loading, format!("{} programs", programs.ids().len()))];
    findings.push(if programs.refuses_with_econnrefused() {
        pass(refusing, "bpf_set_retval is available")
    } else {
        not_met(
            State::Warn,
            refusing,
            "no bpf_set_retval for connect programs: a closed port is refused with EPERM",
            "probes of closed ports still fail; Linux 6.1 and later have bpf_set_retval",
        )
    });
    findings.push(match kubelet {
        None => not_met(
            State::Fail,
            attaching,
            "no kubelet to attach to",
            "see \"kubelet found\"",
        ),
        Some(kubelet) => match programs.attach(&kubelet.cgroup, AnswerIs::Attached) {
            Ok(()) => pass(attaching, kubelet.cgroup.display().to_string()),
            Err(error) => {
                let remedy = error.remedy().unwrap_or_default();
                not_met(State::Fail, attaching, chain(&error), remedy)
            }
        },
    });
    if let Some(pins) = pins {
        findings.push(kernel_path::answers(programs.answer_trouble()));
        findings.push(kernel_path::rules(programs.exemption()));
        findings.push(kernel_path::pins(pins));
    }
    findings
}

fn netns_ids() -> Finding {
    let requirement = "network namespace ids";
    let id = Netns::current().and_then(|own| Nsids::new()?.assign(&own));
    match id {
        Ok(id) => pass(
            requirement,
            format!("this process's network namespace has id {id}"),
        ),
        Err(error) => not_met(
            State::Fail,
            requirement,
            error.to_string(),
            "add CAP_NET_ADMIN, and use a kernel with CONFIG_NET_NS",
        ),
    }
}

fn ports(options: &PreflightOptions) -> Vec<Finding> {
    let try_bind = |requirement: &str, state: State, address: SocketAddr, share, remedy: &str| {
        match listen::tcp(address, share, 1) {
            Ok(_) => pass(requirement, address.to_string()),
            Err(error) => not_met(state, requirement, format!("{address}: {error}"), remedy),
        }
    };
    let handler = options.handler_port;
    let mut findings = vec![
        try_bind(
            "handler port (IPv4)",
            State::Fail,
            SocketAddr::from(([127, 0, 0, 1], handler)),
            Share::Alone,
            "choose another --handler-port, or 0 for any free one",
        ),
        try_bind(
            "handler port (IPv6)",
            State::Warn,
            SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], handler)),
            Share::Alone,
            "without IPv6 on loopback, probes of IPv6 pods are not served",
        ),
    ];
    findings.extend(options.admin.map(|admin| {
        try_bind(
            "admin port",
            State::Warn,
            admin,
            // Like the agent, which shares the port with a running agent.
            Share::Upgrade,
            "probes are served without it, and the agent retries every 2 s; set --admin-addr to an address and port of this \
             machine that no other program uses, or to none",
        )
    }));
    findings
}

fn admin_socket(path: &Path) -> Finding {
    let requirement = "admin socket";
    let shown = path.display();
    match admin_socket::look_ahead(path) {
        Ok(Found::Nothing) => pass(requirement, shown.to_string()),
        Ok(Found::Stale) => pass(requirement, format!("{shown}, replacing an unused socket")),
        Ok(Found::Answered) => not_met(
            State::Warn,
            requirement,
            format!("a daemon answers on {shown}"),
            "a daemon is already running; a second one needs a different --admin-socket",
        ),
        Err(error) => not_met(
            State::Warn,
            requirement,
            format!("{error:#}"),
            "probes are served without it, and the agent retries every 2 s; set --admin-socket to a writable path",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_parsed() {
        assert_eq!(version("5.10.0-28-amd64"), Some((5, 10)));
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("4.18.0-553.el8"), Some((4, 18)));
        assert_eq!(version("unknown"), None);
    }
}
