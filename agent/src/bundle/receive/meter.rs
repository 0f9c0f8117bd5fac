//! How far a fetch is, and what it cost.

use super::fetch::Missing;
use dunlin_protocol::bundle::{Blob, Manifest};

/// Least bytes between two reports of progress.
const PROGRESS_STEP_BYTES: u64 = 256 * 1024;

/// What an attempt took off the network, of what the bundle's files would have been.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Bytes of blobs and patches that were fetched.
    pub fetched_bytes: u64,
    /// Bytes of all the bundle's blobs as they travel.
    pub whole_bytes: u64,
    /// Patches that took the place of a blob.
    pub patches: u32,
    /// Patches that were fetched for nothing.
    pub patches_failed: u32,
}

impl Spent {
    /// Bytes that had not to be fetched: held already, or made by a patch.
    #[must_use]
    pub fn saved_bytes(&self) -> u64 {
        self.whole_bytes.saturating_sub(self.fetched_bytes)
    }
}

/// Bytes on the device and in all, told now and then.
pub(super) struct Meter<F> {
    progress: F,
    pub(super) done: u64,
    told: u64,
    total: u64,
    pub(super) spent: Spent,
}

impl<F: FnMut(u64, u64) + Send> Meter<F> {
    pub(super) fn new(manifest: &Manifest, missing: &[Missing<'_>], progress: F) -> Self {
        let of = |blobs: &mut dyn Iterator<Item = &Blob>| blobs.map(|b| b.transport().1).sum();
        let total: u64 = of(&mut manifest.files.named().into_iter().map(|(_, b)| b));
        let needed: u64 = of(&mut missing.iter().map(|m| m.blob));
        let mut meter = Self {
            progress,
            done: total - needed,
            told: 0,
            total,
            spent: Spent {
                whole_bytes: total,
                ..Spent::default()
            },
        };
        meter.tell();
        meter
    }

    /// A blob's place is taken by something of another length, or given back.
    pub(super) fn replace(&mut self, planned_bytes: u64, instead_bytes: u64) {
        self.total = self
            .total
            .saturating_sub(planned_bytes)
            .saturating_add(instead_bytes);
    }

    pub(super) fn set(&mut self, done: u64) {
        self.done = done;
        let step = PROGRESS_STEP_BYTES.max(self.total / 100);
        if self.done >= self.told.saturating_add(step) || self.done == self.total {
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.told = self.done;
        (self.progress)(self.done, self.total);
    }
}
