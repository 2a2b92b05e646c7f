//! The file of `--settings`, as a mounted ConfigMap: a change applies to existing pods without a gap; a file with mistakes
//! changes nothing, and all its mistakes are reported.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::cases::Cases;
use super::env::{Env, has_kernel_path};
use super::pod_pair::{declare, http_get};
use super::sample_pod::Probing;
use crate::app::AppSpec;
use crate::kubelet::Probe;
use crate::pod::{Pod, PodSpec};
use crate::rules::RuleSet;
use crate::wait;

const HTTP: u16 = 8080;
const MODE: &str = "probe-handler.io/mode";
/// The kubelet's symlink to the current files of a volume.
const DATA: &str = "..data";
/// How soon a change applies.
const SOON: Duration = Duration::from_secs(10);

/// Five mistakes.
const WRONG: &str = "mode: serv\nscope: some\nhttps: kernel\noutlive: never\nlog: [debug]\n";

pub fn run(cases: &mut Cases) -> Result<()> {
    let volume = Volume::new()?;
    volume.publish(WRONG)?;
    let env = Env::start(
        cases,
        &["--settings", &volume.file(), "--heartbeat-timeout=3s"],
    )?;
    let labelled = env.pod(spec("labelled").label(MODE, "serve"))?;
    let mut other = spec("other").start(&env.run)?;
    other.publish(env.daemon.pods())?;
    cases.case("a-file-with-mistakes-at-the-start", || {
        bad_start(&env, &other)
    });
    cases.case("mode-changes-without-a-gap", || {
        mode(&env, &volume, &labelled, &other)
    });
    cases.case("scope-changes-without-a-gap", || {
        scope(&env, &volume, &labelled, &other)
    });
    cases.case("mistakes-change-nothing", || {
        mistakes(&env, &volume, &other)
    });
    if has_kernel_path() {
        cases.case("http-changes-without-a-gap", || {
            http(&env, &volume, &labelled)
        });
    } else {
        cases.skip("http-changes-without-a-gap", "there is no kernel path");
    }
    cases.case("log-and-kernel-log", || logs(&env, &volume, &labelled));
    cases.case("a-file-that-is-gone-changes-nothing", || {
        gone(&env, &volume)
    });
    drop((labelled, other));
    drop(env);
    cases.case_in("a-flag-takes-precedence", |cases| flag(cases, &volume));
    cases.case_in("a-file-that-appears-later", appears);
    Ok(())
}

/// A ConfigMap's volume.
struct Volume {
    directory: TempDir,
    version: std::cell::Cell<usize>,
}

impl Volume {
    fn new() -> Result<Self> {
        let this = Self {
            directory: tempfile::tempdir()?,
            version: std::cell::Cell::new(0),
        };
        symlink("..data/settings.yaml", this.path("settings.yaml"))?;
        Ok(this)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self) -> String {
        self.path("settings.yaml").display().to_string()
    }

    /// Replaces the file as the kubelet does: a new directory, and then the symlink at once (kubernetes
    /// pkg/volume/util/atomic_writer.go).
    fn publish(&self, text: &str) -> Result<()> {
        let before = self.version.replace(self.version.get() + 1);
        let now = format!("..{}", self.version.get());
        fs::create_dir(self.path(&now))?;
        fs::write(self.path(&now).join("settings.yaml"), text)?;
        let new = self.path("..data_tmp");
        symlink(&now, &new)?;
        fs::rename(&new, self.path(DATA))?;
        if before > 0 {
            fs::remove_dir_all(self.path(&format!("..{before}")))?;
        }
        Ok(())
    }
}

/// A pod under STRICT: its HTTP probe passes only if the daemon serves it.
fn spec(name: &str) -> PodSpec {
    let spec = PodSpec::new(name)
        .rules(RuleSet::IstioRedirect)
        .app(AppSpec::new().http(HTTP));
    declare(spec, [http_get(HTTP, "/healthy")])
}

fn probe(pod: &Pod) -> Probe {
    Probe::http(pod.ns.ipv4(), HTTP, "/healthy")
}

/// Waits until `setting` has `value`, set by the file.
fn until_set(env: &Env, setting: &str, value: &str) -> Result<()> {
    wait::until(&format!("{setting} to be {value}"), SOON, || {
        let status = env.daemon.status().ok()?;
        let row = row(&status, setting)?;
        (row["value"] == value && row["from"] == "file").then_some(())
    })
    .with_context(|| env.daemon.log_tail())
}

