//! The results of probes on the kernel path, as far as the programs read them: in metrics and `status`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::declared::by_kernel;
use crate::app::AppSpec;
use crate::bpf::LegacyProgram;
use crate::cgroup::Cgroup;
use crate::daemon::{Daemon, DaemonSpec};
use crate::kubelet::{Kubelet, Probe};
use crate::metrics::Scrape;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::run::Run;
use crate::suite::cases::Cases;
use crate::suite::env::Env;
use crate::suite::pod_pair::{Family, declare, grpc_of, http_get, tcp_socket};
use crate::wait;

/// How soon a result must be counted.
const SOON: Duration = Duration::from_secs(5);
/// An outcome, and the status of an HTTP answer.
type Outcome = (&'static str, Option<u16>);
/// The outcome and status of a probe whose answer is not read.
const UNKNOWN: Outcome = ("unknown", None);
const FAILURE: Outcome = ("failure", None);
const SUCCESS: Outcome = ("success", None);
const OK: Outcome = ("success", Some(200));

/// Paths, each on a separate port, and the last result.
const HTTP: [(u16, &str, Outcome, &str); 11] = [
    (8201, "/healthy", OK, "healthy"),
    (8202, "/failing", ("failure", Some(503)), "http_status"),
    (8203, "/status/404", ("failure", Some(404)), "http_status"),
    (8204, "/slow-headers?ms=1", OK, "healthy"),
    (8205, "/http10", OK, "healthy"),
    // The kubelet follows the redirect on a second connection, whose answer is the result.
    (8206, "/redirect/same", OK, "healthy"),
    (8207, "/redirect/other", UNKNOWN, "connected"),
    (8208, "/continue", UNKNOWN, "connected"),
    (8209, "/garbage", FAILURE, "bad_response"),
    (8210, "/early-close", FAILURE, "connection_closed"),
    (8211, "/hang", FAILURE, "timed_out"),
];
const GRPC: u16 = 9201;
const NO_HEALTH: u16 = 9301;
const NOT_GRPC: u16 = 9302;
/// Services, each on a separate port, and the last result.
const SERVICES: [(u16, &str, Outcome, &str); 5] = [
    (GRPC, "ok", SUCCESS, "healthy"),
    (GRPC + 1, "down", FAILURE, "not_serving"),
    (GRPC + 2, "missing", FAILURE, "grpc_status"),
    (NO_HEALTH, "", FAILURE, "grpc_status"),
    (NOT_GRPC, "", FAILURE, "bad_response"),
];
/// A port with two paths: the programs can't know which probe an answer belongs to.
const TWO_PATHS: u16 = 8301;
const OPEN: u16 = 5432;

pub(super) fn run(cases: &mut Cases) {
    cases.case_in("results/kernel", by_the_kernel);
    cases.case_in("results/handler", by_the_handler);
    cases.case_in("results/without-the-program", without_the_program);
}

/// A pod with all the probes, which Istio's rules would redirect.
fn pod(name: &str) -> PodSpec {
    let mut app = AppSpec::new()
        .grpc_without_health(NO_HEALTH)
        .http(NOT_GRPC)
        .http(TWO_PATHS)
        .tcp(OPEN);
    let mut probes: Vec<Value> = [
        http_get(TWO_PATHS, "/healthy"),
        http_get(TWO_PATHS, "/failing"),
    ]
    .into();
    probes.push(tcp_socket(OPEN));
    for (port, path, ..) in HTTP {
        app = app.http(port);
        probes.push(http_get(port, path));
    }
    for (port, service, ..) in SERVICES {
        if !service.is_empty() {
            app = app.grpc(port);
        }
        probes.push(grpc_of(port, service));
    }
    let spec = PodSpec::new(name).rules(RuleSet::IstioRedirect).app(app);
    declare(spec, probes)
}

fn by_the_kernel(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &["--kernel-path"])?;
    let pod = env.pod(pod("results").annotation("probe-handler.io/http", "kernel"))?;
    by_kernel(&env.daemon, &pod)?;
    for family in Family::ALL {
        let ip = family.ip(&pod.ns);
        for (port, path, result, reason) in HTTP {
            let probe = family.form(Probe::http(ip, port, path));
            check(&env, &pod, &probe, result, reason).with_context(|| path.to_owned())?;
        }
        for (port, service, result, reason) in SERVICES {
            let probe = family.form(Probe::grpc(ip, port, service));
            check(&env, &pod, &probe, result, reason)
                .with_context(|| format!("service {service:?} at port {port}"))?;
        }
        uncounted(&env, &pod, family)?;
    }
    others_are_unchanged(&env, &pod)?;
    ensure!(
        env.daemon.counter("redirected")? == 0,
        "not on the kernel path"
    );
    let log = env.daemon.log()?;
    ensure!(log.contains("the app answered HTTP 503"), "{log}");
    Ok(())
}

