//! Delegations: the roles to which targets metadata hands on a part of its paths.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};

use super::TrustError;
use super::field::Field;
use super::key::{Key, RoleKeys};
use super::pattern::PathPattern;
use super::role::{ROLE_NAME_MAX_BYTES, RoleName};

/// To whom a targets role hands on, with the keys of all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegations {
    /// Every key by its id.
    pub keys: BTreeMap<String, Key>,
    /// The roles.
    pub roles: DelegatedRoles,
}

/// Roles, one by one or as a set of hash bins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DelegatedRoles {
    /// In order of precedence: the first that lists a target decides.
    Listed(Vec<DelegatedRole>),
    /// One role for each bin of the paths' hashes.
    Succinct(SuccinctRoles),
}

/// One delegated role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelegatedRole {
    /// Its name, unique within the delegator.
    pub name: String,
    /// Who signs for it.
    pub keys: RoleKeys,
    /// Whether the search for a target of its scope ends here, whatever it lists.
    pub terminating: bool,
    /// Paths for which it may speak.
    pub scope: PathScope,
}

/// Paths for which a delegated role may speak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathScope {
    /// Those that match one of the patterns.
    Patterns(Vec<PathPattern>),
    /// Those whose SHA-256 begins so, in lower-case hexadecimal digits.
    HashPrefixes(Vec<String>),
}

impl PathScope {
    /// Patterns from their texts.
    #[must_use]
    pub fn patterns<S: Into<String>>(texts: impl IntoIterator<Item = S>) -> Self {
        Self::Patterns(texts.into_iter().map(PathPattern::new).collect())
    }

    /// Whether `path` is one of those meant.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        match self {
            Self::Patterns(patterns) => patterns.iter().any(|p| p.matches(path)),
            Self::HashPrefixes(prefixes) => {
                let hash = hex::encode(Sha256::digest(path));
                prefixes.iter().any(|prefix| hash.starts_with(prefix))
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Patterns(patterns) => patterns.len(),
            Self::HashPrefixes(prefixes) => prefixes.len(),
        }
    }

    fn read(at: &Field<'_>) -> Result<Self, TrustError> {
        let texts = |list: &Field<'_>| {
            let items = list.items()?;
            let texts = items.iter().map(|item| Ok(item.text()?.to_owned()));
            texts.collect::<Result<Vec<_>, TrustError>>()
        };
        match (at.optional("paths")?, at.optional("path_hash_prefixes")?) {
            (Some(paths), None) => Ok(Self::patterns(texts(&paths)?)),
            (None, Some(prefixes)) => Ok(Self::HashPrefixes(texts(&prefixes)?)),
            _ => Err(at.bad("either paths or path_hash_prefixes")),
        }
    }
}

/// Hash bins: `2^bit_length` roles that share their keys, of which each speaks for the paths whose
/// SHA-256 begins with its number. All are terminating.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuccinctRoles {
    /// Who signs for every bin.
    pub keys: RoleKeys,
    bit_length: u32,
    name_prefix: String,
}

impl SuccinctRoles {
    /// Leading bits of a path's hash that make a bin's number, 1 to 32.
    #[must_use]
    pub fn bit_length(&self) -> u32 {
        self.bit_length
    }

    /// What every bin's name begins with.
    #[must_use]
    pub fn name_prefix(&self) -> &str {
        &self.name_prefix
    }

    /// Name of the bin that speaks for `path`: the prefix, `-`, and the bin's number in hexadecimal
    /// digits, as many as the highest number needs.
    #[must_use]
    pub fn bin_of(&self, path: &str) -> String {
        let hash = Sha256::digest(path);
        let leading = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
        self.bin_name(leading >> (32 - self.bit_length))
    }

    /// Names of all bins, in order.
    pub fn bins(&self) -> impl Iterator<Item = String> + '_ {
        (0..=self.last_bin()).map(|number| self.bin_name(number))
    }

    fn is_bin(&self, name: &str) -> bool {
        let suffix = name.strip_prefix(&self.name_prefix);
        let number = suffix.and_then(|s| s.strip_prefix('-'));
        number
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .is_some_and(|n| n <= self.last_bin() && self.bin_name(n) == name)
    }

    fn last_bin(&self) -> u32 {
        u32::MAX >> (32 - self.bit_length)
    }

    fn bin_name(&self, number: u32) -> String {
        let digits = self.bit_length.div_ceil(4) as usize;
        format!("{}-{number:0digits$x}", self.name_prefix)
    }

    fn read(at: &Field<'_>) -> Result<Self, TrustError> {
        let bits = at.required("bit_length")?;
        let bit_length = match u32::try_from(bits.number()?) {
            Ok(n @ 1..=32) => n,
            _ => return Err(bits.bad("an integer from 1 to 32")),
        };
        let prefix = at.required("name_prefix")?;
        let roles = Self {
            keys: RoleKeys::read(at)?,
            bit_length,
            name_prefix: prefix.text()?.to_owned(),
        };
        match RoleName::delegated(&roles.bin_name(roles.last_bin())) {
            Some(_) => Ok(roles),
            None => Err(prefix.bad("a shorter prefix of role names")),
        }
    }
}

