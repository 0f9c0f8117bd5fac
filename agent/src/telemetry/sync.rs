//! Which segments to send next. Pure: a window of segments that are under way, and nothing else.
//!
//! A segment stays buffered until the server's ack names it. One that is not acknowledged in
//! time is sent again; so that segments which the server never acknowledges cannot keep the
//! others waiting, at most a quarter of each batch is spent on repeats.
//!
//! What was sealed since the connection began, and the newest of each kind from before, goes at once.
//! The rest from before is history: it goes after that, the most precious kind first, and no faster
//! than [`Outbox::new`]'s rate, so that a fleet that comes back at once does not drown what happens now.

use super::segment::Meta;
use super::store::Index;
use dunlin_protocol::telemetry::Class;
use std::collections::{BTreeMap, BTreeSet};

/// Most segments under way at once.
pub const WINDOW_SEGMENTS: usize = 16;
/// Most bytes of records (as JSON) under way at once; one segment may always go.
pub const WINDOW_BYTES: u64 = 2 << 20;
/// How long to wait for an ack before a segment is sent again on the same connection, in
/// milliseconds.
pub const RESEND_MS: u64 = 10_000;

/// A segment whose oldest record is older than this when it is sent is marked as back-filled, in
/// milliseconds: well above the time that sealing, resending and a broken connection's end take.
pub const BACKFILLED_AFTER_MS: i64 = 60_000;

/// Whether a segment that is sent now is sent well after its oldest record; both by the wall clock,
/// in milliseconds since 1970.
#[must_use]
pub fn is_backfilled(oldest_ms: i64, now_ms: i64) -> bool {
    now_ms.saturating_sub(oldest_ms) > BACKFILLED_AFTER_MS
}

const REPEATS_PER_BATCH: usize = WINDOW_SEGMENTS / 4;

/// A segment as one MQTT message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Its number within the boot.
    pub segment: u64,
    /// Decides the channel.
    pub class: Class,
    /// The message, at most [`dunlin_protocol::SEGMENT_MAX_BYTES`].
    pub payload: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    at_ms: u64,
    bytes: u32,
}

/// What is under way and what was sent in vain. `now_ms` is any clock that does not go back.
#[derive(Debug, Default)]
pub struct Outbox {
    sent: BTreeMap<u64, Sent>,
    /// Numbers from here on are not history.
    live_from: u64,
    /// The newest of each kind as the connection began.
    newest: BTreeSet<u64>,
    pace: Pace,
}

/// A debt of bytes that is paid off with time.
#[derive(Debug, Default)]
struct Pace {
    /// 0: no limit.
    bytes_s: u64,
    debt_bytes: u64,
    counted_ms: u64,
    /// Whether history waited at the last look.
    waits: bool,
}

impl Pace {
    fn is_free(&mut self, now_ms: u64) -> bool {
        let passed_ms = now_ms.saturating_sub(self.counted_ms);
        self.counted_ms = now_ms;
        let paid = passed_ms.saturating_mul(self.bytes_s) / 1000;
        self.debt_bytes = self.debt_bytes.saturating_sub(paid);
        self.bytes_s == 0 || self.debt_bytes <= self.bytes_s
    }

    fn spend(&mut self, bytes: u32) {
        self.debt_bytes += u64::from(bytes);
    }

    /// When the next may go.
    fn free_ms(&self) -> u64 {
        let surplus = self.debt_bytes.saturating_sub(self.bytes_s);
        let wait_ms = surplus.saturating_mul(1000) / self.bytes_s.max(1) + 1;
        self.counted_ms.saturating_add(wait_ms)
    }
}

impl Outbox {
    /// Sends at most so many bytes of history a second, on the average of two; 0: no limit.
    #[must_use]
    pub fn new(drain_bytes_s: u64) -> Self {
        let pace = Pace {
            bytes_s: drain_bytes_s,
            ..Pace::default()
        };
        Self {
            pace,
            ..Self::default()
        }
    }

