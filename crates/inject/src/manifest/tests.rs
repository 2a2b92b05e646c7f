//! Whole manifests: what changes, and above all what does not.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use webhook::arbitrary::{is_original, pod};
use webhook::revert::revert;
use webhook::rewrite::{Rewriting, admit_in};

fn admission(namespace: Option<&str>, pod: &Value) -> Admission {
    admit_in(namespace, pod, &Rewriting::default())
}

fn reversion(_namespace: Option<&str>, pod: &Value) -> Admission {
    revert(pod)
}

fn injected(text: &str) -> Outcome {
    change(text, admission).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn reverted(text: &str) -> String {
    change(text, reversion)
        .unwrap_or_else(|e| panic!("{e}\n{text}"))
        .text
}

fn values(text: &str) -> Vec<Value> {
    let documents = tree::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let number = |(index, document): (usize, &Document)| document.to_json(index + 1).unwrap();
    documents.iter().enumerate().map(number).collect()
}

/// The expected result of [`injected`], computed from JSON.
fn expected(text: &str) -> Vec<Value> {
    let mut values = values(text);
    for object in &mut values {
        let original = object.clone();
        for workloads::Place { at, namespace } in workloads::pods(&original) {
            let pod = at.resolve_mut(object).unwrap();
            let patch = admission(namespace, pod).patch;
            json_patch::patch(pod, &patch).unwrap();
        }
    }
    values
}

const DEPLOYMENT: &str = "\
# Who: the shop team
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web   # also the Service's
spec:
  replicas: 2
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      # the app
      - name: web
        ports: [{name: http, containerPort: 8080}]
        livenessProbe:
          # is it alive?
          httpGet:
            path: /live   # the cheap one
            port: http
          periodSeconds: 3
        readinessProbe:
          tcpSocket:
            port: 5432
          # the database is slow
          timeoutSeconds: 2
";

#[test]
fn only_the_probes_and_the_annotations_change() {
    let outcome = injected(DEPLOYMENT);
    assert_eq!((outcome.changed, outcome.warnings.len()), (2, 0));
    assert_eq!(
        outcome.text,
        "\
# Who: the shop team
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web   # also the Service's
spec:
  replicas: 2
  template:
    metadata:
      annotations:
        probe-handler.io/probes: '{\"/app-health/web/livez\":{\"declaredPort\":\"http\",\"httpGet\":{\"path\":\"/live\",\"port\":8080}},\"/app-health/web/readyz\":{\"tcpSocket\":{\"port\":5432},\"timeoutSeconds\":2}}'
        sidecar.istio.io/rewriteAppHTTPProbers: \"false\"
      labels: {app: web}
    spec:
      containers:
      # the app
      - name: web
        ports: [{name: http, containerPort: 8080}]
        livenessProbe:
          # is it alive?
          httpGet:
            path: /app-health/web/livez   # the cheap one
            port: 15020
          periodSeconds: 3
        readinessProbe:
          httpGet:
            path: /app-health/web/readyz
            port: 15020
          # the database is slow
          timeoutSeconds: 2
"
    );
    assert_eq!(reverted(&outcome.text), DEPLOYMENT);
    assert_eq!(injected(&outcome.text).text, outcome.text);
}

#[test]
fn the_annotation_on_the_pod_counts_not_the_one_on_the_deployment() {
    let annotations = "annotations: {sidecar.istio.io/rewriteAppHTTPProbers: \"false\"}\n";
    let on_deployment =
        DEPLOYMENT.replacen("metadata:\n", &format!("metadata:\n  {annotations}"), 1);
    assert_eq!(injected(&on_deployment).changed, 2);
    let on_pod = DEPLOYMENT.replace(
        "    metadata:\n",
        &format!("    metadata:\n      {annotations}"),
    );
    assert_eq!(injected(&on_pod).text, on_pod);
}

#[test]
fn what_kubectl_reads_is_edited_in_place() {
    for (from, to) in [
        (
            "[{name: http, containerPort: 8080}]",
            "[\n        {name: http, containerPort: 8080}\n        ]",
        ),
        ("port: 5432", "port:\t\t5432"),
        (
            "          periodSeconds: 3\n",
            "          periodSeconds: 2\n          periodSeconds: 3\n",
        ),
    ] {
        let text = DEPLOYMENT.replace(from, to);
        assert_ne!(text, DEPLOYMENT);
        let expected = injected(DEPLOYMENT).text.replace(from, to);
        if from == "port: 5432" {
            assert_eq!(
                values(&injected(&text).text),
                values(&expected.replace(to, from))
            );
        } else {
            assert_eq!(injected(&text).text, expected);
        }
    }
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"\ud83d\ude00"},"spec":{"containers":[{"name":"web","livenessProbe":{"tcpSocket":{"port":1}}}]}}"#;
    let outcome = injected(&format!("{pod}\n{pod}\n"));
    assert_eq!(outcome.changed, 2);
    assert!(outcome.text.contains(r"\ud83d\ude00"));
}

