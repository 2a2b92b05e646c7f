//! Parses only the part of a Pod's JSON that rewriting reads. The rest (volumes, environment, tolerations,
//! managed fields ...) is most of a Pod, and is skipped as text.
//!
//! Containers keep their indexes, so that a patch of the part is a patch of the whole.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use pods::probers::{ISTIO_PROBERS, ISTIO_PROBES_LOCALHOST};

/// More values than the relevant part of any Pod has. Limited because a value takes up to 640 bytes of memory, so
/// that 8 MiB of text could become a gigabyte.
const VALUES_MAX: usize = 100_000;

/// The relevant part of the Pod in `json`. A part that does not have the form of a Pod still does not have it
/// afterwards.
///
/// # Errors
/// It is not JSON, or has more values than any Pod.
pub fn of(json: &str) -> serde_json::Result<Value> {
    let left = Cell::new(VALUES_MAX);
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let pod = Part {
        keep: &POD,
        left: &left,
    }
    .deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(pod)
}

/// What to keep of a value.
enum Keep {
    /// The whole value.
    All,
    /// These members of an object.
    Members(&'static [(&'static str, Keep)]),
    /// This part of each element of an array. All elements are kept.
    Each(&'static Keep),
    /// From an array of environment variables, those with these names.
    Variables(&'static [&'static str]),
}

const POD: Keep = Keep::Members(&[
    ("apiVersion", Keep::All),
    ("kind", Keep::All),
    (
        "metadata",
        Keep::Members(&[
            ("namespace", Keep::All),
            ("annotations", Keep::All),
            ("labels", Keep::All),
        ]),
    ),
    (
        "spec",
        Keep::Members(&[
            ("hostNetwork", Keep::All),
            ("os", Keep::All),
            ("nodeSelector", Keep::All),
            ("initContainers", Keep::Each(&CONTAINER)),
            ("containers", Keep::Each(&CONTAINER)),
        ]),
    ),
]);

const CONTAINER: Keep = Keep::Members(&[
    ("name", Keep::All),
    ("ports", Keep::All),
    (
        "env",
        Keep::Variables(&[ISTIO_PROBERS, ISTIO_PROBES_LOCALHOST]),
    ),
    ("restartPolicy", Keep::All),
    ("livenessProbe", Keep::All),
    ("readinessProbe", Keep::All),
    ("startupProbe", Keep::All),
    ("lifecycle", Keep::All),
]);

/// A key, borrowed where it can be.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// An environment variable.
#[derive(Deserialize)]
struct Variable<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    /// `None` if it has a `valueFrom`.
    #[serde(borrow)]
    value: Option<&'a RawValue>,
}

/// A part of a value.
#[derive(Clone, Copy)]
struct Part<'a> {
    keep: &'a Keep,
    /// How many more values are allowed.
    left: &'a Cell<usize>,
}

impl<'a> Part<'a> {
    fn of(self, keep: &'a Keep) -> Self {
        Self { keep, ..self }
    }

