//! The client workflow of the TUF specification (1.0.34, section 5) as a pure state machine.
//!
//! A caller fetches and stores; a [`TrustedSet`] decides. One set serves one update cycle:
//!
//! ```text
//! from_root(stored root, now)                    5.1, 5.2
//! update_root(N+1) … until there is none         5.3      store each; if keys rotated, first delete
//!                                                         the stored timestamp and snapshot
//! finish_root()                                  5.3.10
//! load_trusted_timestamp(stored)                          base for rollback checks; errors: as if absent
//! update_timestamp(fetched)                      5.4      store if new
//! load_trusted_snapshot(stored)                           likewise
//! snapshot_to_fetch() → update_snapshot(fetched) 5.5      store
//! load_trusted_targets(stored)                            saves a download if still the listed one
//! targets_to_fetch() → update_targets(fetched)   5.6      store
//! find(path) → a delegated file that is needed   5.6.7    update_delegated(stored or fetched), store
//!              or the target                     5.7
//! ```
//!
//! A failed step changes nothing in the set.

use jiff::Timestamp;

use std::collections::BTreeMap;

use super::TrustError;
use super::hashes::{Measured, check_bytes};
use super::metadata::{
    Envelope, MetaFile, Metadata, SnapshotMetadata, TimestampMetadata, read_header,
};
use super::role::{Role, RoleName};
use super::root::{RootMetadata, rotated_online_keys};
use super::targets::{TargetCustom, TargetEntry, TargetsMetadata};
use super::{ROOT_MAX_BYTES, ROOT_ROTATIONS_MAX};
use crate::bundle::Manifest;

mod delegated;

use delegated::Chain;
pub use delegated::{DelegatedFile, FoundTarget, Lookup};

/// Something that signatures, lengths and hashes vouch for.
///
/// Only this module makes one: holding it is the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// The value, for reading.
    #[must_use]
    pub fn get(&self) -> &T {
        &self.0
    }

    /// Gives up the proof and returns the value.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> std::ops::Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl Verified<TargetEntry> {
    /// Accepts `bytes` only if they are the target's content.
    ///
    /// # Errors
    /// Longer than signed (endless data), shorter, or another hash.
    pub fn verify_bytes<'a>(&self, bytes: &'a [u8]) -> Result<Verified<&'a [u8]>, TrustError> {
        self.check_verifiable()?;
        check_bytes(&self.path, Some(self.length), &self.hashes, bytes)?;
        Ok(Verified(bytes))
    }

    /// Reads the bundle's manifest from `bytes`, which must be the target's content and must be
    /// of the family, version and kind that `custom.dunlin` was signed with: the rollback floor was
    /// checked against those.
    ///
    /// # Errors
    /// As [`Self::verify_bytes`], or [`TrustError::BadManifest`].
    pub fn open_manifest(self, bytes: &[u8]) -> Result<Verified<Manifest>, TrustError> {
        let content = self.verify_bytes(bytes)?;
        let bad = |reason: String| TrustError::BadManifest {
            path: self.path.clone(),
            reason,
        };
        let manifest = Manifest::parse(content.get()).map_err(|e| bad(e.to_string()))?;
        let custom = TargetCustom::read(&self).map_err(|e| bad(e.to_string()))?;
        let signed = (&custom.family, custom.version, &custom.kind);
        let found = (&manifest.family, manifest.version, &manifest.kind);
        if signed != found {
            let (family, version, kind) = signed;
            return Err(bad(format!(
                "it is {} {} version {}, but the target is signed as {kind} {family} version {version}",
                manifest.kind, manifest.family, manifest.version
            )));
        }
        Ok(Verified(manifest))
    }
}

/// Whether the timestamp offered is newer than the trusted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Freshness {
    /// Newer: store it.
    New,
    /// The trusted one is still the newest: nothing to store.
    Unchanged,
}

