//! Root metadata: the keys of every role, and the threshold of unique keys.

use ed25519_dalek::{Signature as Ed25519Signature, VerifyingKey};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

use super::TrustError;
use super::canonical::canonical;
use super::field::Field;
use super::metadata::{Envelope, Metadata, Role, read_header};
use crate::id::Digest;

/// A public key as root lists it. Kinds unknown here are kept; they verify nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    json: Value,
    ed25519: Option<VerifyingKey>,
}

impl Key {
    /// An Ed25519 key.
    #[must_use]
    pub fn ed25519(public: VerifyingKey) -> Self {
        let json = json!({
            "keytype": "ed25519",
            "scheme": "ed25519",
            "keyval": { "public": hex::encode(public.as_bytes()) },
        });
        let ed25519 = Some(public);
        Self { json, ed25519 }
    }

    /// Reads a key as root lists it.
    ///
    /// # Errors
    /// [`TrustError::BadField`] if `keytype`, `scheme` or `keyval` is missing. A key of an unknown
    /// kind, or one that is no point of the curve, is no error: it verifies nothing.
    pub fn from_json(json: &Value) -> Result<Self, TrustError> {
        Self::read(&Field::new(json, "key"))
    }

    fn read(at: &Field<'_>) -> Result<Self, TrustError> {
        let kind = at.required("keytype")?.text()?;
        let scheme = at.required("scheme")?.text()?;
        let keyval = at.required("keyval")?;
        keyval.object()?;
        let ed25519 = match (kind, scheme) {
            ("ed25519", "ed25519") => {
                let mut raw = [0_u8; 32];
                let text = keyval.required("public")?.text()?;
                let decoded = hex::decode_to_slice(text, &mut raw).ok();
                decoded.and_then(|()| VerifyingKey::from_bytes(&raw).ok())
            }
            _ => None,
        };
        let json = at.value().clone();
        Ok(Self { json, ed25519 })
    }

    /// The key as root lists it.
    #[must_use]
    pub fn to_json(&self) -> &Value {
        &self.json
    }

    /// The key's id: SHA-256 of the canonical JSON of the key, hexadecimal.
    ///
    /// # Errors
    /// [`TrustError::NotCanonical`], never for a key that was parsed from a metadata file.
    pub fn keyid(&self) -> Result<String, TrustError> {
        Ok(Digest::of(&canonical(&self.json)?).to_string())
    }

    /// The Ed25519 public key, if it is one.
    #[must_use]
    pub fn as_ed25519(&self) -> Option<&VerifyingKey> {
        self.ed25519.as_ref()
    }

    /// What makes two keys the same key, whatever their ids and other fields are.
    pub(super) fn identity(&self) -> Vec<u8> {
        match &self.ed25519 {
            Some(key) => key.as_bytes().to_vec(),
            None => self.json.to_string().into_bytes(),
        }
    }
}

/// Who signs for a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleKeys {
    /// Ids of the keys.
    pub keyids: BTreeSet<String>,
    /// Distinct keys that must sign, at least 1.
    pub threshold: u64,
}

impl RoleKeys {
    fn read(at: &Field<'_>) -> Result<Self, TrustError> {
        let list = at.required("keyids")?;
        let mut keyids = BTreeSet::new();
        for item in list.items()? {
            if !keyids.insert(item.text()?.to_owned()) {
                return Err(item.bad("a key id not listed before"));
            }
        }
        Ok(Self {
            keyids,
            threshold: at.required("threshold")?.positive()?,
        })
    }
}

/// Root: the keys of every role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootMetadata {
    /// Version, at least 1.
    pub version: u64,
    /// End of validity.
    pub expires: Timestamp,
    /// Whether file names carry versions and hashes.
    pub consistent_snapshot: bool,
    /// Every key by its id. Ids are names only: what counts are the keys themselves.
    pub keys: BTreeMap<String, Key>,
    /// All four top-level roles.
    pub roles: BTreeMap<Role, RoleKeys>,
}

