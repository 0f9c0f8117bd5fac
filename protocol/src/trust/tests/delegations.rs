//! Delegations as they are made, written, read and followed.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn public(seeds: &[u8]) -> Vec<Key> {
    seeds.iter().map(|&s| key(s).public_key()).collect()
}

/// Top-level targets that delegate as given, with the files of every delegated role.
fn served(delegations: &Delegations, roles: &[(&str, Value, u8)]) -> (Files, Vec<Vec<u8>>) {
    let signed = new_delegating_targets(1, time(LATER), [], delegations);
    let targets = signed_by(signed, &[4, 5]);
    let mut meta = BTreeMap::from([("targets.json".to_owned(), MetaFile::of(1, &targets))]);
    let mut files = Vec::new();
    for (name, signed, seed) in roles {
        let file = signed_by(signed.clone(), &[*seed]);
        meta.insert(format!("{name}.json"), MetaFile::of(1, &file));
        files.push(file);
    }
    let snapshot = signed_by(new_snapshot(1, time(LATER), &meta), &[6]);
    let timestamp = release(1).timestamp(&MetaFile::of(1, &snapshot));
    let files_of = Files {
        targets,
        snapshot,
        timestamp,
    };
    (files_of, files)
}

fn lists(entries: &[TargetEntry]) -> Value {
    new_targets(1, time(LATER), entries)
}

#[test]
fn what_is_written_is_read_again() {
    let mut made = Delegations::none();
    let scope = PathScope::patterns(["digits/*/*", "extra"]);
    made.delegate("team", &public(&[10, 11]), 2, true, scope)
        .unwrap();
    let bins = PathScope::HashPrefixes(vec!["0".to_owned()]);
    made.delegate("ü/../bins", &public(&[10]), 1, false, bins)
        .unwrap();
    let hash_bins = Delegations::succinct("bin", 9, &public(&[12]), 1).unwrap();
    for given in [made.clone(), hash_bins, Delegations::none()] {
        let signed = new_delegating_targets(1, time(LATER), [&entry(1, 0)], &given);
        let bytes = signed_by(signed, &[4, 5]);
        let envelope = Envelope::parse(&bytes, TARGETS_MAX_BYTES).unwrap();
        let read = TargetsMetadata::read(&envelope).unwrap();
        assert_eq!(read.delegations, Some(given));
    }
    assert_eq!(made.keys.len(), 2);
    assert!(made.withdraw("team"));
    assert!(!made.withdraw("team"));
    assert_eq!(made.keys.len(), 1, "keys that nobody uses go along");
}

#[test]
fn a_second_delegation_of_a_name_takes_the_place_of_the_first() {
    let mut made = Delegations::none();
    for (name, seed) in [("a", 10), ("b", 11), ("a", 12)] {
        let scope = PathScope::patterns(["*"]);
        made.delegate(name, &public(&[seed]), 1, false, scope)
            .unwrap();
    }
    let names: Vec<&str> = made.listed().iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(made.keys.len(), 2);
    assert!(made.keys.contains_key(&key(12).keyid().unwrap()));
}

#[test]
fn delegations_that_could_never_work_are_not_made() {
    let all = || PathScope::patterns(["*"]);
    let mut made = Delegations::none();
    let code = |r: Result<(), TrustError>| r.unwrap_err().code();
    for (seeds, threshold) in [(&[10][..], 0), (&[10], 2), (&[10, 10], 2), (&[], 1)] {
        let refused = made.delegate("a", &public(seeds), threshold, false, all());
        assert_eq!(code(refused), "bad-key");
    }
    for name in ["", "root", "timestamp", &"x".repeat(201)] {
        let refused = made.delegate(name, &public(&[10]), 1, false, all());
        assert_eq!(code(refused), "bad-field");
    }
    assert_eq!(made, Delegations::none());
    for bits in [0, 33] {
        let refused = Delegations::succinct("bin", bits, &public(&[10]), 1);
        assert_eq!(refused.unwrap_err().code(), "bad-field");
    }
    let mut bins = Delegations::succinct("bin", 4, &public(&[10]), 1).unwrap();
    let refused = bins.delegate("a", &public(&[10]), 1, false, all());
    assert_eq!(code(refused), "bad-key");
}

