//! What was brought to the device by hand.

use super::{Order, Updater};
use crate::bundle::source::SourceError;
use crate::bundle::{Local, UpdateError};
use crate::device::{Event, Phase};
use crate::inbox::{InboxError, Request};
use dunlin_protocol::command::DesiredBundle;
use std::path::PathBuf;

impl Updater {
    /// Picks up a request, and lets go of one whose archive is needed no longer.
    pub(super) fn look_into_inbox(&mut self, now_ms: i64) {
        let request = match tokio::task::block_in_place(|| self.inbox.request()) {
            Ok(None) => return,
            Ok(Some(request)) => request,
            Err(error @ InboxError::Damaged { .. }) => return self.refuse_request(&error),
            Err(error) => return tracing::warn!(%error, "a request for an installation waits"),
        };
        if self.state.install.as_ref() != Some(&request.id) {
            let Request { id, want } = request;
            return self.step(Event::Install { id, want }, now_ms);
        }
        let is_needed = matches!(
            &self.state.phase,
            Phase::Receiving { want, .. } if want.digest == request.want.digest
        );
        if !is_needed {
            let removed = tokio::task::block_in_place(|| self.inbox.remove(&request.id));
            if let Err(error) = removed {
                tracing::warn!(%error, "an archive that was installed stays");
            }
        }
    }

    fn refuse_request(&mut self, error: &InboxError) {
        match tokio::task::block_in_place(|| self.inbox.empty()) {
            Ok(true) => {}
            // Somebody puts one in, in its place.
            Ok(false) => return,
            Err(error) => {
                return tracing::warn!(%error, "a damaged request for an installation stays");
            }
        }
        self.orders.push(Order::Event {
            code: "install_refused",
            detail: error.to_string(),
            bundle: None,
        });
    }

    /// The archive that a bundle was brought in, while that installation is the newest.
    pub(super) fn brought(&self, want: &DesiredBundle) -> Option<PathBuf> {
        let request = self.inbox.request().ok().flatten()?;
        let is_it =
            request.want.digest == want.digest && self.state.install.as_ref() == Some(&request.id);
        is_it.then(|| self.inbox.archive(&request.id))
    }
}

/// Opens an archive beside the loop: a large index takes its time.
pub(super) async fn open(archive: PathBuf) -> Result<Local, UpdateError> {
    let opened = tokio::task::spawn_blocking(move || Local::open_path(&archive)).await;
    match opened {
        Ok(opened) => Ok(opened.map_err(SourceError::from)?),
        Err(e) => Err(UpdateError::failed("internal", format!("a task died: {e}"))),
    }
}