/// Whether a new root withdrew keys of timestamp or snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum OnlineKeys {
    /// It did not.
    Kept,
    /// It did: delete the stored timestamp and snapshot *before* storing this root, so that a power
    /// loss in between cannot keep them.
    Rotated,
}

/// A file to fetch next, and how much of it to read at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRequest {
    /// Name in the repository.
    pub name: String,
    /// Longest answer to accept, in bytes; stop reading beyond.
    pub max_bytes: u64,
}

/// Metadata with the length and hashes of the file it came in.
#[derive(Debug, Clone)]
struct Received<T> {
    metadata: T,
    file: Measured,
}

impl<T: Metadata> Received<T> {
    /// A file of a top-level role.
    fn open(root: &RootMetadata, bytes: &[u8]) -> Result<Self, TrustError> {
        Ok(Self {
            metadata: open(root, bytes)?,
            file: Measured::of(bytes),
        })
    }

    /// Is this the very file of `role` that `listed` describes, and still valid?
    fn check(&self, role: &RoleName, listed: &MetaFile, now: Timestamp) -> Result<(), TrustError> {
        let what = role.to_string();
        self.file.check(&what, listed.length, &listed.hashes)?;
        if self.metadata.version() != listed.version {
            return Err(TrustError::VersionMismatch {
                role: role.clone(),
                expected: listed.version,
                got: self.metadata.version(),
            });
        }
        self.metadata.check_expiry(role, now)
    }
}

/// The metadata trusted so far in one update cycle.
#[derive(Debug, Clone)]
pub struct TrustedSet {
    now: Timestamp,
    root: RootMetadata,
    roots_added: u64,
    root_finished: bool,
    online_keys: OnlineKeys,
    timestamp: Option<TimestampMetadata>,
    /// The server's timestamp was seen in this cycle.
    timestamp_confirmed: bool,
    snapshot: Option<Received<SnapshotMetadata>>,
    targets: Option<Received<TargetsMetadata>>,
    /// Each delegated role's metadata, by the chain of delegations along which it was verified.
    delegated: BTreeMap<Chain, Received<TargetsMetadata>>,
}

impl TrustedSet {
    /// Begins a cycle with the root that is already trusted, at the fixed time `now` (5.1, 5.2).
    ///
    /// The root's own expiry does not matter yet: it may be what vouches for the next one.
    ///
    /// # Errors
    /// Not root metadata, or not signed by the keys that it names itself.
    pub fn from_root(bytes: &[u8], now: Timestamp) -> Result<Self, TrustError> {
        let (root, envelope) = open_root(bytes)?;
        root.verify(RootMetadata::ROLE, &envelope)?;
        Ok(Self {
            now,
            root,
            roots_added: 0,
            root_finished: false,
            online_keys: OnlineKeys::Kept,
            timestamp: None,
            timestamp_confirmed: false,
            snapshot: None,
            targets: None,
            delegated: BTreeMap::new(),
        })
    }

    /// The newest trusted root.
    #[must_use]
    pub fn root(&self) -> &RootMetadata {
        &self.root
    }

    /// The fixed time of this cycle.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The root to ask for next; if the repository has none, call [`Self::finish_root`] (5.3.2, 5.3.3).
    #[must_use]
    pub fn root_to_fetch(&self) -> FileRequest {
        FileRequest {
            name: RootMetadata::ROLE.file_name(self.root.version.saturating_add(1), true),
            max_bytes: ROOT_MAX_BYTES as u64,
        }
    }

