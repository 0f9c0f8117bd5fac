//! The device's own rule, manifests, and making keys.

use serde_json::json;

use super::*;
use crate::bundle::Manifest;
use crate::id::Family;

fn verified(entries: Vec<TargetEntry>, path: &str) -> FoundTarget {
    let mut release = release(1);
    release.entries = entries;
    fresh(&release.files()).unwrap().target(path).unwrap()
}

fn digits() -> Family {
    "digits".parse().unwrap()
}

fn check(
    version: u64,
    floor_seen: u64,
    own_floor: u64,
    hardware: &str,
) -> Result<VerifiedTarget, SelectionError> {
    let target = entry(version, own_floor);
    let path = target.path.clone();
    let floors = BTreeMap::from([(digits(), floor_seen)]);
    check_target(verified(vec![target], &path), &floors, hardware)
}

#[test]
fn a_version_below_the_floor_is_refused() {
    assert_eq!(check(3, 3, 0, "x86_64").unwrap().custom().version, 3);
    let below = SelectionError::BelowFloor {
        family: digits(),
        version: 2,
        floor: 3,
    };
    assert_eq!(check(2, 3, 0, "x86_64"), Err(below.clone()));
    assert_eq!(check(2, 0, 3, "x86_64"), Err(below.clone()));
    assert_eq!(
        below.to_string(),
        "digits version 2 is below the rollback floor 3"
    );
    assert_eq!(below.code(), "below-floor");
}

#[test]
fn other_hardware_is_refused() {
    let refused = check(1, 0, 0, "aarch64").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "target is for hardware [\"x86_64\"], this device is \"aarch64\""
    );
    let mut anywhere = entry(1, 0);
    anywhere.custom["dunlin"]["hardware"] = json!(["any"]);
    let target = verified(vec![anywhere.clone()], "digits/1/manifest.json");
    assert!(check_target(target, &BTreeMap::new(), "aarch64").is_ok());
    anywhere.custom["dunlin"]["hardware"] = json!([]);
    let target = verified(vec![anywhere], "digits/1/manifest.json");
    assert_eq!(
        check_target(target, &BTreeMap::new(), "any")
            .unwrap_err()
            .code(),
        "wrong-hardware"
    );
}

#[test]
fn a_target_that_says_nothing_of_itself_is_refused() {
    for custom in [
        json!(null),
        json!({}),
        json!({ "dunlin": { "family": "digits" } }),
    ] {
        let mut silent = entry(1, 0);
        silent.custom = custom;
        let target = verified(vec![silent], "digits/1/manifest.json");
        let refused = check_target(target, &BTreeMap::new(), "x86_64").unwrap_err();
        assert_eq!(refused.code(), "missing-custom");
    }
}

#[test]
fn floors_only_rise_and_count_even_from_targets_of_a_later_format() {
    let mut later = entry(9, 0);
    later.path = "digits/9/bundle.cbor".to_owned();
    later.custom = json!({ "dunlin": { "family": "digits", "rollback_floor": 4, "shape": "new" } });
    let mut release = release(1);
    release.entries = vec![entry(1, 0), entry(2, 2), later];
    let set = fresh(&release.files()).unwrap();
    let targets = set.targets().unwrap();
    assert_eq!(highest_floor(targets, &digits()), 4);
    assert_eq!(highest_floor(targets, &"other".parse().unwrap()), 0);
    let mut floors = BTreeMap::from([(digits(), 7)]);
    raise_floors(&mut floors, targets);
    assert_eq!(floors[&digits()], 7);
}

fn manifest() -> Manifest {
    let blob = json!({ "sha256": "00".repeat(32), "length": 9 });
    let tensor = |name: &str| json!([{ "name": name, "dtype": "FP32", "shape": [1, 4] }]);
    let text = json!({
        "schema": "dunlin.manifest/1", "kind": "model", "family": "digits", "version": 2,
        "inputs": tensor("pixels"), "outputs": tensor("probabilities"),
        "limits": { "tolerance_abs": 0.5, "latency_budget_ms": 100 },
        "resources": { "arch": ["any"], "ram_bytes": 1, "disk_bytes": 1, "agent_min": "0.1.0" },
        "files": { "model": blob, "golden": blob },
    });
    Manifest::parse(text.to_string().as_bytes()).unwrap()
}

