//! What is missing is fetched: resumed where it broke off, hashed on its way to the disk.

use super::meter::Meter;
use super::{Receiver, Turn, blocking};
use crate::bundle::source::{Download, Source, SourceError};
use crate::bundle::{Kind, UpdateError, stage};
use crate::files::{self, Disk, FileError, OpenFile};
use dunlin_protocol::bundle::{Blob, MANIFEST_MAX_BYTES, Manifest};
use dunlin_protocol::id::Digest;
use dunlin_protocol::repository::RepositoryFile;
use dunlin_protocol::trust::{TrustError, Verified, VerifiedTarget};
use sha2::{Digest as _, Sha256};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Largest window of a compressed blob, as a power of two of bytes: bounds the memory of unpacking.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A file that has to be fetched.
pub(super) struct Missing<'a> {
    pub(super) name: &'static str,
    pub(super) blob: &'a Blob,
}

impl Receiver {
    /// The manifest, from the device if it is there; fetched again once if it is not as signed.
    pub(super) async fn manifest(
        &self,
        source: &Source,
        target: VerifiedTarget,
    ) -> Result<(Verified<Manifest>, Vec<u8>), UpdateError> {
        let entry = target.entry();
        let max = MANIFEST_MAX_BYTES as u64;
        if entry.length > max {
            return Err(TrustError::TooLarge {
                what: entry.path.clone(),
                max,
                got: entry.length,
            }
            .into());
        }
        let path = self.blob(&target.digest());
        let held = self.disk.read_if_there(&path, entry.length);
        if let Ok(Some(bytes)) = held
            && entry.verify_bytes(&bytes).is_ok()
        {
            return Ok((target.open_manifest(&bytes)?, bytes));
        }
        let file = RepositoryFile::target(&entry.consistent_path()).map_err(SourceError::from)?;
        let mut bytes = required(source, &file, entry.length).await?;
        if entry.verify_bytes(&bytes).is_err() {
            bytes = required(source, &file, entry.length).await?;
        }
        let manifest = target.open_manifest(&bytes)?;
        self.disk.write_atomic(&path, &bytes, 0o600)?;
        Ok((manifest, bytes))
    }

    /// The manifest's files that are not on the device yet; those that are damaged or cannot be read
    /// are removed: a worn spot of the flash must not end updates for ever.
    pub(super) async fn missing<'a>(
        &self,
        turn: &Turn,
        manifest: &'a Manifest,
    ) -> Result<Vec<Missing<'a>>, UpdateError> {
        let mut missing = Vec::new();
        for (name, blob) in manifest.files.named() {
            let path = self.blob(&blob.sha256);
            let (expected, disk) = (blob.sha256, self.disk.clone());
            let held = blocking(turn, move || match stage::digest_of_file(&disk, &path) {
                Ok(got) if got == expected => Ok(true),
                Ok(_) => disk.remove_if_there(&path).map(|()| false),
                Err(e) if e.is_not_found() => Ok(false),
                Err(error) => {
                    tracing::warn!(%error, "a held blob cannot be read and is fetched again");
                    disk.remove_if_there(&path).map(|()| false)
                }
            })
            .await??;
            if !held {
                missing.push(Missing { name, blob });
            }
        }
        Ok(missing)
    }

    /// Brings one blob to the device; one that is not as signed is fetched once more from scratch.
    pub(super) async fn fetch<F: FnMut(u64, u64) + Send>(
        &self,
        turn: &Turn,
        source: &Source,
        file: &Missing<'_>,
        meter: &mut Meter<F>,
    ) -> Result<(), UpdateError> {
        let (expected, length) = file.blob.transport();
        let partial = self.partials().join(expected.to_string());
        let begun = meter.done;
        let wanted = Wanted {
            name: file.name,
            file: RepositoryFile::Blob(expected),
            length,
            partial: &partial,
        };
        let mut got = self.download(turn, source, &wanted, None, meter).await?;
        if got != expected {
            tracing::warn!(file = file.name, %expected, %got, "download is damaged, fetched again");
            self.disk.remove_if_there(&partial)?;
            meter.done = begun;
            got = self.download(turn, source, &wanted, None, meter).await?;
        }
        if got != expected {
            self.disk.remove_if_there(&partial)?;
            return Err(UpdateError::refused(
                "hash",
                format!(
                    "{}: SHA-256 is {got}, but {expected} is signed (fetched twice)",
                    file.name
                ),
            ));
        }
        let (name, blob) = (file.name, file.blob.clone());
        let (path, folder) = (self.blob(&file.blob.sha256), self.blobs.clone());
        let disk = self.disk.clone();
        blocking(turn, move || {
            let whole = match &blob.packed {
                Some(_) => unpack(&disk, name, &partial, &blob)?,
                None => partial.clone(),
            };
            disk.rename(&whole, &path)?;
            disk.remove_if_there(&partial)?;
            Ok(disk.sync_dir(&folder)?)
        })
        .await?
    }

    /// Completes a partial file, durably, and returns its digest. Never longer than expected.
    /// `opened` is a download that begins where the partial file ends, if there is one already.
    pub(super) async fn download<F: FnMut(u64, u64) + Send>(
        &self,
        turn: &Turn,
        source: &Source,
        wanted: &Wanted<'_>,
        opened: Option<Download>,
        meter: &mut Meter<F>,
    ) -> Result<Digest, UpdateError> {
        let Wanted {
            name,
            file,
            length,
            partial,
        } = wanted;
        let (begun, length) = (meter.done, *length);
        let (mut hasher, mut have) = resume(&self.disk, turn, partial, length).await?;
        meter.set(begun + have);
        if have < length {
            let mut body = match opened {
                Some(opened) => opened,
                None => self.open_at(source, file, partial, have).await?,
            };
            if body.offset != have {
                (hasher, have) = (Sha256::new(), body.offset);
                meter.set(begun);
            }
            if let Some(got) = body.total_bytes.filter(|&n| n != length) {
                return Err(wrong_length(name, length, got));
            }
            let mut out = open_partial(&self.disk, partial, have)?;
            while let Some(bytes) = body.chunk().await? {
                have += bytes.len() as u64;
                meter.spent.fetched_bytes += bytes.len() as u64;
                if have > length {
                    self.disk.remove_if_there(partial)?;
                    return Err(wrong_length(name, length, have));
                }
                hasher.update(&bytes);
                out.write_all(&bytes).map_err(files::at("write", partial))?;
                meter.set(begun + have);
            }
            if have < length {
                return Err(UpdateError {
                    kind: Kind::Transient,
                    code: "broken",
                    detail: format!("{file}: broke off after {have} of {length} bytes"),
                });
            }
            let path = partial.to_path_buf();
            blocking(turn, move || out.sync().map_err(files::at("sync", &path))).await??;
        }
        Ok(Digest(hasher.finalize().into()))
    }

    async fn open_at(
        &self,
        source: &Source,
        file: &RepositoryFile,
        partial: &Path,
        have: u64,
    ) -> Result<Download, UpdateError> {
        match source.open(file, have).await {
            // There is no such byte: what we have is not of this file.
            Err(error) if error.is_beyond_end() => {
                self.disk.remove_if_there(partial)?;
                Ok(source.open(file, 0).await?)
            }
            other => Ok(other?),
        }
    }
}

