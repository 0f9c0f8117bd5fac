//! A write-ahead journal in front of the store: small changes go to one file of fixed size, a page or two
//! for each sync, because sled writes each of its messages to the disk by itself, and the file system
//! commits metadata for each sync; flash wears out.
//!
//! ```text
//! file:   sync │ sync │ … │ twin of the first sync            (each in 4 KiB pages), JOURNAL_BYTES in all
//! sync:   change … · end · padding
//! frame:  "DJ" · format u8 · boot 16 · life u64 · sync u64 · nth u16 · kind u8 · length u32 ·
//!         CRC-32 u32 (of all but itself), then
//! change: puts u16 · deletes u16 · puts × (number u64 · length u32 · entry) · deletes × (number u64)
//! end:    used u64 · stored u32 · is_whole u8 · live u16 · live × (number u64 · kind u8 · records u32)
//! ```
//! Big-endian. The file is written with zeros once and in place ever after, so that syncing it changes no
//! metadata; a sync never touches a page that is durable already. A frame is applied whole or not at all.
//!
//! Each life between two resets has a random number; its first sync is an end alone, written at both ends
//! of the file, so that damage to the first page does not bring an earlier life back. Syncs are counted,
//! and each ends with an account of what the journal holds, in what would be padding: so frames behind
//! damage are found, and what the damage took is known (`reading.rs`).

mod frame;
mod reading;

pub use frame::Brief;

use super::segment::{Meta, Sealed};
use dunlin_protocol::id::BootId;
use frame::{Account, END_BYTES, Place, briefs_in, change_bytes};
use reading::Found;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Length of the file, in bytes.
pub const JOURNAL_BYTES: usize = 512 * 1024;
/// What a disk writes at least.
const PAGE_BYTES: usize = 4096;
/// What syncs have; then comes the twin.
const USABLE_BYTES: usize = JOURNAL_BYTES - PAGE_BYTES;
const NAME: &str = "journal";

/// What one frame did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Segments that were added.
    pub puts: Vec<Sealed>,
    /// Numbers of segments that were removed.
    pub deletes: Vec<u64>,
}

/// What was read of a journal.
#[derive(Debug, Default)]
pub struct Contents {
    /// What its frames did, in order.
    pub changes: Vec<Change>,
    /// What must be there by its accounts, if the store does not have it.
    pub expected: BTreeMap<u64, Brief>,
    /// Segments that were in the store behind it at the last sync, if that is known.
    pub stored: Option<u32>,
    /// What is wrong with it.
    pub damage: Option<Damage>,
}

/// What is wrong with a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// In words.
    pub what: String,
    /// Whether more may be lost than is known.
    pub is_unsure: bool,
}

/// The file, and what is to be written to it.
#[derive(Debug)]
pub struct Journal {
    file: File,
    boot: BootId,
    life: u64,
    /// Number of the next sync.
    sync: u64,
    /// Where it goes; a multiple of a page.
    at: usize,
    pending: Vec<u8>,
    /// Frames in `pending`.
    pending_frames: u16,
    live: BTreeMap<u64, Brief>,
    lost: BTreeMap<u64, Brief>,
    used: u64,
    stored: u32,
}

