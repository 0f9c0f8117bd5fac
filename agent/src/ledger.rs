//! The persisted state of the device state machine.

use crate::device::State;
use crate::files::{Disk, FileError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const SCHEMA: &str = "dunlin.ledger/1";
const LEDGER_MAX_BYTES: u64 = 256 * 1024;

/// Why the ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file cannot be read or written.
    #[error("ledger: {0}")]
    File(#[from] FileError),
    /// The file is there, yet it is no ledger.
    #[error("ledger {path}: {problem}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl LedgerError {
    /// Whether the disk (or the quota) is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::File(e) if e.is_disk_full())
    }
}

#[derive(Serialize, Deserialize)]
struct Document<S> {
    schema: String,
    state: S,
}

/// Where the state is kept.
#[derive(Debug, Clone)]
pub struct Ledger {
    disk: Disk,
    path: PathBuf,
}

impl Ledger {
    /// The ledger of a state folder.
    #[must_use]
    pub fn new(disk: &Disk, state_dir: &Path) -> Self {
        Self {
            disk: disk.clone(),
            path: state_dir.join("ledger.json"),
        }
    }

    /// The persisted state, `None` on a new device.
    ///
    /// # Errors
    /// Unreadable, or damaged.
    pub fn load(&self) -> Result<Option<State>, LedgerError> {
        let damaged = |problem: String| LedgerError::Damaged {
            path: self.path.clone(),
            problem,
        };
        let bytes = match self.disk.read_if_there(&self.path, LEDGER_MAX_BYTES) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(e @ FileError::TooLarge { .. }) => return Err(damaged(e.to_string())),
            Err(e) => return Err(e.into()),
        };
        let document: Document<State> =
            serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if document.schema != SCHEMA {
            return Err(damaged(format!(
                "schema: expected {SCHEMA:?}, got {:?}",
                document.schema
            )));
        }
        Ok(Some(document.state))
    }

    /// Writes the state so that a cut at any moment leaves the old or the new one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn store(&self, state: &State) -> Result<(), LedgerError> {
        let document = Document {
            schema: SCHEMA.to_owned(),
            state,
        };
        let bytes = serde_json::to_vec_pretty(&document).map_err(|e| LedgerError::Damaged {
            path: self.path.clone(),
            problem: e.to_string(),
        })?;
        self.disk.write_atomic(&self.path, &bytes, 0o600)?;
        Ok(())
    }

    /// Moves a damaged ledger out of the way, kept for whoever looks into it.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn set_aside(&self) -> Result<PathBuf, LedgerError> {
        let aside = self.path.with_extension("json.corrupt");
        self.disk
            .rename(&self.path, &aside)
            .map_err(|e| LedgerError::Damaged {
                path: self.path.clone(),
                problem: format!("cannot be set aside: {e}"),
            })?;
        Ok(aside)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_ledger_is_told_from_one_that_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(&Disk::native(), dir.path());
        assert_eq!(ledger.load().unwrap(), None);
        let state = State::new(7);
        ledger.store(&state).unwrap();
        assert_eq!(ledger.load().unwrap(), Some(state));
        let path = dir.path().join("ledger.json");
        let long = vec![b' '; usize::try_from(LEDGER_MAX_BYTES).unwrap() + 1];
        for content in [&b"{"[..], &long] {
            std::fs::write(&path, content).unwrap();
            assert!(matches!(ledger.load(), Err(LedgerError::Damaged { .. })));
        }
        // What cannot be read may be whole: it stays where it is.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(ledger.load(), Err(LedgerError::File(_))));
    }
}
