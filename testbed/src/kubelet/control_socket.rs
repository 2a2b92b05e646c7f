//! The stand-in kubelet's control: a Unix socket through which another program has it make a probe. Only the kubelet's own
//! process is exempt from the mesh; whoever wants to play by hand needs it.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Kubelet, Probe, ProbeResult};

/// How long whoever knocks may take to say what they want.
const PATIENCE: Duration = Duration::from_secs(1);

/// The socket, as long as it is open.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Opens one at `path`.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn open(path: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("listening on {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has `kubelet` make the probe that somebody waits for, if anybody does.
    ///
    /// # Errors
    /// When nobody can be let in, or what they want is not to be had. The door stays open.
    pub fn answer(&self, kubelet: &Kubelet) -> Result<()> {
        let mut stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("the kubelet's door"),
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        let _length = stream.read_to_string(&mut text)?;
        let probe: Probe = serde_json::from_str(&text).context("no probe")?;
        let result = kubelet.probe(&probe)?;
        stream.write_all(&serde_json::to_vec(&result)?)?;
        Ok(())
    }
}

/// Has the kubelet behind the door at `path` make `probe`.
///
/// # Errors
/// When nobody answers there. A failing probe is a result.
pub fn request_probe(path: &Path, probe: &Probe) -> Result<ProbeResult> {
    let at = || format!("no stand-in kubelet answers at {}", path.display());
    let mut stream = UnixStream::connect(path).with_context(at)?;
    stream.write_all(&serde_json::to_vec(probe)?)?;
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    let _length = stream.read_to_string(&mut text).with_context(at)?;
    serde_json::from_str(&text).with_context(at)
}
