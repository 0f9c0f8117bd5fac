//! Carrying out what the state machine decides. Every effect may be repeated.

use super::job::Done;
use super::{Shell, inbox};
use crate::bundle::receive::{Receiver, Spent};
use crate::bundle::{Kind, UpdateError, stage};
use crate::device::{Effect, Event, Phase, ReceiveFailure, ReceiveFailureKind, Slot};
use crate::files::{Disk, FileError};
use crate::pipe::ToWorker;
use crate::worker;
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::Digest;
use dunlin_protocol::report::Failure;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the link to the slot that serves.
pub(super) const CURRENT: &str = "current";

impl Shell {
    /// Does one effect.
    pub(super) async fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Receive { want, slot } => self.receive(want, slot),
            Effect::Cancel => self.update.cancel(),
            Effect::Trial { slot, digest } => self.trial(slot, digest),
            Effect::Serve { slot, digest } => self.serve_slot(slot, digest).await,
            Effect::ServeNothing => self.serve_nothing().await,
            Effect::Report => self.send_report(),
            Effect::Event {
                code,
                detail,
                bundle,
            } => self.record_event(code, detail, bundle).await,
        }
    }

    /// What a job found; the word of one that was given up meanwhile counts for nothing.
    pub(super) async fn done(&mut self, done: Done) {
        match done {
            Done::Update { number, event } if self.update.is_present(number) => {
                self.feed(event).await;
            }
            Done::Checked {
                number,
                slot,
                digest,
                whole,
            } if self.check.is_present(number) => match whole {
                Ok(()) => {
                    if let Some(worker) = &self.worker {
                        let slot = slot_dir(&self.settings.state_dir, slot);
                        let bundle = digest;
                        worker.say(ToWorker::Activate { slot, bundle }).await;
                    }
                }
                Err(detail) => {
                    tracing::error!(%digest, %detail, "bundle cannot be served");
                    self.feed(Event::ActivateFailed {
                        slot,
                        digest,
                        detail,
                    })
                    .await;
                }
            },
            Done::Fetched { digest, detail } => {
                self.record_event("bundle_fetched", detail, Some(digest))
                    .await;
            }
            late => tracing::debug!(?late, "given up meanwhile"),
        }
    }

    fn receive(&mut self, want: DesiredBundle, slot: Slot) {
        let (receiver, sender) = (Arc::clone(&self.receiver), self.done_sender.clone());
        let dir = slot_dir(&self.settings.state_dir, slot);
        let kept = self.state.kept.as_ref().map(|h| h.bundle.digest);
        let brought = self.brought(&want);
        self.update.start(|number| async move {
            tracing::info!(target_path = %want.target, ?brought, "fetching");
            let result = fetch(&receiver, brought, &want, &dir).await;
            if let Ok(spent) = &result {
                receiver.gc_after(&want.digest, kept.as_ref()).await;
                let detail = cost(&want, spent);
                let digest = want.digest;
                let _ = sender.send(Done::Fetched { digest, detail }).await;
            }
            let result = result.map(|_| ()).map_err(|e| {
                tracing::warn!(code = e.code, detail = %e.detail, "fetching failed");
                in_events_terms(e)
            });
            let digest = want.digest;
            let event = Event::Received { digest, result };
            let _ = sender.send(Done::Update { number, event }).await;
        });
    }

    fn trial(&mut self, slot: Slot, digest: Digest) {
        let (settings, sender) = (self.worker_settings.clone(), self.done_sender.clone());
        let (disk, dir) = (self.disk.clone(), slot_dir(&self.settings.state_dir, slot));
        self.update.start(|number| async move {
            let report = match whole(&disk, &dir, &digest).await {
                Ok(()) => worker::trial(&settings, &dir).await,
                Err(detail) => crate::pipe::TrialReport::Failed {
                    code: "staged".to_owned(),
                    detail,
                },
            };
            let event = Event::TrialDone { digest, report };
            let _ = sender.send(Done::Update { number, event }).await;
        });
    }

    /// A slot is served only if it is whole, whatever happened to the disk since. Reading it may
    /// take minutes, so a job does.
    async fn serve_slot(&mut self, slot: Slot, digest: Digest) {
        if let Err(e) = switch(&self.disk, &self.settings.state_dir, Some(slot)) {
            // The link tells people, and a lost ledger, what serves; nothing else reads it.
            self.record_event("link_failed", e.to_string(), Some(digest))
                .await;
        }
        let (disk, sender) = (self.disk.clone(), self.done_sender.clone());
        let dir = slot_dir(&self.settings.state_dir, slot);
        self.check.start(|number| async move {
            let whole = whole(&disk, &dir, &digest).await;
            let done = Done::Checked {
                number,
                slot,
                digest,
                whole,
            };
            let _ = sender.send(done).await;
        });
    }

    async fn serve_nothing(&mut self) {
        self.check.cancel();
        if let Err(e) = switch(&self.disk, &self.settings.state_dir, None) {
            self.record_event("link_failed", e.to_string(), None).await;
        }
        if let Some(worker) = &self.worker {
            worker.restart().await;
        }
    }

    /// Removes, beside the loop, what no bundle here or on its way needs.
    pub(super) fn collect_garbage(&self) {
        let mut keep: Vec<Digest> = self.state.kept.iter().map(|h| h.bundle.digest).collect();
        match &self.state.phase {
            // What is half fetched is resumed.
            Phase::Receiving { .. } => return,
            Phase::Trial { want, .. }
            | Phase::Probation { want, .. }
            | Phase::RollingBack { want, .. } => keep.push(want.digest),
            Phase::Idle { .. } => {}
        }
        let receiver = Arc::clone(&self.receiver);
        tokio::spawn(async move { receiver.gc_logged(&keep).await });
    }
}

