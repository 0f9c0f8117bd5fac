use super::*;
use crate::telemetry::segment::{Kind, Prepared, tests::log};
use proptest::prelude::*;

const BOOT: BootId = BootId([3; 16]);

/// Of about so many bytes, also when compressed.
fn sealed(number: u64, length: usize) -> Sealed {
    let block = |at: usize| {
        let text = format!("{number}-{at}");
        dunlin_protocol::id::Digest::of(text.as_bytes()).to_string()
    };
    let text: String = (0..=length / 32).map(block).collect();
    let record = Prepared::new(&log(&text)).unwrap();
    Sealed::new(number, Kind::Log, &[record]).unwrap()
}

fn reopen(folder: &Folder) -> (JournaledStore, Vec<(u64, Meta)>) {
    let (store, heads, replayed) = JournaledStore::open(folder, BOOT).unwrap();
    assert_eq!((replayed.damage, replayed.lost), (None, BTreeMap::new()));
    (store, heads)
}

fn numbers(heads: &[(u64, Meta)]) -> BTreeSet<u64> {
    heads.iter().map(|(number, _)| *number).collect()
}

#[test]
fn small_changes_stay_out_of_sled_until_the_journal_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::take(dir.path()).unwrap();
    let mut store = JournaledStore::create(&folder, BOOT).unwrap();
    let mut number = 0;
    while store.young.len() as u64 == number {
        number += 1;
        store.append(&[sealed(number, 200)], &[]).unwrap();
        store.sync().unwrap();
    }
    // But for its first sync, and that one's twin.
    assert_eq!(number as usize, JOURNAL_BYTES / 4096 - 1);
    assert_eq!(store.store.stats().unwrap().segments as u64, number - 1);
    assert_eq!(store.stats().unwrap().segments as u64, number);
    // What is acknowledged meanwhile is never written to sled.
    for n in 0..2 * JOURNAL_BYTES as u64 / 4096 {
        let n = 1000 + n;
        store.append(&[sealed(n, 200)], &[]).unwrap();
        store.sync().unwrap();
        store.ack(&[n]).unwrap();
    }
    assert_eq!(store.store.stats().unwrap().segments as u64, number);
    for n in [1, number] {
        assert_eq!(store.peek(n).unwrap().unwrap(), sealed(n, 200).entry);
    }
    store.sync().unwrap();
    drop(store);
    let (store, heads) = reopen(&folder);
    assert_eq!(numbers(&heads), (1..=number).collect());
    drop(store);
}

#[test]
fn without_room_for_a_journal_it_works_without_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("journal")).unwrap();
    let folder = Folder::take(dir.path()).unwrap();
    let mut store = JournaledStore::create(&folder, BOOT).unwrap();
    store.append(&[sealed(1, 10), sealed(2, 10)], &[]).unwrap();
    store.append(&[sealed(3, 10)], &[1]).unwrap();
    store.ack(&[2]).unwrap();
    store.sync().unwrap();
    drop(store);
    let (store, heads, replayed) = JournaledStore::open(&folder, BOOT).unwrap();
    assert_eq!(numbers(&heads), BTreeSet::from([3]));
    assert!(replayed.lost.is_empty() && !store.has_journal());
    drop(store);
}

#[test]
fn what_went_into_sled_before_the_journal_began_anew_can_still_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let folder = Folder::take(dir.path()).unwrap();
    let mut store = JournaledStore::create(&folder, BOOT).unwrap();
    store.append(&[sealed(1, 50), sealed(2, 50)], &[]).unwrap();
    store.sync().unwrap();
    let before = std::fs::read(&path).unwrap();
    store.checkpoint().unwrap();
    drop(store);
    // The power went between the two: sled has them, and so has the journal.
    std::fs::write(&path, before).unwrap();
    let (mut store, heads) = reopen(&folder);
    assert_eq!(numbers(&heads), BTreeSet::from([1, 2]));
    assert_eq!(store.stats().unwrap().segments, 2);
    // Written again, as after a sync that failed; then one goes for a gap, the other is acknowledged.
    store.append(&[sealed(1, 50)], &[]).unwrap();
    store.append(&[sealed(3, 50)], &[1]).unwrap();
    store.ack(&[2]).unwrap();
    store.sync().unwrap();
    store.checkpoint().unwrap();
    drop(store);
    let (store, heads) = reopen(&folder);
    assert_eq!(numbers(&heads), BTreeSet::from([3]));
    drop(store);
}

#[test]
fn what_damage_took_is_known_until_it_is_told_and_only_then_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let folder = Folder::take(dir.path()).unwrap();
    let mut store = JournaledStore::create(&folder, BOOT).unwrap();
    for number in 1..=9 {
        store.append(&[sealed(number, 50)], &[]).unwrap();
        store.sync().unwrap();
    }
    store.ack(&[4]).unwrap();
    store.append(&[sealed(10, 50)], &[]).unwrap();
    store.sync().unwrap();
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    // The pages of 4 and 5: the server has 4.
    bytes[4 * 4096 + 100] ^= 1;
    bytes[5 * 4096 + 100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    for _ in 0..2 {
        let (mut store, heads, replayed) = JournaledStore::open(&folder, BOOT).unwrap();
        assert_eq!(numbers(&heads), BTreeSet::from([1, 2, 3, 6, 7, 8, 9, 10]));
        assert_eq!(replayed.lost.keys().collect::<Vec<_>>(), [&5]);
        assert!(!replayed.damage.unwrap().is_unsure);
        // Neither another sync nor a full journal makes it forgotten.
        store.append(&[sealed(6, 50)], &[]).unwrap();
        store.sync().unwrap();
    }
    let (mut store, ..) = JournaledStore::open(&folder, BOOT).unwrap();
    store.checkpoint().unwrap();
    drop(store);
    let (mut store, _, replayed) = JournaledStore::open(&folder, BOOT).unwrap();
    assert_eq!(replayed.lost.keys().collect::<Vec<_>>(), [&5]);
    store.append(&[sealed(11, 50)], &[5]).unwrap();
    store.sync().unwrap();
    assert_eq!(store.stats().unwrap().segments, 9);
    drop(store);
    assert_eq!(reopen(&folder).1.len(), 9);
}

