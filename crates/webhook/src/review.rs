//! Answers an AdmissionReview with an AdmissionReview (kubernetes staging/src/k8s.io/api/admission/v1/types.go),
//! both as text, without network I/O.
//!
//! The answer allows every object. An object that can't be read is admitted unchanged, with a warning
//! that the user sees. Only a body that is not a review gets no answer.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Rewriting, admit_in, relevant};

/// The API group of the reviews that are answered.
const GROUP: &str = "admission.k8s.io/";
/// The only version whose objects are rewritten; others are allowed unchanged.
const VERSION: &str = "admission.k8s.io/v1";
/// Maximum length of a warning, in bytes: the API server may truncate longer ones
/// (kubernetes staging/src/k8s.io/api/admission/v1/types.go, AdmissionResponse.Warnings).
const WARNING_MAX: usize = 256;
/// Maximum number of warnings in an answer, because their total length is limited too (4,096 bytes).
const WARNINGS_MAX: usize = 12;
/// Maximum length of version, kind and uid, in bytes: those of an API server have about forty.
const WORD_MAX: usize = 256;

/// The outcome of a review, as metrics count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A patch was sent.
    Patched,
    /// There was nothing to change in the pod.
    Unchanged,
    /// It was not the creation of a pod, so the object was not read.
    NotOurs,
    /// The pod can't be read: admitted unchanged, with a warning.
    NotUnderstood,
    /// The review has an unknown version: allowed, with a warning.
    OtherVersion,
}

impl Outcome {
    /// Name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Patched => "patched",
            Self::Unchanged => "unchanged",
            Self::NotOurs => "not_ours",
            Self::NotUnderstood => "not_understood",
            Self::OtherVersion => "other_version",
        }
    }
}

/// An answered review.
#[derive(Debug)]
pub struct Reviewed {
    /// The AdmissionReview to send back, as JSON.
    pub json: Vec<u8>,
    /// The outcome.
    pub outcome: Outcome,
}

/// Why a body can't be answered as an AdmissionReview.
#[derive(Debug, thiserror::Error)]
pub enum NoReview {
    /// It is not JSON, or does not have the form of a review.
    #[error("the body is not an AdmissionReview: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It is another kind of object.
    #[error("the body is a {kind} of {api_version}, not an AdmissionReview of {VERSION}")]
    OtherKind {
        /// Its `kind`.
        kind: String,
        /// Its `apiVersion`.
        api_version: String,
    },
    /// A field that the answer would repeat is too long.
    #[error("the AdmissionReview's {0} is longer than {WORD_MAX} bytes")]
    TooLong(&'static str),
    /// It has no request to answer.
    #[error("the AdmissionReview has no request")]
    NoRequest,
}

/// A review as received. The object stays text until it is known to be a Pod. The other parts (the user, the
/// old object, options) are never parsed into values.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    request: Option<Request<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    uid: String,
    #[serde(borrow, default)]
    kind: Kind<'a>,
    #[serde(borrow, default)]
    sub_resource: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    operation: Cow<'a, str>,
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Kind<'a> {
    #[serde(borrow, default)]
    group: Cow<'a, str>,
    #[serde(borrow, default)]
    version: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'a str,
    kind: &'a str,
    response: Response,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl Request<'_> {
    /// Whether it creates a Pod: the probes of an existing Pod can't be changed. A dry run is answered like
    /// any other request because the patch is the only effect.
    fn creates_a_pod(&self) -> bool {
        let Kind {
            group,
            version,
            kind,
        } = &self.kind;
        let sub_resource = self.sub_resource.as_deref().unwrap_or_default();
        (group.as_ref(), version.as_ref(), kind.as_ref()) == ("", "v1", "Pod")
            && sub_resource.is_empty()
            && self.operation == "CREATE"
    }
}

