//! The durable store of segments, on sled. The only file that names sled.
//!
//! Layout of the folder:
//!
//! | name | what |
//! |---|---|
//! | `store/` | sled's folder: `db`, `conf`, `blobs/` (values beyond 128 KiB), `snap.*` |
//! | `store.new/`, `store.old/` | only while a store is made anew |
//! | `store.corrupt-<n>/` | the last store that could not be opened, for those who want to know why |
//! | `journal` | small changes that are not in the store yet (`journal.rs`), 512 KiB |
//! | `boot` | boot id and counter of segment numbers (`boot.rs`) |
//! | `ballast` | 1 MiB given back to a full disk, without which sled does not open |
//! | `opening` | number of starts that have died while opening |
//! | `lock` | held while a process uses the folder |
//!
//! One tree; keys are segment numbers, u64 big-endian; values are entries (`segment.rs`). The key
//! `u64::MAX` holds the boot id: a folder of garbage opens as an empty sled without complaint, and
//! the missing boot id is how that is noticed.
//!
//! What is known about sled 0.34 and what is done about it:
//! * `flush()` writes and does not fsync: afterwards its files are fdatasynced from here, which
//!   makes the inodes durable whoever wrote them, and new blobs with their folder.
//! * It writes several bytes for each byte of small values: values are compressed segments, and small
//!   ones wait in the journal (`journaled.rs`).
//! * Its file never shrinks: [`SegmentStore::compact`] copies what is left into a new store,
//!   which takes the old one's place once it is durable.
//! * A full disk breaks it: `open` fails, an open handle stays broken after space returns, and
//!   when a blob cannot be written, every later flush, also the one in its destructor, waits for
//!   ever. So nothing is written unless [`FREE_BYTES_MIN`] are free (which leaves that room to
//!   others, too), flushes and destructors run beside this thread with a time limit, and a handle
//!   that exceeds it is given up: its lock stays taken until the process ends. For opening at all
//!   there is the ballast, which is given back first.
//! * A snapshot that a kill cut off (`snap.*.generating`) counts as its newest when it opens, and then
//!   the whole store as damaged. It never counted, and is removed before it opens.
//! * It has assertions where damage could be reported: panics are caught here and count as
//!   damage. What else it may die of (memory, time), `opening` counts, and after [`OPENINGS_MAX`]
//!   such starts the store is set aside.
//! * Batches are atomic; at most [`BATCH_MAX`] changes go into one.

use super::segment::{Meta, Sealed};
use super::store::{BATCH_MAX, SegmentStore, StoreError, StoreStats};
use crate::files::FileLock;
use dunlin_protocol::id::BootId;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Starts in a row that may die while opening before the store is taken for damaged: so many that power
/// cuts and kills from outside, which say nothing of the store, do not come to it.
/// After twice as many, nothing of before is used: it may have been the journal.
pub const OPENINGS_MAX: u32 = 20;
/// Disk that must be free before segments are added, in bytes: several times what one batch and
/// sled's own housekeeping write.
pub const FREE_BYTES_MIN: u64 = 4 << 20;
/// Disk that must be free before segments are only deleted, in bytes.
const FREE_TO_DELETE_BYTES: u64 = 512 * 1024;
/// Disk that must be free before the store is opened, in bytes: sled begins one of its segments
/// of 512 KiB. The ballast is more than that.
const FREE_TO_OPEN_BYTES: u64 = 768 * 1024;
/// Longest flush or orderly end, however slow the flash.
const STUCK_AFTER: Duration = Duration::from_secs(20);
/// Size of the ballast, in bytes.
pub const BALLAST_BYTES: usize = 1 << 20;

const CACHE_BYTES: u64 = 8 << 20;
/// sled writes and frees its file's segments at this pace by itself, in milliseconds: at a slower one a
/// rolling buffer takes ten times its entries on disk.
const HOUSEKEEPING_MS: u64 = 1000;
/// sled releases its file's lock a little after the handle is gone.
const REOPEN_TRIES: u32 = 100;
const REOPEN_PAUSE: Duration = Duration::from_millis(20);
const BOOT_KEY: [u8; 8] = [0xff; 8];

