use super::*;
use crate::telemetry::segment::{Kind, Prepared, tests::log};
use proptest::prelude::*;
use std::collections::BTreeMap;

const BOOT: BootId = BootId([3; 16]);

/// Text that zstd cannot shrink much.
fn noise(seed: u64, length: usize) -> String {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        char::from(33 + u8::try_from(x % 90).unwrap())
    };
    (0..length).map(|_| next()).collect()
}

fn sealed(number: u64, length: usize) -> Sealed {
    let record = Prepared::new(&log(&noise(number, length))).unwrap();
    Sealed::new(number, Kind::Log, &[record]).unwrap()
}

fn numbers(heads: &[(u64, Meta)]) -> Vec<u64> {
    heads.iter().map(|(n, _)| *n).collect()
}

#[test]
fn a_batch_is_there_after_reopening_and_what_was_acknowledged_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::take(dir.path()).unwrap();
    let mut store = SledStore::create(&folder, BOOT).unwrap();
    let segments: Vec<_> = (0..50).map(|n| sealed(n, 200)).collect();
    store.append(&segments, &[]).unwrap();
    store.ack(&[3, 7, 1000]).unwrap();
    store.sync().unwrap();
    drop(store);
    let (mut store, heads) = SledStore::open(&folder, BOOT).unwrap();
    assert_eq!(heads.len(), 48);
    assert_eq!(store.peek(4).unwrap().unwrap(), segments[4].entry);
    assert_eq!(store.peek(3).unwrap(), None);
}

#[test]
fn a_folder_serves_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let held = Folder::take(dir.path()).unwrap();
    let second = Folder::take(dir.path());
    assert!(matches!(second, Err(StoreError::InUse { .. })));
    drop(held);
    Folder::take(dir.path()).unwrap();
}

#[test]
fn a_store_of_another_boot_or_of_garbage_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::take(dir.path()).unwrap();
    let mut store = SledStore::create(&folder, BOOT).unwrap();
    store.append(&[sealed(1, 5000)], &[]).unwrap();
    store.sync().unwrap();
    drop(store);
    let other = SledStore::open(&folder, BootId([9; 16]));
    assert!(matches!(other, Err(StoreError::Damaged { .. })));
    for file in ["db", "conf"] {
        let path = dir.path().join("store").join(file);
        let length = std::fs::metadata(&path).unwrap().len().min(1 << 20);
        std::fs::write(&path, noise(1, usize::try_from(length).unwrap())).unwrap();
        let opened = SledStore::open(&folder, BOOT).map(|(_, heads)| heads);
        assert!(
            matches!(opened, Err(StoreError::Damaged { .. })),
            "{opened:?}"
        );
    }
}

#[test]
fn compacting_gives_the_disk_back_and_keeps_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::take(dir.path()).unwrap();
    let mut store = SledStore::create(&folder, BOOT).unwrap();
    for number in 0..400 {
        store.append(&[sealed(number, 40_000)], &[]).unwrap();
    }
    store.ack(&(5..400).collect::<Vec<_>>()).unwrap();
    store.sync().unwrap();
    let before = store.stats().unwrap().disk_bytes;
    store.compact().unwrap();
    let after = store.stats().unwrap();
    assert!(
        after.disk_bytes < 2 << 20 && before > 8 << 20,
        "{before} {after:?}"
    );
    assert_eq!(after.segments, 5);
    store.append(&[sealed(400, 10)], &[]).unwrap();
    drop(store);
    let (_, heads) = SledStore::open(&folder, BOOT).unwrap();
    assert_eq!(numbers(&heads), [0, 1, 2, 3, 4, 400]);
}

#[test]
fn a_crash_at_any_step_of_a_compaction_leaves_a_whole_store() {
    for step in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::take(dir.path()).unwrap();
        let mut store = SledStore::create(&folder, BOOT).unwrap();
        store.append(&[sealed(1, 10), sealed(2, 10)], &[]).unwrap();
        store.sync().unwrap();
        drop(store);
        let [store, fresh, old] = names(dir.path());
        if step == 0 {
            // Died while copying.
            std::fs::create_dir_all(&fresh).unwrap();
            std::fs::write(fresh.join("db"), b"half").unwrap();
        } else {
            let copy = std::process::Command::new("cp")
                .arg("-r")
                .args([&store, &fresh])
                .status();
            assert!(copy.unwrap().success());
            std::fs::rename(&store, &old).unwrap();
        }
        if step == 2 {
            std::fs::rename(&fresh, &store).unwrap();
        }
        assert!(folder.settle().unwrap());
        let (_, heads) = SledStore::open(&folder, BOOT).unwrap();
        assert_eq!(numbers(&heads), [1, 2], "step {step}");
        assert!(!fresh.exists() && !old.exists());
    }
}

