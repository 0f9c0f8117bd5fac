//! Every reason for which metadata or a target is refused.

use jiff::Timestamp;

use super::{Role, RoleName};
use crate::id::{Digest, Family};

/// Why metadata, or a target it lists, is not trusted. Nothing changes when one is returned.
///
/// [`TrustError::code`] is stable and meant for reports and filters; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// Not JSON that can be read in exactly one way.
    #[error("metadata is not usable JSON: {reason}")]
    NotJson {
        /// The parser's words, with line and column.
        reason: String,
    },
    /// A number that canonical JSON cannot express.
    #[error("number {number} has no canonical form: expected a 64-bit integer")]
    NotCanonical {
        /// The number as written.
        number: String,
    },
    /// More bytes than any honest file has (endless data).
    #[error("{what}: {got} bytes, but at most {max} are accepted")]
    TooLarge {
        /// Role or file.
        what: String,
        /// Limit in bytes.
        max: u64,
        /// Bytes offered.
        got: u64,
    },
    /// Metadata of another role than asked for.
    #[error("expected {expected} metadata, but `_type` says {got:?}")]
    WrongType {
        /// Role asked for.
        expected: Role,
        /// What the file says.
        got: String,
    },
    /// Written for another major version of the TUF specification.
    #[error("{role}: spec_version {got:?} is not understood, expected 1.x")]
    SpecVersion {
        /// Role of the file.
        role: Role,
        /// What the file says.
        got: String,
    },
    /// A field is missing or malformed.
    #[error("metadata field {at}: expected {expected}, got {got}")]
    BadField {
        /// Path of the field, such as `root.roles.timestamp.threshold`.
        at: String,
        /// What belongs there.
        expected: &'static str,
        /// What is there, cut short.
        got: String,
    },
    /// Two signatures claim the same key id.
    #[error("key id {keyid} signs twice; every key id may appear once under `signatures`")]
    DuplicateSignature {
        /// The key id, cut short.
        keyid: String,
    },
    /// Too few distinct keys of the role made a valid signature.
    #[error(
        "{role} version {version} has valid signatures of {got} of the {needed} distinct keys that {delegator} version {delegator_version} demands"
    )]
    Threshold {
        /// Role of the file.
        role: RoleName,
        /// Version of the file.
        version: u64,
        /// Role whose metadata names the keys: root, or a targets role that delegates.
        delegator: RoleName,
        /// Version of that metadata.
        delegator_version: u64,
        /// Distinct keys needed.
        needed: u64,
        /// Distinct keys found.
        got: u64,
    },
    /// A root that is not the next one.
    #[error("root version {got} offered, but the next one must be version {expected}")]
    NotNextRoot {
        /// Trusted version plus one.
        expected: u64,
        /// Version offered.
        got: u64,
    },
    /// More root files in one update than anyone rotates honestly.
    #[error("more than {max} new root versions in one update")]
    TooManyRoots {
        /// Limit for one update.
        max: u64,
    },
    /// A version lower than one already trusted.
    #[error("{what} goes back to version {got}; version {trusted} is already trusted")]
    Rollback {
        /// File whose version went back.
        what: String,
        /// Version already trusted.
        trusted: u64,
        /// Version offered.
        got: u64,
    },
    /// No longer valid: replayed on purpose (freeze), or not renewed in time.
    #[error("{role} version {version} expired at {expired_at}; this update runs at {now}")]
    Expired {
        /// Role of the file.
        role: RoleName,
        /// Version of the file.
        version: u64,
        /// End of validity.
        expired_at: Timestamp,
        /// The update's fixed time.
        now: Timestamp,
    },
    /// Another number of bytes than signed.
    #[error("{what}: {got} bytes, but {expected} are signed")]
    LengthMismatch {
        /// File.
        what: String,
        /// Signed length in bytes.
        expected: u64,
        /// Bytes offered.
        got: u64,
    },
    /// Other content than signed.
    #[error("{what}: SHA-256 is {got}, but {expected} is signed")]
    HashMismatch {
        /// File.
        what: String,
        /// Signed digest.
        expected: Digest,
        /// Digest of what was offered.
        got: Digest,
    },
    /// Other content than signed, by its SHA-512.
    #[error("{what}: SHA-512 is {got}, but {expected} is signed")]
    Sha512Mismatch {
        /// File.
        what: String,
        /// Signed digest.
        expected: String,
        /// Digest of what was offered.
        got: String,
    },
    /// Another version than the metadata above it names (mix-and-match).
    #[error("{role}: version {got} offered, but version {expected} is listed for this update")]
    VersionMismatch {
        /// Role of the file.
        role: RoleName,
        /// Version listed in timestamp or snapshot.
        expected: u64,
        /// Version offered.
        got: u64,
    },
    /// The snapshot does not list a file that it must.
    #[error("snapshot version {version} does not list {file}")]
    MissingMeta {
        /// Version of the snapshot.
        version: u64,
        /// Name of the missing file.
        file: String,
    },
    /// A step was taken before the one it rests on.
    #[error("{step} is not possible now: {needs}")]
    OutOfOrder {
        /// Step attempted.
        step: &'static str,
        /// What must come first.
        needs: &'static str,
    },
    /// A stored file from before the online keys changed (fast-forward recovery).
    #[error(
        "stored {role} is dropped: root version {root_version} withdrew keys of timestamp or snapshot"
    )]
    OnlineKeysRotated {
        /// Role of the stored file.
        role: Role,
        /// Newest root version.
        root_version: u64,
    },
    /// No signed target of this name, neither in targets nor in a role that may sign it.
    #[error(
        "no target {path:?} is listed in targets version {version} or in the {delegated} delegated roles that may list it"
    )]
    UnknownTarget {
        /// Name asked for.
        path: String,
        /// Version of targets.
        version: u64,
        /// Delegated roles searched.
        delegated: usize,
    },
    /// The search for a target leads through more delegated roles than anyone sets up honestly.
    #[error("target {path:?} is not found in the first {max} delegated roles that may list it")]
    TooManyDelegations {
        /// Name asked for.
        path: String,
        /// Most delegated roles searched for one target.
        max: usize,
    },
    /// A private or public key that cannot be used.
    #[error("key is not usable: {reason}")]
    BadKey {
        /// Why; never any secret.
        reason: String,
    },
    /// The bytes are the signed ones, but are no manifest.
    #[error("{path}: signed, but not a manifest: {reason}")]
    BadManifest {
        /// Target's name.
        path: String,
        /// Why.
        reason: String,
    },
}

