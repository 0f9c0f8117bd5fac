use super::tell::RECOVERED;
use super::*;
use crate::telemetry::buffer::OPENINGS_MAX;
use crate::telemetry::segment::tests::{event, log, metrics};
use dunlin_protocol::telemetry::{Scalar, Segment};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn small() -> Limits {
    Limits {
        max_bytes: Limits::MIN_BYTES,
        drain_bytes_s: 0,
        ..Limits::default()
    }
}

fn gathered(records: &[Record]) -> Vec<(Class, Vec<Prepared>)> {
    let one = |r: &Record| (r.body.class(), vec![Prepared::new(r).unwrap()]);
    records.iter().map(one).collect()
}

/// Hex noise: halves under zstd and no more.
fn noise(seed: u64, length: usize) -> String {
    let block = |at: u64| {
        let text = format!("{seed}-{at}");
        dunlin_protocol::id::Digest::of(text.as_bytes()).to_string()
    };
    (0..).map(block).take(length / 64 + 1).collect()
}

fn decode(batch: &[Outgoing]) -> Vec<Segment> {
    let one = |o: &Outgoing| Segment::decode(o.class, &o.payload).unwrap();
    batch.iter().map(one).collect()
}

/// Sends and acknowledges everything, as a server that is up would.
fn drain(keeper: &mut Keeper) -> Vec<Segment> {
    keeper.reset_inflight();
    let mut all = Vec::new();
    loop {
        let batch = keeper.next_batch(0, 16, 0);
        if batch.is_empty() {
            return all;
        }
        let boot = keeper.counter.boot();
        let segments = batch.iter().map(|o| o.segment).collect();
        assert_eq!(
            keeper.ack(
                &Ack {
                    boot,
                    segments,
                    server_time_ms: None
                },
                0
            ),
            batch.len()
        );
        all.extend(decode(&batch));
    }
}

#[test]
fn what_waited_for_a_connection_is_marked_when_it_is_sent_and_what_is_new_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, _) = Keeper::open(dir.path(), small(), 0).unwrap();
    let at = |mut record: Record, time_ms: i64| {
        record.time_ms = time_ms;
        record
    };
    let (before, now_ms) = (1_000, 1_000 + 3_600_000);
    let up = || metrics("up", Scalar::Integer(1));
    keeper.seal(
        gathered(&[at(up(), before), at(event("a"), before)]),
        before,
    );
    // Sent in time, and not acknowledged.
    assert!(
        decode(&keeper.next_batch(0, 16, before))
            .iter()
            .all(|s| !s.backfilled)
    );
    keeper.seal(
        gathered(&[at(up(), now_ms), at(event("b"), now_ms)]),
        now_ms,
    );
    keeper.reset_inflight();
    let sent = decode(&keeper.next_batch(0, 16, now_ms));
    let marks: Vec<_> = sent
        .iter()
        .map(|s| (s.records[0].time_ms, s.backfilled))
        .collect();
    let (old, new) = ((before, true), (now_ms, false));
    assert_eq!(marks, [new, new, old, old], "the state, then history");
}

#[test]
fn an_ack_deletes_exactly_what_it_names_in_its_own_boot() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, report) = Keeper::open(dir.path(), small(), 0).unwrap();
    assert_eq!((report.segments, report.events()), (0, vec![]));
    keeper.seal(gathered(&[event("a"), event("b"), log("c")]), 0);
    let batch = keeper.next_batch(0, 16, 0);
    assert_eq!(batch.len(), 3);
    let ack = |boot, segments: &[u64]| Ack {
        boot,
        segments: segments.to_vec(),
        server_time_ms: None,
    };
    let boot = keeper.counter.boot();
    let middle = batch[1].segment;
    assert_eq!(keeper.ack(&ack(BootId([0; 16]), &[middle]), 0), 0);
    assert_eq!(keeper.ack(&ack(boot, &[middle, 999, middle]), 0), 1);
    keeper.close(0).unwrap();
    let (mut keeper, report) = Keeper::open(dir.path(), small(), 0).unwrap();
    assert_eq!((report.boot, report.segments), (boot, 2));
    let left: Vec<_> = drain(&mut keeper).iter().map(|s| s.segment).collect();
    assert_eq!(left, [batch[0].segment, batch[2].segment]);
}

