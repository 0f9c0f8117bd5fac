//! Sends what is wanted of the samples.

use super::{Said, Shared, client};
use crate::http::{Client, HttpError, Limits, Proxy};
use crate::identity::Identity;
use dunlin_protocol::capture::{
    Done, WANTED_MAX, WANTED_MAX_BYTES, Wanted, WantedList, batch_path,
};
use dunlin_protocol::command;
use dunlin_protocol::id::Digest;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// Largest answer to a batch or to `done`.
const ANSWER_MAX_BYTES: u64 = 4096;

/// Why a round was not gone through. The server asks again while a request is open.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Malformed(#[from] command::MessageError),
    #[error(transparent)]
    Shelf(#[from] super::ShelfError),
    #[error("captured samples: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

pub(super) struct Sending {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: Identity,
    pub(super) limits: Limits,
    pub(super) proxy: Proxy,
    pub(super) say: mpsc::Sender<Said>,
}

impl Sending {
    /// One round after every nudge.
    pub(super) async fn run(self, nudge: Arc<Notify>) {
        loop {
            nudge.notified().await;
            if let Err(error) = self.round().await {
                tracing::info!(%error, "captured samples not sent; the server asks again");
            }
        }
    }

    async fn round(&self) -> Result<(), SendError> {
        let client = client(&self.identity, self.limits, &self.proxy);
        let answer = client.get(&self.url("/captures"), WANTED_MAX_BYTES).await?;
        let limit = usize::try_from(WANTED_MAX_BYTES).unwrap_or(usize::MAX);
        let list: WantedList = command::parse("wanted captures", limit, &answer)?;
        for wanted in list.wanted.iter().take(WANTED_MAX) {
            self.answer(&client, wanted).await?;
        }
        Ok(())
    }

    /// Sends all that a request asks for, and then that this was all.
    async fn answer(&self, client: &Client, wanted: &Wanted) -> Result<(), SendError> {
        if !self.shared.owner.allow {
            let refused = Some("the device's owner does not allow it".to_owned());
            return self.done(client, wanted, 0, refused).await;
        }
        let (mut sent, mut above) = (0, 0);
        while let Some((batch, bytes)) = self.next(wanted, above).await? {
            above = batch.number;
            let url = self.url(&batch_path(wanted.id, &Digest::of(&bytes)));
            match client.put(&url, bytes.into(), ANSWER_MAX_BYTES).await {
                Ok(_) => sent += 1,
                // The server will never take this one; the others may fare better.
                Err(HttpError::Status {
                    code: 413 | 422,
                    message,
                    ..
                }) => {
                    tracing::warn!(batch = batch.number, %message, "the server refuses a batch of samples");
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            let shared = Arc::clone(&self.shared);
            let remove = move || match shared.shelf().as_mut() {
                Some(shelf) => shelf.remove(batch),
                None => Ok(()),
            };
            tokio::task::spawn_blocking(remove).await??;
        }
        self.done(client, wanted, sent, None).await
    }

    async fn next(
        &self,
        wanted: &Wanted,
        above: u64,
    ) -> Result<Option<(super::Kept, Vec<u8>)>, SendError> {
        let (shared, wanted) = (Arc::clone(&self.shared), wanted.clone());
        let next = move || match shared.shelf().as_mut() {
            Some(shelf) => shelf.next_of(&wanted, above),
            None => Ok(None),
        };
        Ok(tokio::task::spawn_blocking(next).await??)
    }

    async fn done(
        &self,
        client: &Client,
        wanted: &Wanted,
        sent: u64,
        refused: Option<String>,
    ) -> Result<(), SendError> {
        let detail = match &refused {
            Some(why) => format!("request={} refused: {why}", wanted.id),
            None => format!("request={} batches={sent}", wanted.id),
        };
        let url = self.url(&format!("/captures/{}/done", wanted.id));
        let done = Done { sent, refused };
        client.post_json(&url, &done, ANSWER_MAX_BYTES).await?;
        let _ = self.say.try_send(Said {
            code: "capture_sent",
            detail,
        });
        Ok(())
    }

    fn url(&self, path: &str) -> String {
        let base = self.identity.enrolled.repository_url.trim_end_matches('/');
        format!("{base}{path}")
    }
}
