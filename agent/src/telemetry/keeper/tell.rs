//! What the buffer tells of itself: what went wrong with it, and that it was mended.

use super::Keeper;
use crate::telemetry::segment::{Kind, Prepared};
use crate::telemetry::store::SegmentStore as _;
use dunlin_protocol::telemetry::{Body, Event, Record};

pub(super) const SET_ASIDE: &str = "telemetry_store_set_aside";
pub(super) const UNAVAILABLE: &str = "telemetry_store_unavailable";
pub(super) const RECOVERED: &str = "telemetry_store_recovered";
const COMPACTED: &str = "telemetry_store_compacted";
/// A buffer that is full for days is written anew again and again: told once in so long.
const COMPACTED_EVERY_MS: i64 = 24 * 3600 * 1000;

/// Why nothing is durable for now.
pub(super) struct Problem {
    /// In words.
    pub(super) what: String,
    /// By the wall clock.
    since_ms: i64,
    /// [`Keeper::evicted_records`] as it began.
    evicted_records: u64,
}

impl Keeper {
    pub(super) fn tell_set_aside(&mut self, detail: String, now_ms: i64) {
        tracing::error!(detail, "telemetry store set aside");
        self.tell(SET_ASIDE, detail, now_ms);
    }

    pub(super) fn troubled(&mut self, what: String, now_ms: i64) {
        let (since_ms, evicted_records) = match &self.problem {
            Some(before) => (before.since_ms, before.evicted_records),
            None => (now_ms, self.evicted_records),
        };
        self.problem = Some(Problem {
            what,
            since_ms,
            evicted_records,
        });
    }

    pub(super) fn tell_recovered(&mut self, now_ms: i64) {
        let Some(problem) = self.problem.take() else {
            return;
        };
        let lasted_s = now_ms.saturating_sub(problem.since_ms) / 1000;
        let dropped = self.evicted_records - problem.evicted_records;
        let detail = format!(
            "durable again after {lasted_s} s, {dropped} records dropped meanwhile; it was: {}",
            problem.what
        );
        tracing::info!(detail, "telemetry store recovered");
        self.tell(RECOVERED, detail, now_ms);
        self.write(now_ms);
    }

    pub(super) fn tell_compacted(&mut self, before_bytes: u64, now_ms: i64) {
        let told = self.compacted_ms;
        if told.is_some_and(|told| now_ms.abs_diff(told) < COMPACTED_EVERY_MS.unsigned_abs()) {
            return;
        }
        self.compacted_ms = Some(now_ms);
        let after = self.store.as_mut().and_then(|store| store.stats().ok());
        let after_bytes = after.map_or(0, |stats| stats.disk_bytes);
        let detail = format!("from {before_bytes} to {after_bytes} bytes on disk");
        self.tell(COMPACTED, detail, now_ms);
    }

    fn tell(&mut self, code: &str, detail: String, now_ms: i64) {
        let record = Record {
            time_ms: now_ms,
            body: Body::Event(Event {
                code: code.to_owned(),
                detail,
                bundle: None,
            }),
        };
        if let Ok(prepared) = Prepared::new(&record) {
            self.seal_one(Kind::Event, &[prepared], now_ms);
        }
    }
}
