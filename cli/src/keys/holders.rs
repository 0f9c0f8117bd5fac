//! Names of key holders, carried in the signed metadata beside the keys.
//!
//! Root and delegating targets metadata list them under `x-dunlin-holders` (key id → name). Other
//! implementations pass over the field and keep it. Names are for people; no rule rests on them.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The field's name.
pub const FIELD: &str = "x-dunlin-holders";

/// Names by key id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holders(BTreeMap<String, String>);

impl Holders {
    /// What the signed part of a metadata file says.
    #[must_use]
    pub fn of(signed: &Value) -> Self {
        let mut holders = Self::default();
        holders.add(signed);
        holders
    }

    /// Adds what another file says; a name known already stays.
    pub fn add(&mut self, signed: &Value) {
        for (keyid, name) in signed[FIELD].as_object().into_iter().flatten() {
            if let Some(name) = name
                .as_str()
                .filter(|n| super::public::check_name(n).is_ok())
            {
                self.0
                    .entry(keyid.clone())
                    .or_insert_with(|| name.to_owned());
            }
        }
    }

    /// Adds one name.
    pub fn insert(&mut self, keyid: &str, name: &str) {
        self.0.insert(keyid.to_owned(), name.to_owned());
    }

    /// The name of a key's holder.
    #[must_use]
    pub fn name(&self, keyid: &str) -> Option<&str> {
        self.0.get(keyid).map(String::as_str)
    }

    /// `alice (0a1b…)`, or the id alone.
    #[must_use]
    pub fn label(&self, keyid: &str) -> String {
        match self.name(keyid) {
            Some(name) => format!("{name} ({keyid})"),
            None => keyid.to_owned(),
        }
    }

    /// The field, with the keys that `keep` names alone.
    #[must_use]
    pub fn to_json(&self, keep: impl Fn(&str) -> bool) -> Value {
        let kept = self.0.iter().filter(|(keyid, _)| keep(keyid));
        let kept: Map<String, Value> = kept
            .map(|(keyid, name)| (keyid.clone(), Value::from(name.as_str())))
            .collect();
        Value::Object(kept)
    }

    /// Ids of the keys whose holder has this name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(_, n)| n.as_str() == name);
        named.map(|(keyid, _)| keyid.as_str())
    }
}
