//! What a journal's bytes say after a cut-off sync or damage. Pure.
//!
//! Syncs are counted, and each begins only when the one before is durable. So the last one may be cut
//! off without anything being wrong, while one that is not whole and has another behind it was damaged.
//! Each ends with an account of what the journal held by then: what was lost before it is known from it.

use super::frame::{Account, Body, Brief, Frame, begins, read, read_before, scan};
use super::{Change, PAGE_BYTES, USABLE_BYTES};
use dunlin_protocol::id::BootId;
use std::collections::BTreeMap;

/// What is known of a life.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    /// None if no frame of the boot can be read.
    pub(super) life: Option<u64>,
    /// Number of the next sync.
    pub(super) sync: u64,
    /// Where it goes; a multiple of a page.
    pub(super) at: usize,
    /// All changes, in order.
    pub(super) changes: Vec<Change>,
    /// How many of the last ones are of a sync that was cut off.
    pub(super) cut_off: usize,
    /// Where the last frame of a sync that was cut off ends.
    pub(super) cut_off_end: usize,
    /// What must be there by the accounts.
    pub(super) expected: BTreeMap<u64, Brief>,
    /// The last account's.
    pub(super) used: u64,
    pub(super) stored: u32,
    /// Frames that were readable.
    pub(super) frames: usize,
    /// Syncs that were durable and are not whole.
    pub(super) damaged: u64,
    /// Whether more may be lost than the accounts tell.
    pub(super) is_unsure: bool,
}

/// The boot of the newest frame.
pub(super) fn boot_of(bytes: &[u8]) -> Option<BootId> {
    let newest = frames(bytes).into_iter().max_by_key(|(_, f)| f.place.sync);
    newest.map(|(_, frame)| frame.place.boot)
}

fn frames(bytes: &[u8]) -> Vec<(usize, Frame)> {
    let (syncs, twin) = bytes.split_at_checked(USABLE_BYTES).unwrap_or((bytes, &[]));
    let mut all = scan(syncs);
    all.extend(read(twin).map(|frame| (USABLE_BYTES, frame)));
    all
}

/// What a file of `length` bytes holds of a boot; `bytes` are as long as a journal is.
pub(super) fn find(bytes: &[u8], length: usize, boot: BootId) -> Found {
    let mut all = frames(bytes);
    all.retain(|(_, frame)| frame.place.boot == boot);
    let newest = all.iter().max_by_key(|(_, frame)| frame.place.sync);
    let Some(life) = newest.map(|(_, frame)| frame.place.life) else {
        return Found {
            // A full one: it begins anew before anything is added.
            at: USABLE_BYTES,
            changes: read_before(bytes, boot, PAGE_BYTES),
            ..Found::default()
        };
    };
    // The first sync of a life is only an end, at both ends of the file.
    all.retain(|(_, frame)| frame.place.life == life);
    let is_start = |at: usize| at == 0 || at == USABLE_BYTES;
    let start = all.iter().find(|(at, f)| is_start(*at) && is_end(f));
    let start = start.map(|(_, frame)| frame.place.sync);
    let mut found = Found {
        life: Some(life),
        frames: all.len(),
        ..Found::default()
    };
    all.sort_by_key(|(at, frame)| (frame.place.sync, *at));
    let mut next = start;
    let syncs = all.chunk_by(|(_, a), (_, b)| a.place.sync == b.place.sync);
    let last = all.last().map(|(_, frame)| frame.place.sync);
    for sync in syncs {
        let Some((at, first)) = sync.first() else {
            continue;
        };
        let number = first.place.sync;
        let is_start = start == Some(number);
        let whole = is_start || is_whole(sync);
        found.damaged += number.saturating_sub(next.unwrap_or(number));
        found.is_unsure |= start.is_none();
        next = Some(number + 1);
        if !whole && last == Some(number) {
            found.cut_off(*at / PAGE_BYTES * PAGE_BYTES, number, sync);
            continue;
        }
        found.damaged += u64::from(!whole);
        for (at, frame) in sync {
            found.take(frame);
            if *at < USABLE_BYTES {
                found.at = found
                    .at
                    .max((at + frame.bytes).next_multiple_of(PAGE_BYTES));
            }
        }
        found.sync = number + 1;
    }
    // Behind the end nothing, or what was there before: if the file ends there, there may have been more.
    let is_cut = found.at < USABLE_BYTES
        && (found.at + PAGE_BYTES > length
            || (length < USABLE_BYTES && begins(&bytes[found.at..], boot, life)));
    found.is_unsure |= is_cut;
    found
}

fn is_end(frame: &Frame) -> bool {
    matches!(frame.body, Body::End(_))
}

fn is_whole(sync: &[(usize, Frame)]) -> bool {
    let in_order = (0..).zip(sync).all(|(nth, (_, f))| f.place.nth == nth);
    in_order && sync.last().is_some_and(|(_, frame)| is_end(frame))
}

impl Found {
    fn take(&mut self, frame: &Frame) {
        match &frame.body {
            Body::Change(change) => {
                for sealed in &change.puts {
                    self.expected
                        .insert(sealed.number, Brief::from(&sealed.meta));
                    self.used = self.used.max(sealed.number.saturating_add(1));
                }
                for number in &change.deletes {
                    self.expected.remove(number);
                }
                self.changes.push(change.clone());
            }
            Body::End(account) => self.settle(account),
        }
    }

    fn settle(&mut self, account: &Account) {
        self.used = self.used.max(account.used);
        self.stored = account.stored;
        // The newest are named: what is older stands as it was.
        let lowest = account.live.iter().map(|(number, _)| *number).min();
        let from = if account.is_whole { Some(0) } else { lowest };
        if let Some(from) = from {
            self.expected.split_off(&from);
        }
        self.expected.extend(account.live.iter().copied());
    }

    /// Of a last sync that is not whole, what comes first is taken: it was not promised, but is there.
    fn cut_off(&mut self, at: usize, number: u64, sync: &[(usize, Frame)]) {
        let before = self.changes.len();
        for (nth, (_, frame)) in (0..).zip(sync) {
            if frame.place.nth != nth || is_end(frame) {
                break;
            }
            self.take(frame);
        }
        self.cut_off = self.changes.len() - before;
        let ends = sync.iter().map(|(at, frame)| at + frame.bytes);
        self.cut_off_end = ends.max().unwrap_or(at);
        (self.at, self.sync) = (at, number);
    }
}
