//! Each attack that the client workflow must defeat, and the error it ends in.

use serde_json::{Value, json};

use super::*;

fn code(result: Result<impl Sized, TrustError>) -> &'static str {
    match result {
        Ok(_) => "accepted",
        Err(e) => e.code(),
    }
}

#[test]
fn an_honest_update_ends_in_a_verified_target() {
    let set = fresh(&release(1).files()).unwrap();
    let target = set.target("digits/1/manifest.json").unwrap();
    assert_eq!(**target.verify_bytes(b"content").unwrap(), *b"content");
    assert_eq!(code(set.target("digits/2/manifest.json")), "unknown-target");
}

#[test]
fn nothing_is_used_before_the_steps_it_rests_on() {
    let files = release(1).files();
    let mut set = TrustedSet::from_root(&root(1, &keys(), &[1, 2]), time(NOW)).unwrap();
    assert_eq!(code(set.update_timestamp(&files.timestamp)), "out-of-order");
    assert_eq!(
        code(set.load_trusted_timestamp(&files.timestamp)),
        "out-of-order"
    );
    assert_eq!(
        code(set.load_trusted_targets(&files.targets)),
        "out-of-order"
    );
    set.finish_root().unwrap();
    assert_eq!(
        code(set.update_root(&root(2, &keys(), &[1, 2]))),
        "out-of-order"
    );
    assert_eq!(code(set.update_snapshot(&files.snapshot)), "out-of-order");
    assert_eq!(code(set.target("digits/1/manifest.json")), "out-of-order");
    // Stored files alone are never enough: the server must confirm the timestamp.
    let mut set = restarted(&files);
    assert_eq!(code(set.target("digits/1/manifest.json")), "out-of-order");
    assert_eq!(
        code(set.load_trusted_timestamp(&files.timestamp)),
        "out-of-order"
    );
    assert_eq!(refresh(&mut set, &files), Ok(Freshness::Unchanged));
    assert!(set.target("digits/1/manifest.json").is_ok());
}

#[test]
fn too_few_signatures() {
    for (role, signers) in [
        (Role::Targets, vec![4]),
        (Role::Snapshot, vec![]),
        (Role::Timestamp, vec![]),
    ] {
        let mut bent = release(1);
        bent.signers.insert(role, signers);
        assert!(
            matches!(fresh(&bent.files()).unwrap_err(), TrustError::Threshold { role: r, .. } if r == role)
        );
    }
    let one = TrustedSet::from_root(&root(1, &keys(), &[1]), time(NOW)).unwrap_err();
    assert_eq!(
        one.to_string(),
        "root version 1 has valid signatures of 1 of the 2 distinct keys that root version 1 demands"
    );
}

#[test]
fn keys_of_other_roles_and_strangers_do_not_count() {
    for signers in [vec![4, 6], vec![4, 99], vec![1, 2, 3], vec![98, 99]] {
        let mut bent = release(1);
        bent.signers.insert(Role::Targets, signers);
        assert_eq!(code(fresh(&bent.files())), "threshold");
    }
}

/// An envelope whose second signature is the first one's under another key id.
fn resigned(bytes: &[u8], keyid: &str) -> Vec<u8> {
    let mut file: Value = serde_json::from_slice(bytes).unwrap();
    let mut copy = file["signatures"][0].clone();
    copy["keyid"] = Value::from(keyid);
    file["signatures"].as_array_mut().unwrap().push(copy);
    file.to_string().into_bytes()
}

#[test]
fn one_key_under_two_ids_counts_once() {
    let mut signed = root_signed(1, LATER, &keys());
    let first = key(1).keyid().unwrap();
    let mut twin = signed["keys"][&first].clone();
    twin["name"] = json!("the same key again");
    let twin_id = Key::from_json(&twin).unwrap().keyid().unwrap();
    signed["keys"][&twin_id] = twin;
    signed["roles"]["root"]["keyids"]
        .as_array_mut()
        .unwrap()
        .push(json!(twin_id));
    let single = signed_by(signed.clone(), &[1]);
    let twice = TrustedSet::from_root(&resigned(&single, &twin_id), time(NOW)).unwrap_err();
    assert!(matches!(
        twice,
        TrustError::Threshold {
            needed: 2,
            got: 1,
            ..
        }
    ));
    assert!(TrustedSet::from_root(&signed_by(signed, &[1, 2]), time(NOW)).is_ok());
}

