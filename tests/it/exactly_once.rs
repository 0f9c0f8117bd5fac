//! The device's buffer and the server's store joined by a network that loses, doubles, delays and
//! turns around whatever it is given, under random schedules: held against a reference that is a set.
//!
//! Every record that was durable is in the store exactly once, or counted in a gap that names its
//! segment. The seed is printed; `DUNLIN_TEST_SEED` repeats it, `DUNLIN_SCHEDULES` says how many.

#![allow(clippy::unwrap_used, clippy::panic)]

use dunlin_agent::telemetry::{Limits, TelemetryHandle};
use dunlin_protocol::command::Ack;
use dunlin_protocol::id::{BootId, DeviceId};
use dunlin_protocol::telemetry::{Body, Class, Event, LogLine, Record, Segment};
use dunlin_server::store::{IncomingSegment, Store};
use dunlin_tests::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const SCHEDULES: u64 = 12;
const STEPS: u64 = 150;
/// Longest text of a record, in bytes: many small ones, or so large ones that they do not fit into the
/// smallest buffer there is.
const TEXT_MAX_BYTES: u64 = 3000;
const LARGE_TEXT_MAX_BYTES: u64 = 250_000;
const DEVICE: &str = "dev-01";

/// A message on its way to the server, or an acknowledgement on its way back.
#[derive(Clone)]
enum Message {
    Up(Class, Vec<u8>),
    Down(Ack),
}

struct World {
    dir: tempfile::TempDir,
    device: DeviceId,
    random: Random,
    limits: Limits,
    text_max: u64,
    buffer: Option<TelemetryHandle>,
    boot: BootId,
    store: Store,
    /// What the network holds.
    flying: Vec<Message>,
    /// Records by name that were taken in, and those of them that were durable.
    pushed: u64,
    taken: BTreeSet<String>,
    durable: BTreeSet<String>,
}

async fn open(dir: &Path, limits: Limits) -> (TelemetryHandle, BootId) {
    let opened = TelemetryHandle::open(&dir.join("telemetry"), limits).await;
    let (buffer, report) = opened.unwrap();
    assert_eq!(report.events(), [], "nothing was damaged");
    (buffer, report.boot)
}

async fn open_store(dir: &Path) -> Store {
    Store::open(&dir.join("dunlin.db")).await.unwrap()
}

impl World {
    async fn new(random: Random, limits: Limits, text_max: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (buffer, boot) = open(dir.path(), limits).await;
        Self {
            store: open_store(dir.path()).await,
            dir,
            device: DEVICE.parse().unwrap(),
            random,
            limits,
            text_max,
            buffer: Some(buffer),
            boot,
            flying: Vec::new(),
            pushed: 0,
            taken: BTreeSet::new(),
            durable: BTreeSet::new(),
        }
    }

    fn buffer(&self) -> &TelemetryHandle {
        self.buffer.as_ref().unwrap()
    }

    async fn push(&mut self) {
        let name = format!("r-{}", self.pushed);
        let length = usize::try_from(self.random.below(self.text_max)).unwrap();
        // What does not compress fills the buffer.
        let text: String = std::iter::repeat_with(|| self.random.next_u64())
            .flat_map(|n| n.to_string().into_bytes())
            .map(char::from)
            .take(length)
            .collect();
        let time_ms = jiff::Timestamp::now().as_millisecond();
        let body = match self.random.below(4) {
            0 => Body::Log(LogLine {
                level: "info".to_owned(),
                text: format!("{name} {text}"),
            }),
            _ => Body::Event(Event {
                code: name.clone(),
                detail: text,
                bundle: None,
            }),
        };
        self.pushed += 1;
        self.buffer().push(Record { time_ms, body }).await.unwrap();
        self.taken.insert(name);
    }

    async fn flush(&mut self) {
        self.buffer().flush().await.unwrap();
        self.durable.clone_from(&self.taken);
    }

    async fn send(&mut self) {
        for outgoing in self.buffer().next_batch().await {
            self.flying
                .push(Message::Up(outgoing.class, outgoing.payload));
        }
    }

    /// One message of those on their way, any of them, arrives; it may arrive again, or never.
    async fn deliver(&mut self) {
        if self.flying.is_empty() {
            return;
        }
        let at = usize::try_from(self.random.below(self.flying.len() as u64)).unwrap();
        let message = match self.random.below(8) {
            0 => self.flying[at].clone(),
            1 => {
                self.flying.swap_remove(at);
                return;
            }
            _ => self.flying.swap_remove(at),
        };
        match message {
            Message::Down(ack) => {
                self.buffer().ack(ack).await;
            }
            Message::Up(class, payload) => {
                let incoming = IncomingSegment {
                    device: self.device.clone(),
                    class,
                    segment: Segment::decode(class, &payload).unwrap(),
                    received_ms: jiff::Timestamp::now().as_millisecond(),
                };
                // Of several in one transaction some may be the same.
                let twice = self.random.below(4) == 0;
                let batch = vec![incoming; 1 + usize::from(twice)];
                let stored = self.store.ingest(&batch).await.unwrap();
                if self.random.below(10) == 0 {
                    // Killed between commit and acknowledgement.
                    self.store = open_store(self.dir.path()).await;
                    return;
                }
                let segments = stored.into_iter().map(|(_, _, n)| n).collect();
                self.flying.push(Message::Down(Ack {
                    boot: self.boot,
                    segments,
                    server_time_ms: None,
                }));
            }
        }
    }