/// A delegation that a search follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Followed {
    pub(super) role: String,
    pub(super) terminating: bool,
}

impl Delegations {
    /// No role yet; see [`Self::delegate`].
    #[must_use]
    pub fn none() -> Self {
        Self {
            keys: BTreeMap::new(),
            roles: DelegatedRoles::Listed(Vec::new()),
        }
    }

    /// Hash bins, all signed by `threshold` of `keys`.
    ///
    /// # Errors
    /// [`TrustError::BadKey`] for a threshold that can never be met, [`TrustError::BadField`] if
    /// `bit_length` is not 1 to 32 or `name_prefix` too long.
    pub fn succinct(
        name_prefix: &str,
        bit_length: u32,
        keys: &[Key],
        threshold: u64,
    ) -> Result<Self, TrustError> {
        let mut listed = BTreeMap::new();
        let keys = RoleKeys::list(name_prefix, keys, threshold, &mut listed)?;
        let mut json = keys.to_json();
        json["bit_length"] = Value::from(bit_length);
        json["name_prefix"] = Value::from(name_prefix);
        let roles = SuccinctRoles::read(&Field::new(&json, "succinct_roles"))?;
        Ok(Self {
            keys: listed,
            roles: DelegatedRoles::Succinct(roles),
        })
    }

    /// Hands `scope` on to the role `name`, signed by `threshold` of `keys`: in place of an earlier
    /// delegation of that name, else behind all others.
    ///
    /// # Errors
    /// [`TrustError::BadKey`] for a threshold that can never be met, or if these are hash bins;
    /// [`TrustError::BadField`] for a name that no delegated role may have.
    pub fn delegate(
        &mut self,
        name: &str,
        keys: &[Key],
        threshold: u64,
        terminating: bool,
        scope: PathScope,
    ) -> Result<(), TrustError> {
        checked_name(name, &Field::new(&Value::from(name), "name"))?;
        let DelegatedRoles::Listed(roles) = &mut self.roles else {
            return Err(TrustError::BadKey {
                reason: format!("{name}: hash bins and single roles cannot stand together"),
            });
        };
        let role = DelegatedRole {
            name: name.to_owned(),
            keys: RoleKeys::list(name, keys, threshold, &mut self.keys)?,
            terminating,
            scope,
        };
        match roles.iter_mut().find(|r| r.name == name) {
            Some(earlier) => *earlier = role,
            None => roles.push(role),
        }
        self.drop_unused_keys();
        Ok(())
    }

    /// Takes the delegation `name` back, with the keys that no other one uses; whether there was one.
    pub fn withdraw(&mut self, name: &str) -> bool {
        let DelegatedRoles::Listed(roles) = &mut self.roles else {
            return false;
        };
        let before = roles.len();
        roles.retain(|role| role.name != name);
        let found = roles.len() < before;
        self.drop_unused_keys();
        found
    }

    /// The single roles, in order of precedence; empty for hash bins.
    #[must_use]
    pub fn listed(&self) -> &[DelegatedRole] {
        match &self.roles {
            DelegatedRoles::Listed(roles) => roles,
            DelegatedRoles::Succinct(_) => &[],
        }
    }

    fn drop_unused_keys(&mut self) {
        if let DelegatedRoles::Listed(roles) = &self.roles {
            let used: BTreeSet<&String> = roles.iter().flat_map(|r| &r.keys.keyids).collect();
            self.keys.retain(|keyid, _| used.contains(keyid));
        }
    }

    /// Name of the hash bin that speaks for `path`, if these are hash bins.
    #[must_use]
    pub fn bin_of(&self, path: &str) -> Option<String> {
        match &self.roles {
            DelegatedRoles::Listed(_) => None,
            DelegatedRoles::Succinct(bins) => Some(bins.bin_of(path)),
        }
    }