    /// Takes the next root (5.3.4 to 5.3.9).
    ///
    /// # Errors
    /// Threshold of the trusted or of the new root's keys not met, version not exactly the next,
    /// more than [`ROOT_ROTATIONS_MAX`] in one cycle, called after [`Self::finish_root`].
    pub fn update_root(&mut self, bytes: &[u8]) -> Result<OnlineKeys, TrustError> {
        if self.root_finished {
            return Err(TrustError::OutOfOrder {
                step: "updating root",
                needs: "root is fixed for the rest of this update",
            });
        }
        if self.roots_added >= ROOT_ROTATIONS_MAX {
            let max = ROOT_ROTATIONS_MAX;
            return Err(TrustError::TooManyRoots { max });
        }
        let (new, envelope) = open_root(bytes)?;
        // 5.3.4 Arbitrary software attack: signed by the trusted root's keys and by its own.
        self.root.verify(RootMetadata::ROLE, &envelope)?;
        new.verify(RootMetadata::ROLE, &envelope)?;
        // 5.3.5 Rollback attack: exactly the next version.
        let expected = self.root.version.saturating_add(1);
        if new.version != expected {
            let got = new.version;
            return Err(TrustError::NotNextRoot { expected, got });
        }
        // 5.3.7, 5.3.8 The new root becomes the trusted one; the caller stores it.
        let step = match rotated_online_keys(&self.root, &new) {
            true => OnlineKeys::Rotated,
            false => OnlineKeys::Kept,
        };
        if step == OnlineKeys::Rotated {
            self.online_keys = step;
        }
        self.root = new;
        self.roots_added += 1;
        Ok(step)
    }

    /// Ends the root chain; from here on root is fixed (5.3.10, 5.3.11).
    ///
    /// # Errors
    /// [`TrustError::Expired`] if the newest root is no longer valid.
    pub fn finish_root(&mut self) -> Result<(), TrustError> {
        self.root.check_expiry(&Role::Root.into(), self.now)?;
        self.root_finished = true;
        Ok(())
    }

    /// Takes the stored timestamp as the base for rollback checks; it may have expired.
    ///
    /// # Errors
    /// Not signed by the current root's keys, or from before the online keys were rotated: go on
    /// as if none had been stored.
    pub fn load_trusted_timestamp(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        self.check_loadable(TimestampMetadata::ROLE, self.timestamp.is_some())?;
        self.timestamp = Some(open(&self.root, bytes)?);
        Ok(())
    }

    /// Takes the server's timestamp (5.4).
    ///
    /// # Errors
    /// Threshold, rollback of its own or of the snapshot's version, expired. An unchanged
    /// timestamp that has expired is refused too: that is what a freeze looks like.
    pub fn update_timestamp(&mut self, bytes: &[u8]) -> Result<Freshness, TrustError> {
        self.check_root_finished("updating timestamp")?;
        // 5.4.2 Arbitrary software attack.
        let new: TimestampMetadata = open(&self.root, bytes)?;
        if let Some(trusted) = &self.timestamp {
            // 5.4.3.1 Rollback of timestamp; an equal version ends the step quietly.
            check_rollback("timestamp", trusted.version, new.version)?;
            if new.version == trusted.version {
                trusted.check_expiry(&Role::Timestamp.into(), self.now)?;
                self.timestamp_confirmed = true;
                return Ok(Freshness::Unchanged);
            }
            // 5.4.3.2 Rollback of the snapshot that it names.
            let (old, next) = (trusted.snapshot.version, new.snapshot.version);
            check_rollback("snapshot (as listed in timestamp)", old, next)?;
        }
        // 5.4.4 Freeze attack.
        new.check_expiry(&Role::Timestamp.into(), self.now)?;
        // 5.4.5 The new timestamp becomes the trusted one; the caller stores it.
        self.timestamp = Some(new);
        self.timestamp_confirmed = true;
        Ok(Freshness::New)
    }

    /// Takes the stored snapshot: as the base for rollback checks, and as the current one if the
    /// timestamp still names it. It may have expired.
    ///
    /// # Errors
    /// As [`Self::load_trusted_timestamp`].
    pub fn load_trusted_snapshot(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        self.check_loadable(SnapshotMetadata::ROLE, self.snapshot.is_some())?;
        self.snapshot = Some(Received::open(&self.root, bytes)?);
        Ok(())
    }

