//! One pod followed: from nowhere to its network namespace, to the next one, to nowhere again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::events::watch_pod;
use super::name::Uid;
use super::process::{CgroupProcess, Found, NotFound, Process, look};
use super::{RESCAN, Shared};
use crate::netns::Netns;
use model::netns::NetnsId;

/// How soon to look again after something happened in a pod's cgroups. Cgroup v1 does not tell when a
/// process comes into a cgroup, nor does any when a process joins a network namespace; both follow the
/// creation of the cgroup within milliseconds.
const SOONEST: Duration = Duration::from_millis(1);
/// How long to wait at most.
const LATEST: Duration = Duration::from_secs(1);
/// What share of the time since then to wait: what has not happened for a second will not happen in the
/// next millisecond.
const SHARE: u32 = 50;
/// For how long it will do to look at processes that are about to join a namespace, and not at the cgroups.
const GLANCES: Duration = Duration::from_millis(10);
/// How long another reason for finding nothing must stand before it is told: a sandbox that starts passes
/// through all of them.
const SETTLED: Duration = Duration::from_secs(1);

/// Where a pod is.
#[derive(Debug)]
pub enum Placement {
    /// In this network namespace.
    In(Arc<Netns>),
    /// Nowhere, and why.
    Nowhere(NotFound),
}

/// Follows one pod. Dropping it ends all that is done for the pod.
pub struct Following {
    shared: Arc<Shared>,
    uid: Uid,
    state: State,
}

enum State {
    /// Its namespace is not known.
    Searching {
        search: Search,
        /// The reason told last.
        told: Option<NotFound>,
    },
    /// Its namespace was told. It is not held here: it would outlive the pod.
    Found {
        netns: NetnsId,
        process: Process,
        /// Whether it took a look into all hierarchies to find it.
        everywhere: bool,
    },
}

/// As long as this lives, changes in the pod's cgroups are noted.
struct Search {
    shared: Arc<Shared>,
    uid: Uid,
    changes: watch::Receiver<()>,
    /// When something last happened there; none: not since the search began.
    since: Option<Instant>,
    /// Its processes that were in the node's namespace when looked at last.
    passed: Vec<CgroupProcess>,
    /// [`NotFound::rank`] of what was found last.
    found: Option<u8>,
}

impl Search {
    fn new(shared: &Arc<Shared>, uid: &Uid, since: Option<Instant>) -> Self {
        Self {
            changes: shared.tree.lock().want(uid),
            shared: Arc::clone(shared),
            uid: uid.clone(),
            since,
            passed: Vec::new(),
            found: None,
        }
    }

