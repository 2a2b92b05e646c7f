//! Lists and watches one kind of objects for as long as the daemon runs, despite failures of the API server.
//!
//! It works like client-go's reflector. First it gets all objects: with a watch that begins with them if the
//! server supports that (`sendInitialEvents`, which needs little memory), else with a list. Then it gets changes
//! from that version on. A watch that ends is resumed where it ended. If the server no longer has that version, it
//! gets all objects again, at least as new as the last version seen.
//!
//! `kube::runtime::watcher` (5.0) lacks three of these properties. It does not list if the server rejects
//! `sendInitialEvents`. It cannot require a minimum version of a list: after a lost version it accepts older objects from a
//! cache that lags behind, or makes the server read everything from etcd. One object that cannot be parsed fails the whole
//! list; here it is counted and skipped.

use std::pin::pin;
use std::sync::Arc;

use futures_util::{AsyncReadExt, TryStreamExt};
use kube::Client;
use kube::api::{ListParams, VersionMatch, WatchEvent, WatchParams};
use kube::core::Request;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::health::{Health, Registered};
use super::object::{Content, Object, Resource};
use super::table::Item;
use super::watch_error::{Reason, WatchError, is_refused_as_it_is, is_too_large};
use support::backoff::{Backoff, Timeouts};

/// Page size for a list from the store; a list from the server's cache comes in one page.
const PAGE: u32 = 250;
/// Minimum time in seconds after which the server ends a watch: the same as in client-go.
const WATCH_SECONDS: u32 = 240;
/// Annotation of the bookmark that ends a watch's initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// How many transient failures in a row are reported as a problem.
const USUAL_FAILURES: u32 = 3;

/// One change of one kind of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<V> {
    /// These are all objects at this version.
    Reset(String, Vec<Item<V>>),
    /// An object was added or modified.
    Apply(Item<V>),
    /// An object was deleted.
    Delete(Item<V>),
    /// The watch has failed; `None`: it works again.
    WatchError(Option<WatchError>),
}

/// Watches objects of one kind: reads `C` from each, keeps `V`, and sends changes as messages of type `M`.
pub struct Watch<C, V, M> {
    /// The client of the API server.
    pub client: Client,
    /// Field selector; `None`: all objects.
    pub fields: Option<String>,
    /// Timeouts for the server.
    pub timeouts: Timeouts,
    /// Receives the state of the watch.
    pub health: Arc<Health>,
    /// Converts an object to what is kept of it.
    pub keep: Box<dyn Fn(Object<C>) -> Item<V> + Send + Sync>,
    /// Converts a change to a message.
    pub message: Box<dyn Fn(Change<V>) -> M + Send + Sync>,
    /// Receives the changes.
    pub changes: mpsc::Sender<M>,
}

/// Why a watch ends.
enum End {
    /// The receiver of the changes is dropped.
    ReceiverDropped,
    /// A failure.
    WatchError(WatchError),
}

impl From<WatchError> for End {
    fn from(trouble: WatchError) -> Self {
        Self::WatchError(trouble)
    }
}

/// Where to resume.
#[derive(Default)]
struct Position {
    /// The version to watch from; `None`: all objects are needed first.
    resume: Option<String>,
    /// The last version seen: nothing older is accepted.
    seen: Option<String>,
    /// Whether the server has reported that it does not have the last version seen. Then any current state is
    /// accepted.
    latest: bool,
    /// Whether the server can't begin a watch with all objects.
    lists_only: bool,
}

#[derive(Deserialize)]
#[serde(bound = "C: Content")]
struct List<C> {
    metadata: ListMeta,
    // The server sends null for an empty list.
    items: Option<Vec<Object<C>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: String,
}