    /// The snapshot to fetch, or nothing if the stored one is current (5.5.1).
    ///
    /// # Errors
    /// [`TrustError::OutOfOrder`] before [`Self::update_timestamp`].
    pub fn snapshot_to_fetch(&self) -> Result<Option<FileRequest>, TrustError> {
        let listed = &self.confirmed_timestamp()?.snapshot;
        let current = self.snapshot().is_ok();
        Ok((!current).then(|| self.request::<SnapshotMetadata>(listed)))
    }

    /// Takes the snapshot that the timestamp names (5.5).
    ///
    /// # Errors
    /// Length or hash other than listed, threshold, version other than listed, a targets version
    /// that goes back or a targets file that disappears, expired.
    pub fn update_snapshot(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        let listed = &self.confirmed_timestamp()?.snapshot;
        // 5.5.2 Length and hash against timestamp, before anything is parsed.
        check_bytes("snapshot", listed.length, &listed.hashes, bytes)?;
        // 5.5.3 Arbitrary software attack.
        let new: Received<SnapshotMetadata> = Received::open(&self.root, bytes)?;
        // 5.5.4 Mix-and-match: the version that timestamp names. 5.5.6 Freeze attack.
        new.check(&Role::Snapshot.into(), listed, self.now)?;
        // 5.5.5 Rollback: no file disappears, no version goes back.
        if let Some(trusted) = &self.snapshot {
            for (file, old) in &trusted.metadata.meta {
                let Some(next) = new.metadata.meta.get(file) else {
                    return Err(TrustError::MissingMeta {
                        version: new.metadata.version,
                        file: file.clone(),
                    });
                };
                check_rollback(file, old.version, next.version)?;
            }
        }
        // 5.5.7 The new snapshot becomes the trusted one; the caller stores it.
        self.snapshot = Some(new);
        Ok(())
    }

    /// Takes the stored targets file, which counts if the snapshot still names it.
    ///
    /// # Errors
    /// As [`Self::load_trusted_timestamp`].
    pub fn load_trusted_targets(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        self.check_root_finished("loading stored targets")?;
        self.targets = Some(Received::open(&self.root, bytes)?);
        Ok(())
    }

    /// The targets file to fetch, or nothing if the stored one is current (5.6.1).
    ///
    /// # Errors
    /// What keeps the snapshot from being current.
    pub fn targets_to_fetch(&self) -> Result<Option<FileRequest>, TrustError> {
        let listed = self.snapshot()?.targets()?;
        let current = self.targets().is_ok();
        Ok((!current).then(|| self.request::<TargetsMetadata>(listed)))
    }

    /// Takes the targets file that the snapshot names (5.6).
    ///
    /// # Errors
    /// Length or hash other than listed, threshold, version other than listed, expired.
    pub fn update_targets(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        let listed = self.snapshot()?.targets()?;
        // 5.6.2 Length and hash against snapshot, before anything is parsed.
        check_bytes("targets", listed.length, &listed.hashes, bytes)?;
        // 5.6.3 Arbitrary software attack.
        let new: Received<TargetsMetadata> = Received::open(&self.root, bytes)?;
        // 5.6.4 Mix-and-match: the version that snapshot names. 5.6.5 Freeze attack.
        new.check(&Role::Targets.into(), listed, self.now)?;
        // 5.6.6 The new targets become the trusted ones; the caller stores them.
        self.targets = Some(new);
        Ok(())
    }

    /// The confirmed timestamp of this cycle.
    ///
    /// # Errors
    /// [`TrustError::OutOfOrder`] before [`Self::update_timestamp`].
    pub fn timestamp(&self) -> Result<&TimestampMetadata, TrustError> {
        self.confirmed_timestamp()
    }

