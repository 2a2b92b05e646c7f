//! Manages the certificate that the webhook issues itself: keeps Secret, caBundle and served certificate consistent,
//! and renews it in time. Every replica does the same, without a leader: the first write is valid for all replicas.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Serving;
use super::pair::Pair;
use super::store::{Store, StoreError};
use super::trust::{Needs, Step, Trust, step};
use crate::metrics::Metrics;
use support::backoff::{Backoff, Timeouts};

/// Interval of the checks.
pub const POLL: Duration = Duration::from_secs(15);
/// How many times another replica may write first during one check.
const ATTEMPTS: usize = 8;

/// Returns the current time.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Manages the certificate.
pub struct CertManager {
    store: Store,
    needs: Needs,
    clock: Clock,
    serving: Arc<Serving>,
    metrics: Arc<Metrics>,
    /// The last valid content of the Secret.
    held: Option<Trust>,
    served: Option<Pair>,
    /// The caBundle that was in place at the last check, and since when.
    in_place: Option<(String, SystemTime)>,
    /// The last logged error.
    trouble: Option<String>,
}

impl CertManager {
    /// Keeps the objects of `store` as `needs` require, and `serving` up to date.
    pub fn new(
        store: Store,
        needs: Needs,
        clock: Clock,
        serving: Arc<Serving>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            store,
            needs,
            clock,
            serving,
            metrics,
            held: None,
            served: None,
            in_place: None,
            trouble: None,
        }
    }

    /// Checks repeatedly; never returns. Drops `first` when there is a certificate to serve.
    pub async fn run<B>(mut self, first: B) {
        let mut first = Some(first);
        let paced = |first| {
            Backoff::new(&Timeouts {
                first,
                longest: POLL,
                ..Timeouts::default()
            })
        };
        let mut backoff = paced(Timeouts::default().first);
        let mut steady = paced(POLL);
        loop {
            let looked = self.look().await;
            if self.served.is_some() {
                first = None;
            }
            let pause = match looked {
                Ok(()) => {
                    self.trouble = None;
                    backoff.reset();
                    steady.pause()
                }
                Err(error) => {
                    let text = error.to_string();
                    if self.trouble.as_ref() != Some(&text) {
                        let ready = first.is_none();
                        tracing::warn!(error = %text, ready, "can't keep the webhook's certificate up to date");
                        self.trouble = Some(text);
                    }
                    backoff.pause()
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Checks once, and makes the necessary changes.
    ///
    /// # Errors
    /// A request failed; the served certificate is unchanged.
    pub async fn look(&mut self) -> Result<(), StoreError> {
        let mut conflicts = 0;
        loop {
            match self.try_once().await {
                Err(StoreError::Conflict) if conflicts < ATTEMPTS => conflicts += 1,
                looked => return looked,
            }
        }
    }

    async fn try_once(&mut self) -> Result<(), StoreError> {
        // Read before the Secret: a later change of the caBundle makes our patch fail, so that an older bundle
        // never replaces a newer one.
        let configured = self.store.configuration().await;
        let stored = self.store.secret().await?;
        let now = (self.clock)();
        let trust = stored.trust();
        let settled = match (&trust, &configured) {
            (Some(trust), Ok(configured)) => {
                self.store.trusts(configured, trust.bundle()) && self.is_settled(trust, now)
            }
            _ => false,
        };
        let next = step(
            trust.as_ref(),
            self.held.as_ref(),
            settled,
            &self.needs,
            now,
        )
        .map_err(|error| StoreError::Failed {
            verb: "make a certificate".to_owned(),
            message: error.to_string(),
        })?;
        let trust = match (next, trust) {
            (Step::Keep, Some(trust)) => trust,
            (Step::Keep, None) => return Ok(()),
            (Step::Write(trust, why), _) => {
                self.store.write(stored, &trust).await?;
                tracing::info!(?why, "wrote the webhook's certificate");
                trust
            }
        };
        self.serve(&trust, now);
        let trusted = match configured {
            Ok(configured) => self.store.trust(&configured, trust.bundle()).await,
            Err(error) => Err(error),
        };
        match &trusted {
            Ok(changed) => {
                if *changed {
                    tracing::info!("updated caBundle");
                }
                let before = self.in_place.as_ref().map(|(bundle, _)| bundle.as_str());
                if *changed || before != Some(trust.bundle()) {
                    self.in_place = Some((trust.bundle().to_owned(), now));
                }
            }
            Err(_) => self.in_place = None,
        }
        self.metrics.set_in_place(trusted.is_ok());
        self.held = Some(trust);
        trusted.map(drop)
    }

    /// Whether the whole bundle has been in place long enough for all API servers to use it.
    fn is_settled(&self, trust: &Trust, now: SystemTime) -> bool {
        self.in_place.as_ref().is_some_and(|(bundle, since)| {
            bundle == trust.bundle() && *since + self.needs.lifetimes.settle <= now
        })
    }

    fn serve(&mut self, trust: &Trust, now: SystemTime) {
        let Some(pair) = trust.serving(&self.needs, now) else {
            return;
        };
        if self.served.as_ref() != Some(&pair) {
            self.serving.install(&pair);
            self.metrics.certificate(Some(pair.expiry()));
            tracing::info!("serving a new certificate");
            self.served = Some(pair);
        }
    }
}
