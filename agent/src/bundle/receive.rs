//! A desired bundle becomes a whole slot: refresh trust, select, fetch what is missing, stage.
//!
//! Blobs are kept under `<state_dir>/blobs/<sha256>`, whole and hashed before they get that name;
//! what is under way lies in `blobs/partial/<sha256>` and is resumed with `Range`. Every step may be
//! cut at any point, by power or by dropping the future: the next call goes on from what is there.

use super::stage::{self, StagedInfo};
use super::verify::{self, Repository, TrustStore};
use super::{DISK_FULL, Kind, UpdateError};
use crate::config::Settings;
use crate::files::{self, Disk, FileError, OpenFile};
use crate::http::{Client, HttpError, Limits};
use crate::identity::Identity;
use dunlin_protocol::bundle::{Blob, HostFacts, MANIFEST_MAX_BYTES, Manifest, check_fit};
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::{TrustError, Verified, VerifiedTarget};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};

/// Largest window of a compressed blob, as a power of two of bytes: bounds the memory of unpacking.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Free disk that an update leaves to the ledger, the telemetry and the rest of the device, in bytes.
const DISK_RESERVE_BYTES: u64 = 16 << 20;
/// Least bytes between two reports of progress.
const PROGRESS_STEP_BYTES: u64 = 256 * 1024;

/// What this device is, asked anew for every bundle.
pub type HostFactsProvider = Box<dyn Fn() -> HostFacts + Send + Sync>;

/// Facts about this device: its disk as it is now, its memory as the worker is limited.
#[must_use]
pub fn host_facts(disk: &Disk, state_dir: &Path, memory_limit_mib: u64) -> HostFacts {
    let disk_free_bytes = disk.free_bytes(state_dir).unwrap_or_else(|error| {
        tracing::warn!(%error, "free disk space is unknown, taken as none");
        0
    });
    HostFacts {
        arch: std::env::consts::ARCH.to_owned(),
        agent_version: crate::VERSION.to_owned(),
        ram_bytes: memory_limit_mib.saturating_mul(1 << 20),
        disk_free_bytes,
    }
}

/// A bundle that lies whole in a slot. Only verification leads here.
#[derive(Debug, Clone)]
pub struct Staged {
    /// The slot.
    pub slot: PathBuf,
    /// What is in it.
    pub info: StagedInfo,
    /// Its manifest.
    pub manifest: Verified<Manifest>,
}

/// Fetches, verifies and stages bundles; one at a time.
pub struct Receiver {
    repository: Repository,
    disk: Disk,
    trust: TrustStore,
    blobs: PathBuf,
    hardware: String,
    host: HostFactsProvider,
    /// Receiving and collecting garbage take turns.
    turn: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("repository", &self.repository)
            .finish_non_exhaustive()
    }
}

/// Somebody's turn. Blocking work goes on when the future that began it is dropped: it holds the
/// turn as well, so that the next one never meets it.
type Turn = Arc<OwnedMutexGuard<()>>;

/// A file that has to be fetched.
struct Missing<'a> {
    name: &'static str,
    blob: &'a Blob,
}

