//! The server's own keys, and what they sign: snapshot and timestamp.
//!
//! ```text
//! online/{snapshot,timestamp}.key        the keys in use
//! online/next/{snapshot,timestamp}.key   the next ones, until a root lists them
//! ```
//!
//! Which key signs is read from the newest root, never remembered: a cut anywhere between a new root
//! and the clean-up after it leaves nothing to be put right by hand.

use super::error::{RepositoryError, Result, trust};
use crate::files::{self, FileError, SECRET};
use dunlin_protocol::trust::{
    Key, MetaFile, Role, RoleName, RootMetadata, SigningKey, new_snapshot, new_timestamp,
    sign_envelope,
};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(super) const SNAPSHOT_LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);
pub(super) const TIMESTAMP_LIFE: SignedDuration = SignedDuration::from_hours(24);
/// Clocks may differ by this much before a signature counts as one from the future.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);
const KEY_MAX_BYTES: usize = 16 * 1024;
/// No honest repository counts so far: a version beyond it was set to lock devices out.
pub(crate) const VERSION_SANE_MAX: u64 = 1 << 53;

/// A signed list of targets: of the top-level role, or of a delegated one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct List {
    /// Its version.
    pub(super) version: u64,
    /// The file, exactly as signed.
    pub(super) bytes: Vec<u8>,
}

/// Every list that the snapshot ties together.
pub(super) type Lists = BTreeMap<RoleName, List>;

/// Versions that the next signatures must be above.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OnlineVersions {
    /// Of the snapshot.
    pub snapshot: u64,
    /// Of the timestamp.
    pub timestamp: u64,
}

impl OnlineVersions {
    /// The higher of both, one by one.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            snapshot: self.snapshot.max(other.snapshot),
            timestamp: self.timestamp.max(other.timestamp),
        }
    }

    /// Without what no honest repository counts up to: 0 in the place of such a version.
    #[must_use]
    pub fn sane(self) -> Self {
        let sane = |version: u64| match version > VERSION_SANE_MAX {
            true => 0,
            false => version,
        };
        Self {
            snapshot: sane(self.snapshot),
            timestamp: sane(self.timestamp),
        }
    }

    /// The next versions.
    #[must_use]
    pub(super) fn next(self) -> Self {
        Self {
            snapshot: self.snapshot.saturating_add(1),
            timestamp: self.timestamp.saturating_add(1),
        }
    }
}

/// A snapshot and a timestamp, signed and not yet written.
pub(super) struct Online {
    pub(super) snapshot_version: u64,
    pub(super) snapshot: Vec<u8>,
    pub(super) timestamp: Vec<u8>,
}

/// Whether something that lives for `life` is to be signed anew: past half of it, or signed by a
/// clock that ran far ahead.
pub(super) fn is_due(expires: Timestamp, life: SignedDuration, now: Timestamp) -> bool {
    let left = expires.duration_since(now);
    left < life / 2 || left > life + CLOCK_TOLERANCE
}

/// The keys, by role.
pub(super) struct KeyRing {
    folder: PathBuf,
    current: BTreeMap<Role, SigningKey>,
    next: BTreeMap<Role, SigningKey>,
}

const ROLES: [Role; 2] = [Role::Snapshot, Role::Timestamp];

impl KeyRing {
    /// Opens the keys in `folder`; makes those in use if there are none.
    pub(super) fn open(folder: PathBuf) -> Result<Self> {
        files::make_private_folder(&folder.join("next"))?;
        let mut opened = Self {
            folder,
            current: BTreeMap::new(),
            next: BTreeMap::new(),
        };
        for role in ROLES {
            let key = open_or_make(&opened.path(role))?;
            opened.current.insert(role, key);
            if let Some(key) = open_key(&opened.next_path(role))? {
                opened.next.insert(role, key);
            }
        }
        Ok(opened)
    }

    fn path(&self, role: Role) -> PathBuf {
        self.folder.join(format!("{role}.key"))
    }

    fn next_path(&self, role: Role) -> PathBuf {
        self.folder.join(format!("next/{role}.key"))
    }

    /// Public halves of the keys in use: snapshot's and timestamp's.
    pub(super) fn public(&self) -> Option<(Key, Key)> {
        pair(&self.current)
    }

    /// Public halves of the next keys, if both are there.
    pub(super) fn next_public(&self) -> Option<(Key, Key)> {
        pair(&self.next)
    }

    /// Makes the next keys, unless they wait already.
    pub(super) fn make_next(&mut self) -> Result<()> {
        for role in ROLES {
            let key = open_or_make(&self.next_path(role))?;
            self.next.insert(role, key);
        }
        Ok(())
    }

    /// The key that `root` lets sign for `role`: the next one as soon as it is listed.
    pub(super) fn signer(&self, role: Role, root: &RootMetadata) -> Result<&SigningKey> {
        let mine = [self.next.get(&role), self.current.get(&role)];
        if let Some(key) = mine.into_iter().flatten().find(|k| lists(root, role, k)) {
            return Ok(key);
        }
        let own = self.current.get(&role).map(SigningKey::keyid).transpose();
        Err(RepositoryError::NotOurKey {
            version: root.version,
            role,
            keyid: own.map_err(trust("online key"))?.unwrap_or_default(),
        })
    }

