//! Maintains the kernel path of a pod: our rules in its namespace, and the trials that verify them.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use kernel::exemption::{Error, Exemption, Family, RulesWatch, Trial, trial};
use kernel::maps::ConnectingMap;
use kernel::netns::Netns;
use model::HttpBy;
use reconcile::path::KernelUse;

/// Number of pods in which rules are installed and tried at once while the handler serves them.
const AT_ONCE: usize = 4;

/// Trials that follow changes of a pod's rules come no faster.
const BETWEEN_TRIALS: Duration = Duration::from_millis(100);

/// Which path serves a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// The kernel path, where the protocol allows it.
    Kernel,
    /// The handler, and the kernel path while the handler does not answer: it worked before, but the last trial proved
    /// nothing, for the reason given.
    Fallback(String),
    /// The handler, for all probes, and why.
    Handler(String),
}

/// The kernel path, once the programs are loaded; closed without a value if it is disabled.
pub type KernelPathWatch = watch::Receiver<Option<Arc<KernelPath>>>;

/// Installs rules in pods and verifies them.
pub struct KernelPath {
    exemption: Arc<Exemption>,
    connecting: Arc<ConnectingMap>,
    http: HttpBy,
    /// [`Kubelet::is_shared_process`](kernel::kubelet::Kubelet::is_shared_process).
    shared_process: Arc<AtomicBool>,
    succeeds: bool,
    /// Taken by a pod that the handler serves meanwhile: when many pods start at once, their endpoints must come first.
    turns: Semaphore,
}

impl KernelPath {
    /// `http` is what serves HTTP in pods that have the kernel path; `succeeds` is whether an earlier daemon's is still there.
    pub fn new(
        exemption: Exemption,
        connecting: Arc<ConnectingMap>,
        http: HttpBy,
        shared_process: Arc<AtomicBool>,
        succeeds: bool,
    ) -> Self {
        Self {
            exemption: Arc::new(exemption),
            connecting,
            http,
            shared_process,
            succeeds,
            turns: Semaphore::new(AT_ONCE),
        }
    }

    /// How the pod uses the kernel path, in the form that the registry takes; None if the handler serves all probes.
    pub fn kernel(&self, path: &Path) -> Option<KernelUse> {
        match path {
            Path::Kernel => Some(KernelUse::First(self.http)),
            Path::Fallback(_) => Some(KernelUse::Fallback),
            Path::Handler(_) => None,
        }
    }

    /// Maintains our rules in `netns`, whose pod has `addresses`.
    pub fn keep<'a>(&'a self, netns: &'a Arc<Netns>, addresses: &'a [IpAddr]) -> Keeping<'a> {
        Keeping {
            kernel_path: self,
            netns,
            addresses,
            watch: RulesWatch::new(netns)
                .inspect_err(
                    |error| tracing::debug!(%error, "a pod's rules are looked at by time only"),
                )
                .ok(),
            reported: None,
            attempt: 0,
        }
    }

    /// One trial for each address family of the pod; all must pass.
    async fn try_all(&self, netns: &Netns, addresses: &[IpAddr]) -> Path {
        let mut path = Path::Handler("it has no address yet".to_owned());
        for (_, address) in by_family(addresses) {
            path = judge(trial(netns, &self.connecting, address).await);
            if path != Path::Kernel {
                break;
            }
        }
        path
    }
}

/// The rules in one pod, which are maintained.
pub struct Keeping<'a> {
    kernel_path: &'a KernelPath,
    netns: &'a Arc<Netns>,
    addresses: &'a [IpAddr],
    /// None: the trial is repeated by time alone.
    watch: Option<RulesWatch>,
    reported: Option<Path>,
    attempt: u32,
}

impl Keeping<'_> {
    /// Whether the pod is to be tried before it is served at all: an earlier daemon's kernel path serves it meanwhile, and
    /// its probes need not pass through our handler, which may be killed.
    pub fn comes_first(&self) -> bool {
        self.kernel_path.succeeds
    }

    /// Which path serves the pod, at first and whenever that has changed.
    pub async fn next(&mut self) -> Path {
        loop {
            self.until_next().await;
            let serves_already = self.reported == Some(Path::Kernel) || self.comes_first();
            let turn = match serves_already {
                true => None,
                false => self.kernel_path.turns.acquire().await.ok(),
            };
            let worked = matches!(self.reported, Some(Path::Kernel | Path::Fallback(_)));
            let path = match self.establish().await {
                Path::Fallback(why) if !worked => Path::Handler(why),
                path => path,
            };
            drop(turn);
            if self.reported.as_ref() != Some(&path) {
                self.attempt = 0;
                self.reported = Some(path.clone());
                return path;
            }
        }
    }
}

