//! `probe-handler inject`, run as a command.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn inject(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_probe-handler"))
        .arg("inject")
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("probe-handler runs");
    let mut stdin = child.stdin.take().expect("piped");
    // One that does not read its input has gone, maybe.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Standard output of a run that went well and had nothing to say besides.
fn good(args: &[&str], input: &str) -> String {
    let output = inject(args, input);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    text(&output.stdout)
}

fn sample(name: &str) -> (String, String) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/samples")
        .join(name);
    let text = fs::read_to_string(&path).expect("the sample is there");
    (path.display().to_string(), text)
}

#[test]
fn a_command_probe_stays() {
    let (path, text) = sample("liveness-command.yaml");
    assert!(text.contains("exec:"));
    assert_eq!(good(&["-f", &path], ""), text);
    assert_eq!(good(&["-f", &path, "--diff"], ""), "");
}

#[test]
fn an_http_probe_is_rewritten_and_restored() {
    let (path, original) = sample("liveness-http.yaml");
    let expected = original
        .replace(
            "              path: /hostname # any file will do\n              port: http\n",
            "              path: /app-health/liveness-http/livez # any file will do\n              port: 15020\n",
        )
        .replace(
            "      labels: {app: liveness-http}\n    spec:\n",
            "      annotations:\n        probe-handler.io/probes: '{\"/app-health/liveness-http/livez\":{\"declaredPort\":\"http\",\"httpGet\":{\"path\":\"/hostname\",\"port\":8001}}}'\n        sidecar.istio.io/rewriteAppHTTPProbers: \"false\"\n      labels: {app: liveness-http}\n    spec:\n",
        );
    assert_ne!(expected, original);
    let injected = good(&["-f", &path], "");
    assert_eq!(injected, expected);
    assert_eq!(good(&["-f", "-"], &injected), injected);
    assert_eq!(good(&["--revert", "--filename", "-"], &injected), original);
    assert_eq!(good(&["--revert", "-f", &path], ""), original);
}

#[test]
fn the_diff_shows_what_would_change() {
    let (_, original) = sample("liveness-http.yaml");
    let diff = good(&["-f", "-", "--diff"], &original);
    assert!(
        diff.starts_with("--- standard input\t\n+++ standard input\t\n@@ "),
        "{diff}"
    );
    let changed = |sign: char| {
        let lines = diff.lines().skip(2);
        lines.filter(|line| line.starts_with(sign)).count()
    };
    assert_eq!((changed('-'), changed('+')), (2, 5), "{diff}");
}

#[test]
fn the_documentation_shows_what_comes_out() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new(env!("CARGO_BIN_EXE_probe-handler"))
        .args(["inject", "--diff", "-f", "docs/samples/liveness-http.yaml"])
        .current_dir(&root)
        .output()
        .expect("probe-handler runs");
    let documentation = fs::read_to_string(root.join("docs/inject.md")).expect("it is there");
    let diff = text(&output.stdout);
    assert!(
        diff.contains("+++") && documentation.contains(&diff),
        "{diff}"
    );
}

#[test]
fn port_and_prefix_are_options() {
    let (path, _) = sample("liveness-http.yaml");
    let injected = good(
        &[
            "-f",
            &path,
            "--rewrite-port",
            "19999",
            "--rewrite-prefix",
            "/ph",
        ],
        "",
    );
    assert!(injected.contains("path: /ph/app-health/liveness-http/livez"));
    assert!(injected.contains("port: 19999"));
}

#[test]
fn unchanged_probes_are_reported_on_standard_error() {
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - name: web\n    livenessProbe: {httpGet: {port: nowhere}}\n";
    let output = inject(&["-f", "-"], manifest);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), manifest);
    assert_eq!(
        text(&output.stderr),
        "standard input: document 1, Pod web: container \"web\", livenessProbe: httpGet.port \"nowhere\" is neither a port name of this container nor a number; unchanged\n"
    );
}

#[test]
fn what_is_no_yaml_fails_with_its_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("bad.yaml");
    fs::write(&path, "a: 1\n---\nb: 1\nc: [1\nd: 2\n").expect("written");
    let path = path.display().to_string();
    let output = inject(&["-f", &path], "");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(
        text(&output.stderr),
        format!(
            "{path}: document 2, line 5: while parsing a flow sequence, did not find expected ',' or ']'\n"
        )
    );
    for (args, input) in [
        (["-f", "/nonexistent/x.yaml"], ""),
        (["-f", "/"], ""),
        (["-f", "-"], "a: [\n"),
    ] {
        let output = inject(&args, input);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(text(&output.stdout), "");
        assert!(!output.stderr.is_empty());
    }
    fs::write(dir.path().join("latin1"), b"a: \xe9\n").expect("written");
    let latin1 = dir.path().join("latin1").display().to_string();
    assert_eq!(inject(&["-f", &latin1], "").status.code(), Some(1));
}

#[test]
fn bad_usage_exits_64() {
    for args in [
        &[][..],
        &["-f"],
        &["-f", "-", "--rewrite-port", "0"],
        &["-f", "-", "--rewrite-port", "65536"],
        &["-f", "-", "--rewrite-prefix", "no-slash"],
        &["-f", "-", "--revert=maybe"],
        &["-f", "-", "extra"],
    ] {
        let output = inject(args, "");
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert_eq!(text(&output.stdout), "");
    }
}

#[test]
fn every_workload_and_list_goes_through_in_order() {
    let pod = |indent: usize| {
        let pad = " ".repeat(indent);
        format!(
            "{pad}spec:\n{pad}  containers:\n{pad}  - name: web\n{pad}    startupProbe:\n{pad}      grpc: {{port: 9000, service: db}}\n"
        )
    };
    let mut manifest = String::new();
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("apps/v1", "ReplicaSet"),
        ("v1", "ReplicationController"),
        ("batch/v1", "Job"),
    ] {
        manifest += &format!(
            "apiVersion: {version}\nkind: {kind}\nspec:\n  template:\n{}---\n",
            pod(4)
        );
    }
    manifest += "kind: ConfigMap\ndata:\n  a: 'yes'   # kept\n---\n";
    manifest += &format!(
        "apiVersion: batch/v1\nkind: CronJob\nspec:\n  jobTemplate:\n    spec:\n      template:\n{}---\n",
        pod(8)
    );
    manifest += &format!(
        "apiVersion: v1\nkind: List\nitems:\n- kind: Secret\n- apiVersion: v1\n  kind: Pod\n{}",
        pod(2)
    );
    let injected = good(&["-f", "-"], &manifest);
    assert_eq!(
        injected.matches("path: /app-health/web/startupz").count(),
        8
    );
    assert_eq!(injected.matches("grpc: {").count(), 0);
    let kinds = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.contains("kind: "));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(kinds(&injected), kinds(&manifest));
    assert!(injected.contains("kind: ConfigMap\ndata:\n  a: 'yes'   # kept\n---\n"));
    let reverted = good(&["-f", "-", "--revert"], &injected);
    assert_eq!(reverted.matches("grpc:").count(), 8);
    assert_eq!(reverted.matches("service: db").count(), 8);
    assert_eq!(reverted.matches("probe-handler.io").count(), 0);
    assert_eq!(good(&["-f", "-"], &reverted), injected);
}
