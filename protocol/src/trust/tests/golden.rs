//! A repository that python-tuf wrote, read back; and what Dunlin itself writes, byte for byte.

use serde_json::Value;

use super::*;

macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/golden/trust/",
            $name
        ))
    };
}

#[test]
fn python_tuf_repository_is_read_from_end_to_end() {
    let mut set = TrustedSet::from_root(golden!("python-tuf/1.root.json"), time(NOW)).unwrap();
    let kinds = set.root().keys.values();
    assert_eq!(kinds.filter(|k| k.as_ed25519().is_none()).count(), 1);
    assert!(set.root().keys.values().all(Key::can_verify));
    let step = set.update_root(golden!("python-tuf/2.root.json")).unwrap();
    assert_eq!(step, OnlineKeys::Rotated);
    set.finish_root().unwrap();
    let fresh = set
        .update_timestamp(golden!("python-tuf/timestamp.json"))
        .unwrap();
    assert_eq!(fresh, Freshness::New);
    assert_eq!(
        set.snapshot_to_fetch().unwrap().unwrap().name,
        "7.snapshot.json"
    );
    set.update_snapshot(golden!("python-tuf/7.snapshot.json"))
        .unwrap();
    assert_eq!(
        set.targets_to_fetch().unwrap().unwrap().name,
        "5.targets.json"
    );
    set.update_targets(golden!("python-tuf/5.targets.json"))
        .unwrap();
    assert_eq!(set.targets_to_fetch(), Ok(None));
    let target = set.target("model.txt").unwrap();
    let content = golden!(
        "python-tuf/047f094e5da924a0df905cbd0d345d3eb074de20393af7ca9b6ff0e415829091.model.txt"
    );
    assert!(target.consistent_path().starts_with("047f094e5da924a0"));
    target.verify_bytes(content).unwrap();
    assert_eq!(target.custom["dunlin"]["later"]["unknown"][1], 2);
    let target = check_target(target, &BTreeMap::new(), "x86_64").unwrap();
    assert_eq!(
        (target.custom().version, target.custom().rollback_floor),
        (3, 2)
    );
    // The next timestamp lists the snapshot by version only.
    let bare = golden!("python-tuf/timestamp-without-hashes.json");
    assert_eq!(set.update_timestamp(bare), Ok(Freshness::New));
    assert!(set.target("model.txt").is_ok());
}

#[test]
fn python_tuf_key_ids_are_the_same() {
    for file in [
        &golden!("python-tuf/1.root.json")[..],
        golden!("python-tuf/2.root.json"),
    ] {
        let root = RootMetadata::read(&Envelope::parse(file, ROOT_MAX_BYTES).unwrap()).unwrap();
        for (keyid, key) in &root.keys {
            assert_eq!(&key.keyid().unwrap(), keyid);
        }
    }
}

#[test]
fn canonical_json_is_as_securesystemslib_writes_it() {
    let pairs: Value = serde_json::from_slice(golden!("python-tuf/canonical.json")).unwrap();
    for pair in pairs.as_array().unwrap() {
        let json = pair["json"].as_str().unwrap();
        let value = canonical::parse(json.as_bytes()).unwrap();
        let form = hex::encode(canonical::canonical(&value).unwrap());
        assert_eq!(form, pair["canonical_hex"], "{json}");
    }
}

#[test]
fn what_dunlin_writes_does_not_change() {
    let mut release = release(1);
    release.entries = vec![entry(1, 0), entry(2, 1)];
    let files = release.files();
    let written = [
        ("1.root.json", root(1, &keys(), &[1, 2])),
        ("1.targets.json", files.targets),
        ("1.snapshot.json", files.snapshot),
        ("timestamp.json", files.timestamp),
    ];
    let committed: [&[u8]; 4] = [
        golden!("dunlin/1.root.json"),
        golden!("dunlin/1.targets.json"),
        golden!("dunlin/1.snapshot.json"),
        golden!("dunlin/timestamp.json"),
    ];
    for ((name, bytes), committed) in written.iter().zip(committed) {
        let text = String::from_utf8_lossy(bytes);
        assert_eq!(text, String::from_utf8_lossy(committed), "{name}");
    }
}

#[test]
fn patterns_and_hash_bins_are_as_python_tuf_has_them() {
    let vectors: Value = serde_json::from_slice(golden!("python-tuf/delegation.json")).unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let mut wrong = Vec::new();
    for vector in vectors["patterns"].as_array().unwrap() {
        let (pattern, path) = (text(&vector[0]), text(&vector[1]));
        if PathPattern::new(&pattern).matches(&path) != vector[2].as_bool().unwrap() {
            wrong.push(format!("{vector}"));
        }
    }
    for vector in vectors["bins"].as_array().unwrap() {
        let bits = u32::try_from(vector[0].as_u64().unwrap()).unwrap();
        let made = Delegations::succinct("bin", bits, &[key(1).public_key()], 1).unwrap();
        let path = text(&vector[1]);
        assert!(made.allows(&text(&vector[2]), &path), "{vector}");
        assert!(made.keys_of(&text(&vector[2])).is_some(), "{vector}");
    }
    assert!(wrong.is_empty(), "{} wrong: {wrong:?}", wrong.len());
}
