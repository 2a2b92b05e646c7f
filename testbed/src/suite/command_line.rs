//! The command line: exit codes, preflight, failed starts.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::cases::Cases;
use super::env::{Env, has_kernel_path};
use super::sample_pod;
use crate::bpf::LegacyProgram;
use crate::cgroup;
use crate::daemon::DaemonSpec;
use crate::wait;

const SOON: Duration = Duration::from_secs(10);

pub fn run(cases: &mut Cases) -> Result<()> {
    let env = Env::start(cases, &[])?;
    cases.case("help-and-version", || help(&env));
    cases.case("every-mistake-at-once", || mistakes(&env));
    cases.case("status-without-a-daemon", || no_daemon(&env));
    cases.case("status", || status(&env));
    cases.case("status-filters", || status_filters(&env));
    cases.case("status-fits", || status_fits(&env));
    cases.case("status-of-pods-that-are-not-served", || {
        status_of_pods_that_are_not_served(&env)
    });
    cases.case("preflight-passes", || preflight_passes(&env));
    cases.case("preflight-of-the-kernel-path", || {
        preflight_of_the_kernel_path(&env)
    });
    cases.case("no-kubelet", || no_kubelet(&env));
    cases.case("root-cgroup", || root_cgroup(&env));
    cases.case("missing-capability", || missing_capability(&env));
    cases.case("legacy-program-above", || legacy(&env));
    cases.case("handler-port-taken", || port_taken(&env));
    Ok(())
}

/// The output of a command.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn of(command: &mut Command) -> Result<Self> {
        let output = command.output().context("starting a command")?;
        Ok(Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn exits(self, code: i32) -> Result<Self> {
        if let Some((_, panic)) = self.err.split_once("panicked") {
            bail!("it panicked{}", panic.lines().take(2).collect::<String>());
        }
        ensure!(
            self.code == Some(code),
            "exit code {code} was due: {self:?}"
        );
        Ok(self)
    }
}

/// Runs `probe-handler` with these arguments; none of the commands should run for long.
fn command(env: &Env, args: &[&str]) -> Result<Said> {
    let mut command = Command::new("timeout");
    Said::of(command.arg("20").arg(env.daemon.program()).args(args))
}

fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}

fn help(env: &Env) -> Result<()> {
    for args in [&["--help"][..], &["agent", "--help"], &["status", "--help"]] {
        let said = command(env, args)?.exits(0)?;
        contains(&said.out, &["Usage: probe-handler"])?;
    }
    let said = command(env, &["--version"])?.exits(0)?;
    contains(&said.out, &["probe-handler"])?;
    let _usage = command(env, &["agent", "--bogus"])?.exits(64)?;
    let _usage = command(env, &["bogus"])?.exits(64)?;
    Ok(())
}

fn mistakes(env: &Env) -> Result<()> {
    let bad = [
        ("--pods", "dir:/nonexistent"),
        ("--kubelet-cgroup", "/tmp"),
        ("--kubelet-name", "a/b"),
        ("--handler-port", "65536"),
        ("--admin-addr", "nowhere"),
        ("--scope", "everything"),
        ("--drain-timeout", "soon"),
        ("--log-format", "xml"),
        ("--log", "loud"),
        ("--endpoints-capacity", "0"),
    ];
    let mut args = vec!["agent"];
    for (flag, value) in bad {
        args.extend([flag, value]);
    }
    let said = command(env, &args)?.exits(64)?;
    contains(&said.err, &[&format!("{} mistakes", bad.len())])?;
    for (flag, value) in bad {
        let line = said
            .err
            .lines()
            .find(|line| line.contains(&format!("{flag} ")));
        let line = line.with_context(|| format!("{flag} is not in:\n{}", said.err))?;
        // The problem, and after the semicolon the remedy.
        let value = format!("{value:?}");
        contains(line, &[&value, "PROBE_HANDLER_", "; "])?;
    }
    ensure!(said.out.is_empty(), "something ran: {}", said.out);
    // The same values in the environment are reported too.
    let mut command = Command::new("timeout");
    let said = Said::of(
        command
            .arg("20")
            .arg(env.daemon.program())
            .arg("agent")
            .env("PROBE_HANDLER_HANDLER_PORT", "x")
            .env("PROBE_HANDLER_PODS", "x"),
    )?
    .exits(64)?;
    contains(&said.err, &["2 mistakes", "--pods", "--handler-port"])
}

