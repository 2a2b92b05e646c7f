//! The settings in a ConfigMap that is watched in the API server: a change counts at once. To a mounted file the
//! kubelet takes it a minute later.

use std::pin::pin;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};

use super::{Holder, parse};
use crate::pods::kube::trouble::chain;
use crate::webhook::Rewriting;

/// Follows the settings in ConfigMap `name` of `namespace`, through whatever the API server does. Where there is
/// none, the defaults hold; where it was deleted, what held last. Never ends.
pub async fn follow<B>(client: Client, namespace: &str, name: &str, mut holder: Holder<B>) {
    let place = format!("ConfigMap {namespace}/{name}");
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let config_maps: Api<ConfigMap> = Api::namespaced(client, namespace);
    // After a failure it begins anew, later and later, and with everything there is.
    let mut events = pin!(watcher(config_maps, only).default_backoff());
    let mut listed = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed = None,
            Ok(Event::InitApply(map)) => listed = Some(map),
            Ok(Event::InitDone) => match listed.take() {
                Some(map) => holder.read(&place, settings(&map)),
                None => missing(&place, &mut holder),
            },
            Ok(Event::Apply(map)) => holder.read(&place, settings(&map)),
            Ok(Event::Delete(_)) => missing(&place, &mut holder),
            Err(error) => holder.read(
                &place,
                Err(format!(
                    "it can't be watched (the Role of deploy/webhook allows it): {}",
                    chain(&error)
                )),
            ),
        }
    }
}

fn missing<B>(place: &str, holder: &mut Holder<B>) {
    if holder.is_waiting() {
        holder.read(place, Ok(Rewriting::default()));
    } else {
        tracing::warn!(place, "it is not there; the last good settings hold");
    }
}

fn settings(map: &ConfigMap) -> Result<Rewriting, String> {
    let data = map.data.as_ref();
    parse(|key| Ok(data.and_then(|data| data.get(key)).cloned())).map_err(|error| error.to_string())
}
