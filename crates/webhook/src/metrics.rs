//! The webhook's metrics, listed in `docs/webhook.md`.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use support::build;

use super::review::Outcome;

/// Labels of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    /// [`Outcome::name`].
    outcome: &'static str,
}

/// Labels of a request that was not a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    /// The HTTP status.
    code: u16,
}

/// Labels of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    /// `ok` or `failed`.
    result: &'static str,
}

/// The webhook's metrics.
pub struct Metrics {
    reviews: Family<ReviewLabels, Counter>,
    durations: Histogram,
    refusals: Family<RefusalLabels, Counter>,
    /// Failed TLS handshakes.
    pub handshake_failures: Counter,
    settings: Family<ReloadLabels, Counter>,
    enabled: Gauge,
    certificates: Family<ReloadLabels, Counter>,
    expiry: Gauge<f64, AtomicU64>,
    in_place: Gauge,
}

impl Metrics {
    /// Registers all metrics in `registry`, which should have the same prefix as the daemon's.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            reviews: Family::default(),
            durations: Histogram::new([
                0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.025, 0.1, 1.0,
            ]),
            refusals: Family::default(),
            handshake_failures: Counter::default(),
            settings: Family::default(),
            enabled: Gauge::default(),
            certificates: Family::default(),
            expiry: Gauge::default(),
            in_place: Gauge::default(),
        };
        build::register(registry);
        registry.register(
            "webhook_reviews",
            "AdmissionReviews answered",
            metrics.reviews.clone(),
        );
        registry.register_with_unit(
            "webhook_review_duration",
            "Time from the head of a request to its answer",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        registry.register(
            "webhook_refusals",
            "Requests to /mutate that were not reviews, by HTTP status",
            metrics.refusals.clone(),
        );
        registry.register(
            "webhook_tls_handshake_failures",
            "TLS handshakes that did not succeed",
            metrics.handshake_failures.clone(),
        );
        registry.register(
            "webhook_settings_reloads",
            "Times that changed settings were read; failed: the last good settings stay in use",
            metrics.settings.clone(),
        );
        registry.register(
            "webhook_rewrite_enabled",
            "1 while pods without a rewrite annotation are rewritten, else 0",
            metrics.enabled.clone(),
        );
        registry.register(
            "webhook_certificate_reloads",
            "Times that a new certificate was loaded; failed: the last good certificate is served",
            metrics.certificates.clone(),
        );
        registry.register(
            "webhook_certificate_expiry_timestamp_seconds",
            "When the served certificate expires, as Unix time; 0 until there is one",
            metrics.expiry.clone(),
        );
        metrics
    }

    /// Registers the metric that [`Self::set_in_place`] sets. With certificates from files, the caBundle is not
    /// ours, so the metric does not apply.
    pub fn register_in_place(&self, registry: &mut Registry) {
        registry.register(
            "webhook_ca_bundle_in_place",
            "1 while the MutatingWebhookConfiguration has our caBundle, else 0",
            self.in_place.clone(),
        );
    }

    /// Registers a metric that calls `count` for the number of connections at each scrape.
    pub fn register_connections(
        &self,
        registry: &mut Registry,
        count: impl Fn() -> usize + Send + Sync + 'static,
    ) {
        registry.register_collector(Box::new(Connections(Box::new(count))));
    }

    /// Counts an answered review.
    pub fn reviewed(&self, outcome: Outcome, took: Duration) {
        let outcome = outcome.name();
        let _ = self.reviews.get_or_create(&ReviewLabels { outcome }).inc();
        self.durations.observe(took.as_secs_f64());
    }

    /// Counts a request that was refused.
    pub fn refused(&self, status: StatusCode) {
        let code = status.as_u16();
        let _ = self.refusals.get_or_create(&RefusalLabels { code }).inc();
    }

    /// Counts settings that were read.
    pub fn settings_read(&self, good: bool) {
        let labels = ReloadLabels::of(good);
        let _ = self.settings.get_or_create(&labels).inc();
    }

    /// Sets the global setting in effect.
    pub fn set_enabled(&self, enabled: bool) {
        let _ = self.enabled.set(enabled.into());
    }

    /// Counts a new certificate and sets its expiry; `None`: the certificate can't be used.
    pub fn certificate(&self, expiry: Option<SystemTime>) {
        let labels = ReloadLabels::of(expiry.is_some());
        let _ = self.certificates.get_or_create(&labels).inc();
        if let Some(since_epoch) = expiry.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
            let _ = self.expiry.set(since_epoch.as_secs_f64());
        }
    }

    /// Sets whether the MutatingWebhookConfiguration has our caBundle.
    pub fn set_in_place(&self, in_place: bool) {
        let _ = self.in_place.set(in_place.into());
    }
}

impl ReloadLabels {
    const fn of(good: bool) -> Self {
        Self {
            result: if good { "ok" } else { "failed" },
        }
    }
}

/// Counts the connections at each scrape.
struct Connections(Box<dyn Fn() -> usize + Send + Sync>);

impl Collector for Connections {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let count = i64::try_from((self.0)()).unwrap_or(i64::MAX);
        let metric = encoder.encode_descriptor(
            "webhook_connections",
            "Connections of the admission server.",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(count).encode(metric)
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connections")
    }
}