    /// The segments to send now, and marks them as sent.
    pub fn next_unsent(&mut self, index: &Index, now_ms: u64, max: usize) -> Vec<(u64, Meta)> {
        self.pace.waits = false;
        let under_way = self.sent.values().filter(|s| !s.is_overdue(now_ms));
        let (mut segments, mut bytes) =
            under_way.fold((0, 0), |(n, b), s| (n + 1, b + u64::from(s.bytes)));
        let mut chosen: Vec<(u64, Meta)> = Vec::new();
        let repeats = self.overdue(index, now_ms);
        let unsent = |(n, _): &(u64, &Meta)| !self.sent.contains_key(n);
        let is_live = |n: u64| n >= self.live_from || self.newest.contains(&n);
        let live = index.since(self.live_from, &self.newest).filter(unsent);
        let history = index
            .in_order()
            .filter(|(n, _)| !is_live(*n))
            .filter(unsent);
        let repeats = repeats.into_iter().map(|(n, m)| (n, m, false));
        let live = live.map(|(n, m)| (n, *m, false));
        let history = history.map(|(n, m)| (n, *m, true));
        for (number, meta, is_history) in repeats.chain(live).chain(history) {
            let too_large = segments > 0 && bytes + u64::from(meta.json_bytes) > WINDOW_BYTES;
            if chosen.len() >= max || segments >= WINDOW_SEGMENTS || too_large {
                break;
            }
            if is_history {
                if !self.pace.is_free(now_ms) {
                    self.pace.waits = true;
                    break;
                }
                self.pace.spend(meta.json_bytes);
            }
            segments += 1;
            bytes += u64::from(meta.json_bytes);
            chosen.push((number, meta));
        }
        for (number, meta) in &chosen {
            let sent = Sent {
                at_ms: now_ms,
                bytes: meta.json_bytes,
            };
            self.sent.insert(*number, sent);
        }
        chosen
    }

    /// When there will be something to send though nothing new was sealed: a segment under way is due
    /// again, or history may go on.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        let again = self
            .sent
            .values()
            .map(|s| s.at_ms.saturating_add(RESEND_MS));
        let history = self.pace.waits.then(|| self.pace.free_ms());
        again.chain(history).min()
    }

    /// Forgets a segment that was acknowledged or dropped.
    pub fn forget(&mut self, number: u64) {
        self.sent.remove(&number);
    }

    /// The connection is a new one: what was under way is to be sent again, and what is there by now
    /// is history.
    pub fn reset_inflight(&mut self, index: &Index) {
        self.sent.clear();
        self.live_from = index.last().map_or(0, |last| last + 1);
        self.newest = index.newest().collect();
    }

    fn overdue(&self, index: &Index, now_ms: u64) -> Vec<(u64, Meta)> {
        let due = self.sent.iter().filter(|(_, s)| s.is_overdue(now_ms));
        let mut due: Vec<_> = due.map(|(n, s)| (s.at_ms, *n)).collect();
        due.sort_unstable();
        let there = due
            .into_iter()
            .filter_map(|(_, n)| Some((n, *index.get(n)?)));
        there.take(REPEATS_PER_BATCH).collect()
    }
}

impl Sent {
    fn is_overdue(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.at_ms) >= RESEND_MS
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::telemetry::segment::Kind;

    fn index(entries: &[(u64, Kind, u32)]) -> Index {
        let mut index = Index::default();
        for (number, kind, json_bytes) in entries {
            let meta = Meta {
                kind: *kind,
                records: 1,
                oldest_ms: 0,
                json_bytes: *json_bytes,
                entry_bytes: 10,
            };
            index.insert(*number, meta);
        }
        index
    }

    fn numbers(batch: &[(u64, Meta)]) -> Vec<u64> {
        batch.iter().map(|(n, _)| *n).collect()
    }

    #[test]
    fn the_most_precious_go_first_and_the_oldest_within_a_kind() {
        let index = index(&[
            (1, Kind::Log, 10),
            (2, Kind::Sketch, 10),
            (3, Kind::Event, 10),
            (4, Kind::Event, 10),
            (5, Kind::Gap, 10),
        ]);
        let mut outbox = Outbox::default();
        assert_eq!(numbers(&outbox.next_unsent(&index, 0, 16)), [5, 3, 4, 2, 1]);
        assert!(outbox.next_unsent(&index, 1, 16).is_empty());
    }

