//! The journal's frames as bytes.

use super::Change;
use crate::telemetry::segment::{Kind, Meta, Sealed};
use dunlin_protocol::id::BootId;

const MAGIC: [u8; 3] = *b"DJ\x02";
/// What the release before wrote: without sync, place and kind, and with no account.
const MAGIC_BEFORE: [u8; 3] = *b"DJ\x01";
const BOOT_BYTES: usize = 16;
const SUM_BYTES: usize = 4;
pub(super) const HEAD_BYTES: usize = 3 + BOOT_BYTES + 8 + 8 + 2 + 1 + 4 + SUM_BYTES;
const HEAD_BEFORE_BYTES: usize = 3 + BOOT_BYTES + 8 + 4 + SUM_BYTES;
const CHANGE: u8 = 0;
const END: u8 = 1;
const ACCOUNT_BYTES: usize = 8 + 4 + 1 + 2;
const BRIEF_BYTES: usize = 8 + 1 + 4;
/// An end that names no segment.
pub(super) const END_BYTES: usize = HEAD_BYTES + ACCOUNT_BYTES;

/// Where a frame belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) boot: BootId,
    pub(super) life: u64,
    /// Counts up by one, also over lives.
    pub(super) sync: u64,
    /// Within the sync, from 0.
    pub(super) nth: u16,
}

#[derive(Debug, PartialEq)]
pub(super) enum Body {
    Change(Change),
    End(Account),
}

#[derive(Debug, PartialEq)]
pub(super) struct Frame {
    pub(super) place: Place,
    pub(super) body: Body,
    pub(super) bytes: usize,
}

/// A segment without its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brief {
    /// What it holds.
    pub kind: Kind,
    /// Number of records.
    pub records: u32,
}

/// How things stand after a sync.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// All numbers that were added in this boot are below.
    pub(super) used: u64,
    /// Segments in the store behind the journal.
    pub(super) stored: u32,
    /// Whether `live` is all and not only the newest.
    pub(super) is_whole: bool,
    /// What the journal added and did not remove, the newest first.
    pub(super) live: Vec<(u64, Brief)>,
}

pub(super) fn change_bytes(puts: &[Sealed], deletes: &[u64]) -> usize {
    let entries: usize = puts.iter().map(|sealed| 12 + sealed.entry.len()).sum();
    HEAD_BYTES + 4 + entries + 8 * deletes.len()
}

pub(super) fn change(place: Place, puts: &[Sealed], deletes: &[u64]) -> Vec<u8> {
    let mut body = Vec::with_capacity(change_bytes(puts, deletes));
    let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
    body.extend(count(puts.len()));
    body.extend(count(deletes.len()));
    for sealed in puts {
        body.extend(sealed.number.to_be_bytes());
        let length = u32::try_from(sealed.entry.len()).unwrap_or(u32::MAX);
        body.extend(length.to_be_bytes());
        body.extend(&sealed.entry);
    }
    for number in deletes {
        body.extend(number.to_be_bytes());
    }
    frame(place, CHANGE, &body)
}

/// How many segments an end of at most so many bytes can name.
pub(super) fn briefs_in(bytes: usize) -> usize {
    bytes.saturating_sub(END_BYTES) / BRIEF_BYTES
}

pub(super) fn end(place: Place, account: &Account) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(account.used.to_be_bytes());
    body.extend(account.stored.to_be_bytes());
    body.push(u8::from(account.is_whole));
    let count = u16::try_from(account.live.len()).unwrap_or(u16::MAX);
    body.extend(count.to_be_bytes());
    for (number, brief) in &account.live {
        body.extend(number.to_be_bytes());
        body.push(brief.kind as u8);
        body.extend(brief.records.to_be_bytes());
    }
    frame(place, END, &body)
}

fn frame(place: Place, kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(HEAD_BYTES + body.len());
    frame.extend(MAGIC);
    frame.extend(place.boot.as_bytes());
    frame.extend(place.life.to_be_bytes());
    frame.extend(place.sync.to_be_bytes());
    frame.extend(place.nth.to_be_bytes());
    frame.push(kind);
    frame.extend(length.to_be_bytes());
    let sum = checksum(&frame, body);
    frame.extend(sum.to_be_bytes());
    frame.extend(body);
    frame
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(body);
    crc.finalize()
}

