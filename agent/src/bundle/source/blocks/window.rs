//! Which blocks to ask for, and when: pure, times in milliseconds are arguments.
//!
//! A few requests are under way at once. Answers are taken by their offset, in whatever order and
//! however often they come; what is lost is asked for again after a time that follows the answers'
//! own (RFC 6298), doubled at every try. The number under way grows while answers come and is halved
//! when one is lost (RFC 5681's idea), so that a slow network is not filled with doubles.

use dunlin_protocol::block::{Answer, BLOCK_MAX_BYTES};
use std::collections::BTreeMap;

/// Most requests under way.
pub(super) const REQUESTS_MAX: usize = 8;
/// Before the first answer has come.
const WAIT_FIRST_MS: i64 = 3_000;
const WAIT_MIN_MS: i64 = 500;
const WAIT_MAX_MS: i64 = 15_000;
/// Shortest and longest pause that a busy server is given.
const BUSY_MS: (i64, i64) = (50, 10_000);

/// Asks for `length` bytes at `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// Why there is no going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Absent,
    TooShort { total_bytes: u64 },
    Changed,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    length: u32,
    sent_ms: i64,
    due_ms: i64,
    tries: u32,
}

/// One file's transfer.
#[derive(Debug)]
pub(super) struct Window {
    begin: u64,
    /// Next byte to hand over.
    next: u64,
    /// Next byte never asked for.
    ask: u64,
    total: Option<u64>,
    block: u32,
    requests: usize,
    requests_max: usize,
    /// Good answers since the number of requests last changed.
    good: usize,
    pending: BTreeMap<u64, Pending>,
    here: BTreeMap<u64, Vec<u8>>,
    round_trip: Option<(i64, i64)>,
    /// A busy server is asked nothing before this time.
    quiet_until_ms: i64,
}

impl Window {
    /// A transfer from byte `offset` on, by at most `bytes_s` bytes a second (0: no limit), of
    /// which about a second's worth is under way at once.
    pub(super) fn new(offset: u64, bytes_s: u64) -> Self {
        let most = BLOCK_MAX_BYTES as u64;
        let block = if bytes_s == 0 {
            most
        } else {
            (bytes_s / 2).clamp(4096, most)
        };
        let requests_max = match bytes_s {
            0 => REQUESTS_MAX,
            n => usize::try_from(n / block)
                .unwrap_or(REQUESTS_MAX)
                .clamp(1, REQUESTS_MAX),
        };
        Self {
            begin: offset,
            next: offset,
            ask: offset,
            total: None,
            block: u32::try_from(block).unwrap_or(4096),
            requests: requests_max.min(2),
            requests_max,
            good: 0,
            pending: BTreeMap::new(),
            here: BTreeMap::new(),
            round_trip: None,
            quiet_until_ms: i64::MIN,
        }
    }

    /// Length of the whole file, once an answer said so.
    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    /// A block's number, by where it begins.
    pub(super) fn number(&self, offset: u64) -> u64 {
        (offset - self.begin) / u64::from(self.block)
    }

    /// Where a block begins.
    pub(super) fn offset(&self, number: u64) -> u64 {
        let after = number.saturating_mul(u64::from(self.block));
        self.begin.saturating_add(after)
    }

    /// Whether every byte was handed over.
    pub(super) fn is_done(&self) -> bool {
        self.total.is_some_and(|total| self.next >= total)
    }

    /// What to ask for now: what is overdue, then what fits under way.
    pub(super) fn asks(&mut self, now_ms: i64) -> Vec<Ask> {
        let mut asks = Vec::new();
        if now_ms < self.quiet_until_ms {
            return asks;
        }
        let wait_ms = self.wait_ms();
        let mut lost = false;
        for (offset, pending) in &mut self.pending {
            if now_ms < pending.due_ms {
                continue;
            }
            // A pause the server asked for is no loss.
            lost |= pending.tries > 0;
            pending.tries = pending.tries.saturating_add(1);
            pending.sent_ms = now_ms;
            let doubled = wait_ms.saturating_mul(1 << (pending.tries - 1).min(8));
            pending.due_ms = now_ms.saturating_add(doubled.min(WAIT_MAX_MS));
            asks.push(Ask {
                offset: *offset,
                length: pending.length,
            });
        }
        if lost {
            self.requests = (self.requests / 2).max(1);
            self.good = 0;
        }
        while self.pending.len() + self.here.len() < self.room() && self.more_to_ask() {
            let left = self.total.map_or(u64::MAX, |total| total - self.ask);
            let length = u32::try_from(left).map_or(self.block, |left| left.min(self.block));
            let pending = Pending {
                length,
                sent_ms: now_ms,
                due_ms: now_ms.saturating_add(wait_ms),
                tries: 1,
            };
            asks.push(Ask {
                offset: self.ask,
                length,
            });
            self.pending.insert(self.ask, pending);
            self.ask += u64::from(length);
        }
        asks
    }