    /// Puts the next keys in the place of those that `root` withdrew; the old ones are gone then.
    pub(super) fn settle(&mut self, root: &RootMetadata) -> Result<()> {
        for role in ROLES {
            let withdrawn = self
                .current
                .get(&role)
                .is_none_or(|k| !lists(root, role, k));
            let listed = self.next.get(&role).is_some_and(|k| lists(root, role, k));
            if !(withdrawn && listed) {
                continue;
            }
            files::rename(&self.next_path(role), &self.path(role))?;
            if let Some(key) = self.next.remove(&role) {
                self.current.insert(role, key);
                tracing::info!(%role, "the next online key is in use, the old one is deleted");
            }
        }
        Ok(())
    }

    /// Signs a snapshot of `lists` and the timestamp to it.
    pub(super) fn sign(
        &self,
        root: &RootMetadata,
        lists: &Lists,
        versions: OnlineVersions,
        now: Timestamp,
    ) -> Result<Online> {
        let meta = lists.iter().map(|(role, list)| {
            let file = MetaFile::of(list.version, &list.bytes);
            (role.listed_name(), file)
        });
        let meta: BTreeMap<String, MetaFile> = meta.collect();
        let signed = new_snapshot(versions.snapshot, now + SNAPSHOT_LIFE, &meta);
        let key = self.signer(Role::Snapshot, root)?;
        let snapshot = sign_envelope(signed, &[key]).map_err(trust("snapshot"))?;
        let snapshot = snapshot.to_bytes();
        let timestamp = self.sign_timestamp(root, versions, &snapshot, now)?;
        Ok(Online {
            snapshot_version: versions.snapshot,
            snapshot,
            timestamp,
        })
    }

    /// Signs a timestamp to the snapshot of version `versions.snapshot`.
    pub(super) fn sign_timestamp(
        &self,
        root: &RootMetadata,
        versions: OnlineVersions,
        snapshot: &[u8],
        now: Timestamp,
    ) -> Result<Vec<u8>> {
        let listed = MetaFile::of(versions.snapshot, snapshot);
        let signed = new_timestamp(versions.timestamp, now + TIMESTAMP_LIFE, &listed);
        let key = self.signer(Role::Timestamp, root)?;
        let timestamp = sign_envelope(signed, &[key]).map_err(trust("timestamp"))?;
        Ok(timestamp.to_bytes())
    }
}

fn pair(keys: &BTreeMap<Role, SigningKey>) -> Option<(Key, Key)> {
    let public = |role| keys.get(&role).map(SigningKey::public_key);
    Some((public(Role::Snapshot)?, public(Role::Timestamp)?))
}

/// Whether this key alone may sign for `role`.
fn lists(root: &RootMetadata, role: Role, key: &SigningKey) -> bool {
    let own = key.public_key();
    root.roles.get(&role).is_some_and(|keys| {
        let mut listed = keys.keyids.iter().filter_map(|id| root.keys.get(id));
        keys.threshold == 1 && listed.any(|k| k.as_ed25519() == own.as_ed25519())
    })
}

fn open_key(path: &Path) -> Result<Option<SigningKey>> {
    let Some(bytes) = files::read_bounded(path, KEY_MAX_BYTES)? else {
        return Ok(None);
    };
    let text = zeroize::Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
    SigningKey::from_pkcs8_pem(&text)
        .map(Some)
        .map_err(trust("online key"))
}

fn open_or_make(path: &Path) -> Result<SigningKey> {
    if let Some(key) = open_key(path)? {
        return Ok(key);
    }
    let mut seed = zeroize::Zeroizing::new([0_u8; 32]);
    getrandom::fill(seed.as_mut()).map_err(|e| RepositoryError::Random(e.to_string()))?;
    let key = SigningKey::from_seed(&seed);
    let pem = key.to_pkcs8_pem().map_err(trust("online key"))?;
    let written: std::result::Result<(), FileError> =
        files::write_atomic(path, pem.expose().as_bytes(), SECRET);
    written?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_rise_and_only_a_rotation_leaves_absurd_ones_behind() {
        let at = |snapshot, timestamp| OnlineVersions {
            snapshot,
            timestamp,
        };
        assert_eq!(at(3, 9).next(), at(4, 10));
        assert_eq!(at(u64::MAX, 9).next(), at(u64::MAX, 10));
        assert_eq!(at(3, u64::MAX - 1).sane().next(), at(4, 1));
        assert_eq!(at(5, 1).max(at(2, 7)), at(5, 7));
    }

    #[test]
    fn a_clock_that_ran_ahead_does_not_stop_the_signing() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * 365 * 50);
        let life = TIMESTAMP_LIFE;
        assert!(!is_due(now + life, life, now));
        assert!(is_due(
            now + life / 2 - SignedDuration::from_secs(1),
            life,
            now
        ));
        assert!(is_due(now - life * 100, life, now));
        assert!(is_due(now + life * 100, life, now));
    }
}
