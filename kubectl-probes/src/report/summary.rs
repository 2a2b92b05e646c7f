//! The figures of the report, from the states of all nodes.

use std::collections::BTreeMap;

use crate::{nodes, redact};
use status_view::changes::is_change;
use status_view::observed::ComparedProbe;
use status_view::shown::Shown;
use status_view::status::{PathStatus, PodStatus, ProbeStatus};

/// What is served in a namespace. Numbers count probes unless they are named after pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Pods in scope.
    pub pods: usize,
    /// Served by the kernel path.
    pub by_kernel: usize,
    /// Served by the handler.
    pub by_handler: usize,
    /// Probes of pods in scope that are not served.
    pub not_served: usize,
    /// Probes whose last result is a failure.
    pub failing: usize,
    /// Pods whose probes are compared.
    pub observed_pods: usize,
    /// Other pods, which are out of scope.
    pub other_pods: usize,
}

/// The last result of a probe that has a latency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Its pod, container, probe and check.
    pub name: ProbeName,
    /// The time to the result. Microseconds.
    pub latency_us: u64,
    /// The probe's timeout. Milliseconds, never 0.
    pub timeout_ms: u64,
}

/// Which probe it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeName {
    /// The node.
    pub node: String,
    /// Namespace and name.
    pub pod: String,
    /// The container.
    pub container: String,
    /// `liveness` and so on.
    pub probe: String,
    /// What it does, without the query of a path.
    pub check: String,
}

/// A probe whose last result is a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// Which.
    pub name: ProbeName,
    /// The reason.
    pub reason: String,
    /// The status of HTTP.
    pub status: Option<u16>,
    /// How many failures in a row.
    pub in_a_row: u32,
    /// `failureThreshold`.
    pub threshold: Option<u32>,
}

/// A probe that would have another result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changing {
    /// Which.
    pub name: ProbeName,
    /// `exposed`: it passes now; `cured`: it fails now.
    pub change: String,
    /// What the kubelet would do differently.
    pub consequence: String,
    /// Number of comparisons in which the result changed.
    pub changed: u64,
    /// Number of comparisons.
    pub compared: u64,
}

/// All figures.
#[derive(Debug, Default)]
pub struct Summary {
    /// By namespace.
    pub namespaces: BTreeMap<String, Coverage>,
    /// Their sum.
    pub all: Coverage,
    /// Why probes and pods in scope are not served, with their number.
    pub not_served: BTreeMap<String, usize>,
    /// Why other pods are out of scope, with their number.
    pub out_of_scope: BTreeMap<String, usize>,
    /// The probes whose result would change, those that pass now first.
    pub changing: Vec<Changing>,
    /// Number of observed probes.
    pub observed: usize,
    /// Number of observed probes without a comparison yet.
    pub not_compared: usize,
    /// Pods that can't be compared, and why.
    pub observe_trouble: Vec<(String, String)>,
    /// All known latencies, the nearest to its timeout first.
    pub latencies: Vec<Latency>,
    /// Failing probes.
    pub failing: Vec<Failing>,
    /// Node and problem of a daemon or pod.
    pub problems: Vec<(String, String)>,
}

