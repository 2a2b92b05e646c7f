//! Decisions about the Secret over time.

use super::super::pair::Pair;
use super::super::trust::{Step, Trust, WriteReason, step};
use super::*;

fn written(step: Step, why: WriteReason) -> Trust {
    match step {
        Step::Write(trust, because) if because == why => trust,
        other => panic!("{why:?} expected: {other:?}"),
    }
}

fn next(trust: Option<&Trust>, settled: bool, now: SystemTime) -> Step {
    step(trust, trust, settled, &needs(), now).expect("made")
}

/// One that was issued at `now`.
fn fresh(now: SystemTime) -> Trust {
    written(next(None, false, now), WriteReason::Missing)
}

fn leaf(trust: &Trust, now: SystemTime) -> Pair {
    trust.serving(&needs(), now).expect("usable")
}

#[test]
fn a_certificate_is_issued_once_and_kept_until_its_renewal() {
    let now = SystemTime::now();
    let trust = fresh(now);
    assert_eq!(count(trust.bundle()), 1);
    for (days, settled) in [(0, false), (1, true), (59, true)] {
        assert_eq!(next(Some(&trust), settled, now + days * DAY), Step::Keep);
    }
    let expiry = leaf(&trust, now).expiry();
    let left = expiry.duration_since(now).expect("ahead");
    assert!(left > 90 * DAY - Duration::from_secs(2) && left <= 90 * DAY);
}

#[test]
fn a_renewal_takes_two_steps_and_both_authorities_are_trusted_between_them() {
    let begin = SystemTime::now();
    let first = fresh(begin);
    let now = begin + 61 * DAY;
    let prepared = written(next(Some(&first), true, now), WriteReason::Renewal);
    assert_eq!(count(prepared.bundle()), 2);
    assert!(prepared.bundle().contains(first.bundle().trim()));
    assert!(
        leaf(&prepared, now) == leaf(&first, now),
        "the old one is still served"
    );
    assert_eq!(
        next(Some(&prepared), false, now),
        Step::Keep,
        "not trusted yet"
    );

    let turned = written(next(Some(&prepared), true, now), WriteReason::Turn);
    assert!(leaf(&turned, now) != leaf(&first, now));
    assert_eq!(
        turned.bundle(),
        prepared.bundle(),
        "replicas that serve the old one are trusted"
    );
    assert_eq!(next(Some(&turned), true, now + DAY), Step::Keep);

    let now = begin + 90 * DAY + Duration::from_secs(1);
    let pruned = written(next(Some(&turned), true, now), WriteReason::Expired);
    assert_eq!(count(pruned.bundle()), 1);
    assert!(leaf(&pruned, now) == leaf(&turned, now));
}

#[test]
fn emptying_the_secret_issues_a_new_certificate_without_a_gap() {
    let now = SystemTime::now();
    let held = fresh(now);
    let emptied = step(None, Some(&held), false, &needs(), now).expect("made");
    let renewed = written(emptied, WriteReason::Renewal);
    assert!(leaf(&renewed, now) == leaf(&held, now));
    assert_eq!(count(renewed.bundle()), 2);
}

#[test]
fn an_unusable_certificate_is_replaced() {
    let now = SystemTime::now();
    let trust = fresh(now);
    // The certificate expired while every replica was down.
    let later = now + 91 * DAY;
    let replaced = written(next(Some(&trust), true, later), WriteReason::Missing);
    assert_eq!(count(replaced.bundle()), 1);
    // The certificate is for a Service with another name.
    let renamed = Needs {
        names: vec!["other.ns.svc".to_owned()],
        ..needs()
    };
    let replaced = step(Some(&trust), None, true, &renamed, now).expect("made");
    let replaced = written(replaced, WriteReason::Missing);
    assert!(replaced.serving(&renamed, now).is_some());
    assert_eq!(
        count(replaced.bundle()),
        2,
        "replicas that serve the old name are trusted"
    );
}

#[test]
fn a_secret_is_read_as_written_and_foreign_keys_are_kept() {
    let now = SystemTime::now();
    let first = fresh(now);
    let prepared = written(
        next(Some(&first), true, now + 61 * DAY),
        WriteReason::Renewal,
    );
    let mut data = Data::new();
    let other = k8s_openapi::ByteString(b"x".to_vec());
    drop(data.insert("other".to_owned(), other));
    prepared.write(&mut data);
    assert_eq!(Trust::read(&data).as_ref(), Some(&prepared));
    let turned = written(
        next(Some(&prepared), true, now + 61 * DAY),
        WriteReason::Turn,
    );
    turned.write(&mut data);
    assert_eq!(Trust::read(&data).as_ref(), Some(&turned));
    assert!(data.contains_key("other"));
    assert!(!data.contains_key("next-tls.key"));
}

#[test]
fn a_damaged_secret_is_replaced() {
    let now = SystemTime::now();
    let mut good = Data::new();
    fresh(now).write(&mut good);
    for key in ["tls.crt", "tls.key", "ca.crt"] {
        for bytes in [
            None,
            Some(&b""[..]),
            Some(b"\xff"),
            Some(b"-----BEGIN CERTIFICATE-----"),
        ] {
            let mut data = good.clone();
            match bytes {
                Some(bytes) => {
                    drop(data.insert(key.to_owned(), k8s_openapi::ByteString(bytes.to_vec())))
                }
                None => drop(data.remove(key)),
            }
            let stored = Trust::read(&data);
            let trust = written(
                step(stored.as_ref(), None, true, &needs(), now).expect("made"),
                WriteReason::Missing,
            );
            let _ = leaf(&trust, now);
        }
    }
}
