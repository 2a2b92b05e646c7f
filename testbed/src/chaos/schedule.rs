//! The schedule of all actions: a pure function of seed and duration.

use std::time::Duration;

use fastrand::Rng;

/// An action on the pod at a place. A place is the index of a pair of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PodAction {
    /// The pod ends; its manifest is removed first, or only after the pod's end.
    Goes { deleted_first: bool },
    /// Another pod gets the addresses.
    Comes,
    /// The app ends.
    AppDies,
    /// A new app, healthy.
    AppStarts,
    /// The app answers 503.
    AppFails,
    /// The app is healthy again.
    AppRecovers,
    /// The sidecar is killed.
    SidecarDies,
    /// The sidecar closes its listeners, if it is Envoy; else it is killed.
    SidecarDrains,
    /// A new sidecar.
    SidecarStarts,
}

/// An action on the kubelet or the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeAction {
    /// The kubelet is killed; another starts in another cgroup.
    KubeletRestarts,
    /// The daemon is killed with SIGKILL.
    DaemonDies,
    /// A new daemon.
    DaemonStarts,
    /// The daemon is stopped with SIGSTOP.
    DaemonStops,
    /// The daemon continues.
    DaemonContinues,
    /// A second daemon starts, then the first one gets SIGTERM.
    DaemonIsUpgraded,
    /// A second daemon with a wrong configuration starts, and ends.
    DaemonIsMisconfigured,
}

/// An action and its time since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At<T> {
    pub(super) time: Duration,
    pub(super) action: T,
}

/// All of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    /// Actions on pods, with the place, in the order of time.
    pub(super) pods: Vec<At<(usize, PodAction)>>,
    /// In the order of time.
    pub(super) node: Vec<At<NodeAction>>,
}

/// Minimum and maximum time between two actions on the node, and between two actions on one place, in
/// milliseconds.
const NODE: (u64, u64) = (1_500, 4_000);
const POD: (u64, u64) = (1_000, 5_000);
/// Minimum and maximum time for which the daemon does not run or is stopped.
const FAULT: (u64, u64) = (200, 4_000);

/// The schedule of `seed` for `places` pairs of addresses. All pods run at its start. At its end a daemon runs.
pub(super) fn generate(seed: u64, duration: Duration, places: usize) -> Schedule {
    let mut rng = Rng::with_seed(seed);
    let mut pods = Vec::new();
    for place in 0..places {
        pods.extend(of_place(&mut rng, duration, place));
    }
    pods.sort_by_key(|at| at.time);
    Schedule {
        pods,
        node: of_node(&mut rng, duration),
    }
}

fn between(rng: &mut Rng, (least, most): (u64, u64)) -> Duration {
    Duration::from_millis(rng.u64(least..=most))
}

fn of_node(rng: &mut Rng, duration: Duration) -> Vec<At<NodeAction>> {
    use NodeAction::{
        DaemonContinues, DaemonDies, DaemonIsMisconfigured, DaemonIsUpgraded, DaemonStarts,
        DaemonStops, KubeletRestarts,
    };
    // Each kind of fault comes once in every round, so that short runs have all of them.
    let mut round = Vec::new();
    let mut actions = Vec::new();
    let mut time = between(rng, NODE);
    while time < duration {
        if round.is_empty() {
            round = vec![
                KubeletRestarts,
                DaemonDies,
                DaemonDies,
                DaemonStops,
                DaemonStops,
                DaemonIsUpgraded,
                DaemonIsMisconfigured,
            ];
            rng.shuffle(&mut round);
        }
        let Some(action) = round.pop() else { break };
        actions.push(At { time, action });
        let end = match action {
            DaemonDies => Some(DaemonStarts),
            DaemonStops => Some(DaemonContinues),
            _ => None,
        };
        if let Some(end) = end {
            time += between(rng, FAULT);
            // Sometimes the kubelet restarts meanwhile.
            if rng.u8(..8) == 0 {
                let action = KubeletRestarts;
                actions.push(At { time, action });
                time += between(rng, FAULT);
            }
            actions.push(At { time, action: end });
        }
        time += between(rng, NODE);
    }
    actions
}

fn of_place(rng: &mut Rng, duration: Duration, place: usize) -> Vec<At<(usize, PodAction)>> {
    let mut pod = PodState::new();
    let mut actions = Vec::new();
    let mut time = between(rng, POD);
    while time < duration {
        let action = pod.next(rng);
        let action = (place, action);
        actions.push(At { time, action });
        time += between(rng, POD);
    }
    actions
}

