//! New targets metadata: what the fleet may install, signed by the offline targets keys.
//!
//! It is built only on targets metadata whose own signatures were verified with the operator's
//! root: a captured server cannot slip a target into what gets signed next.

pub mod command;
pub mod list;

pub use list::SignedList;

use crate::files::{self, FileError};
use crate::keys::quorum::Quorum;
use crate::keys::{self, KeysError};
use crate::pack::PackedBundle;
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::{
    Envelope, Metadata, Role, RootMetadata, SigningKey, TARGETS_MAX_BYTES, TargetCustom,
    TargetEntry, TargetsMetadata, TrustError, add_signature, highest_floor, new_delegating_targets,
    new_targets, sign_envelope,
};
use jiff::Timestamp;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where the newest verified metadata of a role that was built on are kept, beside the keys.
fn memory(key_folder: &Path, role: &str) -> PathBuf {
    key_folder.join(format!("seen.{role}.json"))
}

/// Why targets metadata is not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Not usable metadata, or a key that cannot sign.
    #[error("{0}")]
    Trust(#[from] TrustError),
    /// A file cannot be read or written.
    #[error("{0}")]
    File(#[from] FileError),
    /// The same version with other content.
    #[error(
        "{path} is already signed with SHA-256 {signed}, this bundle has {got}: a version never changes, raise it in bundle.toml"
    )]
    Changed {
        /// Target's name.
        path: String,
        /// Digest listed before.
        signed: Digest,
        /// Digest of the bundle.
        got: Digest,
    },
    /// A floor that falls would reopen what the key holders have closed.
    #[error(
        "{path} is signed with rollback floor {signed}, this bundle has {got}: a floor never falls; raise rollback_floor in bundle.toml"
    )]
    LowerFloor {
        /// Target's name.
        path: String,
        /// Floor listed before.
        signed: u64,
        /// Floor of the bundle.
        got: u64,
    },
    /// Devices would refuse it.
    #[error("{path} is below the rollback floor {floor} of its family: devices would refuse it")]
    BelowFloor {
        /// Target's name.
        path: String,
        /// Highest floor listed.
        floor: u64,
    },
    /// A key that is not among those that may sign the list.
    #[error(
        "key {keyid} is not among the keys that {named_by} names for this list: nobody would count its signature"
    )]
    NotASigner {
        /// The key's id.
        keyid: String,
        /// Who names the keys.
        named_by: String,
    },
    /// A bundle outside of what was delegated.
    #[error(
        "{path}: role {role} may not speak for it: it is outside of the paths that targets delegate"
    )]
    OutOfScope {
        /// Target's name.
        path: String,
        /// The role.
        role: String,
    },
    /// The metadata to build on is older than one already built on.
    #[error(
        "the targets metadata to build on is {offered}, but version {seen} was seen before: the server was set back, or hides newer ones. Give the newest with --targets FILE"
    )]
    Older {
        /// What is offered.
        offered: String,
        /// Newest seen.
        seen: u64,
    },
    /// No root to verify with.
    #[error("no root metadata to verify the targets with")]
    NoRoot,
    /// Only keys that a later root withdrew have signed the list.
    #[error(
        "targets version {version} are signed by keys that root version {root_version} has withdrawn: look at the list; then name it with --targets FILE, or sign by --request, which shows all of it"
    )]
    WithdrawnKeys {
        /// Version of the list.
        version: u64,
        /// Newest root version.
        root_version: u64,
    },
    /// The version counter is at its end.
    #[error("targets version {0} has no successor")]
    VersionsExhausted(u64),
}

/// Signed targets metadata.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The file.
    pub bytes: Vec<u8>,
    /// What it says.
    pub targets: TargetsMetadata,
}

impl Signed {
    fn of(envelope: &Envelope) -> Result<Self, SignError> {
        Ok(Self {
            bytes: envelope.to_bytes(),
            targets: TargetsMetadata::read(envelope)?,
        })
    }
}

