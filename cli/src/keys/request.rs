//! Signing by files across machines: a request carries metadata that wait for signatures and what
//! they rest on; a signature file carries one signature back. Both are JSON (`docs/keys.md`).
//!
//! Nothing here is secret, and nothing in a request is believed: what is shown to a signer is read
//! from the very bytes that get signed.

use super::KeysError;
use super::holders::Holders;
use super::quorum::{Quorum, Standing};
use crate::files;
use crate::sign::SignedList;
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::canonical::{canonical, parse};
use dunlin_protocol::trust::{
    Envelope, Metadata, ROOT_MAX_BYTES, Role, RootMetadata, Signature, SigningKey,
    TARGETS_MAX_BYTES, TargetsMetadata,
};
use serde_json::{Value, json};
use std::path::Path;

const REQUEST: &str = "dunlin-signing-request";
const SIGNATURE: &str = "dunlin-signature";
const FORMAT: u64 = 1;
/// Metadata, what came before, the root, and a summary.
const REQUEST_MAX_BYTES: usize = 3 * TARGETS_MAX_BYTES + ROOT_MAX_BYTES;
const SIGNATURE_MAX_BYTES: usize = 64 * 1024;

/// Metadata that wait for signatures.
#[derive(Debug, Clone)]
pub struct SigningRequest {
    /// `root`, `targets`, or a delegated role.
    pub role: String,
    /// What is to be signed, with the signatures so far.
    pub metadata: Envelope,
    /// The root file it rests on: for a root the one before (none for the first), for all others the
    /// one that names the keys.
    pub root: Option<Vec<u8>>,
    /// The metadata of the same role that are replaced.
    pub previous: Option<Vec<u8>>,
    /// For a delegated role: the targets metadata that delegate.
    pub delegator: Option<Vec<u8>>,
}

/// One signature on its way back.
#[derive(Debug, Clone)]
pub struct SignatureFile {
    /// SHA-256 of the canonical bytes that were signed.
    pub signed_sha256: Digest,
    /// Whose it is.
    pub keyid: String,
    /// The signature in hexadecimal.
    pub sig: String,
}

impl SigningRequest {
    /// A request for a new root, after `before` if there was one.
    ///
    /// # Errors
    /// Not metadata of that role.
    pub fn for_root(metadata: Envelope, before: Option<Vec<u8>>) -> Result<Self, KeysError> {
        RootMetadata::read(&metadata)?;
        Ok(Self {
            role: Role::Root.to_string(),
            metadata,
            root: before,
            previous: None,
            delegator: None,
        })
    }

    /// A request for a list of targets, top-level or delegated, that replaces `previous`.
    ///
    /// # Errors
    /// Not metadata of that role.
    pub fn for_list(
        metadata: Envelope,
        whose: &SignedList,
        previous: Option<Vec<u8>>,
    ) -> Result<Self, KeysError> {
        TargetsMetadata::read(&metadata)?;
        Ok(Self {
            role: whose.role.clone(),
            metadata,
            root: Some(whose.root.clone()),
            previous,
            delegator: whose.delegator.as_ref().map(|(bytes, _)| bytes.clone()),
        })
    }

