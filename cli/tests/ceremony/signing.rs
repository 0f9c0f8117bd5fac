//! Signing by files across machines, and devices that follow.

use crate::desk::{Desk, PASSPHRASE, server_keys};
use crate::operator::Operator;
use dunlin_protocol::trust::{TrustError, TrustedSet};
use jiff::Timestamp;
use serde_json::Value;

#[test]
fn signatures_travel_as_files_and_only_those_asked_for_count() {
    let desk = Desk::new();
    desk.first_root();
    let (status, shown, _) = desk.run("keys inspect 1.request");
    assert_eq!(status, 0);
    for words in [
        "FIRST root",
        "root: 2 of 3 keys must sign",
        "+ alice (",
        "+ server (",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }

    desk.ok("keys root edit --dir keys --targets-threshold 3 --out 2.request");
    let (_, shown, _) = desk.run("keys inspect 2.request");
    assert!(shown.contains("targets: 3 (before: 2) of 3"), "{shown}");
    desk.ok("keys generate mallory");
    desk.fails("keys sign 2.request --key mallory.pem --yes", "not asked");
    desk.ok("keys sign 2.request --key alice.pem --yes");

    // One of two: kept, and told who is missing.
    let carol: Value = serde_json::from_slice(&desk.read("carol.pub")).unwrap();
    let alice = desk.signature("2.request", "alice");
    let (status, said, _) = desk.run(&format!("keys combine 2.request {alice} --dir keys"));
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("1 missing"), "{said}");
    assert!(said.contains(&format!("carol ({})", carol["keyid"].as_str().unwrap())));
    assert!(!desk.path("keys/2.root.json").exists());
    // The same signature again is no second one.
    desk.fails(&format!("keys combine 2.request {alice}"), "1 missing");

    // A stranger's signature, one over other content, and a forged one.
    let text = String::from_utf8(desk.read(&alice)).unwrap();
    let mallory: Value = serde_json::from_slice(&desk.read("mallory.pub")).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let keyid = value["keyid"].as_str().unwrap();
    desk.write(
        "forged.sig",
        &text.replace(keyid, mallory["keyid"].as_str().unwrap()),
    );
    desk.fails("keys combine 2.request forged.sig", "not asked");
    desk.write(
        "forged.sig",
        &text.replace(keyid, carol["keyid"].as_str().unwrap()),
    );
    desk.fails("keys combine 2.request forged.sig", "does not verify");
    desk.ok("keys root edit --dir keys --targets-threshold 1 --out other.request");
    desk.ok("keys sign other.request --key bob.pem --yes");
    desk.fails(
        "keys combine 2.request other.request.bob.sig",
        "other content",
    );

    desk.ok("keys sign 2.request --key bob.pem --yes");
    desk.ok("keys combine 2.request 2.request.bob.sig --dir keys");
    let mut set = TrustedSet::from_root(&desk.root(1), Timestamp::now()).unwrap();
    let _ = set.update_root(&desk.root(2)).unwrap();

    // Whoever trusts version 2 does not sign what rests on version 1.
    desk.fails(
        "keys sign other.request --key alice.pem --dir keys --yes",
        "rests on",
    );
    // Nor does the other version 2 join the folder, whoever signed it; the one there may gain
    // signatures.
    desk.ok("keys sign other.request --key alice.pem --yes");
    let there = desk.root(2);
    desk.fails(
        "keys combine other.request other.request.alice.sig other.request.bob.sig --dir keys",
        "rests on",
    );
    assert_eq!(desk.root(2), there);
    desk.ok("keys sign 2.request --key carol.pem --yes");
    desk.ok("keys combine 2.request 2.request.carol.sig --dir keys");
    assert_ne!(desk.root(2), there);
    let _ = TrustedSet::from_root(&desk.root(1), Timestamp::now())
        .unwrap()
        .update_root(&desk.root(2))
        .unwrap();
}

#[test]
fn what_is_shown_is_what_is_signed_whatever_the_request_says() {
    let desk = Desk::new();
    desk.first_root();
    desk.ok("keys root edit --dir keys --root-threshold 1 --out 2.request");
    let mut request: Value = serde_json::from_slice(&desk.read("2.request")).unwrap();
    request["summary"] = serde_json::json!(["nothing changes"]);
    request["metadata"]["signed"]["x\u{1b}[2K\u{202e}"] = "y".into();
    desk.write("2.request", &request.to_string());
    let (_, _, shown) = desk.run("keys sign 2.request --key alice.pem --yes");
    assert!(shown.contains("root: 1 (before: 2) of 3"), "{shown}");
    assert!(!shown.contains("nothing changes"), "{shown}");
    assert!(
        !shown.contains('\u{1b}') && !shown.contains('\u{202e}'),
        "{shown}"
    );
    assert!(shown.contains("also signed"), "{shown}");
}

