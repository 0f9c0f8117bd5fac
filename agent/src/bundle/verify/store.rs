//! What the device trusts, on disk: the metadata that it accepted, its rollback floors and its time
//! floor.

use super::super::UpdateError;
use crate::clock::{self, TIME_FLOOR};
use crate::files::{Disk, FileError};
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::report::TrustedVersions;
use dunlin_protocol::trust::{
    Envelope, FoundTarget, Metadata as _, Role, RoleName, SnapshotMetadata, TimestampMetadata,
    TrustedSet, raise_delegated_floors, raise_floors,
};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const ENROLLED_ROOT: &str = "enrolled_root.json";
const FLOORS: &str = "floors.json";
const FLOORS_MAX_BYTES: u64 = 4 << 20;
/// How much newer the time floor must be to be worth a write.
const TIME_FLOOR_STEP: SignedDuration = SignedDuration::from_secs(60);

/// The newest accepted metadata, a file for each role under its unversioned name.
#[derive(Debug, Clone)]
pub struct MetadataFolder {
    disk: Disk,
    dir: PathBuf,
    /// Delegated roles choose their names: apart from `dir` if other files are kept there.
    delegated: PathBuf,
}

impl MetadataFolder {
    /// All metadata in `dir`, which holds nothing else; it must be there.
    #[must_use]
    pub fn new(disk: &Disk, dir: &Path) -> Self {
        Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            delegated: dir.to_owned(),
        }
    }

    /// Where the metadata of a role is.
    #[must_use]
    pub fn path(&self, role: &RoleName) -> PathBuf {
        let folder = match role {
            RoleName::Top(_) => &self.dir,
            RoleName::Delegated(_) => &self.delegated,
        };
        folder.join(role.stored_name())
    }

    /// The metadata of a role, if some was accepted.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn read(&self, role: &RoleName) -> Result<Option<Vec<u8>>, FileError> {
        let max_bytes = role.max_bytes() as u64;
        self.disk.read_if_there(&self.path(role), max_bytes)
    }

    /// Keeps accepted metadata of a role.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn write(&self, role: &RoleName, bytes: &[u8]) -> Result<(), FileError> {
        if self.delegated != self.dir && matches!(role, RoleName::Delegated(_)) {
            self.disk.create_private_dir(&self.delegated)?;
        }
        self.disk.write_atomic(&self.path(role), bytes, 0o600)
    }

    /// Forgets timestamp and snapshot, durably.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn drop_timestamp_and_snapshot(&self) -> Result<(), FileError> {
        for role in [Role::Timestamp, Role::Snapshot] {
            self.disk.remove_if_there(&self.path(&role.into()))?;
        }
        self.disk.sync_dir(&self.dir)
    }
}

/// What the device trusts, on disk.
#[derive(Debug, Clone)]
pub struct TrustStore {
    disk: Disk,
    dir: PathBuf,
    metadata: MetadataFolder,
}

impl TrustStore {
    /// The store in `<state_dir>/trust`.
    #[must_use]
    pub fn new(disk: &Disk, state_dir: &Path) -> Self {
        let dir = state_dir.join("trust");
        let metadata = MetadataFolder {
            disk: disk.clone(),
            delegated: dir.join("delegated"),
            dir: dir.clone(),
        };
        Self {
            disk: disk.clone(),
            dir,
            metadata,
        }
    }

    /// The accepted metadata.
    #[must_use]
    pub fn metadata(&self) -> &MetadataFolder {
        &self.metadata
    }

