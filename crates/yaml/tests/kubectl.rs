//! Compares this parser with kubectl: `kubectl.json` lists texts and what kubectl reads.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::Value;

use yaml::stream;

/// The texts of the table, each with the values that kubectl reads; none where it refuses the text.
fn table() -> Vec<(String, Option<Vec<Value>>)> {
    let table: Value = serde_json::from_str(include_str!("kubectl.json")).unwrap();
    let head = table["head"].as_str().unwrap();
    let cases = table["cases"].as_array().unwrap();
    cases
        .iter()
        .map(|case| {
            let text = case[0].as_str().unwrap().replace("<head>", head);
            (text, case[1].as_array().cloned())
        })
        .collect()
}

/// The field `data` of each object of `text`.
fn read(text: &str) -> Option<Vec<Value>> {
    let documents: Option<Vec<Value>> = stream::parts(text)
        .into_iter()
        .map(|part| part.document.ok()?.to_json(1).ok())
        .collect();
    let objects = documents?.into_iter().filter(|object| !object.is_null());
    Some(objects.map(|mut object| object["data"].take()).collect())
}

/// Numbers are equal if they are nearly the same float: kubectl converts large ones, and serde_json may round the table's
/// differently.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= f64::EPSILON * a.abs(),
            _ => false,
        },
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, value)| b.get(key).is_some_and(|b| is_same(value, b)))
        }
        _ => a == b,
    }
}

#[test]
fn texts_are_read_as_kubectl_reads_them() {
    let table = table();
    assert!(table.len() > 500);
    let mut wrong = Vec::new();
    for (text, kubectl) in table {
        let ours = read(&text).map(Value::Array);
        let kubectl = kubectl.map(Value::Array);
        let same = match (&ours, &kubectl) {
            (Some(ours), Some(kubectl)) => is_same(ours, kubectl),
            (None, None) => true,
            _ => false,
        };
        if !same {
            wrong.push(format!(
                "{text:?}\n  kubectl: {kubectl:?}\n  here:    {ours:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_text_is_read_or_refused_and_nodes_are_inside_it(
        case in any::<prop::sample::Index>(),
        places in prop::collection::vec((any::<prop::sample::Index>(), 0..4usize), 0..4),
        with in "([-\\[\\]{},:?#&*!|>'\"%@`\\\\~ \t\n0a\u{85}\u{feff}]|---\n|\\.\\.\\.\n|<<: |!!str ){0,3}",
    ) {
        static TEXTS: LazyLock<Vec<String>> =
            LazyLock::new(|| table().into_iter().map(|(text, _)| text).collect());
        let mut text = case.get(&TEXTS).clone();
        for (at, length) in places {
            let boundary = |at: usize| (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap();
            let at = at.index(text.len() + 1);
            let range = boundary(at)..boundary(at + length);
            text.replace_range(range, &with);
        }
        for part in stream::parts(&text) {
            for node in part.document.iter().flat_map(|document| &document.nodes) {
                prop_assert!(text.get(node.span.clone()).is_some(), "{text:?} {node:?}");
            }
        }
    }
}