impl Receiver {
    /// A receiver for an enrolled device.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn new(disk: &Disk, settings: &Settings, identity: &Identity) -> Result<Self, FileError> {
        let client = Client::new(
            &identity.rustls_client_config(),
            Limits::from(&settings.update),
        );
        let (facts_disk, folder) = (disk.clone(), settings.state_dir.clone());
        let memory_limit_mib = settings.inference.memory_limit_mib;
        Self::with(
            client,
            &identity.enrolled.repository_url,
            disk,
            &settings.state_dir,
            &settings.hardware,
            Box::new(move || host_facts(&facts_disk, &folder, memory_limit_mib)),
        )
    }

    /// A receiver from its parts.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn with(
        client: Client,
        base_url: &str,
        disk: &Disk,
        state_dir: &Path,
        hardware: &str,
        host: HostFactsProvider,
    ) -> Result<Self, FileError> {
        Ok(Self {
            repository: Repository::new(client, base_url),
            disk: disk.clone(),
            trust: TrustStore::new(disk, state_dir),
            blobs: state_dir.join("blobs"),
            hardware: hardware.to_owned(),
            host,
            turn: Arc::default(),
        })
    }

    /// Brings `want` into `slot`, which is cleared only once everything is on the device.
    ///
    /// `now` is the clock's time; a clock behind what was seen before is put right. `progress` gets
    /// (bytes on the device, bytes in all), at most a few hundred times.
    ///
    /// # Errors
    /// [`UpdateError`]; call again after [`Kind::Transient`].
    pub async fn receive(
        &self,
        want: &DesiredBundle,
        now: Timestamp,
        slot: &Path,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Staged, UpdateError> {
        let turn: Turn = Arc::new(Arc::clone(&self.turn).lock_owned().await);
        let received = self.receive_in_turn(&turn, want, now, slot, progress).await;
        if let Err(error) = &received
            && error.code == DISK_FULL
        {
            // Room for the ledger and the telemetry is worth more than a resumed download.
            match remove_others(&self.disk, &self.partials(), &BTreeSet::new()) {
                Ok(bytes) => tracing::warn!(bytes, "disk full: what was half fetched is removed"),
                Err(error) => tracing::error!(%error, "disk full, and nothing can be removed"),
            }
        }
        received
    }

    async fn receive_in_turn(
        &self,
        turn: &Turn,
        want: &DesiredBundle,
        now: Timestamp,
        slot: &Path,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Staged, UpdateError> {
        // Not before: an agent must start on a full disk too.
        self.disk.create_private_dir(&self.blobs)?;
        self.disk.create_private_dir(&self.partials())?;
        let source = &self.repository;
        let mut set = verify::refresh(source, &self.trust, now).await?;
        let target = verify::select(source, &mut set, &self.trust, want, &self.hardware).await?;
        let (manifest, bytes) = self.manifest(target).await?;

        let missing = self.missing(turn, &manifest).await?;
        self.check_fit(&manifest, &missing)?;
        let mut meter = Meter::new(&manifest, &missing, progress);
        for file in &missing {
            self.fetch(turn, file, &mut meter).await?;
        }
        let info = self.stage(turn, slot, manifest.clone(), bytes).await?;
        Ok(Staged {
            slot: slot.to_owned(),
            info,
            manifest,
        })
    }

    /// Removes every blob that none of the bundles with manifest digests `keep` names, and all that
    /// is under way; returns the bytes of names removed. Slots are not touched.
    ///
    /// # Errors
    /// [`FileError`]
    pub async fn gc(&self, keep: &[Digest]) -> Result<u64, FileError> {
        let turn = self.turn.lock().await;
        self.gc_in_turn(&turn, keep)
    }

    fn gc_in_turn(&self, _turn: &MutexGuard<'_, ()>, keep: &[Digest]) -> Result<u64, FileError> {
        let mut kept: BTreeSet<String> = BTreeSet::new();
        for digest in keep {
            let path = self.blob(digest);
            let max = MANIFEST_MAX_BYTES as u64;
            let bytes = self.disk.read_if_there(&path, max)?.unwrap_or_default();
            if let Ok(manifest) = Manifest::parse(&bytes) {
                kept.insert(digest.to_string());
                let blobs = manifest.files.named().into_iter();
                kept.extend(blobs.map(|(_, b)| b.sha256.to_string()));
            }
        }
        Ok(remove_others(&self.disk, &self.blobs, &kept)?
            + remove_others(&self.disk, &self.partials(), &BTreeSet::new())?)
    }

    /// As [`Self::gc`], and clears `spare`, a slot that does not serve, unless it holds one of
    /// `keep`. Nothing is done if `is_stale` says, once it is this one's turn, that `keep` is of the
    /// past. That it fails is only logged: space is short at worst.
    pub async fn tidy(
        &self,
        keep: &[Digest],
        spare: Option<&Path>,
        is_stale: impl FnOnce() -> bool + Send,
    ) {
        let turn = self.turn.lock().await;
        if is_stale() {
            return;
        }
        if let Some(slot) = spare
            && !stage::claims(&self.disk, slot).is_some_and(|digest| keep.contains(&digest))
            && let Err(error) = stage::clear(&self.disk, slot)
        {
            tracing::warn!(slot = %slot.display(), %error, "a slot that is of no use stays");
        }
        match self.gc_in_turn(&turn, keep) {
            Ok(0) => {}
            Ok(bytes) => tracing::info!(bytes, "blobs no longer needed are removed"),
            Err(error) => tracing::warn!(%error, "blobs no longer needed stay"),
        }
    }

    fn partials(&self) -> PathBuf {
        self.blobs.join("partial")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.to_string())
    }

    /// The manifest, from the device if it is there; fetched again once if it is not as signed.
    async fn manifest(
        &self,
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
        let url = self.repository.target_url(&entry.consistent_path());
        let mut bytes = self.repository.client.get(&url, entry.length).await?;
        if entry.verify_bytes(&bytes).is_err() {
            bytes = self.repository.client.get(&url, entry.length).await?;
        }
        let manifest = target.open_manifest(&bytes)?;
        self.disk.write_atomic(&path, &bytes, 0o600)?;
        Ok((manifest, bytes))
    }

    /// The manifest's files that are not on the device yet; damaged ones are removed.
    async fn missing<'a>(
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
                Err(e) => Err(e),
            })
            .await??;
            if !held {
                missing.push(Missing { name, blob });
            }
        }
        Ok(missing)
    }

    fn check_fit(&self, manifest: &Manifest, missing: &[Missing<'_>]) -> Result<(), UpdateError> {
        let mut host = (self.host)();
        let bundle = format!("{} version {}", manifest.family, manifest.version);
        let (missing_bytes, free) = (self.room(missing), host.disk_free_bytes);
        let wanted = missing_bytes.saturating_add(DISK_RESERVE_BYTES);
        if !missing.is_empty() && free < wanted {
            return Err(UpdateError::refused(
                "unfit",
                format!(
                    "{bundle}: needs {wanted} bytes of free disk while it is fetched and unpacked \
                     ({DISK_RESERVE_BYTES} of them kept in reserve), got {free}"
                ),
            ));
        }
        // What is here already needs no space any more.
        let all: u64 = manifest.files.named().iter().map(|(_, b)| b.length).sum();
        let needed: u64 = missing.iter().map(|m| m.blob.length).sum();
        host.disk_free_bytes = host.disk_free_bytes.saturating_add(all - needed);
        check_fit(manifest, &host)
            .map_err(|e| UpdateError::refused("unfit", format!("{bundle} {e}")))
    }

    /// Bytes that the missing blobs take while they are fetched and unpacked, less what is fetched
    /// of them already.
    fn room(&self, missing: &[Missing<'_>]) -> u64 {
        missing.iter().fold(0, |sum, Missing { blob, .. }| {
            let packed = blob.packed.as_ref().map_or(0, |p| p.length);
            let partial = self.partials().join(blob.transport().0.to_string());
            let found = self.disk.look(&partial).ok().flatten();
            let have = found.map_or(0, |m| m.length_bytes);
            let needed = blob.length.saturating_add(packed).saturating_sub(have);
            sum.saturating_add(needed)
        })
    }

    /// Brings one blob to the device; one that is not as signed is fetched once more from scratch.
    async fn fetch<F: FnMut(u64, u64) + Send>(
        &self,
        turn: &Turn,
        file: &Missing<'_>,
        meter: &mut Meter<F>,
    ) -> Result<(), UpdateError> {
        let (expected, _) = file.blob.transport();
        let partial = self.partials().join(expected.to_string());
        let begun = meter.done;
        let mut got = self.download(turn, file, &partial, meter).await?;
        if got != expected {
            tracing::warn!(file = file.name, %expected, %got, "download is damaged, fetched again");
            self.disk.remove_if_there(&partial)?;
            meter.done = begun;
            got = self.download(turn, file, &partial, meter).await?;
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

    /// Completes a partial file, durably, and returns its digest. Never longer than signed.
    async fn download<F: FnMut(u64, u64) + Send>(
        &self,
        turn: &Turn,
        file: &Missing<'_>,
        partial: &Path,
        meter: &mut Meter<F>,
    ) -> Result<Digest, UpdateError> {
        let (digest, length) = file.blob.transport();
        let begun = meter.done;
        let (mut hasher, mut have) = resume(&self.disk, turn, partial, length).await?;
        meter.set(begun + have);
        if have < length {
            let url = self.repository.blob_url(&digest);
            let mut body = match self.repository.client.open(&url, have).await {
                // There is no such byte: what we have is not of this blob.
                Err(HttpError::Status { code: 416, .. }) => {
                    self.disk.remove_if_there(partial)?;
                    self.repository.client.open(&url, 0).await?
                }
                other => other?,
            };
            if body.offset != have {
                (hasher, have) = (Sha256::new(), body.offset);
                meter.set(begun);
            }
            if let Some(got) = body.total_bytes.filter(|&n| n != length) {
                return Err(wrong_length(file.name, length, got));
            }
            let mut out = open_partial(&self.disk, partial, have)?;
            while let Some(bytes) = body.chunk().await? {
                have += bytes.len() as u64;
                if have > length {
                    self.disk.remove_if_there(partial)?;
                    return Err(wrong_length(file.name, length, have));
                }
                hasher.update(&bytes);
                out.write_all(&bytes).map_err(files::at("write", partial))?;
                meter.set(begun + have);
            }
            if have < length {
                return Err(UpdateError {
                    kind: Kind::Transient,
                    code: "broken",
                    detail: format!("{url}: broke off after {have} of {length} bytes"),
                });
            }
            let path = partial.to_owned();
            blocking(turn, move || out.sync().map_err(files::at("sync", &path))).await??;
        }
        Ok(Digest(hasher.finalize().into()))
    }

    async fn stage(
        &self,
        turn: &Turn,
        slot: &Path,
        manifest: Verified<Manifest>,
        bytes: Vec<u8>,
    ) -> Result<StagedInfo, UpdateError> {
        let (disk, slot, blobs) = (self.disk.clone(), slot.to_owned(), self.blobs.clone());
        let write = move || stage::write(&disk, &slot, &manifest, &bytes, &blobs);
        blocking(turn, write).await?
    }
}

/// Bytes on the device and in all, told now and then.
struct Meter<F> {
    progress: F,
    done: u64,
    told: u64,
    total: u64,
}

impl<F: FnMut(u64, u64) + Send> Meter<F> {
    fn new(manifest: &Manifest, missing: &[Missing<'_>], progress: F) -> Self {
        let of = |blobs: &mut dyn Iterator<Item = &Blob>| blobs.map(|b| b.transport().1).sum();
        let total: u64 = of(&mut manifest.files.named().into_iter().map(|(_, b)| b));
        let needed: u64 = of(&mut missing.iter().map(|m| m.blob));
        let mut meter = Self {
            progress,
            done: total - needed,
            told: 0,
            total,
        };
        meter.tell();
        meter
    }

    fn set(&mut self, done: u64) {
        self.done = done;
        let step = PROGRESS_STEP_BYTES.max(self.total / 100);
        if self.done >= self.told.saturating_add(step) || self.done == self.total {
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.told = self.done;
        (self.progress)(self.done, self.total);
    }
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
        Err(e) => Err(e.into()),
    }
}

/// Opens a partial file of which the first `have` bytes count. Its writes are synchronous, so that
/// a dropped future leaves none under way behind the next one's back.
fn open_partial(disk: &Disk, partial: &Path, have: u64) -> Result<Box<dyn OpenFile>, FileError> {
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

/// Removes all files of a folder but those named; returns the length of what went.
fn remove_others(disk: &Disk, folder: &Path, kept: &BTreeSet<String>) -> Result<u64, FileError> {
    if disk.look(folder)?.is_none() {
        return Ok(0);
    }
    let mut removed = 0;
    for (name, found) in disk.list(folder)? {
        if found.kind == files::Kind::File && !name.to_str().is_some_and(|n| kept.contains(n)) {
            disk.remove_if_there(&folder.join(name))?;
            removed += found.length_bytes;
        }
    }
    disk.sync_dir(folder)?;
    Ok(removed)
}

async fn blocking<T: Send + 'static>(
    turn: &Turn,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, UpdateError> {
    let turn = Arc::clone(turn);
    let job = move || {
        let done = work();
        drop(turn);
        done
    };
    tokio::task::spawn_blocking(job)
        .await
        .map_err(|e| UpdateError::failed("internal", format!("a task died: {e}")))
}
