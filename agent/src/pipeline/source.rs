//! Where records come from: a topic, standard input; folders have a file of their own.

use super::feed::{AnswerTo, Feed, Item, Outcome, Settle};
use super::folder;
use super::place::{MqttPlace, Source};
use super::record::{self, Format, Input};
use super::run::{Environment, stopped};
use super::settings::{PAYLOAD_MAX_BYTES, PipelineSettings};
use super::sink::broker;
use crate::mqtt::local::{Heard, Listening, Message, News, Subscription, subscribe};
use bytes::Bytes;
use std::sync::Arc;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::watch;

/// More messages than the queue has places, so that a policy that drops sees what there is to drop.
const MORE_THAN_QUEUED: usize = 64;

/// Gives records to the feed until the source ends or `stop` says so.
pub(super) async fn run(
    settings: PipelineSettings,
    environment: Environment,
    feed: Arc<Feed>,
    mut stop: watch::Receiver<bool>,
) {
    match &settings.source {
        Source::Mqtt(place) => topic(place, &settings, &environment, &feed, &mut stop).await,
        Source::Folder(folder) => {
            folder::watch(folder, &settings, &environment, &feed, &mut stop).await;
        }
        Source::Stdin => {
            tokio::select! {
                () = stdin(&settings, &feed) => {}
                () = stopped(&mut stop) => {}
            }
        }
    }
    feed.close();
}

async fn topic(
    place: &MqttPlace,
    settings: &PipelineSettings,
    environment: &Environment,
    feed: &Feed,
    stop: &mut watch::Receiver<bool>,
) {
    let blocks = settings.when_full == super::queue::WhenFull::Block;
    let receive_max = settings.queue + if blocks { 0 } else { MORE_THAN_QUEUED };
    let subscription = Subscription {
        filter: place.topic.clone(),
        receive_max: u16::try_from(receive_max).unwrap_or(u16::MAX),
        marker: environment.file(&settings.name, "subscribed"),
    };
    let format = settings.format.unwrap_or(Format::Json);
    let settings = broker(place, settings, environment, "in");
    let (mut listening, task) = subscribe(settings, subscription);
    tokio::select! {
        () = hear(&mut listening, &place.topic, format, feed) => {}
        () = stopped(stop) => {}
    }
    drop(listening);
    // It says goodbye, within a time of its own.
    let _ = task.await;
}

/// Takes messages as the feed has room; what becomes of the connection is told meanwhile.
async fn hear(listening: &mut Listening, topic: &str, format: Format, feed: &Feed) {
    loop {
        let heard = tokio::select! {
            biased;
            news = listening.news.recv() => {
                let Some(news) = news else { return };
                tell(news, topic, feed);
                continue;
            }
            heard = listening.messages.next() => heard,
        };
        let message = match heard {
            Heard::Message(message) => message,
            Heard::Dropped(count) => {
                feed.overrun(count, format!("{topic}: messages at QoS 0 came too fast"));
                continue;
            }
        };
        let (brought_by, comes_again) = (message.connection, message.acknowledge.is_some());
        let taken = take(message, format, feed);
        tokio::pin!(taken);
        loop {
            tokio::select! {
                biased;
                () = &mut taken => break,
                news = listening.news.recv() => {
                    let Some(news) = news else { return };
                    let lost = tell(news, topic, feed);
                    if comes_again && lost == Some(brought_by) {
                        break;
                    }
                }
            }
        }
    }
}

/// The connection that is lost, if that is the news.
fn tell(news: News, topic: &str, feed: &Feed) -> Option<u64> {
    match news {
        News::Connected => tracing::info!(%topic, "subscribed"),
        News::Leaving { reason } => feed.trouble("source", reason),
        News::Lost { connection, reason } => {
            feed.withdraw(connection);
            feed.trouble("source", reason);
            return Some(connection);
        }
    }
    None
}

async fn take(message: Message, format: Format, feed: &Feed) {
    let acknowledge = message.acknowledge;
    if message.payload.len() > PAYLOAD_MAX_BYTES {
        let detail = too_long(&message.topic, message.payload.len() as u64);
        feed.refused("record", detail);
        if let Some(acknowledge) = acknowledge {
            acknowledge.send();
        }
        return;
    }
    let item = Item {
        payload: message.payload,
        format,
        header: None,
        id: message.topic,
        answer_to: AnswerTo {
            response_topic: message.response_topic,
            correlation: message.correlation,
        },
        connection: acknowledge.as_ref().map(|_| message.connection),
        // However it ended: sent again it would end the same way.
        settle: Box::new(move |_| {
            if let Some(acknowledge) = acknowledge {
                acknowledge.send();
            }
        }),
    };
    feed.offer(item).await;
}

/// The words for what is not read.
pub(super) fn too_long(what: &str, bytes: u64) -> String {
    format!("{what}: {bytes} bytes, at most {PAYLOAD_MAX_BYTES} are read")
}

