//! A write-ahead journal in front of the store: small changes go to one file of fixed size, a page or two
//! for each sync, because sled writes each of its messages to the disk by itself, and the file system
//! commits metadata for each sync; flash wears out.
//!
//! ```text
//! file:  frame frame … pad to 4 KiB │ frame … pad │ …      (a sync each), JOURNAL_BYTES in all
//! frame: "DJ" · format u8 · boot 16 · life u64 · length u32 · CRC-32 u32 (of all but itself), then
//!        puts u16 · deletes u16 · puts × (number u64 · length u32 · entry) · deletes × (number u64)
//! ```
//! Big-endian. The file is written with zeros once and in place ever after, so that syncing it changes no
//! metadata; a sync never touches a page that is durable already. A frame is applied whole or, if it was
//! cut off, not at all. Each life between two resets has a random number; frames of another end the reading.

use super::segment::{Meta, Sealed};
use dunlin_protocol::id::BootId;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Length of the file, in bytes.
pub const JOURNAL_BYTES: usize = 512 * 1024;
/// What a disk writes at least.
const PAGE_BYTES: usize = 4096;
const MAGIC: [u8; 3] = *b"DJ\x01";
const HEAD_BYTES: usize = 3 + 16 + 8 + 4 + 4;
const NAME: &str = "journal";

/// What one frame did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Segments that were added.
    pub puts: Vec<Sealed>,
    /// Numbers of segments that were removed.
    pub deletes: Vec<u64>,
}

/// The file, and what is to be written to it.
#[derive(Debug)]
pub struct Journal {
    file: File,
    boot: BootId,
    life: u64,
    /// Where the next sync writes; a multiple of a page.
    at: usize,
    pending: Vec<u8>,
}

impl Journal {
    /// Opens the folder's journal, making it if there is none of that length, and reads what it holds of
    /// this boot. None if there is none and it cannot be made.
    ///
    /// # Errors
    /// The medium refuses what is there.
    pub fn open(dir: &Path, boot: BootId) -> io::Result<Option<(Self, Vec<Change>)>> {
        let path = dir.join(NAME);
        let length = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(e),
        };
        if length != JOURNAL_BYTES as u64
            && let Err(problem) = make(dir)
        {
            tracing::warn!(%problem, "no room for a journal: telemetry goes straight into its store, which wears the disk");
            return Ok(None);
        }
        let file = File::options().read(true).write(true).open(&path)?;
        let mut bytes = vec![0; JOURNAL_BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        let found = read(&bytes, boot);
        let journal = Self {
            file,
            boot,
            life: found.life.map_or_else(new_life, Ok)?,
            at: found.end,
            pending: Vec::new(),
        };
        Ok(Some((journal, found.changes)))
    }

    /// Whether a change of so many puts, deletes and bytes of entries still has room.
    #[must_use]
    pub fn has_room(&self, puts: &[Sealed], deletes: &[u64]) -> bool {
        self.at + self.pending.len() + frame_bytes(puts, deletes) <= JOURNAL_BYTES
    }

    /// Takes a change; it is durable after the next [`Journal::sync`]. There is room for it.
    pub fn record(&mut self, puts: &[Sealed], deletes: &[u64]) {
        let frame = frame(self.boot, self.life, puts, deletes);
        self.pending.extend_from_slice(&frame);
    }

    /// Makes all that was recorded durable.
    ///
    /// # Errors
    /// The medium refuses; what was recorded since the last sync may be there or not.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut pages = std::mem::take(&mut self.pending);
        pages.resize(pages.len().next_multiple_of(PAGE_BYTES), 0);
        let at = self.at as u64;
        self.file.write_all_at(&pages, at)?;
        self.file.sync_data()?;
        self.at += pages.len();
        Ok(())
    }

    /// Forgets everything: it is durable elsewhere.
    ///
    /// # Errors
    /// The medium refuses; the content may be forgotten or not.
    pub fn reset(&mut self) -> io::Result<()> {
        self.pending.clear();
        self.life = new_life()?;
        self.at = 0;
        // So that a restart does not find the frames of before.
        self.record(&[], &[]);
        self.sync()
    }
}

fn make(dir: &Path) -> io::Result<()> {
    let file = File::create(dir.join(NAME))?;
    file.write_all_at(&vec![0; JOURNAL_BYTES], 0)?;
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

/// Random, so that no frame of before can be taken for one of it.
fn new_life() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(u64::from_be_bytes(bytes))
}

fn frame_bytes(puts: &[Sealed], deletes: &[u64]) -> usize {
    let entries: usize = puts.iter().map(|sealed| 12 + sealed.entry.len()).sum();
    HEAD_BYTES + 4 + entries + 8 * deletes.len()
}

fn frame(boot: BootId, life: u64, puts: &[Sealed], deletes: &[u64]) -> Vec<u8> {
    let mut body = Vec::with_capacity(frame_bytes(puts, deletes));
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
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(HEAD_BYTES + body.len());
    frame.extend(MAGIC);
    frame.extend(boot.as_bytes());
    frame.extend(life.to_be_bytes());
    frame.extend(length.to_be_bytes());
    let sum = checksum(&frame, &body);
    frame.extend(sum.to_be_bytes());
    frame.append(&mut body);
    frame
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(body);
    crc.finalize()
}

#[derive(Debug, Default, PartialEq)]
struct Found {
    /// Of the frames; none if there are none.
    life: Option<u64>,
    /// Where the last sync that is there ended.
    end: usize,
    changes: Vec<Change>,
}

/// What a file holds of a boot, up to the first page that begins with no frame.
fn read(bytes: &[u8], boot: BootId) -> Found {
    let mut found = Found::default();
    let mut at = 0;
    loop {
        let whole = bytes.get(at..).and_then(|rest| frame_at(rest, boot));
        let whole = whole.filter(|frame| found.life.is_none_or(|life| life == frame.life));
        match whole.and_then(|frame| Some((frame, change(frame.body)?))) {
            Some((frame, change)) => {
                found.life = Some(frame.life);
                found.changes.push(change);
                at += HEAD_BYTES + frame.body.len();
            }
            // The rest of a sync's last page is padding.
            None if !at.is_multiple_of(PAGE_BYTES) => at = at.next_multiple_of(PAGE_BYTES),
            None => break,
        }
    }
    found.end = at.min(bytes.len());
    found
}

#[derive(Debug, Clone, Copy)]
struct Frame<'a> {
    life: u64,
    body: &'a [u8],
}

/// The frame at the beginning, if it is whole.
fn frame_at(bytes: &[u8], boot: BootId) -> Option<Frame<'_>> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let (summed, sum) = head.split_at(HEAD_BYTES - 4);
    let mut reader = Reader(summed);
    if reader.take(3)? != MAGIC || reader.take(16)? != boot.as_bytes() {
        return None;
    }
    let life = reader.u64()?;
    let length = usize::try_from(reader.u32()?).ok()?;
    let body = rest.get(..length)?;
    let is_whole = checksum(summed, body) == Reader(sum).u32()?;
    is_whole.then_some(Frame { life, body })
}

fn change(body: &[u8]) -> Option<Change> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
