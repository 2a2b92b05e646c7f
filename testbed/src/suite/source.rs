//! The directory of manifests: errors are reported, other manifests work, changes take effect at once.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cases::Cases;
use super::env::Env;
use super::sample_pod::{self, CLOSED, GRPC, HTTP, OPEN};
use crate::kubelet::Probe;
use crate::pace;
use crate::pod::Pod;
use crate::wait;

const SOON: Duration = Duration::from_secs(5);
/// Number of attempts for each change.
const ROUNDS: usize = 3;
/// A change must take effect within this time. The machine may be busy, so the fastest of several attempts counts.
const AIM: Duration = Duration::from_millis(200);

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[])?;
    let good = env.pod(sample_pod::pod("good"))?;
    for (name, file, text, parts) in mistakes() {
        cases.case(name, || {
            let _file = Written::new(&env, file, &text)?;
            reported(&env, file, &parts)?;
            sample_pod::check_verdicts(&env.kubelet, good.ns.ipv4().into())
        });
    }
    cases.case("directory-instead-of-a-file", || {
        let path = env.daemon.pods().join("folder.yaml");
        fs::create_dir(&path)?;
        let reported = reported(&env, "folder.yaml", &["is not a regular file"]);
        fs::remove_dir(&path)?;
        reported?;
        sample_pod::check_verdicts(&env.kubelet, good.ns.ipv4().into())
    });
    cases.case("netns-that-is-none", || no_namespace(&env, &good));
    cases.case("problems-go-with-their-files", || {
        wait::until("no problem to be left", SOON, || {
            let problems = problems(&env).ok()?;
            problems.is_empty().then_some(())
        })
    });
    cases.case("several-documents-in-a-file", || several(&env, &good));
    cases.case("added-changed-removed", || effects(&env));
    Ok(())
}

/// A manifest in the daemon's directory, removed on drop.
struct Written(std::path::PathBuf);

impl Written {
    fn new(env: &Env, file: &str, text: &str) -> Result<Self> {
        let path = env.daemon.pods().join(file);
        let partial = env.daemon.pods().join(format!(".{file}.partial"));
        fs::write(&partial, text)?;
        fs::rename(&partial, &path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("testbed: {}: {error}", self.0.display());
        }
    }
}

/// A pod with one container, `web`, with this liveness probe.
fn manifest(name: &str, probe: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "testbed",
            "labels": {"probe-handler.io/mode": "serve"},
        },
        "spec": {"containers": [{"name": "web", "image": "app", "livenessProbe": probe}]},
    })
}