#[test]
fn one_key_id_may_not_sign_twice() {
    let bytes = root(1, &keys(), &[1]);
    let again = resigned(&bytes, &key(1).keyid().unwrap());
    assert_eq!(
        code(TrustedSet::from_root(&again, time(NOW))),
        "duplicate-signature"
    );
}

#[test]
fn signatures_that_do_not_verify_are_passed_over() {
    let mut file: Value = serde_json::from_slice(&root(1, &keys(), &[1, 2])).unwrap();
    let list = file["signatures"].as_array_mut().unwrap();
    list.push(json!({ "keyid": key(3).keyid().unwrap(), "sig": "" }));
    list.push(json!({ "keyid": "stranger", "sig": "zz" }));
    assert!(TrustedSet::from_root(file.to_string().as_bytes(), time(NOW)).is_ok());
    let sig = file["signatures"][0]["sig"].as_str().unwrap().to_owned();
    file["signatures"][1]["sig"] = json!(sig);
    assert_eq!(
        code(TrustedSet::from_root(
            file.to_string().as_bytes(),
            time(NOW)
        )),
        "threshold"
    );
}

#[test]
fn unknown_kinds_of_keys_are_kept_and_verify_nothing() {
    let mut signed = root_signed(1, LATER, &keys());
    signed["keys"]["future"] =
        json!({ "keytype": "ml-dsa", "scheme": "ml-dsa-65", "keyval": { "public": "…" } });
    signed["keys"]["broken"] =
        json!({ "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": "00ff" } });
    for name in ["future", "broken", "not listed"] {
        signed["roles"]["root"]["keyids"]
            .as_array_mut()
            .unwrap()
            .push(json!(name));
    }
    let set = TrustedSet::from_root(&signed_by(signed.clone(), &[1, 2]), time(NOW)).unwrap();
    assert_eq!(
        set.root().keys["future"].to_json(),
        &signed["keys"]["future"]
    );
    let forged = resigned(&signed_by(signed, &[1]), "future");
    assert_eq!(code(TrustedSet::from_root(&forged, time(NOW))), "threshold");
}

#[test]
fn unknown_fields_are_verified_and_kept() {
    let mut signed = root_signed(1, LATER, &keys());
    signed["x-note"] = json!({ "a": [1, "ü\n"], "b": null });
    let bytes = signed_by(signed.clone(), &[1, 2]);
    assert!(TrustedSet::from_root(&bytes, time(NOW)).is_ok());
    let envelope = Envelope::parse(&bytes, ROOT_MAX_BYTES).unwrap();
    assert_eq!(envelope.signed(), &signed);
    assert_eq!(envelope.to_bytes(), bytes);
    let bent = String::from_utf8(bytes)
        .unwrap()
        .replace("x-note", "y-note");
    assert_eq!(
        code(TrustedSet::from_root(bent.as_bytes(), time(NOW))),
        "threshold"
    );
}

#[test]
fn root_goes_on_by_exactly_one_signed_by_both() {
    let mut next = keys();
    next.insert(Role::Root, (vec![11, 12], 2));
    let start = || TrustedSet::from_root(&root(1, &keys(), &[1, 2]), time(NOW)).unwrap();
    for (version, signers, expected) in [
        (2, vec![1, 2, 11, 12], "accepted"),
        (2, vec![11, 12], "threshold"),
        (2, vec![1, 2], "threshold"),
        (2, vec![1, 11, 12], "threshold"),
        (3, vec![1, 2, 11, 12], "root-chain"),
        (1, vec![1, 2, 11, 12], "root-chain"),
    ] {
        let mut set = start();
        let got = code(set.update_root(&root(version, &next, &signers)));
        assert_eq!(got, expected, "version {version} signed by {signers:?}");
        assert_eq!(
            set.root().version,
            if expected == "accepted" { 2 } else { 1 }
        );
    }
}