#[test]
fn a_strangers_key_under_a_familiar_id_is_seen() {
    let desk = Desk::new();
    desk.first_root();
    desk.ok("keys generate mallory");
    desk.ok("keys root edit --dir keys --out 2.request");
    let public = |name: &str| -> Value {
        serde_json::from_slice(&desk.read(&format!("{name}.pub"))).unwrap()
    };
    let (carol, mallory) = (public("carol"), public("mallory"));
    let id = |key: &Value| key["keyid"].as_str().unwrap().to_owned();
    let mut request: Value = serde_json::from_slice(&desk.read("2.request")).unwrap();
    request["metadata"]["signed"]["keys"][id(&carol)] = mallory["key"].clone();
    desk.write("2.request", &request.to_string());
    let shown = desk.ok("keys inspect 2.request");
    assert!(shown.contains(&format!("+ {}", id(&mallory))), "{shown}");
    assert!(
        shown.contains(&format!("- carol ({})", id(&carol))),
        "{shown}"
    );
}

#[test]
fn devices_follow_ten_roots_and_a_revoked_key_signs_nothing() {
    let desk = Desk::new();
    desk.first_root();
    // Ten people take each other's seats; the one before last and the newest sign.
    for version in 2..=10_u64 {
        let (old, new) = (version - 2, version - 1);
        let old = if old == 0 {
            "carol".to_owned()
        } else {
            format!("p{old}")
        };
        let new = format!("p{new}");
        desk.ok(&format!("keys generate {new} --no-passphrase"));
        desk.ok(&format!(
            "keys rotate {old} {new}.pub --dir keys --out {version}.request"
        ));
        desk.sign_and_combine(version, &["alice", "bob"]);
    }
    desk.write("next.json", &server_keys(2));
    desk.ok("keys root edit --dir keys --server-keys next.json --out 11.request");
    desk.sign_and_combine(11, &["alice", "p9"]);

    // A device that has seen only the first one.
    let mut set = TrustedSet::from_root(&desk.root(1), Timestamp::now()).unwrap();
    for version in 2..=11 {
        let _ = set.update_root(&desk.root(version)).unwrap();
    }
    set.finish_root().unwrap();
    assert_eq!(set.root().version, 11);

    // Bob's key is stolen: without it, two are left and both must sign.
    desk.ok("keys revoke bob --dir keys --out 12.request");
    // Old AND new: bob could help the old threshold, but then one of the new is missing.
    desk.ok("keys sign 12.request --key bob.pem --yes");
    desk.ok("keys sign 12.request --key alice.pem --yes");
    let (status, said, _) =
        desk.run("keys combine 12.request 12.request.bob.sig 12.request.alice.sig --dir keys");
    assert_eq!(status, 1, "{said}");
    assert!(
        said.contains("root version 11 asks for 2: enough"),
        "{said}"
    );
    assert!(
        said.contains("root version 12 asks for 2: 1 missing"),
        "{said}"
    );
    desk.sign_and_combine(12, &["p9"]);
    let _ = TrustedSet::from_root(&desk.root(11), Timestamp::now())
        .unwrap()
        .update_root(&desk.root(12))
        .unwrap();
    // From now on bob is a stranger, and too few are left to lose another one.
    desk.ok("keys root edit --dir keys --out 13.request");
    desk.fails("keys sign 13.request --key bob.pem --yes", "not asked");
    desk.fails(
        "keys revoke alice --dir keys --out 13.request",
        "--root-threshold",
    );

    // A root that skips the chain is refused as devices refuse it.
    let skipped = TrustedSet::from_root(&desk.root(1), Timestamp::now())
        .unwrap()
        .update_root(&desk.root(12))
        .unwrap_err();
    assert!(
        matches!(
            skipped,
            TrustError::Threshold { .. } | TrustError::NotNextRoot { .. }
        ),
        "{skipped}"
    );
}

