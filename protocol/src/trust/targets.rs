//! Targets metadata: what may be installed, and what the key holders say of it.

use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;

use super::TrustError;
use super::delegation::Delegations;
use super::field::Field;
use super::hashes::Hashes;
use super::metadata::{Envelope, Metadata, read_header};
use super::role::Role;
use crate::id::{Digest, Family};

/// Targets: what may be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetsMetadata {
    /// Version, at least 1.
    pub version: u64,
    /// End of validity.
    pub expires: Timestamp,
    /// Every target by its path.
    pub targets: BTreeMap<String, TargetEntry>,
    /// To whom the role hands on, if to anyone.
    pub delegations: Option<Delegations>,
}

impl Metadata for TargetsMetadata {
    const ROLE: Role = Role::Targets;

    fn read(envelope: &Envelope) -> Result<Self, TrustError> {
        let (at, version, expires) = read_header(envelope, Self::ROLE)?;
        let entries = at.required("targets")?.entries()?.into_iter();
        let targets = entries.map(|(path, entry)| {
            let read = TargetEntry::read(path, &entry)?;
            Ok((path.clone(), read))
        });
        Ok(Self {
            version,
            expires,
            targets: targets.collect::<Result<_, TrustError>>()?,
            delegations: match at.optional("delegations")? {
                Some(given) if !given.value().is_null() => Some(Delegations::read(&given)?),
                _ => None,
            },
        })
    }
    fn version(&self) -> u64 {
        self.version
    }
    fn expires(&self) -> Timestamp {
        self.expires
    }
}

/// One signed target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetEntry {
    /// Name, such as `digits/1/manifest.json`.
    pub path: String,
    /// Exact length in bytes.
    pub length: u64,
    /// Hashes of the content; empty if none is known here, and the target of no use.
    pub hashes: Hashes,
    /// `custom` as received, `null` if there is none.
    pub custom: Value,
}

impl TargetEntry {
    /// Describes `bytes`, with Dunlin's own `custom`.
    #[must_use]
    pub fn of(path: impl Into<String>, bytes: &[u8], custom: &TargetCustom) -> Self {
        Self {
            path: path.into(),
            length: bytes.len() as u64,
            hashes: Hashes::of(bytes),
            custom: json!({ "dunlin": custom.to_json() }),
        }
    }

    fn read(path: &str, at: &Field<'_>) -> Result<Self, TrustError> {
        let custom = at.optional("custom")?;
        Ok(Self {
            path: path.to_owned(),
            length: at.required("length")?.number()?,
            // One target of a later format must not make all others useless.
            hashes: Hashes::read_known(&at.required("hashes")?)?,
            custom: custom.map(|c| c.value().clone()).unwrap_or_default(),
        })
    }

    /// As it stands in `targets`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut entry = json!({
            "length": self.length,
            "hashes": self.hashes.to_json(),
        });
        if !self.custom.is_null() {
            entry["custom"] = self.custom.clone();
        }
        entry
    }

    /// The SHA-256, which is a bundle's digest.
    ///
    /// # Errors
    /// [`TrustError::BadField`] if the target is listed by other hashes only.
    pub fn sha256(&self) -> Result<Digest, TrustError> {
        self.hashes.sha256.ok_or_else(|| TrustError::BadField {
            at: format!("targets.{}.hashes.sha256", self.path),
            expected: "a value",
            got: "nothing".to_owned(),
        })
    }

    /// Refuses a target whose content nobody here could verify.
    pub(super) fn check_verifiable(&self) -> Result<(), TrustError> {
        if !self.hashes.is_empty() {
            return Ok(());
        }
        Err(TrustError::BadField {
            at: format!("targets.{}.hashes", self.path),
            expected: "sha256 or sha512",
            got: "other hashes".to_owned(),
        })
    }

    /// Path of the file in a repository with consistent snapshots: `digits/1/manifest.json` is kept
    /// as `digits/1/<sha256>.manifest.json`, or under its SHA-512 if only that is listed.
    #[must_use]
    pub fn consistent_path(&self) -> String {
        let hash = self.hashes.prefix();
        match self.path.rsplit_once('/') {
            Some((folder, name)) => format!("{folder}/{hash}.{name}"),
            None => format!("{hash}.{}", self.path),
        }
    }
}

/// What the key holders say of a target, in `custom.dunlin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetCustom {
    /// Model family; versions of one family replace each other on a device.
    pub family: Family,
    /// Version within the family.
    pub version: u64,
    /// Hardware the target is for; a device must be one of these.
    pub hardware: Vec<String>,
    /// Lowest version of the family still allowed once this is listed.
    pub rollback_floor: u64,
    /// `model`, `agent` or `firmware`.
    pub kind: String,
}

impl TargetCustom {
    /// Reads `custom.dunlin` of a target. Fields unknown here are passed over.
    ///
    /// # Errors
    /// [`TrustError::BadField`]
    pub fn read(entry: &TargetEntry) -> Result<Self, TrustError> {
        let at = Field::new(&entry.custom, "custom").required("dunlin")?;
        let family = at.required("family")?;
        let hardware = at.required("hardware")?.items()?;
        Ok(Self {
            family: family
                .text()?
                .parse()
                .map_err(|_| family.bad("a model family's name"))?,
            version: at.required("version")?.number()?,
            hardware: hardware
                .iter()
                .map(|h| h.text().map(str::to_owned))
                .collect::<Result<_, _>>()?,
            rollback_floor: at.required("rollback_floor")?.number()?,
            kind: at.required("kind")?.text()?.to_owned(),
        })
    }

    /// As it stands in `custom.dunlin`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "family": self.family.as_str(),
            "version": self.version,
            "hardware": self.hardware,
            "rollback_floor": self.rollback_floor,
            "kind": self.kind,
        })
    }
}