#[test]
fn a_manifest_opens_only_from_the_signed_bytes_and_as_what_was_signed() {
    let manifest = manifest();
    let bytes = manifest.to_bytes().unwrap();
    let signed_as = |version| {
        let mut custom = custom(version, 0);
        custom.family = manifest.family.clone();
        let target = TargetEntry::of("m.json", &bytes, &custom);
        verified(vec![target], "m.json")
    };
    let opened = signed_as(manifest.version).open_manifest(&bytes).unwrap();
    assert_eq!(*opened, manifest);
    let mut bent = bytes.clone();
    bent[5] ^= 1;
    assert_eq!(
        signed_as(manifest.version)
            .open_manifest(&bent)
            .unwrap_err()
            .code(),
        "hash"
    );
    let other = signed_as(manifest.version + 1)
        .open_manifest(&bytes)
        .unwrap_err();
    assert!(
        other
            .to_string()
            .contains("but the target is signed as model"),
        "{other}"
    );
    let no_manifest = verified(vec![entry(1, 0)], "digits/1/manifest.json");
    assert_eq!(
        no_manifest.open_manifest(b"content").unwrap_err().code(),
        "bad-manifest"
    );
}

#[test]
fn private_keys_are_written_as_pkcs8_version_1() {
    // RFC 8410, section 10.3: the first example is version 1.
    let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    let key = SigningKey::from_pkcs8_pem(pem).unwrap();
    assert_eq!(key.to_pkcs8_pem().unwrap().expose(), pem);
    let public = "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";
    assert_eq!(key.public_key().to_json()["keyval"]["public"], public);
    assert_eq!(format!("{key:?}"), format!("SigningKey(public {public})"));
    assert_eq!(format!("{:?}", key.to_pkcs8_pem().unwrap()), "SecretPem(…)");
    for bad in [
        "",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ] {
        assert_eq!(
            SigningKey::from_pkcs8_pem(bad).unwrap_err().code(),
            "bad-key"
        );
    }
}

#[test]
fn a_root_that_could_never_be_replaced_is_not_made() {
    let public = |seeds: &[u8]| {
        seeds
            .iter()
            .map(|&s| key(s).public_key())
            .collect::<Vec<_>>()
    };
    let made = |seeds: &[u8], threshold| {
        let mut roles = Role::ALL.map(|r| (r, (public(&[1]), 1)));
        roles[0].1 = (public(seeds), threshold);
        new_root(1, time(LATER), &BTreeMap::from(roles))
    };
    assert!(made(&[1, 2], 2).is_ok());
    for (seeds, threshold) in [(&[1, 2][..], 3), (&[1, 1], 2), (&[1], 0), (&[], 1)] {
        assert_eq!(made(seeds, threshold).unwrap_err().code(), "bad-key");
    }
    assert!(new_root(1, time(LATER), &BTreeMap::new()).is_err());
}

#[test]
fn signing_again_replaces_and_numbers_must_be_whole() {
    let mut envelope = sign_envelope(root_signed(1, LATER, &keys()), &[&key(1)]).unwrap();
    add_signature(&mut envelope, &key(2)).unwrap();
    add_signature(&mut envelope, &key(1)).unwrap();
    assert_eq!(envelope.signatures().len(), 2);
    assert_eq!(envelope.role(), Ok(Role::Root));
    let refused = sign_envelope(json!({ "x": 0.5 }), &[&key(1)]).unwrap_err();
    assert_eq!(refused.code(), "not-canonical");
}

#[test]
fn file_names_carry_versions_and_hashes() {
    assert_eq!(Role::Root.file_name(3, false), "3.root.json");
    assert_eq!(Role::Targets.file_name(3, true), "3.targets.json");
    assert_eq!(Role::Snapshot.file_name(3, false), "snapshot.json");
    assert_eq!(Role::Timestamp.file_name(3, true), "timestamp.json");
    let entry = entry(1, 0);
    let expected = format!("digits/1/{}.manifest.json", entry.sha256().unwrap());
    assert_eq!(entry.consistent_path(), expected);
    let expires = time("2030-01-01T00:00:00.75Z");
    assert_eq!(
        new_targets(1, expires, [&entry])["expires"],
        "2030-01-01T00:00:00Z"
    );
}