    /// Digests of the root that the device enrolled with and of the newest it accepted since;
    /// empty if it never enrolled.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn adopted_roots(&self) -> Result<Vec<Digest>, FileError> {
        let max = Role::Root.max_bytes() as u64;
        let mut digests = Vec::new();
        for name in [ENROLLED_ROOT, "root.json"] {
            let bytes = self.disk.read_if_there(&self.dir.join(name), max)?;
            digests.extend(bytes.map(|b| Digest::of(&b)));
        }
        Ok(digests)
    }

    /// Makes `root` the anchor, unless there is one: an anchor is never replaced. The caller has
    /// checked `root` against the claim token.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn adopt_root(&self, root: &[u8]) -> Result<(), FileError> {
        self.disk.create_private_dir(&self.dir)?;
        for name in ["root.json", ENROLLED_ROOT] {
            let path = self.dir.join(name);
            if self.disk.look(&path)?.is_none() {
                self.disk.write_atomic(&path, root, 0o600)?;
            }
        }
        Ok(())
    }

    /// Versions of the timestamp accepted last and of the snapshot that it names, for reports.
    #[must_use]
    pub fn trusted_versions(&self) -> Option<TrustedVersions> {
        let bytes = self.metadata.read(&Role::Timestamp.into()).ok()??;
        let envelope = Envelope::parse(&bytes, Role::Timestamp.max_bytes()).ok()?;
        let timestamp = TimestampMetadata::read(&envelope).ok()?;
        Some(TrustedVersions {
            timestamp: timestamp.version,
            snapshot: timestamp.snapshot.version,
        })
    }

    /// The highest rollback floor ever seen, by family.
    ///
    /// # Errors
    /// Unreadable or damaged: nothing is installed then, for a lost floor would open old versions.
    pub fn floors(&self) -> Result<BTreeMap<Family, u64>, UpdateError> {
        let path = self.dir.join(FLOORS);
        let Some(bytes) = self.disk.read_if_there(&path, FLOORS_MAX_BYTES)? else {
            return Ok(BTreeMap::new());
        };
        serde_json::from_slice(&bytes).map_err(|e| {
            UpdateError::failed(
                "state",
                format!("{}: damaged rollback floors: {e}", path.display()),
            )
        })
    }

    /// `clock`, or the latest time known for sure if the clock is behind it.
    ///
    /// # Errors
    /// Unreadable or damaged time floor.
    pub fn now(&self, clock: Timestamp) -> Result<Timestamp, UpdateError> {
        Ok(clock.max(clock::built()).max(self.time_floor()?))
    }

    fn time_floor(&self) -> Result<Timestamp, UpdateError> {
        let path = self.dir.join(TIME_FLOOR);
        let Some(bytes) = self.disk.read_if_there(&path, 64)? else {
            return Ok(Timestamp::UNIX_EPOCH);
        };
        let text = String::from_utf8_lossy(&bytes);
        text.trim().parse().map_err(|e| {
            UpdateError::failed(
                "state",
                format!("{}: expected a time, got {text:?}: {e}", path.display()),
            )
        })
    }

    /// Keeps `now`: honest metadata were valid at it, so a clock that is ever behind it is wrong.
    pub(super) fn raise_time_floor(&self, now: Timestamp) -> Result<(), UpdateError> {
        if now.duration_since(self.time_floor()?) < TIME_FLOOR_STEP {
            return Ok(());
        }
        let text = format!("{now}\n");
        Ok(self
            .disk
            .write_atomic(&self.dir.join(TIME_FLOOR), text.as_bytes(), 0o600)?)
    }

    /// Raises the floors by what `set` says, with what the role that lists `found` says of its
    /// family, and returns them.
    pub(super) fn raise_floors(
        &self,
        set: &TrustedSet,
        found: Option<&FoundTarget>,
    ) -> Result<BTreeMap<Family, u64>, UpdateError> {
        let seen = self.floors()?;
        let mut floors = seen.clone();
        raise_floors(&mut floors, set.targets()?);
        if let Some(found) = found {
            raise_delegated_floors(&mut floors, set, found)?;
        }
        if floors != seen {
            let json = serde_json::to_vec(&floors)
                .map_err(|e| UpdateError::failed("state", format!("rollback floors: {e}")))?;
            self.disk
                .write_atomic(&self.dir.join(FLOORS), &json, 0o600)?;
        }
        Ok(floors)
    }

    /// Forgets the metadata of delegated roles that `snapshot` no longer lists: whoever may name
    /// roles must not fill the disk.
    ///
    /// # Errors
    /// [`FileError`]
    pub(super) fn drop_unlisted(&self, snapshot: &SnapshotMetadata) -> Result<(), FileError> {
        let folder = &self.metadata.delegated;
        if self.disk.look(folder)?.is_none() {
            return Ok(());
        }
        let names = snapshot.meta.keys().filter_map(|n| n.strip_suffix(".json"));
        let listed: BTreeSet<String> = names
            .filter_map(RoleName::delegated)
            .map(|role| role.stored_name())
            .collect();
        for (name, _) in self.disk.list(folder)? {
            if !name.to_str().is_some_and(|name| listed.contains(name)) {
                self.disk.remove_if_there(&folder.join(name))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn time_never_goes_back_behind_what_was_seen() {
        let dir = tempfile::tempdir().unwrap();
        let store = TrustStore::new(&Disk::native(), dir.path());
        Disk::native().create_private_dir(&store.dir).unwrap();
        let seen: Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
        store.raise_time_floor(seen).unwrap();
        assert_eq!(store.now(Timestamp::UNIX_EPOCH).unwrap(), seen);
        store.raise_time_floor(Timestamp::UNIX_EPOCH).unwrap();
        let later: Timestamp = "2026-05-02T00:00:00Z".parse().unwrap();
        assert_eq!(store.now(later).unwrap(), later);
        assert_eq!(store.now(Timestamp::UNIX_EPOCH).unwrap(), seen);
        std::fs::write(store.dir.join(TIME_FLOOR), "yesterday").unwrap();
        assert_eq!(store.now(later).unwrap_err().code, "state");
    }

    #[test]
    fn damaged_floors_close_the_door() {
        let dir = tempfile::tempdir().unwrap();
        let store = TrustStore::new(&Disk::native(), dir.path());
        assert!(store.floors().unwrap().is_empty());
        Disk::native().create_private_dir(&store.dir).unwrap();
        std::fs::write(store.dir.join(FLOORS), r#"{"digits":3}"#).unwrap();
        assert_eq!(store.floors().unwrap()[&"digits".parse().unwrap()], 3);
        std::fs::write(store.dir.join(FLOORS), "{").unwrap();
        assert_eq!(store.floors().unwrap_err().code, "state");
    }

    #[test]
    fn an_anchor_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = TrustStore::new(&Disk::native(), dir.path());
        store.adopt_root(b"one").unwrap();
        store.adopt_root(b"two").unwrap();
        assert_eq!(store.adopted_roots().unwrap(), [Digest::of(b"one"); 2]);
    }
}
