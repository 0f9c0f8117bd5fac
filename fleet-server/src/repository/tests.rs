#![allow(clippy::unwrap_used, clippy::expect_used)]

//! The repository against the devices' own rules: rotations, delegations, cuts, clocks, backups.

mod lists;

use super::*;
use crate::blobs::Blobs;
use crate::resign;
use crate::store::Store;
use dunlin_protocol::trust::{
    Delegations, Freshness, OnlineKeys, PathScope, SigningKey, TrustError, add_signature,
    new_delegating_targets, new_root, new_targets, sign_envelope,
};
use jiff::SignedDuration;
use std::collections::BTreeMap;
use std::sync::Arc;

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn day(n: i32) -> Timestamp {
    "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + DAY * n
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

/// A repository with its state folder, one root key (1), one targets key (2).
struct Fixture {
    state: tempfile::TempDir,
    repository: Arc<Repository>,
    blobs: Blobs,
    runtime: tokio::runtime::Runtime,
}

impl Fixture {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let repository = Arc::new(Repository::open(state.path()).unwrap());
        let blobs = Blobs::open(&state.path().join("blobs")).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let fixture = Self {
            state,
            repository,
            blobs,
            runtime,
        };
        let root = fixture.root(1, fixture.repository.online_keys().unwrap(), 900);
        fixture.repository.put_root(&root, day(0)).unwrap();
        fixture
    }

    /// The same folder, as a process that starts finds it.
    fn restarted(self) -> Self {
        let repository = Arc::new(Repository::open(self.state.path()).unwrap());
        Self { repository, ..self }
    }

    fn root(&self, version: u64, online: (Key, Key), days: i32) -> Vec<u8> {
        let roles = BTreeMap::from([
            (Role::Root, (vec![key(1).public_key()], 1)),
            (Role::Targets, (vec![key(2).public_key()], 1)),
            (Role::Snapshot, (vec![online.0], 1)),
            (Role::Timestamp, (vec![online.1], 1)),
        ]);
        let signed = new_root(version, day(days), &roles).unwrap();
        sign_envelope(signed, &[&key(1)]).unwrap().to_bytes()
    }

    fn publish(&self, submission: &Submission, now: Timestamp) -> Result<Published> {
        let handle = self.runtime.handle();
        self.repository
            .publish(submission, &self.blobs, handle, now)
    }

    fn publish_targets(&self, version: u64, now: Timestamp) {
        let targets = Some(targets(version, None));
        let submission = Submission {
            targets,
            ..Submission::default()
        };
        self.publish(&submission, now).unwrap();
    }

    fn store(&self) -> Store {
        let path = self.state.path().join("dunlin.db");
        self.runtime.block_on(Store::open(&path)).unwrap()
    }

    /// What the running server does every minute; the versions after it.
    fn look(&self, store: &Store, now: Timestamp) -> OnlineVersions {
        let mut belief = resign::Belief::default();
        let look = resign::once(&self.repository, store, &mut belief, now);
        self.runtime.block_on(look).unwrap();
        self.repository.online_versions().unwrap().unwrap()
    }

    fn file(&self, name: &str) -> Vec<u8> {
        self.repository.metadata_file(name).unwrap().expect(name)
    }
}

fn targets(version: u64, delegations: Option<&Delegations>) -> Vec<u8> {
    let none: [&TargetEntry; 0] = [];
    let signed = match delegations {
        Some(given) => new_delegating_targets(version, day(365), none, given),
        None => new_targets(version, day(365), none),
    };
    sign_envelope(signed, &[&key(2)]).unwrap().to_bytes()
}

/// A device: what it has stored, and the update cycle that every device runs.
#[derive(Default, Clone)]
struct Device {
    root: Vec<u8>,
    timestamp: Option<Vec<u8>>,
    snapshot: Option<Vec<u8>>,
}

impl Device {
    fn enrolled(fixture: &Fixture) -> Self {
        Self {
            root: fixture.repository.first_root().unwrap().unwrap(),
            ..Self::default()
        }
    }

