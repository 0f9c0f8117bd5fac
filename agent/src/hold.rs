//! Updates held back by hand at the device: a small file in the state folder, which the agent reads
//! at every tick and before every activation. It works while the agent is down and survives reboots;
//! what serves goes on, downloads go on, and it never keeps a device from going back.

use crate::files::{Disk, FileError};
use dunlin_protocol::report::Hold;
use std::path::{Path, PathBuf};

const MAX_BYTES: u64 = 4096;
/// Longest reason, in characters.
pub const REASON_MAX_CHARS: usize = 200;
/// The folder is its owner's alone; within it the agent must be able to read what root wrote.
const MODE: u32 = 0o644;

/// The file.
#[derive(Debug, Clone)]
pub struct HoldFile {
    disk: Disk,
    path: PathBuf,
}

impl HoldFile {
    /// The file of a state folder.
    #[must_use]
    pub fn new(disk: &Disk, state_dir: &Path) -> Self {
        Self {
            disk: disk.clone(),
            path: state_dir.join("hold.json"),
        }
    }

    /// Whether updates are held back at `now_ms` (milliseconds since 1970). A file that cannot be
    /// read holds them back too: somebody wanted that.
    #[must_use]
    pub fn read(&self, now_ms: i64) -> Option<Hold> {
        let unreadable = |problem: String| Hold {
            reason: format!("{}: {problem}", self.path.display())
                .chars()
                .take(REASON_MAX_CHARS)
                .collect(),
            since_ms: 0,
            until_ms: None,
        };
        let hold = match self.disk.read_if_there(&self.path, MAX_BYTES) {
            Ok(None) => return None,
            Ok(Some(bytes)) => serde_json::from_slice::<Hold>(&bytes)
                .unwrap_or_else(|e| unreadable(format!("no hold: {e}"))),
            Err(e) => unreadable(e.to_string()),
        };
        let reason = hold.reason.chars().take(REASON_MAX_CHARS).collect();
        let is_over = hold.until_ms.is_some_and(|until| until <= now_ms);
        (!is_over).then_some(Hold { reason, ..hold })
    }

    /// Holds updates back.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn write(&self, hold: &Hold) -> Result<(), FileError> {
        let json = serde_json::to_vec(hold).map_err(|e| FileError::Io {
            action: "write",
            path: self.path.clone(),
            source: e.into(),
        })?;
        self.disk.write_atomic(&self.path, &json, MODE)
    }

    /// Releases them; that nothing is held is fine.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn remove(&self) -> Result<(), FileError> {
        self.disk.remove_if_there(&self.path)?;
        match self.path.parent() {
            Some(folder) => self.disk.sync_dir(folder),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_lasts_until_it_is_released_or_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = HoldFile::new(&Disk::native(), dir.path());
        assert_eq!(file.read(0), None);
        let mut hold = Hold {
            reason: "a test run".to_owned(),
            since_ms: 5,
            until_ms: None,
        };
        file.write(&hold).unwrap();
        assert_eq!(file.read(i64::MAX), Some(hold.clone()));
        hold.until_ms = Some(1_000);
        file.write(&hold).unwrap();
        assert_eq!(file.read(999), Some(hold));
        assert_eq!(file.read(1_000), None);
        file.remove().unwrap();
        file.remove().unwrap();
        assert_eq!(file.read(0), None);
    }

    #[test]
    fn a_file_that_is_no_hold_holds() {
        let dir = tempfile::tempdir().unwrap();
        let file = HoldFile::new(&Disk::native(), dir.path());
        for content in [&b""[..], b"{}", &[b'x'; 5000]] {
            std::fs::write(dir.path().join("hold.json"), content).unwrap();
            let hold = file.read(0).unwrap();
            assert!(hold.reason.contains("hold.json"), "{}", hold.reason);
        }
    }
}