fn no_daemon(env: &Env) -> Result<()> {
    let socket = env.run.dir().join("nobody.sock");
    let socket = socket.display().to_string();
    for extra in [&[][..], &["-o", "json"], &["--ready"], &["--alive"]] {
        let args = [&["status", "--admin-socket", &socket], extra].concat();
        let said = command(env, &args)?.exits(1)?;
        let words = "probe-handler is not running on this node";
        contains(&said.err, &[words, &socket, "probe-handler agent"])?;
        ensure!(said.out.is_empty(), "it shows something: {}", said.out);
    }
    Ok(())
}

fn status(env: &Env) -> Result<()> {
    let pod = env.pod(sample_pod::pod("shown"))?;
    sample_pod::check_verdicts(&env.kubelet, pod.ns.ipv4().into())?;
    let table = env.daemon.status_command(&[])?;
    contains(&table, &["shown", "web", "liveness", "readiness", "503"])?;
    ensure!(
        table.contains("UNKNOWN"),
        "no count of unknown results in:\n{table}"
    );
    let ip = pod.ns.ipv4().to_string();
    contains(
        &env.daemon.status_command(&["-o", "wide"])?,
        &["istio", &ip, "transparent"],
    )?;
    let json: Value = serde_json::from_str(&env.daemon.status_command(&["-o", "json"])?)?;
    ensure!(json["pods"][0]["name"] == "shown", "no pod in {json}");
    let _ready = env.daemon.status_command(&["--ready"])?;
    let _alive = env.daemon.status_command(&["--alive"])?;
    Ok(())
}

/// Runs `status` of this daemon as on a terminal of this width.
fn status_of(env: &Env, columns: u16, args: &[&str]) -> Result<Said> {
    let mut command = Command::new("timeout");
    let _ = command
        .arg("20")
        .arg(env.daemon.program())
        .arg("status")
        .arg("--admin-socket")
        .arg(env.daemon.socket())
        .args(args)
        .env("COLUMNS", columns.to_string());
    Said::of(&mut command)
}

/// Filters: one pod, one namespace, only failing probes; and a message if there is nothing to show.
fn status_filters(env: &Env) -> Result<()> {
    let pod = env.pod(sample_pod::pod("selected"))?;
    let _other = env.pod(sample_pod::pod("other"))?;
    sample_pod::check_verdicts(&env.kubelet, pod.ns.ipv4().into())?;
    let json: Value = serde_json::from_str(&env.daemon.status_command(&["-o", "json"])?)?;
    let pods = json["pods"].as_array().context("no pods")?;
    let named = pods.iter().find(|pod| pod["name"] == "selected");
    let namespace = named.and_then(|pod| pod["namespace"].as_str());
    let namespace = namespace.context("no namespace")?;
    let name = format!("{namespace}/selected");

    let one = status_of(env, 200, &[&name])?.exits(0)?;
    contains(&one.out, &[&name, "liveness"])?;
    ensure!(!one.out.contains("other"), "another pod: {}", one.out);
    let of = status_of(env, 200, &["-n", namespace, "-o", "yaml"])?.exits(0)?;
    contains(
        &of.out,
        &["name: selected", "name: other", "at: ", "age_ms: "],
    )?;
    let failing = status_of(env, 200, &["--failing", &name])?.exits(0)?;
    contains(&failing.out, &["http_status", "503"])?;
    ensure!(!failing.out.contains("healthy"), "{}", failing.out);

    let nothing = status_of(env, 200, &["-n", "empty"])?.exits(0)?;
    contains(&nothing.err, &["no pod of namespace empty is on this node"])?;
    ensure!(nothing.out.is_empty(), "{}", nothing.out);
    let missing = status_of(env, 200, &["empty/missing"])?.exits(1)?;
    contains(&missing.err, &["has no pod empty/missing"])?;
    let usage = status_of(env, 200, &["missing"])?.exits(64)?;
    contains(&usage.err, &["expected NAMESPACE/POD"])
}

