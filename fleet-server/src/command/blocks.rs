//! Answers devices that fetch over MQTT: any file of the repository, block by block.
//!
//! Every request is answered from the disk alone, so that any server of the fleet can answer any
//! request, and none remembers a transfer. What a device may ask for in a second is limited, and a
//! request is at most one block: neither one device nor all of them can fill memory or the link.
//! Requests come at QoS 0: one that is lost, or left out here, is made again by the device.

use crate::blobs::{BlobError, BlobPart, Blobs};
use crate::clock;
use crate::mqtt::{Inbound, MqttClient};
use crate::patches::{Pair, PatchStoreError, Patches};
use crate::repository::Repository;
use crate::store::Store;
use dunlin_protocol::block::{
    ANSWER_CONTENT_TYPE, Answer, BLOCK_MAX_BYTES, REQUEST_MAX_BYTES, Request,
};
use dunlin_protocol::command::parse;
use dunlin_protocol::id::{DeviceId, Digest};
use dunlin_protocol::repository::RepositoryFile;
use dunlin_protocol::topic::{Channel, Topic};
use futures_util::TryStreamExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc, watch};

/// Broker-side life of an answer: the device has asked again long before.
const EXPIRY_S: u32 = 60;
/// What a request costs beside its bytes.
const REQUEST_COST_BYTES: u64 = 4096;
/// Answers that say "busy" before a device that goes on asking is not answered at all.
const BUSY_MAX: u32 = 16;
/// How long a device counts as enrolled after it was looked up.
const LIVE_MS: i64 = 30_000;
/// Devices remembered; beyond that all are forgotten at once.
const DEVICES_MAX: usize = 10_000;

/// How much is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSettings {
    /// Most bytes a second that one device is given.
    pub device_bytes_s: u64,
    /// Most bytes that it is given at once after a pause.
    pub device_burst_bytes: u64,
    /// Most requests worked on at once.
    pub at_once: usize,
}

impl BlockSettings {
    /// A rate for each device, in KiB a second.
    #[must_use]
    pub fn with_rate(device_kib_s: u64) -> Self {
        let device_bytes_s = device_kib_s.saturating_mul(1024);
        Self {
            device_bytes_s,
            // A device's whole window of requests is never refused.
            device_burst_bytes: device_bytes_s.max(16 * (BLOCK_MAX_BYTES as u64)),
            at_once: 16,
        }
    }
}

/// Where the files are.
#[derive(Debug, Clone)]
pub struct Files {
    /// Metadata and manifests.
    pub repository: Arc<Repository>,
    /// Blobs, and patches beside them.
    pub blobs: Blobs,
}

/// What to do with a device's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Answer,
    Busy { retry_after_ms: u64 },
    LeaveOut,
}

/// What a device has left.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    bytes: u64,
    at_ms: i64,
    refused: u32,
    /// Until when it is known whether the device is enrolled.
    known: Option<(i64, bool)>,
}

#[derive(Debug)]
struct Limiter {
    settings: BlockSettings,
    buckets: BTreeMap<DeviceId, Bucket>,
}

impl Limiter {
    fn bucket(&mut self, device: &DeviceId, now_ms: i64) -> &mut Bucket {
        if self.buckets.len() >= DEVICES_MAX && !self.buckets.contains_key(device) {
            self.buckets.clear();
        }
        let full = Bucket {
            bytes: self.settings.device_burst_bytes,
            at_ms: now_ms,
            refused: 0,
            known: None,
        };
        self.buckets.entry(device.clone()).or_insert(full)
    }

    /// Books a request of `length` bytes, or says why it is not answered.
    fn admit(&mut self, device: &DeviceId, length: u32, now_ms: i64) -> Verdict {
        let BlockSettings {
            device_bytes_s: rate,
            device_burst_bytes: burst,
            ..
        } = self.settings;
        let bucket = self.bucket(device, now_ms);
        let passed_ms = now_ms.saturating_sub(bucket.at_ms).max(0).unsigned_abs();
        let gained = rate.saturating_mul(passed_ms) / 1000;
        // What is too little to count yet is not lost.
        if gained > 0 || now_ms < bucket.at_ms {
            bucket.bytes = bucket.bytes.saturating_add(gained).min(burst);
            bucket.at_ms = now_ms;
        }
        let cost = u64::from(length).saturating_add(REQUEST_COST_BYTES);
        if bucket.bytes >= cost {
            bucket.bytes -= cost;
            bucket.refused = 0;
            return Verdict::Answer;
        }
        bucket.refused = bucket.refused.saturating_add(1);
        if bucket.refused > BUSY_MAX {
            return Verdict::LeaveOut;
        }
        let lacking = cost - bucket.bytes;
        let retry_after_ms = lacking.saturating_mul(1000).div_ceil(rate.max(1));
        Verdict::Busy { retry_after_ms }
    }
}

