//! Why something is not published.

use crate::blobs::BlobError;
use crate::files::FileError;
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::trust::{Role, TrustError};

/// Why something is not published.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// A file cannot be read or written.
    #[error("repository: {0}")]
    File(#[from] FileError),
    /// The metadata are not trusted.
    #[error("{what}: {source}")]
    Trust {
        /// Which metadata.
        what: &'static str,
        /// Why.
        source: TrustError,
    },
    /// No root was ever set.
    #[error(
        "no trust root is set: upload root.json first (dunlin keys init, then dunlin keys upload-root)"
    )]
    NoRoot,
    /// No targets were ever published.
    #[error("nothing is published yet")]
    NothingPublished,
    /// The root does not let this server sign.
    #[error(
        "root version {version} does not list this server's {role} key {keyid} with threshold 1: devices would refuse everything it signs; add the keys that GET /api/v1/fleet shows under online_keys and sign again"
    )]
    NotOurKey {
        /// Version of the root.
        version: u64,
        /// The role.
        role: Role,
        /// This server's key.
        keyid: String,
    },
    /// Another root of that version, or an older one.
    #[error("root version {got}: version {trusted} is set already; the next one must be version {}", trusted + 1)]
    RootVersion {
        /// Newest root here.
        trusted: u64,
        /// Version offered.
        got: u64,
    },
    /// Not above what is published.
    #[error(
        "{role} version {got}: version {published} is published already; raise the version and sign again"
    )]
    TargetsVersion {
        /// Whose list.
        role: String,
        /// Published.
        published: u64,
        /// Offered.
        got: u64,
    },
    /// A listed target without its manifest.
    #[error(
        "target {path}: its manifest (SHA-256 {sha256}) was neither sent along nor published before"
    )]
    ManifestMissing {
        /// The target.
        path: String,
        /// Its digest.
        sha256: Digest,
    },
    /// A manifest that no target lists.
    #[error("a manifest with SHA-256 {0} was sent along, but no target lists it")]
    ManifestUnlisted(Digest),
    /// Blobs that are named and not here.
    #[error("{} blobs are missing, upload them first: {}", .0.len(), .0.join(", "))]
    BlobsMissing(Vec<String>),
    /// A list by a role to which nobody delegates.
    #[error(
        "role {role}: no published targets delegate to it: publish the delegation first (dunlin keys delegate, then dunlin bundle publish)"
    )]
    NotDelegated {
        /// The role.
        role: String,
    },
    /// A target that devices would not find, or not take, from this role.
    #[error("role {role} lists {path}, but {problem}: devices would refuse it")]
    OutOfScope {
        /// The role.
        role: String,
        /// The target.
        path: String,
        /// Why not.
        problem: String,
    },
    /// Two bundles of one version of a family.
    #[error(transparent)]
    VersionTaken(Box<VersionTaken>),
    /// Nothing to publish.
    #[error("neither targets nor delegated metadata were sent")]
    Empty,
    /// The system gives no random numbers.
    #[error("the system's random generator failed: {0}")]
    Random(String),
    /// The blob store failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

/// Two bundles of one version of a family.
#[derive(Debug, thiserror::Error)]
#[error(
    "role {role} lists {path} as version {version} of family {family}, but role {other_role} lists {other_path} as that: raise the version and sign again"
)]
pub struct VersionTaken {
    /// The role whose list was sent.
    pub role: String,
    /// Its target.
    pub path: String,
    /// The family of both.
    pub family: Family,
    /// The version of both.
    pub version: u64,
    /// The role that lists another bundle.
    pub other_role: String,
    /// That one's target.
    pub other_path: String,
}

pub(super) fn trust(what: &'static str) -> impl Fn(TrustError) -> RepositoryError {
    move |source| RepositoryError::Trust { what, source }
}

pub(super) type Result<T, E = RepositoryError> = std::result::Result<T, E>;