    /// One update; the targets version it ends with.
    fn update(&mut self, fixture: &Fixture, now: Timestamp) -> Result<u64, TrustError> {
        let mut set = TrustedSet::from_root(&self.root, now)?;
        while let Some(bytes) = fixture
            .repository
            .metadata_file(&set.root_to_fetch().name)
            .unwrap()
        {
            if set.update_root(&bytes)? == OnlineKeys::Rotated {
                (self.timestamp, self.snapshot) = (None, None);
            }
            self.root = bytes;
        }
        set.finish_root()?;
        if let Some(stored) = &self.timestamp {
            let _ = set.load_trusted_timestamp(stored);
        }
        let timestamp = fixture.file("timestamp.json");
        if set.update_timestamp(&timestamp)? == Freshness::New {
            self.timestamp = Some(timestamp);
        }
        if let Some(stored) = &self.snapshot {
            let _ = set.load_trusted_snapshot(stored);
        }
        if let Some(request) = set.snapshot_to_fetch()? {
            let snapshot = fixture.file(&request.name);
            set.update_snapshot(&snapshot)?;
            self.snapshot = Some(snapshot);
        }
        if let Some(request) = set.targets_to_fetch()? {
            set.update_targets(&fixture.file(&request.name))?;
        }
        Ok(set.targets()?.version)
    }
}

#[test]
fn new_online_keys_take_over_with_the_root_that_lists_them() {
    let fixture = Fixture::new();
    fixture.publish_targets(1, day(0));
    let mut device = Device::enrolled(&fixture);
    assert_eq!(device.update(&fixture, day(0)), Ok(1));
    let before = fixture.repository.online_versions().unwrap().unwrap();

    let next = fixture.repository.make_next_keys().unwrap().unwrap();
    assert_eq!(
        fixture.repository.make_next_keys().unwrap(),
        Some(next.clone())
    );
    // Until a root lists them, the old ones sign.
    fixture.publish_targets(2, day(0));
    assert_eq!(device.update(&fixture, day(0)), Ok(2));
    let root = fixture.root(2, next.clone(), 900);
    fixture.repository.put_root(&root, day(0)).unwrap();

    assert_eq!(device.update(&fixture, day(0)), Ok(2));
    let after = fixture.repository.online_versions().unwrap().unwrap();
    assert!(after.snapshot > before.snapshot && after.timestamp > before.timestamp);
    assert_eq!(fixture.repository.online_keys().unwrap(), next);
    assert_eq!(fixture.repository.next_online_keys(), None);
    // The old keys are gone from the disk, the new ones survive a restart.
    let fixture = fixture.restarted();
    assert_eq!(fixture.repository.online_keys().unwrap(), next);
    fixture.publish_targets(3, day(1));
    assert_eq!(device.update(&fixture, day(1)), Ok(3));
}

#[test]
fn a_cut_between_the_new_root_and_the_new_signatures_is_made_up_for_at_the_start() {
    let fixture = Fixture::new();
    fixture.publish_targets(1, day(0));
    let mut device = Device::enrolled(&fixture);
    device.update(&fixture, day(0)).unwrap();
    let next = fixture.repository.make_next_keys().unwrap().unwrap();
    let root = fixture.root(2, next, 900);
    // Nothing but the root was written when the power went.
    let path = fixture.state.path().join("repository/metadata/2.root.json");
    std::fs::write(path, root).unwrap();
    assert!(device.clone().update(&fixture, day(0)).is_err());
    let fixture = fixture.restarted();
    assert!(fixture.repository.resign_online(day(0)).unwrap());
    assert_eq!(device.update(&fixture, day(0)), Ok(1));
    assert!(!fixture.repository.resign_online(day(0)).unwrap());
}