fn row<'a>(status: &'a Value, setting: &str) -> Option<&'a Value> {
    let mut rows = status["settings"]["values"].as_array()?.iter();
    rows.find(|row| row["name"] == setting)
}

/// Waits until the pod's probe passes, or no longer does.
fn until_served(env: &Env, pod: &Pod, served: bool) -> Result<()> {
    wait::until("the pod to be served, or not", SOON, || {
        let result = env.kubelet.probe(&probe(pod)).ok()?;
        (result.passed() == served).then_some(())
    })
}

/// Does `work` while the kubelet probes `pod`; no probe may fail.
fn without_a_gap(env: &Env, pod: &Pod, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let probing = Probing::every(&env.kubelet, vec![probe(pod)], Duration::from_millis(10));
    probing.more(3)?;
    work()?;
    probing.more(3)?;
    let made = probing.stop()?;
    let failed = made.iter().filter(|made| !made.result.passed()).count();
    ensure!(failed == 0, "{failed} of {} probes failed", made.len());
    Ok(())
}

/// The daemon serves with its flags.
fn bad_start(env: &Env, other: &Pod) -> Result<()> {
    until_served(env, other, true)?;
    all_five(env)?;
    let log = env.daemon.wait_logged(&["settings not loaded", "scope"])?;
    ensure!(log.contains("flags and variables are in use"), "{log}");
    Ok(())
}

/// Log, status and metrics report all mistakes in [`WRONG`].
fn all_five(env: &Env) -> Result<()> {
    let status = env.daemon.status()?;
    let mistakes = status["settings"]["mistakes"].as_array();
    let mistakes = mistakes.context("no mistakes")?;
    ensure!(mistakes.len() == 5, "{mistakes:?}");
    let problems = status["source"]["problems"].to_string();
    for (line, key) in ["mode", "scope", "https", "outlive", "log"]
        .iter()
        .enumerate()
    {
        let line = format!("line {}: ", line + 1);
        let mut named = mistakes.iter().filter_map(Value::as_str);
        let named = named.any(|text| text.starts_with(&line) && text.contains(key));
        ensure!(named && problems.contains(&line), "{key}: {mistakes:?}");
        let _logged = env.daemon.wait_logged(&["settings not loaded", &line])?;
    }
    let loaded = env.daemon.metric("probe_handler_settings_loaded")?;
    ensure!(loaded == 0.0, "{loaded}");
    let scrape = env.daemon.metrics()?;
    let failed = scrape.sum(
        "probe_handler_settings_reloads_total",
        &[("result", "failed")],
    );
    ensure!(failed >= 1.0, "{failed}");
    let last = scrape.sum("probe_handler_settings_last_reload_timestamp_seconds", &[]);
    ensure!(last > 1e9, "{last}");
    Ok(())
}

/// A pod with a label keeps its mode; the other one is observed, and served again, from then on without a failure.
fn mode(env: &Env, volume: &Volume, labelled: &Pod, other: &Pod) -> Result<()> {
    without_a_gap(env, labelled, || {
        volume.publish("mode: observe\n")?;
        until_set(env, "mode", "observe")?;
        until_served(env, other, false)?;
        // One task stops serving it, and another then observes it.
        wait::until("the pod to be observed", SOON, || {
            let status = env.daemon.status().ok()?;
            (status["observed"][0]["name"] == "other").then_some(())
        })?;
        volume.publish("# nothing is set\n")?;
        until_served(env, other, true)?;
        without_a_gap(env, other, || env.daemon.wait_served(other))
    })?;
    let loaded = env.daemon.metric("probe_handler_settings_loaded")?;
    ensure!(loaded == 1.0, "{loaded}");
    Ok(())
}

fn scope(env: &Env, volume: &Volume, labelled: &Pod, other: &Pod) -> Result<()> {
    without_a_gap(env, labelled, || {
        volume.publish("scope: labeled\n")?;
        until_served(env, other, false)?;
        volume.publish("scope: all\n")?;
        until_served(env, other, true)?;
        without_a_gap(env, other, || {
            volume.publish("scope: meshed\noutlive: 2h\n")?;
            until_set(env, "outlive", "7200s")
        })
    })
}

