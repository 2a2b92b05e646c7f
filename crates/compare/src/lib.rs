//! Mode observe: repeats a probe twice and compares the results: once through the mesh, as the kubelet's own probe is
//! sent, and once bypassing the mesh, as the daemon would serve it. Changes nothing for the kubelet.

use std::net::IpAddr;
use std::time::SystemTime;

use parking_lot::Mutex;

use model::{Action, Pod, Probe, ProbeMode, Scheme};
use probe::dial::Dial;
use probe::kubelet::check;
use probe::verdict::{Reason, Verdict};

pub mod change;
pub mod metrics;
pub mod node;
pub mod pods;

pub use change::Change;

/// One observed probe.
#[derive(Debug)]
pub struct Observed {
    /// The probe as the kubelet makes it now, which may be rewritten to an agent's port.
    pub now: Probe,
    /// The probe as its author declared it.
    pub declared: Probe,
    /// How it would be served.
    pub mode: ProbeMode,
    comparison: Mutex<Comparison>,
}

/// The results of comparing one probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Number of comparisons in which both results were known.
    pub compared: u64,
    /// How often the probe failed and would have passed.
    pub cured: u64,
    /// How often the probe passed and would have failed.
    pub exposed: u64,
    /// The last comparison.
    pub last: Option<Compared>,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// The result through the mesh.
    pub now: Verdict,
    /// The result when the mesh is bypassed.
    pub then: Verdict,
    /// What serving the probe would change.
    pub change: Change,
    /// When it was made.
    pub at: SystemTime,
}

/// The probes of `pod` to observe. Lifecycle hooks are not among them, because an app must get each once.
pub fn observed(pod: &Pod) -> Vec<Observed> {
    let native = pod
        .probes
        .iter()
        .map(|probe| (probe.clone(), probe.clone(), ProbeMode::Transparent));
    let rewritten = pod.rewritten.iter().flat_map(|rewritten| {
        let one = |(path, original): &(String, Probe)| {
            let now = Probe {
                action: at_agent(rewritten.port, path, &original.action),
                ..original.clone()
            };
            (now, original.clone(), rewritten.mode)
        };
        rewritten.originals.iter().map(one)
    });
    native
        .chain(rewritten)
        .filter(|(now, _, _)| !now.kind.is_hook())
        .map(|(now, declared, mode)| Observed {
            now,
            declared,
            mode,
            comparison: Mutex::default(),
        })
        .collect()
}

/// The rewritten form of a probe: an `httpGet` of the agent's port, with the headers of the original.
fn at_agent(port: u16, path: &str, original: &Action) -> Action {
    let headers = match original {
        Action::Http { headers, .. } => headers.clone(),
        Action::Tcp { .. } | Action::Grpc { .. } => Vec::new(),
    };
    Action::Http {
        scheme: Scheme::Http,
        port,
        target: path.to_owned(),
        headers,
    }
}

impl Observed {
    /// Makes both checks at the pod's address `ip`: one over `mesh`, whose connections are like the kubelet's, and one
    /// over `pod`, which dials inside the pod. Returns a change only if the first check gives the same result again after
    /// the second, because the app may change in between.
    pub async fn compare(&self, mesh: &dyn Dial, pod: &dyn Dial, ip: IpAddr) -> Compared {
        let mut now = check(mesh, ip, &self.now).await;
        let then = check(pod, ip, &self.declared).await;
        let outcomes = |now: &Verdict| Change::between(now.outcome(false), then.outcome(false));
        let mut change = outcomes(&now);
        if change.is_change() {
            now = check(mesh, ip, &self.now).await;
            if outcomes(&now) != change {
                change = Change::Unclear;
            }
        }
        let compared = Compared {
            now,
            then,
            change,
            at: SystemTime::now(),
        };
        self.comparison.lock().add(compared.clone());
        compared
    }

    /// The results so far.
    pub fn comparison(&self) -> Comparison {
        self.comparison.lock().clone()
    }
}

impl Comparison {
    fn add(&mut self, compared: Compared) {
        match compared.change {
            Change::Unclear => {}
            Change::None => self.compared += 1,
            Change::Cured => {
                self.compared += 1;
                self.cured += 1;
            }
            Change::Exposed => {
                self.compared += 1;
                self.exposed += 1;
            }
        }
        self.last = Some(compared);
    }
}

/// The reason of the check that fails; if both pass, the reason of the one that bypasses the mesh.
pub fn failing_reason(compared: &Compared) -> Reason {
    match compared.change {
        Change::Cured => compared.now.reason,
        _ => compared.then.reason,
    }
}

#[cfg(test)]
mod tests;
