//! The thread that answers probes.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::handler::Handler;
use crate::kernel::capabilities;
use crate::listen::{self, Share};

/// Connections that may wait to be accepted: every probe of a full node at once.
const BACKLOG: i32 = 4096;

/// The handler, serving on its own thread.
pub struct HandlerThread {
    v4: SocketAddr,
    v6: Option<SocketAddr>,
    drain: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
    _thread: JoinHandle<()>,
}

impl HandlerThread {
    /// Listens on loopback at `port` (0: any free one) and starts to serve.
    ///
    /// # Errors
    /// The port is taken; no thread can be started.
    pub fn start(handler: Arc<Handler>, port: u16) -> anyhow::Result<Self> {
        let v4 = listen::tcp((Ipv4Addr::LOCALHOST, port).into(), Share::Alone, BACKLOG).with_context(|| {
            format!(
                "cannot listen on 127.0.0.1:{port} for the handler: choose another --handler-port, or 0 \
                 for any free one"
            )
        })?;
        let v6 = match listen::tcp((Ipv6Addr::LOCALHOST, port).into(), Share::Alone, BACKLOG) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(%error, "no listener on ::1: probes of IPv6 pods are left alone");
                None
            }
        };
        let v4_address = v4.local_addr()?;
        let v6_address = v6.as_ref().map(StdListener::local_addr).transpose()?;

        let (drain, draining) = watch::channel(false);
        let (end, ended) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_start(capabilities::give_up_others_or_abort)
            .build()
            .context("cannot start the handler's runtime")?;
        let thread = std::thread::Builder::new()
            .name("handler".to_owned())
            .spawn(move || {
                capabilities::give_up_others_or_abort();
                let served = runtime.block_on(async {
                    // As tasks: whatever wakes the runtime's root future costs an event of its own.
                    let mut serving = JoinSet::new();
                    for listener in [Some(v4), v6].into_iter().flatten() {
                        let listener = TcpListener::from_std(listener)?;
                        let handler = Arc::clone(&handler);
                        let _ = serving.spawn(handler.serve(listener, draining.clone()));
                    }
                    while let Some(served) = serving.join_next().await {
                        served?;
                    }
                    anyhow::Ok(())
                });
                if let Err(error) = served {
                    tracing::error!(%error, "the handler ended");
                }
                let _ = end.send(true);
            })
            .context("cannot start the handler's thread")?;
        Ok(Self {
            v4: v4_address,
            v6: v6_address,
            drain,
            ended,
            _thread: thread,
        })
    }

    /// Port on 127.0.0.1.
    pub fn port_v4(&self) -> u16 {
        self.v4.port()
    }

    /// Port on ::1, where there is IPv6.
    pub fn port_v6(&self) -> Option<u16> {
        self.v6.map(|address| address.port())
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        std::iter::once(self.v4).chain(self.v6).collect()
    }

    /// Stops accepting once the backlog is served; resolves when the last check has ended.
    pub fn drain(&self) -> impl Future<Output = ()> + use<> {
        let _ = self.drain.send(true);
        self.ended()
    }

    /// Resolves when the thread has ended, for whatever reason.
    pub fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut ended = self.ended.clone();
        async move {
            // An error says that the thread is gone without a word.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }
}