#[test]
fn only_the_newest_root_must_be_unexpired() {
    let old = signed_by(root_signed(1, PAST, &keys()), &[1, 2]);
    let mut set = TrustedSet::from_root(&old, time(NOW)).unwrap();
    assert_eq!(code(set.finish_root()), "expired");
    assert_eq!(
        code(set.update_timestamp(&release(1).files().timestamp)),
        "out-of-order"
    );
    assert_eq!(
        set.update_root(&root(2, &keys(), &[2, 3])),
        Ok(OnlineKeys::Kept)
    );
    assert_eq!(set.finish_root(), Ok(()));
}

#[test]
fn an_endless_chain_of_roots_ends() {
    let mut one = keys();
    one.insert(Role::Root, (vec![1], 1));
    let mut set = TrustedSet::from_root(&root(1, &one, &[1]), time(NOW)).unwrap();
    for version in 2..=ROOT_ROTATIONS_MAX + 1 {
        assert_eq!(set.root_to_fetch().name, format!("{version}.root.json"));
        let _ = set.update_root(&root(version, &one, &[1])).unwrap();
    }
    let more = root(ROOT_ROTATIONS_MAX + 2, &one, &[1]);
    assert_eq!(code(set.update_root(&more)), "too-many-roots");
}

#[test]
fn rollback_of_timestamp_snapshot_and_targets() {
    let stored = release(5);
    let rollback = |offered: &Release| match refusal(&stored, &offered.files()) {
        TrustError::Rollback { what, trusted, got } => (what, trusted, got),
        other => panic!("{other}"),
    };
    let mut offered = release(6);
    offered.timestamp_version = 4;
    assert_eq!(rollback(&offered), ("timestamp".to_owned(), 5, 4));
    let mut offered = release(6);
    offered.snapshot_version = 4;
    assert_eq!(
        rollback(&offered),
        ("snapshot (as listed in timestamp)".to_owned(), 5, 4)
    );
    let mut offered = release(6);
    offered.targets_version = 4;
    assert_eq!(rollback(&offered), ("targets.json".to_owned(), 5, 4));
}

#[test]
fn an_expired_stored_file_still_protects_against_rollback() {
    let mut stored = release(5);
    stored.expires = Role::ALL.map(|r| (r, PAST)).into();
    let mut offered = release(6);
    offered.targets_version = 4;
    assert_eq!(refusal(&stored, &offered.files()).code(), "rollback");
    assert_eq!(refusal(&stored, &release(4).files()).code(), "rollback");
    assert_eq!(
        refresh(&mut restarted(&stored.files()), &release(6).files()),
        Ok(Freshness::New)
    );
}

#[test]
fn a_listed_file_may_not_disappear() {
    let mut stored = release(5);
    let team = MetaFile {
        version: 1,
        length: None,
        hashes: Hashes::default(),
    };
    stored.extra_meta.insert("team.json".to_owned(), team);
    assert_eq!(
        refusal(&stored, &release(6).files()),
        TrustError::MissingMeta {
            version: 6,
            file: "team.json".to_owned()
        }
    );
}

#[test]
fn freeze_with_expired_metadata() {
    for role in [Role::Timestamp, Role::Snapshot, Role::Targets] {
        let mut frozen = release(5);
        frozen.expires.insert(role, PAST);
        for refused in [
            fresh(&frozen.files()).unwrap_err(),
            refusal(&release(4), &frozen.files()),
            refusal(&frozen, &frozen.files()),
        ] {
            assert!(
                matches!(&refused, TrustError::Expired { role: r, .. } if *r == role),
                "{refused}"
            );
        }
    }
    // Valid until the very second before.
    let mut edge = release(5);
    edge.expires.insert(Role::Timestamp, NOW);
    assert_eq!(code(fresh(&edge.files())), "expired");
}

