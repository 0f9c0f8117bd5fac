//! Keys as metadata lists them, and the threshold of distinct keys.

use ed25519_dalek::VerifyingKey;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

use super::TrustError;
use super::canonical::canonical;
use super::field::Field;
use super::metadata::Envelope;
use super::role::RoleName;
use super::signature::PublicKey;
use crate::id::Digest;

/// A public key as metadata lists it. Kinds unknown here are kept; they verify nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    json: Value,
    public: Option<PublicKey>,
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
        let public = Some(PublicKey::Ed25519(public));
        Self { json, public }
    }

    /// A public key in PEM (`BEGIN PUBLIC KEY`), as `openssl pkey -pubout` writes it: Ed25519,
    /// ECDSA on P-256, or RSA of 2048 to 8192 bits, which is taken for `rsassa-pss-sha256`.
    ///
    /// # Errors
    /// [`TrustError::BadKey`]
    pub fn from_public_pem(pem: &str) -> Result<Self, TrustError> {
        let (keytype, scheme) = match PublicKey::from_pem(pem) {
            Some(PublicKey::Ed25519(public)) => return Ok(Self::ed25519(public)),
            Some(PublicKey::EcdsaP256(_)) => ("ecdsa", "ecdsa-sha2-nistp256"),
            Some(PublicKey::RsaPss(_) | PublicKey::RsaPkcs1v15(_)) => ("rsa", "rsassa-pss-sha256"),
            None => {
                return Err(TrustError::BadKey {
                    reason: "expected BEGIN PUBLIC KEY with an Ed25519, RSA or P-256 key"
                        .to_owned(),
                });
            }
        };
        Self::from_json(
            &json!({ "keytype": keytype, "scheme": scheme, "keyval": { "public": pem } }),
        )
    }

    /// Reads a key as metadata lists it.
    ///
    /// # Errors
    /// [`TrustError::BadField`] if `keytype`, `scheme` or `keyval` is missing. A key of an unknown
    /// kind, or one whose text is no key, is no error: it verifies nothing.
    pub fn from_json(json: &Value) -> Result<Self, TrustError> {
        Self::read(&Field::new(json, "key"))
    }

    fn read(at: &Field<'_>) -> Result<Self, TrustError> {
        let keytype = at.required("keytype")?.text()?;
        let scheme = at.required("scheme")?.text()?;
        let keyval = at.required("keyval")?.object()?;
        let public = keyval.get("public").and_then(Value::as_str);
        Ok(Self {
            json: at.value().clone(),
            public: public.and_then(|text| PublicKey::read(keytype, scheme, text)),
        })
    }

    /// Every key of a `keys` object under its id.
    pub(super) fn read_all(at: &Field<'_>) -> Result<BTreeMap<String, Self>, TrustError> {
        let entries = at.entries()?.into_iter();
        entries
            .map(|(keyid, key)| Ok((keyid.clone(), Self::read(&key)?)))
            .collect()
    }

    /// The key as metadata lists it.
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
        match &self.public {
            Some(PublicKey::Ed25519(key)) => Some(key),
            _ => None,
        }
    }

    /// Whether signatures of this key can be verified here.
    #[must_use]
    pub fn can_verify(&self) -> bool {
        self.public.is_some()
    }

    /// Whether `signature` is this key's over `message`; false for a kind unknown here.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let public = self.public.as_ref();
        public.is_some_and(|key| key.verify(message, signature))
    }

    /// What makes two keys the same key, whatever their ids and other fields are.
    pub(super) fn identity(&self) -> Vec<u8> {
        match &self.public {
            Some(key) => key.material().to_vec(),
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
    /// The role of `keys`, which are added to `listed` under their ids.
    ///
    /// # Errors
    /// [`TrustError::BadKey`] if the threshold is 0 or above the number of distinct keys: nobody
    /// could ever sign for such a role.
    pub(super) fn list(
        role: &str,
        keys: &[Key],
        threshold: u64,
        listed: &mut BTreeMap<String, Key>,
    ) -> Result<Self, TrustError> {
        let distinct: BTreeSet<_> = keys.iter().map(Key::identity).collect();
        let distinct = distinct.len() as u64;
        if threshold == 0 || threshold > distinct {
            return Err(TrustError::BadKey {
                reason: format!(
                    "{role}: threshold {threshold} is not between 1 and its {distinct} distinct keys"
                ),
            });
        }
        let mut keyids = BTreeSet::new();
        for key in keys {
            let keyid = key.keyid()?;
            keyids.insert(keyid.clone());
            listed.insert(keyid, key.clone());
        }
        Ok(Self { keyids, threshold })
    }

    pub(super) fn read(at: &Field<'_>) -> Result<Self, TrustError> {
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

    /// As it stands in `roles`, and with more fields in a delegation.
    pub(super) fn to_json(&self) -> Value {
        json!({ "keyids": self.keyids, "threshold": self.threshold })
    }
}

/// The metadata that says who signs for a role: root, or targets metadata that delegates.
pub(super) struct Delegator<'a> {
    pub(super) name: RoleName,
    pub(super) version: u64,
    pub(super) keys: &'a BTreeMap<String, Key>,
}

impl Delegator<'_> {
    /// Checks that enough distinct keys of `role` signed the envelope.
    ///
    /// A signature by an unlisted or unknown kind of key, or one that does not verify, is passed
    /// over. One key under several ids counts once.
    pub(super) fn verify(
        &self,
        role: &RoleName,
        listed: Option<&RoleKeys>,
        envelope: &Envelope,
    ) -> Result<(), TrustError> {
        let signed = envelope.signed_bytes()?;
        let signers = self.signers(listed, envelope, &signed);
        let needed = listed.map_or(u64::MAX, |r| r.threshold);
        let got = signers.len() as u64;
        if got >= needed {
            return Ok(());
        }
        Err(TrustError::Threshold {
            role: role.clone(),
            version: envelope.signed()["version"].as_u64().unwrap_or(0),
            delegator: self.name.clone(),
            delegator_version: self.version,
            needed,
            got,
        })
    }

    /// The distinct keys of a role with a valid signature over `signed`. Key ids are unique in an
    /// envelope, so that there are never more verifications than keys listed.
    fn signers(
        &self,
        listed: Option<&RoleKeys>,
        envelope: &Envelope,
        signed: &[u8],
    ) -> BTreeSet<&[u8]> {
        let mut signers = BTreeSet::new();
        let Some(listed) = listed else {
            return signers;
        };
        for given in envelope.signatures() {
            if !listed.keyids.contains(&given.keyid) {
                continue;
            }
            let key = self.keys.get(&given.keyid);
            let Some(public) = key.and_then(|key| key.public.as_ref()) else {
                continue;
            };
            let signature = hex::decode(&given.sig).unwrap_or_default();
            if public.verify(signed, &signature) {
                signers.insert(public.material());
            }
        }
        signers
    }
}
