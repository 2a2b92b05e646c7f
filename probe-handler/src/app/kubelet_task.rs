//! Keeps the programs attached to the kubelet's cgroup, even when the kubelet moves to another cgroup.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::kernel_path::Maintainer;
use kernel::kubelet::{Finder, Kubelet};
use kernel::maps::ProgramConfig;
use kernel::programs::{AnswerIs, Programs};
use serve::metrics::Metrics;
use support::missing::{Missing, Part};
use support::readiness::{BlockReady, Readiness};

/// Interval between searches for the kubelet. The programs must be attached to a restarted kubelet within 100 ms; a
/// search for an unchanged kubelet costs a few small reads of /proc.
const PERIOD: Duration = Duration::from_millis(40);
/// The condition that readiness waits for while the programs are not attached.
pub const AWAITED: &str = "kubelet";
/// Interval between attempts to attach to the same kubelet after a failure, because an attempt costs time.
const AGAIN: Duration = Duration::from_secs(1);

/// No process has this id (`PID_MAX_LIMIT` of include/linux/threads.h).
const NO_PROCESS: u32 = u32::MAX;

/// The programs and where they are attached.
pub struct Attachment {
    /// The programs.
    pub programs: Programs,
    /// The kubelet to whose cgroup they are attached.
    pub kubelet: Option<Kubelet>,
    /// The kubelet whose process id is in the programs' configuration, so that they may still serve it.
    configured: Option<Kubelet>,
    /// When they were attached.
    pub since: Option<Instant>,
    /// Why they are not attached; logged once.
    pub trouble: Option<String>,
    /// Set when the daemon drains: no more attachments, pins and rules, because `probe-handler cleanup` may remove them now.
    draining: bool,
    /// Shared with the handler: [`Kubelet::is_shared_process`].
    shared_process: Arc<AtomicBool>,
    /// Shared with the kernel path.
    maintainer: watch::Sender<Maintainer>,
    missing: Missing,
}

impl Attachment {
    /// Loaded programs that are not attached yet.
    pub fn new(
        programs: Programs,
        shared_process: Arc<AtomicBool>,
        maintainer: watch::Sender<Maintainer>,
        missing: Missing,
    ) -> Self {
        Self {
            programs,
            kubelet: None,
            configured: None,
            since: None,
            trouble: None,
            draining: false,
            shared_process,
            maintainer,
            missing,
        }
    }

    /// Ends all maintenance of pins and rules, which stay as they are.
    pub fn drain(&mut self) {
        self.draining = true;
        // Makes the pods' tasks stop changing the rules.
        let _before = self.maintainer.send_replace(Maintainer::Nobody);
    }

    /// Maintains the pins and the pinned objects, and finds out whether another daemon maintains the rules in pods. Call
    /// this every few seconds.
    pub fn maintain(&mut self) {
        if self.draining {
            return;
        }
        self.programs.keep_pins();
        self.programs.remove_orphans();
        self.look_for_another();
    }

    fn look_for_another(&self) {
        let now = Maintainer::of(&self.programs);
        if self
            .maintainer
            .send_if_modified(|was| std::mem::replace(was, now) != now)
        {
            let who = match now {
                Maintainer::This => "this daemon maintains",
                Maintainer::Another => "another daemon maintains",
                Maintainer::Nobody => "nobody maintains",
            };
            tracing::info!("{who} the rules of the kernel path");
        }
    }

    /// Removes the process id of an ended kubelet from the programs' configuration. The programs may stay attached, but
    /// another process may soon have the id.
    fn forget_if_gone(&mut self, config: &ProgramConfig, finder: &Finder) {
        if !self
            .configured
            .as_ref()
            .is_some_and(|configured| finder.is_gone(configured))
        {
            return;
        }
        match config.update(|config| config.kubelet_pid = NO_PROCESS) {
            Ok(()) => self.configured = None,
            Err(error) => {
                tracing::debug!(%error, "cannot remove the kubelet's process id from the programs' configuration");
            }
        }
    }

