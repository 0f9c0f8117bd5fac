//! What the buffer tells of itself: what went wrong with it, and that it was mended.

use super::Keeper;
use crate::telemetry::evict::Eviction;
use crate::telemetry::journal::{Brief, Damage};
use crate::telemetry::journaled::Replayed;
use crate::telemetry::segment::{Kind, Prepared};
use crate::telemetry::store::{BATCH_MAX, SegmentStore as _};
use dunlin_protocol::telemetry::{Body, Event, Record};
use std::collections::BTreeMap;

pub(super) const SET_ASIDE: &str = "telemetry_store_set_aside";
pub(super) const JOURNAL_DAMAGED: &str = "telemetry_journal_damaged";
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

/// When to say that something goes on. Pure: at once, then after a second and twice as long each time, up
/// to a minute.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    /// When it is said again, and how long it was quiet before.
    next: Option<(u64, u64)>,
}

impl Complaint {
    const FIRST_MS: u64 = 1000;
    const MOST_MS: u64 = 60_000;

    /// Whether to say now that it goes on; `clock_ms` does not go back.
    pub(crate) fn is_due(&mut self, clock_ms: u64) -> bool {
        let wait_ms = match self.next {
            Some((next_ms, _)) if clock_ms < next_ms => return false,
            Some((_, wait_ms)) => wait_ms.saturating_mul(2).min(Self::MOST_MS),
            None => Self::FIRST_MS,
        };
        self.next = Some((clock_ms.saturating_add(wait_ms), wait_ms));
        true
    }

    /// It has ended; whether it was said to go on.
    pub(crate) fn end(&mut self) -> bool {
        self.next.take().is_some()
    }
}

/// What is to be told of damage; nothing if it cost nothing.
pub(super) fn damage(damage: &Damage, lost: &BTreeMap<u64, Brief>) -> Option<String> {
    let records: u64 = lost.values().map(|brief| u64::from(brief.records)).sum();
    let known = match lost.len() {
        0 => "which segments are lost is not known".to_owned(),
        segments => format!("{segments} segments with {records} records are lost, see the gaps"),
    };
    let unsure = if damage.is_unsure && !lost.is_empty() {
        "; there may be more"
    } else {
        ""
    };
    let detail = format!("{}; {known}{unsure}", damage.what);
    if lost.is_empty() && !damage.is_unsure {
        tracing::warn!(
            problem = damage.what,
            "damage to the telemetry journal cost nothing"
        );
        return None;
    }
    tracing::error!(detail, "telemetry journal damaged");
    Some(detail)
}

/// What became of the records when a store was set aside.
pub(super) fn kept(replayed: &Replayed) -> String {
    let (segments, records) = (replayed.kept_segments, replayed.kept_records);
    let stored = match replayed.stored {
        Some(stored) => format!("{stored} segments were in it at the last sync"),
        None => "how many were in it is not known".to_owned(),
    };
    format!("{segments} segments with {records} records of the journal are kept, {stored}")
}

/// The gaps that tell of what was lost, as many to one as fit.
pub(super) fn evictions(lost: &BTreeMap<u64, Brief>) -> Vec<Eviction> {
    let mut all = Vec::new();
    for kind in Kind::ALL.into_iter().chain([Kind::Draft]) {
        let of_kind: Vec<_> = lost.iter().filter(|(_, b)| b.kind == kind).collect();
        for some in of_kind.chunks(BATCH_MAX - 1) {
            all.push(Eviction {
                kind,
                segments: some.iter().map(|(number, _)| **number).collect(),
                records: some.iter().map(|(_, b)| u64::from(b.records)).sum(),
                reason: "lost to damage of the buffer",
            });
        }
    }
    all
}

impl Keeper {
    pub(super) fn tell_journal_damaged(&mut self, detail: String, now_ms: i64) {
        self.tell(JOURNAL_DAMAGED, detail, now_ms);
    }

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
        // The run of the agent before this one may have been in the same trouble, and died of it.
        let since = if self.was_durable {
            ""
        } else {
            " since this start; what was lost before it is not known"
        };
        let detail = format!(
            "durable again after {lasted_s} s, {dropped} records dropped meanwhile{since}; it was: {}",
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
