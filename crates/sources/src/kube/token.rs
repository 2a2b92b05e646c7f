//! The bearer token for requests to the API server, read from its file for each request.
//!
//! A ServiceAccount's token is replaced every hour or so. kube's own layer caches it for a minute by the wall
//! clock: on a node whose clock was ahead when the daemon started and was corrected then, that minute can last for
//! days. Reading it each time is cheap: there are a few requests an hour, and the file is a kilobyte in memory.

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
    /// The token in the file at `path`, which is read for each request.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            last: Arc::default(),
        }
    }

    /// Adds the token. If the file can't be read, the last token read is used, because some setups remove the file
    /// after it was read.
    ///
    /// # Errors
    /// [`AuthError`]: no token was ever read, or it is not valid in a header.
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
