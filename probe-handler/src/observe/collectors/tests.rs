//! The documentation shows the real scrape.

use std::collections::BTreeSet;

use model::{Mesh, ProbeKind};
use probe::verdict::Reason;
use serve::metrics::fixtures::{pod, route, scrape, verdict};
use serve::metrics::{Metrics, PREFIX, PodState};
use sources::kube::watch_error::Reason as WatchError;

use super::*;

/// A node with one Istio pod, as documented.
fn documented_scrape() -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    let metrics = Metrics::new(&mut registry);
    register_kernel_counters(
        &mut registry,
        Arc::new(|| [6, 3, 2, 0, 1, 0, 0, 0, 0, 0, 0]),
    );
    register_readiness(&mut registry, Readiness::default());
    let cart = pod("cart-0", "1");
    metrics.set_pods([(Mesh::Istio, PodState::Serving)]);
    let _ = metrics.endpoints.set(2);
    let _ = metrics.attached.set(1);
    let _ = metrics.accepted.inc_by(3);
    let liveness = route(ProbeKind::Liveness);
    metrics.verdict(&cart, &liveness, verdict(Reason::Healthy, 200));
    metrics.verdict(&cart, &liveness, verdict(Reason::HttpStatus, 503));
    metrics.relayed("undeclared");
    scrape(&registry)
}

#[test]
fn the_documented_sample_is_the_real_scrape() {
    let docs = include_str!("../../../../docs/metrics.md");
    let sample = docs
        .split_once("```text\n")
        .and_then(|(_, rest)| rest.split_once("```"))
        .map(|(sample, _)| sample)
        .expect("docs/metrics.md has a ```text block");
    let real = documented_scrape();
    // The order of series within a family is not fixed; the build info differs between builds.
    let lines = |text: &str| -> BTreeSet<String> {
        text.lines()
            .map(|line| {
                let build = line.starts_with("probe_handler_build_info{");
                if build { "build info" } else { line }.to_owned()
            })
            .collect()
    };
    assert_eq!(lines(sample), lines(&real), "the real scrape:\n{real}");
}

#[test]
fn the_watches_of_the_api_server_have_separate_series() {
    let health = Arc::new(Health::default());
    let mut registry = Registry::with_prefix(PREFIX);
    register_watches(&mut registry, Arc::clone(&health));
    let before = scrape(&registry);
    assert!(before.contains(r#"probe_handler_watch_up{resource="pods"} 0.0"#));
    assert!(
        !before.contains("probe_handler_watch_silence_seconds{"),
        "{before}"
    );
    let pods = health.of(Resource::Pods);
    pods.listed();
    let mut watch = pods.register();
    watch.up();
    pods.set_unreadable(2);
    let _not_up = health.of(Resource::Namespaces).register();
    health
        .of(Resource::Namespaces)
        .trouble(WatchError::Forbidden);
    let text = scrape(&registry);
    for line in [
        r#"probe_handler_watch_up{resource="pods"} 1.0"#,
        r#"probe_handler_watch_up{resource="namespaces"} 0.0"#,
        r#"probe_handler_watch_silence_seconds{resource="pods"} "#,
        r#"probe_handler_watch_lists_total{resource="pods"} 1"#,
        r#"probe_handler_unreadable_objects{resource="pods"} 2.0"#,
        r#"probe_handler_watch_failures_total{resource="namespaces",reason="forbidden"} 1"#,
        r#"probe_handler_watch_failures_total{resource="pods",reason="forbidden"} 0"#,
    ] {
        assert!(text.contains(line), "{line} in:\n{text}");
    }
}

#[test]
fn every_reason_is_explained_in_the_documentation() {
    let docs = include_str!("../../../../docs/metrics.md");
    for reason in Reason::ALL {
        let row = format!("\n| `{}` |", reason.name());
        assert!(docs.contains(&row), "no row {row:?} in docs/metrics.md");
    }
}

#[test]
fn every_metric_is_explained_in_the_documentation() {
    let docs = include_str!("../../../../docs/metrics.md");
    let mut kubernetes = Registry::with_prefix(PREFIX);
    let health = Health::default();
    health.of(Resource::Pods).listed();
    register_watches(&mut kubernetes, Arc::new(health));
    let real = documented_scrape() + &scrape(&kubernetes);
    let names = real.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some(match kind {
            "counter" => format!("| `{name}_total`"),
            "info" => format!("| `{name}_info`"),
            _ => format!("| `{name}`"),
        })
    });
    for name in names {
        assert!(docs.contains(&name), "no row {name} in docs/metrics.md");
    }
}