#[test]
fn one_damaged_store_at_most_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::take(dir.path()).unwrap();
    for round in 0..3 {
        std::fs::create_dir(dir.path().join("store")).unwrap();
        let aside = folder.set_aside().unwrap();
        assert!(aside.ends_with(format!("store.corrupt-{round}")));
        let kept = std::fs::read_dir(dir.path()).unwrap().filter(|e| {
            let name = e.as_ref().unwrap().file_name();
            name.to_string_lossy().contains("corrupt")
        });
        assert_eq!(kept.count(), 1);
    }
}

#[derive(Debug, Clone)]
enum Action {
    Append(Vec<usize>),
    Ack(Vec<u64>),
    Replace(u64, usize),
    Reopen,
    Compact,
}

fn action() -> impl Strategy<Value = Action> {
    let length = prop_oneof![8 => 1_usize..4000, 1 => 100_000_usize..300_000];
    prop_oneof![
        6 => proptest::collection::vec(length.clone(), 1..8).prop_map(Action::Append),
        4 => proptest::collection::vec(0_u64..200, 1..30).prop_map(Action::Ack),
        2 => (0_u64..200, length).prop_map(|(n, l)| Action::Replace(n, l)),
        2 => Just(Action::Reopen),
        1 => Just(Action::Compact),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_store_is_a_map(actions in proptest::collection::vec(action(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::take(dir.path()).unwrap();
        let mut store = SledStore::create(&folder, BOOT).unwrap();
        let mut reference = BTreeMap::new();
        let mut next = 0;
        for action in actions {
            match action {
                Action::Append(lengths) => {
                    let some: Vec<_> = (next..).zip(lengths).map(|(n, l)| sealed(n, l)).collect();
                    next += some.len() as u64;
                    store.append(&some, &[]).unwrap();
                    reference.extend(some.into_iter().map(|s| (s.number, s.entry)));
                }
                Action::Ack(numbers) => {
                    store.ack(&numbers).unwrap();
                    reference.retain(|n, _| !numbers.contains(n));
                }
                Action::Replace(number, length) => {
                    let gap = sealed(next, length);
                    next += 1;
                    // A batch never adds and removes the same number.
                    let deletes = (number != gap.number).then_some(number);
                    store
                        .append(std::slice::from_ref(&gap), deletes.as_slice())
                        .unwrap();
                    if let Some(number) = deletes {
                        reference.remove(&number);
                    }
                    reference.insert(gap.number, gap.entry);
                }
                Action::Reopen => {
                    store.sync().unwrap();
                    drop(store);
                    store = SledStore::open(&folder, BOOT).unwrap().0;
                }
                Action::Compact => store.compact().unwrap(),
            }
            prop_assert_eq!(store.peek(next).unwrap(), None);
        }
        drop(store);
        let (mut store, heads) = SledStore::open(&folder, BOOT).unwrap();
        prop_assert_eq!(numbers(&heads), reference.keys().copied().collect::<Vec<_>>());
        for (number, entry) in reference {
            prop_assert_eq!(store.peek(number).unwrap(), Some(entry));
        }
    }
}

#[test]
fn a_rolling_buffer_takes_at_most_four_times_its_entries_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::take(dir.path()).unwrap();
    let mut store = SledStore::create(&folder, BOOT).unwrap();
    let held = 200;
    let mut most = 0;
    for number in 0..2000_u64 {
        let old = number.checked_sub(held);
        store
            .append(&[sealed(number, 20_000)], old.as_slice())
            .unwrap();
        if number % 20 == 0 {
            store.sync().unwrap();
            most = most.max(store.stats().unwrap().disk_bytes);
        }
    }
    let entries = held * u64::from(sealed(0, 20_000).meta.entry_bytes);
    assert!(most < 4 * entries, "{entries} bytes held, {most} on disk");
}
