//! The envelope, what all roles have in common, and the metadata of snapshot and timestamp.
//!
//! The `signed` part is kept as it was received, so that fields unknown here are verified, hashed
//! and written again like all others.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::canonical::{canonical, parse};
use super::field::Field;
use super::{
    ROOT_MAX_BYTES, SNAPSHOT_MAX_BYTES, TARGETS_MAX_BYTES, TIMESTAMP_MAX_BYTES, TrustError,
};
use crate::id::Digest;

/// A top-level role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Names the keys of all roles. Offline.
    Root,
    /// Lists what may be installed. Offline.
    Targets,
    /// Ties the versions of all metadata together. Online.
    Snapshot,
    /// Says which snapshot is the newest. Online.
    Timestamp,
}

impl Role {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Root, Self::Targets, Self::Snapshot, Self::Timestamp];

    /// The role's name as in `_type` and in root's `roles`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Targets => "targets",
            Self::Snapshot => "snapshot",
            Self::Timestamp => "timestamp",
        }
    }

    /// Largest file accepted, in bytes.
    #[must_use]
    pub fn max_bytes(self) -> usize {
        match self {
            Self::Root => ROOT_MAX_BYTES,
            Self::Targets => TARGETS_MAX_BYTES,
            Self::Snapshot => SNAPSHOT_MAX_BYTES,
            Self::Timestamp => TIMESTAMP_MAX_BYTES,
        }
    }

    /// The file's name in a repository: `3.root.json`, `timestamp.json`, and `7.targets.json`
    /// or `targets.json` as the root's `consistent_snapshot` says.
    #[must_use]
    pub fn file_name(self, version: u64, consistent_snapshot: bool) -> String {
        match self {
            Self::Timestamp => "timestamp.json".to_owned(),
            Self::Targets | Self::Snapshot if !consistent_snapshot => format!("{self}.json"),
            _ => format!("{version}.{self}.json"),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One entry of `signatures`, not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Id of the key that is said to have signed.
    pub keyid: String,
    /// Hexadecimal signature; whatever is no signature simply does not verify.
    pub sig: String,
    other: Map<String, Value>,
}

impl Signature {
    pub(super) fn new(keyid: String, sig: String) -> Self {
        let other = Map::new();
        Self { keyid, sig, other }
    }
}

/// A metadata file: the signed part as received, and its signatures. Nothing in it is verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    signed: Value,
    signatures: Vec<Signature>,
    other: Map<String, Value>,
}

impl Envelope {
    pub(super) fn unsigned(signed: Value) -> Self {
        Self {
            signed,
            signatures: Vec::new(),
            other: Map::new(),
        }
    }

    /// Reads a metadata file of at most `max` bytes.
    ///
    /// # Errors
    /// Too large, not JSON with one meaning, not an envelope, or a key id that signs twice.
    pub fn parse(bytes: &[u8], max: usize) -> Result<Self, TrustError> {
        if bytes.len() > max {
            return Err(TrustError::TooLarge {
                what: "metadata file".to_owned(),
                max: max as u64,
                got: bytes.len() as u64,
            });
        }
        let file = parse(bytes)?;
        let at = Field::new(&file, "file");
        at.required("signed")?.object()?;
        let mut seen = BTreeSet::new();
        let mut signatures = Vec::new();
        for item in at.required("signatures")?.items()? {
            let keyid = item.required("keyid")?.text()?.to_owned();
            if !seen.insert(keyid.clone()) {
                let keyid = keyid.chars().take(80).collect();
                return Err(TrustError::DuplicateSignature { keyid });
            }
            let sig = item.required("sig")?.text()?.to_owned();
            let mut other = item.object()?.clone();
            other.retain(|key, _| key != "keyid" && key != "sig");
            signatures.push(Signature { keyid, sig, other });
        }
        let Value::Object(mut other) = file else {
            return Err(at.bad("an object"));
        };
        let signed = other.remove("signed").unwrap_or_default();
        other.remove("signatures");
        Ok(Self {
            signed,
            signatures,
            other,
        })
    }

    /// The signed part as received.
    #[must_use]
    pub fn signed(&self) -> &Value {
        &self.signed
    }

    /// The signatures as received, one a key id, none verified.
    #[must_use]
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Puts `signature` in the place of an earlier one of the same key id.
    pub(super) fn replace_signature(&mut self, signature: Signature) {
        self.signatures.retain(|s| s.keyid != signature.keyid);
        self.signatures.push(signature);
    }

    /// The bytes that are signed: canonical JSON of the signed part.
    ///
    /// # Errors
    /// [`TrustError::NotCanonical`], never for an envelope that was parsed.
    pub fn signed_bytes(&self) -> Result<Vec<u8>, TrustError> {
        canonical(&self.signed)
    }

    /// The role that the file says it has.
    ///
    /// # Errors
    /// [`TrustError::BadField`] if `_type` is missing or names no top-level role.
    pub fn role(&self) -> Result<Role, TrustError> {
        let at = Field::new(&self.signed, "signed").required("_type")?;
        let name = at.text()?;
        let role = Role::ALL.into_iter().find(|r| r.as_str() == name);
        role.ok_or_else(|| at.bad("root, targets, snapshot or timestamp"))
    }

    /// The file's bytes, as one line of JSON. Lengths and hashes are over exactly these.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let signatures = self.signatures.iter().map(|s| {
            let mut entry = s.other.clone();
            entry.insert("keyid".to_owned(), Value::from(s.keyid.as_str()));
            entry.insert("sig".to_owned(), Value::from(s.sig.as_str()));
            Value::Object(entry)
        });
        let mut file = self.other.clone();
        file.insert("signatures".to_owned(), signatures.collect());
        file.insert("signed".to_owned(), self.signed.clone());
        Value::Object(file).to_string().into_bytes()
    }
}