/// Every line fits; on a narrow terminal nothing is omitted, and a closed pipe is not a failure.
fn status_fits(env: &Env) -> Result<()> {
    let pod = env.pod(sample_pod::pod("narrow"))?;
    sample_pod::check_verdicts(&env.kubelet, pod.ns.ipv4().into())?;
    let widest = |said: &Said| said.out.lines().map(|line| line.chars().count()).max();
    let usual = status_of(env, 80, &[])?.exits(0)?;
    ensure!(widest(&usual) <= Some(80), "{}", usual.out);
    let rows = usual.out.lines().filter(|line| line.contains(" liveness "));
    ensure!(rows.count() >= 1, "no row of a probe in:\n{}", usual.out);
    let narrow = status_of(env, 40, &[])?.exits(0)?;
    ensure!(widest(&narrow) <= Some(40), "{}", narrow.out);
    contains(&narrow.err, &["the terminal has 40 columns"])?;
    contains(&narrow.out, &["liveness", "readiness", "unknown"])?;

    for args in [&["-o", "json"][..], &["--watch"]] {
        let mut child = Command::new("timeout")
            .arg("20")
            .arg(env.daemon.program())
            .arg("status")
            .arg("--admin-socket")
            .arg(env.daemon.socket())
            .args(args)
            .stdout(Stdio::piped())
            .spawn()?;
        drop(child.stdout.take());
        let ended = child.wait()?;
        ensure!(
            ended.code() == Some(0),
            "{args:?} into a closed pipe: {ended}"
        );
    }
    Ok(())
}

/// Pods that are not served have a row with the reason.
fn status_of_pods_that_are_not_served(env: &Env) -> Result<()> {
    let manifest = env.daemon.pods().join("host.json");
    let host = serde_json::json!({
        "kind": "Pod",
        "metadata": {"name": "on-the-host", "namespace": "shown", "uid": "host-1"},
        "spec": {"hostNetwork": true, "containers": [{"name": "a"}]},
    });
    std::fs::write(&manifest, host.to_string())?;
    let words = [
        "shown/on-the-host",
        "not served: it is in the node's network namespace (hostNetwork)",
    ];
    let shown = wait::until("the pod to be shown", SOON, || {
        let table = env.daemon.status_command(&[]).ok()?;
        words.iter().all(|word| table.contains(word)).then_some(())
    });
    std::fs::remove_file(&manifest)?;
    shown
}

fn cgroup_of(env: &Env) -> String {
    env.cgroup.path().display().to_string()
}

fn preflight_passes(env: &Env) -> Result<()> {
    let args = ["preflight", "--admin-addr", "none", "--kubelet-cgroup"];
    let cgroup = cgroup_of(env);
    let said = command(env, &[&args[..], &[&cgroup]].concat())?.exits(0)?;
    contains(&said.out, &["probe-handler can run on this node", &cgroup])?;
    let said = command(env, &[&args[..], &[&cgroup, "-o", "json"]].concat())?.exits(0)?;
    let json: Value = serde_json::from_str(&said.out)?;
    ensure!(json["can_run"] == true, "{json}");
    let findings = json["findings"].as_array().context("no findings")?;
    ensure!(findings.len() >= 10, "only {} findings", findings.len());
    // `preflight` has detached its programs, and the running daemon is unaffected.
    let attached = crate::bpf::attached(env.cgroup.path())?;
    let expected = 5 + u32::from(has_kernel_path());
    ensure!(attached == expected, "{attached} programs are attached");
    Ok(())
}

/// A missing requirement of the kernel path is a warning that contains the remedy.
fn preflight_of_the_kernel_path(env: &Env) -> Result<()> {
    let cgroup = cgroup_of(env);
    let args = [
        "preflight",
        "--admin-addr",
        "none",
        "--kubelet-cgroup",
        &cgroup,
    ];
    let with = |more: &[&str]| command(env, &[&args[..], more].concat())?.exits(0);
    let pins = env.run.bpffs().join("preflight").display().to_string();
    let said = with(&["--kernel-path", "--bpffs", &pins])?;
    contains(
        &said.out,
        &[
            "rules in pods            pass   IPv4 and IPv6, by xt_bpf",
            &pins,
        ],
    )?;
    ensure!(!std::path::Path::new(&pins).exists(), "it made {pins}");
    let elsewhere = env.run.dir().join("no-bpffs").display().to_string();
    let said = with(&["--kernel-path", "--bpffs", &elsewhere])?;
    let warning = format!(
        "outlives the daemon      warn   {elsewhere} is not in a BPF file system: mount one"
    );
    contains(&said.out, &[&warning])?;
    let said = with(&["--kernel-path=false", "--bpffs", &elsewhere])?;
    ensure!(!said.out.contains("kernel path"), "{}", said.out);
    Ok(())
}

