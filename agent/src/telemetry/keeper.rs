//! Keeps the segments: writes, evicts, sends, deletes, and gets over a store that fails.
//!
//! A failed store is closed and opened anew, and what was written since its last sync is written
//! again. While there is no store, or too little disk is left, new segments wait in memory up to
//! [`WAITING_BYTES_MAX`], and what is buffered already is kept, sent and deleted as ever; what has
//! to be dropped is named in gaps, which are written once the store takes them.

mod drafts;
mod opening;
mod tell;

pub(crate) use tell::Complaint;

use super::age::AgeClock;
use super::boot::Counter;
use super::buffer::Folder;
use super::evict::{Eviction, Limits, next_eviction};
use super::journal::Brief;
use super::journaled::JournaledStore;
use super::segment::{Kind, Prepared, Sealed, read_message};
use super::store::{Index, SegmentStore, StoreError, batch_len};
use super::sync::{Outbox, Outgoing};
use drafts::Drafts;
use dunlin_protocol::command::Ack;
use dunlin_protocol::id::BootId;
use dunlin_protocol::telemetry::{Body, Class, Gap, Record};
use opening::{AtStart, open_store};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tell::{JOURNAL_DAMAGED, Problem, SET_ASIDE, UNAVAILABLE};

/// Most bytes of entries that wait in memory while the store fails.
pub(crate) const WAITING_BYTES_MAX: usize = 2 << 20;
/// Most numbers a gap names for segments that never reached the store.
const LOST_NUMBERS_MAX: usize = 4096;
/// A store below this many bytes on disk is not worth compacting.
const COMPACT_BYTES_MIN: u64 = 4 << 20;
/// What was found when the telemetry store was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenReport {
    /// Life of the store.
    pub boot: BootId,
    /// Segments that were buffered.
    pub segments: usize,
    /// Their records.
    pub records: u64,
    /// Why an earlier store had to be set aside, and where it is now.
    pub set_aside: Option<String>,
    /// What damage to the journal cost; which segments is told in gaps.
    pub damage: Option<String>,
    /// Why there is no store at the moment; records wait in memory, and opening is tried again.
    pub problem: Option<String>,
}

impl OpenReport {
    /// What is worth an event: `(code, detail)`.
    #[must_use]
    pub fn events(&self) -> Vec<(&'static str, String)> {
        let set_aside = self.set_aside.clone().map(|why| (SET_ASIDE, why));
        let damage = self.damage.clone().map(|what| (JOURNAL_DAMAGED, what));
        let problem = self.problem.clone().map(|why| (UNAVAILABLE, why));
        set_aside.into_iter().chain(damage).chain(problem).collect()
    }
}

/// What is buffered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Segments, sealed and not acknowledged.
    pub segments: u64,
    /// Their records.
    pub records: u64,
    /// Disk used by the store, in bytes.
    pub bytes_on_disk: u64,
    /// Records evicted or lost since the agent started.
    pub evicted_records: u64,
    /// Time of the oldest buffered record, in milliseconds since 1970.
    pub oldest_ms: Option<i64>,
    /// What keeps records from being durable, if anything does.
    pub problem: Option<String>,
}

/// The buffer's working parts.
pub(crate) struct Keeper {
    folder: Folder,
    limits: Limits,
    counter: Counter,
    store: Option<JournaledStore>,
    index: Index,
    outbox: Outbox,
    waiting: Vec<Sealed>,
    drafts: Drafts,
    unsynced: Vec<Sealed>,
    lost: BTreeMap<Class, Gap>,
    /// What damage took of what was durable, and is not told yet.
    damaged: Vec<Eviction>,
    evicted_records: u64,
    dirty: bool,
    written_bytes: u64,
    problem: Option<Problem>,
    ages: AgeClock,
    /// Whether all was durable since this keeper was opened.
    was_durable: bool,
    /// When it was last told that the store was written anew, by the wall clock.
    compacted_ms: Option<i64>,
}