    /// Waits until it is worth while to look again.
    async fn again(&mut self, absence: &NotFound) {
        let blind = self.shared.tree.lock().blind().is_some();
        let before = self.found.replace(absence.rank());
        if blind && before != Some(absence.rank()) {
            // What was not told is seen by this.
            self.since = Some(Instant::now());
        }
        if matches!(absence, NotFound::NoCgroup | NotFound::NoContainer) {
            let latest = if blind { RESCAN } else { LATEST };
            // The creation of either is told, where both kubelet and runtime use the hierarchy.
            tokio::select! {
                _ = self.changes.changed() => self.since = Some(Instant::now()),
                () = sleep(latest), if *absence == NotFound::NoContainer => {}
            }
            return;
        }
        let looked = Instant::now();
        loop {
            let elapsed = self.since.map_or(LATEST * SHARE, |since| since.elapsed());
            let wait = (elapsed / SHARE).clamp(SOONEST, LATEST);
            // At least this long in any case: a cgroup is made in each hierarchy, a container has
            // several, and one look will do for all of them.
            sleep(SOONEST).await;
            tokio::select! {
                changed = self.changes.changed() => {
                    self.since = Some(Instant::now());
                    if changed.is_ok() {
                        return;
                    }
                }
                () = sleep(wait - SOONEST) => {}
            }
            let node = self.shared.node;
            if self.passed.is_empty()
                || looked.elapsed() >= GLANCES
                || !self.passed.iter().all(|member| member.is_in(node))
            {
                return;
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.since.is_none_or(|since| since.elapsed() >= SETTLED)
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        self.shared
            .tree
            .lock()
            .release(&self.shared.events, &self.uid);
    }
}

impl Following {
    pub(super) fn new(shared: Arc<Shared>, uid: Uid) -> Self {
        let search = Search::new(&shared, &uid, Some(Instant::now()));
        Self {
            shared,
            uid,
            state: State::Searching { search, told: None },
        }
    }

    /// Where the pod is: at first at once, then each time that it changes. Dropping the future loses
    /// nothing.
    pub async fn next(&mut self) -> Placement {
        loop {
            match &mut self.state {
                State::Found {
                    netns,
                    process,
                    everywhere,
                } => {
                    if process.ended().await.is_err() {
                        std::future::pending::<()>().await; // the runtime ends
                    }
                    let (before, everywhere) = (*netns, *everywhere);
                    // Until we know, the pod is served where it was, and its address may be another's
                    // already: we look no further than where it was found.
                    match look_aside(&self.shared, &self.uid, everywhere).await.0 {
                        Ok(found) => {
                            let placement = self.found(found, everywhere);
                            if let Placement::In(netns) = &placement
                                && netns.id() == before
                            {
                                continue;
                            }
                            return placement;
                        }
                        Err(absence) => return self.lost(absence),
                    }
                }
                State::Searching { search, told } => {
                    let _ = search.changes.borrow_and_update();
                    // A pod that is just being made has cgroups in the making in each hierarchy, and the
                    // kernel keeps those waiting who look at them.
                    let everywhere = search.is_settled();
                    let passed = std::mem::take(&mut search.passed);
                    let (look, passed) =
                        look_and_glance(&self.shared, &self.uid, passed, everywhere).await;
                    search.passed = passed;
                    let absence = match look {
                        Ok(found) => return self.found(found, everywhere),
                        Err(absence) => absence,
                    };
                    let settled = search.is_settled() || absence == NotFound::NoCgroup;
                    if told.is_none() || (told.as_ref() != Some(&absence) && settled) {
                        *told = Some(absence.clone());
                        return Placement::Nowhere(absence);
                    }
                    search.again(&absence).await;
                }
            }
        }
    }

    fn found(&mut self, found: Found, everywhere: bool) -> Placement {
        self.state = State::Found {
            netns: found.netns.id(),
            process: found.process,
            everywhere,
        };
        Placement::In(Arc::new(found.netns))
    }

    fn lost(&mut self, absence: NotFound) -> Placement {
        // Its end as a rule. If it is not, a new cgroup will be made for it.
        let search = Search::new(&self.shared, &self.uid, None);
        self.state = State::Searching {
            search,
            told: Some(absence.clone()),
        };
        Placement::Nowhere(absence)
    }
}

/// Looks, and meanwhile keeps an eye on the processes `passed` over before: the namespace that one of
/// them joins is the pod's, and a look may take until the app's cgroup has been made.
async fn look_and_glance(
    shared: &Arc<Shared>,
    uid: &Uid,
    passed: Vec<CgroupProcess>,
    everywhere: bool,
) -> (Result<Found, NotFound>, Vec<CgroupProcess>) {
    let mut look = std::pin::pin!(look_aside(shared, uid, everywhere));
    loop {
        let mut joined = passed.iter().filter(|member| !member.is_in(shared.node));
        if let Some(found) = joined.find_map(|member| member.open().ok().flatten())
            && found.netns.id() != shared.node
        {
            return (Ok(found), passed);
        }
        tokio::select! {
            looked = &mut look => return looked,
            () = sleep(SOONEST), if !passed.is_empty() => {}
        }
    }
}

/// Looks on a thread of its own, and returns the processes passed over as well. While another cgroup is
/// being made, the kernel may keep us waiting for tens of milliseconds, in which other pods must be found.
async fn look_aside(
    shared: &Arc<Shared>,
    uid: &Uid,
    everywhere: bool,
) -> (Result<Found, NotFound>, Vec<CgroupProcess>) {
    // The semaphore is never closed; a look without a permit does no harm.
    let permit = Arc::clone(&shared.looks).acquire_owned().await.ok();
    let (shared, uid) = (Arc::clone(shared), uid.clone());
    let look = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let mut passed = Vec::new();
        let found = shared.look(&uid, everywhere, &mut passed);
        (found, passed)
    });
    look.await.unwrap_or_else(|error| {
        let why = NotFound::Refused(format!("cannot look at its cgroup: {error}"));
        (Err(why), Vec::new())
    })
}

impl Shared {
    /// Looks in all hierarchies, or only in those whose changes are told, of which the first that shows a
    /// process will do.
    fn look(
        &self,
        uid: &Uid,
        everywhere: bool,
        passed: &mut Vec<CgroupProcess>,
    ) -> Result<Found, NotFound> {
        let mut absence = NotFound::NoCgroup;
        let first = self.tree.lock().first_of_pod(uid);
        let others = match everywhere {
            true => self.tree.lock().of_pod(uid),
            false => Vec::new(),
        };
        let others = others.into_iter().filter(|dir| !first.contains(dir));
        let dirs = first.iter().map(|dir| (dir.clone(), true));
        for (dir, is_first) in dirs.chain(others.map(|dir| (dir, false))) {
            if is_first && self.tree.lock().is_to_watch(uid, &dir) {
                let events = &self.events;
                let watches = watch_pod(events, &dir);
                self.tree.lock().watched(events, uid, &dir, watches);
            }
            match look(&dir, self.node, passed) {
                Ok(found) => return Ok(found),
                Err(NotFound::Host) if !everywhere => return Err(NotFound::Host),
                // What one hierarchy shows, another may not show yet.
                Err(other) if other.rank() >= absence.rank() => absence = other,
                Err(_) => {}
            }
        }
        Err(absence)
    }
}