/// A file on its way.
pub(super) struct Wanted<'a> {
    /// Its name for people.
    pub(super) name: &'static str,
    /// Its name in the repository.
    pub(super) file: RepositoryFile,
    /// Its length in bytes.
    pub(super) length: u64,
    /// Where it lies until it is whole.
    pub(super) partial: &'a Path,
}

async fn required(
    source: &Source,
    file: &RepositoryFile,
    max_bytes: u64,
) -> Result<Vec<u8>, SourceError> {
    source.open(file, 0).await?.collect(file, max_bytes).await
}

fn wrong_length(name: &str, expected: u64, got: u64) -> UpdateError {
    let what = name.to_owned();
    if got > expected {
        let max = expected;
        TrustError::TooLarge { what, max, got }.into()
    } else {
        TrustError::LengthMismatch {
            what,
            expected,
            got,
        }
        .into()
    }
}

/// The hash so far, and the length, of what an earlier attempt left.
async fn resume(
    disk: &Disk,
    turn: &Turn,
    partial: &Path,
    length: u64,
) -> Result<(Sha256, u64), UpdateError> {
    let (on, path) = (disk.clone(), partial.to_owned());
    let found = blocking(turn, move || {
        let mut hasher = Sha256::new();
        stage::hash_into(&on, &path, &mut hasher).map(|have| (hasher, have))
    })
    .await?;
    match found {
        Ok((hasher, have)) if have <= length => Ok((hasher, have)),
        Ok(_) => {
            disk.remove_if_there(partial)?;
            Ok((Sha256::new(), 0))
        }
        Err(e) if e.is_not_found() => Ok((Sha256::new(), 0)),
        Err(error) => {
            tracing::warn!(%error, "what was fetched cannot be read and is fetched again");
            disk.remove_if_there(partial)?;
            Ok((Sha256::new(), 0))
        }
    }
}

/// Opens a partial file of which the first `have` bytes count. Its writes are synchronous, so that
/// a dropped future leaves none under way behind the next one's back.
pub(super) fn open_partial(
    disk: &Disk,
    partial: &Path,
    have: u64,
) -> Result<Box<dyn OpenFile>, FileError> {
    disk.append_after(partial, have, 0o600)
}

/// Unpacks a compressed blob, bounded by its signed length, into a file of its own; checks its hash.
fn unpack(disk: &Disk, name: &str, packed: &Path, blob: &Blob) -> Result<PathBuf, UpdateError> {
    let out = packed.with_extension("unpacked");
    let result = unpack_into(disk, name, packed, &out, blob);
    if result.is_err() {
        let _ = disk.remove_if_there(&out);
        disk.remove_if_there(packed)?;
    }
    result.map(|()| out)
}

fn unpack_into(
    disk: &Disk,
    name: &str,
    packed: &Path,
    out: &Path,
    blob: &Blob,
) -> Result<(), UpdateError> {
    let bad = |e: io::Error| match e.raw_os_error() {
        Some(_) => UpdateError::from(files::at("read", packed)(e)),
        None => UpdateError::refused("packed", format!("{name}: signed, but no zstd: {e}")),
    };
    let file = disk.open(packed)?;
    let mut decoder = zstd::stream::read::Decoder::new(file).map_err(bad)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(bad)?;
    let mut to = open_partial(disk, out, 0)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut length = 0;
    loop {
        let n = decoder.read(&mut buffer).map_err(bad)?;
        if n == 0 {
            break;
        }
        length += n as u64;
        if length > blob.length {
            return Err(wrong_length(name, blob.length, length));
        }
        hasher.update(&buffer[..n]);
        to.write_all(&buffer[..n])
            .map_err(files::at("write", out))?;
    }
    let got = Digest(hasher.finalize().into());
    if got != blob.sha256 {
        return Err(TrustError::HashMismatch {
            what: format!("{name} (unpacked)"),
            expected: blob.sha256,
            got,
        }
        .into());
    }
    Ok(to.sync().map_err(files::at("sync", out))?)
}
