//! Slots: folders that hold one bundle whole, or count as empty.
//!
//! A slot holds `manifest.json`, the manifest's files under their device names, and, written last
//! in one atomic step, `complete` with the manifest's digest. It is cleared first (`complete` before
//! all else), so that a cut at any point leaves a slot that is not whole; [`read`] checks every
//! hash again, and only what it accepts may run.

use super::UpdateError;
use crate::files::{self, Disk, FileError};
use dunlin_protocol::bundle::{Blob, MANIFEST_MAX_BYTES, Manifest, ManifestError};
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::trust::Verified;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Name of the manifest in a slot.
pub const MANIFEST: &str = "manifest.json";
const COMPLETE: &str = "complete";

/// Folder of all slots in a state folder, by family.
#[must_use]
pub fn models_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("models")
}

/// What a whole slot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedInfo {
    /// Family of the bundle.
    pub family: Family,
    /// Its version.
    pub version: u64,
    /// Digest of its manifest.
    pub digest: Digest,
}

/// Why a slot may not run.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// A file of it cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The marker is not a digest.
    #[error("{COMPLETE}: expected a digest, got {0:?}")]
    Marker(String),
    /// The manifest is not one.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file is not the signed one.
    #[error("{file}: expected SHA-256 {expected}, got {got}")]
    Hash {
        /// Name in the slot.
        file: &'static str,
        /// As in the manifest.
        expected: Digest,
        /// As on disk.
        got: Digest,
    },
}

/// What the slot holds, if it is whole; otherwise `None`, and a warning says why (none for an
/// empty or missing slot).
#[must_use]
pub fn read(disk: &Disk, slot: &Path) -> Option<StagedInfo> {
    match check(disk, slot) {
        Ok(info) => info,
        Err(error) => {
            tracing::warn!(slot = %slot.display(), %error, "slot is not whole, not used");
            None
        }
    }
}

/// The bundle that a slot claims to hold whole; nothing is checked.
pub(crate) fn claims(disk: &Disk, slot: &Path) -> Option<Digest> {
    let marker = disk.read_if_there(&slot.join(COMPLETE), 256).ok()??;
    String::from_utf8_lossy(&marker).trim().parse().ok()
}

/// As [`read`], with the reason: `Ok(None)` if nothing was ever completed in the slot.
///
/// # Errors
/// [`SlotError`]
pub fn check(disk: &Disk, slot: &Path) -> Result<Option<StagedInfo>, SlotError> {
    let Some(marker) = disk.read_if_there(&slot.join(COMPLETE), 256)? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&marker).trim().to_owned();
    let digest: Digest = text.parse().map_err(|_| SlotError::Marker(text))?;
    let bytes = disk.read_bounded(&slot.join(MANIFEST), MANIFEST_MAX_BYTES as u64)?;
    expect(MANIFEST, digest, Digest::of(&bytes))?;
    let manifest = Manifest::parse(&bytes)?;
    for (name, blob) in manifest.files.named() {
        expect(name, blob.sha256, digest_of_file(disk, &slot.join(name))?)?;
    }
    Ok(Some(StagedInfo {
        family: manifest.family,
        version: manifest.version,
        digest,
    }))
}

fn expect(file: &'static str, expected: Digest, got: Digest) -> Result<(), SlotError> {
    if expected == got {
        return Ok(());
    }
    Err(SlotError::Hash {
        file,
        expected,
        got,
    })
}

/// Clears the slot and fills it from `blobs`, whose content the caller has hashed.
///
/// # Errors
/// Disk, or `bytes` that are not the manifest. The slot is then not whole.
pub(crate) fn write(
    disk: &Disk,
    slot: &Path,
    manifest: &Verified<Manifest>,
    bytes: &[u8],
    blobs: &Path,
) -> Result<StagedInfo, UpdateError> {
    if Manifest::parse(bytes).as_ref() != Ok(manifest.get()) {
        return Err(UpdateError::refused(
            "bad_manifest",
            "the bytes to be staged are not the verified manifest",
        ));
    }
    clear(disk, slot)?;
    disk.create_private_dir(slot)?;
    for (name, blob) in manifest.files.named() {
        let from = blobs.join(blob.sha256.to_string());
        place(disk, &from, &slot.join(name), blob)?;
    }
    disk.write_atomic(&slot.join(MANIFEST), bytes, 0o600)?;
    let digest = Digest::of(bytes);
    disk.write_atomic(
        &slot.join(COMPLETE),
        format!("{digest}\n").as_bytes(),
        0o600,
    )?;
    Ok(StagedInfo {
        family: manifest.family.clone(),
        version: manifest.version,
        digest,
    })
}

/// Empties a slot, its claim to be whole first.
///
/// # Errors
/// [`FileError`]
pub fn clear(disk: &Disk, slot: &Path) -> Result<(), FileError> {
    if disk.look(slot)?.is_none() {
        return Ok(());
    }
    disk.remove_if_there(&slot.join(COMPLETE))?;
    disk.sync_dir(slot)?;
    disk.remove_tree(slot)
}

/// A hard link where the file system can, else a copy.
fn place(disk: &Disk, from: &Path, to: &Path, blob: &Blob) -> Result<(), FileError> {
    if disk.hard_link(from, to).is_ok() {
        return Ok(());
    }
    let mut source = disk.open(from)?;
    let mut copy = disk.create_new(to, 0o600)?;
    let copied = io::copy(&mut source, &mut copy).map_err(files::at("copy blob to", to))?;
    if copied != blob.length {
        let short = io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{copied} bytes copied, {} expected", blob.length),
        );
        return Err(files::at("copy blob to", to)(short));
    }
    copy.sync().map_err(files::at("sync", to))
}

/// SHA-256 of a file, read piece by piece.
pub(crate) fn digest_of_file(disk: &Disk, path: &Path) -> Result<Digest, FileError> {
    use sha2::Digest as _;
    let mut hasher = sha2::Sha256::new();
    hash_into(disk, path, &mut hasher)?;
    Ok(Digest(hasher.finalize().into()))
}

/// Feeds a file to a hasher; returns its length in bytes.
pub(crate) fn hash_into(
    disk: &Disk,
    path: &Path,
    hasher: &mut sha2::Sha256,
) -> Result<u64, FileError> {
    use sha2::Digest as _;
    let mut file = disk.open(path)?;
    let mut buffer = vec![0; 1 << 16];
    let mut length = 0;
    loop {
        match file.read(&mut buffer).map_err(files::at("read", path))? {
            0 => return Ok(length),
            n => {
                hasher.update(&buffer[..n]);
                length += n as u64;
            }
        }
    }
}
