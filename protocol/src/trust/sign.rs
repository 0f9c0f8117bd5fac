//! Making keys, metadata and signatures. Randomness and the date come from the caller.

use ed25519_dalek::Signer;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;

use super::TrustError;
use super::canonical::canonical;
use super::delegation::Delegations;
use super::key::{Key, RoleKeys};
use super::metadata::{Envelope, MetaFile, Signature};
use super::role::Role;
use super::targets::TargetEntry;

/// The version of the TUF specification that is written.
pub const SPEC_VERSION: &str = "1.0.34";

/// An Ed25519 private key. It is wiped from memory when dropped and never printed.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let public = hex::encode(self.0.verifying_key().as_bytes());
        write!(f, "SigningKey(public {public})")
    }
}

impl SigningKey {
    /// The key of a 32-byte seed, which must come from the system's random generator.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Reads a PKCS#8 PEM (`BEGIN PRIVATE KEY`), version 1 or 2.
    ///
    /// # Errors
    /// [`TrustError::BadKey`], which never tells anything of the content.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, TrustError> {
        match ed25519_dalek::SigningKey::from_pkcs8_pem(pem) {
            Ok(key) => Ok(Self(key)),
            Err(e) => Err(TrustError::BadKey {
                reason: format!("expected an unencrypted Ed25519 key in PKCS#8 PEM: {e}"),
            }),
        }
    }

    /// The key as PKCS#8 PEM, version 1 (RFC 5208), which every OpenSSL reads.
    ///
    /// # Errors
    /// [`TrustError::BadKey`], if the encoder fails; it has no reason to.
    pub fn to_pkcs8_pem(&self) -> Result<SecretPem, TrustError> {
        // Without the public key it is version 1; OpenSSL 3.0 cannot read version 2.
        let bytes = KeypairBytes {
            secret_key: self.0.to_bytes(),
            public_key: None,
        };
        match bytes.to_pkcs8_pem(LineEnding::LF) {
            Ok(pem) => Ok(SecretPem(pem)),
            Err(e) => Err(TrustError::BadKey {
                reason: e.to_string(),
            }),
        }
    }

    /// The public half, as root lists it.
    #[must_use]
    pub fn public_key(&self) -> Key {
        Key::ed25519(self.0.verifying_key())
    }

    /// The key's id.
    ///
    /// # Errors
    /// As [`Key::keyid`].
    pub fn keyid(&self) -> Result<String, TrustError> {
        self.public_key().keyid()
    }

    /// Signs the canonical form of `signed`.
    ///
    /// # Errors
    /// [`TrustError::NotCanonical`] if `signed` holds a number that is not a 64-bit integer.
    pub fn sign(&self, signed: &Value) -> Result<Signature, TrustError> {
        let signature = self.0.sign(&canonical(signed)?);
        Ok(Signature::new(
            self.keyid()?,
            hex::encode(signature.to_bytes()),
        ))
    }
}

/// A private key in PEM; wiped from memory when dropped, not printed by `{:?}`.
pub struct SecretPem(ed25519_dalek::pkcs8::spki::der::zeroize::Zeroizing<String>);

impl SecretPem {
    /// The text. Write it to a file of mode 0600 and nowhere else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretPem(…)")
    }
}

/// Signs `signed` with every key.
///
/// # Errors
/// As [`SigningKey::sign`].
pub fn sign_envelope(signed: Value, keys: &[&SigningKey]) -> Result<Envelope, TrustError> {
    let mut envelope = Envelope::unsigned(signed);
    for key in keys {
        add_signature(&mut envelope, key)?;
    }
    Ok(envelope)
}

/// Adds one more signature, in place of an earlier one by the same key.
///
/// # Errors
/// As [`SigningKey::sign`].
pub fn add_signature(envelope: &mut Envelope, key: &SigningKey) -> Result<(), TrustError> {
    let signature = key.sign(envelope.signed())?;
    envelope.replace_signature(signature);
    Ok(())
}

/// The signed part of a root: each role with its keys and threshold, consistent snapshots on.
///
/// # Errors
/// [`TrustError::BadKey`] if a role is missing, or its threshold is 0 or above its number of
/// distinct keys: such a root could never be replaced.
pub fn new_root(
    version: u64,
    expires: Timestamp,
    roles: &BTreeMap<Role, (Vec<Key>, u64)>,
) -> Result<Value, TrustError> {
    let mut listed_keys = BTreeMap::new();
    let mut listed_roles = Map::new();
    for role in Role::ALL {
        let (keys, threshold) = roles.get(&role).ok_or_else(|| TrustError::BadKey {
            reason: format!("root needs keys for the role {role}"),
        })?;
        let keys = RoleKeys::list(role.as_str(), keys, *threshold, &mut listed_keys)?;
        listed_roles.insert(role.to_string(), keys.to_json());
    }
    let listed_keys = listed_keys.iter();
    let listed_keys: Map<String, Value> = listed_keys
        .map(|(keyid, key)| (keyid.clone(), key.to_json().clone()))
        .collect();
    let mut signed = header(Role::Root, version, expires);
    signed["consistent_snapshot"] = Value::Bool(true);
    signed["keys"] = Value::Object(listed_keys);
    signed["roles"] = Value::Object(listed_roles);
    Ok(signed)
}

/// The signed part of a targets file that delegates nothing, of top-level targets or of a delegated
/// role.
#[must_use]
pub fn new_targets<'a>(
    version: u64,
    expires: Timestamp,
    targets: impl IntoIterator<Item = &'a TargetEntry>,
) -> Value {
    let entries = targets.into_iter();
    let listed: Map<String, Value> = entries.map(|t| (t.path.clone(), t.to_json())).collect();
    let mut signed = header(Role::Targets, version, expires);
    signed["targets"] = Value::Object(listed);
    signed
}

/// As [`new_targets`], for a role that hands on: top-level targets, or a delegated role.
#[must_use]
pub fn new_delegating_targets<'a>(
    version: u64,
    expires: Timestamp,
    targets: impl IntoIterator<Item = &'a TargetEntry>,
    delegations: &Delegations,
) -> Value {
    let mut signed = new_targets(version, expires, targets);
    signed["delegations"] = delegations.to_json();
    signed
}

/// The signed part of a snapshot: every targets file by name, `targets.json` among them.
#[must_use]
pub fn new_snapshot(version: u64, expires: Timestamp, meta: &BTreeMap<String, MetaFile>) -> Value {
    let listed: Map<String, Value> = meta
        .iter()
        .map(|(name, file)| (name.clone(), file.to_json()))
        .collect();
    let mut signed = header(Role::Snapshot, version, expires);
    signed["meta"] = Value::Object(listed);
    signed
}

/// The signed part of a timestamp.
#[must_use]
pub fn new_timestamp(version: u64, expires: Timestamp, snapshot: &MetaFile) -> Value {
    let mut signed = header(Role::Timestamp, version, expires);
    signed["meta"] = json!({ "snapshot.json": snapshot.to_json() });
    signed
}

/// What all roles have; `expires` is cut to whole seconds, as the format wants it.
fn header(role: Role, version: u64, expires: Timestamp) -> Value {
    let seconds = Timestamp::from_second(expires.as_second()).unwrap_or(expires);
    json!({
        "_type": role.as_str(),
        "spec_version": SPEC_VERSION,
        "version": version,
        "expires": seconds.to_string(),
    })
}