/// gRPC that the handler splices.
fn by_the_handler(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &["--kernel-path=false"])?;
    let pod = env.pod(pod("spliced"))?;
    for family in Family::ALL {
        let ip = family.ip(&pod.ns);
        for (port, service, result, reason) in SERVICES {
            let probe = family.form(Probe::grpc(ip, port, service));
            check(&env, &pod, &probe, result, reason)
                .with_context(|| format!("service {service:?} at port {port}"))?;
        }
    }
    Ok(())
}

/// A program on a cgroup above the kubelet's prevents the attachment of program `answer`, but of no other
/// program.
fn without_the_program(cases: &mut Cases) -> Result<()> {
    let run = Run::new()?;
    let cgroup = Cgroup::new(&run, "kubelet")?;
    let above = cgroup.path().parent().context("a cgroup without parent")?;
    let legacy = LegacyProgram::ingress(above)?;
    let spec = DaemonSpec::new("daemon")
        .program(cases.daemon())
        .kubelet_cgroup(&cgroup)
        .arg("--kernel-path");
    let env = Env {
        kubelet: Arc::new(Kubelet::start(&run, &cgroup, "kubelet")?),
        bystander: Kubelet::bystander()?,
        daemon: spec.start(&run)?,
        cgroup,
        run,
    };
    // Detached before the cgroup is removed.
    let _legacy = legacy;
    cases.show_on_failure(env.daemon.log_path());
    let pod = env.pod(pod("without").annotation("probe-handler.io/http", "kernel"))?;
    by_kernel(&env.daemon, &pod)?;
    let ip = pod.ns.ipv4();
    for probe in [
        Probe::http(ip, HTTP[0].0, HTTP[0].1),
        Probe::grpc(ip, GRPC, "ok"),
    ] {
        check(&env, &pod, &probe, UNKNOWN, "connected")?;
    }
    check(&env, &pod, &Probe::tcp(ip, OPEN), SUCCESS, "healthy")?;
    let text = env.daemon.status_command(&[])?;
    let missing = text
        .lines()
        .find(|line| line.contains("results on the kernel path"));
    let missing = missing.with_context(|| format!("not reported: {text}"))?;
    let where_it_is = format!("ingress at {}", above_of(&env));
    ensure!(missing.contains(&where_it_is), "{missing}");
    ensure!(!text.contains("NOT ATTACHED"), "{text}");
    Ok(())
}

fn above_of(env: &Env) -> String {
    let above = env.cgroup.path().parent();
    above.unwrap_or(env.cgroup.path()).display().to_string()
}

/// Makes the probe as the kubelet, and checks its last result.
fn check(
    env: &Env,
    pod: &Pod,
    probe: &Probe,
    (outcome, status): Outcome,
    reason: &str,
) -> Result<()> {
    let before = counts(&of_port(env, pod, probe.port)?);
    let result = env.kubelet.probe(probe)?;
    if outcome != "unknown" {
        ensure!(result.passed() == (outcome == "success"), "{result:?}");
    }
    let expected = json!([outcome, status, reason]);
    let mut last = Value::Null;
    wait::until("the result", SOON, || {
        last = of_port(env, pod, probe.port).ok()?;
        let is_new = counts(&last)[outcome_index(outcome)] > before[outcome_index(outcome)];
        let last = &last["last"];
        let is_right = json!([last["outcome"], last["status"], last["reason"]]) == expected;
        (is_new && is_right).then_some(())
    })
    .with_context(|| format!("{expected}, before {before:?}: {last}"))?;
    // A connection has one result, and only a redirect that is followed has two connections.
    let made: u64 = counts(&last).iter().sum::<u64>() - before.iter().sum::<u64>();
    let is_followed = last["target"] == "/redirect/same";
    ensure!(made == 1 + u64::from(is_followed), "{made} results: {last}");
    Ok(())
}