    /// Names of all hash bins, in order; none for single roles.
    pub fn bins(&self) -> impl Iterator<Item = String> + '_ {
        let bins = match &self.roles {
            DelegatedRoles::Listed(_) => None,
            DelegatedRoles::Succinct(bins) => Some(bins),
        };
        bins.into_iter().flat_map(SuccinctRoles::bins)
    }

    /// Who signs for `role`, if it is one of these.
    #[must_use]
    pub fn keys_of(&self, role: &str) -> Option<&RoleKeys> {
        match &self.roles {
            DelegatedRoles::Listed(roles) => {
                let found = roles.iter().find(|r| r.name == role);
                found.map(|r| &r.keys)
            }
            DelegatedRoles::Succinct(bins) => bins.is_bin(role).then_some(&bins.keys),
        }
    }

    /// Whether `role` may speak for `path`.
    #[must_use]
    pub fn allows(&self, role: &str, path: &str) -> bool {
        match &self.roles {
            DelegatedRoles::Listed(roles) => {
                let found = roles.iter().find(|r| r.name == role);
                found.is_some_and(|r| r.scope.covers(path))
            }
            DelegatedRoles::Succinct(bins) => bins.bin_of(path) == role,
        }
    }

    /// Number of patterns or prefixes that [`Self::allows`] looks at for `role`.
    pub(super) fn scope_len(&self, role: &str) -> usize {
        let found = self.listed().iter().find(|r| r.name == role);
        found.map_or(1, |r| r.scope.len())
    }

    /// The delegations to follow in search of `path`, in order of precedence; none behind a
    /// terminating one.
    pub(super) fn followed(&self, path: &str) -> Vec<Followed> {
        let roles = match &self.roles {
            DelegatedRoles::Listed(roles) => roles,
            DelegatedRoles::Succinct(bins) => {
                return vec![Followed {
                    role: bins.bin_of(path),
                    terminating: true,
                }];
            }
        };
        let mut followed = Vec::new();
        for role in roles.iter().filter(|r| r.scope.covers(path)) {
            let terminating = role.terminating;
            followed.push(Followed {
                role: role.name.clone(),
                terminating,
            });
            if terminating {
                break;
            }
        }
        followed
    }

    pub(super) fn read(at: &Field<'_>) -> Result<Self, TrustError> {
        let keys = Key::read_all(&at.required("keys")?)?;
        let roles = match (at.optional("roles")?, at.optional("succinct_roles")?) {
            (Some(listed), None) => DelegatedRoles::Listed(read_listed(&listed)?),
            (None, Some(bins)) => DelegatedRoles::Succinct(SuccinctRoles::read(&bins)?),
            _ => return Err(at.bad("either roles or succinct_roles")),
        };
        Ok(Self { keys, roles })
    }

    /// As it stands in `delegations`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let keys = self.keys.iter();
        let keys: Map<String, Value> = keys
            .map(|(keyid, key)| (keyid.clone(), key.to_json().clone()))
            .collect();
        match &self.roles {
            DelegatedRoles::Listed(roles) => {
                let roles: Vec<Value> = roles.iter().map(listed_json).collect();
                json!({ "keys": keys, "roles": roles })
            }
            DelegatedRoles::Succinct(bins) => {
                let mut roles = bins.keys.to_json();
                roles["bit_length"] = Value::from(bins.bit_length);
                roles["name_prefix"] = Value::from(bins.name_prefix.as_str());
                json!({ "keys": keys, "succinct_roles": roles })
            }
        }
    }
}

fn listed_json(role: &DelegatedRole) -> Value {
    let mut json = role.keys.to_json();
    json["name"] = Value::from(role.name.as_str());
    json["terminating"] = Value::from(role.terminating);
    match &role.scope {
        PathScope::Patterns(patterns) => {
            json["paths"] = patterns.iter().map(PathPattern::as_str).collect();
        }
        PathScope::HashPrefixes(prefixes) => {
            json["path_hash_prefixes"] = prefixes.iter().map(String::as_str).collect();
        }
    }
    json
}

fn read_listed(at: &Field<'_>) -> Result<Vec<DelegatedRole>, TrustError> {
    let mut names = BTreeSet::new();
    let mut roles = Vec::new();
    for role in at.items()? {
        let name = role.required("name")?;
        checked_name(name.text()?, &name)?;
        if !names.insert(name.text()?) {
            return Err(name.bad("a name not listed before"));
        }
        roles.push(DelegatedRole {
            name: name.text()?.to_owned(),
            keys: RoleKeys::read(&role)?,
            terminating: role.required("terminating")?.flag()?,
            scope: PathScope::read(&role)?,
        });
    }
    Ok(roles)
}

fn checked_name(name: &str, at: &Field<'_>) -> Result<(), TrustError> {
    const _: () = assert!(ROLE_NAME_MAX_BYTES == 200);
    match RoleName::delegated(name) {
        Some(_) => Ok(()),
        None => Err(at.bad("a name of 1 to 200 bytes that no top-level role has")),
    }
}
