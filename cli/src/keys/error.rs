//! Why keys cannot be made, read or used.

use super::passphrase::PassphraseError;
use super::pem::PemError;
use crate::files::FileError;
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::{Role, TrustError};
use std::path::PathBuf;

/// Why keys cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file cannot be read or written.
    #[error("{0}")]
    File(#[from] FileError),
    /// There are keys already.
    #[error("{0} already holds keys or root metadata: name another folder; nothing was changed")]
    Exists(PathBuf),
    /// Numbers that make no root.
    #[error(
        "{role}: threshold {threshold} of {keys} keys: expected 1 ≤ threshold ≤ keys ≤ {}",
        super::folder::KEYS_MAX
    )]
    Threshold {
        /// Role.
        role: Role,
        /// Threshold asked for.
        threshold: u32,
        /// Keys asked for.
        keys: u32,
    },
    /// A root that could never sign again.
    #[error(
        "{role}: {threshold} must sign, but {keys} keys are left: add a key, or lower the threshold (--{role}-threshold)"
    )]
    Unreachable {
        /// Role.
        role: Role,
        /// Keys that must sign.
        threshold: u64,
        /// Keys listed.
        keys: usize,
    },
    /// The system gives no random numbers.
    #[error("the system's random generator failed: {0}")]
    Random(String),
    /// No such key.
    #[error("{folder} holds no key {name:?} (expected {name}.pem); it has {found}")]
    NoKey {
        /// Key folder.
        folder: PathBuf,
        /// Name asked for.
        name: String,
        /// Names there.
        found: String,
    },
    /// No root metadata.
    #[error(
        "{0} holds no root metadata (1.root.json): is it the folder of `dunlin keys init` or `dunlin keys combine`?"
    )]
    NoRoot(PathBuf),
    /// A key or metadata file that is not usable.
    #[error("{path}: {error}")]
    Trust {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: TrustError,
    },
    /// A private key that is not usable.
    #[error("{path}: {error}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: PemError,
    },
    /// No passphrase.
    #[error("{0}")]
    Passphrase(#[from] PassphraseError),
    /// Not a public key.
    #[error("{path}: no public key: {problem}")]
    PublicKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A name that is none.
    #[error(
        "name {0:?}: expected 1 to 64 of a-z, A-Z, 0-9, '-', '_', '.', '@', a letter or digit first"
    )]
    Name(String),
    /// Metadata that are none.
    #[error("{0}")]
    Metadata(#[from] TrustError),
    /// Not a request or a signature.
    #[error("{path}: {problem}")]
    Request {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A key whose signature nobody would count.
    #[error(
        "{what}: key {keyid} is not asked to sign it: nobody would count its signature; asked are {asked}"
    )]
    Stranger {
        /// The key.
        keyid: String,
        /// What is to be signed.
        what: String,
        /// Keys that are asked.
        asked: String,
    },
    /// A signature over something else.
    #[error(
        "the signature of {keyid} is over other content (SHA-256 {got}) than this request (SHA-256 {expected}): was the request made anew after it was signed?"
    )]
    OtherContent {
        /// The key.
        keyid: String,
        /// What the request holds.
        expected: Digest,
        /// What was signed.
        got: Digest,
    },
    /// A signature that does not verify.
    #[error("the signature of {keyid} does not verify: the file is damaged or forged")]
    BadSignature {
        /// The key.
        keyid: String,
    },
    /// A request that builds on a root that is not trusted here.
    #[error(
        "{folder} trusts {trusted}, but the request rests on {got}: expected a request made from the newest root; get the missing root files, or ask whoever made the request"
    )]
    OtherRoot {
        /// Folder with the trusted roots.
        folder: PathBuf,
        /// What is trusted there.
        trusted: String,
        /// What the request carries.
        got: String,
    },
    /// The key has that seat.
    #[error("{role} lists {key} already")]
    Seated {
        /// The key.
        key: String,
        /// Role.
        role: Role,
    },
    /// The key has no such seat.
    #[error("{key} has no seat in {role}")]
    NotSeated {
        /// The key.
        key: String,
        /// Role.
        role: String,
    },
    /// No key, or several, of that name.
    #[error(
        "{named:?} names {found} keys of this root, expected one: give a holder's name, or the key id or its first 8 digits or more; it lists {all}"
    )]
    WhichKey {
        /// What was given.
        named: String,
        /// Keys that fit.
        found: usize,
        /// All keys.
        all: String,
    },
    /// Nobody delegates to that role.
    #[error("nobody delegates to role {role:?} in what the request carries")]
    NoDelegation {
        /// The role.
        role: String,
    },
    /// Not the server's online keys.
    #[error(
        "{path}: expected the answer of GET /api/v1/fleet, or {{\"snapshot\":KEY,\"timestamp\":KEY}}: {problem}"
    )]
    ServerKeys {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}
