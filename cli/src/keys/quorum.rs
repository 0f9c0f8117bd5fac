//! Who may sign, who has, who is missing.

use super::KeysError;
use super::holders::Holders;
use dunlin_protocol::trust::{Delegations, Envelope, Key, Role, RoleKeys, RootMetadata};
use jiff::Timestamp;
use serde_json::json;
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

    /// The keys that targets metadata of `version` name for a role they delegate to.
    #[must_use]
    pub fn of_delegation(delegations: &Delegations, role: &str, version: u64) -> Option<Self> {
        let listed = delegations.keys_of(role)?;
        let keys = listed.keyids.iter();
        let keys = keys.filter_map(|id| Some((id.clone(), delegations.keys.get(id)?.clone())));
        Some(Self {
            named_by: format!("targets version {version}"),
            keys: keys.collect(),
            threshold: listed.threshold,
        })
    }

    /// Who of them has signed. One key under two ids counts once.
    ///
    /// # Errors
    /// As [`Envelope::signed_bytes`].
    pub fn standing(self, envelope: &Envelope) -> Result<Standing, KeysError> {
        let mut counted = BTreeSet::new();
        let mut signed = Vec::new();
        for signature in envelope.signatures() {
            let Some(key) = self.keys.get(&signature.keyid) else {
                continue;
            };
            if verifies(&signature.keyid, key, envelope, &signature.sig)
                && counted.insert(key.to_json()["keyval"].to_string())
            {
                signed.push(signature.keyid.clone());
            }
        }
        let open = self.keys.iter().filter(|(id, key)| {
            !signed.contains(id) && !counted.contains(&key.to_json()["keyval"].to_string())
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

/// Whether `sig` is a signature of `key` over the signed part of `envelope`.
///
/// The rule is root's own, asked about a role of one key, so that every kind of key is verified by
/// the same code as on devices.
pub(super) fn verifies(keyid: &str, key: &Key, envelope: &Envelope, sig: &str) -> bool {
    let alone = json!({
        "signed": envelope.signed(),
        "signatures": [{"keyid": keyid, "sig": sig}],
    });
    let Ok(alone) = Envelope::parse(alone.to_string().as_bytes(), usize::MAX) else {
        return false;
    };
    let role = RoleKeys {
        keyids: BTreeSet::from([keyid.to_owned()]),
        threshold: 1,
    };
    let asked = RootMetadata {
        version: 1,
        expires: Timestamp::MAX,
        consistent_snapshot: true,
        keys: BTreeMap::from([(keyid.to_owned(), key.clone())]),
        roles: BTreeMap::from([(Role::Root, role)]),
    };
    asked.verify(Role::Root, &alone).is_ok()
}
