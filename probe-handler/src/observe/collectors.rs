//! Metrics that are read from elsewhere at each scrape.

use std::fmt;
use std::sync::Arc;

use probe_handler_common::counters::Counter;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use sources::kube::health::{Health, WatchHealth};
use sources::kube::object::Resource;
use support::readiness::Readiness;

/// Reads the kernel side's counters, summed over CPUs, by [`Counter`]'s index.
pub type ReadCounters = Arc<dyn Fn() -> [u64; Counter::COUNT as usize] + Send + Sync>;

/// Registers `kernel_connections`, read through `read` at each scrape.
pub fn register_kernel_counters(registry: &mut Registry, read: ReadCounters) {
    registry.register_collector(Box::new(KernelCounters(read)));
}

/// Registers `readiness_pending`: how many guards are held.
pub fn register_readiness(registry: &mut Registry, readiness: Readiness) {
    registry.register_collector(Box::new(Pending(readiness)));
}

/// Registers what there is to know of the watches of the API server: `watch_up`,
/// `watch_silence_seconds`, `watch_lists`, `watch_failures` and `unreadable_objects`.
pub fn register_watches(registry: &mut Registry, health: Arc<Health>) {
    registry.register_collector(Box::new(Watches(health)));
}

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
            "Connections of the kubelet to an endpoint (event seen), and what the programs did with them.",
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

// === impl Pending ===

impl Collector for Pending {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let pending = i64::try_from(self.0.pending().len()).unwrap_or(i64::MAX);
        let metric = encoder.encode_descriptor(
            "readiness_pending",
            "What the daemon waits for before it is ready; 0 when ready.",
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
            ("watch_up", "1 while the API server is watched for changes."),
            None,
            |watch| Some(f64::from(u8::from(watch.is_up()))),
        )?;
        self.gauges(
            &mut encoder,
            (
                "watch_silence",
                "Since the API server last sent anything on the watch; it does so about once a minute.",
            ),
            Some(&Unit::Seconds),
            |watch| watch.silence().map(|silence| silence.as_secs_f64()),
        )?;
        self.gauges(
            &mut encoder,
            (
                "unreadable_objects",
                "Objects of the API server that can't be read; status names them.",
            ),
            None,
            |watch| Some(watch.unreadable() as f64),
        )?;
        let mut lists = encoder.encode_descriptor(
            "watch_lists",
            "Times that everything was listed anew.",
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
            "Lists and watches that ended otherwise than they should.",
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
