//! What was brought to the device by hand.

use super::{Order, Updater};
use crate::bundle::receive::Spent;
use crate::bundle::source::SourceError;
use crate::bundle::{Local, Receiver, UpdateError};
use crate::device::{ByHand, Event, Phase};
use crate::inbox::{InboxError, Request};
use dunlin_protocol::command::DesiredBundle;
use jiff::Timestamp;
use std::path::{Path, PathBuf};

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
        let model = self.state.models.get(&request.want.family);
        let is_needed = matches!(
            model.map(|model| &model.phase),
            Some(Phase::Receiving { want, .. }) if want.digest == request.want.digest
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

    /// Where a bundle is to be taken from.
    pub(super) fn way_of(&self, want: &DesiredBundle) -> Way {
        let request = self.inbox.request().ok().flatten();
        let archive = request
            .filter(|request| request.want.digest == want.digest)
            .filter(|request| self.state.install.as_ref() == Some(&request.id))
            .map(|request| self.inbox.archive(&request.id));
        let model = self.state.models.get(&want.family);
        let by_hand = model.and_then(|model| model.by_hand.as_ref());
        let by_hand = matches!(by_hand, Some(ByHand::Wanted { .. }));
        match archive {
            None => Way::Network,
            Some(archive) if by_hand => Way::Archive(archive),
            Some(archive) => Way::Either(archive),
        }
    }
}

/// Where a bundle is taken from.
#[derive(Debug)]
pub(super) enum Way {
    Network,
    /// What was brought by hand, for somebody stands there and waits for its verdict.
    Archive(PathBuf),
    /// The server wants it too: an archive that is of no use stands in nobody's way.
    Either(PathBuf),
}

impl Way {
    pub(super) async fn fetch(
        self,
        receiver: &Receiver,
        want: &DesiredBundle,
        now: Timestamp,
        slot: &Path,
        mut progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Spent, UpdateError> {
        let archive = match &self {
            Self::Network => None,
            Self::Archive(path) | Self::Either(path) => Some(path.clone()),
        };
        if let Some(archive) = archive {
            let staged = async {
                let local = open(archive).await?;
                receiver
                    .receive_local(&local, want, now, slot, &mut progress)
                    .await
            };
            match (staged.await, &self) {
                (Err(error), Self::Either(_)) if !error.is_disk_full() => {
                    tracing::warn!(code = error.code, detail = %error.detail, "an archive is of no use");
                }
                (staged, _) => return staged.map(|staged| staged.spent),
            }
        }
        let staged = receiver.receive(want, now, slot, progress).await;
        staged.map(|staged| staged.spent)
    }
}

/// Opens an archive beside the loop: a large index takes its time.
async fn open(archive: PathBuf) -> Result<Local, UpdateError> {
    let opened = tokio::task::spawn_blocking(move || Local::open_path(&archive)).await;
    match opened {
        Ok(opened) => Ok(opened.map_err(SourceError::from)?),
        Err(e) => Err(UpdateError::failed("internal", format!("a task died: {e}"))),
    }
}