#[test]
fn mix_and_match() {
    let (old, new) = (release(1).files(), release(2).files());
    let mut set = rooted();
    let _ = set.update_timestamp(&new.timestamp).unwrap();
    assert!(matches!(
        code(set.update_snapshot(&old.snapshot)),
        "hash" | "length"
    ));
    set.update_snapshot(&new.snapshot).unwrap();
    assert!(matches!(
        code(set.update_targets(&old.targets)),
        "hash" | "length"
    ));
    // Without lengths and hashes the versions must hold on their own.
    let bare = |version| MetaFile {
        version,
        length: None,
        hashes: Hashes::default(),
    };
    let mut release = release(2);
    release
        .extra_meta
        .insert("targets.json".to_owned(), bare(2));
    let files = release.files();
    let mut set = rooted();
    let _ = set.update_timestamp(&release.timestamp(&bare(2))).unwrap();
    assert_eq!(
        set.update_snapshot(&old.snapshot),
        Err(TrustError::VersionMismatch {
            role: Role::Snapshot.into(),
            expected: 2,
            got: 1
        })
    );
    set.update_snapshot(&files.snapshot).unwrap();
    assert_eq!(code(set.update_targets(&old.targets)), "version");
    set.update_targets(&files.targets).unwrap();
}

#[test]
fn one_flipped_byte_anywhere_is_refused() {
    let files = release(1).files();
    let mut bent = files.snapshot.clone();
    bent[20] ^= 1;
    let mut set = rooted();
    let _ = set.update_timestamp(&files.timestamp).unwrap();
    assert_eq!(code(set.update_snapshot(&bent)), "hash");
    set.update_snapshot(&files.snapshot).unwrap();
    let mut bent = files.targets.clone();
    bent[20] ^= 1;
    assert_eq!(code(set.update_targets(&bent)), "hash");
    set.update_targets(&files.targets).unwrap();
    let target = set.target("digits/1/manifest.json").unwrap();
    assert_eq!(code(target.verify_bytes(b"contenT")), "hash");
    assert_eq!(code(target.verify_bytes(b"conten")), "length");
    assert_eq!(code(target.verify_bytes(b"content and more")), "too-large");
}

#[test]
fn endless_data_is_refused_before_it_is_read() {
    let endless = |role: Role| vec![b'['; role.max_bytes() + 1];
    assert_eq!(
        code(TrustedSet::from_root(&endless(Role::Root), time(NOW))),
        "too-large"
    );
    let mut set = rooted();
    assert_eq!(
        code(set.load_trusted_targets(&endless(Role::Targets))),
        "too-large"
    );
    assert_eq!(
        code(set.update_timestamp(&endless(Role::Timestamp))),
        "too-large"
    );
    let files = release(1).files();
    let _ = set.update_timestamp(&files.timestamp).unwrap();
    let request = set.snapshot_to_fetch().unwrap().unwrap();
    assert_eq!(request.name, "1.snapshot.json");
    assert_eq!(request.max_bytes, files.snapshot.len() as u64);
    assert_eq!(
        code(set.update_snapshot(&[&files.snapshot[..], b" "].concat())),
        "too-large"
    );
}

#[test]
fn fast_forward_recovery() {
    // A thief of the timestamp key signed the highest version there is.
    let mut stolen = release(5);
    stolen.timestamp_version = u64::MAX;
    stolen.snapshot_version = u64::MAX;
    let stored = stolen.files();
    let honest = release(6);
    assert_eq!(refusal(&stolen, &honest.files()).code(), "rollback");
    // The key holders withdraw it, while a second key of the role stays.
    let mut before = keys();
    before.insert(Role::Timestamp, (vec![7, 8], 1));
    let mut after = keys();
    after.insert(Role::Timestamp, (vec![8], 1));
    let mut set = TrustedSet::from_root(&root(1, &before, &[1, 2]), time(NOW)).unwrap();
    assert_eq!(
        set.update_root(&root(2, &after, &[1, 2])),
        Ok(OnlineKeys::Rotated)
    );
    // Also when a later root brings the key back.
    assert_eq!(
        set.update_root(&root(3, &before, &[1, 2])),
        Ok(OnlineKeys::Kept)
    );
    set.finish_root().unwrap();
    assert_eq!(
        code(set.load_trusted_timestamp(&stored.timestamp)),
        "keys-rotated"
    );
    assert_eq!(
        code(set.load_trusted_snapshot(&stored.snapshot)),
        "keys-rotated"
    );
    set.load_trusted_targets(&stored.targets).unwrap();
    let mut honest = honest;
    honest.signers.insert(Role::Timestamp, vec![8]);
    assert_eq!(refresh(&mut set, &honest.files()), Ok(Freshness::New));
}

