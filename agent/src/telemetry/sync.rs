//! Which segments to send next. Pure: a window of segments that are under way, and nothing else.
//!
//! A segment stays buffered until the server's ack names it. One that is not acknowledged in
//! time is sent again; so that segments which the server never acknowledges cannot keep the
//! others waiting, at most a quarter of each batch is spent on repeats.

use super::segment::Meta;
use super::store::Index;
use dunlin_protocol::telemetry::Class;
use std::collections::BTreeMap;

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
}

impl Outbox {
    /// The segments to send now, and marks them as sent.
    pub fn next_unsent(&mut self, index: &Index, now_ms: u64, max: usize) -> Vec<(u64, Meta)> {
        let under_way = self.sent.values().filter(|s| !s.is_overdue(now_ms));
        let (mut segments, mut bytes) =
            under_way.fold((0, 0), |(n, b), s| (n + 1, b + u64::from(s.bytes)));
        let mut chosen: Vec<(u64, Meta)> = Vec::new();
        let repeats = self.overdue(index, now_ms);
        let fresh = index.in_order().filter(|(n, _)| !self.sent.contains_key(n));
        for (number, meta) in repeats.into_iter().chain(fresh.map(|(n, m)| (n, *m))) {
            let too_large = segments > 0 && bytes + u64::from(meta.json_bytes) > WINDOW_BYTES;
            if chosen.len() >= max || segments >= WINDOW_SEGMENTS || too_large {
                break;
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

    /// When a segment that is under way will be due again, if one is.
    #[must_use]
    pub fn next_resend_ms(&self) -> Option<u64> {
        let due = self
            .sent
            .values()
            .map(|s| s.at_ms.saturating_add(RESEND_MS));
        due.min()
    }

    /// Forgets a segment that was acknowledged or dropped.
    pub fn forget(&mut self, number: u64) {
        self.sent.remove(&number);
    }

    /// Everything may be sent again at once: the connection is a new one.
    pub fn reset_inflight(&mut self) {
        self.sent.clear();
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
        assert_eq!(outbox.next_resend_ms(), Some(RESEND_MS));
        assert!(outbox.next_unsent(&index, RESEND_MS - 1, 16).is_empty());
        assert_eq!(numbers(&outbox.next_unsent(&index, RESEND_MS, 16)), [1]);
        outbox.reset_inflight();
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
}
