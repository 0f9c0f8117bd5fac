//! The TUF repository on disk, and the two online keys.
//!
//! ```text
//! online/{snapshot,timestamp}.key                   PKCS#8 PEM, mode 0600
//! repository/metadata/N.root.json                   from the key holders
//! repository/metadata/N.targets.json                from the key holders
//! repository/metadata/N.snapshot.json               signed here
//! repository/metadata/timestamp.json                signed here, written last
//! repository/targets/<family>/<version>/<sha256>.manifest.json
//! ```
//!
//! What `timestamp.json` leads to is the repository's state: everything it names is written and
//! synced before it, so that a cut anywhere leaves the old state or the new one. Whatever is
//! published first passes the very workflow that devices go through, against the newest root.

use crate::blobs::{BlobError, Blobs};
use crate::files::{self, FileError, PUBLIC, SECRET};
use dunlin_protocol::bundle::{MANIFEST_MAX_BYTES, Manifest};
use dunlin_protocol::id::Digest;
use dunlin_protocol::repository::RepositoryFile;
use dunlin_protocol::trust::{
    Envelope, Key, MetaFile, Metadata as _, Role, RootMetadata, SNAPSHOT_MAX_BYTES, SigningKey,
    SnapshotMetadata, TARGETS_MAX_BYTES, TIMESTAMP_MAX_BYTES, TargetCustom, TargetEntry,
    TimestampMetadata, TrustError, TrustedSet, new_snapshot, new_timestamp, sign_envelope,
};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const SNAPSHOT_LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);
const TIMESTAMP_LIFE: SignedDuration = SignedDuration::from_hours(24);
const KEY_MAX_BYTES: usize = 16 * 1024;

/// Why something is not published.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// A file cannot be read or written.
    #[error("repository: {0}")]
    File(#[from] FileError),
    /// The metadata are not trusted.
    #[error("{what}: {source}")]
    Trust {
        /// Which metadata.
        what: &'static str,
        /// Why.
        source: TrustError,
    },
    /// No root was ever set.
    #[error(
        "no trust root is set: upload root.json first (dunlin keys init, then dunlin keys upload-root)"
    )]
    NoRoot,
    /// No targets were ever published.
    #[error("nothing is published yet")]
    NothingPublished,
    /// The root does not let this server sign.
    #[error(
        "root version {version} does not list this server's {role} key {keyid} with threshold 1: devices would refuse everything it signs; add the keys that GET /api/v1/fleet shows under online_keys and sign again"
    )]
    NotOurKey {
        /// Version of the root.
        version: u64,
        /// The role.
        role: Role,
        /// This server's key.
        keyid: String,
    },
    /// Another root of that version, or an older one.
    #[error("root version {got}: version {trusted} is set already; the next one must be version {}", trusted + 1)]
    RootVersion {
        /// Newest root here.
        trusted: u64,
        /// Version offered.
        got: u64,
    },
    /// Not above what is published.
    #[error(
        "targets version {got}: version {published} is published already; raise the version and sign again"
    )]
    TargetsVersion {
        /// Published.
        published: u64,
        /// Offered.
        got: u64,
    },
    /// A listed target without its manifest.
    #[error(
        "target {path}: its manifest (SHA-256 {sha256}) was neither sent along nor published before"
    )]
    ManifestMissing {
        /// The target.
        path: String,
        /// Its digest.
        sha256: Digest,
    },
    /// A manifest that no target lists.
    #[error("a manifest with SHA-256 {0} was sent along, but no target lists it")]
    ManifestUnlisted(Digest),
    /// Blobs that are named and not here.
    #[error("{} blobs are missing, upload them first: {}", .0.len(), .0.join(", "))]
    BlobsMissing(Vec<String>),
    /// The blob store failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

/// A bundle as published: its signed target and its manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishedBundle {
    /// The signed target.
    pub target: TargetEntry,
    /// Its SHA-256: the bundle's digest.
    pub digest: Digest,
    /// What the key holders say of it.
    pub custom: TargetCustom,
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
    snapshot_key: SigningKey,
    timestamp_key: SigningKey,
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

/// A snapshot and a timestamp, signed and not yet written.
struct Online {
    snapshot_version: u64,
    snapshot: Vec<u8>,
    timestamp: Vec<u8>,
}

