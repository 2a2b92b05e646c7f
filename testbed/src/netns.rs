//! Named network namespaces, connected to the node as by the CNI plugin `ptp`: one veth pair, a host route
//! to each pod address, the node's address as the pod's gateway.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::command::{ip_batch, run};
use crate::run::Run;

const NETNS_DIR: &str = "/var/run/netns";

/// A namespace of this run, removed on drop together with its veth pair.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    host: String,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

impl NetNs {
    /// Creates a namespace with lo up, `eth0` with an address of each family, and default routes
    /// through the node.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn new(run: &Run, name: &str) -> Result<Self> {
        Self::with(run, name, None, None)
    }

    /// Like [`NetNs::new`], with given addresses, and optionally with the namespace of an existing process.
    /// Replaces the node's existing routes to these addresses.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn with(
        run: &Run,
        name: &str,
        ips: Option<(Ipv4Addr, Ipv6Addr)>,
        process: Option<u32>,
    ) -> Result<Self> {
        let (index, ipv4, ipv6) = run.next_pod_ips();
        let (ipv4, ipv6) = ips.unwrap_or((ipv4, ipv6));
        let this = Self {
            name: run.name(name),
            // At most 15 characters, even with the longest process id.
            host: format!("v{}h{index}", run.id()),
            ipv4,
            ipv6,
        };
        this.make(run, process)?;
        Ok(this)
    }

    fn make(&self, run: &Run, process: Option<u32>) -> Result<()> {
        let Self {
            name: ns,
            host,
            ipv4,
            ipv6,
        } = self;
        let (node4, node6) = run.node_ips();
        let namespace = match process {
            None => format!("add {ns}"),
            Some(pid) => format!("attach {ns} {pid}"),
        };
        ip_batch(&format!(
            "netns {namespace}\n\
             link add {host} type veth peer name eth0 netns {ns}\n\
             address add {node4}/32 dev {host}\n\
             address add {node6}/128 dev {host} nodad\n\
             link set {host} up\n\
             route replace {ipv4}/32 dev {host} src {node4}\n\
             route replace {ipv6}/128 dev {host} src {node6}\n"
        ))?;
        ip_batch_in(
            ns,
            &format!(
                "link set lo up\n\
                 address add {ipv4}/32 dev eth0\n\
                 address add {ipv6}/128 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add default via {node4} dev eth0 onlink\n\
                 route add ::/0 via {node6} dev eth0 onlink\n"
            ),
        )
    }

    /// Creates a new namespace after its removal, at the same path and with the same addresses, as when a
    /// pod's sandbox is recreated.
    ///
    /// # Errors
    /// When `ip` fails, as it does while the old one exists.
    pub fn make_again(&self, run: &Run) -> Result<()> {
        self.make(run, None)
    }

    /// Routes the node's traffic for `ip` to this namespace only.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn route(&self, ip: IpAddr, run: &Run) -> Result<()> {
        let (node4, node6) = run.node_ips();
        let (prefix, source) = match ip {
            IpAddr::V4(_) => (32, IpAddr::from(node4)),
            IpAddr::V6(_) => (128, IpAddr::from(node6)),
        };
        ip_batch(&format!(
            "route replace {ip}/{prefix} dev {} src {source}\n",
            self.host
        ))
    }

    /// Whether the namespace still exists, with or without a name: its removal removes its end of the veth
    /// pair, and with it the node's end.
    pub fn lives(&self) -> bool {
        Path::new("/sys/class/net").join(&self.host).exists()
    }

    /// Its name in `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path of its file, for annotation `probe-handler.io/netns`.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// The pod's IPv4 address.
    pub const fn ipv4(&self) -> Ipv4Addr {
        self.ipv4
    }

    /// The pod's IPv6 address.
    pub const fn ipv6(&self) -> Ipv6Addr {
        self.ipv6
    }

    /// Both addresses, IPv4 first.
    pub const fn ips(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.ipv4), IpAddr::V6(self.ipv6)]
    }

    /// Adds `::6` to lo, as istio-init and istio-cni do if IPv6 is enabled.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn add_v6_passthrough_source(&self) -> Result<()> {
        self.ip("address add ::6/128 dev lo nodad\n")
    }

    /// Runs `ip` commands, one per line, inside the namespace.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        ip_batch_in(&self.name, lines)
    }

    /// Runs `work` on a separate thread inside the namespace. Its child processes and sockets belong to the
    /// namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or as `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        run_in(&self.path(), work)
    }

    /// Removes the namespace's name now, as a container runtime does when the pod ends. The namespace itself
    /// exists as long as a process or descriptor holds it.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn remove(&self) -> Result<()> {
        run("ip", &["netns", "delete", &self.name], "").map(drop)
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if self.path().exists()
            && let Err(error) = self.remove()
        {
            eprintln!("testbed: {error:#}");
        }
    }
}

/// Like [`NetNs::run`], inside the namespace at `path`.
///
/// # Errors
/// Those of [`NetNs::run`].
pub fn run_in<T: Send>(path: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        scope
            .spawn(move || {
                enter(path)?;
                work()
            })
            .join()
            .map_err(|_| anyhow!("the work inside {} panicked", path.display()))?
    })
}

/// Moves the calling thread into the namespace at `path`.
///
/// # Errors
/// When the file cannot be opened or is not a network namespace.
pub fn enter(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", path.display()))
}

/// Removes every namespace whose name begins with `prefix`; errors are printed.
pub(crate) fn remove_all(prefix: &str) {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return; // this machine has never had a named namespace
    };
    for entry in entries.flatten() {
        if let Some(name) = entry.file_name().to_str()
            && name.starts_with(prefix)
            && let Err(error) = run("ip", &["netns", "delete", name], "")
        {
            eprintln!("testbed: {error:#}");
        }
    }
}

fn ip_batch_in(ns: &str, lines: &str) -> Result<()> {
    run("ip", &["-netns", ns, "-batch", "-"], lines)
        .map(drop)
        .with_context(|| format!("in namespace {ns}:\n{lines}"))
}
