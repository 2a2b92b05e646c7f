//! The value of a scalar as kubectl reads it: its YAML is 1.1 with parts of 1.2 (sigs.k8s.io/yaml,
//! goyaml.v2/resolve.go), so `yes` is a boolean and `0644` is octal.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Number, Value};

/// Base64 as Go's `StdEncoding` decodes it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// The value of a scalar.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// Null.
    Null,
    /// A boolean.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Another number; whole if it is written as such (`08`, `1e3`).
    Float(f64),
    /// Text.
    Text(String),
}

/// The value of an unquoted scalar in JSON; text if it has none.
pub fn resolve(text: &str) -> Value {
    typed(text)
        .to_json()
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// The value of an unquoted scalar.
pub fn typed(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Scalar::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Scalar::Bool(false)
        }
        ".nan" | ".NaN" | ".NAN" => Scalar::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Scalar::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Scalar::Float(f64::NEG_INFINITY),
        _ => number(text).unwrap_or_else(|| Scalar::Text(text.to_owned())),
    }
}

/// The value of a scalar with a tag, given in full.
///
/// # Errors
/// The text is not of the tag's type.
pub fn tagged(text: &str, tag: &str) -> Result<Scalar, String> {
    let mismatch = || format!("cannot decode `{text}` as {tag}");
    let found = match tag.strip_prefix("tag:yaml.org,2002:") {
        Some("binary") => return binary(text),
        Some(kind @ ("bool" | "int" | "float" | "null" | "timestamp")) => {
            match (kind, typed(text)) {
                ("float", Scalar::Int(int)) => {
                    #[expect(clippy::cast_precision_loss, reason = "as in Go")]
                    return Ok(Scalar::Float(int as f64));
                }
                ("bool", found @ Scalar::Bool(_))
                | ("int", found @ Scalar::Int(_))
                | ("float", found @ Scalar::Float(_))
                | ("null", found @ Scalar::Null) => found,
                // A timestamp is text in JSON.
                ("timestamp", found @ Scalar::Text(_)) if text.starts_with(is_digit) => found,
                _ => return Err(mismatch()),
            }
        }
        _ => Scalar::Text(text.to_owned()),
    };
    Ok(found)
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

/// Text in base64. As in Go's JSON, each byte that is not UTF-8 becomes U+FFFD.
fn binary(text: &str) -> Result<Scalar, String> {
    let compact = text.replace(['\r', '\n'], "");
    let bytes = BASE64
        .decode(compact)
        .map_err(|_| "!!binary value contains invalid base64 data".to_owned())?;
    let mut decoded = String::new();
    for chunk in bytes.utf8_chunks() {
        decoded.push_str(chunk.valid());
        decoded.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Ok(Scalar::Text(decoded))
}

impl Scalar {
    /// In JSON. `None` for infinity and what is not a number.
    pub fn to_json(&self) -> Option<Value> {
        Some(match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Number(Number::from_i128(*value)?),
            Self::Float(value) => Value::Number(float_to_json(*value)?),
            Self::Text(text) => Value::String(text.clone()),
        })
    }

    /// As a key in JSON. `None` if it can't be one.
    pub fn to_key(&self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Bool(value) => Some(value.to_string()),
            Self::Int(value) => i64::try_from(*value).ok().map(|value| value.to_string()),
            Self::Float(value) => Some(float_to_key(*value)),
            Self::Text(text) => Some(text.clone()),
        }
    }
}

/// As in JSON, 8080.0 is 8080.
fn float_to_json(value: f64) -> Option<Number> {
    /// Above this, not every whole number can be represented as a float.
    const WHOLE: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < WHOLE {
        #[expect(clippy::cast_possible_truncation, reason = "whole and small enough")]
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

/// Go's `strconv.FormatFloat(value, 'g', -1, 32)`.
fn float_to_key(value: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "as in Go")]
    let value = value as f32;
    if !value.is_finite() {
        let text = match value {
            f32::INFINITY => ".inf",
            f32::NEG_INFINITY => "-.inf",
            _ => ".nan",
        };
        return text.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.abs())
    } else {
        value.to_string()
    }
}

fn number(text: &str) -> Option<Scalar> {
    match text.bytes().next()? {
        b'.' if are_between_digits(text) => float(&text.replace('_', "")),
        b'+' | b'-' | b'0'..=b'9' => {
            let digits = text.replace('_', "");
            integer(&digits)
                .or_else(|| float(&digits))
                .or_else(|| signed_binary(&digits))
        }
        _ => None,
    }
}

/// Whether each underscore is between digits.
fn are_between_digits(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_digit = |at: Option<usize>| {
        let byte = at.and_then(|at| bytes.get(at));
        byte.is_some_and(u8::is_ascii_digit)
    };
    let mut underscores = (0..bytes.len()).filter(|&at| bytes[at] == b'_');
    underscores.all(|at| is_digit(at.checked_sub(1)) && is_digit(Some(at + 1)))
}

/// goyaml takes a sign after `0b` too.
fn signed_binary(text: &str) -> Option<Scalar> {
    let digits = text.strip_prefix("0b")?;
    let value = i64::from_str_radix(digits, 2).ok()?;
    Some(Scalar::Int(value.into()))
}

/// Go's `strconv.ParseInt` and `ParseUint` with base 0.
fn integer(text: &str) -> Option<Scalar> {
    let (sign, digits) = match text.as_bytes().first() {
        Some(&sign @ (b'-' | b'+')) => (sign, &text[1..]),
        _ => (0, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None; // a second sign
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    let value = if sign == b'-' { -magnitude } else { magnitude };
    let fits = i64::try_from(value).is_ok() || sign == 0;
    fits.then_some(Scalar::Int(value))
}

/// A float by goyaml's rules.
fn float(text: &str) -> Option<Scalar> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let looks = all_digits(whole)
        && all_digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|exponent| {
            let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            !digits.is_empty() && all_digits(digits)
        });
    let value: f64 = looks.then(|| text.parse().ok())??;
    value.is_finite().then_some(Scalar::Float(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_scalars_have_the_values_that_kubectl_reads() {
        for (text, value) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("Null", json!(null)),
            ("yes", json!(true)),
            ("On", json!(true)),
            ("y", json!(true)),
            ("NO", json!(false)),
            ("off", json!(false)),
            ("yEs", json!("yEs")),
            ("0", json!(0)),
            ("-17", json!(-17)),
            ("+17", json!(17)),
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("0x1F", json!(31)),
            ("0b11", json!(3)),
            ("1_000", json!(1000)),
            ("08", json!(8)),
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("8080.0", json!(8080)),
            ("1e3", json!(1000)),
            ("1e-3", json!(0.001)),
            ("1.2.3", json!("1.2.3")),
            ("100m", json!("100m")),
            ("1Gi", json!("1Gi")),
            ("--5", json!("--5")),
            ("-", json!("-")),
            (".", json!(".")),
            ("0x", json!("0x")),
            ("1e", json!("1e")),
            ("2001-12-14", json!("2001-12-14")),
            ("12:30:45", json!("12:30:45")),
            ("null-ish", json!("null-ish")),
        ] {
            assert_eq!(resolve(text), value, "{text:?}");
        }
    }
}