impl Keeper {
    /// Opens the folder; `now_ms` is the wall clock in milliseconds since 1970.
    pub(crate) fn open(
        dir: &Path,
        limits: Limits,
        now_ms: i64,
    ) -> Result<(Self, OpenReport), StoreError> {
        let folder = Folder::take(dir)?;
        let opened = open_store(&folder).or_else(|e| match e {
            StoreError::Medium { .. } | StoreError::Full { .. } => {
                folder.drop_ballast();
                open_store(&folder)
            }
            other => Err(other),
        });
        let (counter, opened, problem) = match opened {
            Ok(o) => (None, Some(o), None),
            Err(e @ (StoreError::Medium { .. } | StoreError::Full { .. })) => {
                match Counter::load(dir)? {
                    Some(counter) => (Some(counter), None, Some(e.to_string())),
                    None => return Err(e),
                }
            }
            Err(e) => return Err(e),
        };
        let (counter, store, found) = match (counter, opened) {
            (_, Some(o)) => (o.counter, Some(o.store), o.found),
            (Some(counter), None) => (counter, None, AtStart::default()),
            (None, None) => return Err(StoreError::InUse { path: dir.into() }),
        };
        let mut keeper = Self {
            folder,
            limits,
            counter,
            store,
            index: Index::default(),
            outbox: Outbox::new(limits.drain_bytes_s),
            waiting: Vec::new(),
            drafts: Drafts::default(),
            unsynced: Vec::new(),
            lost: BTreeMap::new(),
            damaged: found.damaged,
            evicted_records: 0,
            dirty: false,
            written_bytes: 0,
            problem: None,
            ages: AgeClock::default(),
            was_durable: false,
            compacted_ms: None,
        };
        if let Some(problem) = &problem {
            keeper.troubled(problem.clone(), now_ms);
        }
        keeper.take_heads(found.heads);
        if let Err(e) = keeper.adopt_drafts(now_ms) {
            keeper.recover(&e, now_ms);
        }
        let report = OpenReport {
            boot: keeper.counter.boot(),
            segments: keeper.index.segments(),
            records: keeper.index.records(),
            set_aside: found.set_aside,
            damage: found.damage,
            problem,
        };
        keeper.write(now_ms);
        keeper.housekeeping(now_ms);
        Ok((keeper, report))
    }

    /// Takes the time: by the wall clock, and by one that does not go back.
    pub(crate) fn see_clocks(&mut self, wall_ms: i64, clock_ms: u64) {
        self.ages.see(wall_ms, clock_ms);
    }

    /// Takes gathered records over, under new numbers.
    pub(crate) fn seal(&mut self, gathered: Vec<(Class, Vec<Prepared>)>, now_ms: i64) {
        for (class, records) in gathered {
            self.seal_one(Kind::of(class), &records, now_ms);
        }
        self.write(now_ms);
    }

    /// Makes all that was taken over durable.
    pub(crate) fn sync(&mut self, now_ms: i64) -> Result<(), String> {
        self.write(now_ms);
        self.settle_drafts(now_ms);
        // Also when only acknowledgements came, which is no reason for a sync by itself.
        if let Some(store) = &mut self.store {
            match store.sync() {
                Ok(()) => {
                    self.dirty = false;
                    self.unsynced.clear();
                }
                Err(e) => {
                    self.recover(&e, now_ms);
                    if let Some(store) = &mut self.store
                        && store.sync().is_ok()
                    {
                        self.dirty = false;
                        self.unsynced.clear();
                    }
                }
            }
        }
        let written = self.waiting.is_empty() && self.lost.is_empty();
        let durable = self.store.is_some() && written && !self.dirty;
        if durable {
            self.tell_recovered(now_ms);
            self.was_durable = true;
            Ok(())
        } else {
            let problem = self.problem.as_ref().map(|p| p.what.clone());
            Err(problem.unwrap_or_else(|| "the store could not be synced".to_owned()))
        }
    }

    /// Whether something is not durable yet.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// The messages to send now; `clock_ms` does not go back.
    pub(crate) fn next_batch(&mut self, clock_ms: u64, max: usize, now_ms: i64) -> Vec<Outgoing> {
        let chosen = self.outbox.next_unsent(&self.index, clock_ms, max);
        let boot = self.counter.boot();
        let mut batch = Vec::with_capacity(chosen.len());
        for (number, meta) in chosen {
            let Some(store) = &mut self.store else {
                self.outbox.forget(number);
                continue;
            };
            let read = match store.peek(number) {
                Ok(Some(entry)) => {
                    read_message(boot, number, &entry, now_ms).map_err(|e| e.to_string())
                }
                Ok(None) => Err("the entry is missing".to_owned()),
                Err(e) => {
                    self.recover(&e, now_ms);
                    break;
                }
            };
            match read {
                Ok(payload) => batch.push(Outgoing {
                    segment: number,
                    class: meta.kind.class(),
                    payload,
                }),
                Err(problem) => {
                    tracing::warn!(segment = number, problem, "unreadable telemetry dropped");
                    let eviction = Eviction {
                        kind: meta.kind,
                        segments: vec![number],
                        records: u64::from(meta.records),
                        reason: "unreadable in the buffer",
                    };
                    self.evict(&eviction, now_ms);
                }
            }
        }
        batch
    }

