//! How much is buffered, how long, and what is evicted when. Pure.

use super::segment::Kind;
use super::store::{BATCH_MAX, Index};

/// Milliseconds since 1970.
const YEAR_2020_MS: i64 = 1_577_836_800_000;
const YEAR_2100_MS: i64 = 4_102_444_800_000;

/// How much may be buffered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most disk the store may use, in bytes; at least [`Limits::MIN_BYTES`]. The entries
    /// (compressed) get a quarter of it: sled holds two to three times its content, and needs
    /// room to write it anew when that has become too much.
    pub max_bytes: u64,
    /// How long records are kept.
    pub ages: Ages,
    /// Most bytes a second of what was buffered before a connection began, as JSON; 0: no limit.
    pub drain_bytes_s: u64,
}

/// Longest time that records wait for the server, by class, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ages {
    /// Things that happened.
    pub event_ms: i64,
    /// Drift windows.
    pub sketch_ms: i64,
    /// Flat scalars.
    pub metrics_ms: i64,
    /// Log lines.
    pub log_ms: i64,
}

const DAY_MS: i64 = 86_400_000;

impl Default for Ages {
    fn default() -> Self {
        Self {
            event_ms: 90 * DAY_MS,
            sketch_ms: 90 * DAY_MS,
            metrics_ms: 30 * DAY_MS,
            log_ms: 7 * DAY_MS,
        }
    }
}

impl Ages {
    /// Accounts of what was dropped do not age.
    fn of(&self, kind: Kind) -> Option<i64> {
        match kind {
            Kind::Gap | Kind::Draft => None,
            Kind::Event => Some(self.event_ms),
            Kind::Sketch => Some(self.sketch_ms),
            Kind::Metrics => Some(self.metrics_ms),
            Kind::Log => Some(self.log_ms),
        }
    }
}

/// Most segments buffered; bounds the index in memory (about 64 bytes each).
pub const SEGMENTS_MAX: usize = 65_536;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            ages: Ages::default(),
            drain_bytes_s: 0,
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
            Kind::Sketch | Kind::Draft => entries / 10 * 7,
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
/// needed, so that a full buffer does not write a gap for each new segment. `now_ms` is the wall
/// clock, if it can be believed; nothing ages without one.
#[must_use]
pub fn next_eviction(index: &Index, limits: &Limits, now_ms: Option<i64>) -> Option<Eviction> {
    if let Some(eviction) = now_ms.and_then(|now_ms| aged(index, &limits.ages, now_ms)) {
        return Some(eviction);
    }
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

/// Neither a clock that was never set nor one far in the future says how old something is.
fn is_plausible(time_ms: i64) -> bool {
    (YEAR_2020_MS..YEAR_2100_MS).contains(&time_ms)
}

fn aged(index: &Index, ages: &Ages, now_ms: i64) -> Option<Eviction> {
    if !is_plausible(now_ms) {
        return None;
    }
    for kind in Kind::ALL.into_iter().rev() {
        let Some(age_ms) = ages.of(kind) else {
            continue;
        };
        let dated = index.kinds[kind as usize].iter();
        let dated = dated.filter(|(_, meta)| is_plausible(meta.oldest_ms));
        let old = dated.take_while(|(_, meta)| now_ms.saturating_sub(meta.oldest_ms) > age_ms);
        let old: Vec<_> = old.take(BATCH_MAX - 1).collect();
        if !old.is_empty() {
            return Some(Eviction {
                kind,
                segments: old.iter().map(|(number, _)| **number).collect(),
                records: old.iter().map(|(_, meta)| u64::from(meta.records)).sum(),
                reason: "older than the class is kept",
            });
        }
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
    use crate::telemetry::segment::Meta;
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

    const NOW_MS: i64 = YEAR_2020_MS + 1000 * DAY_MS;

    fn small() -> Limits {
        Limits {
            max_bytes: Limits::MIN_BYTES,
            ..Limits::default()
        }
    }

    fn settle(index: &mut Index, limits: &Limits) -> Vec<Eviction> {
        let mut all = Vec::new();
        while let Some(eviction) = next_eviction(index, limits, Some(NOW_MS)) {
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
        let dropped = settle(&mut index, &small());
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
        settle(&mut index, &small());
        let kinds: Vec<_> = index.in_order().map(|(_, m)| m.kind).collect();
        assert_eq!(kinds[0], Kind::Gap);
        assert!(kinds[1..].iter().all(|k| *k == Kind::Event));
    }

    #[test]
    fn what_is_too_old_goes_and_what_has_no_date_stays() {
        let mut index = Index::default();
        let dated = |kind, days: i64| Meta {
            oldest_ms: NOW_MS - days * DAY_MS,
            ..meta(kind, 100)
        };
        // From before the clock was set.
        index.insert(0, meta(Kind::Log, 100));
        index.insert(1, dated(Kind::Log, 8));
        index.insert(2, dated(Kind::Log, 6));
        index.insert(3, dated(Kind::Metrics, 31));
        index.insert(4, dated(Kind::Event, 60));
        index.insert(5, dated(Kind::Gap, 400));
        // The year 2106: no age can be told by such a clock.
        assert_eq!(
            next_eviction(&index, &small(), Some(4_294_967_296_000)),
            None
        );
        assert_eq!(next_eviction(&index, &small(), Some(0)), None);
        assert_eq!(next_eviction(&index, &small(), None), None);
        let dropped = settle(&mut index, &small());
        let numbers: Vec<_> = dropped.iter().flat_map(|e| e.segments.clone()).collect();
        assert_eq!(numbers, [1, 3]);
        assert!(dropped.iter().all(|e| e.reason.contains("older")));
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
            let dropped = settle(&mut index, &small());
            let segments: usize = dropped.iter().map(|e| e.segments.len()).sum();
            let records: u64 = dropped.iter().map(|e| e.records).sum();
            prop_assert_eq!(before, (index.segments() + segments, index.records() + records));
            prop_assert!(index.bytes() <= small().entries_bytes());
            prop_assert!(dropped.iter().all(|e| e.segments.len() < BATCH_MAX));
        }
    }
}
