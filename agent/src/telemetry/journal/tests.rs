use super::frame::scan;
use super::*;
use crate::telemetry::segment::{Kind, Prepared, tests::log};
use proptest::prelude::*;
use std::collections::BTreeSet;

const BOOT: BootId = BootId([3; 16]);

fn sealed(number: u64, length: usize) -> Sealed {
    let text: String = (0..length)
        .map(|at| char::from(b'a' + u8::try_from((number + at as u64 * 7) % 26).unwrap()))
        .collect();
    let record = Prepared::new(&log(&text)).unwrap();
    Sealed::new(number, Kind::Log, &[record]).unwrap()
}

fn open(dir: &Path) -> (Journal, Contents) {
    let (journal, contents) = Journal::open(dir, BOOT).unwrap();
    (journal.unwrap(), contents)
}

fn create(dir: &Path) -> Journal {
    Journal::create(dir, BOOT).unwrap().unwrap()
}

fn change_file(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = dir.join(NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// The numbers that changes leave.
fn live(changes: &[Change]) -> BTreeSet<u64> {
    let mut live = BTreeSet::new();
    for change in changes {
        live.extend(change.puts.iter().map(|sealed| sealed.number));
        live.retain(|number| !change.deletes.contains(number));
    }
    live
}

fn lost(contents: &Contents) -> Vec<u64> {
    let live = live(&contents.changes);
    let expected = contents.expected.keys().copied();
    expected.filter(|number| !live.contains(number)).collect()
}

#[test]
fn what_was_synced_is_read_back_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = create(dir.path());
    journal.record(&[sealed(1, 10), sealed(2, 9000)], &[]);
    journal.record(&[], &[1]);
    journal.sync().unwrap();
    journal.record(&[sealed(77, 0)], &[2, 7]);
    journal.sync().unwrap();
    journal.record(&[sealed(4, 1)], &[]);
    drop(journal);
    let (mut journal, found) = open(dir.path());
    let expected = [
        (vec![sealed(1, 10), sealed(2, 9000)], vec![]),
        (vec![], vec![1]),
        (vec![sealed(77, 0)], vec![2, 7]),
    ]
    .map(|(puts, deletes)| Change { puts, deletes });
    assert_eq!(
        found.changes, expected,
        "what was not synced was not promised"
    );
    assert_eq!((found.damage, journal.used), (None, 78));
    // It goes on behind them, until it begins anew.
    journal.record(&[sealed(5, 1)], &[]);
    journal.sync().unwrap();
    assert_eq!(open(dir.path()).1.changes.len(), 4);
    journal.reset().unwrap();
    let (journal, found) = open(dir.path());
    assert_eq!((found.changes.len(), found.damage), (0, None));
    assert_eq!(journal.used, 78);
}

#[test]
fn frames_of_an_earlier_life_are_none_even_if_the_first_page_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = create(dir.path());
    for number in 0..5 {
        journal.record(&[sealed(number, 10)], &[]);
        journal.sync().unwrap();
    }
    journal.reset().unwrap();
    drop(journal);
    change_file(dir.path(), |bytes| bytes[..100].fill(0xa5));
    let (mut journal, found) = open(dir.path());
    assert_eq!((found.changes.len(), found.damage), (0, None));
    for number in 9..12 {
        journal.record(&[sealed(number, 10)], &[]);
        journal.sync().unwrap();
    }
    change_file(dir.path(), |bytes| bytes[..2 * PAGE_BYTES].fill(0xa5));
    let (_, found) = open(dir.path());
    assert_eq!(live(&found.changes), BTreeSet::from([11]));
    assert_eq!(lost(&found), [9, 10]);
}

