//! A pipeline at work: one record at a time goes from the queue through the model to the sink.

use super::client::{Client, ClientError, Reply};
use super::feed::{Feed, Item, Outcome};
use super::record::{self, Metadata, RecordError};
use super::settings::PipelineSettings;
use super::sink::{Output, SYNC_EVERY};
use super::source;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A record in whose work the API was lost so often is passed over: it may be what kills it.
const LOSSES_MAX: u32 = 3;
const RETRY_MIN_MS: u64 = 50;
const RETRY_MAX_MS: u64 = 2_000;
/// Longest time for the record in work when all is to stop.
const GRACE: Duration = Duration::from_secs(3);

/// What pipelines of one device share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Unix socket of the inference API.
    pub socket: PathBuf,
    /// This device's id, which tells its clients from others' at a shared broker.
    pub device: String,
    /// Folder for what must be remembered across restarts; nothing is without it.
    pub state_dir: Option<PathBuf>,
}

impl Environment {
    /// A file of a pipeline's own.
    pub(super) fn file(&self, pipeline: &str, what: &str) -> Option<PathBuf> {
        let folder = self.state_dir.as_ref()?;
        Some(folder.join(format!("{pipeline}.{what}")))
    }
}

/// Runs a pipeline until its source ends, or `stop` turns true: then the record in work is finished
/// and what waits stays with its source.
///
/// # Errors
/// Nobody takes results any more (standard output is closed).
pub async fn run(
    settings: PipelineSettings,
    environment: Environment,
    feed: Arc<Feed>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String> {
    let (end_source, source_ends) = watch::channel(false);
    let source = tokio::spawn(source::run(
        settings.clone(),
        environment.clone(),
        Arc::clone(&feed),
        source_ends,
    ));
    let mut work = Work {
        client: Client::new(
            environment.socket.clone(),
            settings.model.clone(),
            Duration::from_millis(settings.timeout_ms),
        ),
        metadata: None,
        parameters: settings.parameters.clone(),
        output: Output::new(&settings, &environment),
        feed: Arc::clone(&feed),
    };
    let ended = {
        let working = work.all();
        tokio::pin!(working);
        tokio::select! {
            ended = &mut working => ended,
            () = stopped(&mut stop) => {
                feed.stop();
                tokio::time::timeout(GRACE, working).await.unwrap_or(Ok(()))
            }
        }
    };
    work.output.end(&feed).await;
    end_source.send_replace(true);
    match tokio::time::timeout(GRACE, source).await {
        Ok(Err(e)) => Err(format!("the source of {}: {e}", settings.name)),
        // What it still had to tell is told again at the next start.
        Ok(Ok(())) | Err(_) => ended,
    }
}

/// Waits until all is to stop.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

struct Work {
    client: Client,
    metadata: Option<Arc<Metadata>>,
    parameters: BTreeMap<String, String>,
    output: Output,
    feed: Arc<Feed>,
}

impl Work {
    async fn all(&mut self) -> Result<(), String> {
        // Sources of lines and of raw numbers need it to begin.
        self.metadata().await;
        let feed = Arc::clone(&self.feed);
        loop {
            let next = tokio::select! {
                next = feed.take() => next,
                () = tokio::time::sleep(SYNC_EVERY) => {
                    self.output.sync(&feed);
                    continue;
                }
            };
            let Some(item) = next else { return Ok(()) };
            let outcome = match self.answer(&item).await {
                Ok(result) => {
                    let written = self.output.write(&result, &item.answer_to, &feed).await;
                    written.map_err(|e| e.to_string())?;
                    Outcome::Answered
                }
                Err(why) => {
                    feed.trouble("record", format!("{}: {why}", item.id));
                    Outcome::Failed
                }
            };
            feed.settle(item, outcome);
        }
    }

    /// The result of a record; waits while no model is there. `Err`: there will be none.
    async fn answer(&mut self, item: &Item) -> Result<Vec<u8>, String> {
        let (mut waits, mut losses) = (0, 0);
        loop {
            let metadata = self.metadata().await;
            let made = record::request(
                item.format,
                &item.payload,
                item.header.as_deref(),
                &item.id,
                &metadata,
            );
            let request = match made {
                Ok(request) => request.with_parameters(&self.parameters),
                Err(e) => {
                    if self.has_changed(&metadata).await {
                        continue;
                    }
                    return Err(e.to_string());
                }
            };
            match self.client.infer(&request).await {
                Ok(Reply::Answer(body)) => {
                    return record::result(&body).map_err(|e: RecordError| e.to_string());
                }
                Ok(Reply::Refused(why)) => {
                    if self.has_changed(&metadata).await {
                        continue;
                    }
                    return Err(why);
                }
                Err(ClientError::NotReady(why)) => self.feed.trouble("waiting", why),
                Err(ClientError::Lost(why)) => {
                    losses += 1;
                    if losses >= LOSSES_MAX {
                        return Err(format!("{why}, {losses} times"));
                    }
                    self.feed.trouble("waiting", why);
                }
            }
            wait(&mut waits).await;
        }
    }

    /// Whether the model is another one by now: a version with other inputs may have come.
    async fn has_changed(&mut self, known: &Arc<Metadata>) -> bool {
        self.metadata = None;
        self.metadata().await != *known
    }

    async fn metadata(&mut self) -> Arc<Metadata> {
        let mut waits = 0;
        loop {
            if let Some(metadata) = &self.metadata {
                return Arc::clone(metadata);
            }
            match self.client.metadata().await {
                Ok(metadata) => {
                    let metadata = Arc::new(metadata);
                    self.feed.learned(&metadata);
                    self.metadata = Some(metadata);
                }
                Err(ClientError::NotReady(why) | ClientError::Lost(why)) => {
                    self.feed.trouble("waiting", why);
                    wait(&mut waits).await;
                }
            }
        }
    }
}

/// A pause that doubles from one to the next.
async fn wait(waits: &mut u32) {
    let pause_ms = RETRY_MIN_MS.saturating_mul(1 << (*waits).min(8));
    *waits += 1;
    tokio::time::sleep(Duration::from_millis(pause_ms.min(RETRY_MAX_MS))).await;
}
