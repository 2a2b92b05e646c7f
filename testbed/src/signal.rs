//! `testbed signal`: run by a pod of a test cluster in the node's pid namespace. Sends a signal to a process of another pod, and
//! again to each process that the kubelet starts in its place.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// The kubelet waits at most 80 s before the fifth restart of a container.
const RESTART: Duration = Duration::from_secs(120);

/// Arguments of `testbed signal`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// UID of the pod
    #[arg(long)]
    pod_uid: String,
    /// First argument of the process, which distinguishes it from other processes of the pod
    #[arg(long)]
    verb: String,
    /// Name of the signal, for example SIGKILL
    #[arg(long)]
    signal: Signal,
    /// Number of processes to signal, one after the other
    #[arg(long, default_value_t = 1)]
    times: u32,
}

/// Sends the signals. Between two of them it waits until the process has ended and another one runs.
///
/// # Errors
/// When there is no such process in time, or the signal can't be sent.
pub fn main(args: &Args) -> Result<()> {
    let find = || find(&args.pod_uid, &args.verb);
    let mut before = None;
    for turn in 1..=args.times {
        let what = format!("process {turn} of pod {}", args.pod_uid);
        let pid = wait::until(&what, RESTART, || find().filter(|pid| before != Some(*pid)))?;
        kill(Pid::from_raw(pid), args.signal).with_context(|| format!("process {pid}"))?;
        println!("{} to {pid}", args.signal);
        before = Some(pid);
    }
    Ok(())
}

fn find(uid: &str, verb: &str) -> Option<i32> {
    let processes = fs::read_dir("/proc").ok()?;
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .find(|pid: &i32| {
            let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
            let (Ok(words), Ok(cgroups)) = (read("cmdline"), read("cgroup")) else {
                return false;
            };
            words.split('\0').nth(1) == Some(verb) && is_of_pod(&cgroups, uid)
        })
}

/// Whether a process with these cgroups is in the pod, by the names of the cgroup drivers cgroupfs and systemd.
fn is_of_pod(cgroups: &str, uid: &str) -> bool {
    [uid.to_owned(), uid.replace('-', "_")]
        .iter()
        .any(|uid| cgroups.contains(&format!("pod{uid}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_the_pod_is_found_with_both_cgroup_drivers() {
        let cgroupfs = "4:memory:/kubepods/burstable/poda-1/c\n0::/\n";
        let systemd = "0::/kubepods.slice/kubepods-poda_1.slice/cri-containerd-c.scope\n";
        assert!(is_of_pod(cgroupfs, "a-1"));
        assert!(is_of_pod(systemd, "a-1"));
        assert!(!is_of_pod(cgroupfs, "b-1"));
        assert!(!is_of_pod("0::/\n", "a-1"));
    }
}