    /// Nobody knows how long the file is before the first answer: one request finds it out.
    fn room(&self) -> usize {
        self.total.map_or(1, |_| self.requests)
    }

    fn more_to_ask(&self) -> bool {
        self.total.is_none_or(|total| self.ask < total)
    }

    /// When to look again, if no answer comes before.
    pub(super) fn next_look_ms(&self) -> i64 {
        let due = self.pending.values().map(|p| p.due_ms).min();
        due.unwrap_or(self.quiet_until_ms).max(self.quiet_until_ms)
    }

    /// Takes an answer that came at `at_ms` for the block at `offset`; whether it was of use.
    pub(super) fn answer(&mut self, offset: u64, answer: Answer, at_ms: i64) -> Result<bool, End> {
        let Some(pending) = self.pending.get(&offset).copied() else {
            return Ok(false);
        };
        match answer {
            Answer::Absent => Err(End::Absent),
            // It is asked again when it is due.
            Answer::Failed => Ok(false),
            Answer::Busy { retry_after_ms } => {
                let pause = i64::try_from(retry_after_ms).unwrap_or(i64::MAX);
                let until = at_ms.saturating_add(pause.clamp(BUSY_MS.0, BUSY_MS.1));
                self.quiet_until_ms = self.quiet_until_ms.max(until);
                if let Some(pending) = self.pending.get_mut(&offset) {
                    (pending.due_ms, pending.tries) = (until, 0);
                }
                Ok(false)
            }
            Answer::Data {
                offset: said,
                total,
                bytes,
            } => {
                if said != offset {
                    return Ok(false);
                }
                self.data(offset, pending, total, bytes, at_ms)
            }
        }
    }

    fn data(
        &mut self,
        offset: u64,
        pending: Pending,
        total: u64,
        bytes: Vec<u8>,
        at_ms: i64,
    ) -> Result<bool, End> {
        match self.total {
            None if total < self.begin => return Err(End::TooShort { total_bytes: total }),
            Some(known) if known != total => return Err(End::Changed),
            _ => {}
        }
        // Neither more nor less than was asked for: a drip is no answer.
        let expected = u64::from(pending.length).min(total.saturating_sub(offset));
        if bytes.len() as u64 != expected {
            return Ok(false);
        }
        self.total = Some(total);
        self.ask = self.ask.min(total);
        self.pending.remove(&offset);
        if pending.tries == 1 {
            self.measured(at_ms.saturating_sub(pending.sent_ms).max(0));
        }
        self.good += 1;
        if self.good >= self.requests && self.requests < self.requests_max {
            self.requests += 1;
            self.good = 0;
        }
        if !bytes.is_empty() {
            self.here.insert(offset, bytes);
        }
        Ok(true)
    }

    /// The next bytes in order, if they are here.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        let bytes = self.here.remove(&self.next)?;
        self.next += bytes.len() as u64;
        Some(bytes)
    }

    /// A new connection: whatever was under way on the old one is lost.
    pub(super) fn reconnected(&mut self, now_ms: i64) {
        for pending in self.pending.values_mut() {
            (pending.due_ms, pending.tries) = (now_ms, 0);
        }
    }

    fn measured(&mut self, took_ms: i64) {
        self.round_trip = Some(match self.round_trip {
            None => (took_ms, took_ms / 2),
            Some((mean, spread)) => {
                let off = (mean - took_ms).abs();
                ((7 * mean + took_ms) / 8, (3 * spread + off) / 4)
            }
        });
    }

    fn wait_ms(&self) -> i64 {
        match self.round_trip {
            None => WAIT_FIRST_MS,
            Some((mean, spread)) => (mean + 4 * spread).clamp(WAIT_MIN_MS, WAIT_MAX_MS),
        }
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