    /// What to keep of member `key`; `None`: nothing.
    fn member(self, key: &str) -> Option<Self> {
        match self.keep {
            Keep::Members(members) => members
                .iter()
                .find(|(name, _)| *name == key)
                .map(|(_, keep)| self.of(keep)),
            _ => Some(self.of(&Keep::All)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => {
                return Err(D::Error::custom(format_args!(
                    "more than {VALUES_MAX} values"
                )));
            }
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        match self.keep {
            // An array where an object is expected: its elements do not matter.
            Keep::Members(_) => while sequence.next_element::<IgnoredAny>()?.is_some() {},
            Keep::All => {
                while let Some(element) = sequence.next_element_seed(self)? {
                    array.push(element);
                }
            }
            Keep::Each(keep) => {
                while let Some(element) = sequence.next_element_seed(self.of(keep))? {
                    array.push(element);
                }
            }
            Keep::Variables(names) => {
                let mut kept = Vec::new();
                while let Some(variable) = sequence.next_element::<Variable<'de>>()? {
                    let name = variable.name.as_ref();
                    // The first variable of a name applies.
                    if names.contains(&name) && !kept.iter().any(|kept: &String| kept == name) {
                        kept.push(name.to_owned());
                        let value = variable.value.map_or("null", RawValue::get);
                        let value: Option<String> =
                            serde_json::from_str(value).map_err(A::Error::custom)?;
                        array.push(json!({"name": name, "value": value}));
                    }
                }
            }
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(Key(key)) = members.next_key()? {
            match self.member(&key) {
                Some(part) => {
                    drop(object.insert(key.into_owned(), members.next_value_seed(part)?));
                }
                None => drop(members.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arbitrary::pod;
    use crate::rewrite::{Rewriting, admit};

    proptest! {
        #[test]
        fn rewriting_the_part_is_rewriting_the_whole(pod in pod()) {
            let part = of(&pod.to_string()).unwrap();
            prop_assert_eq!(
                admit(&part, &Rewriting::default()),
                admit(&pod, &Rewriting::default())
            );
        }
    }

    #[test]
    fn containers_keep_their_places() {
        let pod = json!({
            "metadata": {"annotations": {"a": "b"}, "managedFields": [{"manager": "kubectl"}]},
            "spec": {
                "volumes": [{"name": "data"}],
                "containers": [
                    null,
                    {"name": "web", "image": "web:1", "livenessProbe": {"unknown": [1, {"x": null}]}},
                    7,
                ],
            },
            "status": {"phase": "Pending"},
        });
        let part = json!({
            "metadata": {"annotations": {"a": "b"}},
            "spec": {"containers": [
                null, {"name": "web", "livenessProbe": {"unknown": [1, {"x": null}]}}, 7,
            ]},
        });
        assert_eq!(of(&pod.to_string()).unwrap(), part);
    }

    #[test]
    fn the_variables_with_istios_originals_are_kept() {
        let from = json!({"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}});
        let probers = json!({"name": ISTIO_PROBERS, "value": "{\"/app-health/web/livez\":{}}"});
        let pod =
            |env: Value| json!({"spec": {"containers": [{"name": "istio-proxy", "env": env}]}});
        let again = json!({"name": ISTIO_PROBERS, "value": "{}"});
        let whole = pod(json!([from, {"name": "A", "value": "b"}, probers, again]));
        assert_eq!(of(&whole.to_string()).unwrap(), pod(json!([probers])));
    }

    #[test]
    fn a_value_that_is_not_a_pod_does_not_become_one() {
        for (odd, part) in [
            ("null", json!(null)),
            ("[{}]", json!([])),
            (r#"{"spec": [1]}"#, json!({"spec": []})),
            (r#"{"metadata": "x"}"#, json!({"metadata": "x"})),
            (
                r#"{"spec": {"containers": {"name": "x"}}}"#,
                json!({"spec": {"containers": {"name": "x"}}}),
            ),
        ] {
            assert_eq!(of(odd).unwrap(), part, "{odd}");
        }
        for broken in ["", "{", "{} {}", r#"{"spec": {"volumes": [}}"#] {
            assert!(of(broken).is_err(), "{broken}");
        }
        for odd in ["\"\\ud800\"", "1e999", "{}", &"[".repeat(200)] {
            let env = format!(r#"[{{"name": "{ISTIO_PROBERS}", "value": {odd}}}]"#);
            let pod = format!(r#"{{"spec": {{"containers": [{{"env": {env}}}]}}}}"#);
            assert!(of(&pod).is_err(), "{odd}");
        }
    }

    #[test]
    fn only_values_of_the_relevant_part_are_limited() {
        let many = format!("[0{}]", ",0".repeat(VALUES_MAX));
        let error = of(&format!(r#"{{"metadata": {{"labels": {many}}}}}"#)).unwrap_err();
        assert!(
            error.to_string().contains("more than 100000 values"),
            "{error}"
        );
        assert!(of(&format!(r#"{{"status": {many}}}"#)).is_ok());
    }
}