    /// Sets the kubelet's process id in the programs' configuration, then attaches them to its cgroup.
    ///
    /// # Errors
    /// A message for the operator.
    pub fn attach(&mut self, config: &ProgramConfig, kubelet: Kubelet) -> Result<(), String> {
        let shared_process = kubelet.is_shared_process();
        self.shared_process.store(shared_process, Ordering::Relaxed);
        config
            .update(|config| config.kubelet_pid = kubelet.filter.unwrap_or_default())
            .map_err(|error| {
                format!(
                    "cannot set the kubelet's process id in the programs' configuration: {error}"
                )
            })?;
        self.configured = kubelet.filter.is_some().then(|| kubelet.clone());
        let moved = self
            .kubelet
            .as_ref()
            .is_none_or(|old| old.cgroup_id != kubelet.cgroup_id);
        if moved {
            // The handler serves all pods of a kubelet whose process contains an API server, which receives many packets.
            let answer = match shared_process {
                true => AnswerIs::LeftOut,
                false => AnswerIs::Attached,
            };
            self.programs
                .attach(&kubelet.cgroup, answer)
                .map_err(|error| error.message())?;
            self.read_answers(config)?;
            // Pods that had no kernel path while the kubelet was not found are tried again at once.
            let _before = self.maintainer.send_replace(Maintainer::of(&self.programs));
        }
        let programs = self.programs.ids().into_iter();
        let programs: Vec<_> = programs.map(|(name, id)| format!("{name}={id}")).collect();
        tracing::info!(
            pid = kubelet.pid,
            cgroup = %kubelet.cgroup.display(),
            shared_with = kubelet.shared_with,
            programs = programs.join(" "),
            "{}",
            match (kubelet.pid, kubelet.filter) {
                (_, Some(_)) if kubelet.shared_with > 0 =>
                    "attached to the kubelet's cgroup, which other processes share: they are not served",
                (_, Some(_)) => "attached to the kubelet's cgroup",
                (Some(_), None) =>
                    "attached to the kubelet's cgroup: because this is not the node's own pid namespace, every \
                     process in it counts as the kubelet",
                (None, None) =>
                    "attached to the configured cgroup: every process in it counts as the kubelet",
            }
        );
        self.kubelet = Some(kubelet);
        self.since = Some(Instant::now());
        self.trouble = None;
        Ok(())
    }

    /// Sets in the programs' configuration whether program `answer` is attached, and reports if it is missing.
    fn read_answers(&self, config: &ProgramConfig) -> Result<(), String> {
        let reads_answers = u8::from(self.programs.reads_answers());
        config
            .update(|config| config.reads_answers = reads_answers)
            .map_err(|error| {
                format!("cannot set in the programs' configuration which answers are read: {error}")
            })?;
        match self.programs.answer_trouble() {
            Some(why) => self.missing.note(Part::Answers, why),
            None => self.missing.clear(Part::Answers),
        }
        Ok(())
    }
}

/// Follows the kubelet until the drain. While the programs are not attached, the daemon is not ready; `waiting` is set if
/// they are not attached yet.
pub async fn run(
    attachment: Arc<Mutex<Attachment>>,
    config: ProgramConfig,
    mut finder: Finder,
    mut waiting: Option<BlockReady>,
    readiness: Readiness,
    metrics: Arc<Metrics>,
) {
    let mut failed: Option<(Kubelet, Instant)> = None;
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let attached = attachment.lock().kubelet.is_some();
        let _ = metrics.attached.set(i64::from(attached));
        let _ = ticks.tick().await;
        let mut attachment = attachment.lock();
        if attachment.draining {
            return;
        }
        let trouble = match finder.find(attachment.kubelet.as_ref()) {
            Ok(kubelet)
                if attachment
                    .kubelet
                    .as_ref()
                    .is_some_and(|old| old.same_place(&kubelet)) =>
            {
                waiting = None;
                continue;
            }
            Ok(kubelet)
                if failed.as_ref().is_some_and(|(place, at)| {
                    place.same_place(&kubelet) && at.elapsed() < AGAIN
                }) =>
            {
                continue;
            }
            Ok(kubelet) => match attachment.attach(&config, kubelet.clone()) {
                Ok(()) => {
                    waiting = None;
                    failed = None;
                    continue;
                }
                Err(trouble) => {
                    failed = Some((kubelet, Instant::now()));
                    trouble
                }
            },
            Err(error) => error.to_string(),
        };
        // The programs may still be attached somewhere, but the kubelet is not there.
        attachment.kubelet = None;
        attachment.forget_if_gone(&config, &finder);
        if waiting.is_none() {
            waiting = Some(readiness.block(AWAITED));
        }
        if attachment.trouble.as_ref() != Some(&trouble) {
            tracing::warn!("not attached: {trouble}");
            attachment.trouble = Some(trouble);
        }
    }
}
