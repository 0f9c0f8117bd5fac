//! The TUF repository on disk, and the two online keys.
//!
//! ```text
//! online/                                           the server's own keys: [`online`]
//! repository/metadata/N.root.json                   from the key holders
//! repository/metadata/N.targets.json                from the key holders
//! repository/metadata/N.ROLE.json                   from a team to which targets delegate
//! repository/metadata/N.snapshot.json               signed here
//! repository/metadata/timestamp.json                signed here, written last
//! repository/targets/<family>/<version>/<sha256>.manifest.json
//! ```
//!
//! What `timestamp.json` leads to is the repository's state: everything it names is written and
//! synced before it, so that a cut anywhere leaves the old state or the new one. Whatever is
//! published first passes the very workflow that devices go through, against the newest root.

mod error;
pub mod expiry;
mod names;
pub mod online;
mod publish;
mod roots;
#[cfg(test)]
mod tests;

pub use error::{RepositoryError, VersionTaken};
pub use expiry::Expiry;
pub use online::OnlineVersions;
pub use publish::Submission;

use crate::files::{self, PUBLIC};
use dunlin_protocol::bundle::{MANIFEST_MAX_BYTES, Manifest};
use dunlin_protocol::id::Digest;
use dunlin_protocol::repository::RepositoryFile;
use dunlin_protocol::trust::{
    Envelope, Key, Metadata, Role, RootMetadata, SNAPSHOT_MAX_BYTES, SnapshotMetadata,
    TARGETS_MAX_BYTES, TIMESTAMP_MAX_BYTES, TargetCustom, TargetEntry, TimestampMetadata,
    TrustedSet,
};
use error::{Result, trust};
use jiff::Timestamp;
use names::{is_safe_path, listed_role, root_name, stored_name};
use online::{KeyRing, List, Lists, Online, SNAPSHOT_LIFE, TIMESTAMP_LIFE, is_due};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

/// A bundle as published: its signed target and its manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishedBundle {
    /// The signed target.
    pub target: TargetEntry,
    /// Its SHA-256: the bundle's digest.
    pub digest: Digest,
    /// What the key holders say of it.
    pub custom: TargetCustom,
    /// Who signed it: `targets`, or a delegated role.
    pub role: String,
    /// The manifest, as parsed.
    pub manifest: Manifest,
    /// The manifest, exactly as hashed.
    pub manifest_json: String,
}

/// What is published now.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Version of the targets metadata.
    pub targets_version: u64,
    /// Every listed bundle, by target path.
    pub bundles: Vec<PublishedBundle>,
}

/// The repository. Its calls block on the disk.
pub struct Repository {
    metadata: PathBuf,
    targets: PathBuf,
    keys: RwLock<KeyRing>,
    /// Versions that were seen elsewhere, such as by devices before a backup was restored; never
    /// absurd ones, which would outlive the rotation that leaves them behind.
    floor: Mutex<OnlineVersions>,
    // Two writers would make two different files of one version.
    writing: Mutex<()>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}

/// What is signed online now.
struct Signed {
    timestamp: TimestampMetadata,
    snapshot: SnapshotMetadata,
}