#[test]
fn damage_that_may_hide_more_is_found_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let folder = Folder::take(dir.path()).unwrap();
    let mut store = JournaledStore::create(&folder, BOOT).unwrap();
    for number in 1..=3 {
        store.append(&[sealed(number, 50)], &[]).unwrap();
        store.sync().unwrap();
    }
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    for at in [0, 4096, JOURNAL_BYTES - 4096] {
        bytes[at..at + 200].fill(0);
    }
    std::fs::write(&path, &bytes).unwrap();
    let (store, heads, replayed) = JournaledStore::open(&folder, BOOT).unwrap();
    assert_eq!(numbers(&heads), BTreeSet::from([2, 3]));
    assert_eq!(replayed.lost.keys().collect::<Vec<_>>(), [&1]);
    assert!(replayed.damage.unwrap().is_unsure);
    drop(store);
    let (store, heads, replayed) = JournaledStore::open(&folder, BOOT).unwrap();
    assert_eq!(numbers(&heads), BTreeSet::from([2, 3]));
    assert_eq!(replayed.lost.keys().collect::<Vec<_>>(), [&1]);
    assert_eq!(replayed.damage, None);
    drop(store);
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize),
    /// A gap for one of what is there, in the same change.
    Evict(usize),
    Ack(usize),
    Sync,
    Compact,
    /// The process dies: what only its memory holds is gone, sled may have written more than the journal.
    Die,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (100_usize..3000).prop_map(Step::Put),
        1 => (66_000_usize..90_000).prop_map(Step::Put),
        2 => (0_usize..50).prop_map(Step::Evict),
        2 => (0_usize..50).prop_map(Step::Ack),
        3 => Just(Step::Sync),
        1 => Just(Step::Compact),
        2 => Just(Step::Die),
    ];
    prop::collection::vec(step, 1..60)
}

#[derive(Debug, Default)]
struct Model {
    there: BTreeSet<u64>,
    durable: BTreeSet<u64>,
    acknowledged: BTreeSet<u64>,
    /// Gap, and what it tells of.
    evicted: Vec<(u64, u64)>,
}

impl Model {
    fn pick(&self, at: usize) -> Option<u64> {
        let there: Vec<u64> = self.there.iter().copied().collect();
        there.get(at % there.len().max(1)).copied()
    }

    fn check(&self, found: &BTreeSet<u64>) -> Result<(), TestCaseError> {
        let gone: BTreeSet<u64> = self.evicted.iter().map(|(_, gone)| *gone).collect();
        for number in self.durable.difference(&self.acknowledged) {
            prop_assert!(
                gone.contains(number) || found.contains(number),
                "{} is lost",
                number
            );
        }
        for (gap, gone) in &self.evicted {
            let told = found.contains(gap)
                || self.acknowledged.contains(gap)
                || self.evicted.iter().any(|(_, other)| other == gap);
            let durable = self.durable.contains(gone) && !self.acknowledged.contains(gone);
            if durable {
                prop_assert!(
                    told != found.contains(gone) || !found.contains(gap),
                    "{} and its gap {}",
                    gone,
                    gap
                );
                prop_assert!(told || found.contains(gone), "{} went untold", gone);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn nothing_durable_is_lost_and_nothing_goes_untold(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::take(dir.path()).unwrap();
        let mut store = JournaledStore::create(&folder, BOOT).unwrap();
        let (mut model, mut next) = (Model::default(), 0);
        for step in steps.into_iter().chain([Step::Sync, Step::Die]) {
            match step {
                Step::Put(length) => {
                    next += 1;
                    store.append(&[sealed(next, length)], &[]).unwrap();
                    model.there.insert(next);
                }
                Step::Evict(at) => if let Some(number) = model.pick(at) {
                    next += 1;
                    store.append(&[sealed(next, 50)], &[number]).unwrap();
                    model.there.remove(&number);
                    model.there.insert(next);
                    model.evicted.push((next, number));
                },
                Step::Ack(at) => if let Some(number) = model.pick(at) {
                    store.ack(&[number]).unwrap();
                    model.there.remove(&number);
                    model.acknowledged.insert(number);
                },
                Step::Sync => {
                    store.sync().unwrap();
                    model.durable = model.there.clone();
                }
                Step::Compact => {
                    store.compact().unwrap();
                    model.durable = model.there.clone();
                }
                Step::Die => {
                    drop(store);
                    let opened = reopen(&folder);
                    store = opened.0;
                    let found = numbers(&opened.1);
                    model.check(&found)?;
                    for number in &found {
                        prop_assert!(store.peek(*number).unwrap().is_some());
                    }
                    // A gap that was lost with what it took has told nobody.
                    model.evicted.retain(|(gap, gone)| found.contains(gap) || !found.contains(gone));
                    model.acknowledged.retain(|number| !found.contains(number));
                    model.durable = found.clone();
                    model.there = found;
                }
            }
        }
    }
}
