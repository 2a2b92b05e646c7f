//! Reads the pods of a manifest file: several YAML or JSON documents, each a Pod or a List of
//! Pods. A document that can't be read does not affect the others.

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::Value;

use yaml::stream;

/// The content of a manifest file.
#[derive(Debug, Default, PartialEq)]
pub struct Manifest {
    /// Its pods, each with its place in the file (`document 2`, `document 1, items[0]`).
    pub pods: Vec<(String, Pod)>,
    /// What could not be read, each beginning with its place in the file.
    pub problems: Vec<String>,
    /// Whether a part that could not be read may be a pod.
    pub garbled: bool,
}

impl Manifest {
    /// Adds a problem with a part that may be a pod but can't be read.
    fn garble(&mut self, problem: String) {
        self.problems.push(problem);
        self.garbled = true;
    }
}

/// Reads the text of a manifest file, YAML or JSON.
pub fn parse(text: &str) -> Manifest {
    let mut manifest = Manifest::default();
    let parts = stream::parts(text).into_iter().filter(|part| !part.blank);
    for (part, number) in parts.zip(1..) {
        let place = format!("document {number}");
        let value = part
            .document
            .map_err(|fault| (fault.line, fault.what))
            .and_then(|document| {
                let value = document.to_json(number);
                value.map_err(|error| (error.line, error.what))
            });
        match value {
            Ok(value) => add(place, value, &mut manifest),
            Err((line, what)) => manifest.garble(format!("{place}: line {line}: {what}")),
        }
    }
    manifest
}

fn add(place: String, value: Value, manifest: &mut Manifest) {
    let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    match field("kind") {
        "Pod" => add_pod(place, value, manifest),
        "List" | "PodList" => add_list(&place, value, manifest),
        "" => manifest.garble(format!("{place}: kind is missing, must be Pod or List")),
        kind => manifest
            .problems
            .push(format!("{place}: kind is {kind:?}, must be Pod or List")),
    }
}

fn add_list(place: &str, mut list: Value, manifest: &mut Manifest) {
    let bare_pods = list.get("kind").and_then(Value::as_str) == Some("PodList");
    let items = match list.get_mut("items").map(std::mem::take) {
        Some(Value::Array(items)) => items,
        None | Some(Value::Null) => Vec::new(),
        Some(_) => {
            manifest.garble(format!("{place}: items is not a list"));
            return;
        }
    };
    for (index, item) in items.into_iter().enumerate() {
        let place = format!("{place}, items[{index}]");
        match item.get("kind").and_then(Value::as_str) {
            Some("Pod") => add_pod(place, item, manifest),
            // The items of a PodList need no kind.
            None if bare_pods => add_pod(place, item, manifest),
            kind => manifest.problems.push(format!(
                "{place}: kind is {:?}, must be Pod",
                kind.unwrap_or_default()
            )),
        }
    }
}

