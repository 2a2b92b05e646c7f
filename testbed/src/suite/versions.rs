//! Checks each claim about Linux versions in docs/kernels.md in both directions: the feature exists since that
//! version, and not before. The daemon itself never checks the version.
//!
//! Distributions backport features. On such a kernel the claim fails, and docs/kernels.md must mention it.

use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};
use kernel::netns::Netns;
use kernel::programs::{LoadOptions, Programs};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::cases::Cases;
use super::env::{Env, HANDLER_PATH};
use super::sample_pod;
use crate::bpf::{self, LegacyProgram};
use crate::kubelet::Probe;

/// A version of Linux.
type Version = (u32, u32);

/// `bpf_set_retval` for programs of type cgroup_sock_addr.
const SET_RETVAL: Version = (6, 1);
/// The kernel reports the verifier's instruction count of a program.
const VERIFIED_INSNS: Version = (5, 16);
/// `SO_NETNS_COOKIE`.
const NETNS_COOKIE: Version = (5, 14);
/// Maps count towards the memory cgroup, no longer towards RLIMIT_MEMLOCK.
const NO_MEMLOCK: Version = (5, 11);

pub fn run(cases: &mut Cases) -> Result<()> {
    let running = running()?;
    if cases.wants("closed-port") {
        let env = Env::start(cases, &[])?;
        cases.case("closed-port", || closed_port(&env, running));
        cases.case("status-says-which-error", || status(&env, running));
    }
    if cases.wants("refusals-undone-by-another-program") {
        let env = Env::start(cases, &[HANDLER_PATH])?;
        cases.case("refusals-undone-by-another-program", || {
            undone(&env, running)
        });
    }
    cases.case("netns-cookie", || {
        let cookie = Netns::current()?.cookie();
        claim(running, NETNS_COOKIE, cookie.is_some())
    });
    cases.case("verifier-figures-kept", || {
        let (_programs, _maps) = Programs::load(&LoadOptions::default())?;
        claim(running, VERIFIED_INSNS, bpf::keeps_verified_instructions()?)
    });
    cases.case("maps-beyond-memlock", || {
        claim(running, NO_MEMLOCK, map_beyond_memlock()?)
    });
    Ok(())
}

/// The running version, for example 6.1 for 6.1.0-53-cloud-amd64.
fn running() -> Result<Version> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    parse(&release).with_context(|| format!("no version: {release}"))
}

fn parse(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Fails unless a feature exists exactly in the versions for which it is documented.
fn claim(running: Version, since: Version, there: bool) -> Result<()> {
    let (major, minor) = since;
    match (running >= since, there) {
        (true, false) => {
            anyhow::bail!("it is missing, though Linux {major}.{minor} is said to have it")
        }
        (false, true) => {
            anyhow::bail!("it is there, though said to begin with Linux {major}.{minor}")
        }
        _ => Ok(()),
    }
}

/// The error of the kubelet's `connect`.
fn closed_port(env: &Env, running: Version) -> Result<()> {
    let pod = env.pod(sample_pod::pod("closed"))?;
    for ip in pod.ns.ips() {
        let refused = env.fails(&Probe::tcp(ip, sample_pod::CLOSED))?;
        let of = |kind: ErrorKind| refused.message.to_lowercase().contains(&kind.to_string());
        let (newer, older) = (
            of(ErrorKind::ConnectionRefused),
            refused.message.contains("Operation not permitted"),
        );
        ensure!(
            newer != older,
            "neither ECONNREFUSED nor EPERM: {refused:?}"
        );
        claim(running, SET_RETVAL, newer)?;
    }
    Ok(())
}

/// A program on a parent cgroup undoes a refusal: the mesh answers, and that is counted.
fn undone(env: &Env, running: Version) -> Result<()> {
    let pod = env.pod(sample_pod::pod("undone"))?;
    let probe = Probe::tcp(pod.ns.ipv4(), sample_pod::CLOSED);
    let _refused = env.fails(&probe)?;
    let (refused, undone) = (
        || env.daemon.counter("refused"),
        || env.daemon.counter("refusal_undone"),
    );
    let (refused_before, none) = (refused()?, undone()?);
    ensure!(none == 0, "{none}");
    let above = env.cgroup.path().parent();
    let above = above.context("a cgroup without parent")?;
    let other = LegacyProgram::undoing_refusals(above);
    claim(running, SET_RETVAL, other.is_ok())?;
    let Ok(other) = other else {
        return Ok(());
    };
    let _by_the_mesh = env.passes(&probe)?;
    ensure!(refused()? > refused_before, "not refused at all");
    ensure!(undone()? > 0, "not counted");
    drop(other);
    let _refused = env.fails(&probe)?;
    Ok(())
}

fn status(env: &Env, running: Version) -> Result<()> {
    let shown = env.daemon.status_command(&[])?;
    let newer = shown.contains("refused with ECONNREFUSED");
    ensure!(newer != shown.contains("refused with EPERM"), "{shown}");
    claim(running, SET_RETVAL, newer)
}

/// Whether a process that may not lock memory can create a map.
fn map_beyond_memlock() -> Result<bool> {
    // A map of type array with one MiB: more than any remaining limit.
    const ARRAY: u32 = 2;
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    setrlimit(Resource::RLIMIT_MEMLOCK, 0, hard)?;
    let made = bpf::make_map(ARRAY, 4, 1024, 1024, 0);
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
    match made {
        Ok(_) => Ok(true),
        Err(error) => {
            let cause = error
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::raw_os_error);
            ensure!(cause == Some(libc::EPERM), "another error: {error:#}");
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_fails_on_either_side() {
        assert!(claim((5, 10), (6, 0), false).is_ok());
        assert!(claim((6, 0), (6, 0), true).is_ok());
        assert!(claim((5, 10), (6, 0), true).is_err());
        assert!(claim((6, 12), (6, 0), false).is_err());
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse("5.10.0-46-cloud-amd64\n"), Some((5, 10)));
        assert!(parse("6.12.94+deb13-cloud-amd64") > parse("6.1.0-53-cloud-amd64"));
        assert_eq!(parse("none"), None);
    }
}
