//! Removes the queries of probes' paths, which may contain a secret, from output that the user may send to
//! others.

use serde_json::Value;

/// Replaces a query.
const REMOVED: &str = "?(removed)";

/// `check` without the values of a query.
pub fn check(check: &str) -> String {
    match check.split_once('?') {
        Some((path, _)) => format!("{path}{REMOVED}"),
        None => check.to_owned(),
    }
}

/// The queries in a state.
#[derive(Clone, Debug, Default)]
pub struct Queries(Vec<String>);

impl Queries {
    /// The queries of all probes in a state, even if a daemon of another version wrote it.
    pub fn of(state: &Value) -> Self {
        let mut queries = Vec::new();
        collect(state, &mut queries);
        // Replaces a query that contains another one before that one.
        queries.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        queries.dedup();
        Self(queries)
    }

    /// `text` without the queries, even if it is JSON.
    pub fn remove(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for query in &self.0 {
            text = text.replace(query.as_str(), REMOVED);
            let quoted = serde_json::Value::from(query.as_str()).to_string();
            text = text.replace(quoted.trim_matches('"'), REMOVED);
        }
        text
    }
}

/// Adds the queries of the fields that contain paths: `target` of served probes, `check` of observed ones.
fn collect(state: &Value, queries: &mut Vec<String>) {
    match state {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if matches!(name.as_str(), "target" | "check") => {
                        let query = text.split_once('?').map(|(_, query)| query);
                        let query = query.filter(|query| !query.is_empty());
                        queries.extend(query.map(|query| format!("?{query}")));
                    }
                    value => collect(value, queries),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, queries)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use status_view::fixtures::status;

    #[test]
    fn a_query_is_removed_from_every_text_of_its_node() {
        let mut status = status();
        status.pods[0].probes[0].target = Some("/health?token=a\"b".to_owned());
        let json = serde_json::to_value(&status).expect("JSON");
        let queries = Queries::of(&json);
        let json = json.to_string();
        for text in [json.as_str(), "GET /health?token=a\"b failed"] {
            let text = queries.remove(text);
            assert!(!text.contains("token="), "{text}");
            assert!(text.contains("/health?(removed)"), "{text}");
        }
        assert_eq!(check("http:80/a?b=c"), "http:80/a?(removed)");
        assert_eq!(check("http:80/a"), "http:80/a");
    }
}