/// The folder and the right to use it.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    _lock: FileLock,
}

/// Segments in sled.
pub struct SledStore {
    dir: PathBuf,
    boot: BootId,
    db: Option<sled::Db>,
    segments: usize,
    blobs_synced: BTreeSet<OsString>,
}

impl Folder {
    /// Takes the folder, making it if it is not there.
    ///
    /// # Errors
    /// Another process has it, or the medium refuses.
    pub fn take(dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|e| medium(dir, "making the folder", &e))?;
        let path = dir.join("lock");
        match FileLock::try_take(&path) {
            Ok(Some(lock)) => Ok(Self {
                dir: dir.to_owned(),
                _lock: lock,
            }),
            Ok(None) => Err(StoreError::InUse { path: dir.into() }),
            Err(e) => Err(StoreError::Medium {
                path,
                what: "taking the lock",
                problem: e.to_string(),
            }),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether there is a store, after finishing or undoing what a crash interrupted.
    ///
    /// # Errors
    /// The medium refuses.
    pub fn settle(&self) -> Result<bool, StoreError> {
        let [store, fresh, old] = names(&self.dir);
        let interrupted = !store.exists() && old.exists();
        let settled = if interrupted && fresh.exists() {
            // The new store was durable before the old one was moved away.
            std::fs::rename(&fresh, &store)
        } else if interrupted {
            std::fs::rename(&old, &store)
        } else {
            Ok(())
        };
        settled
            .and_then(|()| remove_all(&fresh))
            .and_then(|()| remove_all(&old))
            .map_err(|e| medium(&self.dir, "settling an interrupted change", &e))?;
        Ok(store.exists())
    }

    /// Counts a start that may die while opening; how many there were before this one.
    pub fn count_opening(&self) -> u32 {
        let path = self.dir.join("opening");
        let before = std::fs::metadata(&path).map_or(0, |m| m.len());
        // Best effort: on a full disk there is no count, and no damage from that.
        let _ = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut f| io::Write::write_all(&mut f, b"."));
        u32::try_from(before).unwrap_or(u32::MAX)
    }

    /// The store is open: starts that died no longer count.
    pub fn opened(&self) {
        let _ = std::fs::remove_file(self.dir.join("opening"));
    }

    /// Moves a damaged store away; the one moved away before it is removed, so that the disk
    /// holds one at most. Its new name.
    ///
    /// # Errors
    /// The medium refuses.
    pub fn set_aside(&self) -> Result<PathBuf, StoreError> {
        const PREFIX: &str = "store.corrupt-";
        let fail = |e: io::Error| medium(&self.dir, "setting a damaged store aside", &e);
        let mut number = 0;
        for entry in std::fs::read_dir(&self.dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            let Some(n) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else {
                continue;
            };
            number = number.max(n.parse::<u64>().unwrap_or_default().saturating_add(1));
            remove_all(&entry.path()).map_err(fail)?;
        }
        let aside = self.dir.join(format!("{PREFIX}{number}"));
        std::fs::rename(self.dir.join("store"), &aside).map_err(fail)?;
        sync_dir(&self.dir).map_err(fail)?;
        Ok(aside)
    }

    /// Puts the ballast in its place, if it is not there and there is room.
    ///
    /// # Errors
    /// No room.
    pub fn put_ballast(&self) -> io::Result<()> {
        let path = self.dir.join("ballast");
        if std::fs::metadata(&path).is_ok_and(|m| m.len() == BALLAST_BYTES as u64) {
            return Ok(());
        }
        // Not zeros: a file system that compresses would store nothing.
        let mut bytes = vec![0; BALLAST_BYTES];
        let filled = getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()));
        let put = filled
            .and_then(|()| std::fs::write(&path, &bytes))
            .and_then(|()| File::open(&path)?.sync_all());
        if put.is_err() {
            self.drop_ballast();
        }
        put
    }

    /// Gives the ballast's room back.
    pub fn drop_ballast(&self) {
        let _ = std::fs::remove_file(self.dir.join("ballast"));
    }
}

