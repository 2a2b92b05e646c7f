//! Maintains the pins of the kernel path and the pinned objects, or removes the pins of an earlier daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::kubelet_task::Attachment;

/// Interval between checks of the pins.
const PINS: Duration = Duration::from_secs(2);

/// Once the first pods are in place (`in_place`), pins the attachments and keeps them pinned; removes `unwanted` pins
/// instead, if given. Never returns.
pub async fn run(
    attachment: Arc<Mutex<Attachment>>,
    unwanted: Option<PathBuf>,
    in_place: oneshot::Receiver<()>,
) {
    if in_place.await.is_ok() {
        attachment.lock().programs.adopt();
        let mut looks = tokio::time::interval(PINS);
        let mut is_reported = false;
        loop {
            let _ = looks.tick().await;
            match &unwanted {
                Some(pins) => is_reported = !remove_pins(pins, is_reported),
                None => attachment.lock().maintain(),
            }
        }
    }
    // The registry has ended.
    std::future::pending().await
}

/// Removes the pins of an earlier daemon that used the kernel path, which this one does not use. Its programs then end
/// with it. Returns whether all are removed; logs a failure unless it `is_reported`.
fn remove_pins(pins: &std::path::Path, is_reported: bool) -> bool {
    let removed = kernel::pins::remove_all(pins);
    match &removed {
        Ok(true) => tracing::info!(
            pins = %pins.display(),
            "removed the kernel path of an earlier daemon, because --kernel-path is false"
        ),
        Err(error) if !is_reported => tracing::warn!(
            pins = %pins.display(),
            %error,
            "the kernel path of an earlier daemon remains: run `probe-handler cleanup` on the node"
        ),
        Ok(false) | Err(_) => {}
    }
    removed.is_ok()
}
