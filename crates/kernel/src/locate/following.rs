//! Follows one pod: reports its network namespace when it is found, when it changes and when it is gone.

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

/// The minimum wait before the next search after an event in a pod's cgroups. Cgroup v1 does not report
/// when a process enters a cgroup, and neither version reports when a process joins a network namespace;
/// both follow the creation of the cgroup within milliseconds.
const MIN_WAIT: Duration = Duration::from_millis(1);
/// The maximum wait before the next search.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// The wait is the time since that event divided by `SHARE`: what has not happened for a second is unlikely
/// to happen in the next millisecond.
const SHARE: u32 = 50;
/// For how long to check only the processes that may be about to join a namespace, instead of the cgroups.
const RECHECK: Duration = Duration::from_millis(10);
/// How long a changed reason for not finding the namespace must persist before it is reported: a starting
/// sandbox passes through all of them.
const SETTLED: Duration = Duration::from_secs(1);

/// The result of following a pod.
#[derive(Debug)]
pub enum Placement {
    /// The pod is in this network namespace.
    In(Arc<Netns>),
    /// The pod's network namespace is not found; the reason.
    Nowhere(NotFound),
}

/// Follows one pod. Dropping it ends the search and removes its watches.
pub struct Following {
    shared: Arc<Shared>,
    uid: Uid,
    state: State,
}

enum State {
    /// The pod's namespace is not known.
    Searching {
        search: Search,
        /// The last reported reason.
        reported: Option<NotFound>,
    },
    /// The pod's namespace was reported. It is not kept open here, because then it would outlive the pod.
    Found {
        netns: NetnsId,
        process: Process,
        /// Whether finding it required searching all hierarchies.
        everywhere: bool,
    },
}

/// A search for the pod's namespace. Changes in the pod's cgroups are watched until it is dropped.
struct Search {
    shared: Arc<Shared>,
    uid: Uid,
    changes: watch::Receiver<()>,
    /// When the last event occurred there; `None`: no event since the search began.
    since: Option<Instant>,
    /// The pod's processes that were in the node's namespace at the last check.
    passed: Vec<CgroupProcess>,
    /// [`NotFound::rank`] of the last result.
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

    /// Waits until the next search.
    async fn wait(&mut self, absence: &NotFound) {
        let blind = self.shared.tree.lock().blind().is_some();
        let before = self.found.replace(absence.rank());
        if blind && before != Some(absence.rank()) {
            // Without inotify, the changed result is the event.
            self.since = Some(Instant::now());
        }
        if matches!(absence, NotFound::NoCgroup | NotFound::NoContainer) {
            let latest = if blind { RESCAN } else { MAX_WAIT };
            // inotify reports the creation of either, if both kubelet and runtime use the hierarchy.
            tokio::select! {
                _ = self.changes.changed() => self.since = Some(Instant::now()),
                () = sleep(latest), if *absence == NotFound::NoContainer => {}
            }
            return;
        }
        let looked = Instant::now();
        loop {
            let elapsed = self.since.map_or(MAX_WAIT * SHARE, |since| since.elapsed());
            let wait = (elapsed / SHARE).clamp(MIN_WAIT, MAX_WAIT);
            // Always wait at least this long: a cgroup is created in each hierarchy, a container has
            // several, and one search is enough for all of them.
            sleep(MIN_WAIT).await;
            tokio::select! {
                changed = self.changes.changed() => {
                    self.since = Some(Instant::now());
                    if changed.is_ok() {
                        return;
                    }
                }
                () = sleep(wait - MIN_WAIT) => {}
            }
            let node = self.shared.node;
            if self.passed.is_empty()
                || looked.elapsed() >= RECHECK
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
            state: State::Searching {
                search,
                reported: None,
            },
        }
    }

    /// Returns the pod's placement: the first time immediately, then each time that it changes. Cancel
    /// safe.
    pub async fn next(&mut self) -> Placement {
        loop {
            match &mut self.state {
                State::Found {
                    netns,
                    process,
                    everywhere,
                } => {
                    if process.ended().await.is_err() {
                        std::future::pending::<()>().await; // the runtime is shutting down
                    }
                    let (before, everywhere) = (*netns, *everywhere);
                    // Until the result is known, the pod is served in its old namespace, although its address
                    // may already be another pod's: so this searches only the hierarchies where it was found.
                    match look_in_background(&self.shared, &self.uid, everywhere)
                        .await
                        .0
                    {
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
                State::Searching { search, reported } => {
                    let _ = search.changes.borrow_and_update();
                    // While a pod starts, cgroups are being created in each hierarchy, and the kernel blocks
                    // processes that read them meanwhile.
                    let everywhere = search.is_settled();
                    let passed = std::mem::take(&mut search.passed);
                    let (look, passed) =
                        look_and_recheck(&self.shared, &self.uid, passed, everywhere).await;
                    search.passed = passed;
                    let absence = match look {
                        Ok(found) => return self.found(found, everywhere),
                        Err(absence) => absence,
                    };
                    let settled = search.is_settled() || absence == NotFound::NoCgroup;
                    if reported.is_none() || (reported.as_ref() != Some(&absence) && settled) {
                        *reported = Some(absence.clone());
                        return Placement::Nowhere(absence);
                    }
                    search.wait(&absence).await;
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
        // Usually the pod has ended. If not, a new cgroup will be created for it.
        let search = Search::new(&self.shared, &self.uid, None);
        self.state = State::Searching {
            search,
            reported: Some(absence.clone()),
        };
        Placement::Nowhere(absence)
    }
}

/// Searches, and meanwhile checks the processes in `passed`, which earlier searches skipped: the namespace
/// that one of them joins is the pod's, and a search may block until the app's cgroup has been created.
async fn look_and_recheck(
    shared: &Arc<Shared>,
    uid: &Uid,
    passed: Vec<CgroupProcess>,
    everywhere: bool,
) -> (Result<Found, NotFound>, Vec<CgroupProcess>) {
    let mut look = std::pin::pin!(look_in_background(shared, uid, everywhere));
    loop {
        let mut joined = passed.iter().filter(|member| !member.is_in(shared.node));
        if let Some(found) = joined.find_map(|member| member.open().ok().flatten())
            && found.netns.id() != shared.node
        {
            return (Ok(found), passed);
        }
        tokio::select! {
            looked = &mut look => return looked,
            () = sleep(MIN_WAIT), if !passed.is_empty() => {}
        }
    }
}

/// Searches on a separate thread, and also returns the skipped processes. While another cgroup is being
/// created, the kernel may block the search for tens of milliseconds, and other pods must be found meanwhile.
async fn look_in_background(
    shared: &Arc<Shared>,
    uid: &Uid,
    everywhere: bool,
) -> (Result<Found, NotFound>, Vec<CgroupProcess>) {
    // The semaphore is never closed; a search without a permit would do no harm.
    let permit = Arc::clone(&shared.looks).acquire_owned().await.ok();
    let (shared, uid) = (Arc::clone(shared), uid.clone());
    let look = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let mut passed = Vec::new();
        let found = shared.look(&uid, everywhere, &mut passed);
        (found, passed)
    });
    look.await.unwrap_or_else(|error| {
        let why = NotFound::Refused(format!("cannot search its cgroup: {error}"));
        (Err(why), Vec::new())
    })
}

impl Shared {
    /// Searches all hierarchies, or only those that are watched; returns the first process that it finds
    /// in another network namespace.
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
                // A process may be visible in one hierarchy, but not in another one yet.
                Err(other) if other.rank() >= absence.rank() => absence = other,
                Err(_) => {}
            }
        }
        Err(absence)
    }
}
