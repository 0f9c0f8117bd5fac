//! The persisted state of the device state machine.

use crate::device::State;
use crate::files::{Disk, FileError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

mod before;

const SCHEMA: &str = "dunlin.ledger/2";
const LEDGER_MAX_BYTES: u64 = 1024 * 1024;

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

#[derive(Deserialize)]
struct Head {
    schema: String,
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
        let unread = |e: serde_json::Error| damaged(e.to_string());
        let head: Head = serde_json::from_slice(&bytes).map_err(unread)?;
        let state = match head.schema.as_str() {
            SCHEMA => {
                serde_json::from_slice::<Document<State>>(&bytes)
                    .map_err(unread)?
                    .state
            }
            before::SCHEMA => {
                let document: Document<before::State> =
                    serde_json::from_slice(&bytes).map_err(unread)?;
                document.state.into_state()
            }
            other => {
                return Err(damaged(format!(
                    "schema: expected {SCHEMA:?}, got {other:?}"
                )));
            }
        };
        Ok(Some(state))
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
    use crate::device::Phase;

    /// Written by the agent of release 0.1.0, in the middle of a probation.
    const BEFORE: &str = r#"{"schema":"dunlin.ledger/1","state":{"revision":{"epoch":1,"generation":2},
        "target":null,"rollout":null,"kept":null,"phase":{"phase":"probation",
        "want":{"family":"digits","version":2,"target":"digits/2/manifest.json",
        "digest":"05b3abf2579a5eb66403cd78be557fd860633a1fe2103c7642030defe32c657f",
        "probation":{"inferences":5,"time_ms":300,"errors_max":0,"deadline_ms":60000}},
        "served_ms":10,"activated":true,"loading_ms":0,"looked_at_ms":5,
        "before":{"inferences":1,"errors":0},"live":{"inferences":2,"errors":0},
        "deaths":0,"restarts":1},"sequence":7,"jitter_seed":3}}"#;

    #[test]
    fn the_ledger_of_the_release_before_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ledger.json"), BEFORE).unwrap();
        let ledger = Ledger::new(&Disk::native(), dir.path());
        let state = ledger.load().unwrap().unwrap();
        let model = &state.models[&"digits".parse().unwrap()];
        assert!(matches!(model.phase, Phase::Probation { live, .. } if live.inferences == 2));
        assert_eq!((model.previous.clone(), model.not_held.len()), (None, 0));
        ledger.store(&state).unwrap();
        assert_eq!(ledger.load().unwrap(), Some(state));
    }

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
