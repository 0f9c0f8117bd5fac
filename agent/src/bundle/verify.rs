//! The TUF client cycle: what is offered becomes trusted metadata, step by step, each accepted file
//! stored at once, so that what was seen once counts also after a power cut. The decisions are
//! [`TrustedSet`]'s.
//!
//! `<state_dir>/trust/` holds `enrolled_root.json` (the anchor that the claim token sealed, never
//! replaced), `root.json`, `timestamp.json`, `snapshot.json`, `targets.json` (the newest accepted),
//! `delegated/` (likewise, of delegated roles), `floors.json` (highest rollback floor ever seen, by
//! family) and `time_floor` (latest time of a successful refresh).

mod store;

use crate::http::Client;
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::{
    DelegatedFile, FileRequest, FoundTarget, Freshness, Lookup, OnlineKeys, Role, RoleName,
    TrustError, TrustedSet, VerifiedTarget, check_target,
};
use jiff::Timestamp;

pub use super::{Kind, UpdateError};
pub use store::{MetadataFolder, TrustStore};

/// Where metadata comes from: a server, blocks over MQTT, a folder, an archive.
///
/// A source is not trusted, but it must end: it gives up on a file that is longer than asked for
/// (endless data) and on one that comes too slowly (slow retrieval).
pub trait MetadataSource: Sync {
    /// The file `name`, of at most `max_bytes` bytes; `None` if the repository has none.
    ///
    /// The name is one component, percent-encoded as in a URL: `3.root.json`, `timestamp.json`,
    /// `7.team%2Fa.json`. A folder or an archive keeps its files under exactly these names.
    ///
    /// # Errors
    /// [`Kind::Refused`] for a longer file, [`Kind::Transient`] if it may come another time. An
    /// answer that is not clearly "there is none" is an error: it must not hide a new root.
    fn fetch(
        &self,
        name: &str,
        max_bytes: u64,
    ) -> impl Future<Output = Result<Option<Vec<u8>>, UpdateError>> + Send;
}

/// A file that must be there.
async fn required(
    source: &impl MetadataSource,
    file: &FileRequest,
) -> Result<Vec<u8>, UpdateError> {
    let bytes = source.fetch(&file.name, file.max_bytes).await?;
    bytes.ok_or_else(|| UpdateError {
        kind: Kind::Transient,
        code: "missing",
        detail: format!("{}: the repository has no such file", file.name),
    })
}

/// Where a repository's files are.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    pub(crate) client: Client,
    base_url: String,
}

impl Repository {
    pub(crate) fn new(client: Client, base_url: &str) -> Self {
        Self {
            client,
            base_url: base_url.trim_end_matches('/').to_owned(),
        }
    }

    pub(crate) fn blob_url(&self, digest: &Digest) -> String {
        format!("{}/repository/blobs/{digest}", self.base_url)
    }

    pub(crate) fn target_url(&self, consistent_path: &str) -> String {
        format!("{}/repository/targets/{consistent_path}", self.base_url)
    }
}

impl MetadataSource for Repository {
    async fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, UpdateError> {
        let url = format!("{}/repository/metadata/{name}", self.base_url);
        Ok(self.client.get_if_there(&url, max_bytes).await?)
    }
}

/// The device's cycle: [`update_metadata`] at a time that never goes back.
pub(crate) async fn refresh(
    source: &impl MetadataSource,
    store: &TrustStore,
    clock: Timestamp,
) -> Result<TrustedSet, UpdateError> {
    let now = store.now(clock)?;
    let set = update_metadata(source, store.metadata(), now).await?;
    store.drop_unlisted(set.snapshot()?)?;
    store.raise_time_floor(now)?;
    Ok(set)
}

/// One TUF cycle (5.1 to 5.6) of the top-level roles: root, timestamp, snapshot, targets, each
/// stored in `stored` once accepted. `now` is the time of the whole cycle.
///
/// # Errors
/// No stored root, or the first step that failed; what was accepted before it stays stored.
pub async fn update_metadata(
    source: &impl MetadataSource,
    stored: &MetadataFolder,
    now: Timestamp,
) -> Result<TrustedSet, UpdateError> {
    // 5.1 The time is fixed once. 5.2 The trusted root.
    let root = Role::Root.into();
    let bytes = stored.read(&root)?.ok_or_else(|| {
        UpdateError::refused(
            "no_root",
            format!(
                "{} is missing: a device without a trust root takes nothing; enrol it",
                stored.path(&root).display()
            ),
        )
    })?;
    let mut set = TrustedSet::from_root(&bytes, now)?;
    update_root(source, stored, &mut set).await?;
    update_timestamp(source, stored, &mut set).await?;
    // 5.5 Snapshot.
    let snapshot = Role::Snapshot.into();
    load(stored.read(&snapshot)?, |b| set.load_trusted_snapshot(b));
    if let Some(file) = set.snapshot_to_fetch()? {
        let bytes = required(source, &file).await?;
        set.update_snapshot(&bytes)?;
        stored.write(&snapshot, &bytes)?;
    }
    // 5.6 Targets.
    let targets = Role::Targets.into();
    load(stored.read(&targets)?, |b| set.load_trusted_targets(b));
    if let Some(file) = set.targets_to_fetch()? {
        let bytes = required(source, &file).await?;
        set.update_targets(&bytes)?;
        stored.write(&targets, &bytes)?;
    }
    Ok(set)
}

