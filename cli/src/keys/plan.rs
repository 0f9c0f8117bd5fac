//! The next root, planned from the one before: pure, so that a plan can be shown before it is signed.

use super::KeysError;
use super::holders::{self, Holders};
use super::public::PublicKey;
use dunlin_protocol::trust::{
    Envelope, Key, Metadata, ROOT_MAX_BYTES, Role, RootMetadata, new_root, sign_envelope,
};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Shortest start of a key id that names a key.
const KEYID_PREFIX_CHARS: usize = 8;

/// Keys and threshold of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seats {
    keys: BTreeMap<String, Key>,
    threshold: u64,
}

/// A root in the making.
#[derive(Debug, Clone)]
pub struct RootPlan {
    version: u64,
    roles: BTreeMap<Role, Seats>,
    holders: Holders,
}

impl RootPlan {
    /// The first root, with no keys yet.
    #[must_use]
    pub fn first() -> Self {
        let empty = Seats {
            keys: BTreeMap::new(),
            threshold: 1,
        };
        Self {
            version: 1,
            roles: Role::ALL.into_iter().map(|r| (r, empty.clone())).collect(),
            holders: Holders::default(),
        }
    }

    /// The root after `bytes`, with the same keys so far.
    ///
    /// # Errors
    /// Not root metadata.
    pub fn after(bytes: &[u8]) -> Result<Self, KeysError> {
        let envelope = Envelope::parse(bytes, ROOT_MAX_BYTES)?;
        let root = RootMetadata::read(&envelope)?;
        let seats = |role: &Role| {
            let listed = &root.roles[role];
            let keys = listed.keyids.iter();
            let keys = keys.filter_map(|id| {
                let key = root.keys.get(id)?;
                // Ids are names only; ours is the one that every implementation agrees on.
                Some((key.keyid().ok()?, key.clone()))
            });
            Seats {
                keys: keys.collect(),
                threshold: listed.threshold,
            }
        };
        Ok(Self {
            version: root.version.saturating_add(1),
            roles: root.roles.keys().map(|role| (*role, seats(role))).collect(),
            holders: Holders::of(envelope.signed()),
        })
    }

    fn seats(&mut self, role: Role) -> &mut Seats {
        let empty = || Seats {
            keys: BTreeMap::new(),
            threshold: 1,
        };
        self.roles.entry(role).or_insert_with(empty)
    }

    /// Gives `key` a seat.
    ///
    /// # Errors
    /// It has one.
    pub fn add(&mut self, role: Role, key: &PublicKey) -> Result<(), KeysError> {
        let seats = self.seats(role);
        if seats.keys.contains_key(&key.keyid) {
            return Err(KeysError::Seated {
                key: format!("{} ({})", key.name, key.keyid),
                role,
            });
        }
        seats.keys.insert(key.keyid.clone(), key.key.clone());
        self.holders.insert(&key.keyid, &key.name);
        Ok(())
    }

    /// Takes a key's seat in `role` (in every role if `None`). The roles that it had a seat in.
    ///
    /// # Errors
    /// It has none there, or the words name no key or several.
    pub fn remove(&mut self, role: Option<Role>, named: &str) -> Result<Vec<Role>, KeysError> {
        let keyid = self.find(named)?;
        let mut left = Vec::new();
        for (at, seats) in &mut self.roles {
            if role.is_none_or(|role| role == *at) && seats.keys.remove(&keyid).is_some() {
                left.push(*at);
            }
        }
        match left.is_empty() {
            false => Ok(left),
            true => Err(KeysError::NotSeated {
                key: self.holders.label(&keyid),
                role: role.map_or("any role".to_owned(), |r| r.to_string()),
            }),
        }
    }

    /// Puts `new` into every seat of the key that `old` names; the roles.
    ///
    /// # Errors
    /// As [`Self::remove`] and [`Self::add`].
    pub fn replace(&mut self, old: &str, new: &PublicKey) -> Result<Vec<Role>, KeysError> {
        let roles = self.remove(None, old)?;
        for role in &roles {
            self.add(*role, new)?;
        }
        Ok(roles)
    }

    /// Sets how many keys must sign.
    pub fn set_threshold(&mut self, role: Role, threshold: u64) {
        self.seats(role).threshold = threshold;
    }

    /// Sets the server's keys in place of those before.
    ///
    /// # Errors
    /// Not keys that verify.
    pub fn set_online(&mut self, role: Role, key: Key) -> Result<(), KeysError> {
        let keyid = key.keyid()?;
        self.holders.insert(&keyid, "server");
        let seats = self.seats(role);
        seats.keys = BTreeMap::from([(keyid, key)]);
        seats.threshold = 1;
        Ok(())
    }

