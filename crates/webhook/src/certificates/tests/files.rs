//! Certificates from files.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::super::Serving;
use super::super::files::{follow, read};
use super::super::pair::Pair;
use super::*;
use crate::metrics::Metrics;

const LATE: Duration = Duration::from_secs(20);

fn write(directory: &Path, certificate: &str, key: &str) {
    fs::write(directory.join("tls.crt"), certificate).expect("written");
    fs::write(directory.join("tls.key"), key).expect("written");
}

fn pair(made: &Made) -> Pair {
    let (certificate, key) = (made.certificate.as_bytes(), made.key.as_bytes());
    Pair::from_pem(certificate, key, SystemTime::now()).expect("a pair")
}

#[test]
fn errors_name_what_cannot_be_used() {
    let now = SystemTime::now();
    let (one, two) = (made(now), made(now));
    let old = made(now - 91 * DAY);
    let directory = tempfile::tempdir().expect("directory");
    let message = || read(directory.path()).expect_err("bad").to_string();
    assert!(
        message().starts_with("tls.crt: No such file"),
        "{}",
        message()
    );
    write(directory.path(), &one.certificate, &two.key);
    assert!(message().contains("together"), "{}", message());
    write(directory.path(), &one.certificate, "");
    assert_eq!(message(), "no PEM-encoded key found");
    write(directory.path(), "", &one.key);
    assert_eq!(message(), "no PEM-encoded certificate found");
    write(directory.path(), "no PEM", "");
    let both = "no PEM-encoded certificate found; no PEM-encoded key found";
    assert_eq!(message(), both);
    write(directory.path(), &old.certificate, &old.key);
    assert_eq!(message(), "the certificate has expired");
    write(directory.path(), &one.certificate, &one.key);
    let _ = read(directory.path()).expect("good");
    // cert-manager's file contains the chain.
    let chain = format!("{}{}", two.certificate, two.authority);
    write(directory.path(), &chain, &two.key);
    assert_eq!(read(directory.path()).expect("good").chain().len(), 2);
}

#[tokio::test]
async fn a_new_pair_is_served_and_an_invalid_one_is_not() {
    let now = SystemTime::now();
    let (one, two) = (made(now), made(now));
    let directory = tempfile::tempdir().expect("directory");
    let serving = Arc::new(Serving::default());
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let (guard, mut first) = oneshot::channel::<()>();
    let path = directory.path().to_owned();
    let following = tokio::spawn(follow(path, Arc::clone(&serving), metrics, guard));
    let until = async |condition: &dyn Fn(&str) -> bool| {
        let poll = async {
            loop {
                let mut text = String::new();
                prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
                if condition(&text) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LATE, poll).await.expect("in time");
    };
    let served = |pair: &Pair| {
        let certified = serving.0.read().clone();
        certified.is_some_and(|certified| certified.cert == pair.chain())
    };
    until(&|text| text.contains("certificate_reloads_total{result=\"failed\"} 1")).await;
    assert_eq!(first.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    write(directory.path(), &one.certificate, &one.key);
    until(&|_| served(&pair(&one))).await;
    assert_eq!(first.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    write(directory.path(), &two.certificate, "no key");
    until(&|text| {
        text.contains("certificate_reloads_total{result=\"failed\"} 2")
            || text.contains("certificate_reloads_total{result=\"failed\"} 3")
    })
    .await;
    assert!(served(&pair(&one)), "the last good certificate is served");
    write(directory.path(), &two.certificate, &two.key);
    until(&|_| served(&pair(&two))).await;
    following.abort();
}
