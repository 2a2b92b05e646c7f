//! Fixtures for tests of metrics, in this crate and in those that add metrics to the same registry.

use std::time::Duration;

use model::{Action, PodId, Probe, ProbeKind, ProbeMode, Schedule};
use probe::verdict::{Reason, Verdict};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::table::Route;

/// A pod of namespace `shop`.
pub fn pod(name: &str, uid: &str) -> PodId {
    PodId {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    }
}

/// A probe of container `app`.
pub fn member(kind: ProbeKind, action: Action) -> Probe {
    Probe {
        container: "app".to_owned(),
        kind,
        action,
        timeout: (!kind.is_hook()).then_some(Duration::from_secs(1)),
        schedule: Schedule::default(),
    }
}

/// A route with one TCP probe of container `app`.
pub fn route(kind: ProbeKind) -> Route {
    Route {
        members: vec![member(kind, Action::Tcp { port: 80 })],
        action: Action::Tcp { port: 80 },
        timeout: None,
        shorter: Vec::new(),
        mode: ProbeMode::Transparent,
        agents: Vec::new(),
        stats: Default::default(),
    }
}

/// A verdict after 2 ms.
pub fn verdict(reason: Reason, status: u16) -> Verdict {
    Verdict {
        reason,
        status,
        detail: String::new(),
        latency: Some(Duration::from_millis(2)),
    }
}

/// The text of a scrape.
pub fn scrape(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).expect("writing to a string");
    text
}