#[test]
fn an_eviction_is_named_in_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, _) = Keeper::open(dir.path(), small(), 0).unwrap();
    keeper.seal(gathered(&[event("first")]), 0);
    for number in 0..60 {
        assert!(keeper.stats().bytes_on_disk <= small().max_bytes);
        keeper.seal(gathered(&[log(&noise(number, 60_000))]), 0);
    }
    let dropped = keeper.stats().evicted_records;
    assert!(dropped > 0);
    let sent = drain(&mut keeper);
    let mut gaps = Vec::new();
    let mut alive = BTreeSet::new();
    for segment in &sent {
        alive.insert(segment.segment);
        for record in &segment.records {
            if let Body::Gap(gap) = &record.body {
                assert_eq!(gap.class, Class::Log);
                assert_eq!(gap.records, gap.segments.len() as u64);
                gaps.extend(gap.segments.clone());
            }
        }
    }
    assert_eq!(gaps.len() as u64, dropped);
    assert!(gaps.iter().all(|n| !alive.contains(n)));
    assert_eq!(alive.len(), sent.len(), "a number means one thing");
    assert!(sent.iter().any(|s| s.records == [event("first")]));
}

#[test]
fn a_store_that_killed_every_start_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, first) = Keeper::open(dir.path(), small(), 0).unwrap();
    keeper.seal(gathered(&[event("a")]), 0);
    keeper.close(0).unwrap();
    std::fs::write(dir.path().join("opening"), [b'.'; OPENINGS_MAX as usize]).unwrap();
    let (keeper, second) = Keeper::open(dir.path(), small(), 0).unwrap();
    assert_eq!((first.boot, second.segments), (second.boot, 1));
    assert!(
        second
            .set_aside
            .unwrap()
            .contains("20 starts in a row died")
    );
    keeper.close(0).unwrap();
    // It may have been the journal.
    std::fs::write(
        dir.path().join("opening"),
        [b'.'; 2 * OPENINGS_MAX as usize],
    )
    .unwrap();
    let (keeper, second) = Keeper::open(dir.path(), small(), 0).unwrap();
    assert_ne!(first.boot, second.boot);
    assert_eq!(second.segments, 0);
    assert!(
        second
            .set_aside
            .unwrap()
            .contains("40 starts in a row died")
    );
    keeper.close(0).unwrap();
    let (_, third) = Keeper::open(dir.path(), small(), 0).unwrap();
    assert_eq!((third.boot, third.set_aside), (second.boot, None));
}

/// Nine events, a sync each.
fn nine(dir: &Path) -> BootId {
    let (mut keeper, report) = Keeper::open(dir, small(), 0).unwrap();
    for code in '1'..='9' {
        keeper.seal(gathered(&[event(&code.to_string())]), 0);
        keeper.sync(0).unwrap();
    }
    report.boot
}

fn codes_and_gaps(sent: &[Segment]) -> (Vec<String>, Vec<Gap>) {
    let (mut codes, mut gaps) = (Vec::new(), Vec::new());
    for record in sent.iter().flat_map(|s| &s.records) {
        match &record.body {
            Body::Event(event) => codes.push(event.code.clone()),
            Body::Gap(gap) => gaps.push(gap.clone()),
            _ => {}
        }
    }
    codes.sort();
    (codes, gaps)
}

