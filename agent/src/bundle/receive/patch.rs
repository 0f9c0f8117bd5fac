//! The model as its difference to one that is held, where that is less to fetch.
//!
//! A patch is not signed and not trusted: only its result counts, which must have the signed length
//! and hash. A patch that does not lead there is removed and the whole blob is fetched, once; a
//! device that has begun with the whole blob goes on with it.

use super::fetch::{Missing, Wanted, open_partial};
use super::fit::DISK_RESERVE_BYTES;
use super::meter::Meter;
use super::{Receiver, Turn, blocking};
use crate::bundle::source::{Download, Source};
use crate::bundle::{Kind, UpdateError};
use crate::files::{self, Disk, FileError, OpenFile};
use dunlin_protocol::bundle::{Blob, MANIFEST_MAX_BYTES, Manifest};
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::patch::{self, Limits, PatchError};
use dunlin_protocol::repository::RepositoryFile;
use sha2::{Digest as _, Sha256};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

/// The file that patches are made for.
const MODEL: &str = "model.onnx";
/// Most held models a patch is asked for against.
const BASES_MAX: usize = 2;
const READ_BYTES: usize = 64 * 1024;

/// A patch that a source offers.
struct Offer {
    from: Digest,
    length: u64,
    partial: PathBuf,
    /// Begins where the partial file ends; none if that is whole.
    opened: Option<Download>,
}

impl Receiver {
    /// Makes a missing model from a held one, if the source has a patch that is smaller than what
    /// is left of the model. `false`: the blob has to be fetched.
    pub(super) async fn patch<F: FnMut(u64, u64) + Send>(
        &self,
        turn: &Turn,
        source: &Source,
        manifest: &Manifest,
        file: &Missing<'_>,
        meter: &mut Meter<F>,
    ) -> Result<bool, UpdateError> {
        let (transport, whole) = file.blob.transport();
        let begun = self.partials().join(transport.to_string());
        if file.name != MODEL || self.disk.look(&begun)?.is_some() {
            return Ok(false);
        }
        let Some(offer) = self.offer(turn, source, manifest, file.blob, whole).await? else {
            return Ok(false);
        };
        let (from, to, partial) = (offer.from, file.blob.sha256, offer.partial);
        let (done, fetched) = (meter.done, meter.spent.fetched_bytes);
        meter.replace(whole, offer.length);
        let wanted = Wanted {
            name: "patch",
            file: RepositoryFile::Patch { from, to },
            length: offer.length,
            partial: &partial,
        };
        let problem = match self
            .download(turn, source, &wanted, offer.opened, meter)
            .await
        {
            Ok(_) => match self.apply(turn, &partial, from, file.blob).await? {
                Ok(()) => {
                    meter.spent.patches += 1;
                    let saved_bytes = whole - offer.length;
                    tracing::info!(%from, %to, patch_bytes = offer.length, saved_bytes, "model made by a patch");
                    return Ok(true);
                }
                Err(problem) => problem,
            },
            // Cut on the way: the next attempt goes on, as long as anything comes at all.
            Err(error)
                if error.kind == Kind::Failed
                    || (error.kind == Kind::Transient && meter.spent.fetched_bytes > fetched) =>
            {
                return Err(error);
            }
            Err(error) => error.to_string(),
        };
        tracing::warn!(%from, %to, problem, "patch is of no use, the whole model is fetched");
        self.disk.remove_if_there(&partial)?;
        meter.spent.patches_failed += 1;
        meter.replace(offer.length, whole);
        meter.set(done);
        Ok(false)
    }

    /// The first patch against a held model that is worth fetching.
    async fn offer(
        &self,
        turn: &Turn,
        source: &Source,
        manifest: &Manifest,
        blob: &Blob,
        whole: u64,
    ) -> Result<Option<Offer>, UpdateError> {
        let (disk, blobs, family) = (
            self.disk.clone(),
            self.blobs.clone(),
            manifest.family.clone(),
        );
        let bases = blocking(turn, move || bases(&disk, &blobs, &family)).await??;
        for from in bases.into_iter().filter(|from| *from != blob.sha256) {
            let to = blob.sha256;
            let file = RepositoryFile::Patch { from, to };
            let partial = self.partials().join(format!("{from}-{to}.patch"));
            let Some((length, opened)) = self.open_patch(source, &file, &partial).await? else {
                continue;
            };
            let have = self.disk.look(&partial)?.map_or(0, |m| m.length_bytes);
            let room = length
                .saturating_sub(have)
                .saturating_add(blob.length)
                .saturating_add(DISK_RESERVE_BYTES);
            if length < whole && (self.host)().disk_free_bytes >= room {
                return Ok(Some(Offer {
                    from,
                    length,
                    partial,
                    opened,
                }));
            }
        }
        Ok(None)
    }