impl<C: Content + Clone + Send + 'static, V: Send + 'static, M: Send + 'static> Watch<C, V, M> {
    const RESOURCE: Resource = C::RESOURCE;

    /// Watches until the receiver of the changes is dropped.
    pub async fn run(self) {
        let mut backoff = Backoff::new(&self.timeouts);
        let mut position = Position::default();
        let mut failures = 0;
        let health = self.health.of(Self::RESOURCE);
        let mut registered = health.register();
        loop {
            let began = Instant::now();
            let followed = self.follow(&mut position, &mut backoff, &mut registered);
            let end = followed.await;
            let was_up = registered.down();
            let trouble = match end {
                Err(End::ReceiverDropped) => return,
                Err(End::WatchError(trouble)) => trouble,
                Ok(()) => WatchError::new(
                    Reason::Closed,
                    format!(
                        "the API server closes each watch of {} at once",
                        Self::name()
                    ),
                ),
            };
            if was_up && began.elapsed() >= self.timeouts.steady {
                backoff.reset();
                failures = 0;
                if trouble.reason == Reason::Closed {
                    continue; // expected, after some minutes
                }
            }
            failures += 1;
            health.trouble(trouble.reason);
            if trouble.relist
                && position.resume.take().is_some()
                && trouble.reason == Reason::Expired
            {
                // The server answers again, so the long pauses between attempts end, and failures before that are over.
                backoff.reset();
                failures = 0;
            }
            let pause = backoff
                .pause()
                .max(trouble.retry_after.unwrap_or_default())
                .min(self.timeouts.longest);
            tracing::debug!(
                resource = Self::name(),
                reason = trouble.reason.name(),
                text = trouble.text,
                ?pause,
                "watch failed"
            );
            if !trouble.reason.is_usual() || failures >= USUAL_FAILURES {
                let sent = self.send(Change::WatchError(Some(trouble))).await;
                if sent.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.changes.closed() => return,
            }
        }
    }

    fn name() -> &'static str {
        Self::RESOURCE.name()
    }

    /// Watches from the current position; returns when the server ends the watch.
    async fn follow(
        &self,
        position: &mut Position,
        backoff: &mut Backoff,
        registered: &mut Registered<'_>,
    ) -> Result<(), End> {
        let (events, initial) = loop {
            if position.resume.is_none() && position.lists_only {
                self.list(position).await?;
            }
            let initial = position.resume.is_none();
            let seconds = backoff.seconds(WATCH_SECONDS);
            let request = self.watch_request(initial, &position.version(), seconds)?;
            let begun = self.client.request_events::<Object<C>>(request);
            match self
                .unless_dropped(timeout(self.timeouts.begin, begun))
                .await?
            {
                Err(_) => return Err(Self::late("begin to watch").into()),
                Ok(Ok(events)) => break (events, initial),
                Ok(Err(kube::Error::Api(status))) if initial && is_refused_as_it_is(&status) => {
                    position.lists_only = true;
                }
                Ok(Err(error)) => {
                    position.note(&error);
                    return Err(Self::failed(&error, "watch").into());
                }
            }
        };
        let mut events = pin!(events);
        if initial {
            let all = self.unless_dropped(timeout(
                self.timeouts.initial,
                self.all(events.as_mut(), position),
            ));
            match all.await? {
                Ok(all) => self.send(all?).await?,
                Err(_) => {
                    // The server may be too old for `sendInitialEvents` and have begun an ordinary watch.
                    position.lists_only = true;
                    return Err(Self::late("send all").into());
                }
            }
        }
        let health = self.health.of(Self::RESOURCE);
        registered.up();
        self.send(Change::WatchError(None)).await?;
        loop {
            let next = timeout(self.timeouts.silence, events.try_next());
            let event = match self.unless_dropped(next).await? {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(Self::failed(&error, "watch").into()),
                Err(_) => {
                    let text = format!(
                        "the API server sends nothing on the watch of {}",
                        Self::name()
                    );
                    return Err(WatchError::new(Reason::Silent, text).into());
                }
            };
            health.received();
            let (change, version) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let item = (self.keep)(object);
                    let version = item.version.clone();
                    (Some(Change::Apply(item)), version)
                }
                WatchEvent::Deleted(object) => {
                    let item = (self.keep)(object);
                    let version = item.version.clone();
                    (Some(Change::Delete(item)), version)
                }
                WatchEvent::Bookmark(bookmark) => (None, bookmark.metadata.resource_version),
                WatchEvent::Error(status) => {
                    return Err(WatchError::of_status(&status, "watch", Self::RESOURCE).into());
                }
            };
            if let Some(change) = change {
                self.send(change).await?;
            }
            // The position moves after the change is sent: a change whose sending is cancelled is received again.
            if !version.is_empty() {
                position.resume = Some(version.clone());
                position.seen = Some(version);
            }
        }
    }

    /// All objects, from the initial events of the watch.
    async fn all<S>(&self, mut events: S, position: &mut Position) -> Result<Change<V>, WatchError>
    where
        S: futures_util::Stream<Item = kube::Result<WatchEvent<Object<C>>>> + Unpin,
    {
        let mut items = Vec::new();
        loop {
            let event = events
                .try_next()
                .await
                .map_err(|error| Self::failed(&error, "watch"))?;
            match event {
                Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    items.push((self.keep)(object));
                }
                Some(WatchEvent::Deleted(object)) => {
                    items.retain(|item| item.name != object.name);
                }
                Some(WatchEvent::Bookmark(bookmark)) => {
                    let metadata = bookmark.metadata;
                    if metadata.annotations.contains_key(INITIAL_EVENTS_END) {
                        self.health.of(Self::RESOURCE).listed();
                        return Ok(position.reached(metadata.resource_version, items));
                    }
                }
                Some(WatchEvent::Error(status)) => {
                    let error = kube::Error::Api(status);
                    position.note(&error);
                    return Err(Self::failed(&error, "watch"));
                }
                None => {
                    let text = format!(
                        "the API server ended the watch of {} before it had sent all of them",
                        Self::name()
                    );
                    return Err(WatchError::new(Reason::Closed, text));
                }
            }
        }
    }

    /// All objects, from a list: from the server's cache, at least as new as the last version seen; or from the
    /// store, in pages, if the cache is older than that.
    async fn list(&self, position: &mut Position) -> Result<(), End> {
        let paged = position.latest;
        let version = Some(position.version()).filter(|version| !version.is_empty());
        let mut params = ListParams {
            field_selector: self.fields.clone(),
            limit: paged.then_some(PAGE),
            version_match: version.as_ref().map(|_| VersionMatch::NotOlderThan),
            resource_version: version,
            ..ListParams::default()
        };
        let mut items = Vec::new();
        let version = loop {
            let request = if Self::RESOURCE == Resource::Namespaces {
                Self::request().list_metadata(&params)
            } else {
                Self::request().list(&params)
            }
            .map_err(|error| Self::unsendable(&error))?;
            let page = self.unless_dropped(timeout(self.timeouts.list, self.page(request)));
            let page = match page.await? {
                Err(_) => return Err(Self::late("list").into()),
                Ok(Ok(page)) => page,
                Ok(Err(error)) => {
                    position.note(&error);
                    return Err(Self::failed(&error, "list").into());
                }
            };
            items.extend(page.items.into_iter().flatten().map(&self.keep));
            if page.metadata.next.is_empty() {
                break page.metadata.resource_version;
            }
            params.continue_token = Some(page.metadata.next);
        };
        self.health.of(Self::RESOURCE).listed();
        self.send(position.reached(version, items)).await
    }

    async fn page(&self, request: http::Request<Vec<u8>>) -> kube::Result<List<C>> {
        let mut body = Vec::new();
        let mut stream = pin!(self.client.request_stream(request).await?);
        let _ = stream
            .read_to_end(&mut body)
            .await
            .map_err(kube::Error::ReadEvents)?;
        serde_json::from_slice(&body).map_err(kube::Error::SerdeError)
    }

    fn request() -> Request {
        Request::new(format!("/api/v1/{}", Self::name()))
    }

    fn watch_request(
        &self,
        initial: bool,
        version: &str,
        seconds: u32,
    ) -> Result<http::Request<Vec<u8>>, WatchError> {
        let params = WatchParams {
            field_selector: self.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            send_initial_events: initial,
            ..WatchParams::default()
        };
        if Self::RESOURCE == Resource::Namespaces {
            Self::request().watch_metadata(&params, version)
        } else {
            Self::request().watch(&params, version)
        }
        .map_err(|error| Self::unsendable(&error))
    }

    async fn send(&self, change: Change<V>) -> Result<(), End> {
        self.changes
            .send((self.message)(change))
            .await
            .map_err(|_| End::ReceiverDropped)
    }

    async fn unless_dropped<T>(&self, future: impl Future<Output = T>) -> Result<T, End> {
        tokio::select! {
            () = self.changes.closed() => Err(End::ReceiverDropped),
            output = future => Ok(output),
        }
    }

    fn failed(error: &kube::Error, verb: &str) -> WatchError {
        WatchError::of_client(error, verb, Self::RESOURCE)
    }

    fn late(what: &str) -> WatchError {
        let text = format!("the API server took too long to {what} {}", Self::name());
        WatchError::new(Reason::Timeout, text)
    }

    fn unsendable(error: &kube::core::request::Error) -> WatchError {
        let text = format!("can't build a request for {}: {error}", Self::name());
        WatchError::new(Reason::Malformed, text)
    }
}

impl Position {
    /// The version to request.
    fn version(&self) -> String {
        match (&self.resume, &self.seen) {
            (Some(version), _) => version.clone(),
            (None, _) if self.latest => String::new(),
            (None, Some(version)) => version.clone(),
            // Accepts any version that the server has in its cache, because a list from the store is expensive
            // in large clusters.
            (None, None) => "0".to_owned(),
        }
    }

    /// Records, from an error of the server, that it does not have the last version seen.
    fn note(&mut self, error: &kube::Error) {
        if let kube::Error::Api(status) = error
            && self.resume.is_none()
        {
            self.latest |= is_too_large(status) || status.code == 410;
        }
    }

    /// All objects at `version` are known.
    fn reached<V>(&mut self, version: String, items: Vec<Item<V>>) -> Change<V> {
        self.latest = false;
        self.resume = Some(version.clone());
        self.seen = Some(version.clone());
        Change::Reset(version, items)
    }
}
