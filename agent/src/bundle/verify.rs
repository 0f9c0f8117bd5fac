//! The device's trust: what is kept on disk, and the TUF client cycle over the network.
//!
//! `<state_dir>/trust/` holds `enrolled_root.json` (the anchor that the claim token sealed, never
//! replaced), `root.json`, `timestamp.json`, `snapshot.json`, `targets.json` (the newest accepted),
//! `floors.json` (highest rollback floor ever seen, by family) and `time_floor` (latest time of a
//! successful refresh). Each accepted file is stored at once, so that what was seen once counts
//! also after a power cut. The decisions are [`TrustedSet`]'s.

use crate::files::{Disk, FileError};
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::repository::RepositoryFile;
use dunlin_protocol::trust::{
    FileRequest, Freshness, OnlineKeys, Role, TrustError, TrustedSet, VerifiedTarget, check_target,
    raise_floors,
};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::source::{Source, SourceError};
pub use super::{Kind, UpdateError};

const ENROLLED_ROOT: &str = "enrolled_root.json";
const FLOORS: &str = "floors.json";
const FLOORS_MAX_BYTES: u64 = 4 << 20;
const TIME_FLOOR: &str = "time_floor";
/// No agent is older than this: 2025-01-01.
const RELEASED_AT_S: i64 = 1_735_689_600;
/// How much newer the time floor must be to be worth a write.
const TIME_FLOOR_STEP: SignedDuration = SignedDuration::from_secs(60);

/// What the device trusts, on disk.
#[derive(Debug, Clone)]
pub struct TrustStore {
    disk: Disk,
    dir: PathBuf,
}

impl TrustStore {
    /// The store in `<state_dir>/trust`.
    #[must_use]
    pub fn new(disk: &Disk, state_dir: &Path) -> Self {
        Self {
            disk: disk.clone(),
            dir: state_dir.join("trust"),
        }
    }