/// Lists `bundles` beside what `previous` lists, as the next version, signed by `keys`.
///
/// `previous` must come from [`verified_targets`].
///
/// # Errors
/// A bundle changes a version that is listed, or is below its family's floor.
pub fn sign(
    bundles: &[PackedBundle],
    previous: Option<&TargetsMetadata>,
    keys: &[SigningKey],
    expires: Timestamp,
) -> Result<Signed, SignError> {
    let signed = next_list(bundles, previous, expires)?;
    let signers: Vec<&SigningKey> = keys.iter().collect();
    Signed::of(&sign_envelope(signed, &signers)?)
}

/// The unsigned part of the list that [`sign`] signs.
///
/// # Errors
/// As [`sign`].
pub fn next_list(
    bundles: &[PackedBundle],
    previous: Option<&TargetsMetadata>,
    expires: Timestamp,
) -> Result<Value, SignError> {
    let before = previous.map_or(0, |p| p.version);
    let version = before
        .checked_add(1)
        .ok_or(SignError::VersionsExhausted(before))?;
    let mut next = TargetsMetadata {
        version,
        expires,
        targets: previous.map(|p| p.targets.clone()).unwrap_or_default(),
        delegations: previous.and_then(|p| p.delegations.clone()),
    };
    for bundle in bundles {
        let entry = &bundle.target;
        let listed = next.targets.insert(entry.path.clone(), entry.clone());
        if let Some(listed) = listed {
            check_unchanged(&listed, entry)?;
        }
    }
    for bundle in bundles {
        let custom = TargetCustom::read(&bundle.target)?;
        let floor = highest_floor(&next, &custom.family);
        if custom.version < floor {
            return Err(SignError::BelowFloor {
                path: bundle.target.path.clone(),
                floor,
            });
        }
    }
    Ok(match &next.delegations {
        Some(given) => new_delegating_targets(version, expires, next.targets.values(), given),
        None => new_targets(version, expires, next.targets.values()),
    })
}

/// Keeps the fields of the list before that no rule here knows, such as the holders' names.
///
/// # Errors
/// Not a metadata file.
pub fn carry_over(previous: &[u8], signed: &mut Value) -> Result<(), SignError> {
    let envelope = Envelope::parse(previous, TARGETS_MAX_BYTES)?;
    for (name, value) in envelope.signed().as_object().into_iter().flatten() {
        let known = [
            "_type",
            "spec_version",
            "version",
            "expires",
            "targets",
            "delegations",
        ];
        if !known.contains(&name.as_str()) {
            signed[name] = value.clone();
        }
    }
    Ok(())
}

/// Refuses a target that differs from the one listed under its name, or lowers its floor.
fn check_unchanged(listed: &TargetEntry, entry: &TargetEntry) -> Result<(), SignError> {
    if listed.hashes != entry.hashes {
        return Err(SignError::Changed {
            path: entry.path.clone(),
            signed: listed.sha256()?,
            got: entry.sha256()?,
        });
    }
    let (before, now) = (TargetCustom::read(listed)?, TargetCustom::read(entry)?);
    if now.rollback_floor < before.rollback_floor {
        return Err(SignError::LowerFloor {
            path: entry.path.clone(),
            signed: before.rollback_floor,
            got: now.rollback_floor,
        });
    }
    Ok(())
}

/// What somebody else's targets file changes against the newest this key folder has seen; `None`
/// if it has seen none.
///
/// # Errors
/// It is older, or changes a target or lowers its floor.
pub fn check_follows(
    key_folder: &Path,
    role: &str,
    bytes: &[u8],
) -> Result<Option<TargetsMetadata>, SignError> {
    let memory = memory(key_folder, role);
    if !memory.is_file() {
        return Ok(None);
    }
    let read = |bytes: &[u8]| {
        let envelope = Envelope::parse(bytes, TARGETS_MAX_BYTES)?;
        Ok::<_, SignError>(TargetsMetadata::read(&envelope)?)
    };
    let seen = read(&files::read_bounded(&memory, TARGETS_MAX_BYTES as u64)?)?;
    let offered = read(bytes)?;
    // A co-signer may have sat out some versions, so that more than the next one is fine.
    if offered.version < seen.version {
        return Err(SignError::Older {
            offered: format!("version {}", offered.version),
            seen: seen.version,
        });
    }
    for (path, entry) in &offered.targets {
        if let Some(listed) = seen.targets.get(path) {
            check_unchanged(listed, entry)?;
        }
    }
    Ok(Some(seen))
}