    /// The key that a name, a key id or the start of one (8 digits) means.
    fn find(&self, named: &str) -> Result<String, KeysError> {
        let all: BTreeSet<&String> = self.roles.values().flat_map(|s| s.keys.keys()).collect();
        let is_id = named.len() >= KEYID_PREFIX_CHARS
            && named
                .bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        let by_name: Vec<&str> = self.holders.named(named).collect();
        let found: Vec<&String> = all
            .iter()
            .filter(|id| by_name.contains(&id.as_str()) || (is_id && id.starts_with(named)))
            .copied()
            .collect();
        match found.as_slice() {
            [one] => Ok((*one).clone()),
            _ => Err(KeysError::WhichKey {
                named: named.to_owned(),
                found: found.len(),
                all: {
                    let labels: Vec<String> = all.iter().map(|id| self.holders.label(id)).collect();
                    labels.join(", ")
                },
            }),
        }
    }

    /// The metadata, unsigned.
    ///
    /// # Errors
    /// A threshold that its keys cannot meet.
    pub fn build(&self, expires: Timestamp) -> Result<Envelope, KeysError> {
        let mut roles = BTreeMap::new();
        for (role, seats) in &self.roles {
            let keys: Vec<Key> = seats.keys.values().cloned().collect();
            if seats.threshold == 0 || seats.threshold > keys.len() as u64 {
                return Err(KeysError::Unreachable {
                    role: *role,
                    threshold: seats.threshold,
                    keys: keys.len(),
                });
            }
            roles.insert(*role, (keys, seats.threshold));
        }
        let mut signed = new_root(self.version, expires, &roles)?;
        let listed = self.roles.values().flat_map(|s| s.keys.keys());
        let listed: BTreeSet<&String> = listed.collect();
        signed[holders::FIELD] = self.holders.to_json(|id| listed.contains(&id.to_owned()));
        Ok(sign_envelope(signed, &[])?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dunlin_protocol::trust::SigningKey;

    fn key(name: &str, seed: u8) -> PublicKey {
        PublicKey::of(name, &SigningKey::from_seed(&[seed; 32])).unwrap()
    }

    fn plan() -> RootPlan {
        let mut plan = RootPlan::first();
        for (n, name) in ["alice", "bob", "carol"].iter().enumerate() {
            let key = key(name, u8::try_from(n).unwrap());
            plan.add(Role::Root, &key).unwrap();
            plan.add(Role::Targets, &key).unwrap();
        }
        plan.set_threshold(Role::Root, 2);
        for role in [Role::Snapshot, Role::Timestamp] {
            plan.set_online(role, key("x", 9).key).unwrap();
        }
        plan
    }

    fn read(plan: &RootPlan) -> RootMetadata {
        RootMetadata::read(&plan.build(Timestamp::UNIX_EPOCH).unwrap()).unwrap()
    }

    #[test]
    fn a_key_is_named_by_its_holder_or_its_id_and_loses_every_seat() {
        let mut by_name = plan();
        let both = vec![Role::Root, Role::Targets];
        assert_eq!(by_name.remove(None, "bob").unwrap(), both);
        let mut by_id = plan();
        assert_eq!(by_id.remove(None, &key("bob", 1).keyid[..8]).unwrap(), both);
        assert_eq!(read(&by_name), read(&by_id));
        assert!(!read(&by_name).keys.contains_key(&key("bob", 1).keyid));
        for nobody in ["dave", "", "0123456", "ffffffffff"] {
            let refused = plan().remove(None, nobody).unwrap_err().to_string();
            assert!(refused.contains("alice"), "{refused}");
        }
    }

    #[test]
    fn a_rotation_changes_the_key_and_nothing_else() {
        let mut plan = plan();
        let new = key("bob", 7);
        plan.replace("bob", &new).unwrap();
        let root = read(&plan);
        assert_eq!(root.roles[&Role::Root].threshold, 2);
        for role in [Role::Root, Role::Targets] {
            let keyids = &root.roles[&role].keyids;
            assert!(keyids.contains(&new.keyid) && keyids.len() == 3);
            assert!(!keyids.contains(&key("bob", 1).keyid));
        }
        let bytes = plan.build(Timestamp::UNIX_EPOCH).unwrap().to_bytes();
        let next = RootPlan::after(&bytes).unwrap();
        assert_eq!(read(&next).version, 2);
        assert_eq!(read(&next).roles, root.roles);
        assert_eq!(next.holders.name(&new.keyid), Some("bob"));
    }

    #[test]
    fn a_root_that_could_never_be_replaced_is_not_built() {
        let mut plan = plan();
        plan.remove(None, "bob").unwrap();
        plan.remove(None, "carol").unwrap();
        let refused = plan.build(Timestamp::UNIX_EPOCH).unwrap_err().to_string();
        assert!(
            refused.contains("root") && refused.contains('2'),
            "{refused}"
        );
        assert!(plan.add(Role::Root, &key("alice", 0)).is_err());
    }
}
