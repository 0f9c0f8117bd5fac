//! The hashes that metadata lists of a file.

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha512};
use std::fmt;

use super::TrustError;
use super::field::Field;
use crate::id::Digest;

/// A SHA-512 digest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha512Digest(pub [u8; 64]);

impl Sha512Digest {
    /// The SHA-512 of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha512::digest(bytes).into())
    }
}

impl fmt::Display for Sha512Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha512Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha512Digest({self})")
    }
}

/// The hashes listed of one file: every one that is known here must hold. Other algorithms beside
/// them are passed over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hashes {
    /// SHA-256, if listed.
    pub sha256: Option<Digest>,
    /// SHA-512, if listed.
    pub sha512: Option<Sha512Digest>,
}

impl Hashes {
    /// What Dunlin lists: the SHA-256 of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            sha256: Some(Digest::of(bytes)),
            sha512: None,
        }
    }

    /// Reads `hashes`. Empty if only unknown algorithms are listed: such a file cannot be verified.
    pub(super) fn read_known(at: &Field<'_>) -> Result<Self, TrustError> {
        let sha256 = at.optional("sha256")?.map(|h| h.digest()).transpose()?;
        let sha512 = at.optional("sha512")?.map(|h| h.sha512()).transpose()?;
        Ok(Self { sha256, sha512 })
    }

    /// As [`Self::read_known`], refused if there is no known one.
    pub(super) fn read(at: &Field<'_>) -> Result<Self, TrustError> {
        let hashes = Self::read_known(at)?;
        match hashes.is_empty() {
            true => Err(at.bad("sha256 or sha512")),
            false => Ok(hashes),
        }
    }

    /// As it stands in `hashes`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut listed = Map::new();
        if let Some(sha256) = self.sha256 {
            listed.insert("sha256".to_owned(), sha256.to_string().into());
        }
        if let Some(sha512) = self.sha512 {
            listed.insert("sha512".to_owned(), sha512.to_string().into());
        }
        Value::Object(listed)
    }

    /// Whether no hash is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sha256.is_none() && self.sha512.is_none()
    }

    /// The hash that prefixes the file's name in a repository with consistent snapshots.
    pub(super) fn prefix(&self) -> String {
        match (self.sha256, self.sha512) {
            (Some(sha256), _) => sha256.to_string(),
            (None, Some(sha512)) => sha512.to_string(),
            (None, None) => String::new(),
        }
    }

    fn check(
        &self,
        what: &str,
        sha256: impl FnOnce() -> Digest,
        sha512: impl FnOnce() -> Sha512Digest,
    ) -> Result<(), TrustError> {
        if let Some(expected) = self.sha256 {
            let got = sha256();
            if got != expected {
                let what = what.to_owned();
                return Err(TrustError::HashMismatch {
                    what,
                    expected,
                    got,
                });
            }
        }
        if let Some(expected) = self.sha512 {
            let got = sha512();
            if got != expected {
                return Err(TrustError::Sha512Mismatch {
                    what: what.to_owned(),
                    expected: expected.to_string(),
                    got: got.to_string(),
                });
            }
        }
        Ok(())
    }
}

/// Refuses `bytes` of another length or hash than listed; length first, so that an endless file is
/// never hashed.
pub(super) fn check_bytes(
    what: &str,
    length: Option<u64>,
    hashes: &Hashes,
    bytes: &[u8],
) -> Result<(), TrustError> {
    check_length(what, length, bytes.len() as u64)?;
    hashes.check(what, || Digest::of(bytes), || Sha512Digest::of(bytes))
}

/// Length and hashes of a file that was received earlier.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    length: u64,
    sha256: Digest,
    sha512: Sha512Digest,
}

impl Measured {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            length: bytes.len() as u64,
            sha256: Digest::of(bytes),
            sha512: Sha512Digest::of(bytes),
        }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Refuses a file of another length or hash than listed.
    pub(super) fn check(
        &self,
        what: &str,
        length: Option<u64>,
        hashes: &Hashes,
    ) -> Result<(), TrustError> {
        check_length(what, length, self.length)?;
        hashes.check(what, || self.sha256, || self.sha512)
    }
}

fn check_length(what: &str, listed: Option<u64>, got: u64) -> Result<(), TrustError> {
    let what = what.to_owned();
    match listed {
        Some(max) if got > max => Err(TrustError::TooLarge { what, max, got }),
        Some(expected) if got != expected => Err(TrustError::LengthMismatch {
            what,
            expected,
            got,
        }),
        _ => Ok(()),
    }
}