/// What all four kinds of metadata have.
pub trait Metadata: Sized {
    /// The role that signs it.
    const ROLE: Role;

    /// Reads the typed fields; verifies no signature.
    ///
    /// # Errors
    /// Another `_type`, another major version of the specification, a missing or malformed field.
    fn read(envelope: &Envelope) -> Result<Self, TrustError>;

    /// Version, at least 1.
    fn version(&self) -> u64;

    /// First instant at which the metadata is no longer valid.
    fn expires(&self) -> Timestamp;

    /// Refuses metadata that is no longer valid at `now`.
    ///
    /// # Errors
    /// [`TrustError::Expired`]
    fn check_expiry(&self, now: Timestamp) -> Result<(), TrustError> {
        if self.expires() > now {
            return Ok(());
        }
        Err(TrustError::Expired {
            role: Self::ROLE,
            version: self.version(),
            expired_at: self.expires(),
            now,
        })
    }
}

/// Checks what all roles have in common and returns (fields, version, expires).
pub(super) fn read_header(
    envelope: &Envelope,
    role: Role,
) -> Result<(Field<'_>, u64, Timestamp), TrustError> {
    let at = Field::new(envelope.signed(), role.as_str());
    let kind = at.required("_type")?.text()?;
    if kind != role.as_str() {
        return Err(TrustError::WrongType {
            expected: role,
            got: kind.chars().take(80).collect(),
        });
    }
    let spec_version = at.required("spec_version")?.text()?;
    if spec_version.split('.').next() != Some("1") {
        let got = spec_version.chars().take(80).collect();
        return Err(TrustError::SpecVersion { role, got });
    }
    let version = at.required("version")?.positive()?;
    let expires = at.required("expires")?.time()?;
    Ok((at, version, expires))
}

/// What timestamp says of the snapshot, or snapshot of a targets file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaFile {
    /// Version of the file, at least 1.
    pub version: u64,
    /// Exact length in bytes, if listed.
    pub length: Option<u64>,
    /// SHA-256 of the file, if listed.
    pub sha256: Option<Digest>,
}

impl MetaFile {
    /// Describes `bytes` in full.
    #[must_use]
    pub fn of(version: u64, bytes: &[u8]) -> Self {
        Self {
            version,
            length: Some(bytes.len() as u64),
            sha256: Some(Digest::of(bytes)),
        }
    }

    fn read(at: &Field<'_>) -> Result<Self, TrustError> {
        let hashes = at.optional("hashes")?;
        Ok(Self {
            version: at.required("version")?.positive()?,
            length: at.optional("length")?.map(|l| l.number()).transpose()?,
            // A file listed by other algorithms only is refused, not taken unhashed.
            sha256: hashes.map(|h| h.required("sha256")?.digest()).transpose()?,
        })
    }

    /// As it stands in `meta`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut entry = json!({ "version": self.version });
        if let Some(length) = self.length {
            entry["length"] = Value::from(length);
        }
        if let Some(sha256) = self.sha256 {
            entry["hashes"] = json!({ "sha256": sha256.to_string() });
        }
        entry
    }
}

fn read_meta(at: &Field<'_>) -> Result<BTreeMap<String, MetaFile>, TrustError> {
    let entries = at.required("meta")?.entries()?.into_iter();
    entries
        .map(|(name, entry)| Ok((name.clone(), MetaFile::read(&entry)?)))
        .collect()
}

/// Timestamp: which snapshot is the newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimestampMetadata {
    /// Version, at least 1.
    pub version: u64,
    /// End of validity.
    pub expires: Timestamp,
    /// The newest snapshot.
    pub snapshot: MetaFile,
}

impl Metadata for TimestampMetadata {
    const ROLE: Role = Role::Timestamp;

    fn read(envelope: &Envelope) -> Result<Self, TrustError> {
        let (at, version, expires) = read_header(envelope, Self::ROLE)?;
        let snapshot = MetaFile::read(&at.required("meta")?.required("snapshot.json")?)?;
        Ok(Self {
            version,
            expires,
            snapshot,
        })
    }
    fn version(&self) -> u64 {
        self.version
    }
    fn expires(&self) -> Timestamp {
        self.expires
    }
}

/// Snapshot: the versions that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotMetadata {
    /// Version, at least 1.
    pub version: u64,
    /// End of validity.
    pub expires: Timestamp,
    /// Every targets file, by name (`targets.json` among them).
    pub meta: BTreeMap<String, MetaFile>,
}

impl SnapshotMetadata {
    /// What the snapshot says of the top-level targets file.
    ///
    /// # Errors
    /// [`TrustError::MissingMeta`]
    pub fn targets(&self) -> Result<&MetaFile, TrustError> {
        let file = "targets.json";
        self.meta.get(file).ok_or_else(|| TrustError::MissingMeta {
            version: self.version,
            file: file.to_owned(),
        })
    }
}

impl Metadata for SnapshotMetadata {
    const ROLE: Role = Role::Snapshot;

    fn read(envelope: &Envelope) -> Result<Self, TrustError> {
        let (at, version, expires) = read_header(envelope, Self::ROLE)?;
        let read = Self {
            version,
            expires,
            meta: read_meta(&at)?,
        };
        read.targets()?;
        Ok(read)
    }
    fn version(&self) -> u64 {
        self.version
    }
    fn expires(&self) -> Timestamp {
        self.expires
    }
}