/// 5.3 Root, version by version.
async fn update_root(
    source: &impl MetadataSource,
    stored: &MetadataFolder,
    set: &mut TrustedSet,
) -> Result<(), UpdateError> {
    loop {
        let file = set.root_to_fetch();
        // Only "there is none" ends the chain: a server out of order must not hide a rotation.
        let Some(bytes) = source.fetch(&file.name, file.max_bytes).await? else {
            break;
        };
        if set.update_root(&bytes)? == OnlineKeys::Rotated {
            stored.drop_timestamp_and_snapshot()?;
        }
        stored.write(&Role::Root.into(), &bytes)?;
        tracing::info!(version = set.root().version, "trust root rotated");
    }
    Ok(set.finish_root()?)
}

/// 5.4 Timestamp.
async fn update_timestamp(
    source: &impl MetadataSource,
    stored: &MetadataFolder,
    set: &mut TrustedSet,
) -> Result<(), UpdateError> {
    let timestamp = RoleName::from(Role::Timestamp);
    load(stored.read(&timestamp)?, |b| set.load_trusted_timestamp(b));
    let file = FileRequest {
        name: Role::Timestamp.file_name(0, true),
        max_bytes: Role::Timestamp.max_bytes() as u64,
    };
    let bytes = required(source, &file).await?;
    match set.update_timestamp(&bytes)? {
        Freshness::New => Ok(stored.write(&timestamp, &bytes)?),
        Freshness::Unchanged => Ok(()),
    }
}

/// Searches the target `path` (5.6.7). The metadata of delegated roles is fetched as the search
/// needs it, and stored once accepted.
///
/// # Errors
/// No such target, or metadata on the way that is not trusted: the search ends there, so that
/// nobody can hide a role that would have decided.
pub async fn find_target(
    source: &impl MetadataSource,
    stored: &MetadataFolder,
    set: &mut TrustedSet,
    path: &str,
) -> Result<FoundTarget, UpdateError> {
    // Ends: every turn takes one more file, of which a search needs a bounded number.
    loop {
        match set.find(path)? {
            Lookup::Found(found) => return Ok(found),
            Lookup::Needs(file) => update_delegated(source, stored, set, &file).await?,
        }
    }
}

/// 5.6.1 to 5.6.6 for a delegated role.
async fn update_delegated(
    source: &impl MetadataSource,
    stored: &MetadataFolder,
    set: &mut TrustedSet,
    file: &DelegatedFile,
) -> Result<(), UpdateError> {
    if let Some(bytes) = stored.read(file.role())?
        && set.update_delegated(file, &bytes).is_ok()
    {
        return Ok(());
    }
    let bytes = required(source, &file.request).await?;
    set.update_delegated(file, &bytes)?;
    Ok(stored.write(file.role(), &bytes)?)
}

/// Offers a stored file; one that is no longer trusted counts as absent, as the specification wants.
fn load(stored: Option<Vec<u8>>, take: impl FnOnce(&[u8]) -> Result<(), TrustError>) {
    if let Some(Err(error)) = stored.map(|bytes| take(&bytes)) {
        tracing::info!(%error, "stored metadata dropped");
    }
}

/// Finds the wanted bundle among the signed targets, raises the floors, and checks that this device
/// may have it.
pub(crate) async fn select(
    source: &impl MetadataSource,
    set: &mut TrustedSet,
    store: &TrustStore,
    want: &DesiredBundle,
    hardware: &str,
) -> Result<VerifiedTarget, UpdateError> {
    // Whether or not the wanted target is there.
    store.raise_floors(set, None)?;
    let found = find_target(source, store.metadata(), set, &want.target).await?;
    let floors = store.raise_floors(set, Some(&found))?;
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
