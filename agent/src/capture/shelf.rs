//! Sealed batches on disk, until they are fetched.
//!
//! ```text
//! captures/NUMBER-TIME.sealed   one batch, as docs of dunlin_protocol::capture::seal draw it
//! ```
//! NUMBER rises with every batch, TIME is when it was kept, in milliseconds since 1970. A batch is
//! written beside its name, made durable, and renamed: a kill leaves it whole or not at all. Space and
//! age are bounded; the oldest go first, counted. Nothing else is ever written here, and nothing that
//! is not sealed.

use crate::files::{Disk, FileError, Kind};
use dunlin_protocol::capture::Wanted;
use dunlin_protocol::capture::seal::{SEALED_MAX_BYTES, SealError, Sealed};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// Most batches, however small.
const BATCHES_MAX: usize = 4096;

/// Bounds of a shelf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShelfLimits {
    /// Most bytes of all batches together.
    pub max_bytes: u64,
    /// Longest time that a batch waits, in milliseconds.
    pub age_ms: i64,
}

/// Why a batch is not kept, or not read.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// A file cannot be read or written.
    #[error("captured samples: {0}")]
    File(#[from] FileError),
    /// It is none.
    #[error("captured samples: {0}")]
    Seal(#[from] SealError),
    /// It alone is more than may be kept.
    #[error("captured samples: a batch of {got} bytes, at most {max} are kept on this device")]
    Quota {
        /// The quota in bytes.
        max: u64,
        /// Length of the batch.
        got: u64,
    },
}

/// A batch on the shelf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Rises with every batch.
    pub number: u64,
    /// When it was kept, in milliseconds since 1970 by the device's clock.
    pub kept_ms: i64,
    /// Its length.
    pub bytes: u64,
}

impl Kept {
    fn file(&self) -> String {
        format!("{:020}-{}.sealed", self.number, self.kept_ms)
    }

    fn of(name: &str, bytes: u64) -> Option<Self> {
        let (number, kept_ms) = name.strip_suffix(".sealed")?.split_once('-')?;
        let kept = Self {
            number: number.parse().ok()?,
            kept_ms: kept_ms.parse().ok()?,
            bytes,
        };
        // Nothing that merely looks alike.
        (kept.file() == name).then_some(kept)
    }
}

/// How many of the oldest have to go: by age, then for the room that `incoming_bytes` need.
#[must_use]
pub fn surplus(
    kept: &VecDeque<Kept>,
    limits: ShelfLimits,
    now_ms: i64,
    incoming_bytes: u64,
) -> usize {
    let is_old = |k: &&Kept| now_ms.saturating_sub(k.kept_ms) > limits.age_ms;
    let old = kept.iter().take_while(is_old).count();
    let mut bytes = kept
        .iter()
        .skip(old)
        .fold(incoming_bytes, |n, k| n.saturating_add(k.bytes));
    let mut gone = old;
    while let Some(oldest) = kept.get(gone) {
        let fits = bytes <= limits.max_bytes
            && kept.len() - gone + usize::from(incoming_bytes > 0) <= BATCHES_MAX;
        if fits {
            break;
        }
        bytes -= oldest.bytes;
        gone += 1;
    }
    gone
}

/// The shelf of a state folder.
#[derive(Debug)]
pub struct Shelf {
    disk: Disk,
    folder: PathBuf,
    limits: ShelfLimits,
    /// Oldest first.
    kept: VecDeque<Kept>,
    next: u64,
}

impl Shelf {
    /// Where the shelf of a state folder is.
    #[must_use]
    pub fn folder(state_dir: &Path) -> PathBuf {
        state_dir.join("captures")
    }