impl Journal {
    /// Makes a new, empty one in the folder, durable on return, in place of what is there. None if there
    /// is no room for it.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn create(dir: &Path, boot: BootId) -> io::Result<Option<Self>> {
        let life = new_life()?;
        let start = frame::end(
            Place {
                boot,
                life,
                sync: 0,
                nth: 0,
            },
            &Account {
                is_whole: true,
                ..Account::default()
            },
        );
        let mut bytes = vec![0; JOURNAL_BYTES];
        bytes[..start.len()].copy_from_slice(&start);
        bytes[USABLE_BYTES..USABLE_BYTES + start.len()].copy_from_slice(&start);
        let file = match replace(dir, &bytes) {
            Ok(file) => file,
            Err(problem) => {
                tracing::warn!(%problem, "no room for a journal: telemetry goes straight into its store, which wears the disk");
                return Ok(None);
            }
        };
        let found = Found {
            sync: 1,
            at: PAGE_BYTES,
            ..Found::default()
        };
        Ok(Some(Self::with(file, boot, life, &found)))
    }

    /// The boot of the folder's journal, and a number that is above all that came to it; None if it cannot
    /// be read.
    ///
    /// # Errors
    /// The medium refuses what is there.
    pub fn boot(dir: &Path) -> io::Result<Option<(BootId, u64)>> {
        let (bytes, length) = read_file(dir)?;
        let boot = reading::boot_of(&bytes);
        Ok(boot.map(|boot| (boot, reading::find(&bytes, length, boot).used)))
    }

    /// Opens the folder's journal and reads what it holds of this boot; makes a new one if there is none.
    /// None if there is none and it cannot be made.
    ///
    /// # Errors
    /// The medium refuses what is there, or to write it anew if its length is wrong.
    pub fn open(dir: &Path, boot: BootId) -> io::Result<(Option<Self>, Contents)> {
        let (bytes, length) = read_file(dir)?;
        let found = reading::find(&bytes, length, boot);
        let missing = found.life.is_none() && found.changes.is_empty();
        let mut contents = Contents {
            damage: damage_of(&found, length),
            ..Contents::default()
        };
        if missing {
            return Ok((Self::create(dir, boot)?, contents));
        }
        let file = if length == JOURNAL_BYTES {
            File::options()
                .read(true)
                .write(true)
                .open(dir.join(NAME))?
        } else {
            replace(dir, &bytes)?
        };
        let mut journal = Self::with(file, boot, found.life.map_or_else(new_life, Ok)?, &found);
        journal.finish_cut_off(&found)?;
        contents.stored = found.life.map(|_| found.stored);
        contents.changes = found.changes;
        contents.expected = found.expected;
        Ok((Some(journal), contents))
    }

    fn with(file: File, boot: BootId, life: u64, found: &Found) -> Self {
        let mut journal = Self {
            file,
            boot,
            life,
            sync: found.sync,
            at: found.at,
            pending: Vec::new(),
            pending_frames: 0,
            live: BTreeMap::new(),
            lost: BTreeMap::new(),
            used: found.used,
            stored: found.stored,
        };
        for change in &found.changes {
            journal.count(&change.puts, &change.deletes);
        }
        journal
    }

    /// A sync that was cut off is made whole with what is there of it, so that nobody takes it for damaged
    /// later; what is there of it and was not taken is removed.
    fn finish_cut_off(&mut self, found: &Found) -> io::Result<()> {
        let end = found
            .cut_off_end
            .next_multiple_of(PAGE_BYTES)
            .min(USABLE_BYTES);
        if end <= self.at {
            return Ok(());
        }
        let again = &found.changes[found.changes.len() - found.cut_off..];
        let bytes: usize = again
            .iter()
            .map(|c| change_bytes(&c.puts, &c.deletes))
            .sum();
        let bytes = (bytes + END_BYTES).next_multiple_of(PAGE_BYTES);
        let from = if again.is_empty() {
            self.at
        } else {
            self.at + bytes
        };
        if from < end {
            self.file.write_all_at(&vec![0; end - from], from as u64)?;
        }
        for change in again {
            self.record(&change.puts, &change.deletes);
        }
        if again.is_empty() {
            return self.file.sync_data();
        }
        self.sync()
    }

    /// Whether a change of so many puts, deletes and bytes of entries still has room.
    #[must_use]
    pub fn has_room(&self, puts: &[Sealed], deletes: &[u64]) -> bool {
        let bytes = self.pending.len() + change_bytes(puts, deletes) + END_BYTES;
        self.at + bytes <= USABLE_BYTES && self.pending_frames < u16::MAX
    }

    /// Takes a change; it is durable after the next [`Journal::sync`]. There is room for it.
    pub fn record(&mut self, puts: &[Sealed], deletes: &[u64]) {
        let frame = frame::change(self.place(), puts, deletes);
        self.pending.extend_from_slice(&frame);
        self.pending_frames += 1;
        self.count(puts, deletes);
    }

    fn place(&self) -> Place {
        Place {
            boot: self.boot,
            life: self.life,
            sync: self.sync,
            nth: self.pending_frames,
        }
    }

    fn count(&mut self, puts: &[Sealed], deletes: &[u64]) {
        for sealed in puts {
            self.live.insert(sealed.number, Brief::from(&sealed.meta));
            self.note_used(sealed.number);
        }
        self.forget(deletes);
    }

    /// These were removed, whether that is recorded or not.
    pub fn forget(&mut self, deletes: &[u64]) {
        for number in deletes {
            self.live.remove(number);
            self.lost.remove(number);
        }
    }

    /// A number was used that does not come here.
    pub fn note_used(&mut self, number: u64) {
        self.used = self.used.max(number.saturating_add(1));
    }

    /// How many segments the store behind it has.
    pub fn note_stored(&mut self, segments: usize) {
        self.stored = u32::try_from(segments).unwrap_or(u32::MAX);
    }

    /// These were in it and are lost: accounts name them until they are deleted, so that a loss of power
    /// before that is told does not make it unknown.
    pub fn note_lost(&mut self, lost: BTreeMap<u64, Brief>) {
        self.live.extend(&lost);
        self.lost = lost;
    }

    fn account(&self, room_bytes: usize) -> Account {
        let live = self
            .live
            .iter()
            .rev()
            .map(|(number, brief)| (*number, *brief));
        let live: Vec<_> = live.take(briefs_in(room_bytes)).collect();
        Account {
            used: self.used,
            stored: self.stored,
            is_whole: live.len() == self.live.len(),
            live,
        }
    }

    /// Makes all that was recorded durable.
    ///
    /// # Errors
    /// The medium refuses; what was recorded since the last sync may be there or not.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pages = self.take_pages();
        self.file.write_all_at(&pages, self.at as u64)?;
        self.file.sync_data()?;
        self.at += pages.len();
        self.sync += 1;
        Ok(())
    }

    /// What is pending, with its end.
    fn take_pages(&mut self) -> Vec<u8> {
        let mut pages = std::mem::take(&mut self.pending);
        let length = (pages.len() + END_BYTES).next_multiple_of(PAGE_BYTES);
        let account = self.account(length - pages.len());
        pages.extend(frame::end(self.place(), &account));
        self.pending_frames = 0;
        pages.resize(length, 0);
        pages
    }

    /// Forgets everything: it is durable elsewhere.
    ///
    /// # Errors
    /// The medium refuses; the content may be forgotten or not.
    pub fn reset(&mut self) -> io::Result<()> {
        self.pending.clear();
        self.pending_frames = 0;
        self.life = new_life()?;
        self.at = 0;
        self.live.clone_from(&self.lost);
        // So that a restart does not find the frames of before.
        let pages = self.take_pages();
        self.file.write_all_at(&pages, 0)?;
        self.file.write_all_at(&pages, USABLE_BYTES as u64)?;
        self.file.sync_data()?;
        self.at = pages.len();
        self.sync += 1;
        Ok(())
    }
}

