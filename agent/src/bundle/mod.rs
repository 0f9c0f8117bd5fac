//! From a desired bundle to a slot that holds it whole: receive → verify → stage.
//!
//! * [`receive`]: one call does it all, and may be repeated after any cut.
//! * [`verify`]: the device's trust on disk and the TUF client cycle over the network.
//! * [`stage`]: slots, written from verified manifests alone and checked again before they run.

pub mod receive;
pub mod stage;
pub mod verify;

pub use receive::{Receiver, Staged, host_facts};
pub use stage::StagedInfo;
pub use verify::{MetadataFolder, MetadataSource, TrustStore};

use crate::files::FileError;
use crate::http::HttpError;
use dunlin_protocol::report::Failure;
use dunlin_protocol::trust::{DelegatedFloorError, Role, RoleName, SelectionError, TrustError};

/// Code of a failure for want of disk space.
const DISK_FULL: &str = "disk_full";

/// What a failed update means for whoever asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Metadata, bundle or the device's capabilities forbid it; trying again changes nothing.
    Refused,
    /// The device cannot do it now (disk full, damaged state): someone has to look.
    Failed,
    /// The network or the server: try again later, with backoff and jitter.
    Transient,
}

/// Why a bundle is not on the device. What served before still does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} ({code})")]
pub struct UpdateError {
    /// What it means.
    pub kind: Kind,
    /// Short and stable, such as `threshold`, `hash`, `below_floor`, `disk_full`.
    pub code: &'static str,
    /// What, where, expected and got.
    pub detail: String,
}

impl UpdateError {
    pub(crate) fn refused(code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: Kind::Refused,
            code,
            detail: detail.into(),
        }
    }

    /// Whether it failed for want of disk space.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        self.code == DISK_FULL
    }

    pub(crate) fn failed(code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: Kind::Failed,
            ..Self::refused(code, detail)
        }
    }

    /// As reports carry it.
    #[must_use]
    pub fn to_failure(&self) -> Failure {
        Failure::new(self.code, &self.detail)
    }
}

impl From<TrustError> for UpdateError {
    fn from(error: TrustError) -> Self {
        let kind = match error {
            // Signed by the server every few hours: it may do so again soon.
            TrustError::Expired {
                role: RoleName::Top(Role::Timestamp | Role::Snapshot),
                ..
            } => Kind::Transient,
            _ => Kind::Refused,
        };
        Self {
            kind,
            ..Self::refused(on_the_wire(error.code()), error.to_string())
        }
    }
}

impl From<SelectionError> for UpdateError {
    fn from(error: SelectionError) -> Self {
        Self::refused(on_the_wire(error.code()), error.to_string())
    }
}

impl From<DelegatedFloorError> for UpdateError {
    fn from(error: DelegatedFloorError) -> Self {
        match error {
            DelegatedFloorError::Trust(error) => error.into(),
            DelegatedFloorError::Selection(error) => error.into(),
        }
    }
}

impl From<FileError> for UpdateError {
    fn from(error: FileError) -> Self {
        let code = if error.is_disk_full() {
            DISK_FULL
        } else {
            "file"
        };
        Self::failed(code, error.to_string())
    }
}

impl From<HttpError> for UpdateError {
    fn from(error: HttpError) -> Self {
        let kind = match error {
            // More bytes than are signed: no honest server's doing.
            HttpError::TooLarge { .. } => Kind::Refused,
            HttpError::Url { .. } => Kind::Failed,
            _ => Kind::Transient,
        };
        Self {
            kind,
            code: error.code(),
            detail: error.to_string(),
        }
    }
}

/// Reports spell codes with underscores.
fn on_the_wire(code: &'static str) -> &'static str {
    match code {
        "not-json" => "not_json",
        "not-canonical" => "not_canonical",
        "too-large" => "too_large",
        "wrong-type" => "wrong_type",
        "spec-version" => "spec_version",
        "bad-field" => "bad_field",
        "duplicate-signature" => "duplicate_signature",
        "root-chain" => "root_chain",
        "too-many-roots" => "too_many_roots",
        "missing-meta" => "missing_meta",
        "out-of-order" => "out_of_order",
        "keys-rotated" => "keys_rotated",
        "unknown-target" => "unknown_target",
        "too-many-delegations" => "too_many_delegations",
        "too-many-paths" => "too_many_paths",
        "wrong-family" => "wrong_family",
        "bad-key" => "bad_key",
        "bad-manifest" => "bad_manifest",
        "below-floor" => "below_floor",
        "wrong-hardware" => "hardware",
        "missing-custom" => "missing_custom",
        other => other,
    }
}
