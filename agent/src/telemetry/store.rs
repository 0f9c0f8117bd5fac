//! What a store of segments must do, what is known of its content, and what is evicted when.
//! Pure but for the trait.

use super::segment::{Kind, Meta, Sealed};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Most changes the store applies in one atomic batch.
pub const BATCH_MAX: usize = 100;

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

/// How much may be buffered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most disk the store may use, in bytes; at least [`Limits::MIN_BYTES`]. The entries
    /// (compressed) get a quarter of it: sled holds two to three times its content, and needs
    /// room to write it anew when that has become too much.
    pub max_bytes: u64,
}

/// Most segments buffered; bounds the index in memory (about 64 bytes each).
pub const SEGMENTS_MAX: usize = 65_536;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
        }
    }
}

impl Limits {
    /// Least disk that makes sense, in bytes: below it the store's own slack would eat it all.
    pub const MIN_BYTES: u64 = 8 << 20;

    /// Most bytes of a kind's entries.
    #[must_use]
    pub fn ceiling_bytes(&self, kind: Kind) -> u64 {
        let entries = self.entries_bytes();
        match kind {
            Kind::Gap | Kind::Event => entries,
            Kind::Sketch => entries / 10 * 7,
            Kind::Metrics => entries / 10 * 4,
            Kind::Log => entries / 10 * 2,
        }
    }

    /// Most bytes of entries of all kinds.
    #[must_use]
    pub fn entries_bytes(&self) -> u64 {
        self.max_bytes.max(Self::MIN_BYTES) / 4
    }

    /// Bytes on disk at which the store is written anew, so that the old and the new one together
    /// stay within the limit.
    #[must_use]
    pub fn bloated_bytes(&self) -> u64 {
        self.max_bytes.max(Self::MIN_BYTES) / 4 * 3
    }
}

/// The heads of all buffered segments, in memory.
#[derive(Debug, Default, Clone)]
pub struct Index {
    kinds: [BTreeMap<u64, Meta>; Kind::ALL.len()],
    bytes: [u64; Kind::ALL.len()],
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
}

/// Segments to drop, all of one kind, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// What they hold.
    pub kind: Kind,
    /// Their numbers, oldest first; at most [`BATCH_MAX`] less one, so that the gap that names
    /// them fits into the same batch.
    pub segments: Vec<u64>,
    /// Their records together.
    pub records: u64,
    /// Why, for the gap.
    pub reason: &'static str,
}

/// What to drop next, or nothing when all is within its bounds. To be asked again after each
/// answer. The oldest go first, of the least precious kind; each time a sixteenth more than
/// needed, so that a full buffer does not write a gap for each new segment.
#[must_use]
pub fn next_eviction(index: &Index, limits: &Limits) -> Option<Eviction> {
    for kind in Kind::ALL.into_iter().rev() {
        let (held, ceiling) = (index.bytes[kind as usize], limits.ceiling_bytes(kind));
        if held > ceiling {
            let surplus = held - ceiling + ceiling / 16;
            return oldest(
                index,
                kind,
                surplus,
                0,
                "the class's share of the buffer is full",
            );
        }
    }
    let (held, ceiling) = (index.bytes(), limits.entries_bytes());
    if held > ceiling {
        let surplus = held - ceiling + ceiling / 16;
        return least(index, surplus, 0, "the buffer is full");
    }
    let (held, most) = (index.segments(), SEGMENTS_MAX);
    if held > most {
        let surplus = held - most + most / 16;
        return least(index, 0, surplus, "the buffer holds its most segments");
    }
    None
}

fn least(index: &Index, bytes: u64, segments: usize, why: &'static str) -> Option<Eviction> {
    let mut kinds = Kind::ALL.into_iter().rev();
    let kind = kinds.find(|k| !index.kinds[*k as usize].is_empty())?;
    oldest(index, kind, bytes, segments, why)
}