#[test]
fn a_thief_who_pushed_versions_to_the_end_is_shut_out_by_a_rotation() {
    let fixture = Fixture::new();
    fixture.publish_targets(1, day(0));
    let store = fixture.store();
    let honest = fixture.look(&store, day(0));
    // With the stolen online keys: a version that honest ones never reach.
    let absurd = OnlineVersions {
        snapshot: u64::MAX - 1,
        timestamp: u64::MAX - 1,
    };
    *fixture.repository.floor.lock().unwrap() = absurd;
    assert!(fixture.repository.resign_online(day(0)).unwrap());
    fixture.repository.raise_floor(absurd);
    let mut device = Device::enrolled(&fixture);
    device.update(&fixture, day(0)).unwrap();
    let fixture = fixture.restarted();
    assert!(fixture.look(&store, day(0)).timestamp > absurd.timestamp);
    assert_eq!(
        fixture.runtime.block_on(store.online_versions()).unwrap(),
        honest
    );
    let next = fixture.repository.make_next_keys().unwrap().unwrap();
    let root = fixture.root(2, next, 900);
    fixture.repository.put_root(&root, day(0)).unwrap();
    let versions = fixture.repository.online_versions().unwrap().unwrap();
    let counted_on = OnlineVersions {
        snapshot: honest.snapshot + 1,
        timestamp: honest.timestamp + 1,
    };
    assert_eq!(versions, counted_on);
    // The looks after it leave it at that, also those of a server that starts.
    assert_eq!(fixture.look(&store, day(0)), counted_on);
    let fixture = fixture.restarted();
    assert_eq!(fixture.look(&store, day(0)), counted_on);
    assert_eq!(device.update(&fixture, day(0)), Ok(1));
    fixture.publish_targets(2, day(0));
    assert_eq!(device.update(&fixture, day(0)), Ok(2));
}

#[test]
fn a_chain_of_roots_is_set_at_once_even_if_those_between_have_expired() {
    let fixture = Fixture::new();
    let own = || fixture.repository.online_keys().unwrap();
    let stranger = (key(8).public_key(), key(9).public_key());
    let chain: Vec<Vec<u8>> = vec![
        fixture.root(1, own(), 900),
        fixture.root(2, own(), 10),
        fixture.root(3, stranger, 10),
        fixture.root(4, own(), 900),
    ];
    // One by one, version 2 is a root that is no longer valid.
    let alone = fixture.repository.put_root(&chain[1], day(50)).unwrap_err();
    assert!(alone.to_string().contains("expired"), "{alone}");
    assert_eq!(fixture.repository.put_roots(&chain, day(50)).unwrap(), 4);
    assert_eq!(fixture.repository.put_roots(&chain, day(50)).unwrap(), 4);
    fixture.publish_targets(1, day(50));
    assert_eq!(Device::enrolled(&fixture).update(&fixture, day(50)), Ok(1));
    // A chain with a break sets nothing.
    let broken = vec![fixture.root(5, own(), 900), fixture.root(7, own(), 900)];
    let refused = fixture.repository.put_roots(&broken, day(50)).unwrap_err();
    assert!(refused.to_string().contains("version 7"), "{refused}");
    assert_eq!(fixture.repository.root_version().unwrap(), Some(4));
}

#[test]
fn timestamps_are_signed_anew_whatever_the_clock_did() {
    let fixture = Fixture::new();
    assert!(!fixture.repository.resign_online(day(0)).unwrap());
    fixture.publish_targets(1, day(0));
    let mut device = Device::enrolled(&fixture);
    device.update(&fixture, day(0)).unwrap();
    let mut last = fixture.repository.online_versions().unwrap().unwrap();
    // A start after a month, an ordinary half day, a clock that ran ten years ahead, and back.
    for (now, snapshot_too) in [
        (day(30), true),
        (day(30) + SignedDuration::from_hours(13), false),
        (day(400), true),
        (day(31), true),
    ] {
        assert!(fixture.repository.resign_online(now).unwrap(), "{now}");
        assert!(!fixture.repository.resign_online(now).unwrap(), "{now}");
        let versions = fixture.repository.online_versions().unwrap().unwrap();
        assert!(versions.timestamp > last.timestamp, "{now}");
        assert_eq!(versions.snapshot > last.snapshot, snapshot_too, "{now}");
        last = versions;
    }
    assert_eq!(device.update(&fixture, day(31)), Ok(1));
}

