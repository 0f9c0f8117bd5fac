//! A small repository in memory, honest unless a test bends it.
#![allow(clippy::unwrap_used)]

mod attacks;
mod delegations;
mod golden;
mod properties;
mod rules;

use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;

use super::*;

pub(super) const NOW: &str = "2026-06-01T00:00:00Z";
pub(super) const LATER: &str = "2027-01-01T00:00:00Z";
pub(super) const PAST: &str = "2026-05-31T23:59:59Z";

pub(super) fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(super) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

/// The key seeds of each role and the thresholds: root 2 of 3, targets 2 of 2, one each online.
pub(super) type Keys = BTreeMap<Role, (Vec<u8>, u64)>;

pub(super) fn keys() -> Keys {
    BTreeMap::from([
        (Role::Root, (vec![1, 2, 3], 2)),
        (Role::Targets, (vec![4, 5], 2)),
        (Role::Snapshot, (vec![6], 1)),
        (Role::Timestamp, (vec![7], 1)),
    ])
}

pub(super) fn root_signed(version: u64, expires: &str, keys: &Keys) -> Value {
    let roles = keys.iter().map(|(role, (seeds, threshold))| {
        let public = seeds.iter().map(|&s| key(s).public_key()).collect();
        (*role, (public, *threshold))
    });
    new_root(version, time(expires), &roles.collect()).unwrap()
}

pub(super) fn signed_by(signed: Value, seeds: &[u8]) -> Vec<u8> {
    let keys: Vec<SigningKey> = seeds.iter().map(|&s| key(s)).collect();
    let keys: Vec<&SigningKey> = keys.iter().collect();
    sign_envelope(signed, &keys).unwrap().to_bytes()
}

pub(super) fn root(version: u64, keys: &Keys, signers: &[u8]) -> Vec<u8> {
    signed_by(root_signed(version, LATER, keys), signers)
}

pub(super) fn custom(version: u64, rollback_floor: u64) -> TargetCustom {
    TargetCustom {
        family: "digits".parse().unwrap(),
        version,
        hardware: vec!["x86_64".to_owned()],
        rollback_floor,
        kind: "model".to_owned(),
    }
}

pub(super) fn entry(version: u64, rollback_floor: u64) -> TargetEntry {
    let path = format!("digits/{version}/manifest.json");
    TargetEntry::of(path, b"content", &custom(version, rollback_floor))
}

/// One state of the repository; every field may be bent before [`Release::files`] signs it.
#[derive(Debug, Clone)]
pub(super) struct Release {
    pub(super) targets_version: u64,
    pub(super) snapshot_version: u64,
    pub(super) timestamp_version: u64,
    pub(super) entries: Vec<TargetEntry>,
    pub(super) extra_meta: BTreeMap<String, MetaFile>,
    pub(super) expires: BTreeMap<Role, &'static str>,
    pub(super) signers: BTreeMap<Role, Vec<u8>>,
}

pub(super) struct Files {
    pub(super) targets: Vec<u8>,
    pub(super) snapshot: Vec<u8>,
    pub(super) timestamp: Vec<u8>,
}

/// A release in which all versions are `n`.
pub(super) fn release(n: u64) -> Release {
    Release {
        targets_version: n,
        snapshot_version: n,
        timestamp_version: n,
        entries: vec![entry(1, 0)],
        extra_meta: BTreeMap::new(),
        expires: BTreeMap::new(),
        signers: BTreeMap::from([
            (Role::Targets, vec![4, 5]),
            (Role::Snapshot, vec![6]),
            (Role::Timestamp, vec![7]),
        ]),
    }
}

impl Release {
    fn expiry(&self, role: Role) -> Timestamp {
        time(self.expires.get(&role).copied().unwrap_or(LATER))
    }

    pub(super) fn files(&self) -> Files {
        let sign = |role: Role, signed| signed_by(signed, &self.signers[&role]);
        let signed = new_targets(
            self.targets_version,
            self.expiry(Role::Targets),
            &self.entries,
        );
        let targets = sign(Role::Targets, signed);
        let mut meta = self.extra_meta.clone();
        let listed = MetaFile::of(self.targets_version, &targets);
        meta.entry("targets.json".to_owned()).or_insert(listed);
        let signed = new_snapshot(self.snapshot_version, self.expiry(Role::Snapshot), &meta);
        let snapshot = sign(Role::Snapshot, signed);
        let listed = MetaFile::of(self.snapshot_version, &snapshot);
        let timestamp = self.timestamp(&listed);
        Files {
            targets,
            snapshot,
            timestamp,
        }
    }

    pub(super) fn timestamp(&self, snapshot: &MetaFile) -> Vec<u8> {
        let expires = self.expiry(Role::Timestamp);
        let signed = new_timestamp(self.timestamp_version, expires, snapshot);
        signed_by(signed, &self.signers[&Role::Timestamp])
    }
}

/// A set whose root chain has ended at version 1.
pub(super) fn rooted() -> TrustedSet {
    let mut set = TrustedSet::from_root(&root(1, &keys(), &[1, 2]), time(NOW)).unwrap();
    set.finish_root().unwrap();
    set
}

/// A set that holds `stored` as a device does after a restart.
pub(super) fn restarted(stored: &Files) -> TrustedSet {
    let mut set = rooted();
    set.load_trusted_timestamp(&stored.timestamp).unwrap();
    set.load_trusted_snapshot(&stored.snapshot).unwrap();
    set.load_trusted_targets(&stored.targets).unwrap();
    set
}

/// Everything after root, as an agent does it.
pub(super) fn refresh(set: &mut TrustedSet, files: &Files) -> Result<Freshness, TrustError> {
    let freshness = set.update_timestamp(&files.timestamp)?;
    if set.snapshot_to_fetch()?.is_some() {
        set.update_snapshot(&files.snapshot)?;
    }
    if set.targets_to_fetch()?.is_some() {
        set.update_targets(&files.targets)?;
    }
    set.targets()?;
    Ok(freshness)
}

/// A whole first update from `files`.
pub(super) fn fresh(files: &Files) -> Result<TrustedSet, TrustError> {
    let mut set = rooted();
    let _ = refresh(&mut set, files)?;
    Ok(set)
}

/// What a device that holds `stored` says to `offered`.
pub(super) fn refusal(stored: &Release, offered: &Files) -> TrustError {
    refresh(&mut restarted(&stored.files()), offered).unwrap_err()
}
