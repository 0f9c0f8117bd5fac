//! Windows that are still open, so that a loss of power costs what they counted in the last second, and
//! not what they counted in all of their time.
//!
//! They lie in the store as segments that are never sent. Each new state takes the place of the one
//! before, and what has closed since goes in with it, all in one change: at any moment an inference is in
//! the store once. Those that a start finds have closed with the power, and are sent as all others.

use super::Keeper;
use crate::telemetry::segment::{
    Kind, Meta, Prepared, SEAL_BYTES, SEAL_RECORDS, Sealed, read_records,
};
use crate::telemetry::store::{SegmentStore as _, StoreError};

/// Most bytes of entries of one change: it fits into the journal, with room for others.
const CHANGE_BYTES_MAX: usize = 256 * 1024;
/// Most segments of one change.
const SEGMENTS_MAX: usize = 32;

/// The open windows.
#[derive(Debug, Default)]
pub(super) struct Drafts {
    /// Numbers of the segments that the store has.
    stored: Vec<u64>,
    /// Their newest state, if the store does not have it.
    news: Option<Vec<Prepared>>,
}

impl Drafts {
    /// What is not durable yet.
    pub(super) fn has_news(&self) -> bool {
        self.news.is_some()
    }
}

impl Keeper {
    /// Takes what a store has when it is opened: segments into the index, open windows apart.
    pub(super) fn take_heads(&mut self, heads: Vec<(u64, Meta)>) {
        self.drafts.stored.clear();
        for (number, meta) in heads {
            if meta.kind == Kind::Draft {
                self.drafts.stored.push(number);
            } else {
                self.index.insert(number, meta);
            }
        }
    }

    /// Takes windows that have closed, which are durable on return, and the state of those that are open
    /// now, which is so after the next sync.
    pub(crate) fn windows(&mut self, closed: &[Prepared], open: Vec<Prepared>, now_ms: i64) {
        self.drafts.news = Some(open);
        if !closed.is_empty() {
            self.settle_windows(closed, now_ms);
            // Before they are sent: or else a start could find them open still, and send them again.
            if let Err(problem) = self.sync(now_ms) {
                tracing::debug!(problem, "closed windows are not durable yet");
            }
        }
    }

    /// Puts the newest state of the open windows in the place of the one before.
    pub(super) fn settle_drafts(&mut self, now_ms: i64) {
        if self.drafts.has_news() {
            self.settle_windows(&[], now_ms);
        }
    }

    fn settle_windows(&mut self, closed: &[Prepared], now_ms: i64) {
        let closed = self.seal_all(Kind::Sketch, closed, now_ms);
        let news = self.drafts.news.take().unwrap_or_default();
        let drafts = self.seal_all(Kind::Draft, &news, now_ms);
        let bytes = |all: &[Sealed]| all.iter().map(|s| s.entry.len()).sum::<usize>();
        let is_small = bytes(&closed) + bytes(&drafts) <= CHANGE_BYTES_MAX
            && closed.len() + drafts.len() <= SEGMENTS_MAX;
        let can_settle = self.store.is_some() && self.waiting.is_empty();
        let (mut closed, drafts) = match (can_settle, is_small) {
            (true, true) => (closed, drafts),
            (true, false) if bytes(&closed) <= CHANGE_BYTES_MAX && closed.len() <= SEGMENTS_MAX => {
                (closed, Vec::new())
            }
            // They wait with the others; what was open is forgotten rather than sent twice.
            _ => {
                self.waiting.extend(closed);
                (Vec::new(), Vec::new())
            }
        };
        let stored = std::mem::take(&mut self.drafts.stored);
        if closed.is_empty() && drafts.is_empty() && stored.is_empty() {
            return;
        }
        let Some(store) = &mut self.store else {
            self.drafts.stored = stored;
            return;
        };
        let of_closed = closed.len();
        let numbers: Vec<u64> = drafts.iter().map(|sealed| sealed.number).collect();
        closed.extend(drafts);
        match store.append(&closed, &stored) {
            Ok(()) => {
                self.drafts.stored = numbers;
                self.dirty = true;
                self.written_bytes += bytes(&closed) as u64;
                closed.truncate(of_closed);
                for sealed in closed {
                    self.index.insert(sealed.number, sealed.meta);
                    self.unsynced.push(sealed);
                }
            }
            Err(e) => {
                self.drafts.stored = stored;
                closed.truncate(of_closed);
                self.waiting.extend(closed);
                self.recover(&e, now_ms);
            }
        }
    }

    /// Windows that were open when the power went have closed with it.
    pub(super) fn adopt_drafts(&mut self, now_ms: i64) -> Result<(), StoreError> {
        let stored = std::mem::take(&mut self.drafts.stored);
        let mut windows = Vec::new();
        for number in &stored {
            let entry = match &mut self.store {
                Some(store) => store.peek(*number)?,
                None => None,
            };
            match entry.map(|entry| read_records(&entry)) {
                Some(Ok(records)) => {
                    windows.extend(
                        records
                            .iter()
                            .filter_map(|record| Prepared::new(record).ok()),
                    );
                }
                Some(Err(problem)) => {
                    tracing::warn!(segment = number, %problem, "open windows cannot be read");
                }
                None => {}
            }
        }
        self.drafts.stored = stored;
        if !self.drafts.stored.is_empty() {
            let count = windows.len();
            tracing::info!(
                count,
                "windows that were open when the agent ended are kept"
            );
            self.windows(&windows, Vec::new(), now_ms);
            self.settle_drafts(now_ms);
        }
        Ok(())
    }

    /// Seals windows, as many to a segment as go into one.
    fn seal_all(&mut self, kind: Kind, windows: &[Prepared], now_ms: i64) -> Vec<Sealed> {
        let mut sealed = Vec::new();
        let mut rest = windows;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take(SEAL_RECORDS).take_while(|window| {
                bytes += window.len();
                bytes <= SEAL_BYTES
            });
            let (some, others) = rest.split_at(fits.count().max(1));
            sealed.extend(self.sealed(kind, some, now_ms));
            rest = others;
        }
        sealed
    }
}

#[cfg(test)]
#[path = "drafts_tests.rs"]
mod tests;