#[test]
fn adding_an_online_key_keeps_the_rollback_protection() {
    let read = |keys: &Keys| {
        let bytes = root(1, keys, &[1, 2]);
        RootMetadata::read(&Envelope::parse(&bytes, ROOT_MAX_BYTES).unwrap()).unwrap()
    };
    let old = read(&keys());
    let with = |role, seeds: &[u8]| {
        let mut keys = keys();
        keys.insert(role, (seeds.to_vec(), 1));
        read(&keys)
    };
    assert!(!rotated_online_keys(&old, &old));
    assert!(!rotated_online_keys(&old, &with(Role::Timestamp, &[7, 8])));
    assert!(rotated_online_keys(&old, &with(Role::Timestamp, &[8])));
    assert!(rotated_online_keys(&old, &with(Role::Snapshot, &[8])));
    assert!(!rotated_online_keys(&old, &with(Role::Targets, &[8])));
}

#[test]
fn metadata_of_another_role_is_refused() {
    let files = release(1).files();
    let mut set = rooted();
    assert_eq!(code(set.update_timestamp(&files.snapshot)), "wrong-type");
    assert_eq!(
        code(TrustedSet::from_root(&files.targets, time(NOW))),
        "wrong-type"
    );
}

#[test]
fn malformed_fields_are_named() {
    for (path, value, message) in [
        (
            "/version",
            json!(0),
            "root.version: expected an integer of at least 1, got 0",
        ),
        (
            "/version",
            json!("1"),
            "root.version: expected an integer from 0 to 2^64-1, got \"1\"",
        ),
        (
            "/spec_version",
            json!("2.0.0"),
            "spec_version \"2.0.0\" is not understood",
        ),
        (
            "/expires",
            json!("2030-01-01T00:00:00+01:00"),
            "root.expires: expected a UTC time",
        ),
        (
            "/expires",
            json!("2030-13-01T00:00:00Z"),
            "root.expires: expected a UTC time",
        ),
        (
            "/roles/timestamp/threshold",
            json!(0),
            "root.roles.timestamp.threshold: expected",
        ),
        (
            "/roles/root",
            json!(null),
            "root.roles.root: expected an object, got null",
        ),
        ("/keys", json!([]), "root.keys: expected an object, got []"),
        (
            "/consistent_snapshot",
            json!(1),
            "root.consistent_snapshot: expected true or false",
        ),
        (
            "/roles/targets/keyids",
            json!(["a", "a"]),
            "keyids[1]: expected a key id not listed before",
        ),
    ] {
        let mut signed = root_signed(1, LATER, &keys());
        *signed.pointer_mut(path).unwrap() = value;
        let refused = TrustedSet::from_root(&signed_by(signed, &[1, 2]), time(NOW)).unwrap_err();
        assert!(refused.to_string().contains(message), "{refused}");
    }
    let mut signed = root_signed(1, LATER, &keys());
    signed["roles"].as_object_mut().unwrap().remove("snapshot");
    let refused = TrustedSet::from_root(&signed_by(signed, &[1, 2]), time(NOW)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "metadata field root.roles.snapshot: expected a value, got nothing"
    );
}

#[test]
fn a_file_listed_without_sha256_is_refused() {
    let listed = json!({ "version": 1, "hashes": { "md5": "00" } });
    let mut signed = new_timestamp(1, time(LATER), &MetaFile::of(1, b""));
    signed["meta"]["snapshot.json"] = listed;
    assert_eq!(
        code(rooted().update_timestamp(&signed_by(signed, &[7]))),
        "bad-field"
    );
}

#[test]
fn a_failed_step_changes_nothing() {
    let files = release(5).files();
    let mut set = restarted(&files);
    assert_eq!(refresh(&mut set, &files), Ok(Freshness::Unchanged));
    let mut bad = release(6);
    bad.expires.insert(Role::Timestamp, PAST);
    assert!(set.update_timestamp(&bad.files().timestamp).is_err());
    assert!(set.update_snapshot(b"{}").is_err());
    assert!(set.update_targets(b"{}").is_err());
    assert_eq!(set.targets().unwrap().version, 5);
}
