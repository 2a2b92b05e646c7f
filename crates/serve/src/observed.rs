//! Shows the bytes that are copied between kubelet and app to an observer, as they pass.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Kubelet,
    App,
}

/// Receives the bytes that are read from both ends.
pub(super) trait Observer: Sync {
    /// `bytes` were read from one end.
    fn see(&self, from: End, bytes: &[u8]);

    /// One end has closed its side, or reading from it failed.
    fn ended(&self, _from: End) {}
}

/// A reader of one end that passes what it reads to an [`Observer`].
pub(super) struct Observed<'a, R> {
    pub(super) stream: R,
    pub(super) from: End,
    pub(super) observer: Option<&'a dyn Observer>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Observed<'_, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let has_room = buffer.remaining() > 0;
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        if let Some(observer) = self.observer {
            match &buffer.filled()[before..] {
                [] if has_room => observer.ended(self.from),
                bytes => observer.see(self.from, bytes),
            }
        }
        Poll::Ready(read)
    }
}