#[test]
fn malformed_delegations_are_named() {
    let mut made = Delegations::none();
    made.delegate("a", &public(&[10]), 1, false, PathScope::patterns(["*"]))
        .unwrap();
    let good = new_delegating_targets(1, time(LATER), [], &made);
    let succinct = json!({ "keyids": [], "threshold": 1, "bit_length": 4, "name_prefix": "b" });
    for (path, value, message) in [
        (
            "/delegations",
            json!([]),
            "targets.delegations: expected an object",
        ),
        (
            "/delegations",
            json!({ "keys": {} }),
            "either roles or succinct_roles",
        ),
        (
            "/delegations",
            json!({ "keys": {}, "roles": [], "succinct_roles": succinct }),
            "either roles or succinct_roles",
        ),
        (
            "/delegations",
            json!({ "keys": {}, "succinct_roles": { "keyids": [], "threshold": 1, "bit_length": 33, "name_prefix": "b" } }),
            "bit_length: expected an integer from 1 to 32, got 33",
        ),
        (
            "/delegations/roles/0/paths",
            json!("*"),
            "roles[0].paths: expected a list",
        ),
        (
            "/delegations/roles/0/paths",
            json!([1]),
            "paths[0]: expected a string",
        ),
        (
            "/delegations/roles/0/terminating",
            json!(0),
            "terminating: expected true or false",
        ),
        (
            "/delegations/roles/0/threshold",
            json!(0),
            "threshold: expected an integer of at least 1",
        ),
        (
            "/delegations/roles/0/name",
            json!("targets"),
            "name: expected a name of 1 to 200 bytes",
        ),
        (
            "/delegations/roles/0",
            json!({ "name": "a", "keyids": [], "threshold": 1, "terminating": false }),
            "either paths or path_hash_prefixes",
        ),
    ] {
        let mut signed = good.clone();
        *signed.pointer_mut(path).unwrap() = value;
        let envelope = Envelope::parse(&signed_by(signed, &[4]), TARGETS_MAX_BYTES).unwrap();
        let refused = TargetsMetadata::read(&envelope).unwrap_err().to_string();
        assert!(refused.contains(message), "{refused}");
    }
    let mut twice = good.clone();
    let role = twice["delegations"]["roles"][0].clone();
    twice["delegations"]["roles"]
        .as_array_mut()
        .unwrap()
        .push(role);
    let envelope = Envelope::parse(&signed_by(twice, &[4]), TARGETS_MAX_BYTES).unwrap();
    assert!(TargetsMetadata::read(&envelope).is_err());
}

#[test]
fn a_search_says_what_it_needs_and_goes_on_from_there() {
    let mut made = Delegations::none();
    for (name, seed) in [("a/b", 10), ("c", 11)] {
        let scope = PathScope::patterns(["digits/*/*"]);
        made.delegate(name, &public(&[seed]), 1, false, scope)
            .unwrap();
    }
    let wanted = entry(1, 0);
    let roles = [("a/b", lists(&[]), 10), ("c", lists(&[wanted.clone()]), 11)];
    let (files, delegated) = served(&made, &roles);
    let mut set = fresh(&files).unwrap();
    let need = |set: &TrustedSet| match set.find(&wanted.path).unwrap() {
        Lookup::Needs(file) => file,
        Lookup::Found(found) => panic!("{found:?}"),
    };
    let first = need(&set);
    assert_eq!(first.request.name, "1.a%2Fb.json");
    assert_eq!(first.request.max_bytes, delegated[0].len() as u64);
    assert_eq!(set.target(&wanted.path).unwrap_err().code(), "out-of-order");
    // What does not fit changes nothing.
    let mut bent = delegated[0].clone();
    bent[20] ^= 1;
    let refused = set.update_delegated(&first, &bent).unwrap_err();
    assert_eq!(refused.code(), "hash");
    assert_eq!(need(&set), first);
    set.update_delegated(&first, &delegated[0]).unwrap();
    let second = need(&set);
    assert_eq!(second.role().as_str(), "c");
    set.update_delegated(&second, &delegated[1]).unwrap();
    let found = set.target(&wanted.path).unwrap();
    assert!(found.is_delegated());
    assert_eq!(found.role().as_str(), "c");
    assert_eq!(found.get(), &wanted);
    let unknown = set.find("digits/7/manifest.json").unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "no target \"digits/7/manifest.json\" is listed in targets version 1 or in the 2 delegated roles that may list it"
    );
    // Nobody may speak for other paths.
    assert_eq!(
        set.find("letters/1/x").unwrap_err().code(),
        "unknown-target"
    );
}

