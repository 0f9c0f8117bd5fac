//! Messages from devices into the database: batches, one transaction each, and then the
//! application's own acknowledgement, which alone lets a device delete what it has sent.
//!
//! ```text
//! inbound ─▶ sort (pure) ─▶ presence, reported: one row each
//!                        └▶ segments: store.ingest(batch) ─ commit ─▶ ack {boot, segments}
//!                        └▶ refused: counted, logged (at most one line a device in ten seconds)
//! ```
//! A device that is revoked or unknown is not taken from and not answered. A failing database holds
//! everything back: nothing is acknowledged, the batch is tried again,
//! the broker's window fills and devices keep their buffers.

use super::durable::Durable;
use crate::clock;
use crate::command::deliver::Wake;
use crate::drift::plausible::{self, Implausible};
use crate::mqtt::{Inbound, MqttClient};
use crate::store::{IncomingSegment, Store};
use dunlin_protocol::CONTROL_MESSAGE_MAX_BYTES;
use dunlin_protocol::command::{Ack, MessageError, parse};
use dunlin_protocol::id::{BootId, DeviceId, FleetId};
use dunlin_protocol::report::{Presence, Reported};
use dunlin_protocol::telemetry::{Body, Class, Segment};
use dunlin_protocol::topic::{Channel, Topic, TopicError};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Broker-side life of an acknowledgement; a lost one is made up for by the device sending again.
const ACK_EXPIRY_S: u32 = 300;
/// A device's rows are touched at most this often.
const TOUCH_MS: i64 = 1000;
const COMPLAINT_MS: i64 = 10_000;
/// Names remembered for rate limits; beyond that all are forgotten at once.
const NAMES_MAX: usize = 10_000;

/// Most dropped segments that the gaps of one message may name; agents name no more.
const GAP_NUMBERS_MAX: usize = 4096;

/// How messages are gathered.
#[derive(Debug, Clone, Copy)]
pub struct IngestSettings {
    /// Most messages in one transaction.
    pub batch_max: usize,
    /// Longest wait for more of them.
    pub batch_wait: Duration,
}

impl Default for IngestSettings {
    fn default() -> Self {
        Self {
            batch_max: 256,
            batch_wait: Duration::from_millis(20),
        }
    }
}

/// Why a message is left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a topic of ours.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// Of another fleet.
    #[error("topic of fleet {got}, expected {expected}")]
    Fleet {
        /// This server's fleet.
        expected: FleetId,
        /// The topic's.
        got: FleetId,
    },
    /// A channel on which only the server speaks.
    #[error("channel {0} is the server's, devices only read it")]
    Direction(&'static str),
    /// Too long, or not of the channel's shape.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl Refusal {
    /// Short and stable, for metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Topic(_) => "topic",
            Self::Fleet { .. } => "fleet",
            Self::Direction(_) => "direction",
            Self::Message(MessageError::TooLarge { .. }) => "too_large",
            Self::Message(MessageError::Malformed { .. }) => "malformed",
        }
    }
}

/// What a device said.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Connected or not.
    Presence(Presence),
    /// The state it is in.
    Reported(Box<Reported>),
    /// Records.
    Segment(Class, Box<Segment>),
}

/// Reads one message. The topic's device is who sent it: the broker lets nobody else publish there.
///
/// # Errors
/// Why it is left out.
pub fn read(fleet: &FleetId, topic: &str, payload: &[u8]) -> Result<(DeviceId, Message), Refusal> {
    let topic: Topic = topic.parse()?;
    if topic.fleet != *fleet {
        return Err(Refusal::Fleet {
            expected: fleet.clone(),
            got: topic.fleet,
        });
    }
    let message = match topic.channel {
        Channel::Presence => {
            Message::Presence(parse("presence", CONTROL_MESSAGE_MAX_BYTES, payload)?)
        }
        Channel::Reported => Message::Reported(Box::new(parse(
            "reported",
            CONTROL_MESSAGE_MAX_BYTES,
            payload,
        )?)),
        channel => {
            let class = Class::of_channel(channel).ok_or(Refusal::Direction(channel.as_str()))?;
            let segment = Segment::decode(class, payload)?;
            bound_gaps(class, &segment)?;
            Message::Segment(class, Box::new(segment))
        }
    };
    Ok((topic.device, message))
}

