#![allow(clippy::unwrap_used)]
use super::*;
use crate::api::OnlineKeys;
use crate::keys::{Ceremony, init, load, trusted_root};
use crate::pack::{PackRequest, PackedBundle, pack};
use dunlin_protocol::trust::{Hashes, MetaFile, TrustedSet, new_snapshot, new_timestamp};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

fn quorum(root: &RootMetadata) -> Quorum {
    Quorum::of_root(root, Role::Targets)
}

struct Stage {
    folder: tempfile::TempDir,
    snapshot: SigningKey,
    timestamp: SigningKey,
    now: Timestamp,
}

/// A fleet's key folder, with online keys that the test holds.
fn stage() -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
    let snapshot = SigningKey::from_seed(&[1; 32]);
    let timestamp = SigningKey::from_seed(&[2; 32]);
    let online = OnlineKeys {
        snapshot: snapshot.public_key().to_json().clone(),
        timestamp: timestamp.public_key().to_json().clone(),
    };
    init(
        &folder.path().join("keys"),
        &Ceremony::default(),
        &online,
        now,
    )
    .unwrap();
    Stage {
        folder,
        snapshot,
        timestamp,
        now,
    }
}

impl Stage {
    fn dir(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    fn keys(&self, names: &[&str]) -> Vec<SigningKey> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        load(&self.dir(), &names).unwrap()
    }

    fn expires(&self) -> Timestamp {
        keys::later(self.now, std::time::Duration::from_secs(86_400))
    }

    fn bundle(&self, name: &str, change: impl FnOnce(&mut PackRequest)) -> PackedBundle {
        let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/digits/v1");
        let mut request = PackRequest::new(spec);
        change(&mut request);
        pack(&request, &self.folder.path().join(name)).unwrap().0
    }

    /// The workflow of a device over these targets.
    fn device(&self, targets: &[u8]) -> Result<TrustedSet, TrustError> {
        let root = std::fs::read(self.dir().join("1.root.json")).unwrap();
        let expires = self.expires();
        let meta = BTreeMap::from([("targets.json".to_owned(), MetaFile::of(1, targets))]);
        let snapshot =
            sign_envelope(new_snapshot(1, expires, &meta), &[&self.snapshot])?.to_bytes();
        let file = MetaFile::of(1, &snapshot);
        let timestamp =
            sign_envelope(new_timestamp(1, expires, &file), &[&self.timestamp])?.to_bytes();
        let mut set = TrustedSet::from_root(&root, self.now)?;
        set.finish_root()?;
        let _ = set.update_timestamp(&timestamp)?;
        set.update_snapshot(&snapshot)?;
        set.update_targets(targets)?;
        Ok(set)
    }
}