#[test]
fn a_restored_backup_never_shows_devices_a_version_twice() {
    let fixture = Fixture::new();
    fixture.publish_targets(1, day(0));
    let backup: Vec<(String, Vec<u8>)> = ["timestamp.json", "1.snapshot.json"]
        .iter()
        .map(|name| ((*name).to_owned(), fixture.file(name)))
        .collect();
    for n in 1..=5 {
        fixture.repository.resign_online(day(n)).unwrap();
    }
    fixture.publish_targets(2, day(5));
    let mut device = Device::enrolled(&fixture);
    device.update(&fixture, day(5)).unwrap();
    let seen = fixture.repository.online_versions().unwrap().unwrap();

    for (name, bytes) in backup {
        let path = fixture.state.path().join("repository/metadata").join(name);
        std::fs::write(path, bytes).unwrap();
    }
    let fixture = fixture.restarted();
    fixture.repository.raise_floor(seen);
    // Old content, but above what the device has seen; what it refuses is only the older list.
    assert!(fixture.repository.resign_online(day(0)).unwrap());
    let now = fixture.repository.online_versions().unwrap().unwrap();
    assert!(now.timestamp > seen.timestamp && now.snapshot > seen.snapshot);
    let refused = device.update(&fixture, day(0)).unwrap_err();
    assert_eq!(refused.code(), "rollback");
    fixture.publish_targets(3, day(0));
    assert_eq!(device.update(&fixture, day(0)), Ok(3));
}

/// A delegation of `vision/*/*` to `team` (key 5), as top-level targets sign it.
fn delegated_to(team: u8) -> Delegations {
    let mut delegations = Delegations::none();
    let scope = PathScope::patterns(["vision/*/*"]);
    delegations
        .delegate("vision", &[key(team).public_key()], 1, true, scope)
        .unwrap();
    delegations
}

fn team_list(version: u64, signer: u8, paths: &[&str]) -> Vec<u8> {
    let custom = |path: &str| TargetCustom {
        family: path.split('/').next().unwrap().parse().unwrap(),
        version: 1,
        hardware: vec!["any".to_owned()],
        rollback_floor: 0,
        kind: "model".to_owned(),
    };
    let entries: Vec<TargetEntry> = paths
        .iter()
        .map(|path| TargetEntry::of(*path, b"{}", &custom(path)))
        .collect();
    let signed = new_targets(version, day(300), &entries);
    sign_envelope(signed, &[&key(signer)]).unwrap().to_bytes()
}

fn team_submission(list: Vec<u8>) -> Submission {
    Submission {
        delegated: BTreeMap::from([("vision".to_owned(), list)]),
        ..Submission::default()
    }
}