#[test]
fn one_bit_anywhere_costs_its_frame_alone_and_that_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = create(dir.path());
    for number in 1..=9 {
        journal.record(&[sealed(number, 100)], &[]);
        journal.sync().unwrap();
    }
    drop(journal);
    let sound = std::fs::read(dir.path().join(NAME)).unwrap();
    for page in 0..9 {
        for at in [1, 20, 50, 110] {
            change_file(dir.path(), |bytes| bytes[page * PAGE_BYTES + at] ^= 4);
            let (_, found) = open(dir.path());
            let gone = (page > 0).then_some(page as u64);
            assert_eq!(lost(&found), Vec::from_iter(gone));
            assert_eq!(live(&found.changes).len(), 9 - usize::from(page > 0));
            assert_eq!(found.damage.is_some(), page > 0);
            change_file(dir.path(), |bytes| bytes.clone_from(&sound));
        }
    }
    // The last sync may have been cut off: nothing is wrong then.
    change_file(dir.path(), |bytes| bytes[9 * PAGE_BYTES + 50] ^= 4);
    let (_, found) = open(dir.path());
    assert_eq!(live(&found.changes), (1..9).collect());
    assert_eq!((lost(&found).len(), found.damage), (0, None));
}

#[test]
fn what_is_there_of_a_sync_that_was_cut_off_is_kept_and_no_damage_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = create(dir.path());
    journal.record(&[sealed(1, 100)], &[]);
    journal.sync().unwrap();
    for number in 2..=5 {
        journal.record(&[sealed(number, 3000)], &[]);
    }
    journal.sync().unwrap();
    let end = journal.at;
    drop(journal);
    // The third of four frames did not reach the disk, nor the end.
    let at = 2 * PAGE_BYTES + 2 * change_bytes(&[sealed(2, 3000)], &[]);
    change_file(dir.path(), |bytes| bytes[at + 20..at + 60].fill(0));
    for round in 0..3_u64 {
        let (mut journal, found) = open(dir.path());
        assert_eq!(found.damage, None);
        let there = (1..=3).chain(10..10 + round).collect();
        assert_eq!(live(&found.changes), there, "in round {round}");
        assert!(lost(&found).is_empty());
        journal.record(&[sealed(10 + round, 10)], &[]);
        journal.sync().unwrap();
    }
    let bytes = std::fs::read(dir.path().join(NAME)).unwrap();
    let last = scan(&bytes[..USABLE_BYTES]).pop().unwrap();
    assert!(last.0 < end + 3 * PAGE_BYTES && last.1.place.sync == 5);
}

#[test]
fn a_file_of_another_length_is_read_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = create(dir.path());
    for number in 1..=9 {
        journal.record(&[sealed(number, 100)], &[]);
        journal.sync().unwrap();
    }
    drop(journal);
    let sound = std::fs::read(dir.path().join(NAME)).unwrap();
    let page = PAGE_BYTES;
    for (length, there, is_unsure) in [
        (JOURNAL_BYTES - 1, 9, false),
        (JOURNAL_BYTES + 1, 9, false),
        (11 * page, 9, false),
        (10 * page, 9, true),
        (4 * page + 100, 3, true),
        (0, 0, true),
    ] {
        change_file(dir.path(), |bytes| {
            bytes.clone_from(&sound);
            bytes.resize(length, 7);
        });
        let (mut journal, found) = open(dir.path());
        assert_eq!(live(&found.changes), (1..=there).collect(), "of {length}");
        assert_eq!(found.damage.unwrap().is_unsure, is_unsure, "of {length}");
        journal.record(&[sealed(99, 100)], &[]);
        journal.sync().unwrap();
        let (_, found) = open(dir.path());
        assert_eq!(found.damage, None);
        assert_eq!(live(&found.changes).len() as u64, there + 1);
    }
    std::fs::remove_file(dir.path().join(NAME)).unwrap();
    assert!(open(dir.path()).1.damage.unwrap().is_unsure);
    change_file(dir.path(), |bytes| bytes.fill(0));
    assert!(open(dir.path()).1.damage.unwrap().is_unsure);
}

#[test]
fn what_the_release_before_left_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut body = vec![0, 1, 0, 1];
    let put = sealed(7, 100);
    body.extend(7_u64.to_be_bytes());
    body.extend(u32::try_from(put.entry.len()).unwrap().to_be_bytes());
    body.extend(&put.entry);
    body.extend(3_u64.to_be_bytes());
    let mut head = b"DJ\x01".to_vec();
    head.extend(BOOT.as_bytes());
    head.extend([9; 8]);
    head.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head);
    crc.update(&body);
    head.extend(crc.finalize().to_be_bytes());
    let mut bytes = [head, body].concat();
    bytes.resize(JOURNAL_BYTES, 0);
    std::fs::write(dir.path().join(NAME), bytes).unwrap();
    let (mut journal, found) = open(dir.path());
    let change = Change {
        puts: vec![put],
        deletes: vec![3],
    };
    assert_eq!((found.changes, found.damage), (vec![change], None));
    assert!(!journal.has_room(&[], &[1]), "it begins anew first");
    journal.reset().unwrap();
    assert!(open(dir.path()).1.changes.is_empty());
}