impl SledStore {
    /// Makes a new, empty store, durable on return.
    ///
    /// # Errors
    /// The medium refuses.
    pub fn create(folder: &Folder, boot: BootId) -> Result<Self, StoreError> {
        let [store, fresh, _] = names(&folder.dir);
        let made = fill_new(&fresh, boot, std::iter::empty());
        made.and_then(|_| {
            std::fs::rename(&fresh, &store)
                .and_then(|()| sync_dir(&folder.dir))
                .map_err(|e| medium(&store, "putting a new store in its place", &e))
        })?;
        Ok(Self::open(folder, boot)?.0)
    }

    /// Opens the store and reads the heads of all its segments.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is not a whole store of this boot; set it aside then.
    /// [`StoreError::Medium`] when the disk is full, for example.
    pub fn open(folder: &Folder, boot: BootId) -> Result<(Self, Vec<(u64, Meta)>), StoreError> {
        let path = folder.dir.join("store");
        need_free(&folder.dir, "opening", FREE_TO_OPEN_BYTES)?;
        let db = open_db(&path)?;
        let heads = guarded(&path, "reading the heads", || read_heads(&db, boot))??;
        let store = Self {
            dir: folder.dir.clone(),
            boot,
            db: Some(db),
            segments: heads.len(),
            blobs_synced: BTreeSet::new(),
        };
        Ok((store, heads))
    }

    /// Number of segments.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Bytes of all entries.
    fn entry_bytes(&self) -> Result<u64, StoreError> {
        self.with("measuring", |db| {
            let mut entries = db.iter();
            entries.try_fold(0, |sum, entry| Ok(sum + entry?.1.len() as u64))
        })
    }

    fn close(&mut self) -> Result<(), StoreError> {
        match self.db.take() {
            Some(db) => in_time(&self.dir, "closing", move || drop(db)),
            None => Ok(()),
        }
    }

    fn with<T>(
        &self,
        what: &'static str,
        run: impl FnOnce(&sled::Db) -> sled::Result<T>,
    ) -> Result<T, StoreError> {
        let path = self.dir.join("store");
        let Some(db) = &self.db else {
            let lost = io::Error::other("an earlier change failed; it must be opened anew");
            return Err(medium(&path, what, &lost));
        };
        guarded(&path, what, || run(db))?.map_err(|e| store_error(&path, what, e))
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            tracing::error!(problem = %e, "telemetry store given up");
        }
    }
}

impl SegmentStore for SledStore {
    fn append(&mut self, puts: &[Sealed], deletes: &[u64]) -> Result<(), StoreError> {
        debug_assert!(puts.len() + deletes.len() <= BATCH_MAX);
        if puts.is_empty() {
            need_free(&self.dir, "deleting segments", FREE_TO_DELETE_BYTES)?;
        } else {
            need_free(&self.dir, "writing segments", FREE_BYTES_MIN)?;
        }
        let mut batch = sled::Batch::default();
        for sealed in puts {
            batch.insert(&sealed.number.to_be_bytes(), sealed.entry.as_slice());
        }
        for number in deletes {
            batch.remove(&number.to_be_bytes());
        }
        self.with("writing segments", |db| db.apply_batch(batch))?;
        self.segments = (self.segments + puts.len()).saturating_sub(deletes.len());
        Ok(())
    }

    fn peek(&mut self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let entry = self.with("reading a segment", |db| db.get(number.to_be_bytes()))?;
        Ok(entry.map(|e| e.to_vec()))
    }

    fn stats(&mut self) -> Result<StoreStats, StoreError> {
        let path = self.dir.join("store");
        Ok(StoreStats {
            segments: self.segments,
            disk_bytes: disk_bytes(&path).map_err(|e| medium(&path, "measuring", &e))?,
        })
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let path = self.dir.join("store");
        let db = self.with("flushing", |db| Ok(db.clone()))?;
        in_time(&path, "flushing", move || db.flush())?
            .map_err(|e| store_error(&path, "flushing", e))?;
        sync_files(&path, &mut self.blobs_synced).map_err(|e| medium(&path, "syncing", &e))
    }