fn change_file(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_bit_flipped_in_the_journal_costs_one_segment_which_is_told() {
    let dir = tempfile::tempdir().unwrap();
    nine(dir.path());
    change_file(&dir.path().join("journal"), |b| b[5 * 4096 + 100] ^= 1);
    let (keeper, report) = Keeper::open(dir.path(), small(), 0).unwrap();
    // The gap is durable before anything else happens.
    drop(keeper);
    let (mut keeper, _) = Keeper::open(dir.path(), small(), 0).unwrap();
    let sent = drain(&mut keeper);
    let (codes, gaps) = codes_and_gaps(&sent);
    assert_eq!(codes, ["1", "2", "3", "4", "6", "7", "8", "9"]);
    assert_eq!((gaps.len(), gaps[0].records), (1, 1));
    let missing: Vec<u64> = (0..9)
        .filter(|n| sent.iter().all(|s| s.segment != *n))
        .collect();
    assert_eq!(gaps[0].segments, missing);
    let (code, detail) = report.events().remove(0);
    assert_eq!(code, "telemetry_journal_damaged");
    assert!(
        detail.contains("8 records were readable") && detail.contains("1 segments"),
        "{detail}"
    );
    keeper.close(0).unwrap();
    let (_, report) = Keeper::open(dir.path(), small(), 0).unwrap();
    assert_eq!((report.events(), report.segments), (vec![], 0), "told once");
}

#[test]
fn a_journal_that_is_gone_is_told_and_a_new_buffer_has_none_to_miss() {
    let dir = tempfile::tempdir().unwrap();
    nine(dir.path());
    std::fs::remove_file(dir.path().join("journal")).unwrap();
    let (keeper, report) = Keeper::open(dir.path(), small(), 0).unwrap();
    assert!(report.damage.unwrap().contains("it is missing"));
    drop(keeper);
    let (_, report) = Keeper::open(dir.path(), small(), 0).unwrap();
    assert_eq!(report.events(), vec![]);
}

#[test]
fn a_damaged_store_does_not_cost_what_is_in_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let boot = nine(dir.path());
    let all: Vec<_> = ('1'..='9').map(String::from).collect();
    let zero = |name: &str| change_file(&dir.path().join(name), |bytes| bytes.fill(0));
    for (files, set_aside) in [
        (&["store/db"][..], true),
        (&["boot"], false),
        (&["boot", "store/db"], true),
    ] {
        files.iter().for_each(|name| zero(name));
        let (mut keeper, report) = Keeper::open(dir.path(), small(), 0).unwrap();
        assert_eq!((report.boot, report.segments), (boot, 9), "{files:?}");
        assert_eq!(report.set_aside.is_some(), set_aside, "{files:?}");
        if let Some(why) = report.set_aside {
            let kept = "9 segments with 9 records of the journal are kept";
            assert!(
                why.contains("store.corrupt-") && why.contains(kept),
                "{why}"
            );
            assert!(why.contains("0 segments were in it"), "{why}");
        }
        // Numbers that the server may have seen are not used again.
        let number = keeper.number().unwrap();
        assert!(number > 8, "{number}");
        let batch = keeper.next_batch(0, 16, 0);
        assert_eq!(codes_and_gaps(&decode(&batch)), (all.clone(), vec![]));
    }
    let (mut keeper, _) = Keeper::open(dir.path(), small(), 0).unwrap();
    assert_eq!(drain(&mut keeper).len(), 9);
    keeper.close(0).unwrap();
    // What was acknowledged does not come back.
    zero("store/db");
    let (_, report) = Keeper::open(dir.path(), small(), 0).unwrap();
    assert_eq!((report.boot, report.segments), (boot, 0));
}

#[test]
fn what_a_store_held_that_fails_while_it_is_used_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, _) = Keeper::open(dir.path(), small(), 0).unwrap();
    keeper.seal(gathered(&[event(&noise(1, 200_000))]), 0);
    keeper.seal(gathered(&[event("young")]), 0);
    keeper.sync(0).unwrap();
    drop(keeper.store.take());
    change_file(&dir.path().join("store/db"), |bytes| bytes.fill(0));
    keeper.seal(gathered(&[event("waits")]), 0);
    keeper.housekeeping(0);
    let (codes, gaps) = codes_and_gaps(&drain(&mut keeper));
    assert_eq!(codes, ["telemetry_store_set_aside", "waits", "young"]);
    assert_eq!(gaps.len(), 1);
    assert_eq!((&gaps[0].segments[..], gaps[0].records), (&[0][..], 1));
}

#[test]
fn a_clock_that_is_a_month_ahead_for_a_moment_deletes_nothing() {
    const DAY_MS: i64 = 86_400_000;
    const NOW_MS: i64 = 1_800_000_000_000;
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, report) = Keeper::open(dir.path(), small(), NOW_MS).unwrap();
    let mut up = metrics("up", Scalar::Integer(1));
    up.time_ms = NOW_MS;
    keeper.see_clocks(NOW_MS, 0);
    keeper.seal(gathered(&[up]), NOW_MS);
    let jumped_ms = NOW_MS + 31 * DAY_MS;
    for clock_ms in [1000, 2000, 3000] {
        keeper.see_clocks(jumped_ms, clock_ms);
        keeper.sync(jumped_ms).unwrap();
        keeper.housekeeping(jumped_ms);
    }
    assert_eq!(keeper.stats().records, 1);
    // The server says that it is so late.
    let ack = Ack {
        boot: report.boot,
        segments: vec![],
        server_time_ms: Some(jumped_ms),
    };
    keeper.ack(&ack, jumped_ms);
    keeper.sync(jumped_ms).unwrap();
    let (_, gaps) = codes_and_gaps(&drain(&mut keeper));
    assert_eq!(gaps.len(), 1);
    assert_eq!(gaps[0].reason, "older than the class is kept");
}