/// Each number becomes a row.
fn bound_gaps(class: Class, segment: &Segment) -> Result<(), MessageError> {
    let named = segment.records.iter().map(|record| match &record.body {
        Body::Gap(gap) => gap.segments.len(),
        _ => 0,
    });
    let named: usize = named.sum();
    if named <= GAP_NUMBERS_MAX {
        return Ok(());
    }
    Err(MessageError::Malformed {
        what: class.as_str(),
        problem: format!(
            "its gaps name {named} dropped segments, expected at most {GAP_NUMBERS_MAX}"
        ),
    })
}

/// Runs until `stop` becomes true; the batch in hand is finished first.
pub async fn run(
    store: Store,
    mqtt: MqttClient,
    mut inbound: mpsc::Receiver<Inbound>,
    wake: Wake,
    settings: IngestSettings,
    mut stop: watch::Receiver<bool>,
) {
    let mut ingest = Ingest {
        durable: Durable::new(store.clone(), wake),
        store,
        mqtt,
        touched: BTreeMap::new(),
        complaints: Complaints::default(),
    };
    loop {
        let first = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            first = inbound.recv() => match first {
                Some(first) => first,
                None => return,
            },
        };
        let batch = gather(first, &mut inbound, settings).await;
        if !ingest.take_in(batch, &mut stop).await {
            return;
        }
    }
}

async fn gather(
    first: Inbound,
    inbound: &mut mpsc::Receiver<Inbound>,
    settings: IngestSettings,
) -> Vec<Inbound> {
    let mut batch = vec![first];
    let full = async {
        while batch.len() < settings.batch_max {
            match inbound.recv().await {
                Some(message) => batch.push(message),
                None => break,
            }
        }
    };
    // An elapsed wait is the ordinary end of a batch.
    let _ = tokio::time::timeout(settings.batch_wait, full).await;
    batch
}

struct Ingest {
    store: Store,
    mqtt: MqttClient,
    durable: Durable,
    touched: BTreeMap<DeviceId, i64>,
    complaints: Complaints,
}

impl Ingest {
    /// Whether to go on; `false` if `stop` came while the database failed.
    async fn take_in(&mut self, batch: Vec<Inbound>, stop: &mut watch::Receiver<bool>) -> bool {
        let now_ms = clock::now_ms();
        let mut segments = Vec::new();
        for message in &batch {
            metrics::counter!("dunlin_ingest_messages_total").increment(1);
            match read(self.mqtt.fleet(), message.topic(), message.payload()) {
                Ok((device, Message::Segment(class, segment))) => {
                    segments.push(IncomingSegment {
                        device,
                        class,
                        segment: *segment,
                        received_ms: now_ms,
                    });
                }
                Ok((device, state)) => {
                    let heard_ms = (!message.is_retained()).then_some(now_ms);
                    if !self.durable.state(stop, &device, &state, heard_ms).await {
                        return false;
                    }
                }
                // A retained presence that was cleared, by an operator.
                Err(_) if message.payload().is_empty() => {}
                Err(refusal) => self.refuse(message, &refusal, now_ms),
            }
        }
        let Some(segments) = self.of_live_devices(segments, stop).await else {
            return false;
        };
        self.touch(&segments, now_ms).await;
        self.flag(&segments);
        let Some(stored) = self.durable.segments(&segments, stop).await else {
            return false;
        };
        self.acknowledge(stored).await;
        for message in &batch {
            self.mqtt.acknowledge(message).await;
        }
        true
    }