/// Checks that `preflight` and the agent's start fail, both with these words.
fn both_say(env: &Env, name: &str, args: &[&str], words: &[&str]) -> Result<()> {
    let shared = [&["preflight", "--admin-addr", "none"], args].concat();
    let said = command(env, &shared)?.exits(1)?;
    contains(&said.out, &["fail", "can NOT run on this node"])?;
    contains(&said.out, words)?;
    agent_says(agent(env, name, args), env, words)
}

fn agent(env: &Env, name: &str, args: &[&str]) -> DaemonSpec {
    let spec = DaemonSpec::new(name).program(Some(env.daemon.program()));
    args.iter().fold(spec, |spec, arg| spec.arg(arg))
}

/// Checks that the agent does not start: exit code 1, and a log with the reason and the remedy.
fn agent_says(spec: DaemonSpec, env: &Env, words: &[&str]) -> Result<()> {
    let mut daemon = spec.spawn(&env.run)?;
    let status = daemon.wait_end(SOON)?;
    let log = daemon.log()?;
    ensure!(status.code() == Some(1), "it ended with {status}:\n{log}");
    ensure!(!log.contains("panicked"), "it panicked:\n{log}");
    contains(&log, words)
}

/// The agent waits for a kubelet that does not run yet: preflight fails, the agent is not ready.
fn no_kubelet(env: &Env) -> Result<()> {
    let name = format!("none{}", env.run.id());
    let args = ["--kubelet-name", name.as_str()];
    let words = [
        "no kubelet found in this pid namespace",
        &name,
        "--kubelet-cgroup",
    ];
    let said = command(
        env,
        &[&["preflight", "--admin-addr", "none"], &args[..]].concat(),
    )?
    .exits(1)?;
    contains(&said.out, &words)?;
    let daemon = agent(env, "no-kubelet", &args).spawn(&env.run)?;
    wait::until("the daemon to say that it waits", SOON, || {
        let (ready, pending) = daemon.get("/readyz").ok()?;
        (ready == 503 && pending.contains("kubelet")).then_some(())
    })?;
    daemon.wait_logged(&words).map(drop)
}

fn root_cgroup(env: &Env) -> Result<()> {
    let root = cgroup::mount()?.display().to_string();
    let words = [
        "the kubelet's cgroup is the root cgroup",
        root.as_str(),
        "--allow-root-cgroup",
    ];
    both_say(env, "root-cgroup", &["--kubelet-cgroup", &root], &words)
}

fn missing_capability(env: &Env) -> Result<()> {
    let cgroup = cgroup_of(env);
    for (capability, name) in [
        ("net_admin", "CAP_NET_ADMIN"),
        ("sys_ptrace", "CAP_SYS_PTRACE"),
    ] {
        let drop = format!("-{capability}");
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set", &drop, "--inh-caps", &drop])
            .arg(env.daemon.program())
            .args([
                "preflight",
                "--admin-addr",
                "none",
                "--kubelet-cgroup",
                &cgroup,
            ]);
        let said = Said::of(&mut command)?.exits(1)?;
        contains(
            &said.out,
            &["fail", name, "privileged container", "can NOT run"],
        )?;
        let spec = agent(env, capability, &["--kubelet-cgroup", &cgroup]);
        agent_says(
            spec.without_capability(capability),
            env,
            &[name, "is missing", "privileged container"],
        )?;
    }
    Ok(())
}

fn legacy(env: &Env) -> Result<()> {
    let cgroup = crate::cgroup::Cgroup::new(&env.run, "below")?;
    let parent = cgroup.path().parent().context("a cgroup without parent")?;
    let _legacy = LegacyProgram::connect4(parent)?;
    let where_it_is = format!("connect4 at {}", parent.display());
    let words = [
        "programs attached without BPF_F_ALLOW_MULTI conflict with ours",
        &where_it_is,
    ];
    let path = cgroup.path().display().to_string();
    both_say(env, "legacy", &["--kubelet-cgroup", &path], &words)
}

fn port_taken(env: &Env) -> Result<()> {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = taken.local_addr()?.port().to_string();
    let cgroup = cgroup_of(env);
    let args = ["--kubelet-cgroup", &cgroup, "--handler-port", &port];
    let address = format!("127.0.0.1:{port}");
    let words = [address.as_str(), "choose another --handler-port"];
    both_say(env, "port-taken", &args, &words)
}
