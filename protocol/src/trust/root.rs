//! Root metadata: the keys of every role, and the threshold of unique keys.

use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

use super::TrustError;
use super::key::{Delegator, Key, RoleKeys};
use super::metadata::{Envelope, Metadata, read_header};
use super::role::Role;

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
        let keys = Key::read_all(&at.required("keys")?)?;
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
            keys,
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
        let delegator = Delegator {
            name: Self::ROLE.into(),
            version: self.version,
            keys: &self.keys,
        };
        delegator.verify(&role.into(), self.roles.get(&role), envelope)
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