#[test]
fn a_document_written_from_scratch_keeps_the_meaning_of_binaries_and_special_characters() {
    let text = "apiVersion: v1\nkind: Pod\nx: &p {tcpSocket: {port: 07070}}\ny: !!binary aGk=\nz: \"/a\\x7f\"\nspec:\n  containers:\n  - name: web\n    livenessProbe: {<<: *p}\n";
    let changed = injected(text).text;
    assert!(changed.contains("y: hi\n"), "{changed}");
    assert!(changed.contains(r#"z: "/a\u007f""#), "{changed}");
    assert!(changed.contains(r#""port":3640"#), "{changed}");
}

#[test]
fn pods_that_no_mesh_injects_stay_byte_for_byte() {
    let label = DEPLOYMENT.replace(
        "labels: {app: web}",
        "labels: {app: web, sidecar.istio.io/inject: \"false\"}",
    );
    let namespace = DEPLOYMENT.replacen("metadata:\n", "metadata:\n  namespace: kube-system\n", 1);
    for text in [label, namespace] {
        assert_eq!(injected(&text).text, text);
    }
}

#[test]
fn documents_without_pods_stay_byte_for_byte() {
    let others = "---   # first\nkind:   Service\nspec: { a: yes,b: 0o7 }\n...\n---\n---\n\n# nothing\n---\n|\n text\n---\n- 1\n-   {\"a\":   1e3}\n";
    assert_eq!(injected(others).text, others);
    let mixed = format!("{others}---\n{DEPLOYMENT}---\nkind:  Last # \u{1f600}");
    let text = injected(&mixed).text;
    assert!(text.starts_with(others));
    assert!(text.ends_with("---\nkind:  Last # \u{1f600}"));
    assert_eq!(
        text,
        format!(
            "{others}---\n{}---\nkind:  Last # \u{1f600}",
            injected(DEPLOYMENT).text
        )
    );
    assert_eq!(reverted(&text), mixed);
    for nothing in ["", "\n", "# only a comment\n", "---\n", "\u{feff}kind: Pod"] {
        assert_eq!(injected(nothing).text, nothing);
    }
}

#[test]
fn scalars_that_yaml_readers_disagree_about_stay_as_written() {
    let odd = "        env:
        - {name: A, value: \"yes\"}
        - {name: B, value: 'off'}
        - {name: C, value: \"0644\"}
        - {name: D, value: \"1_000\"}
        - {name: E, value: 2001-12-14}
        - {name: F, value: !!str 12}
        - name: G
          value: |+
            kept

        tty: yes
        stdin: No
        resources: {limits: {cpu: 1e-1, memory: 9223372036854775807}}
        tomorrow: [0x1F, 0o17, 017, 1:30, 18446744073709551615, 1.10, .5, +7, ~, Null, y]
";
    let volumes = "      volumes:
      - name: s
        secret: {secretName: x, defaultMode: 0400}
";
    let text = format!("{}{odd}{volumes}", DEPLOYMENT);
    let outcome = injected(&text);
    assert_eq!(outcome.warnings, [""; 0], "kubectl's YAML is supported");
    assert!(outcome.text.ends_with(&format!("{odd}{volumes}")));
    assert_eq!(reverted(&outcome.text), text);
}

#[test]
fn json_stays_json() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"containers": [
        {"name": "web", "livenessProbe": {"tcpSocket": {"port": 1}}}]}});
    for text in [
        pod.to_string(),
        serde_json::to_string_pretty(&pod).unwrap(),
        json!({"apiVersion": "v1", "kind": "List", "items": [pod, {"kind": "Service"}]})
            .to_string(),
    ] {
        let injected = injected(&text).text;
        let value: Value = serde_json::from_str(&injected).expect("JSON");
        assert_eq!(vec![value], expected(&text));
        let back: Value = serde_json::from_str(&reverted(&injected)).expect("JSON");
        assert_eq!(
            back.pointer("/spec/containers"),
            pod.pointer("/spec/containers").filter(|_| text
                .starts_with("{\"apiVersion\":\"v1\",\"kind\":\"Pod\"")
                || text.starts_with("{\n"))
        );
    }
}

#[test]
fn aliases_and_merge_keys_have_the_expected_result() {
    let head = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n";
    for spec in [
        // One probe for both, which differ afterwards.
        "spec:\n  containers:\n  - name: web\n    livenessProbe: &p {tcpSocket: {port: 1}}\n    readinessProbe: *p\n",
        "spec:\n  containers:\n  - name: web\n    livenessProbe: &p\n      tcpSocket: {port: 1}\n    readinessProbe: *p\n",
        // The anchor is inside the rewritten part, the alias outside.
        "spec:\n  containers:\n  - name: web\n    livenessProbe: {httpGet: &get {port: 80, path: /}}\n    tomorrow: *get\n",
        // Merged, in one case with another action.
        "x: &base {periodSeconds: 0o7, httpGet: {port: 80}}\nspec:\n  containers:\n  - name: web\n    livenessProbe:\n      <<: *base\n    readinessProbe: {<<: [*base], failureThreshold: 2}\n",
        "x: &base {tcpSocket: {port: 80}}\nspec:\n  containers:\n  - name: web\n    livenessProbe:\n      <<: *base\n      periodSeconds: 2\n",
        // Whole containers.
        "x: &c\n  name: web\n  livenessProbe:\n    grpc: {port: 9}\nspec:\n  containers: [*c]\n",
        // Unused anchors, tags, explicit keys.
        "spec: &spec\n  containers: &c\n  - &first name: web\n    livenessProbe: !!map\n      tcpSocket:\n        port: !!int \"80\"\n",
        "spec:\n  containers:\n  - name: web\n    livenessProbe:\n      ? tcpSocket\n      : {port: 80}\n",
        "spec:\n  containers:\n  -   livenessProbe:   {\n       tcpSocket:  {port: 80}}\n      name: web\n",
        "spec: {containers: [{name: web, livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}]}\n",
        "spec:\n  containers:\n  - name: web\n    livenessProbe:\n      httpGet:\n        path:\n        port: 80\n",
        "spec:\n  containers:\n  - name: web\n    livenessProbe:\n      httpGet:\n        path: >-\n          /live\n        port: 80\n        scheme: \"HTTPS\" # tls\n    image: x\n",
        "spec:\n  containers:\n  - name: web\n    livenessProbe: {\"httpGet\": {'port': 80}}\n",
    ] {
        let text = format!("{head}{spec}");
        let outcome = injected(&text);
        assert!(outcome.changed > 0, "{text}");
        assert_eq!(values(&outcome.text), expected(&text), "{}", outcome.text);
        assert_eq!(
            values(&reverted(&outcome.text))[0]["spec"],
            values(&text)[0]["spec"],
            "{}",
            outcome.text
        );
    }
}

#[test]
fn a_document_written_from_scratch_keeps_its_scalars() {
    let text = "apiVersion: v1\nkind: Pod\nx: &base {tcpSocket: {port: 0x50}}\nyes: 0644\nspec:\n  containers:\n  - name: web\n    tty: yes\n    tomorrow: [\"on\", '1', on, !!str 1, \"a\\nb\", {}]\n    livenessProbe: {<<: *base}\n";
    assert_eq!(
        injected(text).text,
        "apiVersion: v1\nkind: Pod\nx:\n  tcpSocket:\n    port: 0x50\nyes: 0644\nspec:\n  containers:\n  - name: web\n    tty: yes\n    tomorrow:\n    - \"on\"\n    - \"1\"\n    - on\n    - \"1\"\n    - \"a\\nb\"\n    - {}\n    livenessProbe:\n      httpGet:\n        path: /app-health/web/livez\n        port: 15020\nmetadata:\n  annotations:\n    probe-handler.io/probes: '{\"/app-health/web/livez\":{\"tcpSocket\":{\"port\":80}}}'\n    sidecar.istio.io/rewriteAppHTTPProbers: \"false\"\n"
    );
}

#[test]
fn lines_end_as_they_did_and_a_byte_order_mark_stays() {
    let text = format!("\u{feff}{}", DEPLOYMENT.replace('\n', "\r\n"));
    let outcome = injected(&text);
    assert_eq!(
        outcome.text,
        format!(
            "\u{feff}{}",
            injected(DEPLOYMENT).text.replace('\n', "\r\n")
        )
    );
    assert_eq!(reverted(&outcome.text), text);
}

#[test]
fn invalid_yaml_is_reported_with_its_place() {
    for (text, error) in [
        ("a: 1\n---\nb: [\n", "document 2, line 4: "),
        (
            "a: 1\n---\n? [1]\n: 2\n",
            "document 2, line 3: a key must be a scalar",
        ),
        ("a: *b\n", "document 1, line 1: "),
        (
            "a: &a [*a]\n",
            "document 1, line 1: nested deeper than 128, or in itself",
        ),
        (
            "a: {<<: 7}\n",
            "document 1, line 1: only mappings can be merged (`<<`)",
        ),
        ("{{ .Values.x }}: 1\n{{ end }}\n", "document 1, line "),
        ("a:\n\tb: 1\n", "document 1, line 2: "),
    ] {
        let error_text = change(text, reversion).expect_err(text).to_string();
        assert!(error_text.starts_with(error), "{error_text}");
    }
    let deep = format!("{}1", "- ".repeat(200));
    assert!(change(&deep, reversion).is_err());
    let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (this, last) in ('b'..='i').zip('a'..) {
        bomb += &format!(
            "{this}: &{this} [{}]\n",
            vec![format!("*{last}"); 9].join(",")
        );
    }
    let error_text = change(&bomb, reversion).expect_err("too large").to_string();
    assert!(
        error_text.contains("aliases expand this to more than"),
        "{error_text}"
    );
}

#[test]
fn warnings_say_which_object_they_are_about() {
    let text = "---\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, livenessProbe: {tcpSocket: {port: x}}}]}\n";
    assert_eq!(
        injected(text).warnings,
        [
            "document 2, Pod web: container \"a\", livenessProbe: tcpSocket.port \"x\" is neither a port name of this container nor a number; unchanged"
        ]
    );
    assert_eq!(injected(text).text, text);
}

#[test]
fn comments_that_are_lost_are_counted() {
    let anchored = "# first\napiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - &c  # second\n    \
                    name: a\n    livenessProbe: &p {tcpSocket: {port: 1}}\n    readinessProbe: *p\n";
    let outcome = injected(anchored);
    let kept = ["# first", "# second"].map(|comment| outcome.text.contains(comment));
    let lost = kept.iter().filter(|kept| !**kept).count();
    assert!(lost > 0, "{}", outcome.text);
    assert_eq!(
        outcome.warnings,
        [format!(
            "{lost} comments are lost, because their document had to be written anew: it has tags, anchors or merge keys"
        )]
    );
    let plain = "# first\napiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - name: a  # second\n    livenessProbe: \
                 {tcpSocket: {port: 1}}\n";
    assert_eq!(injected(plain).warnings, [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_pod_is_changed_as_its_json_would_be(pods in proptest::collection::vec(pod(), 1..3), style in 0..3u8) {
        let mut text = String::new();
        for pod in &pods {
            let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
                "spec": {"template": pod}});
            text += "---\n";
            let document = match style {
                0 => serde_yaml_ng::to_string(&deployment).unwrap(),
                1 => serde_json::to_string_pretty(&deployment).unwrap() + "\n",
                _ => serde_yaml_ng::to_string(pod).unwrap(),
            };
            text += &document.replacen("\nkind: ", " # a comment\nkind: ", 1);
        }
        let outcome = injected(&text);
        prop_assert_eq!(values(&outcome.text), expected(&text));
        prop_assert_eq!(&injected(&outcome.text).text, &outcome.text);
        if pods.iter().all(is_original) && outcome.changed > 0 {
            prop_assert_eq!(values(&reverted(&outcome.text)), values(&text));
        }
        // No document was written from scratch.
        let comments = |text: &str| text.matches("# a comment").count();
        prop_assert_eq!(comments(&outcome.text), comments(&text));
    }

    #[test]
    fn any_mutated_manifest_is_changed_correctly_or_refused(
        places in proptest::collection::vec((0..DEPLOYMENT.len(), 0..12usize), 0..4),
        with in proptest::collection::vec("(&a |\\*a|!!str |\\? |- |: |\\{|\\}|\\[|\\]|, |#|'|\"|\\||>|<<: |\n|\n  |  |ü|~|---\n|tcpSocket|httpGet|port: 1){0,3}", 4),
    ) {
        let mut text = DEPLOYMENT.to_owned();
        for ((at, length), with) in places.into_iter().zip(with) {
            let boundary = |at: usize| (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap();
            let range = boundary(at)..boundary(at + length);
            text.replace_range(range, &with);
        }
        if let Ok(outcome) = change(&text, admission) {
            prop_assert_eq!(values(&outcome.text), expected(&text));
            if outcome.changed == 0 {
                prop_assert_eq!(outcome.text, text);
            }
        }
    }
}