/// Runs until `stop` becomes true; answers in hand are finished first.
pub async fn run(
    files: Files,
    store: Store,
    mqtt: MqttClient,
    mut requests: mpsc::Receiver<Inbound>,
    settings: BlockSettings,
    mut stop: watch::Receiver<bool>,
) {
    let mut limiter = Limiter {
        settings,
        buckets: BTreeMap::new(),
    };
    let places = Arc::new(Semaphore::new(settings.at_once));
    loop {
        let message = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            message = requests.recv() => match message {
                Some(message) => message,
                None => break,
            },
        };
        let Some((device, request)) = read(&mqtt, &message) else {
            metrics::counter!("dunlin_blocks_refused_total", "reason" => "malformed").increment(1);
            continue;
        };
        let now_ms = clock::now_ms();
        let length = request.length.clamp(1, BLOCK_MAX_BYTES as u32);
        let verdict = limiter.admit(&device, length, now_ms);
        if verdict == Verdict::LeaveOut || !is_live(&mut limiter, &store, &device, now_ms).await {
            metrics::counter!("dunlin_blocks_refused_total", "reason" => "left_out").increment(1);
            continue;
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            break;
        };
        let (files, mqtt) = (files.clone(), mqtt.clone());
        tokio::spawn(async move {
            let answer = match verdict {
                Verdict::Busy { retry_after_ms } => Answer::Busy { retry_after_ms },
                _ => files.answer(&request.file, request.offset, length).await,
            };
            give(&mqtt, &device, request.id, &answer).await;
            drop(place);
        });
    }
    // Every place is free once the last answer is given.
    let all = u32::try_from(settings.at_once).unwrap_or(u32::MAX);
    let _ = places.acquire_many(all).await;
}

fn read(mqtt: &MqttClient, message: &Inbound) -> Option<(DeviceId, Request)> {
    let topic: Topic = message.topic().parse().ok()?;
    if topic.fleet != *mqtt.fleet() || topic.channel != Channel::Fetch {
        return None;
    }
    match parse("fetch", REQUEST_MAX_BYTES, message.payload()) {
        Ok(request) => Some((topic.device, request)),
        Err(error) => {
            tracing::debug!(device = %topic.device, %error, "block request refused");
            None
        }
    }
}

/// Whether the device is enrolled and not revoked: an external broker may not know yet.
async fn is_live(limiter: &mut Limiter, store: &Store, device: &DeviceId, now_ms: i64) -> bool {
    let known = limiter.bucket(device, now_ms).known;
    if let Some((_, live)) = known.filter(|(until_ms, _)| now_ms < *until_ms) {
        return live;
    }
    match store.live_devices(&BTreeSet::from([device])).await {
        Ok(found) => {
            let live = found.contains(device);
            let until_ms = now_ms.saturating_add(LIVE_MS);
            limiter.bucket(device, now_ms).known = Some((until_ms, live));
            live
        }
        Err(error) => {
            tracing::error!(%device, %error, "device not looked up: its block request is left out");
            false
        }
    }
}

async fn give(mqtt: &MqttClient, device: &DeviceId, id: u64, answer: &Answer) {
    let bytes = match answer.encode(id) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::error!(%device, %error, "block cannot be written");
            return;
        }
    };
    metrics::counter!("dunlin_blocks_sent_bytes_total").increment(bytes.len() as u64);
    let sent = mqtt
        .publish_as(
            device,
            Channel::Block,
            bytes,
            ANSWER_CONTENT_TYPE,
            Some(EXPIRY_S),
        )
        .await;
    if let Err(error) = sent {
        tracing::debug!(%device, %error, "block not sent; the device will ask again");
    }
}

impl Files {
    /// At most `length` bytes of a file, which is never read as a whole.
    pub async fn answer(&self, file: &RepositoryFile, offset: u64, length: u32) -> Answer {
        let end = offset.saturating_add(u64::from(length));
        let read = match *file {
            RepositoryFile::Blob(digest) => self.blob(&digest, offset..end).await,
            RepositoryFile::Patch { from, to } => self.patch(&Pair { from, to }, offset..end).await,
            RepositoryFile::Metadata(_) | RepositoryFile::Target(_) => {
                let (repository, file) = (Arc::clone(&self.repository), file.clone());
                let read = move || read_part(&repository, &file, offset, length);
                tokio::task::spawn_blocking(read)
                    .await
                    .unwrap_or_else(|e| Err(e.to_string()))
            }
        };
        read.unwrap_or_else(|error| {
            tracing::error!(%file, error, "block not read");
            Answer::Failed
        })
    }

