//! What raises each alert, for promtool.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::monitoring::{alert_rules, groups};
use crate::promtool::{self, Alerting};

/// A gauge or counter that is healthy for ten minutes; then its alert fires within the hour.
const fn alert(alert: &'static str, series: &'static str, samples: &'static str) -> Alerting {
    Alerting {
        alert,
        series,
        samples,
        fires_at: 40,
    }
}

/// As [`alert`], for an alert that fires only for some minutes after an event.
const fn event(name: &'static str, series: &'static str, samples: &'static str) -> Alerting {
    Alerting {
        fires_at: 14,
        ..alert(name, series, samples)
    }
}

/// A counter that begins to rise.
const RISES: &str = "0x9 0+1x190";
/// A series that begins with 1, as a counter with labels does.
const APPEARS: &str = "_x9 1x190";

/// At least one series for each alert.
const ALERTS: &[Alerting] = &[
    alert(
        "ProbeHandlerDown",
        r#"up{job="probe-handler"}"#,
        "1x9 0x190",
    ),
    alert(
        "ProbeHandlerDown",
        r#"up{job="probe-handler"}"#,
        "1x9 _x190",
    ),
    alert(
        "ProbeHandlerUnavailable",
        r#"kube_daemonset_status_number_unavailable{daemonset="probe-handler"}"#,
        "0x9 1x190",
    ),
    alert(
        "ProbeHandlerNotAttached",
        "probe_handler_attached",
        "1x9 0x190",
    ),
    alert(
        "ProbeHandlerFallback",
        r#"probe_handler_kernel_connections_total{event="fallback"}"#,
        RISES,
    ),
    alert(
        "ProbeHandlerNoHeartbeat",
        r#"probe_handler_kernel_connections_total{event="no_heartbeat"}"#,
        RISES,
    ),
    alert(
        "ProbeHandlerConnectionsNotRecorded",
        r#"probe_handler_kernel_connections_total{event="error"}"#,
        RISES,
    ),
    alert(
        "ProbeHandlerRefusalsUndone",
        r#"probe_handler_kernel_connections_total{event="refusal_undone"}"#,
        RISES,
    ),
    alert(
        "ProbeHandlerAcceptErrors",
        "probe_handler_accept_errors_total",
        RISES,
    ),
    alert(
        "ProbeHandlerPodsCaptured",
        r#"probe_handler_pods{mesh="istio",state="captured"}"#,
        "0x9 1x190",
    ),
    alert(
        "ProbeHandlerPodsCostly",
        r#"probe_handler_pods{mesh="istio",state="costly"}"#,
        "0x9 1x190",
    ),
    alert(
        "ProbeHandlerPodsPending",
        r#"probe_handler_pods{mesh="istio",state="pending"}"#,
        "0x9 1x190",
    ),
    alert(
        "ProbeHandlerPodsContested",
        r#"probe_handler_pods{mesh="istio",state="conflict"}"#,
        "0x9 1x190",
    ),
    alert(
        "ProbeHandlerEndpointsFailed",
        "probe_handler_endpoints_failed",
        "0x9 1x190",
    ),
    alert(
        "ProbeHandlerSettingsNotLoaded",
        "probe_handler_settings_loaded",
        "1x9 0x190",
    ),
    event(
        "ProbeHandlerUnknownPeers",
        "probe_handler_unknown_peers_total",
        "0x9 1x190",
    ),
    alert(
        "ProbeHandlerWatchDown",
        r#"probe_handler_watch_up{resource="pods"}"#,
        "1x9 0x190",
    ),
    alert(
        "ProbeHandlerUnreadableObjects",
        r#"probe_handler_unreadable_objects{resource="pods"}"#,
        "0x9 1x190",
    ),
    Alerting {
        alert: "ProbeHandlerWebhookCertificateExpires",
        series: "probe_handler_webhook_certificate_expiry_timestamp_seconds",
        // In thirty days, then in one: promtool's clock begins at 0.
        samples: "2592000x9 86400x190",
        fires_at: 80,
    },
    alert(
        "ProbeHandlerWebhookNotTrusted",
        "probe_handler_webhook_ca_bundle_in_place",
        "1x9 0x190",
    ),
    event(
        "ProbeHandlerWebhookPodsNotUnderstood",
        r#"probe_handler_webhook_reviews_total{outcome="not_understood"}"#,
        APPEARS,
    ),
    event(
        "ProbeHandlerWebhookSettingsRefused",
        r#"probe_handler_webhook_settings_reloads_total{result="failed"}"#,
        APPEARS,
    ),
    event(
        "ProbeHandlerWebhookCertificateRefused",
        r#"probe_handler_webhook_certificate_reloads_total{result="failed"}"#,
        APPEARS,
    ),
    alert(
        "ProbeHandlerWebhookNotAsked",
        r#"apiserver_admission_webhook_fail_open_count{name="pods.rewrite.probe-handler.io"}"#,
        RISES,
    ),
];

/// Each rule is valid, each alert is in the table, and promtool raises it.
pub fn check(promtool: &Path, objects: &[Value]) -> Result<()> {
    let rendered: BTreeSet<&str> = alert_rules(objects)
        .filter_map(|rule| rule["alert"].as_str())
        .collect();
    let expected = |alerting: &&Alerting| rendered.contains(alerting.alert);
    let alerts: Vec<Alerting> = ALERTS.iter().filter(expected).copied().collect();
    let known: BTreeSet<&str> = alerts.iter().map(|alerting| alerting.alert).collect();
    ensure!(
        known == rendered,
        "no series raises {:?}",
        rendered.difference(&known)
    );
    promtool::test_rules(promtool, &groups(objects).into(), &alerts)
}