#[test]
fn it_says_when_it_is_full_and_is_never_longer() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = create(dir.path());
    let mut syncs = 0;
    while journal.has_room(&[sealed(syncs, 100)], &[]) {
        journal.record(&[sealed(syncs, 100)], &[]);
        journal.sync().unwrap();
        syncs += 1;
    }
    // But for its first sync, and that one's twin.
    assert_eq!(syncs as usize, JOURNAL_BYTES / PAGE_BYTES - 2);
    assert_eq!(open(dir.path()).1.changes.len(), syncs as usize);
    let length = std::fs::metadata(dir.path().join("journal")).unwrap().len();
    assert_eq!(length, JOURNAL_BYTES as u64);
    journal.reset().unwrap();
    assert!(journal.has_room(&[sealed(1, 100)], &[]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever a bad sector leaves of it, no frame is read that was not written, none beside the damage is
    /// lost, and what is lost is known.
    #[test]
    fn damage_costs_what_it_touches_at_most(
        lengths in prop::collection::vec((0_usize..6000, any::<bool>()), 1..12),
        rounds in 0_u64..2,
        damage in 0_usize..60_000,
        with in prop::collection::vec(any::<u8>(), 1..9000),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = create(dir.path());
        let (mut next, mut frames, mut accounts) = (0, Vec::new(), Vec::new());
        for round in 0..=rounds {
            if round > 0 {
                journal.reset().unwrap();
            }
            (frames, accounts) = (Vec::new(), Vec::new());
            for (nth, (length, sync)) in lengths.iter().enumerate() {
                next += 1;
                let deletes = if next % 3 == 0 { vec![next - 2] } else { vec![] };
                let change = Change { puts: vec![sealed(next, *length)], deletes };
                let at = journal.at + journal.pending.len();
                journal.record(&change.puts, &change.deletes);
                let end = journal.at + journal.pending.len();
                frames.push((at..end, accounts.len(), change));
                if *sync || nth + 1 == lengths.len() {
                    let before = journal.at;
                    let length = (journal.pending.len() + END_BYTES).next_multiple_of(PAGE_BYTES);
                    let is_whole = journal.account(length - journal.pending.len()).is_whole;
                    journal.sync().unwrap();
                    accounts.push((before..journal.at, is_whole, journal.live.clone()));
                }
            }
        }
        let is_touched = |range: &std::ops::Range<usize>| {
            damage < range.end && range.start < damage + with.len()
        };
        change_file(dir.path(), |bytes| bytes[damage..damage + with.len()].copy_from_slice(&with));
        let (_, found) = open(dir.path());
        let written: Vec<_> = frames.iter().map(|(_, _, change)| change).collect();
        prop_assert!(found.changes.iter().all(|change| written.contains(&change)));
        let (last, is_whole, live) = accounts.last().unwrap();
        for (range, sync, change) in &frames {
            if !is_touched(range) && (sync + 1 < accounts.len() || !is_touched(last)) {
                prop_assert!(found.changes.contains(change), "{:?}", range);
            }
        }
        if !is_touched(last) && *is_whole {
            prop_assert_eq!(&found.expected, live);
        }
        // Reading it again says the same.
        let (_, again) = open(dir.path());
        prop_assert_eq!(again.changes, found.changes);
        prop_assert_eq!(again.expected, found.expected);
    }

    #[test]
    fn no_bytes_make_it_panic(start: Vec<u8>) {
        let place = Place { boot: BOOT, life: 1, sync: 1, nth: 0 };
        let mut bytes = frame::change(place, &[], &[1]);
        bytes.extend(start);
        let length = bytes.len();
        bytes.resize(JOURNAL_BYTES.max(length), 0);
        reading::find(&bytes, length, BOOT);
    }
}