fn oldest(
    index: &Index,
    kind: Kind,
    bytes: u64,
    segments: usize,
    reason: &'static str,
) -> Option<Eviction> {
    let mut eviction = Eviction {
        kind,
        segments: Vec::new(),
        records: 0,
        reason,
    };
    let mut freed = 0;
    for (number, meta) in &index.kinds[kind as usize] {
        let enough = freed >= bytes && eviction.segments.len() >= segments;
        if eviction.segments.len() == BATCH_MAX - 1 || (enough && !eviction.segments.is_empty()) {
            break;
        }
        freed += u64::from(meta.entry_bytes);
        eviction.segments.push(*number);
        eviction.records += u64::from(meta.records);
    }
    (!eviction.segments.is_empty()).then_some(eviction)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meta(kind: Kind, entry_bytes: u32) -> Meta {
        Meta {
            kind,
            records: 2,
            oldest_ms: 5,
            json_bytes: 100,
            entry_bytes,
        }
    }

    const SMALL: Limits = Limits {
        max_bytes: Limits::MIN_BYTES,
    };

    fn settle(index: &mut Index, limits: &Limits) -> Vec<Eviction> {
        let mut all = Vec::new();
        while let Some(eviction) = next_eviction(index, limits) {
            for number in &eviction.segments {
                index
                    .remove(*number)
                    .expect("only what is there is dropped");
            }
            all.push(eviction);
        }
        all
    }

    #[test]
    fn a_flood_of_logs_drops_only_logs() {
        let mut index = Index::default();
        index.insert(0, meta(Kind::Event, 1000));
        index.insert(1, meta(Kind::Sketch, 1000));
        for number in 2..600 {
            index.insert(number, meta(Kind::Log, 10_000));
        }
        let dropped = settle(&mut index, &SMALL);
        assert!(dropped.iter().all(|e| e.kind == Kind::Log));
        assert_eq!(dropped[0].segments[0], 2, "oldest first");
        assert!(index.get(0).is_some() && index.get(1).is_some());
    }

    #[test]
    fn a_flood_of_events_drops_everything_else_first() {
        let mut index = Index::default();
        for (number, kind) in (0..).zip([Kind::Log, Kind::Metrics, Kind::Sketch, Kind::Gap]) {
            index.insert(number, meta(kind, 100_000));
        }
        for number in 10..1000 {
            index.insert(number, meta(Kind::Event, 10_000));
        }
        settle(&mut index, &SMALL);
        let kinds: Vec<_> = index.in_order().map(|(_, m)| m.kind).collect();
        assert_eq!(kinds[0], Kind::Gap);
        assert!(kinds[1..].iter().all(|k| *k == Kind::Event));
    }

    #[test]
    fn the_index_is_bounded_in_number() {
        let mut index = Index::default();
        for number in 0..66_000 {
            index.insert(number, meta(Kind::Metrics, 60));
        }
        settle(&mut index, &Limits::default());
        assert!((SEGMENTS_MAX / 10 * 9..=SEGMENTS_MAX).contains(&index.segments()));
    }

    proptest! {
        #[test]
        fn eviction_ends_within_the_bounds_and_counts_what_it_drops(
            sizes in proptest::collection::vec((0_usize..5, 20_u32..90_000), 0..400),
        ) {
            let mut index = Index::default();
            for (number, (kind, bytes)) in (0..).zip(sizes) {
                index.insert(number, meta(Kind::ALL[kind], bytes));
            }
            let before = (index.segments(), index.records());
            let dropped = settle(&mut index, &SMALL);
            let segments: usize = dropped.iter().map(|e| e.segments.len()).sum();
            let records: u64 = dropped.iter().map(|e| e.records).sum();
            prop_assert_eq!(before, (index.segments() + segments, index.records() + records));
            prop_assert!(index.bytes() <= SMALL.entries_bytes());
            prop_assert!(dropped.iter().all(|e| e.segments.len() < BATCH_MAX));
        }
    }
}
