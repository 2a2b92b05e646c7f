//! Metrics whose values are read at each scrape.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use probe_handler_common::counters::Counter;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use report::outcome::{Outcome, Outcomes};
use sources::kube::health::{Health, WatchHealth};
use sources::kube::object::Resource;
use support::readiness::Readiness;

/// Reads the counters of the eBPF programs, summed over CPUs, indexed by [`Counter`].
pub type ReadCounters = Arc<dyn Fn() -> [u64; Counter::COUNT as usize] + Send + Sync>;

/// Registers `kernel_connections`, read through `read` at each scrape.
pub fn register_kernel_counters(registry: &mut Registry, read: ReadCounters) {
    registry.register_collector(Box::new(KernelCounters(read)));
}

/// Registers `readiness_pending`: the number of guards that are held.
pub fn register_readiness(registry: &mut Registry, readiness: Readiness) {
    registry.register_collector(Box::new(Pending(readiness)));
}

/// Registers the state of the watches at the API server: `watch_up`,
/// `watch_silence_seconds`, `watch_lists`, `watch_failures` and `unreadable_objects`.
pub fn register_watches(registry: &mut Registry, health: Arc<Health>) {
    registry.register_collector(Box::new(Watches(health)));
}

/// Registers the state of the file of settings: `settings_loaded`, `settings_reloads` and
/// `settings_last_reload_timestamp_seconds`, read through `read` at each scrape.
pub fn register_settings(registry: &mut Registry, read: Arc<dyn Fn() -> Reloads + Send + Sync>) {
    registry.register_collector(Box::new(SettingsFile(read)));
}

/// Registers `events`: the outcomes of Events of pods.
pub fn register_events(registry: &mut Registry, outcomes: Arc<Outcomes>) {
    registry.register_collector(Box::new(Events(outcomes)));
}

#[derive(Debug)]
struct Events(Arc<Outcomes>);

/// How often the file of settings was read, and with what result.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reloads {
    /// Whether the daemon uses the current content of the file.
    pub loaded: bool,
    /// How often a changed file was valid.
    pub succeeded: u64,
    /// How often a changed file was invalid.
    pub failed: u64,
    /// When it was last read.
    pub last: Option<SystemTime>,
}

struct SettingsFile(Arc<dyn Fn() -> Reloads + Send + Sync>);

struct KernelCounters(ReadCounters);

#[derive(Debug)]
struct Watches(Arc<Health>);

#[derive(Debug)]
struct Pending(Readiness);

// === impl KernelCounters ===

impl Collector for KernelCounters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let values = (self.0)();
        let mut family = encoder.encode_descriptor(
            "kernel_connections",
            "The kubelet's connections to endpoints, by what the eBPF programs did with them.",
            None,
            MetricType::Counter,
        )?;
        for (counter, value) in Counter::ALL.iter().zip(values) {
            let labels = [("event", counter.name())];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl fmt::Debug for KernelCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KernelCounters")
    }
}

// === impl Events ===

impl Collector for Events {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "events",
            "Events of pods, by outcome.",
            None,
            MetricType::Counter,
        )?;
        for outcome in Outcome::ALL {
            let labels = [("outcome", outcome.name())];
            ConstCounter::new(self.0.of(outcome)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

// === impl SettingsFile ===

impl Collector for SettingsFile {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let reloads = (self.0)();
        let loaded = encoder.encode_descriptor(
            "settings_loaded",
            "1 if the daemon uses the current content of the --settings file (or the file does not exist), 0 if it has mistakes.",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(i64::from(reloads.loaded)).encode(loaded)?;
        let mut counts = encoder.encode_descriptor(
            "settings_reloads",
            "Reads of the file of --settings after a change.",
            None,
            MetricType::Counter,
        )?;
        for (result, count) in [("ok", reloads.succeeded), ("failed", reloads.failed)] {
            let labels = [("result", result)];
            ConstCounter::new(count).encode(counts.encode_family(&labels)?)?;
        }
        let last = reloads
            .last
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let metric = encoder.encode_descriptor(
            "settings_last_reload_timestamp",
            "When the file of --settings was last read after a change; 0: never.",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        ConstGauge::new(last.unwrap_or_default().as_secs_f64()).encode(metric)
    }
}

impl fmt::Debug for SettingsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SettingsFile")
    }
}

// === impl Pending ===

impl Collector for Pending {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let pending = i64::try_from(self.0.pending().len()).unwrap_or(i64::MAX);
        let metric = encoder.encode_descriptor(
            "readiness_pending",
            "Number of conditions that the daemon waits for before it is ready; 0 when ready.",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(pending).encode(metric)
    }
}

// === impl Watches ===

impl Watches {
    fn gauges(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        unit: Option<&Unit>,
        value: impl Fn(&WatchHealth) -> Option<f64>,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for resource in Resource::ALL {
            if let Some(value) = value(self.0.of(resource)) {
                let labels = [("resource", resource.name())];
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Collector for Watches {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.gauges(
            &mut encoder,
            (
                "watch_up",
                "1 while the daemon has a watch at the API server.",
            ),
            None,
            |watch| Some(f64::from(u8::from(watch.is_up()))),
        )?;
        self.gauges(
            &mut encoder,
            (
                "watch_silence",
                "Time since the API server last sent anything on the watch; it sends something about once a minute.",
            ),
            Some(&Unit::Seconds),
            |watch| watch.silence().map(|silence| silence.as_secs_f64()),
        )?;
        self.gauges(
            &mut encoder,
            (
                "unreadable_objects",
                "Objects of the API server that can't be read; status lists them.",
            ),
            None,
            |watch| Some(watch.unreadable() as f64),
        )?;
        let mut lists = encoder.encode_descriptor(
            "watch_lists",
            "Complete lists received.",
            None,
            MetricType::Counter,
        )?;
        for resource in Resource::ALL {
            let labels = [("resource", resource.name())];
            let count = ConstCounter::new(self.0.of(resource).lists());
            count.encode(lists.encode_family(&labels)?)?;
        }
        let mut failures = encoder.encode_descriptor(
            "watch_failures",
            "Lists and watches that failed.",
            None,
            MetricType::Counter,
        )?;
        for resource in Resource::ALL {
            for (reason, count) in self.0.of(resource).troubles() {
                let labels = [("resource", resource.name()), ("reason", reason.name())];
                ConstCounter::new(count).encode(failures.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
