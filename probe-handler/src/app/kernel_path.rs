//! Maintains the kernel path of a pod: our rules in its namespace, and the trials that verify them.

mod node_lacks;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use super::pod_look::ByFamily;
use super::pod_work::{PodWork, Turn};
use kernel::exemption::{self, Error, Exemption, Family, Matcher, RulesWatch, Trial, trial};
use kernel::maps::ConnectingMap;
use kernel::netns::Netns;
use kernel::programs::Programs;
use model::{HttpBy, PodId};
use node_lacks::NodeLacks;
use reconcile::path::KernelUse;

/// Number of pods in which rules are installed and tried at once while the handler serves them.
const AT_ONCE: usize = 4;

/// Why a pod does not have our rules while another daemon maintains the rules in pods.
const MAINTAINED_BY_ANOTHER: &str =
    "another daemon maintains the rules of the kernel path on this node";

/// Minimum interval between trials that follow changes of a pod's rules.
const BETWEEN_TRIALS: Duration = Duration::from_millis(100);

/// Which path serves a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// The kernel path, if the protocol allows it.
    Kernel(Matcher),
    /// The handler, and the kernel path while the handler does not answer: our rules are in the pod, but the last trial was
    /// inconclusive, for this reason. If they do not work, the mesh answers, as it would without them.
    Fallback(String),
    /// The handler serves all probes, for this reason.
    Handler(String),
}

/// Which daemon maintains the rules in pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maintainer {
    /// This one.
    This,
    /// Another one: [`Programs::another_maintains_rules`].
    Another,
    /// This one is ending. What it has installed and recorded stays as it is.
    Nobody,
}

impl Maintainer {
    /// While this daemon does not end.
    pub fn of(programs: &Programs) -> Self {
        match programs.another_maintains_rules() {
            true => Self::Another,
            false => Self::This,
        }
    }
}

/// The kernel path, once the programs are loaded; closed without a value if it is disabled.
pub type KernelPathWatch = watch::Receiver<Option<Arc<KernelPath>>>;

/// Installs rules in pods and verifies them.
pub struct KernelPath {
    exemption: Arc<Exemption>,
    connecting: Arc<ConnectingMap>,
    http: Mutex<HttpBy>,
    /// [`Kubelet::is_shared_process`](kernel::kubelet::Kubelet::is_shared_process).
    shared_process: Arc<AtomicBool>,
    succeeds: AtomicBool,
    maintainer: watch::Receiver<Maintainer>,
    /// Limits how many pods that the handler already serves get rules at the same time: when many pods start at once,
    /// their endpoints must come first.
    turns: Semaphore,
    /// What the node's kernel lacks; until it is available, the handler serves the pods.
    lacks: Mutex<NodeLacks>,
    /// Notified when a missing feature becomes available.
    complete: Notify,
}

impl KernelPath {
    /// `http` is what serves HTTP in pods that have the kernel path; `succeeds` is whether an earlier daemon's kernel path
    /// still exists; `maintainer` is which daemon maintains the rules; `tc_only` is whether tc is used although the
    /// kernel has xt_bpf.
    pub fn new(
        exemption: Exemption,
        connecting: Arc<ConnectingMap>,
        http: HttpBy,
        shared_process: Arc<AtomicBool>,
        succeeds: bool,
        maintainer: watch::Receiver<Maintainer>,
        tc_only: bool,
    ) -> Self {
        Self {
            exemption: Arc::new(exemption),
            connecting,
            http: Mutex::new(http),
            shared_process,
            succeeds: AtomicBool::new(succeeds),
            maintainer,
            turns: Semaphore::new(AT_ONCE),
            lacks: Mutex::new(NodeLacks::new(tc_only)),
            complete: Notify::new(),
        }
    }

    /// To be called when the first pods are in place: an earlier daemon's kernel path serves no later one.
    pub fn first_pods_are_in_place(&self) {
        self.succeeds.store(false, Ordering::Relaxed);
    }

    /// How the pod uses the kernel path, in the form that the registry takes; `None` if the handler serves all probes.
    pub fn kernel(&self, path: &Path) -> Option<KernelUse> {
        match path {
            Path::Kernel(_) => Some(KernelUse::First(*self.http.lock())),
            Path::Fallback(_) => Some(KernelUse::Fallback),
            Path::Handler(_) => None,
        }
    }

    /// Removes our rules from the namespace of a pod that is no longer served, unless another daemon maintains
    /// them.
    pub async fn remove(&self, pod: &PodId, work: &PodWork, netns: Arc<Netns>) {
        if *self.maintainer.borrow() != Maintainer::This {
            return;
        }
        // Waits for work that began earlier, because that may install rules.
        let turn = work.turn_at_once().await;
        let permit = work.pool().look().await;
        let removal = move || exemption::remove_all(&netns);
        if let (Err(error), _) = turn.work(permit, removal).await {
            let why = error.message();
            tracing::warn!(%pod, why, "cannot remove our rules from a pod that is no longer served");
        }
    }

