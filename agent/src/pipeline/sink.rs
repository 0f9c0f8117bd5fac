//! Where results go. A result counts as delivered once the broker has acknowledged it or the file
//! has it; a sink that fails is tried again until it takes it, and the queue fills meanwhile.

mod rotated;

use super::feed::{AnswerTo, Feed};
use super::place::{self, Sink, Source};
use super::run::Environment;
use super::settings::{PAYLOAD_MAX_BYTES, PipelineSettings};
use crate::mqtt::local::{LocalSettings, Outgoing, PublishError, Publisher, pause};
use rotated::Rotated;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// Longest time for a file's last results to reach the disk.
pub(super) const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Nobody reads standard output any more.
#[derive(Debug, thiserror::Error)]
#[error("standard output: {0}")]
pub(super) struct OutputClosed(std::io::Error);

pub(super) enum Output {
    Mqtt {
        publisher: Box<Publisher>,
        topic: String,
        /// The source's filter: an answer must not come back as a record.
        source: Option<String>,
    },
    File(Rotated),
    Stdout(tokio::io::Stdout),
}

/// How to reach a local broker.
pub(super) fn broker(
    place: &place::MqttPlace,
    settings: &PipelineSettings,
    environment: &Environment,
    end: &str,
) -> LocalSettings {
    LocalSettings {
        host: place.host.clone(),
        port: place.port,
        client_id: format!("dunlin-{}-{}-{end}", environment.device, settings.name),
        credentials: settings.credentials.clone(),
        // Topic and properties come on top of a payload.
        packet_max_bytes: u32::try_from(PAYLOAD_MAX_BYTES + 65_536).unwrap_or(u32::MAX),
    }
}

impl Output {
    pub(super) fn new(settings: &PipelineSettings, environment: &Environment) -> Self {
        match &settings.sink {
            Sink::Mqtt(place) => Self::Mqtt {
                publisher: Box::new(Publisher::new(broker(place, settings, environment, "out"))),
                topic: place.topic.clone(),
                source: match &settings.source {
                    Source::Mqtt(source) => Some(source.topic.clone()),
                    Source::Folder(_) | Source::Stdin => None,
                },
            },
            Sink::File(path) => Self::File(Rotated::new(path.clone())),
            Sink::Stdout => Self::Stdout(tokio::io::stdout()),
        }
    }

    /// Returns once the sink has the result.
    pub(super) async fn write(
        &mut self,
        result: &[u8],
        answer_to: &AnswerTo,
        feed: &Feed,
    ) -> Result<(), OutputClosed> {
        match self {
            Self::Stdout(stdout) => {
                let line = [result, b"\n"].concat();
                stdout.write_all(&line).await.map_err(OutputClosed)?;
                stdout.flush().await.map_err(OutputClosed)?;
            }
            Self::File(file) => {
                let mut failures = 0;
                while let Err(e) = tokio::task::block_in_place(|| file.append(result)) {
                    feed.trouble("sink", e.to_string());
                    failures += 1;
                    tokio::time::sleep(pause(failures)).await;
                }
            }
            Self::Mqtt {
                publisher,
                topic,
                source,
            } => {
                publish(publisher, topic, result, answer_to, feed).await;
                let asked = answer_to.response_topic.as_deref();
                let asked = asked.filter(|asked| asked != topic && place::is_topic(asked));
                let loops = |asked: &&str| {
                    let source = source.as_deref();
                    source.is_some_and(|source| place::matches(source, asked))
                };
                if let Some(asked) = asked.filter(|asked| !loops(asked)) {
                    publish_once(publisher, asked, result, answer_to, feed).await;
                }
            }
        }
        Ok(())
    }

    /// Makes durable what was written; `false` if there was nothing.
    pub(super) fn sync(&mut self, feed: &Feed) {
        if let Self::File(file) = self
            && let Err(e) = tokio::task::block_in_place(|| file.sync())
        {
            feed.trouble("sink", e.to_string());
        }
    }

    pub(super) async fn end(&mut self, feed: &Feed) {
        self.sync(feed);
        if let Self::Mqtt { publisher, .. } = self {
            publisher.goodbye().await;
        }
    }
}

fn message(topic: &str, result: &[u8], answer_to: &AnswerTo) -> Outgoing {
    Outgoing {
        topic: topic.to_owned(),
        payload: result.to_vec(),
        content_type: "application/json",
        correlation: answer_to.correlation.clone(),
    }
}

async fn publish(
    publisher: &mut Publisher,
    topic: &str,
    result: &[u8],
    answer_to: &AnswerTo,
    feed: &Feed,
) {
    let mut failures = 0;
    while let Err(e) = publisher.publish(&message(topic, result, answer_to)).await {
        feed.trouble("sink", format!("{topic}: {e}"));
        failures += 1;
        tokio::time::sleep(pause(failures)).await;
    }
}

/// A topic that the requester chose: what the broker refuses there is the requester's loss alone.
async fn publish_once(
    publisher: &mut Publisher,
    topic: &str,
    result: &[u8],
    answer_to: &AnswerTo,
    feed: &Feed,
) {
    let mut failures = 0;
    while let Err(e) = publisher.publish(&message(topic, result, answer_to)).await {
        feed.trouble("response_topic", format!("{topic}: {e}"));
        if matches!(e, PublishError::Refused(_)) {
            return;
        }
        failures += 1;
        tokio::time::sleep(pause(failures)).await;
    }
}