    async fn reopen(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            buffer.close().await;
        }
        self.durable.clone_from(&self.taken);
        let (buffer, boot) = open(self.dir.path(), self.limits).await;
        assert_eq!(boot, self.boot, "the same life");
        self.buffer = Some(buffer);
    }

    async fn step(&mut self) {
        match self.random.below(100) {
            0..35 => self.push().await,
            35..40 => self.flush().await,
            40..55 => self.send().await,
            55..92 => self.deliver().await,
            92..96 => {
                // A new connection: what was on its way may still come.
                self.buffer().reset_inflight().await;
                if self.random.below(2) == 0 {
                    self.flying.clear();
                }
            }
            96..98 => self.reopen().await,
            _ => self.store = open_store(self.dir.path()).await,
        }
    }

    /// The network is good again; everything arrives.
    async fn settle(&mut self) {
        self.flush().await;
        self.buffer().reset_inflight().await;
        loop {
            self.send().await;
            if self.flying.is_empty() {
                let left = self.buffer().stats().await.segments;
                assert_eq!(left, 0, "acknowledged and still there");
                return;
            }
            for message in std::mem::take(&mut self.flying) {
                match message {
                    Message::Down(ack) => {
                        self.buffer().ack(ack).await;
                    }
                    up @ Message::Up(..) => {
                        self.flying.push(up);
                        while let Some(Message::Up(..)) = self.flying.last() {
                            self.deliver_surely().await;
                        }
                    }
                }
            }
        }
    }

    async fn deliver_surely(&mut self) {
        let Some(Message::Up(class, payload)) = self.flying.pop() else {
            return;
        };
        let incoming = IncomingSegment {
            device: self.device.clone(),
            class,
            segment: Segment::decode(class, &payload).unwrap(),
            received_ms: jiff::Timestamp::now().as_millisecond(),
        };
        let stored = self.store.ingest(&[incoming]).await.unwrap();
        let segments = stored.into_iter().map(|(_, _, n)| n).collect();
        self.buffer()
            .ack(Ack {
                boot: self.boot,
                segments,
                server_time_ms: None,
            })
            .await;
    }

    /// What the server has, held against the reference; how many records it was told are dropped.
    async fn check(&self) -> u64 {
        let mut counts = BTreeMap::<String, u64>::new();
        let mut told = 0;
        for class in [Class::Event, Class::Log] {
            for stored in self
                .store
                .records(&self.device, class, 100_000)
                .await
                .unwrap()
            {
                let name = match &stored.record.body {
                    Body::Event(event) => event.code.clone(),
                    Body::Log(line) => line.text.split(' ').next().unwrap().to_owned(),
                    Body::Gap(gap) => {
                        told += gap.records;
                        continue;
                    }
                    other => panic!("{other:?}"),
                };
                // What the buffer says of itself may be said twice.
                if name.starts_with("r-") {
                    *counts.entry(name).or_default() += 1;
                }
            }
        }
        let twice: Vec<_> = counts.iter().filter(|(_, n)| **n > 1).collect();
        assert!(twice.is_empty(), "more than once: {twice:?}");
        let strangers = counts.keys().filter(|name| !self.taken.contains(*name));
        assert_eq!(strangers.count(), 0, "what nobody took in");
        let lacking = self.durable.iter();
        let lacking: Vec<_> = lacking.filter(|n| !counts.contains_key(*n)).collect();
        let missing = lacking.len() as u64;
        assert!(
            missing <= told,
            "{missing} of {} durable records are neither stored nor told, {told} were told: {lacking:?}",
            self.durable.len()
        );
        told
    }
}

async fn schedules(limits: Limits, text_max: u64) -> u64 {
    let mut random = Random::from_environment("schedules");
    let given = std::env::var("DUNLIN_SCHEDULES").ok();
    let mut dropped = 0;
    for _ in 0..given.and_then(|n| n.parse().ok()).unwrap_or(SCHEDULES) {
        let mut world = World::new(random.split(), limits, text_max).await;
        for _ in 0..STEPS {
            world.step().await;
        }
        world.settle().await;
        dropped += world.check().await;
    }
    dropped
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_schedule_stores_every_record_once() {
    assert_eq!(schedules(Limits::default(), TEXT_MAX_BYTES).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_schedule_stores_or_tells_where_the_buffer_is_small() {
    let limits = Limits {
        max_bytes: Limits::MIN_BYTES,
        ..Limits::default()
    };
    assert!(
        schedules(limits, LARGE_TEXT_MAX_BYTES).await > 0,
        "no schedule filled the buffer"
    );
}
