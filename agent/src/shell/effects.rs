//! Carrying out what the state machine decides. Every effect may be repeated.

use super::Shell;
use crate::bundle::{Kind, UpdateError, stage};
use crate::device::{Effect, Event, ReceiveFailure, ReceiveFailureKind, Slot};
use crate::files::{self, FileError};
use crate::pipe::ToWorker;
use crate::worker;
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::report::Failure;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CURRENT: &str = "current";

impl Shell {
    /// Does one effect; an event it gives is fed next.
    pub(super) async fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Receive { want, slot } => self.receive(want, slot),
            Effect::Cancel => self.cancel(),
            Effect::Trial { slot, digest } => self.trial(slot, digest),
            Effect::Serve { slot } => return self.serve_slot(slot).await,
            Effect::ServeNothing => self.serve_nothing().await,
            Effect::Report => self.send_report().await,
            Effect::Event {
                code,
                detail,
                bundle,
            } => self.record_event(code, detail, bundle).await,
        }
        None
    }

    fn cancel(&mut self) {
        if let Some(job) = self.job.take() {
            job.abort();
        }
    }

    fn receive(&mut self, want: DesiredBundle, slot: Slot) {
        self.cancel();
        let (receiver, sender) = (Arc::clone(&self.receiver), self.job_sender.clone());
        let dir = slot_dir(&self.settings.state_dir, slot);
        let kept = self.state.kept.as_ref().map(|h| h.bundle.digest);
        let job = tokio::spawn(async move {
            tracing::info!(target_path = %want.target, "fetching");
            let result = receiver
                .receive(&want, jiff::Timestamp::now(), &dir, |_, _| {})
                .await;
            if result.is_ok() {
                receiver.gc_after(&want.digest, kept.as_ref()).await;
            }
            let result = result.map(|_| ()).map_err(|e| {
                tracing::warn!(code = e.code, detail = %e.detail, "fetching failed");
                in_events_terms(e)
            });
            let _ = sender
                .send(Event::Received {
                    digest: want.digest,
                    result,
                })
                .await;
        });
        self.job = Some(job.abort_handle());
    }

    fn trial(&mut self, slot: Slot, digest: dunlin_protocol::id::Digest) {
        self.cancel();
        let (settings, sender) = (self.worker_settings.clone(), self.job_sender.clone());
        let dir = slot_dir(&self.settings.state_dir, slot);
        let job = tokio::spawn(async move {
            let report = whole(&dir, &digest).await;
            let report = match report {
                Ok(()) => worker::trial(&settings, &dir).await,
                Err(detail) => crate::pipe::TrialReport::Failed {
                    code: "staged".to_owned(),
                    detail,
                },
            };
            let _ = sender.send(Event::TrialDone { digest, report }).await;
        });
        self.job = Some(job.abort_handle());
    }

    /// A slot is served only if it is whole, whatever happened to the disk since.
    async fn serve_slot(&mut self, slot: Slot) -> Option<Event> {
        let dir = slot_dir(&self.settings.state_dir, slot);
        let digest = self.state.active().map(|a| a.digest)?;
        let switched = match whole(&dir, &digest).await {
            Ok(()) => switch(&self.settings.state_dir, Some(slot)).map_err(|e| e.to_string()),
            Err(detail) => Err(detail),
        };
        match switched {
            Ok(()) => {
                if let Some(worker) = &self.worker {
                    worker.say(ToWorker::Activate { slot: dir }).await;
                }
                None
            }
            Err(detail) => Some(Event::ActivateFailed { slot, detail }),
        }
    }

    async fn serve_nothing(&mut self) {
        if let Err(e) = switch(&self.settings.state_dir, None) {
            self.record_event("serve_failed", e.to_string(), None).await;
        }
        if let Some(worker) = &self.worker {
            worker.restart().await;
        }
    }
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
async fn whole(dir: &Path, digest: &dunlin_protocol::id::Digest) -> Result<(), String> {
    let (dir, digest) = (dir.to_owned(), *digest);
    let read = tokio::task::spawn_blocking(move || stage::read(&dir).map(|s| (s, dir)));
    match read.await {
        Ok(Some((staged, _))) if staged.digest == digest => Ok(()),
        Ok(Some((staged, dir))) => Err(format!(
            "{}: expected bundle {digest}, got {}",
            dir.display(),
            staged.digest
        )),
        Ok(None) => Err(format!("bundle {digest} is not whole on disk")),
        Err(e) => Err(e.to_string()),
    }
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
fn switch(state_dir: &Path, to: Option<Slot>) -> Result<(), FileError> {
    let slots = state_dir.join("slots");
    files::create_private_dir(&slots)?;
    let link = slots.join(CURRENT);
    match to {
        None => files::remove_if_there(&link)?,
        Some(slot) => {
            let fresh = slots.join("current.new");
            files::remove_if_there(&fresh)?;
            std::os::unix::fs::symlink(slot.name(), &fresh).map_err(files::at("link", &fresh))?;
            std::fs::rename(&fresh, &link).map_err(files::at("rename", &link))?;
        }
    }
    files::sync_dir(&slots)
}