/// From the archive it was brought in, else over the network.
async fn fetch(
    receiver: &Receiver,
    brought: Option<PathBuf>,
    want: &DesiredBundle,
    slot: &Path,
) -> Result<Spent, UpdateError> {
    let (now, progress) = (jiff::Timestamp::now(), |_, _| {});
    let staged = match brought {
        Some(archive) => {
            let local = inbox::open(archive).await?;
            receiver
                .receive_local(&local, want, now, slot, progress)
                .await
        }
        None => receiver.receive(want, now, slot, progress).await,
    };
    staged.map(|staged| staged.spent)
}

/// What a fetch cost, in words.
fn cost(want: &DesiredBundle, spent: &Spent) -> String {
    let patched = match (spent.patches, spent.patches_failed) {
        (0, 0) => "",
        (_, 0) => ", by a patch",
        _ => ", a patch was of no use",
    };
    format!(
        "version {}: {} bytes fetched of {}, {} saved{patched}",
        want.version,
        spent.fetched_bytes,
        spent.whole_bytes,
        spent.saved_bytes()
    )
}

fn in_events_terms(error: UpdateError) -> ReceiveFailure {
    ReceiveFailure {
        kind: match error.kind {
            Kind::Refused => ReceiveFailureKind::Refused,
            Kind::Failed => ReceiveFailureKind::Failed,
            Kind::Transient => ReceiveFailureKind::Transient,
        },
        failure: Failure::new(error.code, error.detail),
    }
}

/// Checks every hash of a staged bundle.
async fn whole(disk: &Disk, dir: &Path, digest: &Digest) -> Result<(), String> {
    let (disk, folder) = (disk.clone(), dir.to_owned());
    let read = tokio::task::spawn_blocking(move || stage::check(&disk, &folder));
    let problem = match read.await {
        Ok(Ok(Some(staged))) if staged.digest == *digest => return Ok(()),
        Ok(Ok(Some(staged))) => format!("expected bundle {digest}, got {}", staged.digest),
        Ok(Ok(None)) => format!("expected bundle {digest}, nothing was ever completed there"),
        Ok(Err(e)) => e.to_string(),
        Err(e) => e.to_string(),
    };
    Err(format!("{}: {problem}", dir.display()))
}

/// Folder of a slot.
pub(super) fn slot_dir(state_dir: &Path, slot: Slot) -> PathBuf {
    state_dir.join("slots").join(slot.name())
}

/// The slot a folder belongs to.
pub(super) fn slot_of(dir: &Path) -> Option<Slot> {
    let name = dir.file_name()?.to_str()?;
    [Slot::A, Slot::B].into_iter().find(|s| s.name() == name)
}

/// Points `slots/current` at a slot by one rename, durable before anything is served from it.
fn switch(disk: &Disk, state_dir: &Path, to: Option<Slot>) -> Result<(), FileError> {
    let slots = state_dir.join("slots");
    disk.create_private_dir(&slots)?;
    let link = slots.join(CURRENT);
    match to {
        None => disk.remove_if_there(&link)?,
        Some(slot) => {
            let fresh = slots.join("current.new");
            disk.remove_if_there(&fresh)?;
            disk.symlink(Path::new(slot.name()), &fresh)?;
            disk.rename(&fresh, &link)?;
        }
    }
    disk.sync_dir(&slots)
}
