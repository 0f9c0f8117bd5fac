//! Which bundles a device may trust: TUF metadata (specification 1.0.34), in the format that
//! python-tuf and its relatives read and write.
//!
//! * [`canonical`]: JSON read without ambiguity and written in one form.
//! * [`role`], [`metadata`], [`targets`], [`root`]: the files, their names and their fields.
//! * [`key`]: the kinds of keys; the threshold of unique keys. [`hashes`]: SHA-256 and SHA-512.
//! * [`delegation`], [`pattern`]: who else may speak for which targets.
//! * [`verify`]: the client workflow, step by step, and [`Verified`], which only it can make.
//! * [`select`]: of what is signed, what this device may install.
//! * [`sign`]: keys, signatures and new metadata.
//!
//! Whoever holds the online keys (timestamp, snapshot) alone can delay updates, or choose among
//! versions that the offline keys (root, targets) still list; they can forge none.

pub mod canonical;
pub mod delegation;
mod error;
mod field;
pub mod hashes;
pub mod key;
pub mod metadata;
pub mod pattern;
pub mod role;
pub mod root;
pub mod select;
pub mod sign;
mod signature;
pub mod targets;
#[cfg(test)]
mod tests;
pub mod verify;

pub use delegation::{DelegatedRole, DelegatedRoles, Delegations, PathScope, SuccinctRoles};
pub use error::{SelectionError, TrustError};
pub use hashes::{Hashes, Sha512Digest};
pub use key::{Key, RoleKeys};
pub use metadata::{Envelope, MetaFile, Metadata, Signature, SnapshotMetadata, TimestampMetadata};
pub use pattern::PathPattern;
pub use role::{Role, RoleName, percent_encoded, percent_encoded_path};
pub use root::{RootMetadata, rotated_online_keys};
pub use select::{
    DelegatedFloorError, VerifiedTarget, check_target, highest_floor, raise_delegated_floors,
    raise_floors,
};
pub use sign::{
    SecretPem, SigningKey, add_signature, new_delegating_targets, new_root, new_snapshot,
    new_targets, new_timestamp, sign_envelope,
};
pub use targets::{TargetCustom, TargetEntry, TargetsMetadata};
pub use verify::{
    DelegatedFile, FileRequest, FoundTarget, Freshness, Lookup, OnlineKeys, TrustedSet, Verified,
};

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
/// Most delegated roles that the search for one target looks into.
pub const DELEGATIONS_MAX: usize = 32;
/// Most bytes of delegated metadata held in one update, over all its searches.
pub const DELEGATED_METADATA_MAX_BYTES: u64 = 32_000_000;
