//! What files were answered and stay where they are, remembered across restarts.

use super::{Stamp, stamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Longest journal: half a million names of usual length.
const JOURNAL_MAX_BYTES: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Line {
    name: String,
    #[serde(flatten)]
    stamp: Stamp,
}

/// The journal, a JSON line a file; written anew at start without what is gone.
pub(super) struct Kept {
    journal: Option<PathBuf>,
    known: BTreeMap<String, Stamp>,
}

impl Kept {
    pub(super) fn load(journal: Option<PathBuf>, folder: &Path) -> Self {
        let mut known = BTreeMap::new();
        if let Some(path) = &journal {
            let bytes = crate::files::read_if_there(path, JOURNAL_MAX_BYTES);
            let bytes = bytes.unwrap_or_else(|e| {
                tracing::warn!(error = %e, "files that were kept are read again");
                None
            });
            let bytes = bytes.unwrap_or_default();
            // A line that a kill cut off is no line; its file is answered again.
            let lines = bytes.split(|byte| *byte == b'\n');
            for line in lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok()) {
                let there = std::fs::symlink_metadata(folder.join(&line.name));
                if there.is_ok_and(|found| stamp(&found) == line.stamp) {
                    known.insert(line.name, line.stamp);
                }
            }
            let fresh: Vec<u8> = known
                .iter()
                .flat_map(|(name, stamp)| line(name, *stamp))
                .collect();
            if let Err(e) = crate::files::write_atomic(path, &fresh, 0o600) {
                tracing::warn!(error = %e, "the list of kept files cannot be written");
            }
        }
        Self { journal, known }
    }

    pub(super) fn has(&self, name: &str, stamp: Stamp) -> bool {
        self.known.get(name) == Some(&stamp)
    }

    pub(super) fn add(&mut self, name: &str, stamp: Stamp) -> io::Result<()> {
        self.known.insert(name.to_owned(), stamp);
        if let Some(path) = &self.journal {
            let mut file = OpenOptions::new().append(true).create(true).open(path)?;
            file.write_all(&line(name, stamp))?;
        }
        Ok(())
    }
}

fn line(name: &str, stamp: Stamp) -> Vec<u8> {
    let line = Line {
        name: name.to_owned(),
        stamp,
    };
    let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_known_after_a_restart_unless_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("kept");
        let stamp_of = |name: &str| stamp(&std::fs::metadata(dir.path().join(name)).unwrap());
        let mut kept = Kept::load(Some(journal.clone()), dir.path());
        for name in ["a.jpg", "b.jpg", "gone.jpg"] {
            std::fs::write(dir.path().join(name), name).unwrap();
            kept.add(name, stamp_of(name)).unwrap();
        }
        std::fs::remove_file(dir.path().join("gone.jpg")).unwrap();
        std::fs::write(dir.path().join("b.jpg"), "another").unwrap();
        // Cut off in the middle of a line.
        let mut bytes = std::fs::read(&journal).unwrap();
        bytes.extend(b"{\"name\":\"c");
        std::fs::write(&journal, bytes).unwrap();
        let kept = Kept::load(Some(journal.clone()), dir.path());
        assert!(kept.has("a.jpg", stamp_of("a.jpg")));
        assert!(!kept.has("b.jpg", stamp_of("b.jpg")));
        let text = std::fs::read_to_string(&journal).unwrap();
        assert!(text.contains("a.jpg") && !text.contains("gone") && !text.contains("b.jpg"));
    }
}
