//! What the worker's detectors know, kept for the next worker and the next start.

use crate::detect::watch::Watch;
use crate::files::{read_if_there, write_atomic};
use dunlin_protocol::id::Digest;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bundles whose detectors are kept.
const KEPT_MAX: usize = 16;
const FILE_MAX_BYTES: u64 = 1 << 20;
/// Shortest time between two writes, for flash memory's sake; a power cut costs as much.
const WRITE_EVERY: Duration = Duration::from_secs(600);

/// States by bundle, the one told last at the end.
#[derive(Debug)]
pub(super) struct Detectors {
    file: PathBuf,
    states: Vec<(Digest, Watch)>,
    is_written: bool,
    written: Instant,
}

impl Detectors {
    /// Reads what was kept. A file that cannot be read is as none: detectors begin anew.
    pub(super) fn open(state_dir: &Path) -> Self {
        let file = state_dir.join("detectors.json");
        let states = match read_if_there(&file, FILE_MAX_BYTES) {
            Ok(bytes) => serde_json::from_slice(&bytes.unwrap_or(b"[]".to_vec())),
            Err(error) => {
                tracing::warn!(%error, "kept detectors not read; they begin anew");
                Ok(Vec::new())
            }
        };
        let mut states: Vec<(Digest, Watch)> = states.unwrap_or_else(|error| {
            tracing::warn!(file = %file.display(), %error, "kept detectors not understood; they begin anew");
            Vec::new()
        });
        states.truncate(KEPT_MAX);
        states.retain(|(_, watch)| watch.is_sound());
        Self {
            file,
            states,
            is_written: true,
            written: Instant::now(),
        }
    }

    /// What is known of a bundle.
    pub(super) fn of(&self, bundle: Digest) -> Option<&Watch> {
        let mut states = self.states.iter();
        states.find(|(b, _)| *b == bundle).map(|(_, watch)| watch)
    }

    /// Keeps a bundle's state, and writes all of them when it is time.
    pub(super) fn keep(&mut self, bundle: Digest, watch: Watch) {
        if !watch.is_sound() {
            tracing::warn!(%bundle, "detectors' state is none; not kept");
            return;
        }
        self.states.retain(|(b, _)| *b != bundle);
        self.states.push((bundle, watch));
        if self.states.len() > KEPT_MAX {
            self.states.remove(0);
        }
        self.is_written = false;
        if self.written.elapsed() >= WRITE_EVERY {
            self.write();
        }
    }

    /// Writes what is not on disk yet.
    pub(super) fn write(&mut self) {
        if self.is_written {
            return;
        }
        self.written = Instant::now();
        let Ok(json) = serde_json::to_vec(&self.states) else {
            return;
        };
        match write_atomic(&self.file, &json, 0o600) {
            Ok(()) => self.is_written = true,
            Err(error) => tracing::warn!(%error, "detectors not kept"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::detect::watch::Seen;

    fn watch(answers: u64) -> Watch {
        let mut watch = Watch::default();
        for _ in 0..answers {
            watch.take(Seen {
                entropy: 0.3,
                confidence: 0.8,
            });
        }
        watch
    }

    #[test]
    fn what_was_kept_is_there_again_and_no_more_than_sixteen() {
        let dir = tempfile::tempdir().unwrap();
        let mut detectors = Detectors::open(dir.path());
        for bundle in 0..20_u8 {
            detectors.keep(Digest([bundle; 32]), watch(u64::from(bundle)));
        }
        detectors.keep(Digest([5; 32]), watch(500));
        detectors.write();
        let again = Detectors::open(dir.path());
        assert_eq!(again.states.len(), KEPT_MAX);
        assert_eq!(again.of(Digest([5; 32])), Some(&watch(500)));
        assert_eq!(again.of(Digest([0; 32])), None);
        assert!(
            std::fs::metadata(dir.path().join("detectors.json"))
                .unwrap()
                .len()
                < FILE_MAX_BYTES
        );
    }

    #[test]
    fn a_damaged_file_is_as_none() {
        let dir = tempfile::tempdir().unwrap();
        for damage in [&b"[["[..], b"{}", b"\xff", &vec![b'['; 2 << 20]] {
            std::fs::write(dir.path().join("detectors.json"), damage).unwrap();
            assert_eq!(Detectors::open(dir.path()).states, []);
        }
    }
}