    #[test]
    fn the_window_is_bounded_in_segments_and_bytes() {
        let many: Vec<_> = (0..40).map(|n| (n, Kind::Event, 10)).collect();
        let mut index_small = index(&many);
        let mut outbox = Outbox::default();
        assert_eq!(outbox.next_unsent(&index_small, 0, 100).len(), 16);
        outbox.forget(3);
        index_small.remove(3);
        assert_eq!(numbers(&outbox.next_unsent(&index_small, 0, 100)), [16]);

        let large: Vec<_> = (0..9).map(|n| (n, Kind::Event, 900_000)).collect();
        assert_eq!(
            Outbox::default().next_unsent(&index(&large), 0, 100).len(),
            2
        );
        let huge = index(&[(0, Kind::Event, u32::MAX)]);
        assert_eq!(Outbox::default().next_unsent(&huge, 0, 100).len(), 1);
    }

    #[test]
    fn what_is_not_acknowledged_goes_again_after_its_time_or_at_once_on_reconnect() {
        let index = index(&[(1, Kind::Event, 10)]);
        let mut outbox = Outbox::default();
        assert_eq!(numbers(&outbox.next_unsent(&index, 0, 16)), [1]);
        assert_eq!(outbox.next_due_ms(), Some(RESEND_MS));
        assert!(outbox.next_unsent(&index, RESEND_MS - 1, 16).is_empty());
        assert_eq!(numbers(&outbox.next_unsent(&index, RESEND_MS, 16)), [1]);
        outbox.reset_inflight(&index);
        assert_eq!(numbers(&outbox.next_unsent(&index, RESEND_MS, 16)), [1]);
    }

    #[test]
    fn what_is_older_than_a_minute_when_it_is_sent_is_backfilled() {
        let now_ms = 1_700_000_000_000;
        assert!(!is_backfilled(now_ms - BACKFILLED_AFTER_MS, now_ms));
        assert!(is_backfilled(now_ms - BACKFILLED_AFTER_MS - 1, now_ms));
        // A clock that was set back, and clocks that are out of all measure.
        assert!(!is_backfilled(now_ms + 1, now_ms));
        assert!(is_backfilled(i64::MIN, i64::MAX) && !is_backfilled(i64::MAX, i64::MIN));
    }

    #[test]
    fn segments_that_are_never_acknowledged_do_not_hold_up_the_others() {
        let mut entries: Vec<_> = (0..16).map(|n| (n, Kind::Event, 10)).collect();
        entries.push((99, Kind::Log, 10));
        let index = index(&entries);
        let mut outbox = Outbox::default();
        assert_eq!(outbox.next_unsent(&index, 0, 16).len(), 16);
        assert!(numbers(&outbox.next_unsent(&index, RESEND_MS, 16)).contains(&99));
    }

    #[test]
    fn the_state_goes_first_and_history_at_its_pace() {
        let kinds = [Kind::Event, Kind::Sketch, Kind::Log];
        let mut entries: Vec<_> = (0..30).map(|n| (n, kinds[n as usize % 3], 1000)).collect();
        let before = index(&entries);
        let mut outbox = Outbox::new(2000);
        outbox.reset_inflight(&before);
        entries.extend([(30, Kind::Log, 1000), (31, Kind::Event, 1000)]);
        let mut held = index(&entries);
        // The newest of each kind and what came since, then as much history as two seconds bring.
        let first = numbers(&outbox.next_unsent(&held, 10_000, 16));
        assert_eq!(first, [27, 31, 28, 29, 30, 0, 3, 6]);
        for number in first {
            outbox.forget(number);
            held.remove(number);
        }
        assert!(outbox.next_unsent(&held, 10_000, 16).is_empty());
        let due = outbox.next_due_ms().unwrap();
        assert!((10_001..=11_000).contains(&due), "{due}");
        assert!(outbox.next_unsent(&held, due - 2, 16).is_empty());
        let next = numbers(&outbox.next_unsent(&held, due, 16));
        assert_eq!(next, [9]);
        // What happens now does not wait for it.
        held.insert(32, *held.get(12).unwrap());
        assert_eq!(numbers(&outbox.next_unsent(&held, due, 16)), [32]);
        let mut at_ms = due;
        while held.segments() > 0 {
            for number in numbers(&outbox.next_unsent(&held, at_ms, 16)) {
                outbox.forget(number);
                held.remove(number);
            }
            for number in [9, 32] {
                held.remove(number);
            }
            at_ms += 100;
        }
        let rate = 22_000 * 1000 / (at_ms - due);
        assert!((1500..=2500).contains(&rate), "{rate} bytes a second");
    }
}
