//! YAML text.

use webhook::rewrite::{Rewriting, admit_in};

/// A text of manifests: the places of nodes are in the text, between characters.
pub fn yaml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(documents) = yaml::tree::parse(text) {
        for document in &documents {
            for node in &document.nodes {
                assert!(text.get(node.span.clone()).is_some(), "{:?}", node.span);
            }
            let _ = document.to_json(1);
        }
    }
    let _ = pods::manifest::parse(text);
}

/// `probe-handler inject`: the changed text is valid, and changing it again changes nothing.
pub fn inject(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let rewriting = Rewriting::default();
    let change = |text: &str| {
        inject::manifest::change(text, |namespace, pod| admit_in(namespace, pod, &rewriting))
    };
    let Ok(once) = change(text) else {
        return;
    };
    if once.changed == 0 {
        assert_eq!(once.text, text);
    }
    let again = change(&once.text).expect("the changed text is valid");
    assert_eq!((again.changed, &again.text), (0, &once.text));
}