#[test]
fn releases_are_signed_by_the_same_requests() {
    let operator = Operator::begin();
    std::fs::write(operator.file("p"), format!("{PASSPHRASE}\n")).unwrap();
    let with = "--passphrase-file p";
    for name in ["alice", "bob"] {
        operator.ok(&format!("keys generate {name} --dir {name} {with}"));
    }
    operator.ok(
        "keys root new --root alice/alice.pub --root bob/bob.pub --targets alice/alice.pub --targets bob/bob.pub \
         --out root.request",
    );
    for name in ["alice", "bob"] {
        operator.ok(&format!(
            "keys sign root.request --key {name}/{name}.pem --yes {with}"
        ));
    }
    operator.ok("keys combine root.request root.request.alice.sig root.request.bob.sig --dir keys");
    operator.ok("keys upload-root --dir keys");

    operator.pack(1);
    operator.ok("bundle sign p1 --keys keys --request targets.request");
    let shown = operator.ok("keys inspect targets.request");
    assert!(shown.contains("+ digits/1/manifest.json"), "{shown}");
    for name in ["alice", "bob"] {
        operator.ok(&format!(
            "keys sign targets.request --key {name}/{name}.pem --dir keys --yes {with}"
        ));
    }
    operator.ok("keys combine targets.request targets.request.alice.sig targets.request.bob.sig --out t.json");
    operator.ok("bundle publish p1 --targets t.json");
    assert!(operator.ok("bundle list").contains("digits"));

    // A targets key is rotated; the list is renewed by the keys of now, on what the old ones signed.
    operator.ok(&format!("keys generate carol --dir carol {with}"));
    operator.ok("keys revoke bob --replace-with carol/carol.pub --dir keys --out root.request");
    for name in ["alice", "bob", "carol"] {
        operator.ok(&format!(
            "keys sign root.request --key {name}/{name}.pem --yes {with}"
        ));
    }
    operator.ok(
        "keys combine root.request root.request.alice.sig root.request.bob.sig root.request.carol.sig --dir keys",
    );
    operator.ok("keys upload-root --dir keys");
    // What only withdrawn keys signed is not built on unseen: a thief of theirs may have filled it.
    for name in ["alice", "carol"] {
        let pem = operator.file(&format!("{name}/{name}.pem"));
        std::fs::copy(pem, operator.file(&format!("keys/{name}.pem"))).unwrap();
    }
    operator.pack(2);
    let sign = "bundle sign p2 --keys keys --key alice --key carol --out p2.json";
    let (status, _, said) = operator.run(&format!("{sign} {with}"));
    assert!(status == 1 && said.contains("withdrawn"), "{said}");
    operator.ok("bundle sign --renew --keys keys --request targets.request");
    for name in ["alice", "carol"] {
        operator.ok(&format!(
            "keys sign targets.request --key {name}/{name}.pem --dir keys --yes {with}"
        ));
    }
    operator.ok("keys combine targets.request targets.request.alice.sig targets.request.carol.sig --out t.json");
    operator.ok("bundle publish p1 --targets t.json");
}

#[test]
fn a_fleet_that_began_in_one_folder_goes_on_with_people() {
    let desk = Desk::new();
    desk.ok("keys init --dir keys --server-keys server.json --encrypt");
    let pem = String::from_utf8(desk.read("keys/root-1.pem")).unwrap();
    assert!(pem.contains("ENCRYPTED"));
    let shown = desk.ok("keys show --dir keys");
    assert!(
        shown.contains("targets-3") && !shown.contains("elsewhere (root"),
        "{shown}"
    );
    let written = desk.read("keys/root-2.pub");
    desk.ok("keys public keys/root-2.pem");
    assert_eq!(desk.read("keys/root-2.pub"), written);

    desk.ok("keys generate bob");
    desk.ok("keys rotate root-2 bob.pub --dir keys --out 2.request");
    for key in ["keys/root-1", "keys/root-3"] {
        desk.ok(&format!("keys sign 2.request --key {key}.pem --yes"));
    }
    desk.ok("keys combine 2.request 2.request.root-1.sig 2.request.root-3.sig --dir keys");
    let shown = desk.ok("keys show --dir keys");
    assert!(shown.contains("elsewhere (bob)"), "{shown}");
    desk.ok("keys status --dir keys --offline");
    let (status, shown, _) = desk.run("keys status --dir keys --offline --warn-days 800");
    assert!(status == 2 && shown.contains("EXPIRES SOON"), "{shown}");
    desk.ok("keys root edit --dir keys --expires-in 0s --out 3.request");
    for key in ["keys/root-1", "keys/root-3"] {
        desk.ok(&format!("keys sign 3.request --key {key}.pem --yes"));
    }
    desk.ok("keys combine 3.request 3.request.root-1.sig 3.request.root-3.sig --dir keys");
    let (status, shown, _) = desk.run("keys status --dir keys --offline");
    assert!(status == 3 && shown.contains("EXPIRED"), "{shown}");
}