    /// Leaves out what revoked and unknown devices sent; `None` if `stop` came while the database
    /// failed.
    async fn of_live_devices(
        &mut self,
        mut segments: Vec<IncomingSegment>,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Vec<IncomingSegment>> {
        let senders: BTreeSet<&DeviceId> = segments.iter().map(|s| &s.device).collect();
        if senders.is_empty() {
            return Some(segments);
        }
        let mut tries = 0;
        let live = loop {
            match self.store.live_devices(&senders).await {
                Ok(live) => break live,
                Err(error) => {
                    tries += 1;
                    tracing::error!(%error, tries, "devices not looked up, will try again; nothing is acknowledged");
                }
            }
            if !self.durable.pause(tries, stop).await {
                return None;
            }
        };
        let now_ms = clock::now_ms();
        for stranger in senders.iter().filter(|device| !live.contains(**device)) {
            metrics::counter!("dunlin_ingest_refused_total", "reason" => "not_let_in").increment(1);
            if let Some(left_out) = self.complaints.may_speak(stranger.as_str(), now_ms) {
                tracing::warn!(device = %stranger, left_out, "telemetry refused: the device is revoked or unknown");
            }
        }
        drop(senders);
        segments.retain(|segment| live.contains(&segment.device));
        Some(segments)
    }

    /// Says which windows no honest device sends. They are stored like all, and count in no sum.
    fn flag(&mut self, segments: &[IncomingSegment]) {
        for incoming in segments {
            for why in absurdities(incoming) {
                metrics::counter!("dunlin_ingest_windows_flagged_total", "reason" => why.code())
                    .increment(1);
                let (who, now_ms) = (incoming.device.as_str(), incoming.received_ms);
                if let Some(left_out) = self.complaints.may_speak(who, now_ms) {
                    tracing::warn!(device = %who, segment = incoming.segment.segment, left_out, "a window counts towards nothing: {why}");
                }
            }
        }
    }

    /// Notes who was heard of. Not worth holding anything up for.
    async fn touch(&mut self, segments: &[IncomingSegment], now_ms: i64) {
        if self.touched.len() > NAMES_MAX {
            self.touched.clear();
        }
        for incoming in segments {
            let last_ms = self.touched.get(&incoming.device);
            if last_ms.is_some_and(|last_ms| (0..TOUCH_MS).contains(&(now_ms - last_ms))) {
                continue;
            }
            if let Err(error) = self.store.touch(&incoming.device, now_ms).await {
                tracing::warn!(device = %incoming.device, %error, "last sign of life not stored");
                return;
            }
            self.touched.insert(incoming.device.clone(), now_ms);
        }
    }

    async fn acknowledge(&self, stored: Vec<(DeviceId, BootId, u64)>) {
        let mut by_boot = BTreeMap::<(DeviceId, BootId), Vec<u64>>::new();
        for (device, boot, segment) in stored {
            by_boot.entry((device, boot)).or_default().push(segment);
        }
        for ((device, boot), mut segments) in by_boot {
            segments.sort_unstable();
            segments.dedup();
            let ack = Ack {
                boot,
                segments,
                server_time_ms: Some(clock::now_ms()),
            };
            let Ok(json) = serde_json::to_vec(&ack) else {
                continue;
            };
            if let Err(error) = self
                .mqtt
                .publish(&device, Channel::Ack, json, Some(ACK_EXPIRY_S))
                .await
            {
                // The device sends them again and is answered then.
                tracing::debug!(%error, "acknowledgement not sent");
            }
        }
    }

    fn refuse(&mut self, message: &Inbound, refusal: &Refusal, now_ms: i64) {
        metrics::counter!("dunlin_ingest_refused_total", "reason" => refusal.code()).increment(1);
        let topic: String = message.topic().chars().take(200).collect();
        let who = topic.split('/').nth(3).unwrap_or(&topic).to_owned();
        if let Some(left_out) = self.complaints.may_speak(&who, now_ms) {
            let bytes = message.payload().len();
            tracing::warn!(device = %who, topic, bytes, left_out, "message refused: {refusal}");
        }
    }
}

/// What is wrong with the windows of a segment, one each.
fn absurdities(incoming: &IncomingSegment) -> impl Iterator<Item = Implausible> + '_ {
    let windows = incoming
        .segment
        .records
        .iter()
        .filter_map(|record| match &record.body {
            Body::Window(window) => Some(window),
            _ => None,
        });
    windows.filter_map(|window| {
        plausible::numbers(window)
            .and_then(|()| plausible::clock(window, incoming.received_ms))
            .err()
    })
}

/// One line a device in ten seconds, so that a broken device does not fill the log.
#[derive(Debug, Default)]
struct Complaints {
    last: BTreeMap<String, (i64, u64)>,
}