    /// When there will be something to send though nothing was sealed, by the clock that does not go
    /// back.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        self.outbox.next_due_ms()
    }

    /// Deletes exactly what the server names, if it speaks of this boot; how many were there.
    pub(crate) fn ack(&mut self, ack: &Ack, now_ms: i64) -> usize {
        if let Some(server_ms) = ack.server_time_ms {
            self.ages.confirm(server_ms);
        }
        if ack.boot != self.counter.boot() {
            return 0;
        }
        let mut there = Vec::new();
        for number in &ack.segments {
            if self.index.remove(*number).is_some() {
                there.push(*number);
            }
            self.outbox.forget(*number);
        }
        self.unsynced.retain(|s| self.index.get(s.number).is_some());
        // A deletion that a crash undoes costs a message that the server knows already.
        if let Some(store) = &mut self.store
            && !there.is_empty()
            && let Err(e) = store.ack(&there)
        {
            self.recover(&e, now_ms);
        }
        there.len()
    }

    /// The connection is a new one.
    pub(crate) fn reset_inflight(&mut self) {
        self.outbox.reset_inflight(&self.index);
    }

    /// What is buffered.
    pub(crate) fn stats(&mut self) -> Stats {
        let disk = self.store.as_mut().and_then(|s| s.stats().ok());
        Stats {
            segments: (self.index.segments() + self.waiting.len()) as u64,
            records: self.index.records()
                + self
                    .waiting
                    .iter()
                    .map(|s| u64::from(s.meta.records))
                    .sum::<u64>(),
            bytes_on_disk: disk.map_or(0, |d| d.disk_bytes),
            evicted_records: self.evicted_records,
            oldest_ms: self.index.oldest_ms(),
            problem: self.problem.as_ref().map(|p| p.what.clone()),
        }
    }

    /// What needs doing now and then: a failed store is tried again, a bloated one compacted,
    /// the ballast put back.
    pub(crate) fn housekeeping(&mut self, now_ms: i64) {
        if self.store.is_none() {
            self.reopen(now_ms);
            self.write(now_ms);
        }
        self.compact_if_bloated(now_ms);
        if let Err(e) = self.folder.put_ballast() {
            tracing::debug!(problem = %e, "no room for the ballast yet");
        }
    }

    /// Ends in order: all durable, unused numbers given back.
    pub(crate) fn close(mut self, now_ms: i64) -> Result<(), String> {
        let synced = self.sync(now_ms);
        drop(self.store.take());
        if synced.is_ok()
            && let Err(e) = self.counter.close()
        {
            tracing::debug!(problem = %e, "unused segment numbers are skipped");
        }
        synced
    }

    fn seal_one(&mut self, kind: Kind, records: &[Prepared], now_ms: i64) {
        let sealed = self.sealed(kind, records, now_ms);
        self.waiting.extend(sealed);
    }

    /// A segment of them; none, and they are lost, if that cannot be made.
    fn sealed(&mut self, kind: Kind, records: &[Prepared], now_ms: i64) -> Option<Sealed> {
        let sealed = self
            .number()
            .map_err(|e| e.to_string())
            .and_then(|n| Sealed::new(n, kind, records).map_err(|e| e.to_string()));
        match sealed {
            Ok(sealed) => Some(sealed),
            Err(problem) => {
                tracing::warn!(problem, "telemetry cannot be sealed");
                // Open windows are told again.
                if kind != Kind::Draft {
                    let count = u64::try_from(records.len()).unwrap_or_default();
                    self.lose(kind.class(), None, count);
                }
                self.troubled(problem, now_ms);
                None
            }
        }
    }

    fn compact_if_bloated(&mut self, now_ms: i64) {
        self.written_bytes = 0;
        let Some(store) = &mut self.store else {
            return;
        };
        let Ok(stats) = store.stats() else {
            return;
        };
        let drained = COMPACT_BYTES_MIN.max(self.index.bytes().saturating_mul(8));
        if stats.disk_bytes > drained.min(self.limits.bloated_bytes()) {
            tracing::debug!(bytes_on_disk = stats.disk_bytes, "compacting telemetry");
            match store.compact() {
                Ok(()) => {
                    self.unsynced.clear();
                    self.tell_compacted(stats.disk_bytes, now_ms);
                    if let Err(e) = self.write_waiting(now_ms) {
                        self.recover(&e, now_ms);
                    }
                }
                // It stays as large as it is until there is room to write it anew.
                Err(e @ StoreError::Full { .. }) => tracing::debug!(problem = %e, "not compacted"),
                Err(e) => self.recover(&e, now_ms),
            }
        }
    }

    /// Moves what waits into the store, then evicts what is too much.
    fn write(&mut self, now_ms: i64) {
        if let Err(e) = self.write_waiting(now_ms) {
            self.recover(&e, now_ms);
        }
        self.bound_waiting();
        if self.written_bytes > self.limits.bloated_bytes() / 8 {
            self.compact_if_bloated(now_ms);
        }
    }

    fn write_waiting(&mut self, now_ms: i64) -> Result<(), StoreError> {
        if self.store.is_none() {
            return Ok(());
        }
        while let Some(eviction) = self.damaged.pop() {
            if let Err(e) = self.try_evict(&eviction, now_ms) {
                self.damaged.push(eviction);
                return Err(e);
            }
        }
        self.write_lost(now_ms)?;
        while !self.waiting.is_empty() {
            let Some(store) = &mut self.store else {
                return Ok(());
            };
            let count = batch_len(&self.waiting);
            let bytes: usize = self.waiting[..count].iter().map(|s| s.entry.len()).sum();
            store.append(&self.waiting[..count], &[])?;
            self.written_bytes += bytes as u64;
            self.dirty = true;
            for sealed in self.waiting.drain(..count) {
                self.index.insert(sealed.number, sealed.meta);
                self.unsynced.push(sealed);
            }
        }
        while let Some(eviction) = next_eviction(&self.index, &self.limits, self.ages.now_ms()) {
            self.try_evict(&eviction, now_ms)?;
        }
        Ok(())
    }

    /// Gaps for what never reached the store.
    fn write_lost(&mut self, now_ms: i64) -> Result<(), StoreError> {
        while let Some((class, gap)) = self.lost.pop_first() {
            let number = self.number();
            let sealed = number.and_then(|n| seal_gap(n, gap.clone(), now_ms));
            match sealed {
                Ok(sealed) => self.waiting.push(sealed),
                Err(e) => {
                    self.lost.insert(class, gap);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    fn evict(&mut self, eviction: &Eviction, now_ms: i64) {
        if let Err(e) = self.try_evict(eviction, now_ms) {
            self.recover(&e, now_ms);
        }
    }

    /// Deletes segments and adds the gap that names them, in one batch.
    fn try_evict(&mut self, eviction: &Eviction, now_ms: i64) -> Result<(), StoreError> {
        if self.store.is_none() {
            return Ok(());
        }
        let gap = Gap {
            class: eviction.kind.class(),
            segments: eviction.segments.clone(),
            records: eviction.records,
            reason: eviction.reason.to_owned(),
        };
        let sealed = seal_gap(self.number()?, gap, now_ms)?;
        let Some(store) = &mut self.store else {
            return Ok(());
        };
        store.append(std::slice::from_ref(&sealed), &eviction.segments)?;
        self.dirty = true;
        self.evicted_records += eviction.records;
        for number in &eviction.segments {
            self.index.remove(*number);
            self.outbox.forget(*number);
        }
        self.unsynced.retain(|s| self.index.get(s.number).is_some());
        self.index.insert(sealed.number, sealed.meta);
        Ok(())
    }

    fn lose(&mut self, class: Class, number: Option<u64>, records: u64) {
        self.evicted_records += records;
        let gap = self.lost.entry(class).or_insert_with(|| Gap {
            class,
            segments: Vec::new(),
            records: 0,
            reason: "the buffer could not be written".to_owned(),
        });
        gap.records += records;
        if gap.segments.len() < LOST_NUMBERS_MAX {
            gap.segments.extend(number);
        }
    }

    fn bound_waiting(&mut self) {
        let mut bytes: usize = self.waiting.iter().map(|s| s.entry.len()).sum();
        while bytes > WAITING_BYTES_MAX {
            let worst = self.waiting.iter().map(|s| s.meta.kind).max();
            let Some(at) = self.waiting.iter().position(|s| Some(s.meta.kind) == worst) else {
                return;
            };
            let sealed = self.waiting.remove(at);
            bytes -= sealed.entry.len();
            let records = u64::from(sealed.meta.records);
            self.lose(sealed.meta.kind.class(), Some(sealed.number), records);
        }
    }

    /// Closes a store that failed; what is not known to be durable waits to be written again.
    fn fail(&mut self, error: &StoreError, now_ms: i64) {
        tracing::warn!(problem = %error, "telemetry store failed");
        self.troubled(error.to_string(), now_ms);
        drop(self.store.take());
        let mut again = std::mem::take(&mut self.unsynced);
        again.append(&mut self.waiting);
        self.waiting = again;
    }

    fn recover(&mut self, error: &StoreError, now_ms: i64) {
        if let StoreError::Full { .. } = error {
            self.troubled(error.to_string(), now_ms);
            return;
        }
        self.fail(error, now_ms);
        if !self.reopen(now_ms) {
            return;
        }
        match self.write_waiting(now_ms) {
            Ok(()) => {}
            Err(e @ StoreError::Full { .. }) => self.troubled(e.to_string(), now_ms),
            Err(e) => self.fail(&e, now_ms),
        }
    }

    /// A new segment number; for the file that reserves them the ballast is given back.
    fn number(&mut self) -> Result<u64, StoreError> {
        self.counter.take().or_else(|_| {
            self.folder.drop_ballast();
            self.counter.take().map_err(|e| {
                tracing::warn!(problem = %e, "no segment numbers");
                StoreError::Full {
                    path: self.folder.dir().to_owned(),
                    what: "reserving segment numbers",
                    free_bytes: 0,
                    need_bytes: 4096,
                }
            })
        })
    }

    fn reopen(&mut self, now_ms: i64) -> bool {
        self.folder.drop_ballast();
        let opened = match open_store(&self.folder) {
            Ok(opened) => opened,
            Err(e) => {
                self.troubled(e.to_string(), now_ms);
                return false;
            }
        };
        let new_boot = opened.counter.boot() != self.counter.boot();
        self.store = Some(opened.store);
        let before = std::mem::take(&mut self.index);
        self.damaged = opened.found.damaged;
        self.take_heads(opened.found.heads);
        self.dirty = true;
        if new_boot {
            self.counter = opened.counter;
            self.outbox.reset_inflight(&self.index);
            self.renumber();
        } else if opened.found.set_aside.is_some() {
            let lost = self.missing(&before, &opened.found.deleted);
            self.damaged = tell::evictions(&lost);
        }
        if let Some(why) = opened.found.set_aside {
            self.tell_set_aside(why, now_ms);
        }
        if let Some(what) = opened.found.damage {
            self.tell_journal_damaged(what, now_ms);
        }
        true
    }

    /// What was buffered and neither is any more nor waits.
    fn missing(&self, before: &Index, deleted: &BTreeSet<u64>) -> BTreeMap<u64, Brief> {
        let waiting: BTreeSet<u64> = self.waiting.iter().map(|s| s.number).collect();
        let gone = before.in_order().filter(|(number, _)| {
            let is_there = self.index.get(*number).is_some() || waiting.contains(number);
            !is_there && !deleted.contains(number)
        });
        gone.map(|(number, meta)| (number, Brief::from(meta)))
            .collect()
    }

    /// Numbers belong to a boot: what waits gets new ones.
    fn renumber(&mut self) {
        for sealed in std::mem::take(&mut self.waiting) {
            match self.number() {
                Ok(number) => self.waiting.push(Sealed { number, ..sealed }),
                Err(_) => self.lose(
                    sealed.meta.kind.class(),
                    None,
                    u64::from(sealed.meta.records),
                ),
            }
        }
    }
}

fn seal_gap(number: u64, gap: Gap, now_ms: i64) -> Result<Sealed, StoreError> {
    let record = Record {
        time_ms: now_ms,
        body: Body::Gap(gap),
    };
    Sealed::of_record(number, Kind::Gap, &record).map_err(|e| StoreError::Medium {
        path: "memory".into(),
        what: "sealing a gap",
        problem: e.to_string(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
