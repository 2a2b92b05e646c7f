//! Series are added and removed with their pods.

use super::fixtures::{member, pod, route, scrape, verdict};
use super::*;
use model::ProbeKind;
use probe::verdict::Reason;

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
fn a_check_that_ends_after_its_pod_adds_no_series() {
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
fn the_number_of_remembered_pods_is_bounded() {
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

#[test]
fn a_check_of_two_probes_has_a_series_for_each() {
    let mut registry = Registry::with_prefix(PREFIX);
    let metrics = Metrics::new(&mut registry);
    let mut shared = route(ProbeKind::Liveness);
    let readiness = member(ProbeKind::Readiness, shared.action.clone());
    shared.members.push(readiness);
    metrics.verdict(&pod("cart-0", "1"), &shared, verdict(Reason::Healthy, 200));
    let text = scrape(&registry);
    for probe in ["liveness", "readiness"] {
        let series = format!("container=\"app\",probe=\"{probe}\",result=\"success\"");
        assert!(text.contains(&series), "{series} not in\n{text}");
    }
}