async fn stdin(settings: &PipelineSettings, feed: &Feed) {
    let mut input = BufReader::new(tokio::io::stdin());
    let settle = || -> Settle { Box::new(|_| {}) };
    let ended = match settings.format.unwrap_or(Format::Json) {
        format @ (Format::Json | Format::Csv) => {
            lines(&mut input, format, "stdin", feed, settle).await
        }
        Format::Raw => chunks(&mut input, feed).await,
        Format::Bytes => whole(&mut input, feed).await,
    };
    if let Err(e) = ended {
        feed.refused("source", format!("standard input: {e}"));
    }
}

/// A record a line. A first line of CSV that is a header names the columns.
pub(super) async fn lines(
    input: &mut (impl AsyncBufRead + Unpin),
    format: Format,
    name: &str,
    feed: &Feed,
    mut settle: impl FnMut() -> Settle,
) -> std::io::Result<()> {
    let (mut header, mut number, mut first) = (None, 0_u64, true);
    loop {
        let Some(line) = next_line(input).await? else {
            return Ok(());
        };
        number += 1;
        let line = match line {
            Ok(line) if line.iter().all(u8::is_ascii_whitespace) => continue,
            Ok(line) => line,
            Err(bytes) => {
                let settle = settle();
                feed.refused("record", too_long(&format!("{name}#{number}"), bytes));
                settle(Outcome::Failed);
                continue;
            }
        };
        if format == Format::Csv && std::mem::take(&mut first) {
            let metadata = feed.metadata().await;
            header = record::header(&line, &metadata).map(Arc::new);
            if header.is_some() {
                continue;
            }
        }
        let item = Item {
            payload: Bytes::from(line),
            format,
            header: header.clone(),
            id: format!("{name}#{number}"),
            answer_to: AnswerTo::default(),
            connection: None,
            settle: settle(),
        };
        feed.offer(item).await;
    }
}

/// The next line, or the length of one that is too long and was passed over; `None` at the end.
async fn next_line(
    input: &mut (impl AsyncBufRead + Unpin),
) -> std::io::Result<Option<Result<Vec<u8>, u64>>> {
    let (mut line, mut passed) = (Vec::new(), 0_u64);
    loop {
        let piece = input.fill_buf().await?;
        if piece.is_empty() {
            let nothing = line.is_empty() && passed == 0;
            let ended = if passed > 0 { Err(passed) } else { Ok(line) };
            return Ok((!nothing).then_some(ended));
        }
        let end = piece.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(piece.len(), |end| end + 1);
        if passed == 0 && line.len() + used <= PAYLOAD_MAX_BYTES {
            line.extend_from_slice(&piece[..used]);
        } else {
            passed += (std::mem::take(&mut line).len() + used) as u64;
        }
        input.consume(used);
        if end.is_some() {
            return Ok(Some(if passed > 0 { Err(passed) } else { Ok(line) }));
        }
    }
}

/// A record each time the model's inputs are full.
async fn chunks(input: &mut (impl AsyncBufRead + Unpin), feed: &Feed) -> std::io::Result<()> {
    let metadata = feed.metadata().await;
    let inputs = metadata.inputs.iter();
    let size = inputs
        .map(Input::bytes)
        .try_fold(0_usize, |sum, n| sum.checked_add(n?));
    let Some(size) = size.filter(|size| (1..=PAYLOAD_MAX_BYTES).contains(size)) else {
        // Where the model takes any size, all there is is one record.
        return whole_as(input, Format::Raw, feed).await;
    };
    for number in 1_u64.. {
        let mut chunk = Vec::new();
        let limit = size as u64;
        (&mut *input).take(limit).read_to_end(&mut chunk).await?;
        if chunk.is_empty() {
            break;
        }
        offer(chunk, Format::Raw, format!("stdin#{number}"), feed).await;
    }
    Ok(())
}

async fn whole(input: &mut (impl AsyncBufRead + Unpin), feed: &Feed) -> std::io::Result<()> {
    whole_as(input, Format::Bytes, feed).await
}

async fn whole_as(
    input: &mut (impl AsyncBufRead + Unpin),
    format: Format,
    feed: &Feed,
) -> std::io::Result<()> {
    let mut payload = Vec::new();
    let limit = PAYLOAD_MAX_BYTES as u64 + 1;
    let read = input.take(limit).read_to_end(&mut payload).await?;
    if read > PAYLOAD_MAX_BYTES {
        feed.refused("record", too_long("stdin, over", PAYLOAD_MAX_BYTES as u64));
    } else {
        offer(payload, format, "stdin".to_owned(), feed).await;
    }
    Ok(())
}

async fn offer(payload: Vec<u8>, format: Format, id: String, feed: &Feed) {
    let item = Item {
        payload: Bytes::from(payload),
        format,
        header: None,
        id,
        answer_to: AnswerTo::default(),
        connection: None,
        settle: Box::new(|_| {}),
    };
    feed.offer(item).await;
}
