//! Metrics that are read from elsewhere at each scrape.

use std::fmt;
use std::sync::Arc;

use probe_handler_common::counters::Counter;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::readiness::Readiness;

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

struct KernelCounters(ReadCounters);

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