/// The state of a pod.
#[derive(Clone, Copy, Debug)]
struct PodState {
    pod: bool,
    app: bool,
    healthy: bool,
    sidecar: bool,
}

impl PodState {
    const fn new() -> Self {
        Self {
            pod: true,
            app: true,
            healthy: true,
            sidecar: true,
        }
    }

    /// Chooses a possible action and updates the state as if it had happened.
    fn next(&mut self, rng: &mut Rng) -> PodAction {
        if !self.pod {
            *self = Self::new();
            return PodAction::Comes;
        }
        match rng.u8(..6) {
            0 => {
                self.pod = false;
                PodAction::Goes {
                    deleted_first: rng.bool(),
                }
            }
            1 | 2 => {
                self.sidecar = !self.sidecar;
                match (self.sidecar, rng.bool()) {
                    (true, _) => PodAction::SidecarStarts,
                    (false, true) => PodAction::SidecarDies,
                    (false, false) => PodAction::SidecarDrains,
                }
            }
            _ if !self.app => {
                (self.app, self.healthy) = (true, true);
                PodAction::AppStarts
            }
            3 => {
                self.app = false;
                PodAction::AppDies
            }
            _ => {
                self.healthy = !self.healthy;
                match self.healthy {
                    true => PodAction::AppRecovers,
                    false => PodAction::AppFails,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: usize = 4;

    fn of(seed: u64, seconds: u64) -> Schedule {
        generate(seed, Duration::from_secs(seconds), PLACES)
    }

    #[test]
    fn a_seed_repeats_its_schedule_and_another_does_not() {
        assert_eq!(of(7, 300), of(7, 300));
        assert_ne!(of(7, 300), of(8, 300));
    }

    #[test]
    fn a_longer_run_begins_like_a_shorter_one_of_a_single_place() {
        let node = |seconds| generate(7, Duration::from_secs(seconds), 0).node;
        assert!(node(300).starts_with(&node(60)[..5]));
    }

    #[test]
    fn actions_are_in_the_order_of_time() {
        let schedule = of(1, 600);
        assert!(schedule.pods.is_sorted_by_key(|at| at.time));
        assert!(schedule.node.is_sorted_by_key(|at| at.time));
    }

    #[test]
    fn a_minute_has_each_fault_of_kubelet_and_daemon() {
        for seed in 0..20 {
            let actions: Vec<_> = of(seed, 60).node.iter().map(|at| at.action).collect();
            for action in [
                NodeAction::KubeletRestarts,
                NodeAction::DaemonDies,
                NodeAction::DaemonStops,
                NodeAction::DaemonIsUpgraded,
                NodeAction::DaemonIsMisconfigured,
            ] {
                assert!(actions.contains(&action), "seed {seed} has no {action:?}");
            }
        }
    }

    #[test]
    fn a_daemon_that_is_away_or_stopped_comes_back_before_the_next_fault_of_the_daemon() {
        for seed in 0..20 {
            let mut missing = None;
            for At { action, .. } in of(seed, 600).node {
                match action {
                    NodeAction::DaemonDies | NodeAction::DaemonStops => {
                        assert_eq!(missing, None, "seed {seed}");
                        missing = Some(action);
                    }
                    NodeAction::DaemonStarts => {
                        assert_eq!(missing.take(), Some(NodeAction::DaemonDies));
                    }
                    NodeAction::DaemonContinues => {
                        assert_eq!(missing.take(), Some(NodeAction::DaemonStops));
                    }
                    NodeAction::KubeletRestarts => {}
                    NodeAction::DaemonIsUpgraded | NodeAction::DaemonIsMisconfigured => {
                        assert_eq!(missing, None, "seed {seed}");
                    }
                }
            }
            assert_eq!(missing, None, "seed {seed} ends without a daemon");
        }
    }

    #[test]
    fn only_a_pod_that_has_gone_comes_and_only_an_app_that_has_died_starts() {
        for place in 0..PLACES {
            let (mut pod, mut app) = (true, true);
            let schedule = of(3, 600);
            let mine = schedule.pods.iter().filter(|at| at.action.0 == place);
            for At { action, .. } in mine {
                assert_eq!(pod, action.1 != PodAction::Comes, "{action:?}");
                match action.1 {
                    PodAction::Goes { .. } => pod = false,
                    PodAction::Comes => (pod, app) = (true, true),
                    PodAction::AppStarts => {
                        assert!(!app);
                        app = true;
                    }
                    PodAction::AppDies | PodAction::AppFails | PodAction::AppRecovers => {
                        assert!(app);
                        app = action.1 != PodAction::AppDies;
                    }
                    _ => {}
                }
            }
        }
    }
}
