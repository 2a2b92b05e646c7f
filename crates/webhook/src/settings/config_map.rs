//! The settings in a ConfigMap that is watched in the API server: a change applies at once, while the kubelet
//! updates a mounted file up to a minute later.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, DefaultBackoff, Event, watcher};
use kube::{Api, Client};

use super::{Holder, parse};
use crate::Rewriting;
use support::error_chain::chain;

/// Longest pause between attempts, so that a change made while the API server was unreachable applies within 5 s.
const LONGEST: Duration = Duration::from_secs(3);

/// Follows the settings in ConfigMap `name` of `namespace`, regardless of API server failures. If it does not
/// exist, the defaults apply; if it is deleted, the last settings stay in use. Never returns.
pub async fn follow<B>(client: Client, namespace: &str, name: &str, mut holder: Holder<B>) {
    let place = format!("ConfigMap {namespace}/{name}");
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let config_maps: Api<ConfigMap> = Api::namespaced(client, namespace);
    // After a failure the watcher tries again, and resumes the watch or lists again.
    let mut events = pin!(watcher(config_maps, only).backoff(Soon(DefaultBackoff::default())));
    let mut listed = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed = None,
            Ok(Event::InitApply(map)) => listed = Some(map),
            Ok(Event::InitDone) => match listed.take() {
                Some(map) => holder.read(&place, settings(&map)),
                None => holder.missing(&place),
            },
            Ok(Event::Apply(map)) => holder.read(&place, settings(&map)),
            Ok(Event::Delete(_)) => holder.missing(&place),
            Err(error) => {
                let why = chain(&error);
                holder.out_of_sight(
                    &place,
                    format!(
                        "it can't be watched (deploy/webhook has a Role that allows it): {why}"
                    ),
                );
            }
        }
    }
}

/// The pauses of client-go, limited to [`LONGEST`].
struct Soon(DefaultBackoff);

impl Iterator for Soon {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|wait| wait.min(LONGEST))
    }
}

impl Backoff for Soon {
    fn reset(&mut self) {
        self.0.reset();
    }
}

fn settings(map: &ConfigMap) -> Result<Rewriting, String> {
    let data = map.data.as_ref();
    parse(|key| Ok(data.and_then(|data| data.get(key)).cloned())).map_err(|error| error.to_string())
}
