//! The page: it loads nothing, and no text of a pod becomes HTML.

use super::page::{Subject, html};
use super::summary::Summary;
use status_view::fixtures::{last, pod, probe, status};
use status_view::observed::{ComparedProbe, ObservedStatus};
use status_view::shown::Shown;
use status_view::status::Status;

fn page(status: &Status) -> String {
    let subject = Subject {
        time: "2026-11-30T03:02:00Z",
        of: "",
        nodes: 2,
        failed: vec![("lost".to_owned(), "no answer within 5 s".to_owned())],
        versions: vec![("0.1.0".to_owned(), 1)],
    };
    let shown = Shown {
        node: Some("n"),
        status,
    };
    html(&subject, &Summary::new(&[shown]))
}

fn observed(change: &str) -> ObservedStatus {
    ObservedStatus {
        namespace: "shop".to_owned(),
        name: "web-1".to_owned(),
        trouble: None,
        probes: vec![ComparedProbe {
            container: "web".to_owned(),
            probe: "liveness".to_owned(),
            mode: "transparent".to_owned(),
            check: "http:8080/live?key=secret".to_owned(),
            change: Some(change.to_owned()),
            consequence: Some("would be restarted after 30 s (refused)".to_owned()),
            now: None,
            then: None,
            age_ms: None,
            compared: 3,
            cured: 0,
            exposed: 3,
        }],
    }
}

#[test]
fn the_page_loads_nothing_and_runs_no_script() {
    let page = page(&status());
    for bad in [
        "http://", "https://", "src=", "href=", "<script", "url(", "@import", "<link",
    ] {
        assert!(!page.contains(bad), "{bad}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn texts_of_pods_are_no_html() {
    let mut status = status();
    status.pods[0].name = "<b onload=x>".to_owned();
    status.pods[0].probes[0].target = Some("/\"><script>alert(1)</script>".to_owned());
    status.pods[0].skipped[0].why = "</td><img>".to_owned();
    status.source.problems = vec!["<i>'".to_owned()];
    let page = page(&status);
    for bad in ["<script", "<img", "<b onload", "<i>'"] {
        assert!(!page.contains(bad), "{bad}");
    }
    assert!(page.contains("&lt;script&gt;"));
}

#[test]
fn what_would_change_is_named_with_its_consequence_and_without_queries() {
    let mut status = status();
    status.observed = vec![observed("exposed")];
    let page = page(&status);
    for expected in [
        "<b>1</b> pass now and would fail",
        "<code>http:8080/live?(removed)</code>",
        "would be restarted after 30 s (refused)",
        "3 of 3",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    assert!(!page.contains("secret"), "the query is in the page");
}

#[test]
fn a_failing_probe_and_a_node_without_an_answer_are_named() {
    let mut status = status();
    let mut failing = probe("readiness", "http", 80);
    failing.last = last("failure", "http_status", Some(503));
    failing.failures_in_a_row = 2;
    status.pods.push(pod("fails"));
    status.pods[2].probes = vec![failing];
    let page = page(&status);
    for expected in [
        "shop/fails",
        "http_status 503",
        "2 of 3",
        "no answer: no answer within 5 s",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
}

#[test]
fn without_pods_the_page_says_so() {
    let mut status = status();
    status.pods.clear();
    status.not_served.clear();
    let page = page(&status);
    for expected in [
        "The daemons have no pods",
        "No result with a latency",
        "No pod is in mode observe",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
}