impl Metadata for RootMetadata {
    const ROLE: Role = Role::Root;

    fn read(envelope: &Envelope) -> Result<Self, TrustError> {
        let (at, version, expires) = read_header(envelope, Self::ROLE)?;
        let consistent_snapshot = at.optional("consistent_snapshot")?;
        let keys = at.required("keys")?.entries()?.into_iter();
        let keys = keys.map(|(keyid, key)| Ok((keyid.clone(), Key::read(&key)?)));
        let listed = at.required("roles")?;
        let roles = Role::ALL.into_iter();
        let roles = roles.map(|r| Ok((r, RoleKeys::read(&listed.required(r.as_str())?)?)));
        Ok(Self {
            version,
            expires,
            consistent_snapshot: match consistent_snapshot {
                Some(given) => given.flag()?,
                None => false,
            },
            keys: keys.collect::<Result<_, TrustError>>()?,
            roles: roles.collect::<Result<_, TrustError>>()?,
        })
    }
    fn version(&self) -> u64 {
        self.version
    }
    fn expires(&self) -> Timestamp {
        self.expires
    }
}

impl RootMetadata {
    /// Checks that enough distinct keys of `role` signed the envelope.
    ///
    /// A signature by an unlisted or unknown kind of key, or one that does not verify, is passed
    /// over. One key under several ids counts once.
    ///
    /// # Errors
    /// [`TrustError::Threshold`]
    pub fn verify(&self, role: Role, envelope: &Envelope) -> Result<(), TrustError> {
        let signed = envelope.signed_bytes()?;
        let signers = self.signers(role, envelope, &signed);
        let needed = self.roles.get(&role).map_or(u64::MAX, |r| r.threshold);
        let got = signers.len() as u64;
        if got >= needed {
            return Ok(());
        }
        Err(TrustError::Threshold {
            role,
            version: envelope.signed()["version"].as_u64().unwrap_or(0),
            root_version: self.version,
            needed,
            got,
        })
    }

    /// The distinct keys of `role` with a valid signature over `signed`.
    fn signers(&self, role: Role, envelope: &Envelope, signed: &[u8]) -> BTreeSet<[u8; 32]> {
        let mut signers = BTreeSet::new();
        let Some(listed) = self.roles.get(&role) else {
            return signers;
        };
        for given in envelope.signatures() {
            let key = self.keys.get(&given.keyid).and_then(Key::as_ed25519);
            let Some(key) = key.filter(|_| listed.keyids.contains(&given.keyid)) else {
                continue;
            };
            let mut raw = [0_u8; 64];
            if hex::decode_to_slice(&given.sig, &mut raw).is_err() {
                continue;
            }
            let signature = Ed25519Signature::from_bytes(&raw);
            if key.verify_strict(signed, &signature).is_ok() {
                signers.insert(key.to_bytes());
            }
        }
        signers
    }

    /// The distinct keys of a role.
    fn identities(&self, role: Role) -> BTreeSet<Vec<u8>> {
        let keyids = self.roles.get(&role).into_iter().flat_map(|r| &r.keyids);
        let keys = keyids.filter_map(|id| self.keys.get(id));
        keys.map(Key::identity).collect()
    }
}

/// Whether `new` withdraws a key of timestamp or snapshot that `old` listed.
///
/// If so, the trusted timestamp and snapshot must be dropped: whoever held the withdrawn key may
/// have signed versions so high that honest ones would never reach them (fast-forward). A key that
/// is only added takes no trust away, so that the protection against rollback stays.
#[must_use]
pub fn rotated_online_keys(old: &RootMetadata, new: &RootMetadata) -> bool {
    [Role::Timestamp, Role::Snapshot]
        .into_iter()
        .any(|role| !old.identities(role).is_subset(&new.identities(role)))
}