/// The last good settings stay in use.
fn mistakes(env: &Env, volume: &Volume, other: &Pod) -> Result<()> {
    volume.publish("mode: observe\n")?;
    until_served(env, other, false)?;
    volume.publish(WRONG)?;
    wait::until("the mistakes to be reported", SOON, || {
        (env.daemon.metric("probe_handler_settings_loaded").ok()? == 0.0).then_some(())
    })?;
    all_five(env)?;
    let status = env.daemon.status()?;
    let mode = row(&status, "mode").context("no mode")?;
    ensure!(mode["value"] == "observe", "{mode}");
    let _still = env.fails(&probe(other))?;
    volume.publish("mode: serve\n")?;
    until_served(env, other, true)?;
    let status = env.daemon.status()?;
    let mistakes = &status["settings"]["mistakes"];
    ensure!(mistakes == &serde_json::json!([]), "{mistakes}");
    Ok(())
}

/// The kubelet's connections no longer pass through the handler, and then do again.
fn http(env: &Env, volume: &Volume, pod: &Pod) -> Result<()> {
    let redirected = || -> Result<u64> {
        let before = env.daemon.counter("redirected")?;
        let _passed = env.passes(&probe(pod))?;
        Ok(env.daemon.counter("redirected")? - before)
    };
    for (http, expected) in [("kernel", 0), ("handler", 1)] {
        without_a_gap(env, pod, || {
            volume.publish(&format!("http: {http}\n"))?;
            until_set(env, "http", http)
        })?;
        wait::until(&format!("HTTP to be served by the {http}"), SOON, || {
            (redirected().ok()? == expected).then_some(())
        })?;
    }
    Ok(())
}

fn logs(env: &Env, volume: &Volume, pod: &Pod) -> Result<()> {
    let quiet = env.daemon.log()?;
    ensure!(!quiet.contains("DEBUG"), "{quiet}");
    volume.publish("log: info,serve=debug\nkernel-log: true\n")?;
    until_set(env, "kernel-log", "true")?;
    let _passed = env.passes(&probe(pod))?;
    let _of_handler = env.daemon.wait_logged(&["DEBUG"])?;
    let address = format!("{}]:{HTTP}", pod.ns.ipv4());
    let _of_programs = env.daemon.wait_logged(&[&address])?;
    volume.publish("log: info\n")?;
    until_set(env, "log", "info")
}

fn gone(env: &Env, volume: &Volume) -> Result<()> {
    volume.publish("scope: all\n")?;
    until_set(env, "scope", "all")?;
    fs::remove_file(volume.path(DATA))?;
    let _logged = env.daemon.wait_logged(&["the file was removed"])?;
    let status = env.daemon.status()?;
    let scope = row(&status, "scope").context("no scope")?;
    ensure!(scope["value"] == "all", "{scope}");
    let _settings = env.daemon.status_command(&[])?;
    Ok(())
}

/// The volume of an optional ConfigMap that does not exist is an empty directory; the kubelet adds the file once it does.
fn appears(cases: &mut Cases) -> Result<()> {
    let volume = Volume::new()?;
    let file = volume.path("settings.yaml");
    fs::remove_file(&file)?;
    fs::create_dir(volume.path("..0"))?;
    symlink("..0", volume.path(DATA))?;
    let env = Env::start(cases, &["--settings", &volume.file()])?;
    let status = env.daemon.status()?;
    let mistakes = &status["settings"]["mistakes"];
    ensure!(mistakes == &serde_json::json!([]), "{mistakes}");
    let loaded = env.daemon.metric("probe_handler_settings_loaded")?;
    ensure!(loaded == 1.0, "{loaded}");
    volume.publish("mode: observe\n")?;
    symlink("..data/settings.yaml", &file)?;
    until_set(&env, "mode", "observe")
}

fn flag(cases: &mut Cases, volume: &Volume) -> Result<()> {
    volume.publish("mode: observe\nscope: labeled\n")?;
    let file = volume.file();
    let env = Env::start(cases, &["--settings", &file, "--scope=all"])?;
    let status = env.daemon.status()?;
    let scope = row(&status, "scope").context("no scope")?;
    ensure!(
        scope["value"] == "all" && scope["from"] == "flag" && scope["overridden"] == "labeled",
        "{scope}"
    );
    let mode = row(&status, "mode").context("no mode")?;
    ensure!(
        mode["value"] == "observe" && mode["from"] == "file",
        "{mode}"
    );
    let text = env.daemon.status_command(&[])?;
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(words.contains("flag --scope sets all"), "{text}");
    Ok(())
}
