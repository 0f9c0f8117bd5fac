//! Whose list of targets is signed next: the top-level one, or that of a delegated role. Everything
//! it rests on is verified from the operator's own roots, whoever it came from.

use super::{SignError, check_not_older, verified_by_chain, verified_targets};
use crate::args::Shared;
use crate::context::Session;
use crate::failure::Failure;
use crate::files;
use crate::keys::quorum::Quorum;
use crate::keys::{self, KeysError};
use dunlin_protocol::trust::{
    Delegations, Envelope, Metadata, Role, RootMetadata, SNAPSHOT_MAX_BYTES, SnapshotMetadata,
    TARGETS_MAX_BYTES, TIMESTAMP_MAX_BYTES, TargetsMetadata, TimestampMetadata,
};
use jiff::Timestamp;
use std::path::{Path, PathBuf};

/// Name of the top-level role.
pub const TARGETS: &str = "targets";

/// A list to be signed: its role, who may sign it, and what it rests on.
#[derive(Debug, Clone)]
pub struct SignedList {
    /// `targets`, or a delegated role.
    pub role: String,
    /// Who may sign it.
    pub quorum: Quorum,
    /// Every root of the operator's folder, oldest first.
    pub roots: Vec<RootMetadata>,
    /// The newest of them, exactly as signed.
    pub root: Vec<u8>,
    /// For a delegated role: the targets metadata that delegate, exactly as signed, and how.
    pub delegator: Option<(Vec<u8>, Delegations)>,
}

impl SignedList {
    /// The top-level list, by the roots in `folder`.
    ///
    /// # Errors
    /// The folder's roots do not verify.
    pub fn top(folder: &Path) -> Result<Self, KeysError> {
        let roots = keys::trusted_roots(folder, Timestamp::now())?;
        let root = keys::root_files(folder)?.pop();
        let (Some(newest), Some(root)) = (roots.last(), root) else {
            return Err(KeysError::NoRoot(folder.to_owned()));
        };
        Ok(Self {
            role: TARGETS.to_owned(),
            quorum: Quorum::of_root(newest, Role::Targets),
            roots,
            root,
            delegator: None,
        })
    }

    /// The list of `role`, to which the top-level `targets` delegate.
    ///
    /// # Errors
    /// `targets` are not signed as root demands, or do not delegate to `role`.
    pub fn delegated(self, role: &str, targets: &[u8]) -> Result<Self, Failure> {
        let top = verified_by_chain(&self.roots, targets)?;
        let no = || KeysError::NoDelegation {
            role: role.to_owned(),
        };
        let delegations = top.delegations.ok_or_else(no)?;
        let quorum = Quorum::of_delegation(&delegations, role, top.version).ok_or_else(no)?;
        Ok(Self {
            role: role.to_owned(),
            quorum,
            delegator: Some((targets.to_vec(), delegations)),
            ..self
        })
    }

    /// Reads a list of this role that is to be built on, and remembers it beside the keys.
    ///
    /// # Errors
    /// Too few signatures, or older than one built on before.
    pub fn verified(
        &self,
        folder: &Path,
        bytes: Option<&[u8]>,
    ) -> Result<Option<TargetsMetadata>, Failure> {
        let read = |bytes: &[u8]| match &self.delegator {
            None => Ok(verified_by_chain(&self.roots, bytes)?),
            Some(_) => {
                let envelope = Envelope::parse(bytes, TARGETS_MAX_BYTES)?;
                let targets = TargetsMetadata::read(&envelope)?;
                let standing = self.quorum.clone().standing(&envelope)?;
                match standing.missing {
                    0 => Ok(targets),
                    _ => Err(Failure::new(format!(
                        "{} version {}: {} distinct keys signed, {} names {}; start anew with --first",
                        self.role,
                        targets.version,
                        standing.signed.len(),
                        self.quorum.named_by,
                        self.quorum.threshold
                    ))),
                }
            }
        };
        let previous = bytes.map(read).transpose()?;
        check_not_older(folder, &self.role, bytes)?;
        Ok(previous)
    }

    /// Refuses a top-level list that only keys withdrawn since have signed: whoever stole those may
    /// have put into it what he likes.
    ///
    /// # Errors
    /// [`SignError::WithdrawnKeys`], or not targets metadata.
    pub fn check_of_today(&self, bytes: &[u8]) -> Result<(), SignError> {
        if self.delegator.is_some() {
            return Ok(());
        }
        let newest = self.roots.last().ok_or(SignError::NoRoot)?;
        match verified_targets(newest, bytes) {
            Ok(_) => Ok(()),
            Err(_) => Err(SignError::WithdrawnKeys {
                version: verified_by_chain(&self.roots, bytes)?.version,
                root_version: newest.version,
            }),
        }
    }

    /// Refuses a target for which the role may not speak.
    ///
    /// # Errors
    /// [`SignError::OutOfScope`]
    pub fn check_scope(&self, path: &str) -> Result<(), SignError> {
        match &self.delegator {
            Some((_, delegations)) if !delegations.allows(&self.role, path) => {
                Err(SignError::OutOfScope {
                    path: path.to_owned(),
                    role: self.role.clone(),
                })
            }
            _ => Ok(()),
        }
    }
}

/// The newest list of `role` that the server has, not verified.
///
/// # Errors
/// No server, or it does not have what it says it has.
pub async fn newest(shared: &Shared, role: &str) -> Result<Option<Vec<u8>>, Failure> {
    let session = Session::open(shared).map_err(|e| Failure {
        message: format!(
            "{e}; or give the newest metadata with --targets FILE, or --first if the fleet has none"
        ),
        ..e
    })?;
    let (fleet, _) = session.fleet().await?;
    let version = match role {
        TARGETS => fleet.targets_version,
        _ => listed_version(&session, role).await?,
    };
    let Some(version) = version else {
        return Ok(None);
    };
    let name = format!("{version}.{role}.json");
    let bytes = session.client.metadata_file(&name).await?;
    match bytes {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(Failure::new(format!(
            "the server says that {name} is its newest metadata of {role}, but does not have it"
        ))),
    }
}

/// The version of a delegated role that the server's snapshot lists.
async fn listed_version(session: &Session, role: &str) -> Result<Option<u64>, Failure> {
    let Some(bytes) = session.client.metadata_file("timestamp.json").await? else {
        return Ok(None);
    };
    let envelope = Envelope::parse(&bytes, TIMESTAMP_MAX_BYTES)?;
    let timestamp = TimestampMetadata::read(&envelope)?;
    let name = Role::Snapshot.file_name(timestamp.snapshot.version, true);
    let Some(bytes) = session.client.metadata_file(&name).await? else {
        return Ok(None);
    };
    let envelope = Envelope::parse(&bytes, SNAPSHOT_MAX_BYTES)?;
    let snapshot = SnapshotMetadata::read(&envelope)?;
    let listed = snapshot.meta.get(&format!("{role}.json"));
    Ok(listed.map(|file| file.version))
}

/// A file named on the command line, or the server's newest.
///
/// # Errors
/// The file cannot be read, or as [`newest`].
pub async fn given_or_newest(
    given: Option<&PathBuf>,
    shared: &Shared,
    role: &str,
) -> Result<Option<Vec<u8>>, Failure> {
    match given {
        Some(file) => Ok(Some(files::read_bounded(file, TARGETS_MAX_BYTES as u64)?)),
        None => newest(shared, role).await,
    }
}