    /// Reads a request file.
    ///
    /// # Errors
    /// Not a request, or one of another format.
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        let bytes = files::read_bounded(path, REQUEST_MAX_BYTES as u64)?;
        Self::parse(&bytes).map_err(|problem| KeysError::Request {
            path: path.to_owned(),
            problem,
        })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let value = parse(bytes).map_err(|e| e.to_string())?;
        expect_type(&value, REQUEST)?;
        let text = |name: &str| value[name].as_str().map(|t| t.as_bytes().to_vec());
        let role = value["role"].as_str().ok_or("it names no role")?.to_owned();
        let metadata = value["metadata"].to_string();
        let metadata =
            Envelope::parse(metadata.as_bytes(), TARGETS_MAX_BYTES).map_err(|e| e.to_string())?;
        let is_root = metadata.signed()["_type"] == "root";
        if is_root != (role == "root") {
            return Err(format!(
                "its metadata are of type {}, not what role {role:?} signs",
                metadata.signed()["_type"]
            ));
        }
        let read = Self {
            role,
            metadata,
            root: text("root"),
            previous: text("previous"),
            delegator: text("delegator"),
        };
        if !is_root && read.root.is_none() {
            return Err("it does not carry the root that names the keys".to_owned());
        }
        Ok(read)
    }

    /// The file: `summary` is for whoever opens it, tools recompute it.
    #[must_use]
    pub fn to_bytes(&self, summary: &[String]) -> Vec<u8> {
        let text = |bytes: &Option<Vec<u8>>| {
            let text = bytes
                .as_ref()
                .map(|b| String::from_utf8_lossy(b).into_owned());
            text.map_or(Value::Null, Value::from)
        };
        let metadata: Value = serde_json::from_slice(&self.metadata.to_bytes()).unwrap_or_default();
        let file = json!({
            "_type": REQUEST,
            "format": FORMAT,
            "role": self.role,
            "version": self.version(),
            "summary": summary,
            "metadata": metadata,
            "root": text(&self.root),
            "previous": text(&self.previous),
            "delegator": text(&self.delegator),
        });
        format!("{file:#}\n").into_bytes()
    }

    /// Version of what is to be signed.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.metadata.signed()["version"].as_u64().unwrap_or(0)
    }

    /// `2.root.json`, `3.targets.json`, `3.vision.json`.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.{}.json", self.version(), self.role)
    }

    /// SHA-256 of what gets signed.
    ///
    /// # Errors
    /// As [`canonical`].
    pub fn signed_sha256(&self) -> Result<Digest, KeysError> {
        Ok(Digest::of(&canonical(self.metadata.signed())?))
    }

    /// The root that the request rests on, not verified.
    ///
    /// # Errors
    /// It is no root metadata.
    pub fn base_root(&self) -> Result<Option<RootMetadata>, KeysError> {
        let Some(bytes) = &self.root else {
            return Ok(None);
        };
        let envelope = Envelope::parse(bytes, ROOT_MAX_BYTES)?;
        Ok(Some(RootMetadata::read(&envelope)?))
    }

    /// Names of the holders, from everything the request carries.
    #[must_use]
    pub fn holders(&self) -> Holders {
        let mut all = Holders::default();
        for bytes in [&self.root, &self.delegator].into_iter().flatten() {
            if let Ok(envelope) = Envelope::parse(bytes, TARGETS_MAX_BYTES) {
                all.add(envelope.signed());
            }
        }
        all.add(self.metadata.signed());
        all
    }

    /// Whose signatures it needs: for a root both the one before and the new one decide.
    ///
    /// # Errors
    /// What it carries is not metadata of the kind.
    pub fn quorums(&self) -> Result<Vec<Quorum>, KeysError> {
        let base = self.base_root()?;
        match (self.role.as_str(), base) {
            ("root", base) => {
                let new = RootMetadata::read(&self.metadata)?;
                let old = base.map(|root| Quorum::of_root(&root, Role::Root));
                let mut quorums: Vec<Quorum> = old.into_iter().collect();
                quorums.push(Quorum::of_root(&new, Role::Root));
                Ok(quorums)
            }
            ("targets", Some(root)) => Ok(vec![Quorum::of_root(&root, Role::Targets)]),
            (role, Some(root)) => {
                let delegator = self.verified_delegator(&root)?;
                let (version, delegations) = (delegator.version, delegator.delegations);
                let quorum = delegations.and_then(|d| Quorum::of_delegation(&d, role, version));
                let none = || KeysError::NoDelegation {
                    role: role.to_owned(),
                };
                Ok(vec![quorum.ok_or_else(none)?])
            }
            (role, None) => Err(KeysError::NoDelegation {
                role: role.to_owned(),
            }),
        }
    }

    /// The list that is replaced, if the keys that are asked now had signed it. Whoever made the
    /// request could name any other, and so hide what is new.
    ///
    /// # Errors
    /// As [`Self::quorums`], or it is no targets metadata.
    pub fn verified_previous(&self) -> Result<Option<TargetsMetadata>, KeysError> {
        let Some(bytes) = &self.previous else {
            return Ok(None);
        };
        let envelope = Envelope::parse(bytes, TARGETS_MAX_BYTES)?;
        for quorum in self.quorums()? {
            if quorum.standing(&envelope)?.missing > 0 {
                return Ok(None);
            }
        }
        Ok(Some(TargetsMetadata::read(&envelope)?))
    }

    /// The targets metadata that delegate, signed as the root demands.
    fn verified_delegator(&self, root: &RootMetadata) -> Result<TargetsMetadata, KeysError> {
        let none = || KeysError::NoDelegation {
            role: self.role.clone(),
        };
        let bytes = self.delegator.as_ref().ok_or_else(none)?;
        let envelope = Envelope::parse(bytes, TARGETS_MAX_BYTES)?;
        root.verify(Role::Targets, &envelope)?;
        Ok(TargetsMetadata::read(&envelope)?)
    }

    /// Who has signed, and who is still needed.
    ///
    /// # Errors
    /// As [`Self::quorums`].
    pub fn standing(&self) -> Result<Vec<Standing>, KeysError> {
        let quorums = self.quorums()?;
        quorums
            .into_iter()
            .map(|quorum| quorum.standing(&self.metadata))
            .collect()
    }

    /// Signs what is asked for.
    ///
    /// # Errors
    /// A key whose signature nobody would count.
    pub fn sign(&self, key: &SigningKey) -> Result<SignatureFile, KeysError> {
        let keyid = key.keyid()?;
        self.check_is_asked(&keyid)?;
        let signature: Signature = key.sign(self.metadata.signed())?;
        Ok(SignatureFile {
            signed_sha256: self.signed_sha256()?,
            keyid,
            sig: signature.sig,
        })
    }

    /// Refuses a key that none of the quorums lists.
    ///
    /// # Errors
    /// [`KeysError::Stranger`]
    pub fn check_is_asked(&self, keyid: &str) -> Result<(), KeysError> {
        let quorums = self.quorums()?;
        if quorums.iter().any(|q| q.keys.contains_key(keyid)) {
            return Ok(());
        }
        let holders = self.holders();
        let asked = quorums.iter().flat_map(|q| q.keys.keys());
        let mut asked: Vec<String> = asked.map(|id| holders.label(id)).collect();
        asked.sort();
        asked.dedup();
        Err(KeysError::Stranger {
            keyid: keyid.to_owned(),
            what: format!("{} version {}", self.role, self.version()),
            asked: asked.join(", "),
        })
    }

    /// Adds a signature after checking that it is by a key that is asked, and over these very bytes.
    ///
    /// # Errors
    /// A stranger's, one over something else, or one that does not verify.
    pub fn add(&mut self, signature: &SignatureFile) -> Result<(), KeysError> {
        let signed = self.signed_sha256()?;
        if signature.signed_sha256 != signed {
            return Err(KeysError::OtherContent {
                keyid: signature.keyid.clone(),
                expected: signed,
                got: signature.signed_sha256,
            });
        }
        self.check_is_asked(&signature.keyid)?;
        let verifies = self.quorums()?.iter().any(|q| {
            let key = q.keys.get(&signature.keyid);
            key.is_some_and(|key| {
                super::quorum::verifies(&signature.keyid, key, &self.metadata, &signature.sig)
            })
        });
        if !verifies {
            return Err(KeysError::BadSignature {
                keyid: signature.keyid.clone(),
            });
        }
        let mut file: Value = serde_json::from_slice(&self.metadata.to_bytes()).unwrap_or_default();
        if let Some(list) = file["signatures"].as_array_mut() {
            list.retain(|s| s["keyid"] != signature.keyid.as_str());
            list.push(json!({"keyid": signature.keyid, "sig": signature.sig}));
        }
        self.metadata = Envelope::parse(file.to_string().as_bytes(), TARGETS_MAX_BYTES)?;
        Ok(())
    }
}

