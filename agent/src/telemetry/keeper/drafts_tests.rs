#![allow(clippy::unwrap_used)]
use super::*;
use crate::telemetry::evict::Limits;
use dunlin_protocol::command::Ack;
use dunlin_protocol::id::Digest;
use dunlin_protocol::sketch::{Histogram, Latency};
use dunlin_protocol::telemetry::{Body, Record, Segment, Window};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

fn window(start_ms: i64, inferences: u64) -> Prepared {
    let window = Window {
        bundle: Digest::of(b"bundle"),
        family: "digits".parse().unwrap(),
        version: 1,
        start_ms,
        end_ms: start_ms + 60_000,
        inferences,
        errors: 0,
        confidence_sum_micro: 0,
        entropy_sum_micro: 0,
        outputs: Vec::new(),
        confidence: Histogram::default(),
        entropy: Histogram::default(),
        features: Vec::new(),
        profile: None,
        latency: Latency::default(),
        expected_confusion_nano: None,
        segment: None,
        refused: 0,
    };
    let record = Record {
        time_ms: window.end_ms,
        body: Body::Window(Box::new(window)),
    };
    Prepared::new(&record).unwrap()
}

fn open(dir: &Path) -> Keeper {
    Keeper::open(dir, Limits::default(), 0).unwrap().0
}

/// As after kill -9: nothing is done at the end.
fn killed(mut keeper: Keeper) {
    drop(keeper.store.take());
}

/// Segments by number, as a server knows them: one that comes again is the same.
#[derive(Default)]
struct Server(BTreeMap<u64, Vec<u64>>);

impl Server {
    /// Takes all that is sent, acknowledged as it comes; the inferences of what is new.
    fn take(&mut self, keeper: &mut Keeper) -> Vec<u64> {
        keeper.reset_inflight();
        let mut news = Vec::new();
        loop {
            let batch = keeper.next_batch(0, 16, 0);
            if batch.is_empty() {
                return news;
            }
            for outgoing in &batch {
                let segment = Segment::decode(outgoing.class, &outgoing.payload).unwrap();
                let windows = segment
                    .records
                    .iter()
                    .filter_map(|record| match &record.body {
                        Body::Window(window) => Some(window.inferences),
                        _ => None,
                    });
                let windows: Vec<u64> = windows.collect();
                if self.0.insert(outgoing.segment, windows.clone()).is_none() {
                    news.extend(windows);
                }
            }
            let ack = Ack {
                boot: keeper.counter.boot(),
                segments: batch.iter().map(|o| o.segment).collect(),
                server_time_ms: None,
            };
            keeper.ack(&ack, 0);
        }
    }

    fn inferences(&self) -> u64 {
        self.0.values().flatten().sum()
    }
}

#[test]
fn what_was_open_when_the_power_went_is_sent_after_it_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, mut server) = (open(dir.path()), Server::default());
    keeper.windows(&[], vec![window(0, 3)], 0);
    keeper.sync(0).unwrap();
    keeper.windows(&[], vec![window(0, 5)], 0);
    keeper.sync(0).unwrap();
    assert!(server.take(&mut keeper).is_empty());
    keeper.windows(&[window(0, 7)], vec![window(60_000, 1)], 0);
    keeper.sync(0).unwrap();
    assert_eq!(keeper.stats().records, 1);
    assert_eq!(server.take(&mut keeper), [7]);
    killed(keeper);

    let mut keeper = open(dir.path());
    assert_eq!(server.take(&mut keeper), [1]);
    keeper.sync(0).unwrap();
    killed(keeper);
    assert!(server.take(&mut open(dir.path())).is_empty());
}

#[test]
fn an_end_in_order_leaves_nothing_open() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = open(dir.path());
    keeper.windows(&[], vec![window(0, 3), window(0, 4)], 0);
    keeper.sync(0).unwrap();
    keeper.windows(&[window(0, 3), window(0, 4)], Vec::new(), 0);
    keeper.close(0).unwrap();
    let mut all = Server::default().take(&mut open(dir.path()));
    all.sort_unstable();
    assert_eq!(all, [3, 4]);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Count(u64),
    Close,
    Sync,
    Send,
    Compact,
    Reopen,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u64..5).prop_map(Step::Count),
        2 => Just(Step::Close),
        3 => Just(Step::Sync),
        2 => Just(Step::Send),
        1 => Just(Step::Compact),
        1 => Just(Step::Reopen),
        2 => Just(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// What was durable at a kill is sent once, and nothing that was not counted.
    #[test]
    fn every_inference_is_sent_once(steps in proptest::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = open(dir.path());
        // Counted in the open window; in all; of that, durable.
        let (mut now, mut all, mut durable) = (0, 0, 0);
        let mut server = Server::default();
        let mut starts = 0_i64;
        for step in steps {
            match step {
                Step::Count(n) => {
                    (now, all) = (now + n, all + n);
                    keeper.windows(&[], vec![window(starts, now)], 0);
                }
                Step::Close => {
                    keeper.windows(&[window(starts, now)], Vec::new(), 0);
                    (now, starts) = (0, starts + 60_000);
                }
                Step::Sync => {
                    keeper.sync(0).unwrap();
                    durable = all;
                }
                Step::Send => {
                    server.take(&mut keeper);
                }
                Step::Compact => {
                    keeper.store.as_mut().unwrap().compact().unwrap();
                }
                Step::Reopen => {
                    keeper.recover(&crate::telemetry::store::StoreError::Damaged {
                        path: dir.path().to_owned(),
                        what: "a test",
                        problem: "it says so".to_owned(),
                    }, 0);
                }
                Step::Kill => {
                    killed(keeper);
                    keeper = open(dir.path());
                    server.take(&mut keeper);
                    keeper.sync(0).unwrap();
                    let received = server.inferences();
                    prop_assert!((durable..=all).contains(&received), "{durable} {received} {all}");
                    // What was not durable may be lost; count on from what came.
                    (now, all, durable) = (0, received, received);
                    starts += 60_000;
                }
            }
        }
        keeper.windows(&[window(starts, now)], Vec::new(), 0);
        keeper.close(0).unwrap();
        let mut keeper = open(dir.path());
        server.take(&mut keeper);
        prop_assert_eq!(server.inferences(), all);
    }
}