    /// Opens it; what a kill left half-written goes.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(disk: &Disk, state_dir: &Path, limits: ShelfLimits) -> Result<Self, ShelfError> {
        let folder = Self::folder(state_dir);
        disk.create_private_dir(&folder)?;
        let mut kept = Vec::new();
        for (name, found) in disk.list(&folder)? {
            let batch = name.to_str().and_then(|n| Kept::of(n, found.length_bytes));
            match batch.filter(|_| found.kind == Kind::File) {
                Some(batch) => kept.push(batch),
                None if found.kind != Kind::Folder => disk.remove_if_there(&folder.join(name))?,
                None => {}
            }
        }
        kept.sort_by_key(|k| k.number);
        let next = kept.last().map_or(1, |k| k.number.saturating_add(1));
        Ok(Self {
            disk: disk.clone(),
            folder,
            limits,
            kept: kept.into(),
            next,
        })
    }

    /// Removes the shelf of a state folder with all that is on it, and says whether there was one.
    ///
    /// # Errors
    /// [`ShelfError::File`]
    pub fn clear(disk: &Disk, state_dir: &Path) -> Result<bool, ShelfError> {
        let folder = Self::folder(state_dir);
        if disk.look(&folder)?.is_none() {
            return Ok(false);
        }
        disk.remove_tree(&folder)?;
        Ok(true)
    }

    /// Batches and their bytes.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        let bytes = self
            .kept
            .iter()
            .fold(0_u64, |n, k| n.saturating_add(k.bytes));
        (u64::try_from(self.kept.len()).unwrap_or(u64::MAX), bytes)
    }

    /// Drops what is too old; how many batches that were.
    ///
    /// # Errors
    /// [`ShelfError::File`]
    pub fn expire(&mut self, now_ms: i64) -> Result<u64, ShelfError> {
        self.drop_oldest(surplus(&self.kept, self.limits, now_ms, 0))
    }

    /// Keeps a batch; how many older ones were dropped for it. When this returns it survives a power
    /// cut.
    ///
    /// # Errors
    /// It is not kept.
    pub fn keep(&mut self, now_ms: i64, sealed: &[u8]) -> Result<u64, ShelfError> {
        Sealed::parse(sealed)?;
        let bytes = u64::try_from(sealed.len()).unwrap_or(u64::MAX);
        if bytes > self.limits.max_bytes {
            return Err(ShelfError::Quota {
                max: self.limits.max_bytes,
                got: bytes,
            });
        }
        let surplus = surplus(&self.kept, self.limits, now_ms, bytes);
        let dropped = self.drop_oldest(surplus)?;
        let batch = Kept {
            number: self.next,
            kept_ms: now_ms,
            bytes,
        };
        self.next += 1;
        let path = self.folder.join(batch.file());
        if let Err(error) = self.disk.write_atomic(&path, sealed, 0o600) {
            // Renamed perhaps, and its name not durable: what is not listed must not lie here.
            let _ = self.disk.remove_if_there(&path);
            return Err(error.into());
        }
        self.kept.push_back(batch);
        Ok(dropped)
    }

    fn drop_oldest(&mut self, batches: usize) -> Result<u64, ShelfError> {
        let mut dropped = 0;
        for _ in 0..batches {
            let Some(oldest) = self.kept.front() else {
                break;
            };
            self.disk
                .remove_if_there(&self.folder.join(oldest.file()))?;
            self.kept.pop_front();
            dropped += 1;
        }
        Ok(dropped)
    }

    /// The next batch above a number that somebody wants, the oldest first, with its bytes. One that
    /// cannot be read as a batch is dropped.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn next_of(
        &mut self,
        wanted: &Wanted,
        above: u64,
    ) -> Result<Option<(Kept, Vec<u8>)>, ShelfError> {
        let candidates: Vec<Kept> = self
            .kept
            .iter()
            .filter(|k| k.number > above)
            .copied()
            .collect();
        for batch in candidates {
            let path = self.folder.join(batch.file());
            let max_bytes = u64::try_from(SEALED_MAX_BYTES).unwrap_or(u64::MAX);
            let bytes = match self.disk.read_bounded(&path, max_bytes) {
                Ok(bytes) => bytes,
                // Dropped for room meanwhile, or larger than any batch is.
                Err(error)
                    if error.is_not_found() || matches!(error, FileError::TooLarge { .. }) =>
                {
                    self.remove(batch)?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            match Sealed::parse(&bytes) {
                Ok(sealed) if wanted.matches(&sealed.header.family, sealed.header.version) => {
                    return Ok(Some((batch, bytes)));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "not a batch of samples; removed");
                    self.remove(batch)?;
                }
            }
        }
        Ok(None)
    }

    /// Removes a batch that was fetched.
    ///
    /// # Errors
    /// [`ShelfError::File`]
    pub fn remove(&mut self, batch: Kept) -> Result<(), ShelfError> {
        self.disk.remove_if_there(&self.folder.join(batch.file()))?;
        self.kept.retain(|k| k.number != batch.number);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dunlin_protocol::capture::seal::{Cause, Header, SecretKey, seal};
    use dunlin_protocol::id::Digest;

    fn batch(version: u64, bytes: usize) -> Vec<u8> {
        let header = Header {
            fleet: "f".parse().unwrap(),
            device: "d".parse().unwrap(),
            family: "digits".parse().unwrap(),
            version,
            bundle: Digest([1; 32]),
            recipient: SecretKey::derive(&[1; 32]).recipient(),
            start_ms: 0,
            end_ms: 1,
            cause: Cause::Window,
            samples: 1,
            considered: 1,
            too_large: 0,
        };
        seal(&header, &vec![0; bytes], [2; 32]).unwrap()
    }

    fn limits(max_bytes: u64) -> ShelfLimits {
        ShelfLimits {
            max_bytes,
            age_ms: 1000,
        }
    }

    fn open(dir: &Path, max_bytes: u64) -> Shelf {
        Shelf::open(&Disk::native(), dir, limits(max_bytes)).unwrap()
    }

    fn any(version: Option<u64>) -> Wanted {
        Wanted {
            id: 1,
            family: None,
            version,
        }
    }

    #[test]
    fn the_oldest_go_for_room_and_for_age() {
        let dir = tempfile::tempdir().unwrap();
        let length = u64::try_from(batch(1, 100).len()).unwrap();
        let mut shelf = open(dir.path(), 3 * length);
        for now_ms in 0..3 {
            assert_eq!(shelf.keep(now_ms, &batch(1, 100)).unwrap(), 0);
        }
        assert_eq!(shelf.keep(3, &batch(2, 100)).unwrap(), 1);
        assert_eq!(shelf.size(), (3, 3 * length));
        let refused = shelf.keep(3, &batch(2, 4000)).unwrap_err().to_string();
        assert!(refused.contains("at most"), "{refused}");
        assert_eq!(shelf.size().0, 3, "what cannot be kept costs nothing");
        assert_eq!(shelf.expire(1002).unwrap(), 1);
        assert_eq!(shelf.expire(1002).unwrap(), 0);
        assert_eq!(shelf.size().0, 2);
        // A clock that was set back drops nothing.
        assert_eq!(shelf.expire(-5000).unwrap(), 0);
    }

    #[test]
    fn what_a_kill_left_is_mended_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = open(dir.path(), 1 << 20);
        shelf.keep(1, &batch(1, 10)).unwrap();
        shelf.keep(2, &batch(2, 10)).unwrap();
        let folder = Shelf::folder(dir.path());
        std::fs::write(folder.join(".00000000000000000003-3.sealed.new"), b"half").unwrap();
        std::fs::write(folder.join("7-x.sealed"), b"?").unwrap();
        // The disk gave back other bytes than were written.
        std::fs::write(folder.join(format!("{:020}-4.sealed", 9)), b"torn").unwrap();
        let mut again = open(dir.path(), 1 << 20);
        assert_eq!(again.size().0, 3);
        let (first, bytes) = again.next_of(&any(None), 0).unwrap().unwrap();
        assert_eq!((first.number, bytes), (1, batch(1, 10)));
        let second = again.next_of(&any(None), 1).unwrap().unwrap().0;
        assert!(again.next_of(&any(None), second.number).unwrap().is_none());
        assert_eq!(again.size().0, 2, "what is no batch is gone");
        again.keep(5, &batch(1, 10)).unwrap();
        assert_eq!(again.next_of(&any(None), 9).unwrap().unwrap().0.number, 10);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3);
    }

    #[test]
    fn what_is_wanted_is_found_and_goes_when_it_was_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = open(dir.path(), 1 << 20);
        for version in [1, 2, 1] {
            shelf.keep(1, &batch(version, 10)).unwrap();
        }
        let second = shelf.next_of(&any(Some(2)), 0).unwrap().unwrap().0;
        assert_eq!(second.number, 2);
        shelf.remove(second).unwrap();
        assert!(shelf.next_of(&any(Some(2)), 0).unwrap().is_none());
        assert_eq!(shelf.size().0, 2);
        assert!(Shelf::clear(&Disk::native(), dir.path()).unwrap());
        assert!(!Shelf::clear(&Disk::native(), dir.path()).unwrap());
    }

    #[test]
    fn only_sealed_batches_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = open(dir.path(), 1 << 20);
        assert!(matches!(shelf.keep(1, b"plain"), Err(ShelfError::Seal(_))));
        assert_eq!(
            std::fs::read_dir(Shelf::folder(dir.path()))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn no_more_batches_than_can_be_listed() {
        let kept: VecDeque<Kept> = (0..BATCHES_MAX as u64)
            .map(|number| Kept {
                number,
                kept_ms: 0,
                bytes: 1,
            })
            .collect();
        assert_eq!(surplus(&kept, limits(u64::MAX), 0, 1), 1);
        assert_eq!(surplus(&kept, limits(u64::MAX), 0, 0), 0);
        assert_eq!(surplus(&kept, limits(10), 0, 1), BATCHES_MAX - 9);
        assert_eq!(surplus(&kept, limits(u64::MAX), 2000, 1), BATCHES_MAX);
        assert_eq!(surplus(&VecDeque::new(), limits(0), 0, 1), 0);
    }
}