impl Repository {
    /// Opens the repository of a state folder; makes folders and online keys if there are none.
    ///
    /// # Errors
    /// Files that cannot be read or written, a key file that holds no key.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let online = state_dir.join("online");
        let metadata = state_dir.join("repository/metadata");
        let targets = state_dir.join("repository/targets");
        for folder in [&online, &metadata, &targets] {
            files::make_private_folder(folder)?;
        }
        let repository = Self {
            keys: RwLock::new(KeyRing::open(online)?),
            metadata,
            targets,
            floor: Mutex::default(),
            writing: Mutex::new(()),
        };
        Ok(repository)
    }

    /// Public halves of the online keys in use: snapshot's and timestamp's.
    ///
    /// # Errors
    /// There are none, which opening rules out.
    pub fn online_keys(&self) -> Result<(Key, Key)> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.public().ok_or(RepositoryError::NoRoot)
    }

    /// Public halves of the keys that wait for a root that lists them.
    #[must_use]
    pub fn next_online_keys(&self) -> Option<(Key, Key)> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.next_public()
    }

    /// Makes the next online keys, unless they wait already. They sign as soon as a root lists them
    /// in the place of the ones before.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn make_next_keys(&self) -> Result<Option<(Key, Key)>> {
        let _writing = self.lock();
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.make_next()?;
        Ok(keys.next_public())
    }

    /// Version of the newest root.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn root_version(&self) -> Result<Option<u64>> {
        Ok(self.root_versions()?.into_iter().max())
    }

    /// The first root that was set, byte for byte: what claim tokens are sealed with.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn first_root(&self) -> Result<Option<Vec<u8>>> {
        match self.root_versions()?.into_iter().min() {
            None => Ok(None),
            Some(version) => self.metadata_file(&root_name(version)),
        }
    }

    fn root_versions(&self) -> Result<Vec<u64>> {
        let entries = std::fs::read_dir(&self.metadata).map_err(files::at(&self.metadata))?;
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        Ok(names
            .filter_map(|n| n.strip_suffix(".root.json")?.parse().ok())
            .collect())
    }

    /// Version of the published targets.
    ///
    /// # Errors
    /// Metadata that cannot be read.
    pub fn targets_version(&self) -> Result<Option<u64>> {
        match self.signed()? {
            None => Ok(None),
            Some(signed) => {
                let listed = signed.snapshot.targets().map_err(trust("snapshot"))?;
                Ok(Some(listed.version))
            }
        }
    }

    /// A metadata file by its name in the repository, a delegated role's name as metadata spell it;
    /// `None` if there is none of that name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn metadata_file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match stored_name(name) {
            None => Ok(None),
            Some(stored) => self.stored(&stored),
        }
    }

    fn stored(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.metadata.join(name);
        Ok(files::read_bounded(&path, TARGETS_MAX_BYTES)?)
    }

    /// A manifest by its path in the repository (`family/version/<sha256>.manifest.json`).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn target_file(&self, path: &str) -> Result<Option<Vec<u8>>> {
        if !is_safe_path(path) {
            return Ok(None);
        }
        Ok(files::read_bounded(
            &self.targets.join(path),
            MANIFEST_MAX_BYTES,
        )?)
    }

    /// Opens a metadata file or a manifest, to be read in parts; `None` if there is none of that
    /// name. Blobs are not kept here.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open_file(&self, file: &RepositoryFile) -> Result<Option<File>> {
        let path = match file {
            // As on disk already, percent-encoded: one plain name.
            RepositoryFile::Metadata(name) => self.metadata.join(name),
            RepositoryFile::Target(path) if is_safe_path(path) => self.targets.join(path),
            _ => return Ok(None),
        };
        match File::open(&path) {
            Ok(file) if file.metadata().map_err(files::at(&path))?.is_file() => Ok(Some(file)),
            Ok(_) => Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(files::at(&path)(e).into()),
        }
    }

    /// As [`Self::open_file`], read whole.
    ///
    /// # Errors
    /// The file cannot be read, or is longer than any metadata.
    pub fn read_file(&self, file: &RepositoryFile) -> Result<Option<Vec<u8>>> {
        match file {
            RepositoryFile::Metadata(name) => self.stored(name),
            RepositoryFile::Target(path) => self.target_file(path),
            RepositoryFile::Blob(_) | RepositoryFile::Patch { .. } => Ok(None),
        }
    }

    /// Signs and writes a snapshot and a timestamp for a targets file as it is, and the targets
    /// file too. Nothing in it is verified: this is all that a holder of the online keys can do,
    /// and devices must withstand it.
    ///
    /// # Errors
    /// No version in it, or files that cannot be written.
    pub fn sign_snapshot_and_timestamp(&self, targets_bytes: &[u8], now: Timestamp) -> Result<()> {
        let _writing = self.lock();
        let envelope =
            Envelope::parse(targets_bytes, TARGETS_MAX_BYTES).map_err(trust("targets"))?;
        let version = envelope.signed()["version"].as_u64().unwrap_or(0);
        let mut lists = self.lists()?;
        let bytes = targets_bytes.to_vec();
        lists.insert(Role::Targets.into(), List { version, bytes });
        let online = self.sign_online(&self.newest_root(now)?, &lists, now, false)?;
        self.write(&online, &lists)
    }

    /// Signs timestamp (and snapshot) anew if they are past half of their life, signed by keys that
    /// the newest root does not list, or below a version seen elsewhere; whether it did.
    ///
    /// # Errors
    /// Metadata that cannot be read or written, a root that does not let this server sign.
    pub fn resign_online(&self, now: Timestamp) -> Result<bool> {
        let _writing = self.lock();
        if self.root_version()?.is_none() {
            return Ok(false);
        }
        let root = self.newest_root(now)?;
        if self.follow_root(&root, now)? {
            return Ok(true);
        }
        let Some(signed) = self.signed()? else {
            return Ok(false);
        };
        let floor = *self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        let (timestamp, snapshot) = (&signed.timestamp, &signed.snapshot);
        let below = timestamp.version < floor.timestamp || snapshot.version < floor.snapshot;
        let old = is_due(snapshot.expires, SNAPSHOT_LIFE, now);
        if below || old {
            let online = self.sign_online(&root, &self.lists()?, now, false)?;
            self.write_online(&online)?;
            return Ok(true);
        }
        if !is_due(timestamp.expires, TIMESTAMP_LIFE, now) {
            return Ok(false);
        }
        let name = Role::Snapshot.file_name(timestamp.snapshot.version, true);
        let snapshot = self
            .stored(&name)?
            .ok_or(RepositoryError::NothingPublished)?;
        let versions = OnlineVersions {
            snapshot: timestamp.snapshot.version,
            timestamp: self.next_versions(false)?.timestamp,
        };
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let bytes = keys.sign_timestamp(&root, versions, &snapshot, now)?;
        files::write_atomic(&self.metadata.join("timestamp.json"), &bytes, PUBLIC)?;
        Ok(true)
    }

    /// Versions of what is signed online now; `None` before the first publication.
    ///
    /// # Errors
    /// Metadata that cannot be read.
    pub fn online_versions(&self) -> Result<Option<OnlineVersions>> {
        Ok(self.signed()?.map(|signed| OnlineVersions {
            snapshot: signed.snapshot.version,
            timestamp: signed.timestamp.version,
        }))
    }

    /// Tells of versions seen elsewhere: what is signed next is above them. Absurd ones are passed
    /// over.
    pub fn raise_floor(&self, seen: OnlineVersions) {
        let mut floor = self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        *floor = floor.max(seen.sane());
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest root here.
    fn trusted_root(&self, now: Timestamp) -> Result<TrustedSet> {
        let newest = self.root_version()?.ok_or(RepositoryError::NoRoot)?;
        let bytes = self.stored(&root_name(newest))?;
        // Each root was verified against the one before when it was set.
        TrustedSet::from_root(&bytes.ok_or(RepositoryError::NoRoot)?, now).map_err(trust("root"))
    }

    fn newest_root(&self, now: Timestamp) -> Result<RootMetadata> {
        Ok(self.trusted_root(now)?.root().clone())
    }

    fn check_own_keys(&self, root: &RootMetadata) -> Result<()> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        for role in [Role::Snapshot, Role::Timestamp] {
            keys.signer(role, root)?;
        }
        Ok(())
    }

    fn signed(&self) -> Result<Option<Signed>> {
        let path = self.metadata.join("timestamp.json");
        let Some(bytes) = files::read_bounded(&path, TIMESTAMP_MAX_BYTES)? else {
            return Ok(None);
        };
        let timestamp = Envelope::parse(&bytes, TIMESTAMP_MAX_BYTES);
        let timestamp = timestamp
            .and_then(|e| TimestampMetadata::read(&e))
            .map_err(trust("timestamp"))?;
        let name = Role::Snapshot.file_name(timestamp.snapshot.version, true);
        let bytes = self
            .stored(&name)?
            .ok_or(RepositoryError::NothingPublished)?;
        let snapshot = Envelope::parse(&bytes, SNAPSHOT_MAX_BYTES);
        let snapshot = snapshot
            .and_then(|e| SnapshotMetadata::read(&e))
            .map_err(trust("snapshot"))?;
        Ok(Some(Signed {
            timestamp,
            snapshot,
        }))
    }

    /// Every list of targets that the snapshot names; none before the first publication.
    fn lists(&self) -> Result<Lists> {
        let mut lists = Lists::new();
        let Some(signed) = self.signed()? else {
            return Ok(lists);
        };
        for (file, listed) in &signed.snapshot.meta {
            let Some(role) = listed_role(file) else {
                continue;
            };
            let name = role.file_name(listed.version, true);
            let bytes = self
                .stored(&name)?
                .ok_or(RepositoryError::NothingPublished)?;
            let version = listed.version;
            lists.insert(role, List { version, bytes });
        }
        Ok(lists)
    }

    /// After a rotation devices have dropped what they knew: then, and only then, an absurd
    /// version, with which a thief of the old keys locked them out, is left behind.
    fn next_versions(&self, rotated: bool) -> Result<OnlineVersions> {
        let floor = *self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.online_versions()?.unwrap_or_default();
        let last = if rotated { last.sane() } else { last };
        Ok(last.max(floor).next())
    }

    fn sign_online(
        &self,
        root: &RootMetadata,
        lists: &Lists,
        now: Timestamp,
        rotated: bool,
    ) -> Result<Online> {
        let versions = self.next_versions(rotated)?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.sign(root, lists, versions, now)
    }

    /// Timestamp last: until it is there, nothing leads to the other files.
    fn write(&self, online: &Online, lists: &Lists) -> Result<()> {
        for (role, list) in lists {
            let path = self.metadata.join(role.file_name(list.version, true));
            let held = files::read_bounded(&path, TARGETS_MAX_BYTES)?;
            if held.is_none_or(|held| held != list.bytes) {
                files::write_atomic(&path, &list.bytes, PUBLIC)?;
            }
        }
        self.write_online(online)
    }

    fn write_online(&self, online: &Online) -> Result<()> {
        let name = Role::Snapshot.file_name(online.snapshot_version, true);
        files::write_atomic(&self.metadata.join(name), &online.snapshot, PUBLIC)?;
        files::write_atomic(
            &self.metadata.join("timestamp.json"),
            &online.timestamp,
            PUBLIC,
        )?;
        Ok(())
    }
}