    /// The current snapshot: the one that the confirmed timestamp names.
    ///
    /// # Errors
    /// What keeps it from being current.
    pub fn snapshot(&self) -> Result<&SnapshotMetadata, TrustError> {
        let listed = &self.confirmed_timestamp()?.snapshot;
        let Some(snapshot) = &self.snapshot else {
            return Err(TrustError::OutOfOrder {
                step: "using snapshot",
                needs: "fetch snapshot first",
            });
        };
        snapshot.check(&Role::Snapshot.into(), listed, self.now)?;
        Ok(&snapshot.metadata)
    }

    /// The current targets: the ones that the current snapshot names.
    ///
    /// # Errors
    /// What keeps them from being current.
    pub fn targets(&self) -> Result<&TargetsMetadata, TrustError> {
        let listed = self.snapshot()?.targets()?;
        let Some(targets) = &self.targets else {
            return Err(TrustError::OutOfOrder {
                step: "using targets",
                needs: "fetch targets first",
            });
        };
        targets.check(&Role::Targets.into(), listed, self.now)?;
        Ok(&targets.metadata)
    }

    fn request<T: Metadata>(&self, listed: &MetaFile) -> FileRequest {
        self.request_for(&T::ROLE.into(), listed)
    }

    fn request_for(&self, role: &RoleName, listed: &MetaFile) -> FileRequest {
        let max_bytes = role.max_bytes() as u64;
        FileRequest {
            name: role.file_name(listed.version, self.root.consistent_snapshot),
            max_bytes: listed.length.map_or(max_bytes, |l| l.min(max_bytes)),
        }
    }

    fn confirmed_timestamp(&self) -> Result<&TimestampMetadata, TrustError> {
        let confirmed = self.timestamp.as_ref().filter(|_| self.timestamp_confirmed);
        confirmed.ok_or(TrustError::OutOfOrder {
            step: "using timestamp",
            needs: "fetch timestamp first",
        })
    }

    fn check_root_finished(&self, step: &'static str) -> Result<(), TrustError> {
        if self.root_finished {
            return Ok(());
        }
        let needs = "finish root first";
        Err(TrustError::OutOfOrder { step, needs })
    }

    /// A stored file may be loaded once, and only if the keys of its time still hold (5.3.11).
    fn check_loadable(&self, role: super::Role, present: bool) -> Result<(), TrustError> {
        let step = "loading stored metadata";
        self.check_root_finished(step)?;
        if present {
            let needs = "this role has metadata in this update already";
            return Err(TrustError::OutOfOrder { step, needs });
        }
        match self.online_keys {
            OnlineKeys::Kept => Ok(()),
            OnlineKeys::Rotated => Err(TrustError::OnlineKeysRotated {
                role,
                root_version: self.root.version,
            }),
        }
    }
}

fn open_root(bytes: &[u8]) -> Result<(RootMetadata, Envelope), TrustError> {
    let envelope = parse_bounded(&Role::Root.into(), bytes)?;
    Ok((RootMetadata::read(&envelope)?, envelope))
}

/// Size, JSON, kind, signatures, and only then the fields.
fn open<T: Metadata>(root: &RootMetadata, bytes: &[u8]) -> Result<T, TrustError> {
    let envelope = parse_bounded(&T::ROLE.into(), bytes)?;
    read_header(&envelope, T::ROLE)?;
    root.verify(T::ROLE, &envelope)?;
    T::read(&envelope)
}

fn parse_bounded(role: &RoleName, bytes: &[u8]) -> Result<Envelope, TrustError> {
    let max = role.max_bytes();
    if bytes.len() > max {
        return Err(TrustError::TooLarge {
            what: role.to_string(),
            max: max as u64,
            got: bytes.len() as u64,
        });
    }
    Envelope::parse(bytes, max)
}

fn check_rollback(what: &str, trusted: u64, got: u64) -> Result<(), TrustError> {
    if got >= trusted {
        return Ok(());
    }
    Err(TrustError::Rollback {
        what: what.to_owned(),
        trusted,
        got,
    })
}
