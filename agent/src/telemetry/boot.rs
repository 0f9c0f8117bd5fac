//! The boot id and the counter of segment numbers, in a file beside the store.
//!
//! The server takes a segment for known when it has seen (device, boot, segment). So a number
//! must never be used twice within a boot, whatever becomes of the store: numbers are reserved in
//! blocks, the block's end is made durable before its first number is used, and a start after a
//! crash goes on behind the block. A store made anew keeps the boot: what the journal holds of it was
//! perhaps sent, and would be stored twice under another. When the file is lost, the journal knows the
//! boot and how far the numbers were; only when both are lost a new boot begins.

use super::store::StoreError;
use dunlin_protocol::id::BootId;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Numbers reserved at once. Large, because each reservation writes to flash; a device that
/// crashed a thousand times a day would still have numbers for 23,000 years.
const BLOCK: u64 = 1 << 20;
/// What is left out behind the last number the journal knows, when this file is lost: more than can have
/// been used without a sync.
const UNKNOWN: u64 = 1 << 32;
const FILE_MAX_BYTES: u64 = 4096;

#[derive(Debug, Serialize, Deserialize)]
struct Reserved {
    boot: BootId,
    /// All numbers below may have been used.
    reserved: u64,
    /// Whether there is a journal, so that a missing one is noticed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    journal: bool,
}

/// Hands out segment numbers.
#[derive(Debug)]
pub struct Counter {
    path: PathBuf,
    boot: BootId,
    next: u64,
    reserved: u64,
    has_journal: bool,
}

impl Counter {
    /// Goes on with the boot in the file, or `None` if there is no readable one.
    ///
    /// # Errors
    /// The medium does not let the file be read.
    pub fn load(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join("boot");
        let mut text = String::new();
        let read = File::open(&path).and_then(|f| f.take(FILE_MAX_BYTES).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidData
                ) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(medium(&path, "reading the boot id", &e)),
        }
        let Ok(read) = serde_json::from_str::<Reserved>(&text) else {
            return Ok(None);
        };
        Ok(Some(Self {
            path,
            boot: read.boot,
            next: read.reserved,
            reserved: read.reserved,
            has_journal: read.journal,
        }))
    }

    /// Goes on with a boot whose file is lost, of which no number from `used` on was durable.
    #[must_use]
    pub fn restored(dir: &Path, boot: BootId, used: u64) -> Self {
        let next = used.saturating_add(UNKNOWN);
        Self {
            path: dir.join("boot"),
            boot,
            next,
            reserved: next,
            has_journal: true,
        }
    }

    /// Begins a new boot; its id is durable on return.
    ///
    /// # Errors
    /// The medium does not take the file, or the system has no random numbers.
    pub fn begin(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("boot");
        let mut raw = [0; 16];
        getrandom::fill(&mut raw)
            .map_err(|e| medium(&path, "drawing a boot id", &io::Error::other(e.to_string())))?;
        let counter = Self {
            path,
            boot: BootId(raw),
            next: 0,
            reserved: 0,
            has_journal: false,
        };
        counter.write(0)?;
        Ok(counter)
    }

    /// The boot the numbers belong to.
    #[must_use]
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// Makes the file as it should be, durable on return.
    ///
    /// # Errors
    /// The medium does not take it.
    pub fn save(&self) -> Result<(), StoreError> {
        self.write(self.reserved)
    }

    /// Whether a journal was made in this boot.
    #[must_use]
    pub fn has_journal(&self) -> bool {
        self.has_journal
    }

    /// Remembers whether there is a journal, durable on return.
    ///
    /// # Errors
    /// The medium does not take the file.
    pub fn note_journal(&mut self, has_journal: bool) -> Result<(), StoreError> {
        if self.has_journal != has_journal {
            self.has_journal = has_journal;
            self.write(self.reserved)?;
        }
        Ok(())
    }

    /// Goes on behind `number` at least.
    pub fn skip_past(&mut self, number: u64) {
        self.next = self.next.max(number.saturating_add(1));
    }

    /// A number never used before in this boot.
    ///
    /// # Errors
    /// No more numbers could be reserved: the medium does not take the file.
    pub fn take(&mut self) -> Result<u64, StoreError> {
        if self.next >= self.reserved {
            let reserved = self.next.saturating_add(BLOCK);
            self.write(reserved)?;
            self.reserved = reserved;
        }
        let number = self.next;
        self.next += 1;
        Ok(number)
    }

    /// Gives back what was reserved and not used, at an orderly end.
    ///
    /// # Errors
    /// The medium does not take the file; the next start goes on behind the block.
    pub fn close(&mut self) -> Result<(), StoreError> {
        if self.reserved != self.next {
            self.write(self.next)?;
            self.reserved = self.next;
        }
        Ok(())
    }

    fn write(&self, reserved: u64) -> Result<(), StoreError> {
        let text = serde_json::to_vec(&Reserved {
            boot: self.boot,
            reserved,
            journal: self.has_journal,
        });
        text.map_err(io::Error::from)
            .and_then(|t| replace(&self.path, &t))
            .map_err(|e| medium(&self.path, "writing the boot id and counter", &e))
    }
}

/// Replaces a file as one step that survives a loss of power.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn medium(path: &Path, what: &'static str, problem: &io::Error) -> StoreError {
    StoreError::Medium {
        path: path.to_owned(),
        what,
        problem: problem.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_used_twice_in_a_boot_with_or_without_an_orderly_end() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Counter::load(dir.path()).unwrap().is_none());
        let boot = Counter::begin(dir.path()).unwrap().boot();
        let mut last = None;
        for round in 0..6 {
            let mut counter = Counter::load(dir.path()).unwrap().unwrap();
            assert_eq!(counter.boot(), boot);
            for _ in 0..3 {
                let number = counter.take().unwrap();
                assert!(last.is_none_or(|l| number > l));
                last = Some(number);
            }
            if round % 2 == 0 {
                counter.close().unwrap();
            }
        }
    }

    #[test]
    fn an_unreadable_file_is_no_boot() {
        let dir = tempfile::tempdir().unwrap();
        for bad in [
            &b"{"[..],
            b"\xff\xfe",
            b"{\"boot\":\"x\",\"reserved\":1}",
            b"",
        ] {
            std::fs::write(dir.path().join("boot"), bad).unwrap();
            assert!(Counter::load(dir.path()).unwrap().is_none());
        }
    }
}
