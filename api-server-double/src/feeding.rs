//! A watch: its initial events, the events that follow, and its end.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::answer::{full, not_older, selected, shown, status, status_body};
use super::{Asked, Body, Cut, Order, Shared};

pub(super) fn begin_watch(shared: Arc<Shared>, asked: &Asked) -> Response<Body> {
    let state = shared.state.lock();
    let version = asked.param("resourceVersion").to_owned();
    let initial = asked.param("sendInitialEvents") == "true";
    if initial && !state.streams_initial {
        let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return status(422, "Invalid", message);
    }
    let mut lines = Vec::new();
    let from = if initial {
        if let Err(refusal) = not_older(&state, asked) {
            return *refusal;
        }
        for ((resource, ..), object) in &state.objects {
            if *resource == asked.resource && selected(asked, object) {
                lines.push(line("ADDED", &shown(asked, object)));
            }
        }
        lines.push(bookmark(asked, state.revision, true));
        state.revision
    } else {
        let from: u64 = version.parse().expect("a version to start from");
        if from < state.compacted {
            // The response has begun, so the error is an event.
            let message = format!("too old resource version: {from} ({})", state.compacted);
            lines.push(line("ERROR", &status_body(410, "Expired", &message)));
            return Response::new(full(lines.concat()));
        }
        from
    };
    let (tx, rx) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(64);
    let changed = shared.changed.subscribe();
    let orders = shared.orders.subscribe();
    drop(state);
    let feeding = Feeding {
        shared: Arc::clone(&shared),
        asked: asked.clone(),
        from,
        tx,
    };
    drop(tokio::spawn(feeding.run(lines, changed, orders)));
    let body = stream::unfold(rx, |mut rx| async { Some((rx.recv().await?, rx)) });
    Response::new(BodyExt::boxed(StreamBody::new(body)))
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn bookmark(asked: &Asked, revision: u64, initial_end: bool) -> String {
    let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    if initial_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let (version, kind) = crate::kind(&asked.resource);
    let object = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
    line("BOOKMARK", &object)
}

/// Sends events on one watch.
struct Feeding {
    shared: Arc<Shared>,
    asked: Asked,
    from: u64,
    tx: mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
}

/// The client has closed the connection.
struct Gone;

impl Feeding {
    async fn run(
        mut self,
        lines: Vec<String>,
        mut changed: watch::Receiver<u64>,
        mut orders: tokio::sync::broadcast::Receiver<(String, Order)>,
    ) {
        self.count(1);
        let _: Result<(), Gone> = async {
            for line in lines {
                self.send(line).await?;
            }
            loop {
                for line in self.news() {
                    self.send(line).await?;
                }
                tokio::select! {
                    () = self.tx.closed() => return Err(Gone),
                    change = changed.changed() => if change.is_err() { return Ok(()) },
                    order = orders.recv() => match order {
                        Ok((resource, order)) if resource == self.asked.resource => {
                            for line in self.news() {
                                self.send(line).await?;
                            }
                            match order {
                                Order::Bookmark => {
                                    let line = bookmark(&self.asked, self.from, false);
                                    self.send(line).await?;
                                }
                                Order::Cut(cut) => return self.cut(cut).await,
                            }
                        }
                        Ok(_) => {}
                        Err(_) => return Ok(()),
                    },
                }
            }
        }
        .await;
        self.count(-1);
    }

    fn count(&self, by: isize) {
        let mut state = self.shared.state.lock();
        let count = state
            .watching
            .entry(self.asked.resource.clone())
            .or_default();
        *count = count.saturating_add_signed(by);
        drop(state);
        self.shared.progress.send_modify(|count| *count += 1);
    }

    /// Events since the last call that match this watch's selector.
    fn news(&mut self) -> Vec<String> {
        let state = self.shared.state.lock();
        let mut lines = Vec::new();
        let seen = state
            .events
            .partition_point(|event| event.revision <= self.from);
        for event in &state.events[seen..] {
            self.from = event.revision;
            if event.resource != self.asked.resource {
                continue;
            }
            let visible = |object: &Option<Value>| {
                let object = object.as_ref();
                object
                    .filter(|object| selected(&self.asked, object))
                    .cloned()
            };
            let (kind, object) = match (visible(&event.before), visible(&event.after)) {
                (None, None) => continue,
                (None, Some(after)) => ("ADDED", after),
                (Some(_), Some(after)) => ("MODIFIED", after),
                (Some(mut before), None) => {
                    // Also for an object that no longer matches: its old state with the new revision.
                    before["metadata"]["resourceVersion"] = json!(event.revision.to_string());
                    ("DELETED", before)
                }
            };
            lines.push(line(kind, &shown(&self.asked, &object)));
        }
        lines
    }

    async fn send(&self, text: String) -> Result<(), Gone> {
        let frame = Frame::data(Bytes::from(text));
        self.tx.send(Ok(frame)).await.map_err(|_| Gone)
    }

    async fn cut(&self, cut: Cut) -> Result<(), Gone> {
        match cut {
            Cut::End => Ok(()),
            Cut::MidLine => {
                let half = r#"{"type":"MODIFIED","object":{"kind":"Pod","metadata":{"na"#;
                self.send(half.to_owned()).await?;
                let error = std::io::Error::other("closed on purpose");
                self.tx.send(Err(error)).await.map_err(|_| Gone)
            }
            Cut::Error(code, reason, message) => {
                let line = line("ERROR", &status_body(code, reason, message));
                self.send(line).await
            }
        }
    }
}