impl SignatureFile {
    /// The file.
    #[must_use]
    pub fn to_bytes(&self, role: &str, version: u64, name: &str) -> Vec<u8> {
        let file = json!({
            "_type": SIGNATURE,
            "format": FORMAT,
            "role": role,
            "version": version,
            "signed_sha256": self.signed_sha256.to_string(),
            "name": name,
            "keyid": self.keyid,
            "sig": self.sig,
        });
        format!("{file:#}\n").into_bytes()
    }

    /// Reads a signature file.
    ///
    /// # Errors
    /// Not one, or one of another format.
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        let bytes = files::read_bounded(path, SIGNATURE_MAX_BYTES as u64)?;
        let read = || -> Result<Self, String> {
            let value = parse(&bytes).map_err(|e| e.to_string())?;
            expect_type(&value, SIGNATURE)?;
            let text = |name: &str| {
                let text = value[name].as_str().map(str::to_owned);
                text.ok_or_else(|| format!("{name}: expected a string"))
            };
            let digest = text("signed_sha256")?;
            Ok(Self {
                signed_sha256: digest
                    .parse()
                    .map_err(|_| "signed_sha256: expected 64 hexadecimal digits".to_owned())?,
                keyid: text("keyid")?,
                sig: text("sig")?,
            })
        };
        read().map_err(|problem| KeysError::Request {
            path: path.to_owned(),
            problem,
        })
    }
}

fn expect_type(value: &Value, expected: &str) -> Result<(), String> {
    let (kind, format) = (value["_type"].as_str(), value["format"].as_u64());
    if kind != Some(expected) {
        let got = kind.unwrap_or("none");
        return Err(format!("expected a file of _type {expected}, got {got}"));
    }
    match format {
        Some(FORMAT) => Ok(()),
        other => Err(format!("expected format {FORMAT}, got {other:?}")),
    }
}