#[test]
fn endless_delegated_metadata_ends() {
    let mut made = Delegations::none();
    let filler = "x".repeat(9_000_000);
    let mut roles = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let scope = PathScope::patterns(["*"]);
        made.delegate(name, &public(&[10]), 1, false, scope)
            .unwrap();
        let mut signed = lists(&[]);
        signed["filler"] = Value::from(filler.as_str());
        roles.push((name, signed, 10));
    }
    let (files, delegated) = served(&made, &roles);
    let mut set = fresh(&files).unwrap();
    for (n, bytes) in delegated.iter().enumerate() {
        let Ok(Lookup::Needs(file)) = set.find("x") else {
            panic!("nothing needed")
        };
        let taken = set.update_delegated(&file, bytes).map_err(|e| e.code());
        assert_eq!(taken, if n < 3 { Ok(()) } else { Err("too-large") });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against the specification's recursion, with every role's metadata at hand.
    #[test]
    fn a_search_finds_what_the_specification_finds(
        edges in prop::collection::vec((0_usize..6, 0_usize..6, any::<bool>(), any::<bool>()), 0..14),
        listed in prop::collection::vec(any::<bool>(), 6),
    ) {
        // Role 0 is top-level targets; an edge may cover the wanted path or not.
        let wanted = entry(1, 0);
        let mut given = vec![Delegations::none(); 6];
        for &(from, to, covers, terminating) in &edges {
            let scope = PathScope::patterns([if covers { "digits/*/*" } else { "letters/*/*" }]);
            if to > 0 {
                given[from].delegate(&to.to_string(), &public(&[10]), 1, terminating, scope).unwrap();
            }
        }
        let content = |n: usize| {
            let entries: Vec<_> = listed[n].then(|| wanted.clone()).into_iter().collect();
            new_delegating_targets(1, time(LATER), &entries, &given[n])
        };
        let names: Vec<String> = (0..6).map(|n| n.to_string()).collect();
        let roles: Vec<_> = (1..6).map(|n| (names[n].as_str(), content(n), 10)).collect();
        let (mut files, delegated) = served(&given[0], &roles);
        if listed[0] {
            files = bent(&files, content(0));
        }
        let mut set = fresh(&files).unwrap();
        let got = loop {
            match set.find(&wanted.path) {
                Ok(Lookup::Found(found)) => break Some(found.role().as_str().to_owned()),
                Ok(Lookup::Needs(file)) => {
                    let n: usize = file.role().as_str().parse().unwrap();
                    set.update_delegated(&file, &delegated[n - 1]).unwrap();
                }
                Err(e) => {
                    prop_assert_eq!(e.code(), "unknown-target");
                    break None;
                }
            }
        };
        let mut visited = Vec::new();
        let expected = recursion(0, &given, &listed, &mut visited).unwrap_or(None);
        let name = |n: usize| if n == 0 { "targets".to_owned() } else { n.to_string() };
        prop_assert_eq!(got, expected.map(name));
    }
}

/// The same release with other targets.
fn bent(files: &Files, targets: Value) -> Files {
    let targets = signed_by(targets, &[4, 5]);
    let envelope = Envelope::parse(&files.snapshot, SNAPSHOT_MAX_BYTES).unwrap();
    let mut meta = SnapshotMetadata::read(&envelope).unwrap().meta;
    meta.insert("targets.json".to_owned(), MetaFile::of(1, &targets));
    let snapshot = signed_by(new_snapshot(1, time(LATER), &meta), &[6]);
    let timestamp = release(1).timestamp(&MetaFile::of(1, &snapshot));
    Files {
        targets,
        snapshot,
        timestamp,
    }
}

/// 5.6.7 as written: `Ok(None)` goes on elsewhere, `Err` ends the whole search.
fn recursion(
    role: usize,
    given: &[Delegations],
    listed: &[bool],
    visited: &mut Vec<usize>,
) -> Result<Option<usize>, ()> {
    if visited.contains(&role) {
        return Ok(None);
    }
    visited.push(role);
    if listed[role] {
        return Ok(Some(role));
    }
    for delegation in given[role].listed() {
        if !delegation.scope.covers("digits/1/manifest.json") {
            continue;
        }
        let found = recursion(delegation.name.parse().unwrap(), given, listed, visited)?;
        if found.is_some() {
            return Ok(found);
        }
        if delegation.terminating {
            return Err(());
        }
    }
    Ok(None)
}
