//! Metrics of the daemon's own process, with the names that all Prometheus clients use.

use std::fmt;

use procfs::process::{LimitValue, Process};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// Registers the metrics `process_...` in `registry`, which must have no prefix.
pub fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(OwnProcess));
}

#[derive(Debug)]
struct OwnProcess;

impl Collector for OwnProcess {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        // Without /proc there are none of these metrics.
        let Ok(process) = Process::myself() else {
            return Ok(());
        };
        let Ok(stat) = process.stat() else {
            return Ok(());
        };
        let ticks = procfs::ticks_per_second() as f64;
        let cpu = encoder.encode_descriptor(
            "process_cpu",
            "Processor time that the process has used, in user space and in the kernel.",
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?;
        ConstCounter::new((stat.utime + stat.stime) as f64 / ticks).encode(cpu)?;
        let start =
            procfs::boot_time_secs().unwrap_or_default() as f64 + stat.starttime as f64 / ticks;
        let open = process.fd_count().unwrap_or_default() as f64;
        let limit = process
            .limits()
            .map(|limits| limits.max_open_files.soft_limit);
        let max = match limit {
            Ok(LimitValue::Value(max)) => max as f64,
            Ok(LimitValue::Unlimited) => f64::INFINITY,
            Err(_) => f64::NAN,
        };
        let resident = (stat.rss * procfs::page_size()) as f64;
        for (name, help, unit, value) in [
            (
                "process_start_time",
                "When the process was started, since 1970.",
                Some(Unit::Seconds),
                start,
            ),
            (
                "process_resident_memory",
                "Resident memory of the process.",
                Some(Unit::Bytes),
                resident,
            ),
            (
                "process_virtual_memory",
                "Address space of the process.",
                Some(Unit::Bytes),
                stat.vsize as f64,
            ),
            ("process_open_fds", "Open file descriptors.", None, open),
            (
                "process_max_fds",
                "Maximum number of open file descriptors.",
                None,
                max,
            ),
            (
                "process_threads",
                "Threads of the process.",
                None,
                stat.num_threads as f64,
            ),
        ] {
            let metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn the_process_has_the_usual_metrics() {
        let mut registry = Registry::default();
        register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).expect("text");
        for name in [
            "process_cpu_seconds_total",
            "process_start_time_seconds",
            "process_resident_memory_bytes",
            "process_virtual_memory_bytes",
            "process_open_fds",
            "process_max_fds",
            "process_threads",
        ] {
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{name} ")))
                .and_then(|value| value.parse::<f64>().ok());
            // The processor time may be less than a tick.
            let least = if name.contains("cpu") { 0.0 } else { 1.0 };
            assert!(
                value.is_some_and(|value| value >= least),
                "{name}: {value:?}\n{text}"
            );
        }
    }
}