/// Answers the review in `body` according to `rewriting`.
///
/// # Errors
/// The body is not a review.
pub fn review(body: &[u8], rewriting: &Rewriting) -> Result<Reviewed, NoReview> {
    let review: Review<'_> = serde_json::from_slice(body)?;
    let uid = review.request.as_ref().map(|request| request.uid.as_str());
    for (name, word) in [
        ("apiVersion", review.api_version.as_ref()),
        ("kind", review.kind.as_ref()),
        ("request.uid", uid.unwrap_or_default()),
    ] {
        if word.len() > WORD_MAX {
            return Err(NoReview::TooLong(name));
        }
    }
    if review.kind != "AdmissionReview" || !review.api_version.starts_with(GROUP) {
        return Err(NoReview::OtherKind {
            kind: review.kind.into_owned(),
            api_version: review.api_version.into_owned(),
        });
    }
    let request = review.request.ok_or(NoReview::NoRequest)?;
    let (outcome, patch, warnings) = if review.api_version != VERSION {
        let warning = format!(
            "probe-handler: probes are unchanged: this review has version {}; set \
             admissionReviewVersions: [v1]",
            review.api_version
        );
        (Outcome::OtherVersion, None, vec![warning])
    } else if request.creates_a_pod() {
        decide(request.object, request.namespace.as_deref(), rewriting)
    } else {
        (Outcome::NotOurs, None, Vec::new())
    };
    let answer = Answer {
        api_version: &review.api_version,
        kind: "AdmissionReview",
        response: Response {
            uid: request.uid,
            allowed: true,
            patch_type: patch.is_some().then_some("JSONPatch"),
            patch: patch.map(|patch| base64(&patch)).transpose()?,
            warnings: shorten(warnings),
        },
    };
    Ok(Reviewed {
        json: serde_json::to_vec(&answer)?,
        outcome,
    })
}

fn decide(
    object: Option<&RawValue>,
    namespace: Option<&str>,
    rewriting: &Rewriting,
) -> (Outcome, Option<Vec<u8>>, Vec<String>) {
    let not_understood = |why: &dyn std::fmt::Display| {
        let warning = format!("probe-handler: probes are unchanged: {why}");
        (Outcome::NotUnderstood, None, vec![warning])
    };
    let text = object.map_or("null", RawValue::get);
    let pod = match relevant::of(text) {
        Ok(pod) => pod,
        Err(error) => return not_understood(&format!("the Pod can't be read: {error}")),
    };
    if !pod.is_object() {
        return not_understood(&"the review has no Pod");
    }
    let admission = admit_in(namespace, &pod, rewriting);
    if admission.patch.is_empty() {
        return (Outcome::Unchanged, None, admission.warnings);
    }
    match serde_json::to_vec(&admission.patch) {
        Ok(patch) => (Outcome::Patched, Some(patch), admission.warnings),
        Err(error) => not_understood(&error),
    }
}

/// `bytes` as a JSON string in Kubernetes' encoding, which needs no escapes.
fn base64(bytes: &[u8]) -> serde_json::Result<Box<RawValue>> {
    let mut text = String::with_capacity(bytes.len() / 3 * 4 + 6);
    text.push('"');
    STANDARD.encode_string(bytes, &mut text);
    text.push('"');
    RawValue::from_string(text)
}

/// `warnings`, limited to what the API server forwards.
fn shorten(mut warnings: Vec<String>) -> Vec<String> {
    let more = warnings.len().saturating_sub(WARNINGS_MAX);
    if more > 0 {
        warnings.truncate(WARNINGS_MAX - 1);
        warnings.push(format!("probe-handler: {} more warnings", more + 1));
    }
    for warning in &mut warnings {
        if warning.len() > WARNING_MAX {
            let mut end = WARNING_MAX - "…".len();
            while !warning.is_char_boundary(end) {
                end -= 1;
            }
            warning.truncate(end);
            warning.push('…');
        }
    }
    warnings
}

#[cfg(test)]
mod tests;
