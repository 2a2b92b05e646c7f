//! The stand-in kubelet's control socket: a Unix socket on which another program requests a probe. It exists because only
//! the kubelet's own process is exempt from the mesh.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Kubelet, Probe, ProbeResult};

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// A listening control socket.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens at `path`.
    ///
    /// # Errors
    /// When the socket can't be created.
    pub fn open(path: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("listening on {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers one pending request, if any: `kubelet` makes the probe.
    ///
    /// # Errors
    /// When a connection cannot be accepted, or its request fails. The socket keeps listening.
    pub fn answer(&self, kubelet: &Kubelet) -> Result<()> {
        let mut stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("accepting on the kubelet's control socket"),
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
        let mut text = String::new();
        let _length = stream.read_to_string(&mut text)?;
        let probe: Probe = serde_json::from_str(&text).context("the request is not a probe")?;
        let result = kubelet.probe(&probe)?;
        stream.write_all(&serde_json::to_vec(&result)?)?;
        Ok(())
    }
}

/// Requests `probe` from the kubelet whose control socket is at `path`.
///
/// # Errors
/// When no kubelet answers. A failed probe is not an error.
pub fn request_probe(path: &Path, probe: &Probe) -> Result<ProbeResult> {
    let at = || format!("no stand-in kubelet answers at {}", path.display());
    let mut stream = UnixStream::connect(path).with_context(at)?;
    stream.write_all(&serde_json::to_vec(probe)?)?;
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    let _length = stream.read_to_string(&mut text).with_context(at)?;
    serde_json::from_str(&text).with_context(at)
}