impl From<&Meta> for Brief {
    fn from(meta: &Meta) -> Self {
        Self {
            kind: meta.kind,
            records: meta.records,
        }
    }
}

/// The file's bytes, as many as a journal has, and its length.
fn read_file(dir: &Path) -> io::Result<(Vec<u8>, usize)> {
    let path = dir.join(NAME);
    let mut bytes = Vec::new();
    let is_file = std::fs::metadata(&path).map(|m| m.is_file());
    match is_file {
        Ok(true) => {
            let file = File::open(&path)?;
            file.take(JOURNAL_BYTES as u64 + 1)
                .read_to_end(&mut bytes)?;
        }
        Ok(false) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let length = bytes.len();
    bytes.resize(JOURNAL_BYTES, 0);
    Ok((bytes, length))
}

fn damage_of(found: &Found, length: usize) -> Option<Damage> {
    let cut = (length != JOURNAL_BYTES).then(|| match length {
        0 => "it is missing or empty".to_owned(),
        _ if length > JOURNAL_BYTES => format!("it is longer than {JOURNAL_BYTES} bytes"),
        _ => format!("it has {length} bytes instead of {JOURNAL_BYTES}"),
    });
    let none = (found.life.is_none() && found.changes.is_empty())
        .then(|| "none of its frames can be read".to_owned());
    let bad = (found.damaged > 0).then(|| format!("{} of its syncs are damaged", found.damaged));
    let is_unsure = none.is_some() || found.is_unsure;
    let start = found
        .is_unsure
        .then(|| "its beginning or end is damaged".to_owned());
    let what = cut.or(none).or(bad).or(start)?;
    let records = found.changes.iter().flat_map(|change| &change.puts);
    let records: u64 = records.map(|sealed| u64::from(sealed.meta.records)).sum();
    Some(Damage {
        what: format!(
            "{what}; {} frames with {records} records were readable",
            found.frames
        ),
        is_unsure,
    })
}

/// Puts a file with this content in the journal's place, as one step.
fn replace(dir: &Path, bytes: &[u8]) -> io::Result<File> {
    let fresh = dir.join("journal.new");
    let replaced = (|| {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&fresh)?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()?;
        std::fs::rename(&fresh, dir.join(NAME))?;
        File::open(dir)?.sync_all()?;
        Ok(file)
    })();
    if replaced.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    replaced
}

/// Random, so that no frame of before can be taken for one of it.
fn new_life() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