    /// A patch's length, and a download that goes on where the partial file ends.
    async fn open_patch(
        &self,
        source: &Source,
        file: &RepositoryFile,
        partial: &Path,
    ) -> Result<Option<(u64, Option<Download>)>, UpdateError> {
        let have = self.disk.look(partial)?.map_or(0, |m| m.length_bytes);
        match source.open(file, have).await {
            Ok(opened) => Ok(opened.total_bytes.map(|length| (length, Some(opened)))),
            // Nothing beyond what is here: either it is whole, or it is of another patch.
            Err(error) if error.is_beyond_end() => {
                let opened = source.open(file, 0).await?;
                let length = opened.total_bytes;
                Ok(length.map(|length| (length, (length != have).then_some(opened))))
            }
            Err(error) if error.is_absent() => {
                self.disk.remove_if_there(partial)?;
                Ok(None)
            }
            // Begun already: it is worth another attempt.
            Err(error) if have > 0 => Err(error.into()),
            // What is wrong with the source is met again by the blob.
            Err(_) => Ok(None),
        }
    }

    /// Makes the blob from the held model and the whole patch; `Err` inside: the patch is at fault.
    async fn apply(
        &self,
        turn: &Turn,
        partial: &Path,
        from: Digest,
        blob: &Blob,
    ) -> Result<Result<(), String>, UpdateError> {
        let (disk, base, blob) = (self.disk.clone(), self.blob(&from), blob.clone());
        let (partial, path, folder) = (
            partial.to_owned(),
            self.blob(&blob.sha256),
            self.blobs.clone(),
        );
        blocking(turn, move || {
            let out = partial.with_extension("patched");
            match apply_into(&disk, &base, &partial, &out, &blob) {
                Ok(()) => {
                    disk.rename(&out, &path)?;
                    disk.remove_if_there(&partial)?;
                    disk.sync_dir(&folder)?;
                    Ok(Ok(()))
                }
                Err(error) => {
                    disk.remove_if_there(&out)?;
                    match error {
                        Fault::Disk(error) => Err(error.into()),
                        Fault::Patch(problem) => Ok(Err(problem)),
                    }
                }
            }
        })
        .await?
    }
}

/// Whose fault it is that a patch leads nowhere.
enum Fault {
    Disk(FileError),
    Patch(String),
}

impl From<FileError> for Fault {
    fn from(error: FileError) -> Self {
        Self::Disk(error)
    }
}

fn apply_into(
    disk: &Disk,
    base: &Path,
    partial: &Path,
    out: &Path,
    blob: &Blob,
) -> Result<(), Fault> {
    let unreadable = |error: FileError| Fault::Patch(error.to_string());
    let mut old = disk.open(base).map_err(unreadable)?;
    let opened = disk.open(partial).map_err(unreadable)?;
    let mut from = BufReader::with_capacity(READ_BYTES, opened);
    let mut to = Hashing {
        file: open_partial(disk, out, 0)?,
        hasher: Sha256::new(),
        length: 0,
    };
    let limits = Limits {
        target_max_bytes: blob.length,
    };
    patch::apply(&mut old, &mut from, &mut to, &limits).map_err(|error| match error {
        PatchError::Output(e) => Fault::Disk(files::at("write", out)(e)),
        // A base that cannot be read is a reason to fetch the whole as well.
        other => Fault::Patch(other.to_string()),
    })?;
    let (length, got) = (to.length, Digest(to.hasher.finalize().into()));
    if (length, got) != (blob.length, blob.sha256) {
        return Err(Fault::Patch(format!(
            "it gives {length} bytes with SHA-256 {got}, signed are {} with {}",
            blob.length, blob.sha256
        )));
    }
    Ok(to.file.sync().map_err(files::at("sync", out))?)
}

/// Writes and hashes at once.
struct Hashing {
    file: Box<dyn OpenFile>,
    hasher: Sha256,
    length: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Models of the family whose manifest and bytes are held, newest version first.
fn bases(disk: &Disk, blobs: &Path, family: &Family) -> Result<Vec<Digest>, FileError> {
    let max = MANIFEST_MAX_BYTES as u64;
    let mut models = Vec::new();
    for (name, found) in disk.list(blobs)? {
        if found.kind != files::Kind::File || found.length_bytes > max {
            continue;
        }
        // Few files are that small, and fewer are manifests.
        // One that cannot be read is no base.
        let read = disk.read_if_there(&blobs.join(name), max);
        let bytes = read.ok().flatten().unwrap_or_default();
        if let Ok(manifest) = Manifest::parse(&bytes)
            && manifest.family == *family
        {
            let model = manifest.files.model.sha256;
            let path: PathBuf = blobs.join(model.to_string());
            if disk.look(&path)?.is_some() {
                models.push((manifest.version, model));
            }
        }
    }
    models.sort();
    let newest = models.into_iter().rev().map(|(_, model)| model);
    Ok(newest.take(BASES_MAX).collect())
}
