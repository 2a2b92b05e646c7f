//! Reads a body within the limits.

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, timeout_at};

use super::Limits;
use super::budget::{NoRoom, Share};

/// Why there is no body.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
    #[error("the body took too long")]
    TooSlow,
    #[error("no memory is left for the body, try again")]
    NoRoom,
    #[error("the body is incomplete: {0}")]
    Broken(hyper::Error),
}

impl From<NoRoom> for BodyError {
    fn from(_: NoRoom) -> Self {
        Self::NoRoom
    }
}

/// Reads the whole body; `share` reserves the memory for it.
pub(super) async fn read(
    mut body: Incoming,
    share: &mut Share,
    limits: &Limits,
) -> Result<Vec<u8>, BodyError> {
    let too_long = |len: usize| len > limits.body;
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if too_long(announced) {
        return Err(BodyError::TooLong(limits.body));
    }
    let until = Instant::now() + limits.body_time;
    // Copy the data, because even a frame of one byte keeps the whole receive buffer alive.
    let mut bytes = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = timeout_at(until, body.frame()) => frame.map_err(|_| BodyError::TooSlow)?,
            () = share.given_up() => return Err(BodyError::NoRoom),
        };
        let Some(frame) = frame.transpose().map_err(BodyError::Broken)? else {
            share.complete();
            return Ok(bytes);
        };
        let Ok(data) = frame.into_data() else {
            continue; // trailers
        };
        let len = bytes.len() + data.len();
        if too_long(len) {
            return Err(BodyError::TooLong(limits.body));
        }
        timeout_at(until, share.cover(len))
            .await
            .map_err(|_| BodyError::TooSlow)??;
        bytes.extend_from_slice(&data);
    }
}