impl Keeping<'_> {
    /// Waits until the next trial is due: by time, and while the kernel path serves as soon as rules change.
    async fn until_next(&mut self) {
        let Some(reported) = &self.reported else {
            return;
        };
        let by_time = tokio::time::sleep(until_next(reported, self.attempt));
        self.attempt = self.attempt.saturating_add(1);
        match &self.watch {
            Some(watch) if *reported == Path::Kernel => {
                // Who may change the pod's rules may do so all the time.
                tokio::time::sleep(BETWEEN_TRIALS).await;
                tokio::select! {
                    () = by_time => {}
                    changed = watch.changed() => if let Err(error) = changed {
                        tracing::debug!(%error, "a pod's rules are looked at by time only");
                        self.watch = None;
                    }
                }
            }
            _ => by_time.await,
        }
    }

    /// Tries our rules; puts them before that at first, and where they turn out not to do.
    async fn establish(&self) -> Path {
        let (kernel_path, netns, addresses) = (self.kernel_path, self.netns, self.addresses);
        if kernel_path.shared_process.load(Ordering::Relaxed) {
            return Path::Handler(
                "the kubelet's process also contains other programs: the kernel path would exempt all its connections to \
                 probed ports"
                    .to_owned(),
            );
        }
        if self.reported.is_some() && kernel_path.try_all(netns, addresses).await == Path::Kernel {
            return Path::Kernel;
        }
        let exemption = Arc::clone(&kernel_path.exemption);
        match put(exemption, Arc::clone(netns), addresses).await {
            Ok(()) => {
                // Before the trial: what changes from now on is to be seen.
                if let Some(watch) = &self.watch {
                    watch.pass_over();
                }
                kernel_path.try_all(netns, addresses).await
            }
            Err(path) => path,
        }
    }
}

/// The first address of each family, if there is one.
fn by_family(addresses: &[IpAddr]) -> impl Iterator<Item = (Family, IpAddr)> + '_ {
    let first = |family| {
        let of = |address: &&IpAddr| address.is_ipv4() == (family == Family::V4);
        Some((family, *addresses.iter().find(of)?))
    };
    Family::ALL.into_iter().filter_map(first)
}

/// Installs our rules for the pod's address families, on a thread that may block in the kernel.
///
/// # Errors
/// The path that serves the pod instead, as from [`judge`].
async fn put(
    exemption: Arc<Exemption>,
    netns: Arc<Netns>,
    addresses: &[IpAddr],
) -> Result<(), Path> {
    let families: Vec<Family> = by_family(addresses).map(|(family, _)| family).collect();
    let put = tokio::task::spawn_blocking(move || {
        families
            .into_iter()
            .try_for_each(|family| exemption.put(&netns, family))
    });
    match put.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error @ Error::Missing { .. })) => Err(Path::Handler(error.told())),
        Ok(Err(error)) => Err(Path::Fallback(error.told())),
        Err(error) => Err(Path::Fallback(format!(
            "installing rules in the pod failed: {error}"
        ))),
    }
}

/// Which path serves a pod after a trial: [`Path::Fallback`] if it proved nothing, which for a pod in which no trial has passed
/// means the handler.
fn judge(trial: Trial) -> Path {
    Path::Handler(match trial {
        Trial::Passed => return Path::Kernel,
        Trial::Captured { port } => format!(
            "a trial connection from the node to its port {port}, on which nothing listens, was accepted: a rule of \
             the mesh captures it despite our rules"
        ),
        Trial::NotMet => {
            "a trial connection from the node did not reach our rules with its original address: \
             the node or network changes the address (SNAT)"
                .to_owned()
        }
        Trial::Unproven(why) => return Path::Fallback(why),
    })
}

/// Time until the next trial: short while a pod is starting, and longer later, but without end, because the rules of a
/// running pod may change.
fn until_next(path: &Path, attempt: u32) -> Duration {
    match path {
        Path::Kernel => Duration::from_secs(30),
        Path::Fallback(_) | Path::Handler(_) => Duration::from_millis(100 << attempt.min(8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_trial_that_passes_takes_the_kernel_path() {
        assert_eq!(judge(Trial::Passed), Path::Kernel);
        for trial in [Trial::Captured { port: 65_535 }, Trial::NotMet] {
            assert!(matches!(judge(trial), Path::Handler(_)));
        }
        let unproven = judge(Trial::Unproven("no answer".to_owned()));
        assert!(matches!(unproven, Path::Fallback(_)));
    }

    #[test]
    fn one_address_of_each_family_is_tried() {
        let ip = |text: &str| text.parse().expect("address");
        let addresses = [ip("fd00::1"), ip("10.0.0.1"), ip("10.0.0.2")];
        let tried: Vec<_> = by_family(&addresses).collect();
        assert_eq!(
            tried,
            [(Family::V4, ip("10.0.0.1")), (Family::V6, ip("fd00::1"))]
        );
        assert_eq!(by_family(&addresses[..1]).count(), 1);
    }

    #[test]
    fn failed_trials_are_repeated_soon_and_then_less_often() {
        let handler = Path::Handler(String::new());
        assert_eq!(until_next(&handler, 0), Duration::from_millis(100));
        assert_eq!(until_next(&handler, 99), Duration::from_millis(25_600));
    }
}
