//! The bearer token that each request to the API server bears, read from its file each time.
//!
//! A ServiceAccount's token is replaced every hour or so. kube's own layer keeps it for a minute by the
//! wall clock: on a node whose clock was ahead when the daemon started, and was set right then, that minute
//! can last for days. There are a few requests an hour, and the file is a kilobyte in memory.

use std::path::PathBuf;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request};
use kube::client::AuthError;
use parking_lot::Mutex;
use tower::BoxError;

/// A token file.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
    last: Arc<Mutex<Option<HeaderValue>>>,
}

impl TokenFile {
    /// The token is in the file at `path`, whenever a request is made.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            last: Arc::default(),
        }
    }

    /// Adds the token. Where the file can't be read, the last one read will do: some remove the file once it
    /// was read.
    ///
    /// # Errors
    /// [`AuthError`]: there never was one, or it is no text that a header can hold.
    pub fn authorize<B>(&self, mut request: Request<B>) -> Result<Request<B>, BoxError> {
        let mut last = self.last.lock();
        match std::fs::read_to_string(&self.path) {
            Ok(token) => {
                let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
                    .map_err(AuthError::InvalidBearerToken)?;
                value.set_sensitive(true);
                *last = Some(value);
            }
            Err(error) if last.is_none() => {
                return Err(AuthError::ReadTokenFile(error, self.path.clone()).into());
            }
            Err(_) => {}
        }
        if let Some(value) = &*last {
            let _ = request.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        Ok(request)
    }
}