#[test]
fn a_team_publishes_its_family_and_nothing_else() {
    let fixture = Fixture::new();
    fixture.publish_targets(1, day(0));
    let refused = |list: Vec<u8>| {
        let error = fixture.publish(&team_submission(list), day(0)).unwrap_err();
        error.to_string()
    };
    let said = refused(team_list(1, 5, &[]));
    assert!(said.contains("no published targets delegate"), "{said}");

    let targets_2 = Submission {
        targets: Some(targets(2, Some(&delegated_to(5)))),
        ..Submission::default()
    };
    fixture.publish(&targets_2, day(0)).unwrap();
    // Signed by a stranger, expired, a path of another family, a manifest that is not there.
    assert!(refused(team_list(1, 6, &[])).contains("valid signatures of 0 of the 1"));
    let said = refused(team_list(1, 5, &["digits/1/manifest.json"]));
    assert!(said.contains("no delegation leads"), "{said}");
    let said = refused(team_list(1, 5, &["vision/1/manifest.json"]));
    assert!(said.contains("its manifest"), "{said}");
    let late = fixture.publish(&team_submission(team_list(1, 5, &[])), day(301));
    assert!(late.unwrap_err().to_string().contains("expired"));

    let mut device = Device::enrolled(&fixture);
    device.update(&fixture, day(0)).unwrap();
    fixture
        .publish(&team_submission(team_list(1, 5, &[])), day(0))
        .unwrap();
    assert_eq!(device.update(&fixture, day(0)), Ok(2));
    let snapshot = Envelope::parse(device.snapshot.as_ref().unwrap(), SNAPSHOT_MAX_BYTES).unwrap();
    let snapshot = SnapshotMetadata::read(&snapshot).unwrap();
    assert_eq!(snapshot.meta["vision.json"].version, 1);
    assert!(!fixture.file("1.vision.json").is_empty());
    // The same version with other content never.
    let mut other = Envelope::parse(&team_list(1, 5, &[]), 10_000).unwrap();
    add_signature(&mut other, &key(7)).unwrap();
    assert!(refused(other.to_bytes()).contains("version 1 is published already"));
    let roles: Vec<String> = fixture
        .repository
        .expiries(day(0))
        .unwrap()
        .into_iter()
        .map(|e| e.role)
        .collect();
    assert_eq!(
        roles,
        ["root", "snapshot", "timestamp", "targets", "vision"]
    );
}

#[test]
fn a_delegation_taken_back_ends_the_teams_say_and_breaks_no_device() {
    let fixture = Fixture::new();
    let submission = Submission {
        targets: Some(targets(1, Some(&delegated_to(5)))),
        ..team_submission(team_list(1, 5, &[]))
    };
    fixture.publish(&submission, day(0)).unwrap();
    let mut device = Device::enrolled(&fixture);
    device.update(&fixture, day(0)).unwrap();
    // To another team first, then to nobody.
    for (version, delegations) in [(2, delegated_to(6)), (3, Delegations::none())] {
        let submission = Submission {
            targets: Some(targets(version, Some(&delegations))),
            ..Submission::default()
        };
        fixture.publish(&submission, day(0)).unwrap();
        // A snapshot never loses a file: devices that knew it go on.
        assert_eq!(device.update(&fixture, day(0)), Ok(version));
        let old_team = fixture.publish(&team_submission(team_list(2, 5, &[])), day(0));
        assert!(old_team.is_err(), "{version}");
    }
    assert!(fixture.repository.published().unwrap().is_some());
}

#[test]
fn a_cut_between_any_two_writes_leaves_the_old_state_or_the_new() {
    let mut cuts = 0;
    for writes in 0.. {
        let fixture = Fixture::new();
        let submission = Submission {
            targets: Some(targets(1, Some(&delegated_to(5)))),
            ..team_submission(team_list(1, 5, &[]))
        };
        fixture.publish(&submission, day(0)).unwrap();
        let mut device = Device::enrolled(&fixture);
        device.update(&fixture, day(0)).unwrap();
        let next = fixture.repository.make_next_keys().unwrap().unwrap();
        let root = fixture.root(2, next, 900);
        let submission = Submission {
            targets: Some(targets(2, Some(&delegated_to(5)))),
            ..team_submission(team_list(2, 5, &[]))
        };

        let cut = files::cut_after(writes, || {
            fixture.repository.put_root(&root, day(0))?;
            fixture.publish(&submission, day(0)).map(drop)
        });
        let done = cut.is_ok();
        cuts += u32::from(!done);
        let fixture = fixture.restarted();
        fixture.repository.resign_online(day(0)).unwrap();
        let got = device.update(&fixture, day(0)).unwrap();
        assert!(got == 1 || got == 2, "after {writes} writes");
        assert!(fixture.repository.published().unwrap().is_some());
        // What was broken off is done again.
        fixture.repository.put_root(&root, day(0)).unwrap();
        fixture.publish(&submission, day(0)).unwrap();
        assert_eq!(
            device.update(&fixture, day(0)),
            Ok(2),
            "after {writes} writes"
        );
        if done {
            break;
        }
    }
    assert!(cuts >= 8, "{cuts}");
}
