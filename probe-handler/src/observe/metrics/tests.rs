//! Series come and go with pods, and the documentation shows the real scrape.

use std::collections::BTreeSet;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;

use super::*;
use crate::check::verdict::Reason;
use crate::observe::collectors::{register_kernel_counters, register_readiness, register_watches};
use crate::observe::readiness::Readiness;
use crate::pods::kube::health::Health;
use crate::pods::kube::object::Resource;
use crate::pods::kube::trouble::Reason as Trouble;
use crate::pods::model::{Action, ProbeKind, Way};

fn pod(name: &str, uid: &str) -> PodId {
    PodId {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    }
}

fn route(kind: ProbeKind) -> Route {
    Route {
        members: vec![("app".to_owned(), kind)],
        action: Action::Tcp { port: 80 },
        timeout: None,
        shorter: Vec::new(),
        way: Way::Transparent,
        agents: Vec::new(),
        stats: Default::default(),
    }
}

fn verdict(reason: Reason, status: u16) -> Verdict {
    Verdict {
        reason,
        status,
        detail: String::new(),
        latency: Some(Duration::from_millis(2)),
    }
}

fn scrape(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).expect("writing to a string");
    text
}

#[test]
fn a_forgotten_pod_leaves_no_series() {
    let mut registry = Registry::with_prefix(PREFIX);
    let metrics = Metrics::new(&mut registry);
    let empty = scrape(&registry);
    let cart = pod("cart-0", "1");
    metrics.verdict(
        &cart,
        &route(ProbeKind::Liveness),
        verdict(Reason::Healthy, 200),
    );
    metrics.verdict(
        &cart,
        &route(ProbeKind::Readiness),
        verdict(Reason::HttpStatus, 503),
    );
    metrics.verdict(
        &cart,
        &route(ProbeKind::Startup),
        verdict(Reason::Spliced, 200),
    );
    assert_eq!(scrape(&registry).matches("cart-0").count(), 3 + 2 * 11);
    metrics.forget(&cart);
    assert_eq!(scrape(&registry), empty);
    assert!(metrics.tracked.lock().series.is_empty());
}

#[test]
fn a_check_that_ends_after_its_pod_brings_no_series_back() {
    let mut registry = Registry::with_prefix(PREFIX);
    let metrics = Metrics::new(&mut registry);
    let (cart, route) = (pod("cart-0", "1"), route(ProbeKind::Liveness));
    metrics.forget(&cart);
    metrics.verdict(&cart, &route, verdict(Reason::Healthy, 200));
    assert!(!scrape(&registry).contains("cart-0"));
    assert_eq!(route.stats.counts(), (1, 0, 0));
    metrics.adopt(&cart);
    metrics.verdict(&cart, &route, verdict(Reason::Healthy, 200));
    assert!(scrape(&registry).contains("cart-0"));
}

#[test]
fn a_pod_that_takes_over_a_name_keeps_its_own_series() {
    let mut registry = Registry::with_prefix(PREFIX);
    let metrics = Metrics::new(&mut registry);
    let (old, new) = (pod("cart-0", "1"), pod("cart-0", "2"));
    let route = route(ProbeKind::Liveness);
    metrics.verdict(&old, &route, verdict(Reason::Refused, 500));
    metrics.verdict(&new, &route, verdict(Reason::Healthy, 200));
    metrics.forget(&old);
    let text = scrape(&registry);
    assert!(!text.contains("refused"), "{text}");
    assert!(text.contains("healthy"), "{text}");
    assert!(text.contains("probe_duration_seconds_count{"), "{text}");
    metrics.forget(&new);
    assert!(!scrape(&registry).contains("cart-0"));
}

#[test]
fn the_memory_of_pods_that_have_gone_is_bounded() {
    let metrics = Metrics::new(&mut Registry::default());
    for n in 0..REMEMBERED_PODS + 10 {
        metrics.forget(&pod("cart-0", &n.to_string()));
    }
    assert_eq!(metrics.tracked.lock().gone.len(), REMEMBERED_PODS);
}

#[test]
fn pods_are_counted_by_mesh_and_state() {
    let mut registry = Registry::with_prefix(PREFIX);
    let metrics = Metrics::new(&mut registry);
    metrics.set_pods([
        (Mesh::Istio, PodState::Serving),
        (Mesh::Istio, PodState::Serving),
        (Mesh::Linkerd, PodState::Captured),
    ]);
    let text = scrape(&registry);
    assert!(text.contains(r#"pods{mesh="istio",state="serving"} 2"#));
    assert!(text.contains(r#"pods{mesh="linkerd",state="captured"} 1"#));
    metrics.set_pods([(Mesh::Linkerd, PodState::Serving)]);
    let text = scrape(&registry);
    assert!(!text.contains(r#"mesh="istio""#) && !text.contains(r#"state="captured""#));
    assert!(text.contains(r#"pods{mesh="linkerd",state="serving"} 1"#));
}

/// A node with one Istio pod, as documented.
fn documented_scrape() -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    let metrics = Metrics::new(&mut registry);
    register_kernel_counters(&mut registry, Arc::new(|| [6, 3, 2, 0, 1, 0, 0, 0, 0, 0]));
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
    // Series of one family come in no order; the build info differs from build to build.
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
fn the_watches_of_the_api_server_are_told_apart() {
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
    pods.up();
    pods.set_unreadable(2);
    health.of(Resource::Namespaces).trouble(Trouble::Forbidden);
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
    health.of(Resource::Pods).up();
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