impl Summary {
    /// The figures of these states.
    pub fn new(shown: &[Shown<'_>]) -> Self {
        let mut summary = Self::default();
        for Shown { node, status } in shown {
            let node = node.unwrap_or_default();
            for pod in &status.pods {
                summary.add_pod(node, pod);
            }
            let observed = |namespace: &str, name: &str| {
                let mut pods = status.observed.iter();
                pods.any(|pod| pod.namespace == namespace && pod.name == name)
            };
            for pod in &status.not_served {
                if !observed(&pod.namespace, &pod.name) {
                    summary.coverage(&pod.namespace, |coverage| coverage.other_pods += 1);
                    *summary.out_of_scope.entry(pod.why.clone()).or_default() += 1;
                }
            }
            for pod in &status.observed {
                summary.coverage(&pod.namespace, |coverage| coverage.observed_pods += 1);
                let name = format!("{}/{}", pod.namespace, pod.name);
                if let Some(why) = &pod.trouble {
                    summary.observe_trouble.push((name.clone(), why.clone()));
                }
                for probe in &pod.probes {
                    summary.add_observed(node, &name, probe);
                }
            }
            let problems = nodes::of_daemon(status).into_iter();
            let problems = problems.map(|why| (node.to_owned(), why));
            summary.problems.extend(problems);
        }
        let rank = |change: &Changing| (change.change != "exposed", change.name.pod.clone());
        summary.changing.sort_by_cached_key(rank);
        // By latency / timeout, without division.
        summary.latencies.sort_by(|a, b| {
            let share = |one: &Latency, other: &Latency| {
                u128::from(one.latency_us) * u128::from(other.timeout_ms)
            };
            share(b, a).cmp(&share(a, b))
        });
        summary
    }

    fn coverage(&mut self, namespace: &str, add: impl Fn(&mut Coverage)) {
        add(self.namespaces.entry(namespace.to_owned()).or_default());
        add(&mut self.all);
    }

    fn add_pod(&mut self, node: &str, pod: &PodStatus) {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let trouble = pod.trouble();
        if let Some(why) = &trouble {
            self.problems
                .push((node.to_owned(), format!("{name}: {why}")));
        }
        for warning in &pod.warnings {
            self.problems
                .push((node.to_owned(), format!("{name}: {warning}")));
        }
        let probes = pod.probes.len();
        let trouble = trouble.filter(|_| !pod.by_kernel_alone);
        let is_kernel = matches!(pod.path, PathStatus::Kernel | PathStatus::KernelTc);
        let mut not_served = pod.skipped.len();
        for skipped in &pod.skipped {
            *self.not_served.entry(skipped.why.clone()).or_default() += 1;
        }
        if let Some(why) = &trouble {
            not_served += probes;
            *self.not_served.entry(why.clone()).or_default() += probes;
        }
        let failing = pod.probes.iter().filter(|probe| is_failing(probe)).count();
        self.coverage(&pod.namespace, |coverage| {
            coverage.pods += 1;
            coverage.not_served += not_served;
            coverage.failing += failing;
            match (&trouble, is_kernel) {
                (Some(_), _) => {}
                (None, true) => coverage.by_kernel += probes,
                (None, false) => coverage.by_handler += probes,
            }
        });
        for probe in &pod.probes {
            self.add_probe(node, &name, probe);
        }
    }

    fn add_probe(&mut self, node: &str, pod: &str, probe: &ProbeStatus) {
        let Some(last) = &probe.last else { return };
        let name = || ProbeName {
            node: node.to_owned(),
            pod: pod.to_owned(),
            container: probe.container.clone(),
            probe: probe.probe.clone(),
            check: redact::check(&probe.check()),
        };
        if let (Some(latency_us), Some(timeout_ms)) = (last.latency_us, probe.timeout_ms)
            && timeout_ms > 0
        {
            self.latencies.push(Latency {
                name: name(),
                latency_us,
                timeout_ms,
            });
        }
        if is_failing(probe) {
            self.failing.push(Failing {
                name: name(),
                reason: last.reason.clone(),
                status: last.status,
                in_a_row: probe.failures_in_a_row,
                threshold: probe.failure_threshold,
            });
        }
    }

    fn add_observed(&mut self, node: &str, pod: &str, probe: &ComparedProbe) {
        self.observed += 1;
        self.not_compared += usize::from(probe.compared == 0);
        if is_change(probe) {
            self.changing.push(Changing {
                name: ProbeName {
                    node: node.to_owned(),
                    pod: pod.to_owned(),
                    container: probe.container.clone(),
                    probe: probe.probe.clone(),
                    check: redact::check(&probe.check),
                },
                change: probe.change.clone().unwrap_or_default(),
                consequence: probe.consequence.clone().unwrap_or_default(),
                changed: probe.cured + probe.exposed,
                compared: probe.compared,
            });
        }
    }
}

fn is_failing(probe: &ProbeStatus) -> bool {
    let last = probe.last.as_ref();
    last.is_some_and(|last| last.outcome == "failure")
}

impl Latency {
    /// The latency as a part of the timeout.
    pub fn share(&self) -> f64 {
        self.latency_us as f64 / (self.timeout_ms as f64 * 1e3)
    }
}

impl Coverage {
    /// Probes of pods in scope.
    pub fn probes(&self) -> usize {
        self.by_kernel + self.by_handler + self.not_served
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use status_view::fixtures::{last, pod, probe, status};
    use status_view::status::Status;

    fn summary(status: &Status) -> Summary {
        Summary::new(&[Shown {
            node: Some("n"),
            status,
        }])
    }

    #[test]
    fn probes_are_counted_by_namespace_and_path() {
        let mut status = status();
        status.pods[0].path = PathStatus::Kernel;
        let summary = summary(&status);
        let shop = &summary.namespaces["shop"];
        assert_eq!((shop.pods, shop.by_kernel, shop.by_handler), (2, 3, 0));
        assert_eq!(shop.not_served, 1, "the exec hook");
        assert_eq!(summary.namespaces["kube-system"].other_pods, 1);
        assert_eq!(summary.all.pods, 2);
        assert_eq!(summary.not_served["exec"], 1);
    }

    #[test]
    fn probes_of_a_pod_in_trouble_are_not_served_unless_the_kernel_path_serves_it() {
        let mut status = status();
        status.pods.truncate(1);
        status.pods[0].skipped.clear();
        status.pods[0].obstacle = Some("costly".to_owned());
        let all = summary(&status).all;
        assert_eq!((all.by_handler, all.not_served), (0, 3));
        status.pods[0].by_kernel_alone = true;
        let all = summary(&status).all;
        assert_eq!((all.by_handler, all.not_served), (3, 0));
    }

    #[test]
    fn the_latency_nearest_to_its_timeout_is_first_and_hooks_have_none() {
        let mut status = status();
        let mut slow = probe("liveness", "http", 80);
        slow.last = last("success", "healthy", Some(200));
        slow.timeout_ms = Some(1);
        let mut hook = slow.clone();
        hook.timeout_ms = None;
        status.pods.push(pod("slow"));
        status.pods[2].probes = vec![hook, slow];
        let latencies = summary(&status).latencies;
        assert_eq!(latencies[0].name.pod, "shop/slow");
        assert!((latencies[0].share() - 0.412).abs() < 1e-9);
        assert_eq!(latencies.len(), 3);
    }
}