    async fn blob(&self, digest: &Digest, range: Range<u64>) -> Result<Answer, String> {
        let length = self.blobs.length(digest).await;
        match length.map_err(|e| e.to_string())? {
            None => Ok(Answer::Absent),
            Some(total) if range.start >= total => Ok(nothing(range.start, total)),
            Some(_) => match self.blobs.get(digest, Some(range)).await {
                Ok(part) => data(part).await,
                Err(BlobError::Missing(_)) => Ok(Answer::Absent),
                Err(e) => Err(e.to_string()),
            },
        }
    }

    async fn patch(&self, pair: &Pair, range: Range<u64>) -> Result<Answer, String> {
        let patches = Patches::beside(&self.blobs);
        let stored = patches.stored(pair).await;
        match stored.map_err(|e| e.to_string())? {
            None => Ok(Answer::Absent),
            Some(found) if range.start >= found.length => Ok(nothing(range.start, found.length)),
            Some(_) => match patches.get(pair, Some(range)).await {
                Ok(part) => data(part).await,
                Err(PatchStoreError::Missing(_)) => Ok(Answer::Absent),
                Err(e) => Err(e.to_string()),
            },
        }
    }
}

/// At or beyond the end.
fn nothing(offset: u64, total: u64) -> Answer {
    Answer::Data {
        offset,
        total,
        bytes: Vec::new(),
    }
}

/// A part that is no longer than a block.
async fn data(mut part: BlobPart) -> Result<Answer, String> {
    let mut bytes = Vec::with_capacity(BLOCK_MAX_BYTES);
    while let Some(piece) = part.stream.try_next().await.map_err(|e| e.to_string())? {
        bytes.extend_from_slice(&piece);
    }
    Ok(Answer::Data {
        offset: part.range.start,
        total: part.length,
        bytes,
    })
}

fn read_part(
    repository: &Repository,
    file: &RepositoryFile,
    offset: u64,
    length: u32,
) -> Result<Answer, String> {
    let opened = repository.open_file(file).map_err(|e| e.to_string())?;
    let Some(mut opened) = opened else {
        return Ok(Answer::Absent);
    };
    let total = opened.metadata().map_err(|e| e.to_string())?.len();
    let mut bytes = Vec::new();
    if offset < total {
        let part = opened
            .seek(SeekFrom::Start(offset))
            .and_then(|_| opened.take(u64::from(length)).read_to_end(&mut bytes));
        part.map_err(|e| e.to_string())?;
    }
    Ok(Answer::Data {
        offset,
        total,
        bytes,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn limiter() -> Limiter {
        Limiter {
            settings: BlockSettings {
                device_bytes_s: 10_000,
                device_burst_bytes: 20_000,
                at_once: 1,
            },
            buckets: BTreeMap::new(),
        }
    }

    #[test]
    fn a_device_is_given_its_rate_and_no_more() {
        let (mut limiter, device) = (limiter(), "d".parse().unwrap());
        let mut given = 0_u64;
        for now_ms in 0..10_000 {
            if limiter.admit(&device, 1000, now_ms) == Verdict::Answer {
                given += 1000 + REQUEST_COST_BYTES;
            }
        }
        assert!((115_000..=120_000).contains(&given), "{given}");
    }

    #[test]
    fn it_is_told_when_to_come_back_and_then_not_answered() {
        let (mut limiter, device) = (limiter(), "d".parse().unwrap());
        for _ in 0..3 {
            assert_eq!(limiter.admit(&device, 1000, 0), Verdict::Answer);
        }
        // 20,000 less 3 · 5096 leaves 4712 of the 5096 that the next one costs.
        let busy = Verdict::Busy { retry_after_ms: 39 };
        for _ in 0..BUSY_MAX {
            assert_eq!(limiter.admit(&device, 1000, 0), busy);
        }
        assert_eq!(limiter.admit(&device, 1000, 0), Verdict::LeaveOut);
        let other = "e".parse().unwrap();
        assert_eq!(limiter.admit(&other, 1000, 0), Verdict::Answer);
        assert_eq!(limiter.admit(&device, 1000, 39), Verdict::Answer);
        // A clock set back gives nothing and takes nothing.
        assert_ne!(limiter.admit(&device, 1000, -5), Verdict::Answer);
    }
}