fn outcome_index(outcome: &str) -> usize {
    match outcome {
        "success" => 0,
        "failure" => 1,
        _ => 2,
    }
}

fn counts(probe: &Value) -> [u64; 3] {
    ["success", "failure", "unknown"].map(|outcome| probe[outcome].as_u64().unwrap_or_default())
}

/// The first probe of a port in `status`.
fn of_port(env: &Env, pod: &Pod, port: u16) -> Result<Value> {
    let status = env.daemon.pod_status(pod.name())?.context("no such pod")?;
    let probes = status["probes"].as_array().context("no probes")?;
    let probe = probes.iter().find(|probe| probe["port"] == port);
    probe
        .cloned()
        .with_context(|| format!("no probe of {port}"))
}

/// If two paths are declared on one port, an answer is not counted.
fn uncounted(env: &Env, pod: &Pod, family: Family) -> Result<()> {
    let ip = family.ip(&pod.ns);
    let both = || -> Result<Vec<[u64; 3]>> {
        let status = env.daemon.pod_status(pod.name())?.context("no such pod")?;
        let probes = status["probes"].as_array().context("no probes")?;
        let of_port = probes.iter().filter(|probe| probe["port"] == TWO_PATHS);
        Ok(of_port.map(counts).collect())
    };
    let before = both()?;
    let _passed = env.passes(&family.form(Probe::http(ip, TWO_PATHS, "/healthy")))?;
    let _failed = env.fails(&family.form(Probe::http(ip, TWO_PATHS, "/failing")))?;
    // A later result, which is counted after those.
    let tcp = family.form(Probe::tcp(ip, OPEN));
    check(env, pod, &tcp, SUCCESS, "healthy")?;
    let after = both()?;
    ensure!(
        before.len() == 2 && after == before,
        "{before:?}, {after:?}"
    );
    Ok(())
}

/// Long answers on both paths, and datagrams, pass the program that reads answers.
fn others_are_unchanged(env: &Env, pod: &Pod) -> Result<()> {
    const PORT: u16 = 8080;
    let plain = PodSpec::new("plain")
        .rules(RuleSet::None)
        .app(AppSpec::new().http(PORT));
    let plain = plain.start(&env.run)?;
    for ip in plain.ns.ips() {
        for path in ["/large-body?kb=3000", "/large-headers?kb=60", "/chunked"] {
            let _passed = env.passes(&Probe::http(ip, PORT, path))?;
        }
        let failed = env.fails(&Probe::http(ip, PORT, "/status/500"))?;
        ensure!(failed.status == Some(500), "{failed:?}");
        let _sent = env.passes(&Probe::datagram(ip, PORT, b"datagram"))?;
    }
    for ip in pod.ns.ips() {
        let request = b"GET /large-body?kb=3000 HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n";
        let answer = env.kubelet.probe(&Probe::raw(ip, HTTP[0].0, request))?;
        ensure!(answer.body.len() > 3_000 * 1024, "{}", answer.body.len());
    }
    Ok(())
}

/// The metrics before some probes.
pub(super) struct Results<'a> {
    daemon: &'a Daemon,
    pod: &'a Pod,
    before: Scrape,
}

impl<'a> Results<'a> {
    pub(super) fn of(daemon: &'a Daemon, pod: &'a Pod) -> Result<Self> {
        let before = daemon.metrics()?;
        Ok(Self {
            daemon,
            pod,
            before,
        })
    }

    /// Waits until the metrics count this many more results with each reason.
    pub(super) fn grow(&self, expected: &[(&str, f64)]) -> Result<()> {
        let mut grown = Vec::new();
        let counted = wait::until("the results to be counted", SOON, || {
            let after = self.daemon.metrics().ok()?;
            let count = |scrape: &Scrape, reason| {
                let labels = [("pod", self.pod.name()), ("reason", reason)];
                scrape.sum("probe_handler_probes_total", &labels)
            };
            let more = |reason| count(&after, reason) - count(&self.before, reason);
            grown = expected.iter().map(|(reason, _)| more(reason)).collect();
            let mut both = grown.iter().zip(expected);
            both.all(|(more, (_, expected))| more == expected)
                .then_some(())
        });
        counted.with_context(|| format!("{expected:?}: {grown:?}"))
    }
}