#[test]
fn a_trouble_that_began_before_the_start_is_not_said_to_have_cost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, _) = Keeper::open(dir.path(), small(), 0).unwrap();
    let mut told = Vec::new();
    for now_ms in [2_000, 5_000] {
        keeper.troubled("the disk is full".to_owned(), now_ms - 1000);
        keeper.sync(now_ms).unwrap();
        for record in drain(&mut keeper).iter().flat_map(|s| &s.records) {
            if let Body::Event(event) = &record.body {
                told.push(event.detail.clone());
            }
        }
    }
    assert!(
        told[0].contains("what was lost before it is not known"),
        "{told:?}"
    );
    let later = "durable again after 1 s, 0 records dropped meanwhile; it was: the disk is full";
    assert_eq!(told[1..], [later]);
}

#[test]
fn what_goes_on_is_said_at_once_then_ever_less_often_and_its_end_once() {
    let mut complaint = Complaint::default();
    assert!(!complaint.end());
    // A sync in vain each 0.8 seconds, for an hour.
    let said: Vec<u64> = (0..4500)
        .map(|n| n * 800)
        .filter(|now| complaint.is_due(*now))
        .collect();
    assert_eq!(said[..5], [0, 1600, 4000, 8000, 16_000]);
    assert!(
        said.len() < 70 && said.windows(2).skip(7).all(|w| w[1] - w[0] >= 60_000),
        "{said:?}"
    );
    assert!(complaint.end() && !complaint.end());
    assert!(complaint.is_due(1));
}

#[test]
fn what_was_not_synced_is_written_again_after_the_store_failed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, _) = Keeper::open(dir.path(), small(), 0).unwrap();
    keeper.seal(gathered(&[event("a"), event("b")]), 0);
    let error = StoreError::Damaged {
        path: dir.path().into(),
        what: "writing",
        problem: "broken handle".to_owned(),
    };
    keeper.recover(&error, 0);
    keeper.sync(5_000).unwrap();
    let sent = drain(&mut keeper);
    assert_eq!(sent.len(), 3);
    let told = sent.iter().flat_map(|s| &s.records);
    let told = told.filter_map(|r| match &r.body {
        Body::Event(e) if e.code == RECOVERED => Some(e.detail.clone()),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    assert!(
        told.len() == 1 && told[0].contains("after 5 s") && told[0].contains("broken handle"),
        "{told:?}"
    );
    keeper.sync(9_000).unwrap();
    assert!(drain(&mut keeper).is_empty(), "told once");
}

#[test]
fn without_a_store_records_wait_bounded_and_the_rest_is_named_in_gaps() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, _) = Keeper::open(dir.path(), Limits::default(), 0).unwrap();
    drop(keeper.store.take());
    keeper.seal(gathered(&[event("kept")]), 0);
    for number in 0..120 {
        keeper.seal(gathered(&[log(&noise(number, 60_000))]), 0);
    }
    let held: usize = keeper.waiting.iter().map(|s| s.entry.len()).sum();
    assert!(held <= WAITING_BYTES_MAX);
    assert!(keeper.sync(0).is_err());
    keeper.housekeeping(0);
    keeper.sync(0).unwrap();
    let sent = drain(&mut keeper);
    let lost = sent
        .iter()
        .flat_map(|s| &s.records)
        .find_map(|r| match &r.body {
            Body::Gap(gap) => Some(gap.clone()),
            _ => None,
        });
    let lost = lost.unwrap();
    assert_eq!(lost.segments.len() as u64, lost.records);
    assert_eq!(sent.len() as u64 + lost.records, 122);
    assert!(sent.iter().any(|s| s.records == [event("kept")]));
}

#[derive(Debug, Clone)]
enum Action {
    Push(Vec<(u8, usize)>),
    Send,
    AckOld(usize),
    Sync,
    Reopen,
    Crash,
    Housekeeping,
}

fn action() -> impl Strategy<Value = Action> {
    let record = (
        0_u8..3,
        prop_oneof![3 => 1_usize..2000, 2 => 30_000_usize..60_000],
    );
    prop_oneof![
        8 => proptest::collection::vec(record, 1..12).prop_map(Action::Push),
        3 => Just(Action::Send),
        3 => (0_usize..16).prop_map(Action::AckOld),
        2 => Just(Action::Sync),
        1 => Just(Action::Reopen),
        1 => Just(Action::Crash),
        1 => Just(Action::Housekeeping),
    ]
}

