//! What devices said, tried until the database holds it.
//!
//! While the database cannot be written (its disk is full, say), nothing is given up and so nothing is
//! acknowledged. Only what the database refuses for its contents, and works otherwise, is left out.

use super::ingest::Message;
use crate::clock;
use crate::command::deliver::Wake;
use crate::store::{IncomingSegment, Store, StoreError};
use dunlin_protocol::id::{BootId, DeviceId};
use dunlin_protocol::report::{Presence, Reported};
use std::time::Duration;
use tokio::sync::watch;

/// Tries of a batch or message that is refused for its contents before it is taken apart, and what the
/// database refuses alone is left out.
const TRIES_MAX: u32 = 5;

/// Between tries.
#[derive(Debug, Clone, Copy)]
struct Pace {
    min: Duration,
    max: Duration,
}

/// Writes until it is done.
pub(super) struct Durable {
    store: Store,
    wake: Wake,
    pace: Pace,
}

/// A segment's identity, as acknowledged.
pub(super) type Stored = (DeviceId, BootId, u64);

impl Durable {
    pub(super) fn new(store: Store, wake: Wake) -> Self {
        let pace = Pace {
            min: Duration::from_millis(100),
            max: Duration::from_secs(10),
        };
        Self { store, wake, pace }
    }

    /// Stores what a device said of itself; `false` if `stop` came first.
    pub(super) async fn state(
        &self,
        stop: &mut watch::Receiver<bool>,
        device: &DeviceId,
        state: &Message,
        heard_ms: Option<i64>,
    ) -> bool {
        let mut tries = 0;
        loop {
            let done = match state {
                Message::Presence(presence) => self.presence(device, presence, heard_ms).await,
                Message::Reported(reported) => {
                    let now_ms = clock::now_ms();
                    self.reported(device, reported, now_ms).await
                }
                Message::Segment(..) => Ok(()),
            };
            self.store.note_write(done.as_ref().copied());
            let Err(error) = done else { return true };
            tracing::error!(%device, %error, "state of a device not stored, will try again");
            tries += 1;
            if tries >= TRIES_MAX && self.is_at_fault(&error).await {
                metrics::counter!("dunlin_ingest_refused_total", "reason" => "store").increment(1);
                tracing::error!(%device, %error, "state of a device left out: the database refuses it alone");
                return true;
            }
            if !self.pause(tries, stop).await {
                return false;
            }
        }
    }

    async fn presence(
        &self,
        device: &DeviceId,
        presence: &Presence,
        heard_ms: Option<i64>,
    ) -> Result<(), StoreError> {
        // Only a hello is the device's own: its last will is the broker's word.
        let heard_ms = heard_ms.filter(|_| presence.online);
        if !self.store.set_presence(device, presence, heard_ms).await? {
            tracing::debug!(%device, online = presence.online, "presence ignored: of an earlier connection, or not let in");
        } else if presence.online {
            self.wake.connected(device);
        }
        Ok(())
    }

    async fn reported(
        &self,
        device: &DeviceId,
        reported: &Reported,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        if self.store.set_reported(device, reported, now_ms).await? {
            self.wake.wake();
        } else {
            tracing::debug!(%device, sequence = reported.sequence, "report ignored: not newer than the one known");
            self.store.touch(device, now_ms).await?;
        }
        Ok(())
    }