/// All whole frames with where they begin, in order. They are looked for everywhere: what is behind
/// damage need not begin at a page.
pub(super) fn scan(bytes: &[u8]) -> Vec<(usize, Frame)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = bytes.get(at..) {
        if let Some(frame) = read(rest) {
            let length = frame.bytes;
            found.push((at, frame));
            at += length;
            continue;
        }
        let next = rest.get(1..).and_then(find_magic);
        let Some(next) = next else { break };
        at += 1 + next;
    }
    found
}

fn find_magic(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MAGIC.len()).position(|some| some == MAGIC)
}

/// Whether a frame of this life began here, whole or not.
pub(super) fn begins(bytes: &[u8], boot: BootId, life: u64) -> bool {
    let mut reader = Reader(bytes);
    reader.take(3) == Some(&MAGIC)
        && reader.take(BOOT_BYTES) == Some(boot.as_bytes())
        && reader.u64() == Some(life)
}

/// The frame at the beginning, if it is whole.
pub(super) fn read(bytes: &[u8]) -> Option<Frame> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let (summed, sum) = head.split_at(HEAD_BYTES - SUM_BYTES);
    let mut reader = Reader(summed);
    if reader.take(3)? != MAGIC {
        return None;
    }
    let place = Place {
        boot: BootId(reader.array()?),
        life: reader.u64()?,
        sync: reader.u64()?,
        nth: reader.u16()?,
    };
    let kind = reader.u8()?;
    let length = usize::try_from(reader.u32()?).ok()?;
    let body = rest.get(..length)?;
    if checksum(summed, body) != Reader(sum).u32()? {
        return None;
    }
    let body = match kind {
        CHANGE => Body::Change(read_change(body)?),
        END => Body::End(read_account(body)?),
        _ => return None,
    };
    Some(Frame {
        place,
        body,
        bytes: HEAD_BYTES + length,
    })
}

/// What the release before left of a boot: up to the first page that begins with no frame.
pub(super) fn read_before(bytes: &[u8], boot: BootId, page_bytes: usize) -> Vec<Change> {
    let (mut changes, mut at, mut of) = (Vec::new(), 0, None);
    loop {
        let frame = bytes.get(at..).and_then(|rest| frame_before(rest, boot));
        match frame.filter(|(life, ..)| of.is_none_or(|of| of == *life)) {
            Some((life, length, change)) => {
                of = Some(life);
                at += length;
                changes.push(change);
            }
            None if !at.is_multiple_of(page_bytes) => at = at.next_multiple_of(page_bytes),
            None => return changes,
        }
    }
}

fn frame_before(bytes: &[u8], boot: BootId) -> Option<(u64, usize, Change)> {
    let (head, rest) = bytes.split_at_checked(HEAD_BEFORE_BYTES)?;
    let (summed, sum) = head.split_at(HEAD_BEFORE_BYTES - SUM_BYTES);
    let mut reader = Reader(summed);
    if reader.take(3)? != MAGIC_BEFORE || reader.take(BOOT_BYTES)? != boot.as_bytes() {
        return None;
    }
    let life = reader.u64()?;
    let length = usize::try_from(reader.u32()?).ok()?;
    let body = rest.get(..length)?;
    let is_whole = checksum(summed, body) == Reader(sum).u32()?;
    let change = is_whole.then(|| read_change(body)).flatten()?;
    Some((life, HEAD_BEFORE_BYTES + length, change))
}

fn read_change(body: &[u8]) -> Option<Change> {
    let mut reader = Reader(body);
    let (puts, deletes) = (reader.u16()?, reader.u16()?);
    let mut change = Change::default();
    for _ in 0..puts {
        let number = reader.u64()?;
        let length = usize::try_from(reader.u32()?).ok()?;
        let entry = reader.take(length)?.to_vec();
        let meta = Meta::read(&entry).ok()?;
        change.puts.push(Sealed {
            number,
            meta,
            entry,
        });
    }
    for _ in 0..deletes {
        change.deletes.push(reader.u64()?);
    }
    Some(change)
}

fn read_account(body: &[u8]) -> Option<Account> {
    let mut reader = Reader(body);
    let mut account = Account {
        used: reader.u64()?,
        stored: reader.u32()?,
        is_whole: reader.u8()? == 1,
        live: Vec::new(),
    };
    for _ in 0..reader.u16()? {
        let number = reader.u64()?;
        let kind = Kind::of_byte(reader.u8()?)?;
        let records = reader.u32()?;
        account.live.push((number, Brief { kind, records }));
    }
    Some(account)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}