type ConfigError = (&'static str, &'static str, String, Vec<&'static str>);

/// Name of the case, file name, its text, and what the reported problem must contain.
fn mistakes() -> Vec<ConfigError> {
    let second = |probe: Value| {
        let fine = manifest("fine", sample_pod::http(HTTP, "/healthy"));
        format!("{fine}\n---\n{}\n", manifest("bad", probe))
    };
    let twice = manifest("twice", sample_pod::http(HTTP, "/healthy"));
    vec![
        (
            "malformed-yaml",
            "malformed.yaml",
            "kind: Pod\nmetadata: {name: a\n".to_owned(),
            vec!["document 1", "line"],
        ),
        (
            "malformed-json",
            "malformed.json",
            "{\"kind\": \"Pod\", ".to_owned(),
            vec!["document 1", "line"],
        ),
        (
            "wrong-type",
            "type.yaml",
            second(json!({"tcpSocket": {"port": true}})),
            vec![
                "document 2",
                "spec.containers[0].livenessProbe.tcpSocket.port",
                "boolean",
            ],
        ),
        (
            "port-0",
            "zero.yaml",
            second(sample_pod::http(0, "/")),
            vec![
                "document 2",
                "testbed/bad",
                "web",
                "livenessProbe",
                "httpGet.port is 0, must be 1 to 65535",
            ],
        ),
        (
            "port-65536",
            "large.yaml",
            second(json!({"tcpSocket": {"port": 65536}})),
            vec![
                "document 2",
                "testbed/bad",
                "tcpSocket.port is 65536, must be 1 to 65535",
            ],
        ),
        (
            "unknown-port-name",
            "name.yaml",
            second(json!({"httpGet": {"port": "nope"}})),
            vec!["document 2", "testbed/bad", "httpGet.port \"nope\""],
        ),
        (
            "no-pod",
            "service.yaml",
            "kind: Service\nmetadata: {name: a}\n".to_owned(),
            vec!["document 1", "kind is \"Service\", must be Pod or List"],
        ),
        (
            "the-same-pod-twice",
            "twice.yaml",
            format!("{twice}\n---\n{twice}\n"),
            vec![
                "document 2",
                "testbed/twice",
                "is already in twice.yaml: document 1",
            ],
        ),
    ]
}

fn problems(env: &Env) -> Result<Vec<String>> {
    let problems = env.daemon.status()?["source"]["problems"].take();
    Ok(serde_json::from_value(problems)?)
}

/// Waits for one problem that names the file and all of `parts`.
fn reported(env: &Env, file: &str, parts: &[&str]) -> Result<()> {
    let mut last = Vec::new();
    let found = wait::until(&format!("a problem with {file}"), SOON, || {
        last = problems(env).ok()?;
        let names = |problem: &&String| {
            problem.starts_with(file) && parts.iter().all(|part| problem.contains(part))
        };
        last.iter().find(names).cloned()
    });
    let found = found.with_context(|| format!("{parts:?} are not in {last:#?}"))?;
    env.daemon.wait_logged(&[&found]).map(drop)
}

fn no_namespace(env: &Env, good: &Pod) -> Result<()> {
    for (path, words) in [
        ("/proc/version", "ordinary file"),
        ("/proc/self/ns/uts", "another kind"),
        ("/proc/self/ns/net", "node's own"),
        ("/nonexistent/ns", "No such file"),
    ] {
        let mut pod = manifest("nowhere", sample_pod::http(HTTP, "/healthy"));
        pod["metadata"]["annotations"]["probe-handler.io/netns"] = json!(path);
        let _file = Written::new(env, "nowhere.json", &pod.to_string())?;
        let mut last = Value::Null;
        wait::until("status to say what is wrong", SOON, || {
            last = env.daemon.pod_status("nowhere").ok()??["netns"].take();
            let why = last["pending"].as_str()?;
            (why.contains(path) && why.contains(words)).then_some(())
        })
        .with_context(|| format!("{path}: {last}"))?;
    }
    let mut pod = manifest("relative", sample_pod::http(HTTP, "/healthy"));
    pod["metadata"]["annotations"]["probe-handler.io/netns"] = json!("some/where");
    let _file = Written::new(env, "relative.json", &pod.to_string())?;
    reported(
        env,
        "relative.json",
        &["document 1", "probe-handler.io/netns", "absolute path"],
    )?;
    sample_pod::check_verdicts(&env.kubelet, good.ns.ipv4().into())
}

/// YAML with several documents and comments; one document is invalid.
fn several(env: &Env, good: &Pod) -> Result<()> {
    let pods = [
        sample_pod::pod("first").start(&env.run)?,
        sample_pod::pod("third").start(&env.run)?,
    ];
    let text = format!(
        "# made by hand\n---\n{}\n--- # the next one is bad\nkind: Pod\nmetadata: [\n---\n{}\n...\n",
        serde_json::to_string_pretty(&pods[0].manifest())?,
        by_hand(&pods[1]),
    );
    let _file = Written::new(env, "several.yml", &text)?;
    for pod in &pods {
        env.daemon.wait_served(pod)?;
        sample_pod::check_verdicts(&env.kubelet, pod.ns.ipv4().into())?;
    }
    reported(env, "several.yml", &["document 2"])?;
    sample_pod::check_verdicts(&env.kubelet, good.ns.ipv4().into())
}

/// The sample pod's manifest in YAML block style.
fn by_hand(pod: &Pod) -> String {
    format!(
        r"apiVersion: v1
kind: Pod
metadata:
  name: {}
  namespace: testbed
  annotations:
    probe-handler.io/netns: {}
    sidecar.istio.io/status: '{{}}'
spec:
  containers:
  - name: web
    image: app
    ports:
    - {{name: http, containerPort: {HTTP}}}
    livenessProbe:
      httpGet: {{path: /healthy, port: http}}
    readinessProbe:
      httpGet: {{path: /failing, port: {HTTP}}}
  - name: api
    image: app
    livenessProbe: {{grpc: {{port: {GRPC}, service: ok}}}}
    readinessProbe: {{grpc: {{port: {GRPC}, service: down}}}}
  - name: db
    image: app
    livenessProbe: {{tcpSocket: {{port: {OPEN}}}}}
    readinessProbe: {{tcpSocket: {{port: {CLOSED}}}}}
  - name: istio-proxy
    image: sidecar
",
        pod.name(),
        pod.ns.path().display(),
    )
}

/// The time from `change` until the kubelet's probe passes, or until it fails.
fn effect(env: &Env, what: &str, probe: &Probe, passes: bool) -> Result<Duration> {
    let begun = Instant::now();
    wait::until(what, SOON, || {
        let result = env.kubelet.probe(probe).ok()?;
        (result.passed() == passes).then_some(())
    })?;
    let took = begun.elapsed();
    println!("     {what}: {took:?}");
    Ok(took)
}

fn effects(env: &Env) -> Result<()> {
    let mut pod = sample_pod::pod("changing").start(&env.run)?;
    let ip = pod.ns.ipv4();
    let (healthy, another) = (
        Probe::http(ip, HTTP, "/healthy"),
        Probe::http(ip, HTTP, "/another"),
    );
    let mut took = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let _refused = env.fails(&healthy)?;
        pod.publish(env.daemon.pods())?;
        took[0].push(effect(env, "a pod was added", &healthy, true)?);

        let _undeclared = env.fails(&another)?;
        let mut manifest = pod.manifest();
        manifest["spec"]["containers"][0]["livenessProbe"] = sample_pod::http(HTTP, "/another");
        let file = env.daemon.pods().join("changing.yaml");
        let partial = env.daemon.pods().join(".changing.partial");
        fs::write(&partial, manifest.to_string())?;
        fs::rename(&partial, &file)?;
        took[1].push(effect(env, "a probe was changed", &another, true)?);
        let old = env.kubelet.probe(&healthy)?;
        ensure!(!old.passed(), "the old probe is still exempt: {old:?}");

        pod.withdraw()?;
        took[2].push(effect(env, "a pod was removed", &another, false)?);
    }
    for took in took {
        let quickest = took.iter().min().context("none")?;
        ensure!(*quickest < pace::stretch(AIM), "{took:?}");
    }
    Ok(())
}
