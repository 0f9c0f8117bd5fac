//! Who may sign, who has, who is missing.

use super::KeysError;
use super::holders::Holders;
use dunlin_protocol::trust::{Envelope, Key, Role, RootMetadata};
use ed25519_dalek::Signature;
use std::collections::{BTreeMap, BTreeSet};

/// Keys of which a number must sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    /// Who names them: `root version 1`.
    pub named_by: String,
    /// The keys by their ids.
    pub keys: BTreeMap<String, Key>,
    /// Distinct keys that must sign.
    pub threshold: u64,
}

/// How far a quorum is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Who must sign.
    pub quorum: Quorum,
    /// Ids of keys that have signed.
    pub signed: Vec<String>,
    /// Ids of keys that could.
    pub open: Vec<String>,
    /// Signatures still missing.
    pub missing: u64,
}

impl Quorum {
    /// The keys that a root names for a role.
    #[must_use]
    pub fn of_root(root: &RootMetadata, role: Role) -> Self {
        let listed = root.roles.get(&role);
        let keyids = listed.into_iter().flat_map(|r| &r.keyids);
        let keys = keyids.filter_map(|id| Some((id.clone(), root.keys.get(id)?.clone())));
        Self {
            named_by: format!("root version {}", root.version),
            keys: keys.collect(),
            threshold: listed.map_or(u64::MAX, |r| r.threshold),
        }
    }

    /// Who of them has signed. One key under two ids counts once.
    ///
    /// # Errors
    /// As [`Envelope::signed_bytes`].
    pub fn standing(self, envelope: &Envelope) -> Result<Standing, KeysError> {
        let bytes = envelope.signed_bytes()?;
        let mut counted = BTreeSet::new();
        let mut signed = Vec::new();
        for signature in envelope.signatures() {
            let Some(key) = self.keys.get(&signature.keyid) else {
                continue;
            };
            if verifies(key, &bytes, &signature.sig) && counted.insert(key.to_json().to_string()) {
                signed.push(signature.keyid.clone());
            }
        }
        let open = self.keys.iter().filter(|(id, key)| {
            !signed.contains(id) && !counted.contains(&key.to_json().to_string())
        });
        Ok(Standing {
            open: open.map(|(id, _)| id.clone()).collect(),
            missing: self.threshold.saturating_sub(signed.len() as u64),
            quorum: self,
            signed,
        })
    }
}

impl Standing {
    /// One sentence: how many have signed, and who could give what is missing.
    #[must_use]
    pub fn sentence(&self, holders: &Holders) -> String {
        let (named_by, needed) = (&self.quorum.named_by, self.quorum.threshold);
        let names = |ids: &[String]| {
            let names: Vec<String> = ids.iter().map(|id| holders.label(id)).collect();
            match names.is_empty() {
                true => "nobody".to_owned(),
                false => names.join(", "),
            }
        };
        let signed = names(&self.signed);
        match self.missing {
            0 => format!("{named_by} asks for {needed}: enough, signed by {signed}"),
            missing => format!(
                "{named_by} asks for {needed}: {missing} missing, of {}; signed by {signed}",
                names(&self.open)
            ),
        }
    }
}

/// Whether a hexadecimal signature over `bytes` is by `key`.
pub(super) fn verifies(key: &Key, bytes: &[u8], sig: &str) -> bool {
    let mut raw = [0_u8; 64];
    let Some(public) = key.as_ed25519() else {
        return false;
    };
    hex::decode_to_slice(sig, &mut raw).is_ok()
        && public
            .verify_strict(bytes, &Signature::from_bytes(&raw))
            .is_ok()
}