    /// Sets what serves HTTP. Returns whether that is a change: then the caller must pass all paths to the
    /// registry again.
    pub fn set_http(&self, http: HttpBy) -> bool {
        std::mem::replace(&mut *self.http.lock(), http) != http
    }

    /// Maintains our rules in `netns`, whose pod has `addresses`. Work in the pod runs through `work`.
    pub fn keep<'a>(
        &'a self,
        work: &'a PodWork,
        netns: &'a Arc<Netns>,
        addresses: &'a ByFamily,
    ) -> Keeping<'a> {
        Keeping {
            kernel_path: self,
            work,
            netns,
            addresses,
            watch: RulesWatch::new(netns)
                .inspect_err(
                    |error| tracing::debug!(%error, "cannot watch a pod's rules: checking them periodically"),
                )
                .ok(),
            maintainer: self.maintainer.clone(),
            matcher: None,
            reported: None,
            attempt: 0,
        }
    }
}

/// Maintains the rules in one pod.
pub struct Keeping<'a> {
    kernel_path: &'a KernelPath,
    work: &'a PodWork,
    netns: &'a Arc<Netns>,
    addresses: &'a ByFamily,
    /// `None`: rules can't be watched, and the trial is repeated periodically.
    watch: Option<RulesWatch>,
    /// Like the receiver in [`KernelPath`], but marks changes as received for this pod only.
    maintainer: watch::Receiver<Maintainer>,
    /// The matcher of the rules that were installed last.
    matcher: Option<Matcher>,
    reported: Option<Path>,
    attempt: u32,
}

