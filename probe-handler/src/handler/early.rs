//! A dial that begins before it is known whether it is needed.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use tokio::net::TcpStream;

use crate::check::dial::{Dial, dial};

/// The dial of an app, under way while the kubelet's request is still awaited. Dropping it hangs up.
pub(super) enum EarlyDial<'a> {
    /// Not begun.
    Idle,
    /// Under way.
    Going(Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + 'a>>),
    /// Over.
    Done(io::Result<TcpStream>),
}

impl<'a> EarlyDial<'a> {
    /// Ready to begin.
    pub(super) fn start(dialer: &'a dyn Dial, to: SocketAddr) -> Self {
        Self::Going(Box::pin(dial(dialer, to)))
    }

    /// Gets on with it; never returns.
    pub(super) async fn progress(&mut self) -> Infallible {
        if let Self::Going(going) = self {
            *self = Self::Done(going.await);
        }
        pending().await
    }

    /// The connection, dialled now if it was not begun.
    pub(super) async fn finish(self, dialer: &dyn Dial, to: SocketAddr) -> io::Result<TcpStream> {
        match self {
            Self::Idle => dial(dialer, to).await,
            Self::Going(going) => going.await,
            Self::Done(done) => done,
        }
    }
}
