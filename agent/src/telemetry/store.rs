//! What a store of segments must do, and what is known of its content. Pure but for the trait.

use super::segment::{Kind, Meta, Sealed};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Most changes the store applies in one atomic batch.
pub const BATCH_MAX: usize = 100;

/// Most bytes of entries in one batch, so that it stays within sled's write buffer.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// How many of these make the next batch; at least one, if there is one.
#[must_use]
pub fn batch_len(segments: &[Sealed]) -> usize {
    let mut bytes = 0;
    let fits = segments.iter().take(BATCH_MAX).take_while(|sealed| {
        let is_first = bytes == 0;
        bytes += sealed.entry.len();
        is_first || bytes <= BATCH_BYTES_MAX
    });
    fits.count()
}

/// Why the store refuses.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The medium refuses (full, read-only, not permitted): the content is left as it is, and
    /// trying again later may help.
    #[error("telemetry store {path}: {what}: {problem}")]
    Medium {
        /// Where.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// What the system said.
        problem: String,
    },
    /// Too little disk is left to write without harm. The store is as it was; it need not be
    /// opened anew.
    #[error(
        "telemetry store {path}: {what}: {free_bytes} bytes of disk are free, {need_bytes} are needed"
    )]
    Full {
        /// Where.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
        /// Bytes free.
        free_bytes: u64,
        /// Bytes needed.
        need_bytes: u64,
    },
    /// The content cannot be read as a store.
    #[error("telemetry store {path}: {what}: damaged: {problem}")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Another process has it open.
    #[error("telemetry store {path}: in use by another process")]
    InUse {
        /// Where.
        path: PathBuf,
    },
}

/// Durable segments by number.
pub trait SegmentStore: Send {
    /// Adds `puts` and removes `deletes`, all or nothing, at most [`BATCH_MAX`] together.
    /// Durable after the next [`SegmentStore::sync`].
    ///
    /// # Errors
    /// [`StoreError::Full`], or the store failed: open it anew.
    fn append(&mut self, puts: &[Sealed], deletes: &[u64]) -> Result<(), StoreError>;

    /// A segment's entry, if it is there.
    ///
    /// # Errors
    /// The store failed: open it anew.
    fn peek(&mut self, number: u64) -> Result<Option<Vec<u8>>, StoreError>;

    /// Removes segments; unknown numbers are ignored.
    ///
    /// # Errors
    /// [`StoreError::Full`], or the store failed: open it anew.
    fn ack(&mut self, segments: &[u64]) -> Result<(), StoreError> {
        for some in segments.chunks(BATCH_MAX) {
            self.append(&[], some)?;
        }
        Ok(())
    }

    /// Number of segments and bytes on disk.
    ///
    /// # Errors
    /// The store failed: open it anew.
    fn stats(&mut self) -> Result<StoreStats, StoreError>;

    /// Makes all that was appended and removed survive a loss of power.
    ///
    /// # Errors
    /// The store failed: open it anew.
    fn sync(&mut self) -> Result<(), StoreError>;

    /// Writes the content anew, so that the disk holds no more than it needs. What was appended
    /// before is durable afterwards.
    ///
    /// # Errors
    /// [`StoreError::Full`], or the store failed: open it anew; nothing durable is lost.
    fn compact(&mut self) -> Result<(), StoreError>;
}

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreStats {
    /// Segments.
    pub segments: usize,
    /// Disk used, in bytes.
    pub disk_bytes: u64,
}

/// The heads of all buffered segments, in memory.
#[derive(Debug, Default, Clone)]
pub struct Index {
    pub(super) kinds: [BTreeMap<u64, Meta>; Kind::ALL.len()],
    pub(super) bytes: [u64; Kind::ALL.len()],
    records: u64,
}

impl Index {
    /// Adds a segment.
    pub fn insert(&mut self, number: u64, meta: Meta) {
        self.remove(number);
        self.bytes[meta.kind as usize] += u64::from(meta.entry_bytes);
        self.records += u64::from(meta.records);
        self.kinds[meta.kind as usize].insert(number, meta);
    }

    /// Removes a segment.
    pub fn remove(&mut self, number: u64) -> Option<Meta> {
        let meta = self.kinds.iter_mut().find_map(|k| k.remove(&number))?;
        self.bytes[meta.kind as usize] -= u64::from(meta.entry_bytes);
        self.records -= u64::from(meta.records);
        Some(meta)
    }

    /// A segment's head.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&Meta> {
        self.kinds.iter().find_map(|k| k.get(&number))
    }

    /// Number of segments.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.kinds.iter().map(BTreeMap::len).sum()
    }

    /// Number of records.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Bytes of all entries.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// Time of the oldest record of all, in milliseconds since 1970.
    #[must_use]
    pub fn oldest_ms(&self) -> Option<i64> {
        let all = self.kinds.iter().flat_map(BTreeMap::values);
        all.map(|m| m.oldest_ms).min()
    }

    /// The highest number.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        let lasts = self.kinds.iter().filter_map(|k| k.last_key_value());
        lasts.map(|(n, _)| *n).max()
    }

    /// All segments in the order of sending: the most precious kind first, oldest first within.
    pub fn in_order(&self) -> impl Iterator<Item = (u64, &Meta)> {
        self.kinds.iter().flatten().map(|(n, m)| (*n, m))
    }

    /// Of those, the ones from a number on or named.
    pub fn since<'a>(
        &'a self,
        from: u64,
        named: &'a BTreeSet<u64>,
    ) -> impl Iterator<Item = (u64, &'a Meta)> {
        self.kinds.iter().flat_map(move |kind| {
            let named = named.range(..from).filter_map(|n| kind.get_key_value(n));
            let since = kind.range(from..);
            named.chain(since).map(|(n, m)| (*n, m))
        })
    }

    /// The newest segment of each kind.
    pub fn newest(&self) -> impl Iterator<Item = u64> {
        let last = self.kinds.iter().filter_map(BTreeMap::last_key_value);
        last.map(|(n, _)| *n)
    }
}
