//! Sends Events to the API server, one at a time and in order. Retries while the API server is unreachable.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Status;
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::correlate::{Correlator, Write};
use crate::event::{PodEvent, time};
use crate::outcome::{Outcome, Outcomes};
use support::backoff::{Backoff, Timeouts};
use support::error_chain::chain;

/// Maximum number of queued Events.
const WAITING: usize = 256;
/// Maximum number of attempts for one Event, within about ten minutes, because the Event itself may be the
/// cause of the failure.
const TRIES: usize = 12;
/// Maximum time for a request.
const REQUEST: Duration = Duration::from_secs(10);

/// Queues Events without blocking.
#[derive(Clone, Debug)]
pub struct Events {
    waiting: mpsc::Sender<PodEvent>,
    outcomes: Arc<Outcomes>,
}

/// The queued Events.
#[derive(Debug)]
pub struct Queue {
    waiting: mpsc::Receiver<PodEvent>,
    outcomes: Arc<Outcomes>,
}

/// A bounded queue of Events, whose outcomes are counted in `outcomes`.
pub fn queue(outcomes: Arc<Outcomes>) -> (Events, Queue) {
    let (waiting, queue) = mpsc::channel(WAITING);
    let events = Events {
        waiting,
        outcomes: Arc::clone(&outcomes),
    };
    let queue = Queue {
        waiting: queue,
        outcomes,
    };
    (events, queue)
}

impl Events {
    /// Adds an Event; drops it if the queue is full.
    pub fn add(&self, event: PodEvent) {
        if self.waiting.try_send(event.bounded()).is_err() {
            self.outcomes.count(Outcome::Lost);
        }
    }
}

/// Why a request failed.
enum Failure {
    /// The API server has no such object.
    Gone,
    /// It already has an object with that name.
    Exists,
    /// It will never accept the request.
    Refused(String),
    /// The daemon lacks the permission.
    Forbidden(String),
    /// It may accept the request later.
    Later(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) => match status.code {
                404 => Self::Gone,
                409 => Self::Exists,
                // The token may have expired, or the server is overloaded.
                401 | 429 | 500.. => Self::Later(chain(&error)),
                403 if lacks_permission(status) => Self::Forbidden(chain(&error)),
                _ => Self::Refused(chain(&error)),
            },
            _ => Self::Later(chain(&error)),
        }
    }
}

/// Whether a 403 is that of the authorizer, whose message names verb and resource (apiserver pkg/endpoints/handlers/responsewriters
/// `forbiddenMessage`). Admission refuses objects by 403 too: in a namespace that is being deleted, beyond a quota, by a policy.
fn lacks_permission(status: &Status) -> bool {
    status.message.contains(" cannot ") && status.message.contains(" resource ")
}

/// Sends the Events of `queue` from `node`, until their senders are dropped.
pub async fn run(client: Client, node: String, mut queue: Queue, pauses: Timeouts) {
    let mut sender = Sender {
        client,
        node,
        correlator: Correlator::default(),
        outcomes: Arc::clone(&queue.outcomes),
        backoff: Backoff::new(&pauses),
        trouble: false,
        created: 0,
    };
    while let Some(event) = queue.waiting.recv().await {
        sender.send(event).await;
    }
}

struct Sender {
    client: Client,
    node: String,
    correlator: Correlator,
    outcomes: Arc<Outcomes>,
    backoff: Backoff,
    /// Whether a failure was logged, and nothing has succeeded since.
    trouble: bool,
    created: u64,
}