    /// The identities of the segments that are on disk; `None` if `stop` came first.
    pub(super) async fn segments(
        &self,
        segments: &[IncomingSegment],
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Vec<Stored>> {
        let mut tries = 0;
        loop {
            let error = match self.ingest(segments).await {
                Ok(stored) => return Some(stored),
                Err(error) => error,
            };
            tries += 1;
            let count = segments.len();
            tracing::error!(%error, count, tries, "segments not stored, will try again; nothing is acknowledged");
            if tries >= TRIES_MAX && self.is_at_fault(&error).await {
                return self.one_by_one(segments, stop).await;
            }
            if !self.pause(tries, stop).await {
                return None;
            }
        }
    }

    async fn one_by_one(
        &self,
        segments: &[IncomingSegment],
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Vec<Stored>> {
        let mut all = Vec::new();
        for one in segments {
            all.extend(self.alone(one, stop).await?);
        }
        Some(all)
    }

    /// Nothing if the segment is left out.
    async fn alone(
        &self,
        one: &IncomingSegment,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Vec<Stored>> {
        let mut tries = 0;
        loop {
            let error = match self.ingest(std::slice::from_ref(one)).await {
                Ok(stored) => return Some(stored),
                Err(error) => error,
            };
            let (device, segment) = (&one.device, one.segment.segment);
            if self.is_at_fault(&error).await {
                metrics::counter!("dunlin_ingest_refused_total", "reason" => "store").increment(1);
                tracing::error!(%device, segment, %error, "segment left out");
                return Some(Vec::new());
            }
            tries += 1;
            tracing::error!(%device, segment, %error, tries, "segment not stored, will try again; nothing is acknowledged");
            if !self.pause(tries, stop).await {
                return None;
            }
        }
    }

    async fn ingest(&self, segments: &[IncomingSegment]) -> Result<Vec<Stored>, StoreError> {
        let outcome = self.store.ingest(segments).await;
        self.store.note_write(outcome.as_ref().map(drop));
        if let Ok(stored) = &outcome {
            metrics::counter!("dunlin_ingest_segments_total").increment(stored.len() as u64);
        }
        outcome
    }

    /// Whether what was refused is at fault, and the database works.
    async fn is_at_fault(&self, error: &StoreError) -> bool {
        error.is_of_contents() && self.store.ping_write().await.is_ok()
    }

    /// Waits before the next try; `false` if `stop` came first.
    pub(super) async fn pause(&self, tries: u32, stop: &mut watch::Receiver<bool>) -> bool {
        let Pace { min, max } = self.pace;
        let wait = min.saturating_mul(1 << tries.min(10)).min(max);
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => false,
            () = tokio::time::sleep(wait) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dunlin_protocol::telemetry::{Body, Class, Event, Record, Segment};
    use std::collections::BTreeSet;

    async fn open(dir: &tempfile::TempDir) -> Durable {
        let store = Store::open(&dir.path().join("dunlin.db")).await.unwrap();
        let pace = Pace {
            min: Duration::from_millis(1),
            max: Duration::from_millis(2),
        };
        Durable {
            store,
            wake: Wake::default(),
            pace,
        }
    }

    fn event(number: u64, bytes: usize) -> IncomingSegment {
        let body = Body::Event(Event {
            code: "test".to_owned(),
            detail: "x".repeat(bytes),
            bundle: None,
        });
        IncomingSegment {
            device: "edge".parse().unwrap(),
            class: Class::Event,
            segment: Segment {
                boot: BootId([7; 16]),
                segment: number,
                backfilled: false,
                records: vec![Record { time_ms: 5, body }],
            },
            received_ms: 100,
        }
    }

    /// Until it has failed so often that it would be taken apart.
    async fn has_failed(durable: &Durable, segments: &[IncomingSegment]) {
        let (_say, mut stop) = watch::channel(false);
        for _ in 0..=TRIES_MAX {
            let tried = durable.ingest(segments).await;
            assert!(!durable.is_at_fault(&tried.unwrap_err()).await);
        }
        let tries = durable.segments(segments, &mut stop);
        let given_up = tokio::time::timeout(Duration::from_millis(500), tries).await;
        assert!(given_up.is_err(), "{given_up:?}");
    }

    async fn soon(stored: impl Future<Output = Option<Vec<Stored>>>) -> Vec<Stored> {
        let stored = tokio::time::timeout(Duration::from_secs(60), stored).await;
        stored.unwrap().unwrap()
    }

    #[tokio::test]
    async fn nothing_is_given_up_while_the_disk_is_full_and_all_is_stored_once_after_that() {
        let dir = tempfile::tempdir().unwrap();
        let durable = open(&dir).await;
        let store = &durable.store;
        let (_say, mut stop) = watch::channel(false);
        let batch: Vec<_> = (0..64).map(|number| event(number, 20_000)).collect();
        assert_eq!(store.check_writes().await, Ok(()));
        store.limit_pages(1).await;
        has_failed(&durable, &batch).await;
        // Little is written all the same: that alone does not tell.
        store.ping_write().await.unwrap();
        let why = store.check_writes().await.unwrap_err();
        assert!(why.contains("full"), "{why}");

        store.limit_pages(u32::MAX - 1).await;
        let stored = soon(durable.segments(&batch, &mut stop)).await;
        assert_eq!(stored.len(), 64);
        assert_eq!(store.check_writes().await, Ok(()));
        let (device, boot) = (&batch[0].device, BootId([7; 16]));
        let numbers = store.segment_numbers(device, &boot).await.unwrap();
        assert_eq!(numbers, (0..64).collect::<BTreeSet<u64>>());
        assert_eq!(store.events(device, 100).await.unwrap().len(), 64);
        store.close().await;
    }

    #[tokio::test]
    async fn what_the_database_refuses_for_its_contents_is_left_out_alone() {
        let dir = tempfile::tempdir().unwrap();
        let durable = open(&dir).await;
        let (_say, mut stop) = watch::channel(false);
        durable.store.refuse_segment(2).await;
        let batch: Vec<_> = (0..4).map(|number| event(number, 10)).collect();
        let stored = soon(durable.segments(&batch, &mut stop)).await;
        let numbers: Vec<u64> = stored.iter().map(|(_, _, number)| *number).collect();
        assert_eq!(numbers, [0, 1, 3]);
        assert_eq!(durable.store.check_writes().await, Ok(()));
        durable.store.close().await;
    }
}
