//! The envelope, what all roles have in common, and the metadata of snapshot and timestamp.
//!
//! The `signed` part is kept as it was received, so that fields unknown here are verified, hashed
//! and written again like all others.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

use super::TrustError;
use super::canonical::{canonical, parse};
use super::field::Field;
use super::hashes::Hashes;
use super::role::{Role, RoleName};

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
    /// The kind of metadata, as in `_type`; for all but targets also the role that signs it.
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

    /// Refuses metadata of `role` that is no longer valid at `now`.
    ///
    /// # Errors
    /// [`TrustError::Expired`]
    fn check_expiry(&self, role: &RoleName, now: Timestamp) -> Result<(), TrustError> {
        if self.expires() > now {
            return Ok(());
        }
        Err(TrustError::Expired {
            role: role.clone(),
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
    /// Hashes of the file, empty if none is listed.
    pub hashes: Hashes,
}

impl MetaFile {
    /// Describes `bytes` in full.
    #[must_use]
    pub fn of(version: u64, bytes: &[u8]) -> Self {
        Self {
            version,
            length: Some(bytes.len() as u64),
            hashes: Hashes::of(bytes),
        }
    }

    fn read(at: &Field<'_>) -> Result<Self, TrustError> {
        let hashes = at.optional("hashes")?;
        Ok(Self {
            version: at.required("version")?.positive()?,
            length: at.optional("length")?.map(|l| l.number()).transpose()?,
            hashes: match hashes {
                Some(listed) => Hashes::read(&listed)?,
                None => Hashes::default(),
            },
        })
    }

    /// As it stands in `meta`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut entry = json!({ "version": self.version });
        if let Some(length) = self.length {
            entry["length"] = Value::from(length);
        }
        if !self.hashes.is_empty() {
            entry["hashes"] = self.hashes.to_json();
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
        self.listed(&Role::Targets.into())
    }

    /// What the snapshot says of the file of a targets role.
    ///
    /// # Errors
    /// [`TrustError::MissingMeta`]
    pub fn listed(&self, role: &RoleName) -> Result<&MetaFile, TrustError> {
        let file = role.listed_name();
        let version = self.version;
        let listed = self.meta.get(&file);
        listed.ok_or(TrustError::MissingMeta { version, file })
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