impl Sender {
    async fn send(&mut self, event: PodEvent) {
        let (event, key, mut write) = self.correlator.add(event);
        let api: Api<Event> = Api::namespaced(self.client.clone(), &event.pod.namespace);
        for _ in 0..TRIES {
            let (done, name) = match &write {
                Write::Nothing => {
                    self.outcomes.count(Outcome::Limited);
                    return;
                }
                Write::Create { count, first_ms } => {
                    // Names are unique, because each of two daemons on a node counts from its own start time.
                    self.created += 1;
                    let unique = event
                        .at_ms
                        .wrapping_mul(1_000_000)
                        .wrapping_add(self.created);
                    let name = event.object_name(unique);
                    let object = event.object(name.clone(), &self.node, *count, *first_ms);
                    (
                        request(api.create(&PostParams::default(), &object)).await,
                        name,
                    )
                }
                Write::Update { name, count, .. } => {
                    let change = json!({
                        "count": count,
                        "message": event.message,
                        "lastTimestamp": time(event.at_ms),
                    });
                    let (change, how) = (Patch::Strategic(change), PatchParams::default());
                    let patched = api.patch(name, &how, &change);
                    (request(patched).await, name.clone())
                }
            };
            match (done, &write) {
                (Ok(()), _) => {
                    if std::mem::take(&mut self.trouble) {
                        tracing::info!("Events can be sent again");
                    }
                    self.backoff.reset();
                    self.correlator.wrote(&key, Some(name));
                    self.outcomes.count(Outcome::Sent);
                    return;
                }
                // It has expired.
                (
                    Err(Failure::Gone),
                    Write::Update {
                        count, first_ms, ..
                    },
                ) => {
                    self.correlator.wrote(&key, None);
                    write = Write::Create {
                        count: *count,
                        first_ms: *first_ms,
                    };
                }
                // An earlier attempt, whose answer was lost, or another daemon created the object. The next
                // attempt uses another name.
                (Err(Failure::Exists), Write::Create { .. }) => self.pause().await,
                (Err(Failure::Gone), _) => {
                    return self.refused(&event, "its namespace no longer exists");
                }
                (Err(Failure::Exists), _) => {
                    return self.refused(&event, "another client changed it");
                }
                (Err(Failure::Refused(why)), _) => return self.refused(&event, &why),
                (Err(Failure::Forbidden(why)), _) => {
                    self.refused(&event, &why);
                    return self.warn(&format!(
                        "{why}; install component events of deploy/, or remove --events"
                    ));
                }
                (Err(Failure::Later(why)), _) => {
                    self.warn(&format!("{why}; Events are queued and sent later"));
                    self.pause().await;
                }
            }
        }
        self.outcomes.count(Outcome::Lost);
    }

    fn refused(&mut self, event: &PodEvent, why: &str) {
        self.outcomes.count(Outcome::Refused);
        tracing::debug!(pod = %event.pod, reason = event.reason, why, "the API server refuses an Event");
    }

    /// Warns once, until something succeeds.
    fn warn(&mut self, why: &str) {
        if !std::mem::replace(&mut self.trouble, true) {
            tracing::warn!("cannot send Events: {why}");
        }
    }

    async fn pause(&mut self) {
        sleep(self.backoff.pause()).await;
    }
}

async fn request<T>(request: impl Future<Output = kube::Result<T>>) -> Result<(), Failure> {
    match timeout(REQUEST, request).await {
        Ok(done) => done.map(drop).map_err(Failure::from),
        Err(_) => Err(Failure::Later(format!("no answer within {REQUEST:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(status: serde_json::Value) -> Failure {
        let status: Status = serde_json::from_value(status).expect("a Status");
        kube::Error::Api(status.boxed()).into()
    }

    #[test]
    fn only_a_refusal_by_rbac_is_a_missing_permission() {
        let by_rbac = failure(json!({
            "status": "Failure", "reason": "Forbidden", "code": 403, "details": {"kind": "events"},
            "message": "events is forbidden: User \"system:serviceaccount:a:b\" cannot create resource \"events\" in API group \"\" \
                        in the namespace \"exceeded quota\"",
        }));
        assert!(matches!(by_rbac, Failure::Forbidden(_)));
        let terminating = failure(json!({
            "status": "Failure", "reason": "Forbidden", "code": 403,
            "message": "events \"a.1\" is forbidden: unable to create new content in namespace shop because it is being terminated",
            "details": {"name": "a.1", "kind": "events", "causes": [{
                "reason": "NamespaceTerminating", "message": "namespace shop is being terminated", "field": "metadata.namespace",
            }]},
        }));
        assert!(matches!(terminating, Failure::Refused(_)));
        let quota = failure(json!({
            "status": "Failure", "reason": "Forbidden", "code": 403, "details": {"name": "a.1", "kind": "events"},
            "message": "events \"a.1\" is forbidden: exceeded quota: q, requested: count/events=1, used: count/events=9, limited: \
                        count/events=9",
        }));
        assert!(matches!(quota, Failure::Refused(_)));
    }
}