impl TrustError {
    /// A short, stable code for reports, metrics and filters.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotJson { .. } => "not-json",
            Self::NotCanonical { .. } => "not-canonical",
            Self::TooLarge { .. } => "too-large",
            Self::WrongType { .. } => "wrong-type",
            Self::SpecVersion { .. } => "spec-version",
            Self::BadField { .. } => "bad-field",
            Self::DuplicateSignature { .. } => "duplicate-signature",
            Self::Threshold { .. } => "threshold",
            Self::NotNextRoot { .. } => "root-chain",
            Self::TooManyRoots { .. } => "too-many-roots",
            Self::Rollback { .. } => "rollback",
            Self::Expired { .. } => "expired",
            Self::LengthMismatch { .. } => "length",
            Self::HashMismatch { .. } | Self::Sha512Mismatch { .. } => "hash",
            Self::VersionMismatch { .. } => "version",
            Self::MissingMeta { .. } => "missing-meta",
            Self::OutOfOrder { .. } => "out-of-order",
            Self::OnlineKeysRotated { .. } => "keys-rotated",
            Self::UnknownTarget { .. } => "unknown-target",
            Self::TooManyDelegations { .. } => "too-many-delegations",
            Self::BadKey { .. } => "bad-key",
            Self::BadManifest { .. } => "bad-manifest",
        }
    }
}

/// Why a device does not take a target although its signatures are good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectionError {
    /// Older than the key holders still allow.
    #[error("{family} version {version} is below the rollback floor {floor}")]
    BelowFloor {
        /// Model family.
        family: Family,
        /// Version offered.
        version: u64,
        /// Lowest version allowed.
        floor: u64,
    },
    /// Made for other hardware.
    #[error("target is for hardware {wants:?}, this device is {has:?}")]
    WrongHardware {
        /// What the target names.
        wants: Vec<String>,
        /// What the device is.
        has: String,
    },
    /// `custom.dunlin` is missing or malformed: a target without it is never taken.
    #[error("target {path:?}: custom.dunlin is not usable: {reason}")]
    MissingCustom {
        /// Target's name.
        path: String,
        /// What is missing or malformed.
        reason: String,
    },
    /// A delegated role signed a target whose family is not the one that its path names.
    #[error(
        "target {path:?} is signed by a delegated role, as family {family}: its path must begin with \"{family}/\""
    )]
    WrongFamily {
        /// Target's name.
        path: String,
        /// Family that `custom.dunlin` names.
        family: Family,
    },
    /// Checking the rollback floors of a delegated role would take too long.
    #[error(
        "delegated role {role:?} lists {entries} targets under {patterns} paths: too many to check"
    )]
    TooManyPaths {
        /// Name of the role.
        role: String,
        /// Targets of the family that it lists.
        entries: usize,
        /// Paths and hash prefixes of the delegations that lead to it.
        patterns: usize,
    },
}

impl SelectionError {
    /// A short, stable code for reports, metrics and filters.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::BelowFloor { .. } => "below-floor",
            Self::WrongHardware { .. } => "wrong-hardware",
            Self::MissingCustom { .. } => "missing-custom",
            Self::WrongFamily { .. } => "wrong-family",
            Self::TooManyPaths { .. } => "too-many-paths",
        }
    }
}