fn trust(what: &'static str) -> impl Fn(TrustError) -> RepositoryError {
    move |source| RepositoryError::Trust { what, source }
}

type Result<T, E = RepositoryError> = std::result::Result<T, E>;

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
        Ok(Self {
            snapshot_key: open_key(&online.join("snapshot.key"))?,
            timestamp_key: open_key(&online.join("timestamp.key"))?,
            metadata,
            targets,
            writing: Mutex::new(()),
        })
    }

    /// Public halves of the online keys: snapshot's and timestamp's.
    #[must_use]
    pub fn online_keys(&self) -> (Key, Key) {
        (
            self.snapshot_key.public_key(),
            self.timestamp_key.public_key(),
        )
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
        match self.snapshot()? {
            None => Ok(None),
            Some((_, snapshot)) => Ok(Some(snapshot.targets().map_err(trust("snapshot"))?.version)),
        }
    }

    /// A metadata file by its name in the repository; `None` if there is none of that name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn metadata_file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if !is_metadata_name(name) {
            return Ok(None);
        }
        Ok(files::read_bounded(
            &self.metadata.join(name),
            TARGETS_MAX_BYTES,
        )?)
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
            RepositoryFile::Metadata(name) if is_metadata_name(name) => self.metadata.join(name),
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

    /// Sets the first trust root, or the next one. The same again is no error.
    ///
    /// # Errors
    /// Not trusted (the first by itself, a later one by the chain), expired, or it does not list
    /// this server's online keys.
    pub fn put_root(&self, bytes: &[u8], now: Timestamp) -> Result<u64> {
        let _writing = self.lock();
        let offered = Envelope::parse(bytes, Role::Root.max_bytes());
        let offered = offered
            .and_then(|e| RootMetadata::read(&e))
            .map_err(trust("root"))?;
        let mut set = match self.root_version()? {
            None => TrustedSet::from_root(bytes, now).map_err(trust("root"))?,
            Some(trusted) => {
                let same = self.metadata_file(&root_name(offered.version))?;
                if same.is_some_and(|stored| stored == bytes) {
                    return Ok(offered.version);
                }
                if offered.version <= trusted {
                    let got = offered.version;
                    return Err(RepositoryError::RootVersion { trusted, got });
                }
                let mut set = self.trusted_root(now)?;
                let _ = set.update_root(bytes).map_err(trust("root"))?;
                set
            }
        };
        set.finish_root().map_err(trust("root"))?;
        self.check_own_keys(set.root())?;
        let version = set.root().version;
        files::write_atomic(&self.metadata.join(root_name(version)), bytes, PUBLIC)?;
        Ok(version)
    }

    /// Publishes a signed list of targets with the manifests that are not here yet.
    ///
    /// # Errors
    /// Whatever would make a device refuse it, a manifest or blob that is not here; nothing is
    /// published then.
    pub fn publish(
        &self,
        targets_bytes: &[u8],
        manifests: &[Vec<u8>],
        blobs: &Blobs,
        runtime: &tokio::runtime::Handle,
        now: Timestamp,
    ) -> Result<Published> {
        let _writing = self.lock();
        let envelope =
            Envelope::parse(targets_bytes, TARGETS_MAX_BYTES).map_err(trust("targets"))?;
        let got = envelope.signed()["version"].as_u64().unwrap_or(0);
        if let Some(published) = self.targets_version()?
            && got <= published
        {
            let stored = self.metadata_file(&format!("{got}.targets.json"))?;
            if stored.is_none_or(|stored| stored != targets_bytes) {
                return Err(RepositoryError::TargetsVersion { published, got });
            }
        }
        let online = self.sign_online(targets_bytes, got, now)?;
        let set = self.walk(&online, targets_bytes, now)?;
        let published = self.collect(&set, manifests)?;
        runtime.block_on(check_blobs(blobs, &published))?;
        for bundle in &published.bundles {
            let path = self.targets.join(bundle.target.consistent_path());
            if let Some(folder) = path.parent() {
                files::make_private_folder(folder)?;
            }
            if files::read_bounded(&path, MANIFEST_MAX_BYTES)?.is_none() {
                files::write_atomic(&path, bundle.manifest_json.as_bytes(), PUBLIC)?;
            }
        }
        self.write(&online, Some((got, targets_bytes)))?;
        Ok(published)
    }

    /// Every bundle that is published now, read back from disk and verified (whatever has
    /// expired since does not matter here).
    ///
    /// # Errors
    /// Metadata that cannot be read or do not verify.
    pub fn published(&self) -> Result<Option<Published>> {
        let Some((_, snapshot)) = self.snapshot()? else {
            return Ok(None);
        };
        let version = snapshot.targets().map_err(trust("snapshot"))?.version;
        let name = format!("{version}.targets.json");
        let targets = self
            .metadata_file(&name)?
            .ok_or(RepositoryError::NothingPublished)?;
        // Time stands still at the earliest: what was valid when published is shown.
        let then = Timestamp::UNIX_EPOCH;
        let online = self.sign_online(&targets, version, then)?;
        let set = self.walk_without_history(&online, &targets, then)?;
        self.collect(&set, &[]).map(Some)
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
        let online = self.sign_online(targets_bytes, version, now)?;
        self.write(&online, Some((version, targets_bytes)))
    }

    /// Signs timestamp (and snapshot) anew if they are past half of their life; whether it did.
    ///
    /// # Errors
    /// Metadata that cannot be read or written.
    pub fn resign_online(&self, now: Timestamp) -> Result<bool> {
        let _writing = self.lock();
        let Some((timestamp, snapshot)) = self.snapshot()? else {
            return Ok(false);
        };
        let old = |expires: Timestamp, life: SignedDuration| expires.duration_since(now) < life / 2;
        if !old(timestamp.expires, TIMESTAMP_LIFE) && !old(snapshot.expires, SNAPSHOT_LIFE) {
            return Ok(false);
        }
        let online = match old(snapshot.expires, SNAPSHOT_LIFE) {
            true => {
                let version = snapshot.targets().map_err(trust("snapshot"))?.version;
                let targets = self.metadata_file(&format!("{version}.targets.json"))?;
                let targets = targets.ok_or(RepositoryError::NothingPublished)?;
                self.sign_online(&targets, version, now)?
            }
            false => {
                let snapshot_version = timestamp.snapshot.version;
                let name = format!("{snapshot_version}.snapshot.json");
                let snapshot = self.metadata_file(&name)?;
                let snapshot = snapshot.ok_or(RepositoryError::NothingPublished)?;
                let timestamp = self.sign_timestamp(snapshot_version, &snapshot, now)?;
                Online {
                    snapshot_version,
                    snapshot,
                    timestamp,
                }
            }
        };
        self.write(&online, None)?;
        Ok(true)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chain of roots from the first one here.
    fn trusted_root(&self, now: Timestamp) -> Result<TrustedSet> {
        let newest = self.root_version()?.ok_or(RepositoryError::NoRoot)?;
        let bytes = self.metadata_file(&root_name(newest))?;
        // Each root was verified against the one before when it was set.
        TrustedSet::from_root(&bytes.ok_or(RepositoryError::NoRoot)?, now).map_err(trust("root"))
    }

    fn check_own_keys(&self, root: &RootMetadata) -> Result<()> {
        for (role, key) in [
            (Role::Snapshot, &self.snapshot_key),
            (Role::Timestamp, &self.timestamp_key),
        ] {
            let own = key.public_key();
            let keyid = own.keyid().map_err(trust("online key"))?;
            let listed = root.roles.get(&role).is_some_and(|keys| {
                let mut listed = keys.keyids.iter().filter_map(|id| root.keys.get(id));
                keys.threshold == 1 && listed.any(|k| k.as_ed25519() == own.as_ed25519())
            });
            if !listed {
                let version = root.version;
                return Err(RepositoryError::NotOurKey {
                    version,
                    role,
                    keyid,
                });
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Option<(TimestampMetadata, SnapshotMetadata)>> {
        let path = self.metadata.join("timestamp.json");
        let Some(bytes) = files::read_bounded(&path, TIMESTAMP_MAX_BYTES)? else {
            return Ok(None);
        };
        let timestamp = Envelope::parse(&bytes, TIMESTAMP_MAX_BYTES);
        let timestamp = timestamp
            .and_then(|e| TimestampMetadata::read(&e))
            .map_err(trust("timestamp"))?;
        let name = format!("{}.snapshot.json", timestamp.snapshot.version);
        let bytes = self
            .metadata_file(&name)?
            .ok_or(RepositoryError::NothingPublished)?;
        let snapshot = Envelope::parse(&bytes, SNAPSHOT_MAX_BYTES);
        let snapshot = snapshot
            .and_then(|e| SnapshotMetadata::read(&e))
            .map_err(trust("snapshot"))?;
        Ok(Some((timestamp, snapshot)))
    }

    fn sign_online(&self, targets: &[u8], version: u64, now: Timestamp) -> Result<Online> {
        let last = self
            .snapshot()?
            .map_or(0, |(timestamp, _)| timestamp.snapshot.version);
        let snapshot_version = last.saturating_add(1);
        let meta = BTreeMap::from([("targets.json".to_owned(), MetaFile::of(version, targets))]);
        let signed = new_snapshot(snapshot_version, now + SNAPSHOT_LIFE, &meta);
        let snapshot = sign_envelope(signed, &[&self.snapshot_key]).map_err(trust("snapshot"))?;
        let snapshot = snapshot.to_bytes();
        let timestamp = self.sign_timestamp(snapshot_version, &snapshot, now)?;
        Ok(Online {
            snapshot_version,
            snapshot,
            timestamp,
        })
    }

    fn sign_timestamp(&self, version: u64, snapshot: &[u8], now: Timestamp) -> Result<Vec<u8>> {
        let last = self
            .snapshot()?
            .map_or(0, |(timestamp, _)| timestamp.version);
        let listed = MetaFile::of(version, snapshot);
        let signed = new_timestamp(last.saturating_add(1), now + TIMESTAMP_LIFE, &listed);
        let timestamp =
            sign_envelope(signed, &[&self.timestamp_key]).map_err(trust("timestamp"))?;
        Ok(timestamp.to_bytes())
    }

    /// A device's workflow, from what is published to what is about to be.
    fn walk(&self, online: &Online, targets: &[u8], now: Timestamp) -> Result<TrustedSet> {
        let mut set = self.trusted_root(now)?;
        set.finish_root().map_err(trust("root"))?;
        self.check_own_keys(set.root())?;
        if let Some((timestamp, _)) = self.snapshot()? {
            // Signed by keys that were rotated since: devices drop them as well.
            for (name, is_timestamp) in [
                ("timestamp.json".to_owned(), true),
                (
                    format!("{}.snapshot.json", timestamp.snapshot.version),
                    false,
                ),
            ] {
                let bytes = self.metadata_file(&name)?.unwrap_or_default();
                let loaded = match is_timestamp {
                    true => set.load_trusted_timestamp(&bytes),
                    false => set.load_trusted_snapshot(&bytes),
                };
                if let Err(error) = loaded {
                    tracing::info!(%error, name, "not a base for rollback checks");
                }
            }
        }
        finish_walk(set, online, targets)
    }

    fn walk_without_history(
        &self,
        online: &Online,
        targets: &[u8],
        now: Timestamp,
    ) -> Result<TrustedSet> {
        let mut set = self.trusted_root(now)?;
        set.finish_root().map_err(trust("root"))?;
        finish_walk(set, online, targets)
    }

    /// Opens the manifest of every target, from those sent along or from disk.
    fn collect(&self, set: &TrustedSet, manifests: &[Vec<u8>]) -> Result<Published> {
        let mut sent: BTreeMap<Digest, &[u8]> = BTreeMap::new();
        sent.extend(manifests.iter().map(|m| (Digest::of(m), m.as_slice())));
        let targets = set.targets().map_err(trust("targets"))?;
        let mut unlisted: Vec<Digest> = sent.keys().copied().collect();
        let mut bundles = Vec::with_capacity(targets.targets.len());
        for (path, entry) in &targets.targets {
            let sha256 = entry.sha256().map_err(trust("targets"))?;
            unlisted.retain(|digest| *digest != sha256);
            let bytes = match sent.get(&sha256) {
                Some(bytes) => bytes.to_vec(),
                None => self.target_file(&entry.consistent_path())?.ok_or_else(|| {
                    RepositoryError::ManifestMissing {
                        path: path.clone(),
                        sha256,
                    }
                })?,
            };
            bundles.push(open_bundle(set, path, bytes)?);
        }
        match unlisted.first() {
            Some(digest) => Err(RepositoryError::ManifestUnlisted(*digest)),
            None => Ok(Published {
                targets_version: targets.version,
                bundles,
            }),
        }
    }

    /// Timestamp last: until it is there, nothing leads to the other files.
    fn write(&self, online: &Online, targets: Option<(u64, &[u8])>) -> Result<()> {
        if let Some((version, bytes)) = targets {
            let path = self.metadata.join(format!("{version}.targets.json"));
            files::write_atomic(&path, bytes, PUBLIC)?;
        }
        let snapshot = self
            .metadata
            .join(format!("{}.snapshot.json", online.snapshot_version));
        files::write_atomic(&snapshot, &online.snapshot, PUBLIC)?;
        files::write_atomic(
            &self.metadata.join("timestamp.json"),
            &online.timestamp,
            PUBLIC,
        )?;
        Ok(())
    }
}

fn finish_walk(mut set: TrustedSet, online: &Online, targets: &[u8]) -> Result<TrustedSet> {
    let _ = set
        .update_timestamp(&online.timestamp)
        .map_err(trust("timestamp"))?;
    set.update_snapshot(&online.snapshot)
        .map_err(trust("snapshot"))?;
    set.update_targets(targets).map_err(trust("targets"))?;
    Ok(set)
}

fn open_bundle(set: &TrustedSet, path: &str, bytes: Vec<u8>) -> Result<PublishedBundle> {
    let target = set.target(path).map_err(trust("targets"))?;
    let entry = target.get().clone();
    let digest = entry.sha256().map_err(trust("targets"))?;
    let custom = TargetCustom::read(&entry).map_err(trust("targets"))?;
    let manifest = target
        .open_manifest(&bytes)
        .map_err(trust("manifest"))?
        .into_inner();
    let manifest_json = String::from_utf8(bytes).map_err(|e| RepositoryError::Trust {
        what: "manifest",
        source: TrustError::BadManifest {
            path: path.to_owned(),
            reason: e.to_string(),
        },
    })?;
    Ok(PublishedBundle {
        target: entry,
        digest,
        custom,
        manifest,
        manifest_json,
    })
}

async fn check_blobs(blobs: &Blobs, published: &Published) -> Result<()> {
    let mut wanted = BTreeMap::new();
    for bundle in &published.bundles {
        for (name, blob) in bundle.manifest.files.named() {
            let (digest, length) = blob.transport();
            wanted.insert(
                digest,
                (length, format!("{} of {}", name, bundle.target.path)),
            );
        }
    }
    let mut missing = Vec::new();
    for (digest, (length, name)) in wanted {
        match blobs.length(&digest).await? {
            Some(got) if got == length => {}
            Some(got) => {
                let problem = format!("{name}: {got} bytes are stored, the manifest says {length}");
                return Err(BlobError::Damaged { digest, problem }.into());
            }
            None => missing.push(format!("{digest} ({name})")),
        }
    }
    match missing.is_empty() {
        true => Ok(()),
        false => Err(RepositoryError::BlobsMissing(missing)),
    }
}

fn open_key(path: &Path) -> Result<SigningKey> {
    if let Some(bytes) = files::read_bounded(path, KEY_MAX_BYTES)? {
        let text = String::from_utf8_lossy(&bytes);
        return SigningKey::from_pkcs8_pem(&text).map_err(trust("online key"));
    }
    let mut seed = [0_u8; 32];
    getrandom::fill(&mut seed).map_err(|e| {
        RepositoryError::File(FileError {
            path: path.to_owned(),
            source: std::io::Error::other(e.to_string()),
        })
    })?;
    let key = SigningKey::from_seed(&seed);
    let pem = key.to_pkcs8_pem().map_err(trust("online key"))?;
    files::write_atomic(path, pem.expose().as_bytes(), SECRET)?;
    Ok(key)
}

fn root_name(version: u64) -> String {
    Role::Root.file_name(version, true)
}

/// `timestamp.json` or `N.root.json`, `N.targets.json`, `N.snapshot.json`.
fn is_metadata_name(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".json") else {
        return false;
    };
    match stem.split_once('.') {
        None => stem == "timestamp",
        Some((version, role)) => {
            let digits = !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit());
            digits && version.len() <= 20 && matches!(role, "root" | "targets" | "snapshot")
        }
    }
}

/// Relative, no step upwards, no odd characters.
fn is_safe_path(path: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let safe = |step: &str| !step.is_empty() && !step.starts_with('.') && step.chars().all(allowed);
    path.len() <= 512 && path.split('/').all(safe)
}