    fn compact(&mut self) -> Result<(), StoreError> {
        let [store, fresh, old] = names(&self.dir);
        let held = disk_bytes(&store).map_err(|e| medium(&store, "measuring", &e))?;
        let need = held.min(self.entry_bytes()?.saturating_mul(2));
        need_free(
            &self.dir,
            "compacting",
            need.saturating_add(FREE_TO_DELETE_BYTES),
        )?;
        let fail = |e: io::Error| medium(&store, "putting a compacted store in its place", &e);
        let boot = self.boot;
        let copied = self.with("compacting", |db| {
            let entries = db
                .iter()
                .filter(|e| !matches!(e, Ok((k, _)) if **k == BOOT_KEY));
            Ok(fill_new(&fresh, boot, entries))
        })?;
        if let Err(e) = copied {
            let _ = remove_all(&fresh);
            return Err(e);
        }
        // From here on the handle is gone, so that a failure half-way leaves nothing in use.
        self.close()?;
        std::fs::rename(&store, &old)
            .and_then(|()| std::fs::rename(&fresh, &store))
            .and_then(|()| sync_dir(&self.dir))
            .and_then(|()| remove_all(&old))
            .map_err(fail)?;
        self.blobs_synced.clear();
        self.db = Some(open_db(&store)?);
        Ok(())
    }
}

fn names(dir: &Path) -> [PathBuf; 3] {
    ["store", "store.new", "store.old"].map(|name| dir.join(name))
}

/// Writes a whole store to `path`, durable on return, and closes it.
fn fill_new(
    path: &Path,
    boot: BootId,
    entries: impl Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>>,
) -> Result<(), StoreError> {
    const WHAT: &str = "writing a new store";
    remove_all(path).map_err(|e| medium(path, WHAT, &e))?;
    let db = open_db(path)?;
    let filled = guarded(path, WHAT, || -> sled::Result<()> {
        db.insert(BOOT_KEY, boot.as_bytes().as_slice())?;
        let mut batch = sled::Batch::default();
        for (at, entry) in entries.enumerate() {
            let (key, value) = entry?;
            batch.insert(key, value);
            if at % BATCH_MAX == BATCH_MAX - 1 {
                db.apply_batch(std::mem::take(&mut batch))?;
            }
        }
        db.apply_batch(batch)?;
        db.flush().map(|_| ())
    })?;
    filled.map_err(|e| store_error(path, WHAT, e))?;
    drop(db);
    sync_files(path, &mut BTreeSet::new()).map_err(|e| medium(path, WHAT, &e))
}