impl Keeping<'_> {
    /// Whether the trial must come before the pod is served: meanwhile an earlier daemon's kernel path serves it, so its
    /// probes do not depend on our handler, which may be killed.
    pub fn comes_first(&self) -> bool {
        self.kernel_path.succeeds.load(Ordering::Relaxed)
    }

    /// Returns which path serves the pod: the first time at once, then whenever it has changed.
    pub async fn next(&mut self) -> Path {
        loop {
            self.until_next().await;
            if *self.maintainer.borrow() == Maintainer::Nobody {
                std::future::pending::<()>().await;
            }
            let serves_already = self.is_by_kernel() || self.comes_first();
            let turn = match serves_already {
                true => None,
                false => self.kernel_path.turns.acquire().await.ok(),
            };
            let path = match self.establish().await {
                // Without rules of ours in the pod.
                Path::Fallback(why) if self.matcher.is_none() => Path::Handler(why),
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
    fn is_by_kernel(&self) -> bool {
        matches!(self.reported, Some(Path::Kernel(_)))
    }

    /// Whether our rules could be put into the pod.
    fn worked(&self) -> bool {
        matches!(self.reported, Some(Path::Kernel(_) | Path::Fallback(_)))
    }

    /// Waits until the next trial is due: periodically, and while the kernel path serves the pod also as soon
    /// as rules change.
    async fn until_next(&mut self) {
        let is_by_kernel = self.is_by_kernel();
        let Some(reported) = &self.reported else {
            return;
        };
        let by_time = tokio::time::sleep(until_next(reported, self.attempt));
        self.attempt = self.attempt.saturating_add(1);
        match &self.watch {
            Some(watch) if is_by_kernel => {
                // A process that may change the pod's rules may do so continuously.
                tokio::time::sleep(BETWEEN_TRIALS).await;
                tokio::select! {
                    () = by_time => {}
                    () = changed(&mut self.maintainer) => {}
                    changed = watch.changed() => if let Err(error) = changed {
                        tracing::debug!(%error, "cannot watch a pod's rules: checking them periodically");
                        self.watch = None;
                    }
                }
            }
            _ => tokio::select! {
                () = by_time => {}
                () = changed(&mut self.maintainer) => {}
                () = self.kernel_path.complete.notified() => {}
            },
        }
    }

    /// Tries our rules. Installs them before the first trial, and again if a trial fails.
    async fn establish(&mut self) -> Path {
        let kernel_path = self.kernel_path;
        if kernel_path.shared_process.load(Ordering::Relaxed) {
            return Path::Handler(
                "the kubelet's process also contains other programs: the kernel path would exempt all its connections to \
                 probed ports"
                    .to_owned(),
            );
        }
        if *self.maintainer.borrow() == Maintainer::Another {
            return self
                .reported
                .clone()
                .unwrap_or_else(|| Path::Handler(MAINTAINED_BY_ANOTHER.to_owned()));
        }
        let families: Vec<Family> = self.addresses.families().collect();
        let matcher = match self.worked() {
            true => kernel_path.lacks.lock().known(&families),
            false => match kernel_path.lacks.lock().may_try(&families, Instant::now()) {
                Ok(matcher) => matcher,
                Err(why) => return Path::Handler(why),
            },
        };
        // The first rules of a pod do not wait: until they are installed, its probes depend on the handler or
        // go through the mesh.
        let mut turn = match self.reported {
            None => self.work.turn_at_once().await,
            Some(_) => self.work.turn().await,
        };
        if self.reported.is_some() {
            let installed = self.matcher.unwrap_or(matcher);
            let (tried, back) = self.try_all(installed, turn).await;
            if tried.is_ok() {
                return Path::Kernel(installed);
            }
            turn = back;
        }
        let (put, turn) = self.put(families, matcher, turn).await;
        match put {
            Ok(matcher) => {
                self.matcher = Some(matcher);
                // Discards changes before the trial, so that later ones are noticed.
                if let Some(watch) = &mut self.watch {
                    if let Err(error) = watch.watch_filters(self.netns, matcher == Matcher::Tc) {
                        tracing::debug!(%error, "cannot watch a pod's tc filters: checking them periodically");
                    }
                    watch.discard();
                }
                let (tried, _turn) = self.try_all(matcher, turn).await;
                tried.map_or_else(|path| path, |()| Path::Kernel(matcher))
            }
            Err(path) => path,
        }
    }

    /// Installs our rules for the pod's address families by `matcher`, or by tc if the kernel lacks xt_bpf, on a thread that
    /// may block in the kernel: how long that takes depends on the pod's other rules. Returns the matcher that they use.
    ///
    /// # Errors
    /// The path that serves the pod instead, as returned by [`judge`].
    async fn put(
        &self,
        families: Vec<Family>,
        matcher: Matcher,
        turn: Turn,
    ) -> (Result<Matcher, Path>, Turn) {
        let exemption = Arc::clone(&self.kernel_path.exemption);
        let netns = Arc::clone(self.netns);
        let permit = self.work.pool().look().await;
        let all = families.clone();
        let put = move || put(&exemption, &netns, &all, matcher);
        let (put, turn) = turn.work(permit, put).await;
        let mut lacks = self.kernel_path.lacks.lock();
        let now = Instant::now();
        let missing_match = put.missing_match.map(|error| {
            let missing_for = error.missing_for(&families);
            let why = error.message();
            lacks.failed(&missing_for, Matcher::XtBpf, &why, now);
            why
        });
        let result = match put.result {
            Ok(()) => {
                if lacks.worked(&families, put.matcher) {
                    self.kernel_path.complete.notify_waiters();
                }
                Ok(put.matcher)
            }
            Err(error) => {
                let missing_for = error.missing_for(&families);
                let why = match missing_match {
                    Some(missing) => format!("{missing}; tc instead: {}", error.message()),
                    None => error.message(),
                };
                if missing_for.is_empty() {
                    Err(Path::Fallback(why))
                } else {
                    lacks.failed(&missing_for, put.matcher, &why, now);
                    if put.matcher == Matcher::XtBpf {
                        // The missing feature is not the match, so tc can't replace it.
                        lacks.failed(&missing_for, Matcher::Tc, &why, now);
                    }
                    Err(Path::Handler(why))
                }
            }
        };
        (result, turn)
    }

    /// One trial for each address family of the pod; all must pass.
    ///
    /// # Errors
    /// The path that serves the pod instead.
    async fn try_all(&self, matcher: Matcher, mut turn: Turn) -> (Result<(), Path>, Turn) {
        let mut result = Err(Path::Handler("it has no address yet".to_owned()));
        for family in self.addresses.families() {
            (result, turn) = self.try_family(family, matcher, turn).await;
            if result.is_err() {
                break;
            }
        }
        (result, turn)
    }

    /// Trials to addresses of a family, until one is conclusive: while the pod's status names none, the first ones in its
    /// namespace may be addresses that the node does not reach.
    ///
    /// # Errors
    /// The path that serves the pod instead.
    async fn try_family(
        &self,
        family: Family,
        matcher: Matcher,
        mut turn: Turn,
    ) -> (Result<(), Path>, Turn) {
        const ADDRESSES: usize = 3;
        let mut result = Err(Path::Handler(String::new()));
        for address in self.addresses.of(family).take(ADDRESSES) {
            let trial;
            (trial, turn) = self.try_address(address, turn).await;
            match (&result, judge(trial, matcher)) {
                // The first address was not reached; the node may take another host for this one.
                (Err(Path::Fallback(_)), Err(_)) => {}
                (_, judged) => result = judged,
            }
            if !matches!(result, Err(Path::Fallback(_))) {
                break;
            }
        }
        (result, turn)
    }

    /// Makes a trial connection to `address`, and a second one to another port if the first is accepted. Its packets pass
    /// through the pod's rules, which may cost much processor time, so it is opened and closed on a thread for dials.
    async fn try_address(&self, address: IpAddr, mut turn: Turn) -> (Trial, Turn) {
        const TRIES: usize = 2;
        let pool = self.work.pool();
        let mut result = Trial::Unproven("no trial yet".to_owned());
        for number in 0..TRIES {
            let (netns, connecting) = (
                Arc::clone(self.netns),
                Arc::clone(&self.kernel_path.connecting),
            );
            let begin = move || trial::begin(&netns, &connecting, address, number);
            let begun;
            (begun, turn) = turn.work(pool.dial().await, begin).await;
            let attempt = match begun {
                Ok(attempt) => attempt,
                // There is no second port.
                Err(_) if number > 0 => break,
                Err(trial) => return (trial, turn),
            };
            // Waits without a thread, because the answer may never arrive.
            let accepted;
            (result, accepted) = attempt.answer().await;
            let Some(accepted) = accepted else {
                break;
            };
            ((), turn) = turn.work(pool.dial().await, move || drop(accepted)).await;
        }
        (result, turn)
    }
}

/// Waits until another daemon, or this one again, maintains the rules.
async fn changed(maintainer: &mut watch::Receiver<Maintainer>) {
    if maintainer.changed().await.is_err() {
        // The daemon ends.
        std::future::pending().await
    }
}

/// The result of installing rules in a pod.
struct Put {
    /// The error of xt_bpf, if the kernel turned out to lack it.
    missing_match: Option<Error>,
    /// The matcher of the last attempt, and its result.
    matcher: Matcher,
    result: Result<(), Error>,
}

/// Installs rules by `matcher`, or by tc if the kernel lacks xt_bpf.
fn put(exemption: &Exemption, netns: &Netns, families: &[Family], matcher: Matcher) -> Put {
    match exemption.put(netns, families, matcher) {
        Err(error) if matcher == Matcher::XtBpf && error.is_missing_match() => Put {
            missing_match: Some(error),
            matcher: Matcher::Tc,
            result: exemption.put(netns, families, Matcher::Tc),
        },
        result => Put {
            missing_match: None,
            matcher,
            result,
        },
    }
}

/// Whether a trial has passed.
///
/// # Errors
/// The path that serves the pod instead: [`Path::Fallback`] if the trial was inconclusive.
fn judge(trial: Trial, matcher: Matcher) -> Result<(), Path> {
    Err(Path::Handler(match trial {
        Trial::Passed => return Ok(()),
        Trial::Captured { port } => format!(
            "a trial connection from the node to its port {port}, on which nothing listens, was accepted: a rule of \
             the mesh captures it despite our rules{}",
            match matcher {
                Matcher::XtBpf => "",
                Matcher::Tc => ", or another tc program in the pod ends the run before ours",
            }
        ),
        Trial::NotMet => {
            "a trial connection from the node did not reach our rules with its original address: \
             the node or network changes the address (SNAT)"
                .to_owned()
        }
        Trial::Unproven(why) => return Err(Path::Fallback(why)),
    }))
}

/// Time until the next trial: short while a pod is starting, and longer later. Trials are repeated for as long as the
/// pod exists, because its rules may change.
fn until_next(path: &Path, attempt: u32) -> Duration {
    match path {
        Path::Kernel(_) => Duration::from_secs(30),
        Path::Fallback(_) | Path::Handler(_) => Duration::from_millis(100 << attempt.min(8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_trial_that_passes_takes_the_kernel_path() {
        let judge = |trial| judge(trial, Matcher::Tc);
        assert_eq!(judge(Trial::Passed), Ok(()));
        for trial in [Trial::Captured { port: 65_535 }, Trial::NotMet] {
            assert!(matches!(judge(trial), Err(Path::Handler(_))));
        }
        let unproven = judge(Trial::Unproven("no answer".to_owned()));
        assert!(matches!(unproven, Err(Path::Fallback(_))));
    }

    #[test]
    fn failed_trials_are_repeated_soon_and_then_less_often() {
        let handler = Path::Handler(String::new());
        assert_eq!(until_next(&handler, 0), Duration::from_millis(100));
        assert_eq!(until_next(&handler, 99), Duration::from_millis(25_600));
    }
}
