//! The answers of all daemons to one request.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use crate::cluster::Cluster;
use crate::daemons::{Daemon, Daemons};
use crate::forward::{self, Answer, Failure};
use crate::progress::Progress;
use support::build::VERSION;

/// Requests `path` from all daemons, and reads each answer. Returns the results in the order of the daemons.
pub async fn gather<T: Send + 'static>(
    cluster: &Cluster,
    daemons: &Daemons,
    path: &str,
    read: impl Fn(&Answer) -> Result<T, Failure> + Send + Sync + 'static,
) -> Vec<(Daemon, Result<T, Failure>)> {
    let (path, read): (Arc<str>, _) = (path.into(), Arc::new(read));
    let timeout = cluster.timeout;
    each(cluster, daemons, move |api, daemon| {
        let (path, read) = (Arc::clone(&path), Arc::clone(&read));
        async move { read(&forward::get(&api, &daemon, &path, timeout).await?) }
    })
    .await
}

/// Calls `request` for all daemons, some at a time. Returns the results in their order.
pub async fn each<T: Send + 'static, R>(
    cluster: &Cluster,
    daemons: &Daemons,
    request: impl Fn(Api<Pod>, Daemon) -> R,
) -> Vec<(Daemon, Result<T, Failure>)>
where
    R: Future<Output = Result<T, Failure>> + Send + 'static,
{
    let mut progress = Progress::new(daemons.all.len());
    let request = &request;
    let requests = daemons
        .all
        .iter()
        .enumerate()
        .map(|(index, daemon)| async move {
            // Runs the requests as tasks, because reading the answers takes most of the time and can use all
            // processors.
            let task = tokio::spawn(request(daemons.api.clone(), daemon.clone()));
            let result = task.await;
            let result = result.unwrap_or_else(|error| Err(Failure::Daemon(error.to_string())));
            (index, daemon.clone(), result)
        });
    let mut requests = stream::iter(requests).buffer_unordered(cluster.parallel);
    let mut results = Vec::with_capacity(daemons.all.len());
    while let Some(result) = requests.next().await {
        progress.one_more();
        results.push(result);
    }
    results.sort_by_key(|(index, ..)| *index);
    let results = results.into_iter();
    results
        .map(|(_, daemon, result)| (daemon, result))
        .collect()
}

/// Reads the JSON of an answer with status 200.
///
/// # Errors
/// It has another status, or it can't be parsed because the daemon has another version.
pub fn json<T: serde::de::DeserializeOwned>(answer: &Answer) -> Result<T, Failure> {
    let body = &answer.body;
    if answer.status != StatusCode::OK {
        let status = answer.status.as_u16();
        let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
        let text = text.trim();
        return Err(Failure::Daemon(format!(
            "the daemon answered {status}: {text}"
        )));
    }
    serde_json::from_slice(body).map_err(|error| {
        #[derive(serde::Deserialize)]
        struct OnlyVersion {
            version: String,
        }
        let theirs = serde_json::from_slice(body).map(|OnlyVersion { version }| version);
        Failure::Daemon(match theirs {
            Ok(theirs) => format!(
                "the daemon has version {theirs}, and its answer can't be read by this plugin's {VERSION} ({error})"
            ),
            Err(_) => format!(
                "the answer can't be read ({error}): does the daemon have another version than this plugin ({VERSION})?"
            ),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use status_view::status::Status;

    fn read(status: StatusCode, body: &'static str) -> String {
        let body = body.into();
        let read = json::<Status>(&Answer { status, body });
        read.expect_err("no status").to_string()
    }

    #[test]
    fn an_answer_of_another_version_is_named_with_that_version() {
        let why = read(StatusCode::OK, r#"{"version": "9.1.0", "pods": {}}"#);
        assert!(why.contains("version 9.1.0"), "{why}");
        let why = read(StatusCode::OK, "hello");
        assert!(why.contains("another version"), "{why}");
        let why = read(StatusCode::NOT_FOUND, "not found\n");
        assert_eq!(why, "the daemon answered 404: not found");
    }
}