#[test]
fn keys_are_private_files_that_openssl_reads() {
    let stage = stage();
    let names = keys::key_names(&stage.dir()).unwrap();
    assert_eq!(
        names,
        [
            "root-1",
            "root-2",
            "root-3",
            "targets-1",
            "targets-2",
            "targets-3"
        ]
    );
    for name in names {
        let file = stage.dir().join(format!("{name}.pem"));
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
        let mut program = Command::new("openssl");
        let read = program
            .args(["pkey", "-noout", "-in"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(
            read.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&read.stderr)
        );
    }
    let mode = std::fs::metadata(stage.dir()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_ceremony_never_overwrites_keys_and_needs_sane_numbers() {
    let stage = stage();
    let key = stage.snapshot.public_key().to_json().clone();
    let online = OnlineKeys {
        snapshot: key.clone(),
        timestamp: key,
    };
    let again = init(&stage.dir(), &Ceremony::default(), &online, stage.now).unwrap_err();
    assert!(again.to_string().contains("nothing was changed"), "{again}");
    let high = Ceremony {
        targets_threshold: 4,
        ..Ceremony::default()
    };
    let elsewhere = stage.folder.path().join("other");
    let refused = init(&elsewhere, &high, &online, stage.now).unwrap_err();
    assert!(
        refused.to_string().contains("threshold 4 of 3"),
        "{refused}"
    );
    let none = load(&stage.dir(), &["targets-9".to_owned()]).unwrap_err();
    assert!(none.to_string().contains("targets-1, targets-2"), "{none}");
}

#[test]
fn a_device_takes_what_two_holders_signed_one_after_the_other() {
    let stage = stage();
    let root = trusted_root(&stage.dir(), stage.now).unwrap();
    let bundle = stage.bundle("v1", |_| {});
    let bundles = std::slice::from_ref(&bundle);
    let first = sign(bundles, None, &stage.keys(&["targets-1"]), stage.expires()).unwrap();
    assert_eq!(
        signature_count(&quorum(&root), &first.bytes).unwrap(),
        (1, 2)
    );
    let refused = stage.device(&first.bytes).unwrap_err();
    assert!(
        matches!(
            refused,
            TrustError::Threshold {
                got: 1,
                needed: 2,
                ..
            }
        ),
        "{refused}"
    );

    // The same key again is still one key.
    let same = add_signatures(&first.bytes, &stage.keys(&["targets-1"])).unwrap();
    assert_eq!(
        signature_count(&quorum(&root), &same.bytes).unwrap(),
        (1, 2)
    );

    let both = add_signatures(&first.bytes, &stage.keys(&["targets-3"])).unwrap();
    assert_eq!(
        signature_count(&quorum(&root), &both.bytes).unwrap(),
        (2, 2)
    );
    let set = stage.device(&both.bytes).unwrap();
    let target = set.target("digits/1/manifest.json").unwrap();
    let manifest = target.open_manifest(&bundle.manifest_bytes).unwrap();
    assert_eq!(*manifest, bundle.manifest);
}

#[test]
fn the_next_version_builds_only_on_what_root_keys_vouch_for() {
    let stage = stage();
    let root = trusted_root(&stage.dir(), stage.now).unwrap();
    let keys = stage.keys(&["targets-1", "targets-2"]);
    let v1 = stage.bundle("v1", |_| {});
    let v2 = stage.bundle("v2", |r| (r.version, r.rollback_floor) = (Some(2), Some(2)));
    let first = sign(std::slice::from_ref(&v1), None, &keys, stage.expires()).unwrap();
    let previous = verified_targets(&root, &first.bytes).unwrap();
    let second = sign(
        std::slice::from_ref(&v2),
        Some(&previous),
        &keys,
        stage.expires(),
    )
    .unwrap();
    assert_eq!(second.targets.version, 2);
    let listed: Vec<&str> = second.targets.targets.keys().map(String::as_str).collect();
    assert_eq!(listed, ["digits/1/manifest.json", "digits/2/manifest.json"]);

    let thin = sign(std::slice::from_ref(&v1), None, &keys[..1], stage.expires()).unwrap();
    assert!(verified_targets(&root, &thin.bytes).is_err());
    let below = sign(&[v1], Some(&second.targets), &keys, stage.expires()).unwrap_err();
    assert!(
        matches!(below, SignError::BelowFloor { floor: 2, .. }),
        "{below}"
    );
    let other = stage.bundle("other", |r| {
        (r.version, r.rollback_floor) = (Some(2), Some(1))
    });
    // The floor is in `custom`, not in the manifest: a lower one would pass as the same bundle.
    let lower = sign(&[other], Some(&second.targets), &keys, stage.expires()).unwrap_err();
    assert!(matches!(lower, SignError::LowerFloor { .. }), "{lower}");
    let mut changed = v2;
    changed.target.hashes = Hashes::of(b"other");
    let refused = sign(&[changed], Some(&second.targets), &keys, stage.expires()).unwrap_err();
    assert!(matches!(refused, SignError::Changed { .. }), "{refused}");
}

#[test]
fn a_server_that_hides_newer_targets_is_noticed() {
    let stage = stage();
    let keys = stage.keys(&["targets-1", "targets-2"]);
    let one = sign(&[], None, &keys, stage.expires()).unwrap();
    let two = sign(&[], Some(&one.targets), &keys, stage.expires()).unwrap();
    check_not_older(&stage.dir(), "targets", None).unwrap();
    check_not_older(&stage.dir(), "targets", Some(&two.bytes)).unwrap();
    check_not_older(&stage.dir(), "targets", Some(&two.bytes)).unwrap();
    let hidden = check_not_older(&stage.dir(), "targets", Some(&one.bytes)).unwrap_err();
    assert!(
        matches!(hidden, SignError::Older { seen: 2, .. }),
        "{hidden}"
    );
    assert!(check_not_older(&stage.dir(), "targets", None).is_err());
}

#[test]
fn only_targets_keys_may_sign_targets() {
    let stage = stage();
    let root = trusted_root(&stage.dir(), stage.now).unwrap();
    check_signers(&quorum(&root), &stage.keys(&["targets-2"])).unwrap();
    let refused = check_signers(&quorum(&root), &stage.keys(&["root-1"])).unwrap_err();
    assert!(
        refused.to_string().contains("not among the keys"),
        "{refused}"
    );
}

#[test]
fn a_signed_floor_never_falls_and_a_co_signer_sees_it() {
    let stage = stage();
    let floor = |name: &str, floor: u64| {
        stage.bundle(name, |request| {
            request.version = Some(5);
            request.rollback_floor = Some(floor);
        })
    };
    let keys = stage.keys(&["targets-1", "targets-2"]);
    let (high, low) = (floor("high", 3), floor("low", 2));
    let first = sign(&[high], None, &keys, stage.expires()).unwrap();
    let lowered = sign(&[low], Some(&first.targets), &keys, stage.expires());
    assert!(matches!(
        lowered,
        Err(SignError::LowerFloor {
            signed: 3,
            got: 2,
            ..
        })
    ));
    assert!(
        check_follows(&stage.dir(), "targets", &first.bytes)
            .unwrap()
            .is_none()
    );
    check_not_older(&stage.dir(), "targets", Some(&first.bytes)).unwrap();
    let next = sign(&[], Some(&first.targets), &keys, stage.expires()).unwrap();
    let seen = check_follows(&stage.dir(), "targets", &next.bytes)
        .unwrap()
        .unwrap();
    assert_eq!(seen.version, 1);
    check_not_older(&stage.dir(), "targets", Some(&next.bytes)).unwrap();
    let older = check_follows(&stage.dir(), "targets", &first.bytes);
    assert!(matches!(older, Err(SignError::Older { seen: 2, .. })));
}