fn record(kind: u8, seed: u64, length: usize) -> Record {
    let text = noise(seed, length);
    match kind {
        0 => event(&text),
        1 => log(&text),
        _ => metrics("n", Scalar::Text(text)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    /// Every record is acknowledged, still there, or counted by exactly one gap; no number means
    /// two things.
    #[test]
    fn records_are_neither_lost_nor_doubled(
        actions in proptest::collection::vec(action(), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut keeper, first) = Keeper::open(dir.path(), small(), 0).unwrap();
        let boot = first.boot;
        let (mut pushed, mut clock_ms) = (0_u64, 0);
        let mut seen: BTreeMap<u64, Segment> = BTreeMap::new();
        let mut under_way: Vec<u64> = Vec::new();
        let mut settled: BTreeSet<u64> = BTreeSet::new();
        for action in actions {
            clock_ms += 3000;
            match action {
                Action::Push(some) => {
                    let records: Vec<_> = some.iter().map(|(kind, length)| {
                        pushed += 1;
                        record(*kind, pushed, *length)
                    }).collect();
                    keeper.seal(gathered(&records), 0);
                }
                Action::Send => for segment in decode(&keeper.next_batch(clock_ms, 16, 0)) {
                    under_way.push(segment.segment);
                    if let Some(before) = seen.get(&segment.segment) {
                        prop_assert_eq!(before, &segment);
                    }
                    seen.insert(segment.segment, segment);
                },
                Action::AckOld(count) => {
                    let segments: Vec<_> = under_way.drain(..count.min(under_way.len())).collect();
                    keeper.ack(&Ack { boot, segments: segments.clone(), server_time_ms: None }, 0);
                    settled.extend(segments);
                }
                Action::Sync => keeper.sync(0).unwrap(),
                Action::Reopen => {
                    keeper.close(0).unwrap();
                    keeper = Keeper::open(dir.path(), small(), 0).unwrap().0;
                }
                Action::Crash => {
                    keeper.sync(0).unwrap();
                    drop(keeper);
                    keeper = Keeper::open(dir.path(), small(), 0).unwrap().0;
                }
                Action::Housekeeping => keeper.housekeeping(0),
            }
            prop_assert!(keeper.index.bytes() <= small().entries_bytes());
            prop_assert!(keeper.waiting.is_empty());
            prop_assert!(keeper.stats().bytes_on_disk <= small().max_bytes);
        }
        prop_assert_eq!(keeper.counter.boot(), boot);
        let rest = drain(&mut keeper);
        for segment in rest {
            prop_assert!(!settled.contains(&segment.segment));
            seen.insert(segment.segment, segment.clone());
            settled.insert(segment.segment);
        }
        // What was sent, evicted and never acknowledged is in a gap; a late ack may name it too.
        let mut gone: BTreeSet<u64> = BTreeSet::new();
        for segment in seen.values() {
            if let Body::Gap(gap) = &segment.records[0].body {
                for number in &gap.segments {
                    prop_assert!(gone.insert(*number), "{} dropped twice", number);
                }
            }
        }
        let is_gap = |n: &u64| matches!(&seen[n].records[0].body, Body::Gap(_));
        let arrived = settled.iter().filter(|n| !gone.contains(n) && !is_gap(n)).count();
        let gaps_gone = gone.iter().filter(|n| seen.contains_key(n) && is_gap(n)).count();
        prop_assert_eq!(arrived as u64 + (gone.len() - gaps_gone) as u64, pushed);
    }
}

#[test]
fn a_sync_that_writes_the_store_anew_tells_of_it_durably() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, _) = Keeper::open(dir.path(), Limits::default(), 0).unwrap();
    for seed in 0..100 {
        keeper.seal(gathered(&[log(&noise(seed, 200_000))]), 0);
    }
    keeper.sync(0).unwrap();
    assert!(keeper.stats().bytes_on_disk > 2 * COMPACT_BYTES_MIN);
    while !drain(&mut keeper).is_empty() {}

    keeper.written_bytes = u64::MAX;
    keeper.sync(0).unwrap();
    assert!(keeper.stats().bytes_on_disk < COMPACT_BYTES_MIN);
    let codes = |sent: &[Segment]| codes_and_gaps(sent).0;
    // As after kill -9: nothing is done at the end.
    drop(keeper.store.take());
    drop(keeper);
    let (mut keeper, _) = Keeper::open(dir.path(), Limits::default(), 0).unwrap();
    assert_eq!(codes(&drain(&mut keeper)), ["telemetry_store_compacted"]);
}