impl Complaints {
    /// `Some(how many were left out since the last line)` if one may be written now.
    fn may_speak(&mut self, who: &str, now_ms: i64) -> Option<u64> {
        if self.last.len() > NAMES_MAX {
            self.last.clear();
        }
        let entry = self.last.entry(who.to_owned()).or_insert((i64::MIN, 0));
        if entry.0 <= now_ms && now_ms.saturating_sub(entry.0) < COMPLAINT_MS {
            entry.1 += 1;
            return None;
        }
        let left_out = entry.1;
        *entry = (now_ms, 0);
        Some(left_out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use dunlin_protocol::SEGMENT_MAX_BYTES;
    use proptest::prelude::*;

    fn fleet() -> FleetId {
        "demo".parse().unwrap()
    }

    #[test]
    fn each_refusal_has_its_own_reason() {
        let read = |topic: &str, payload: &[u8]| read(&fleet(), topic, payload).unwrap_err().code();
        assert_eq!(read("other/topic", b"{}"), "topic");
        assert_eq!(read("dunlin/v1/demo/d/nope", b"{}"), "topic");
        assert_eq!(read("dunlin/v1/else/d/event", b"{}"), "fleet");
        assert_eq!(read("dunlin/v1/demo/d/desired", b"{}"), "direction");
        assert_eq!(
            read("dunlin/v1/demo/d/presence", b"{\"online\":3}"),
            "malformed"
        );
        assert_eq!(
            read(
                "dunlin/v1/demo/d/reported",
                &vec![b' '; CONTROL_MESSAGE_MAX_BYTES + 1]
            ),
            "too_large"
        );
        assert_eq!(
            read(
                "dunlin/v1/demo/d/sketch",
                &vec![b'['; SEGMENT_MAX_BYTES + 1]
            ),
            "too_large"
        );
    }

    #[test]
    fn gaps_name_so_many_segments_and_no_more() {
        let read = |gaps: &[u64]| {
            let gap = |numbers: &u64| {
                serde_json::json!({
                    "time_ms": 1, "type": "gap", "class": "log", "records": 1, "reason": "space",
                    "segments": (0..*numbers).collect::<Vec<_>>(),
                })
            };
            let records: Vec<_> = gaps.iter().map(gap).collect();
            let json =
                serde_json::json!({"boot": "b0".repeat(16), "segment": 1, "records": records});
            let payload = serde_json::to_vec(&json).unwrap();
            read(&fleet(), "dunlin/v1/demo/d/event", &payload)
        };
        assert!(read(&[4096]).is_ok());
        for too_many in [&[4097][..], &[90_000], &[4096, 1]] {
            let refusal = read(too_many).unwrap_err();
            assert_eq!(refusal.code(), "malformed");
            assert!(refusal.to_string().contains("at most 4096"), "{refusal}");
        }
    }

    #[test]
    fn absurd_windows_are_found_among_honest_ones() {
        let window = |start_ms: i64, inferences: u64| {
            serde_json::json!({
                "time_ms": 1, "type": "window", "bundle": "05b3abf2579a5eb66403cd78be557fd860633a1fe2103c7642030defe32c657f",
                "family": "digits", "version": 1, "start_ms": start_ms, "end_ms": start_ms + 1000,
                "inferences": inferences, "errors": 0, "confidence_sum_micro": 0, "entropy_sum_micro": 0,
                "outputs": [], "confidence": {"counts": []}, "entropy": {"counts": []}, "features": [],
                "latency": {"buckets": []},
            })
        };
        let now_ms = 1_790_000_000_000;
        let records = [
            window(now_ms, 5),
            window(0, 5),
            window(now_ms, u64::MAX),
            window(4_294_967_296_000, 5),
        ];
        let json = serde_json::json!({"boot": "b0".repeat(16), "segment": 1, "records": records});
        let payload = serde_json::to_vec(&json).unwrap();
        let (device, message) = read(&fleet(), "dunlin/v1/demo/d/sketch", &payload).unwrap();
        let Message::Segment(class, segment) = message else {
            panic!("{message:?}");
        };
        let incoming = IncomingSegment {
            device,
            class,
            segment: *segment,
            received_ms: now_ms,
        };
        let found: Vec<Implausible> = absurdities(&incoming).collect();
        assert_eq!(
            found,
            [
                Implausible::ClockBehind,
                Implausible::Inferences,
                Implausible::ClockAhead
            ]
        );
    }

    #[test]
    fn a_broken_device_gets_one_line_in_a_while() {
        let mut complaints = Complaints::default();
        assert_eq!(complaints.may_speak("a", 0), Some(0));
        assert_eq!(complaints.may_speak("a", 1), None);
        assert_eq!(complaints.may_speak("b", 1), Some(0));
        assert_eq!(complaints.may_speak("a", 10_000), Some(1));
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(topic in "(dunlin/v1/demo/d/(event|sketch|metrics|log|presence|reported))|.{0,40}", payload: Vec<u8>) {
            let _ = read(&fleet(), &topic, &payload);
        }
    }
}
