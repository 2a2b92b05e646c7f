//! Values as YAML, in block style and in flow style.

use serde_json::Value;

use yaml::scalar::resolve;

/// What follows the colon of a key in column `indent` of a block mapping. No newline at its end.
pub fn block(value: &Value, indent: usize, newline: &str) -> String {
    match value {
        Value::Object(map) if !map.is_empty() => {
            let inner = indent + 2;
            let start = format!("{newline}{}", " ".repeat(inner));
            map.iter()
                .map(|(key, value)| {
                    let value = block(value, inner, newline);
                    format!("{start}{}:{value}", string(key))
                })
                .collect()
        }
        value => format!(" {}", inline(value)),
    }
}

/// A value on one line, in a block mapping.
pub fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        other => flow(other, true),
    }
}

/// A value in flow style; in JSON, if `json`.
pub fn flow(value: &Value, json: bool) -> String {
    match value {
        Value::Object(map) => {
            let entries = map
                .iter()
                .map(|(key, value)| format!("{}: {}", flow_string(key, json), flow(value, json)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => {
            let items = items.iter().map(|item| flow(item, json));
            format!("[{}]", items.collect::<Vec<_>>().join(", "))
        }
        Value::String(text) => flow_string(text, json),
        other => other.to_string(),
    }
}

/// A string in flow style; a key too.
pub fn flow_string(text: &str, json: bool) -> String {
    if json { quoted(text) } else { string(text) }
}

/// A string in block style: plain if no YAML reader could take it for another type.
pub fn string(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/-_.".contains(&b))
        && resolve(text).is_string();
    if plain {
        text.to_owned()
    } else if text.contains('"') && !text.contains(is_special) {
        format!("'{}'", text.replace('\'', "''"))
    } else {
        // YAML accepts JSON's escapes.
        quoted(text)
    }
}

/// A string in double quotes.
fn quoted(text: &str) -> String {
    let json = Value::from(text).to_string();
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if is_special(c) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Characters that YAML rejects, or reads as a line break or as the mark of a byte order. All are in the basic plane.
fn is_special(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use yaml::tree::parse;

    #[test]
    fn strings_that_could_be_something_else_are_quoted() {
        for (text, yaml) in [
            ("web", "web"),
            ("/app-health/web/livez", "/app-health/web/livez"),
            ("probe-handler.io/probes", "probe-handler.io/probes"),
            ("HTTP", "HTTP"),
            ("false", "\"false\""),
            ("yes", "\"yes\""),
            ("n", "\"n\""),
            ("on", "\"on\""),
            ("null", "\"null\""),
            ("1", "\"1\""),
            ("0644", "\"0644\""),
            ("1e3", "\"1e3\""),
            (".5", "\".5\""),
            ("-", "\"-\""),
            ("a: b", "\"a: b\""),
            ("it's", "\"it's\""),
            ("say \"it's\"", "'say \"it''s\"'"),
            ("*", "\"*\""),
            ("", "\"\""),
            ("a\nb\t", "\"a\\nb\\t\""),
            ("/a\u{7f}", "\"/a\\u007f\""),
            ("\"\u{7f}", "\"\\\"\\u007f\""),
            ("a\u{85}b\u{2028}", "\"a\\u0085b\\u2028\""),
        ] {
            assert_eq!(string(text), yaml);
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_rendered_is_read_again(key in "\\PC{0,12}", text in "([ -~]|\n|\t|ü|\u{1f600}|\u{7f}|\u{85}|\u{2028}|\u{feff}|\u{ffff}|\u{0}){0,20}", number: i64) {
            let value = json!({key.clone(): {"a": text.clone(), "b": [text, number, null, true, {}]}, "z": number});
            let block = format!("top:{}", block(&value, 0, "\n"));
            let read = parse(&block).unwrap()[0].to_json(1).unwrap();
            proptest::prop_assert_eq!(&read["top"], &value, "{}", block);
            for json in [true, false] {
                let flow = flow(&value, json);
                let read = parse(&flow).unwrap()[0].to_json(1).unwrap();
                proptest::prop_assert_eq!(&read, &value, "{}", flow);
            }
            proptest::prop_assert_eq!(serde_json::from_str::<Value>(&flow(&value, true)).unwrap(), value);
        }
    }
}
