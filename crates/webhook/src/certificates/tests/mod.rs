//! Certificates: decisions, files, and several replicas at once against a double of the API server.

mod cluster;
mod deciding;
mod files;
mod keeping;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::authority::{Lifetimes, Made, make};
use super::trust::Needs;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const SERVICE: &str = "probe-handler-webhook";
const NAMESPACE: &str = "probe-handler-system";

fn names() -> Vec<String> {
    vec![format!("{SERVICE}.{NAMESPACE}.svc")]
}

fn needs() -> Needs {
    Needs {
        names: names(),
        lifetimes: Lifetimes::default(),
    }
}

fn made(now: SystemTime) -> Made {
    make(&names(), &Lifetimes::default(), now).expect("made")
}

/// How many certificates a PEM text has.
fn count(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

type Data = BTreeMap<String, k8s_openapi::ByteString>;