/// Adds signatures to a targets file, in place of earlier ones by the same keys.
///
/// # Errors
/// Not targets metadata.
pub fn add_signatures(bytes: &[u8], keys: &[SigningKey]) -> Result<Signed, SignError> {
    let mut envelope = Envelope::parse(bytes, TARGETS_MAX_BYTES)?;
    TargetsMetadata::read(&envelope)?;
    for key in keys {
        add_signature(&mut envelope, key)?;
    }
    Signed::of(&envelope)
}

/// Reads targets metadata that enough of root's targets keys signed. Expired ones are fine: what is
/// built on them gets a new expiry.
///
/// # Errors
/// Not targets metadata, or too few signatures.
pub fn verified_targets(root: &RootMetadata, bytes: &[u8]) -> Result<TargetsMetadata, SignError> {
    let envelope = Envelope::parse(bytes, TARGETS_MAX_BYTES)?;
    let targets = TargetsMetadata::read(&envelope)?;
    root.verify(Role::Targets, &envelope)?;
    Ok(targets)
}

/// As [`verified_targets`], by the newest root of `roots` (oldest first) whose keys signed them.
///
/// After keys were rotated or revoked, the list that is built on still carries the signatures of
/// before; its next version is signed by the keys of now.
///
/// # Errors
/// As [`verified_targets`], with what the newest root demands.
pub fn verified_by_chain(
    roots: &[RootMetadata],
    bytes: &[u8],
) -> Result<TargetsMetadata, SignError> {
    let mut newest = None;
    for root in roots.iter().rev() {
        match verified_targets(root, bytes) {
            Ok(targets) => {
                if newest.is_some() {
                    eprintln!(
                        "dunlin: note: targets version {} carry the signatures that root version {} asked for, before keys changed: check the list",
                        targets.version, root.version
                    );
                }
                return Ok(targets);
            }
            Err(error) => newest = newest.or(Some(error)),
        }
    }
    Err(newest.unwrap_or(SignError::NoRoot))
}

/// How many distinct keys of `quorum` signed, and how many must; the first is at most the second.
///
/// # Errors
/// Not a metadata file.
pub fn signature_count(quorum: &Quorum, bytes: &[u8]) -> Result<(u64, u64), KeysError> {
    let envelope = Envelope::parse(bytes, TARGETS_MAX_BYTES)?;
    let needed = quorum.threshold;
    let standing = quorum.clone().standing(&envelope)?;
    Ok((needed.saturating_sub(standing.missing), needed))
}

/// Refuses keys whose signature would not count.
///
/// # Errors
/// The first key that `quorum` does not list.
pub fn check_signers(quorum: &Quorum, keys: &[SigningKey]) -> Result<(), SignError> {
    for key in keys {
        let keyid = key.keyid()?;
        if !quorum.keys.contains_key(&keyid) {
            return Err(SignError::NotASigner {
                keyid,
                named_by: quorum.named_by.clone(),
            });
        }
    }
    Ok(())
}

/// Refuses to build on targets metadata older than one this key folder was built on before, and
/// remembers the newer one.
///
/// # Errors
/// It is older, or the memory beside the keys cannot be read or written.
pub fn check_not_older(
    key_folder: &Path,
    role: &str,
    previous: Option<&[u8]>,
) -> Result<(), SignError> {
    let memory: PathBuf = memory(key_folder, role);
    let version = |bytes: &[u8]| keys::shown_version::<TargetsMetadata>(bytes);
    let offered = previous.and_then(version);
    let seen = if memory.is_file() {
        version(&files::read_bounded(&memory, TARGETS_MAX_BYTES as u64)?)
    } else {
        None
    };
    match (seen, offered) {
        (Some(seen), offered) if offered.is_none_or(|o| o < seen) => {
            let offered = offered.map_or_else(|| "none".to_owned(), |o| format!("version {o}"));
            Err(SignError::Older { offered, seen })
        }
        _ => match previous {
            Some(bytes) if seen != offered => Ok(files::write_whole(&memory, bytes)?),
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests;
