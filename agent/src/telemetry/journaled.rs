//! The store with its journal before it: small changes are durable in the journal and kept in memory until
//! it is full, and only what the server has not acknowledged by then goes into sled. Large changes go into
//! sled at once: they would be written twice.
//!
//! A change is in the journal before it is in sled, and the journal is reset after sled is synced. At a start
//! the journal's changes are made again, which is the same as once. An acknowledgement that a loss of power
//! undoes costs a message that the server knows already. Without a journal (no room for the file) all goes
//! into sled.
//!
//! What damage to the journal took is told in gaps: a gap deletes the numbers it names, and until then
//! they count as lost at each start.

use super::buffer::{Folder, SledStore};
use super::journal::{Brief, Contents, Damage, JOURNAL_BYTES, Journal};
use super::segment::{Meta, Sealed};
use super::store::{BATCH_MAX, SegmentStore, StoreError, StoreStats, batch_len};
use dunlin_protocol::id::BootId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// Changes with more bytes of entries go into sled at once.
const DIRECT_BYTES: usize = 64 * 1024;

/// Segments in journal and sled.
pub struct JournaledStore {
    dir: PathBuf,
    store: SledStore,
    journal: Option<Journal>,
    /// What the journal holds and sled does not.
    young: BTreeMap<u64, Sealed>,
    /// Whether sled has segments that are durable nowhere.
    is_dirty: bool,
    /// Whether sled has deletions that only the journal makes durable.
    is_behind: bool,
}

/// What the journal had at a start.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Segments that only it has.
    pub kept_segments: usize,
    /// Their records.
    pub kept_records: u64,
    /// Segments that sled had at its last sync, if that is known.
    pub stored: Option<u32>,
    /// What is wrong with it.
    pub damage: Option<Damage>,
    /// What was durable and is nowhere.
    pub lost: BTreeMap<u64, Brief>,
    /// What it removed.
    pub deleted: BTreeSet<u64>,
}

/// A store, the heads of all its segments, and what its journal had.
pub type Opened = (JournaledStore, Vec<(u64, Meta)>, Replayed);

impl std::fmt::Debug for JournaledStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournaledStore")
            .field("dir", &self.dir)
            .field("young", &self.young.len())
            .finish_non_exhaustive()
    }
}

impl JournaledStore {
    /// Makes a new, empty store, durable on return.
    ///
    /// # Errors
    /// The medium refuses.
    pub fn create(folder: &Folder, boot: BootId) -> Result<Self, StoreError> {
        let journal = Journal::create(folder.dir(), boot);
        let journal = journal.map_err(|e| failed(folder.dir(), "making", &e))?;
        let base = SledStore::create(folder, boot)?;
        Ok(Self::with(folder, base, journal, &Contents::default())?.0)
    }

    /// Opens the store and reads the heads of all its segments.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is not a whole store of this boot; set it aside then.
    /// [`StoreError::Medium`] when the disk is full, for example.
    pub fn open(folder: &Folder, boot: BootId) -> Result<Opened, StoreError> {
        let (base, heads) = SledStore::open(folder, boot)?;
        Self::replay(folder, base, heads, boot)
    }

    /// Makes a new store behind the journal that is there, with what only the journal has.
    ///
    /// # Errors
    /// The medium refuses.
    pub fn renew(folder: &Folder, boot: BootId) -> Result<Opened, StoreError> {
        let base = SledStore::create(folder, boot)?;
        Self::replay(folder, base, Vec::new(), boot)
    }

    fn replay(
        folder: &Folder,
        base: SledStore,
        heads: Vec<(u64, Meta)>,
        boot: BootId,
    ) -> Result<Opened, StoreError> {
        let opened = Journal::open(folder.dir(), boot);
        let (journal, contents) = opened.map_err(|e| failed(folder.dir(), "reading", &e))?;
        let (store, replayed) = Self::with(folder, base, journal, &contents)?;
        let mut heads: BTreeMap<u64, Meta> = heads.into_iter().collect();
        for change in &contents.changes {
            for number in &change.deletes {
                heads.remove(number);
            }
            heads.extend(
                change
                    .puts
                    .iter()
                    .map(|sealed| (sealed.number, sealed.meta)),
            );
        }
        Ok((store, heads.into_iter().collect(), replayed))
    }