/// Removes the snapshots that were cut off before they got their names.
fn remove_half_snapshots(path: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn open_db(path: &Path) -> Result<sled::Db, StoreError> {
    const WHAT: &str = "opening";
    remove_half_snapshots(path).map_err(|e| medium(path, WHAT, &e))?;
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(Some(HOUSEKEEPING_MS));
    let mut tries = 0;
    loop {
        match guarded(path, WHAT, || config.open())? {
            Ok(db) => return Ok(db),
            // The folder's own lock is ours, so this is an earlier handle of this process.
            Err(e) if e.to_string().contains("acquire lock") && tries < REOPEN_TRIES => {
                tries += 1;
                std::thread::sleep(REOPEN_PAUSE);
            }
            Err(e) => return Err(store_error(path, WHAT, e)),
        }
    }
}

fn read_heads(db: &sled::Db, boot: BootId) -> Result<Vec<(u64, Meta)>, StoreError> {
    const WHAT: &str = "reading the heads";
    let path = PathBuf::from("store");
    let damaged = |problem: String| StoreError::Damaged {
        path: path.clone(),
        what: WHAT,
        problem,
    };
    let owner = db.get(BOOT_KEY).map_err(|e| store_error(&path, WHAT, e))?;
    if owner.as_deref() != Some(boot.as_bytes().as_slice()) {
        let got = owner.map_or("none".to_owned(), hex::encode);
        return Err(damaged(format!("expected boot id {boot} in it, got {got}")));
    }
    let mut heads = Vec::new();
    for entry in db.iter() {
        let (key, value) = entry.map_err(|e| store_error(&path, WHAT, e))?;
        if *key == BOOT_KEY {
            continue;
        }
        let number: [u8; 8] = (*key)
            .try_into()
            .map_err(|_| damaged(format!("expected keys of 8 bytes, got {}", key.len())))?;
        let number = u64::from_be_bytes(number);
        let meta = Meta::read(&value).map_err(|e| damaged(format!("segment {number}: {e}")))?;
        heads.push((number, meta));
    }
    Ok(heads)
}

/// Makes sled's files durable: those that exist, whoever wrote them. `synced` holds the blobs that
/// are durable already and, once the folder itself is, the empty name.
fn sync_files(path: &Path, synced: &mut BTreeSet<OsString>) -> io::Result<()> {
    let blobs = path.join("blobs");
    let mut there = BTreeSet::from([OsString::new()]);
    let mut news = false;
    for blob in std::fs::read_dir(&blobs)? {
        let name = blob?.file_name();
        if !synced.contains(&name) {
            news = true;
            match File::open(blobs.join(&name)) {
                Ok(file) => file.sync_all()?,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            }
        }
        there.insert(name);
    }
    if news {
        sync_dir(&blobs)?;
    }
    if !synced.contains(&OsString::new()) {
        File::open(path.join("conf"))?.sync_all()?;
        sync_dir(path)?;
    }
    *synced = there;
    File::open(path.join("db"))?.sync_data()
}

fn disk_bytes(path: &Path) -> io::Result<u64> {
    let mut total = 0;
    for folder in [path.to_owned(), path.join("blobs")] {
        for entry in std::fs::read_dir(folder)? {
            // A blob may be removed meanwhile.
            if let Ok(meta) = entry?.metadata()
                && meta.is_file()
            {
                total += meta.blocks() * 512;
            }
        }
    }
    Ok(total)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn remove_all(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether enough disk is free, as an error if not.
fn need_free(dir: &Path, what: &'static str, need_bytes: u64) -> Result<(), StoreError> {
    let disk = rustix::fs::statvfs(dir).map_err(|e| medium(dir, what, &e.into()))?;
    let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free_bytes >= need_bytes {
        return Ok(());
    }
    Err(StoreError::Full {
        path: dir.to_owned(),
        what,
        free_bytes,
        need_bytes,
    })
}

/// Runs what may wait for ever inside sled, beside this thread.
fn in_time<T: Send + 'static>(
    path: &Path,
    what: &'static str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    let (done, wait) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("telemetry-sync".to_owned())
        .spawn(move || done.send(run()))
        .map_err(|e| medium(path, what, &e))?;
    wait.recv_timeout(STUCK_AFTER).map_err(|_| {
        let stuck = format!("no end after {STUCK_AFTER:?}; restart the agent");
        medium(path, what, &io::Error::other(stuck))
    })
}

/// Runs what may panic inside sled.
fn guarded<T>(path: &Path, what: &'static str, run: impl FnOnce() -> T) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        StoreError::Damaged {
            path: path.to_owned(),
            what,
            problem: format!("sled panicked: {}", text.unwrap_or_default()),
        }
    })
}

fn store_error(path: &Path, what: &'static str, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(e) if is_medium(&e) => medium(path, what, &e),
        other => StoreError::Damaged {
            path: path.to_owned(),
            what,
            problem: other.to_string(),
        },
    }
}

/// Errors of the surroundings, not of the content. By kind, because sled repeats an error
/// without its number.
fn is_medium(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(
        error.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::FileTooLarge
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::PermissionDenied
            | ErrorKind::OutOfMemory
            | ErrorKind::WouldBlock
            | ErrorKind::ResourceBusy
            | ErrorKind::NotADirectory
    ) || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
        || error.to_string().contains("acquire lock")
}

fn medium(path: &Path, what: &'static str, problem: &io::Error) -> StoreError {
    StoreError::Medium {
        path: path.to_owned(),
        what,
        problem: problem.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
