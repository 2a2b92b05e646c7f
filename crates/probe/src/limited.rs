//! Limits how much is read of an app's connection, in all and at a time. Limits on what is kept are not enough, because an
//! app may send endless frames and records of which nothing is kept.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is read before the task yields to others on its thread. Bytes.
const TURN: usize = 16 * 1024;

/// A stream of which `left` more bytes may be read; the read that reaches the limit still completes, the next one fails.
#[derive(Debug)]
pub(super) struct Limited<S> {
    stream: S,
    left: usize,
    turn: usize,
}

impl<S> Limited<S> {
    /// Limits reading of `stream` to `limit` bytes.
    pub(super) fn new(stream: S, limit: usize) -> Self {
        Self {
            stream,
            left: limit,
            turn: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Limited<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::Error::other(
                "the app sent more data than a check reads",
            )));
        }
        if self.turn >= TURN {
            self.turn = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let length = buffer.filled().len() - before;
        self.left = self.left.saturating_sub(length);
        self.turn += length;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Limited<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn reading_beyond_the_limit_fails() {
        let mut endless = Limited::new(tokio::io::repeat(b'x'), 100_000);
        let mut buffer = vec![0; 1_000];
        let mut read = 0;
        let error = loop {
            match endless.read(&mut buffer).await {
                Ok(length) => read += length,
                Err(error) => break error,
            }
        };
        assert_eq!(read, 100_000);
        assert_eq!(
            error.to_string(),
            "the app sent more data than a check reads"
        );
    }

    #[tokio::test]
    async fn reading_yields_to_other_tasks() {
        let mut endless = Limited::new(tokio::io::repeat(b'x'), usize::MAX);
        let mut buffer = vec![0; 1_000];
        let mut turns = 0;
        let mut reading = std::pin::pin!(async {
            for _ in 0..10 * TURN / buffer.len() {
                let _length = endless.read(&mut buffer).await.expect("read");
            }
        });
        std::future::poll_fn(|context| {
            turns += 1;
            reading.as_mut().poll(context)
        })
        .await;
        assert!(turns >= 9, "{turns}");
    }
}