    fn with(
        folder: &Folder,
        base: SledStore,
        journal: Option<Journal>,
        contents: &Contents,
    ) -> Result<(Self, Replayed), StoreError> {
        let mut store = Self {
            dir: folder.dir().to_owned(),
            store: base,
            journal,
            young: BTreeMap::new(),
            is_dirty: false,
            is_behind: false,
        };
        for change in &contents.changes {
            store.apply(&change.puts, &change.deletes)?;
        }
        let mut lost = BTreeMap::new();
        for (number, brief) in &contents.expected {
            if store.peek(*number)?.is_none() {
                lost.insert(*number, *brief);
            }
        }
        if let Some(journal) = &mut store.journal {
            journal.note_lost(lost.clone());
        }
        let deletes = contents.changes.iter().flat_map(|change| &change.deletes);
        let records = store.young.values().map(|s| u64::from(s.meta.records));
        let replayed = Replayed {
            kept_segments: store.young.len(),
            kept_records: records.sum(),
            stored: contents.stored,
            damage: contents.damage.clone(),
            lost,
            deleted: deletes.copied().collect(),
        };
        // Damage that may hide more would be found at each start: it goes with the journal's pages.
        if contents.damage.as_ref().is_some_and(|d| d.is_unsure) {
            match store.checkpoint() {
                Ok(()) | Err(StoreError::Full { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok((store, replayed))
    }

    /// Whether there is a journal.
    #[must_use]
    pub fn has_journal(&self) -> bool {
        self.journal.is_some()
    }

    /// Does in memory and sled what the journal has. A segment is never in both, or a deletion would miss
    /// one of the two: what sled has already (a checkpoint was cut off before the journal began anew, or a
    /// failed sync is made up for) stays there. What is in neither was lost, and has been told by now.
    fn apply(&mut self, puts: &[Sealed], deletes: &[u64]) -> Result<(), StoreError> {
        let mut in_store = Vec::new();
        for number in self.remove_young(deletes) {
            if self.store.peek(number)?.is_some() {
                in_store.push(number);
            }
        }
        for some in in_store.chunks(BATCH_MAX) {
            self.store.append(&[], some)?;
            self.is_behind = true;
        }
        for sealed in puts {
            if self.store.peek(sealed.number)?.is_some() {
                self.is_dirty = true;
            } else {
                self.young.insert(sealed.number, sealed.clone());
            }
        }
        Ok(())
    }

    /// Removes what is young; the others.
    fn remove_young(&mut self, numbers: &[u64]) -> Vec<u64> {
        let mut others = numbers.to_vec();
        others.retain(|number| self.young.remove(number).is_none());
        others
    }

    /// Moves what is young into sled, and begins the journal anew.
    fn checkpoint(&mut self) -> Result<(), StoreError> {
        let young: Vec<Sealed> = self.young.values().cloned().collect();
        let mut rest = &young[..];
        while !rest.is_empty() {
            let (some, others) = rest.split_at(batch_len(rest));
            self.store.append(some, &[])?;
            rest = others;
        }
        if self.is_dirty || self.is_behind || !young.is_empty() {
            self.store.sync()?;
        }
        (self.is_dirty, self.is_behind) = (false, false);
        self.young.clear();
        self.note_stored();
        let reset = self.journal.as_mut().map_or(Ok(()), Journal::reset);
        reset.map_err(|e| failed(&self.dir, "beginning anew", &e))
    }

    fn note_stored(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.note_stored(self.store.segments());
        }
    }

    fn sync_journal(&mut self) -> Result<(), StoreError> {
        self.note_stored();
        let synced = self.journal.as_mut().map_or(Ok(()), Journal::sync);
        synced.map_err(|e| failed(&self.dir, "syncing", &e))
    }
}

fn failed(dir: &Path, what: &'static str, error: &io::Error) -> StoreError {
    StoreError::Medium {
        path: dir.join("journal"),
        what,
        problem: error.to_string(),
    }
}

impl SegmentStore for JournaledStore {
    fn append(&mut self, puts: &[Sealed], deletes: &[u64]) -> Result<(), StoreError> {
        debug_assert!(puts.len() + deletes.len() <= BATCH_MAX);
        let bytes: usize = puts.iter().map(|sealed| sealed.entry.len()).sum();
        let is_large = bytes > DIRECT_BYTES && deletes.is_empty();
        if is_large || self.journal.is_none() {
            self.store.append(puts, deletes)?;
            self.is_dirty = true;
            if let (Some(journal), Some(last)) = (&mut self.journal, puts.last()) {
                journal.note_used(last.number);
            }
            return Ok(());
        }
        let has_room = |journal: &Journal| journal.has_room(puts, deletes);
        if !self.journal.as_ref().is_some_and(has_room) {
            self.checkpoint()?;
        }
        if let Some(journal) = &mut self.journal {
            journal.record(puts, deletes);
        }
        // sled may make a deletion durable at any time: the gap that tells of it must be so before.
        if deletes
            .iter()
            .any(|number| !self.young.contains_key(number))
        {
            self.sync_journal()?;
        }
        self.apply(puts, deletes)
    }

    fn peek(&mut self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match self.young.get(&number) {
            Some(sealed) => Ok(Some(sealed.entry.clone())),
            None => self.store.peek(number),
        }
    }

    fn ack(&mut self, segments: &[u64]) -> Result<(), StoreError> {
        let in_store = self.remove_young(segments);
        for some in segments.chunks(BATCH_MAX) {
            let Some(journal) = &mut self.journal else {
                break;
            };
            // Without room for it, it is not worth a checkpoint.
            if journal.has_room(&[], some) {
                journal.record(&[], some);
            } else {
                journal.forget(some);
            }
        }
        for some in in_store.chunks(BATCH_MAX) {
            self.store.append(&[], some)?;
        }
        Ok(())
    }

    fn stats(&mut self) -> Result<StoreStats, StoreError> {
        let base = self.store.stats()?;
        let journal_bytes = match &self.journal {
            Some(_) => JOURNAL_BYTES as u64,
            None => 0,
        };
        Ok(StoreStats {
            segments: base.segments + self.young.len(),
            disk_bytes: base.disk_bytes + journal_bytes,
        })
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.sync_journal()?;
        if self.is_dirty {
            self.store.sync()?;
            self.is_dirty = false;
        }
        Ok(())
    }

    fn compact(&mut self) -> Result<(), StoreError> {
        self.sync_journal()?;
        self.store.compact()?;
        (self.is_dirty, self.is_behind) = (false, false);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