    /// Another store in `state_dir` that begins with what this one holds, floors and time included.
    ///
    /// # Errors
    /// [`FileError`]
    pub(crate) fn copy_to(&self, state_dir: &Path) -> Result<Self, FileError> {
        let copy = Self::new(&self.disk, state_dir);
        copy.disk.create_private_dir(&copy.dir)?;
        for (name, found) in self.disk.list(&self.dir)? {
            if found.kind == crate::files::Kind::File {
                let max = dunlin_protocol::trust::TARGETS_MAX_BYTES as u64;
                let bytes = self.disk.read_bounded(&self.dir.join(&name), max)?;
                copy.disk
                    .write_atomic(&copy.dir.join(&name), &bytes, 0o600)?;
            }
        }
        Ok(copy)
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
        let built = option_env!("SOURCE_DATE_EPOCH").and_then(|s| s.parse().ok());
        let built = Timestamp::from_second(built.unwrap_or(RELEASED_AT_S)).unwrap_or_default();
        Ok(clock.max(built).max(self.time_floor()?))
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
    fn raise_time_floor(&self, now: Timestamp) -> Result<(), UpdateError> {
        if now.duration_since(self.time_floor()?) < TIME_FLOOR_STEP {
            return Ok(());
        }
        let text = format!("{now}\n");
        Ok(self
            .disk
            .write_atomic(&self.dir.join(TIME_FLOOR), text.as_bytes(), 0o600)?)
    }

    fn raise_floors(&self, set: &TrustedSet) -> Result<BTreeMap<Family, u64>, UpdateError> {
        let seen = self.floors()?;
        let mut floors = seen.clone();
        raise_floors(&mut floors, set.targets()?);
        if floors != seen {
            let json = serde_json::to_vec(&floors)
                .map_err(|e| UpdateError::failed("state", format!("rollback floors: {e}")))?;
            self.disk
                .write_atomic(&self.dir.join(FLOORS), &json, 0o600)?;
        }
        Ok(floors)
    }

    fn path(&self, role: Role) -> PathBuf {
        self.dir.join(format!("{role}.json"))
    }

    fn read(&self, role: Role) -> Result<Option<Vec<u8>>, FileError> {
        self.disk
            .read_if_there(&self.path(role), role.max_bytes() as u64)
    }

    fn write(&self, role: Role, bytes: &[u8]) -> Result<(), FileError> {
        self.disk.write_atomic(&self.path(role), bytes, 0o600)
    }

    fn drop_timestamp_and_snapshot(&self) -> Result<(), FileError> {
        self.disk.remove_if_there(&self.path(Role::Timestamp))?;
        self.disk.remove_if_there(&self.path(Role::Snapshot))?;
        self.disk.sync_dir(&self.dir)
    }
}

async fn fetch(source: &Source, file: &FileRequest) -> Result<Option<Vec<u8>>, SourceError> {
    let name = RepositoryFile::metadata(&file.name)?;
    source.read(&name, file.max_bytes).await
}

async fn required(source: &Source, file: &FileRequest) -> Result<Vec<u8>, UpdateError> {
    let name = RepositoryFile::metadata(&file.name).map_err(SourceError::from)?;
    let download = source.open(&name, 0).await?;
    Ok(download.collect(&name, file.max_bytes).await?)
}

/// One TUF cycle: root, timestamp, snapshot, targets, each stored once accepted.
pub(crate) async fn refresh(
    source: &Source,
    store: &TrustStore,
    clock: Timestamp,
) -> Result<TrustedSet, UpdateError> {
    // 5.1 The time is fixed once.
    let now = store.now(clock)?;
    let root = store.read(Role::Root)?.ok_or_else(|| {
        UpdateError::refused(
            "no_root",
            format!(
                "{} is missing: a device without a trust root takes nothing; enrol it",
                store.path(Role::Root).display()
            ),
        )
    })?;
    let mut set = TrustedSet::from_root(&root, now)?;
    refresh_root(source, store, &mut set).await?;
    refresh_timestamp(source, store, &mut set).await?;
    // 5.5 Snapshot.
    load(store.read(Role::Snapshot)?, |b| {
        set.load_trusted_snapshot(b)
    });
    if let Some(file) = set.snapshot_to_fetch()? {
        let bytes = required(source, &file).await?;
        set.update_snapshot(&bytes)?;
        store.write(Role::Snapshot, &bytes)?;
    }
    // 5.6 Targets.
    load(store.read(Role::Targets)?, |b| set.load_trusted_targets(b));
    if let Some(file) = set.targets_to_fetch()? {
        let bytes = required(source, &file).await?;
        set.update_targets(&bytes)?;
        store.write(Role::Targets, &bytes)?;
    }
    store.raise_time_floor(now)?;
    Ok(set)
}

/// 5.3 Root, version by version.
async fn refresh_root(
    source: &Source,
    store: &TrustStore,
    set: &mut TrustedSet,
) -> Result<(), UpdateError> {
    loop {
        let file = set.root_to_fetch();
        // Only "there is none" ends the chain: a server out of order must not hide a rotation.
        let Some(bytes) = fetch(source, &file).await? else {
            break;
        };
        if set.update_root(&bytes)? == OnlineKeys::Rotated {
            store.drop_timestamp_and_snapshot()?;
        }
        store.write(Role::Root, &bytes)?;
        tracing::info!(version = set.root().version, "trust root rotated");
    }
    Ok(set.finish_root()?)
}

/// 5.4 Timestamp.
async fn refresh_timestamp(
    source: &Source,
    store: &TrustStore,
    set: &mut TrustedSet,
) -> Result<(), UpdateError> {
    load(store.read(Role::Timestamp)?, |b| {
        set.load_trusted_timestamp(b)
    });
    let file = FileRequest {
        name: Role::Timestamp.file_name(0, true),
        max_bytes: Role::Timestamp.max_bytes() as u64,
    };
    let bytes = required(source, &file).await?;
    match set.update_timestamp(&bytes)? {
        Freshness::New => Ok(store.write(Role::Timestamp, &bytes)?),
        Freshness::Unchanged => Ok(()),
    }
}

/// Offers a stored file; one that is no longer trusted counts as absent, as the specification wants.
fn load(stored: Option<Vec<u8>>, take: impl FnOnce(&[u8]) -> Result<(), TrustError>) {
    if let Some(Err(error)) = stored.map(|bytes| take(&bytes)) {
        tracing::info!(%error, "stored metadata dropped");
    }
}

/// Raises the floors, then finds the wanted bundle among the signed targets and checks that this
/// device may have it.
pub(crate) fn select(
    set: &TrustedSet,
    store: &TrustStore,
    want: &DesiredBundle,
    hardware: &str,
) -> Result<VerifiedTarget, UpdateError> {
    let found = set.target(&want.target)?;
    let floors = store.raise_floors(set)?;
    let target = check_target(found, &floors, hardware)?;
    let signed = target.custom();
    if (&signed.family, signed.version) != (&want.family, want.version) {
        return Err(UpdateError::refused(
            "wrong_target",
            format!(
                "{}: asked for {} version {}, signed as {} version {}",
                want.target, want.family, want.version, signed.family, signed.version
            ),
        ));
    }
    let digest = target.digest();
    if digest != want.digest {
        return Err(UpdateError::refused(
            "hash",
            format!(
                "{}: asked for digest {}, signed is {digest}",
                want.target, want.digest
            ),
        ));
    }
    Ok(target)
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
