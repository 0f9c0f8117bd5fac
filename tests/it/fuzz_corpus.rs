//! Every committed input of the fuzzers through the functions that are fuzzed, without the fuzzer: what
//! once broke something stays mended.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../fuzz/src/entries.rs"]
#[allow(unreachable_pub)]
mod entries;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz")
        .join(name)
}

fn names_in(name: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder(name)).unwrap();
    let names = entries.map(|e| e.unwrap().path());
    let stems = names.map(|p| p.file_stem().unwrap().to_string_lossy().into_owned());
    stems.collect()
}

#[test]
fn every_entry_has_a_target_and_inputs() {
    let entries: BTreeSet<String> = entries::ALL.iter().map(|(n, _)| (*n).to_owned()).collect();
    assert_eq!(names_in("targets"), entries);
    assert_eq!(names_in("corpus"), entries);
}

#[test]
fn no_committed_input_breaks_anything() {
    for (name, entry) in entries::ALL {
        let corpus = folder("corpus").join(name);
        let mut inputs = 0;
        for file in fs::read_dir(&corpus).unwrap() {
            let path = file.unwrap().path();
            // Shown only if the entry panics.
            println!("{}", path.display());
            entry(&fs::read(&path).unwrap());
            inputs += 1;
        }
        assert!(inputs >= 4, "{name}: {inputs} inputs");
    }
}
