use super::*;
use crate::telemetry::segment::{Kind, Prepared, tests::log};
use proptest::prelude::*;

const BOOT: BootId = BootId([3; 16]);

fn sealed(number: u64, length: usize) -> Sealed {
    let text: String = (0..length)
        .map(|at| char::from(b'a' + u8::try_from((number + at as u64 * 7) % 26).unwrap()))
        .collect();
    let record = Prepared::new(&log(&text)).unwrap();
    Sealed::new(number, Kind::Log, &[record]).unwrap()
}

fn open(dir: &Path) -> (Journal, Vec<Change>) {
    Journal::open(dir, BOOT).unwrap().unwrap()
}

#[test]
fn what_was_synced_is_read_back_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, found) = open(dir.path());
    assert_eq!(found, []);
    journal.record(&[sealed(1, 10), sealed(2, 9000)], &[]);
    journal.record(&[], &[1]);
    journal.sync().unwrap();
    journal.record(&[sealed(u64::MAX, 0)], &[2, 7]);
    journal.sync().unwrap();
    journal.record(&[sealed(4, 1)], &[]);
    drop(journal);
    let (mut journal, found) = open(dir.path());
    let expected = [
        (vec![sealed(1, 10), sealed(2, 9000)], vec![]),
        (vec![], vec![1]),
        (vec![sealed(u64::MAX, 0)], vec![2, 7]),
    ]
    .map(|(puts, deletes)| Change { puts, deletes });
    assert_eq!(found, expected, "what was not synced was not promised");
    // It goes on behind them, until it begins anew.
    journal.record(&[sealed(5, 1)], &[]);
    journal.sync().unwrap();
    assert_eq!(open(dir.path()).1.len(), 4);
    journal.reset().unwrap();
    let reset = [Change::default()];
    assert_eq!(open(dir.path()).1, reset);
    assert!(
        Journal::open(dir.path(), BootId([4; 16]))
            .unwrap()
            .unwrap()
            .1
            .is_empty()
    );
}

#[test]
fn frames_of_an_earlier_life_are_none_even_if_the_first_page_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    for number in 0..5 {
        journal.record(&[sealed(number, 10)], &[]);
        journal.sync().unwrap();
    }
    journal.reset().unwrap();
    drop(journal);
    let file = File::options()
        .write(true)
        .open(dir.path().join("journal"))
        .unwrap();
    file.write_all_at(&[0xa5; 100], 0).unwrap();
    let (mut journal, found) = open(dir.path());
    assert_eq!(found, []);
    journal.record(&[sealed(9, 10)], &[]);
    journal.sync().unwrap();
    assert_eq!(open(dir.path()).1.len(), 1);
}

#[test]
fn it_says_when_it_is_full_and_is_never_longer() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    let mut syncs = 0;
    while journal.has_room(&[sealed(syncs, 100)], &[]) {
        journal.record(&[sealed(syncs, 100)], &[]);
        journal.sync().unwrap();
        syncs += 1;
    }
    assert_eq!(syncs as usize, JOURNAL_BYTES / PAGE_BYTES);
    assert_eq!(open(dir.path()).1.len(), syncs as usize);
    let length = std::fs::metadata(dir.path().join("journal")).unwrap().len();
    assert_eq!(length, JOURNAL_BYTES as u64);
    journal.reset().unwrap();
    assert!(journal.has_room(&[sealed(1, 100)], &[]));
}

proptest! {
    /// Whatever a cut or a bad sector leaves of it, no frame is read that was not written, and none before
    /// the damage is lost.
    #[test]
    fn damage_costs_what_is_behind_it_at_most(
        lengths in prop::collection::vec((0_usize..6000, any::<bool>()), 1..12),
        damage in 0_usize..60_000,
        with in prop::collection::vec(any::<u8>(), 1..600),
    ) {
        let mut bytes = vec![0; JOURNAL_BYTES];
        let (mut at, mut ends, mut written) = (0, Vec::new(), Vec::new());
        for (number, (length, sync)) in lengths.iter().enumerate() {
            let change = Change { puts: vec![sealed(number as u64, *length)], deletes: vec![number as u64 + 100] };
            let frame = frame(BOOT, 7, &change.puts, &change.deletes);
            prop_assert_eq!(frame.len(), frame_bytes(&change.puts, &change.deletes));
            bytes[at..at + frame.len()].copy_from_slice(&frame);
            at += frame.len();
            ends.push(at);
            written.push(change);
            if *sync {
                at = at.next_multiple_of(PAGE_BYTES);
            }
        }
        let whole = read(&bytes, BOOT);
        prop_assert_eq!(&whole.changes, &written);
        prop_assert_eq!(whole.end, at.next_multiple_of(PAGE_BYTES));
        bytes[damage..damage + with.len()].copy_from_slice(&with);
        let left = read(&bytes, BOOT).changes;
        let sound = ends.iter().filter(|end| **end <= damage).count();
        prop_assert!(left.len() >= sound);
        prop_assert_eq!(&left[..sound], &written[..sound]);
        prop_assert!(left.iter().all(|change| written.contains(change)));
    }

    #[test]
    fn no_bytes_make_it_panic(start: Vec<u8>) {
        let mut bytes = frame(BOOT, 1, &[], &[1]);
        bytes.extend(start);
        read(&bytes, BOOT);
    }
}
