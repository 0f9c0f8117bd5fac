//! Which bundles a device may trust: TUF metadata (specification 1.0.34) for the four top-level
//! roles, in the format that python-tuf and its relatives read and write.
//!
//! * [`canonical`]: JSON read without ambiguity and written in one form.
//! * [`metadata`], [`targets`], [`root`]: the files and their fields; the threshold of unique keys.
//! * [`verify`]: the client workflow, step by step, and [`Verified`], which only it can make.
//! * [`select`]: of what is signed, what this device may install.
//! * [`sign`]: keys, signatures and new metadata.
//!
//! Whoever holds the online keys (timestamp, snapshot) alone can delay updates, or choose among
//! versions that the offline keys (root, targets) still list; they can forge none.

pub mod canonical;
mod error;
mod field;
pub mod metadata;
pub mod root;
pub mod select;
pub mod sign;
pub mod targets;
#[cfg(test)]
mod tests;
pub mod verify;

pub use error::{SelectionError, TrustError};
pub use metadata::{
    Envelope, MetaFile, Metadata, Role, Signature, SnapshotMetadata, TimestampMetadata,
};
pub use root::{Key, RoleKeys, RootMetadata, rotated_online_keys};
pub use select::{VerifiedTarget, check_target, highest_floor, raise_floors};
pub use sign::{
    SecretPem, SigningKey, add_signature, new_root, new_snapshot, new_targets, new_timestamp,
    sign_envelope,
};
pub use targets::{TargetCustom, TargetEntry, TargetsMetadata};
pub use verify::{FileRequest, Freshness, OnlineKeys, TrustedSet, Verified};

/// Largest root file accepted, in bytes.
pub const ROOT_MAX_BYTES: usize = 512_000;
/// Largest timestamp file accepted, in bytes.
pub const TIMESTAMP_MAX_BYTES: usize = 16_384;
/// Largest snapshot file accepted, in bytes.
pub const SNAPSHOT_MAX_BYTES: usize = 2_000_000;
/// Largest targets file accepted, in bytes.
pub const TARGETS_MAX_BYTES: usize = 10_000_000;
/// Most new root versions taken in one update.
pub const ROOT_ROTATIONS_MAX: u64 = 256;