fn add_pod(place: String, value: Value, manifest: &mut Manifest) {
    match value.get("apiVersion") {
        None => {}
        Some(Value::String(version)) if version == "v1" => {}
        Some(version) => {
            let version = version.as_str().unwrap_or("no string");
            manifest.garble(format!("{place}: apiVersion is {version:?}, must be v1"));
            return;
        }
    }
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    match Pod::deserialize(tracked) {
        Ok(pod) => manifest.pods.push((place, pod)),
        Err(error) => {
            let path = track.path().to_string();
            // The error's message may begin with the path too.
            let text = error.to_string();
            let text = text.strip_prefix(&format!("{path}: ")).unwrap_or(&text);
            manifest.garble(match path.as_str() {
                "." => format!("{place}: {text}"),
                path => format!("{place}: {path}: {text}"),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(manifest: &Manifest) -> Vec<(&str, &str)> {
        manifest
            .pods
            .iter()
            .map(|(place, pod)| (place.as_str(), pod.metadata.name.as_deref().unwrap()))
            .collect()
    }

    #[test]
    fn a_file_may_contain_several_documents() {
        let text = "# made by hand\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n\
            ---\n\n--- # nothing\n---\nkind: Pod\nmetadata:\n  name: b\n...\n";
        let manifest = parse(text);
        assert_eq!(manifest.problems, Vec::<String>::new());
        assert_eq!(names(&manifest), [("document 1", "a"), ("document 2", "b")]);
    }

    #[test]
    fn consecutive_json_documents_are_read() {
        let text = r#"{"kind":"Pod","metadata":{"name":"a"}}
            {"kind":"Pod","metadata":{"name":"b"}}"#;
        let manifest = parse(text);
        assert_eq!(names(&manifest), [("document 1", "a"), ("document 2", "b")]);
    }

    #[test]
    fn the_pods_of_a_list_are_read() {
        let text = "kind: List\nitems:\n- kind: Pod\n  metadata: {name: a}\n- kind: Service\n\
            ---\nkind: PodList\nitems:\n- metadata: {name: b}\n---\nkind: List\n---\nkind: List\nitems: 7\n";
        let manifest = parse(text);
        assert_eq!(
            names(&manifest),
            [("document 1, items[0]", "a"), ("document 2, items[0]", "b")]
        );
        assert_eq!(
            manifest.problems,
            [
                "document 1, items[1]: kind is \"Service\", must be Pod",
                "document 4: items is not a list"
            ]
        );
    }

    #[test]
    fn an_invalid_document_does_not_affect_the_others() {
        let good = "kind: Pod\nmetadata: {name: good}\n";
        for (bad, problem) in [
            (
                "kind: Service",
                "document 1: kind is \"Service\", must be Pod or List",
            ),
            ("a: 1", "document 1: kind is missing, must be Pod or List"),
            (
                "just text",
                "document 1: kind is missing, must be Pod or List",
            ),
            (
                "kind: Pod\napiVersion: v2",
                "document 1: apiVersion is \"v2\", must be v1",
            ),
            (
                "kind: Pod\nspec:\n  containers:\n  - name: a\n    livenessProbe:\n      tcpSocket: {port: true}",
                "document 1: spec.containers[0].livenessProbe.tcpSocket.port: invalid type: boolean `true`, expected IntOrString",
            ),
            (
                "kind: Pod\nmetadata:\n  annotations: {a: 1}",
                "document 1: metadata.annotations.a: invalid type: integer `1`, expected a string",
            ),
            (
                "kind: Pod\nmetadata: {name: a\n",
                "document 1: line 5: while parsing a flow mapping, did not find expected ',' or '}'",
            ),
        ] {
            let manifest = parse(&format!("---\n{bad}\n---\n{good}"));
            assert_eq!(manifest.problems, [problem], "{bad}");
            assert_eq!(names(&manifest), [("document 2", "good")], "{bad}");
        }
    }

    #[test]
    fn an_error_names_the_line_of_the_file() {
        let manifest = parse("kind: Pod\n---\nkind: Pod\nmetadata: [\n---\n");
        assert_eq!(manifest.problems.len(), 1);
        assert!(
            manifest.problems[0].contains("line 5:"),
            "{}",
            manifest.problems[0]
        );
    }

    #[test]
    fn scalars_have_the_types_that_kubectl_gives_them() {
        // Octal numbers and booleans of YAML 1.1 are common in manifests.
        let text = "kind: Pod\nmetadata: {name: a}\nspec:\n  hostNetwork: no\n  containers: []\n  \
                    volumes:\n  - name: v\n    configMap: {name: c, defaultMode: 0644}\n";
        let manifest = parse(text);
        assert_eq!(manifest.problems, Vec::<String>::new());
        let spec = manifest.pods[0].1.spec.as_ref().unwrap();
        assert_eq!(spec.host_network, Some(false));
        let volume = &spec.volumes.as_ref().unwrap()[0];
        assert_eq!(
            volume.config_map.as_ref().unwrap().default_mode,
            Some(0o644)
        );
    }

    #[test]
    fn an_alias_bomb_is_an_error() {
        let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (this, last) in ('b'..='i').zip('a'..) {
            bomb += &format!(
                "{this}: &{this} [{}]\n",
                vec![format!("*{last}"); 9].join(",")
            );
        }
        let manifest = parse(&bomb);
        assert_eq!(manifest.pods, []);
        assert_eq!(manifest.problems.len(), 1);
    }

    #[test]
    fn an_alias_bomb_of_a_few_long_texts_is_an_error() {
        let aliases = vec!["*a"; 10_000].join(",");
        let long = "x".repeat(100_000);
        for text in [format!("\"{long}\""), format!("{{? \"{long}\" : 1}}")] {
            let bomb = format!("a: &a {text}\nb: [{aliases}]\n");
            let manifest = parse(&bomb);
            assert_eq!(manifest.pods, []);
            assert_eq!(manifest.problems.len(), 1);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_causes_a_panic(text in "([a-z:{}\\[\\]&*!|>#%,'\" -]|\n|---\n){0,60}") {
            let _ = parse(&text);
        }
    }
}
