//! Reference profiles of published bundles, so that what is summed up here is judged as everywhere.

use super::{BundleRow, Result, Store};
use crate::blobs::Blobs;
use crate::drift::plausible;
use crate::drift::query::{Reference, pool, reference_if_any};
use dunlin_protocol::id::Digest;
use dunlin_protocol::telemetry::Window;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Profiles kept in memory; beyond that all are read anew.
const KEPT_MAX: usize = 64;

/// Of bundles by their digests: version, and profile if there is one.
type Profiles = BTreeMap<Digest, (u64, Option<Arc<Reference>>)>;

/// Profiles as they are needed.
#[derive(Debug, Default)]
pub(super) struct References {
    blobs: OnceLock<Blobs>,
    known: Mutex<Profiles>,
}

/// What is known of a bundle's profile.
#[derive(Debug, Clone)]
pub(super) enum Known {
    /// It was never published here, or its profile cannot be read.
    Nothing,
    /// Its version, and its profile if it has one.
    Published(u64, Option<Arc<Reference>>),
}

impl Known {
    /// Whether a window of this bundle is sound, whenever it was; `was_judged`: it is a sum of such that
    /// were judged before.
    pub(super) fn is_sound(&self, window: &Window, was_judged: bool) -> bool {
        match self {
            Self::Nothing => was_judged || plausible::numbers(window).is_ok(),
            Self::Published(version, reference) => {
                window.version == *version
                    && pool::contents(window, was_judged, reference.as_deref()).is_ok()
            }
        }
    }
}

impl Store {
    /// Where the profiles of published bundles are; said once. Without it, windows are judged by their
    /// own numbers alone.
    pub fn read_profiles_from(&self, blobs: Blobs) {
        // Said twice, it is the same folder.
        let _ = self.references.blobs.set(blobs);
    }

    /// What is known of the profile of a bundle.
    pub(super) async fn known(&self, bundle: &Digest) -> Result<Known> {
        let Some(blobs) = self.references.blobs.get() else {
            return Ok(Known::Nothing);
        };
        if let Some((version, reference)) = self.known_profiles().get(bundle) {
            return Ok(Known::Published(*version, reference.clone()));
        }
        let Some(row) = self.bundle_by_digest(bundle).await? else {
            return Ok(Known::Nothing);
        };
        Ok(self.read(&row, blobs).await)
    }

    async fn read(&self, row: &BundleRow, blobs: &Blobs) -> Known {
        let reference = match reference_if_any(row, blobs).await {
            Ok(reference) => reference.map(Arc::new),
            Err(problem) => {
                tracing::warn!(family = %row.family, version = row.version, problem, "windows are judged without their reference profile: it cannot be read");
                return Known::Nothing;
            }
        };
        let mut known = self.known_profiles();
        if known.len() >= KEPT_MAX {
            known.clear();
        }
        known.insert(row.digest, (row.version, reference.clone()));
        Known::Published(row.version, reference)
    }

    fn known_profiles(&self) -> std::sync::MutexGuard<'_, Profiles> {
        self.references
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
