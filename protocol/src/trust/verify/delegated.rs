//! The search for a target through delegated roles (5.6.7), as far as their metadata is here.

use std::collections::BTreeSet;

use super::{FileRequest, Received, TrustedSet, Verified, parse_bounded};
use crate::bundle::Manifest;
use crate::trust::delegation::{Delegations, Followed};
use crate::trust::hashes::{Measured, check_bytes};
use crate::trust::key::Delegator;
use crate::trust::metadata::{Metadata as _, read_header};
use crate::trust::role::{Role, RoleName};
use crate::trust::targets::{TargetEntry, TargetsMetadata};
use crate::trust::{DELEGATED_METADATA_MAX_BYTES, DELEGATIONS_MAX, TrustError};

/// Names of delegated roles from the first below top-level targets to the one meant; empty means
/// top-level targets. A role is trusted along one chain only: who delegates by another one names
/// other keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Chain(Vec<String>);

impl Chain {
    fn below(&self, role: &str) -> Self {
        let mut names = self.0.clone();
        names.push(role.to_owned());
        Self(names)
    }

    fn role(&self) -> RoleName {
        match self.0.last() {
            Some(name) => RoleName::Delegated(name.clone()),
            None => Role::Targets.into(),
        }
    }

    /// The chain of the delegator, and the role's name; `None` for top-level targets.
    fn split(&self) -> Option<(Self, &str)> {
        let (role, above) = self.0.split_last()?;
        Some((Self(above.to_vec()), role))
    }
}

/// Metadata of a delegated role that a search needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelegatedFile {
    chain: Chain,
    role: RoleName,
    /// What to fetch, if what is stored does not do.
    pub request: FileRequest,
}

impl DelegatedFile {
    /// Whose metadata it is.
    #[must_use]
    pub fn role(&self) -> &RoleName {
        &self.role
    }
}

/// How far a search came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The target is found.
    Found(FoundTarget),
    /// Offer this file to [`TrustedSet::update_delegated`] and search again: first as it is stored
    /// under [`RoleName::stored_name`], and if that is refused, as it is fetched.
    Needs(DelegatedFile),
}

/// A signed target and who signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundTarget {
    entry: Verified<TargetEntry>,
    chain: Chain,
}

impl FoundTarget {
    /// The role that lists the target: top-level targets, or a delegated role.
    #[must_use]
    pub fn role(&self) -> RoleName {
        self.chain.role()
    }

    /// Whether a delegated role lists it.
    #[must_use]
    pub fn is_delegated(&self) -> bool {
        !self.chain.0.is_empty()
    }

    /// Reads the bundle's manifest: see [`Verified::open_manifest`].
    ///
    /// # Errors
    /// Other bytes than signed, or no manifest.
    pub fn open_manifest(self, bytes: &[u8]) -> Result<Verified<Manifest>, TrustError> {
        self.entry.open_manifest(bytes)
    }

    /// The target alone.
    #[must_use]
    pub fn into_entry(self) -> Verified<TargetEntry> {
        self.entry
    }
}

impl std::ops::Deref for FoundTarget {
    type Target = Verified<TargetEntry>;
    fn deref(&self) -> &Verified<TargetEntry> {
        &self.entry
    }
}

impl TrustedSet {
    /// Searches the target `path`: first in top-level targets, then in delegated roles, pre-order
    /// and depth-first, each role once (5.6.7).
    ///
    /// # Errors
    /// [`TrustError::UnknownTarget`], [`TrustError::TooManyDelegations`], or what keeps the targets
    /// from being current.
    pub fn find(&self, path: &str) -> Result<Lookup, TrustError> {
        let top = self.targets()?;
        let mut visited = BTreeSet::new();
        let mut to_visit = vec![Chain::default()];
        while let Some(chain) = to_visit.pop() {
            // 5.6.7.1 A role visited before is skipped: no cycle, however the roles are tied.
            let role = chain.role();
            if !visited.insert(role.clone()) {
                continue;
            }
            if visited.len() > DELEGATIONS_MAX + 1 {
                return Err(TrustError::TooManyDelegations {
                    path: path.to_owned(),
                    max: DELEGATIONS_MAX,
                });
            }
            let Some(targets) = self.along(&chain, top)? else {
                return Ok(Lookup::Needs(self.needed(chain, role)?));
            };
            if let Some(entry) = targets.targets.get(path) {
                entry.check_verifiable()?;
                let entry = Verified(entry.clone());
                return Ok(Lookup::Found(FoundTarget { entry, chain }));
            }
            // 5.6.7.2 Deeper, in order of appearance; a terminating delegation ends all others.
            let delegations = targets.delegations.as_ref();
            let followed = delegations.map(|d| d.followed(path)).unwrap_or_default();
            if followed.last().is_some_and(|last| last.terminating) {
                to_visit.clear();
            }
            // More than the cap would end in its error anyway: they need no memory.
            let deeper = followed.iter().map(|Followed { role, .. }| role);
            let unvisited = deeper.filter(|role| !visited.contains(&delegated(role)));
            let deeper: Vec<_> = unvisited.take(DELEGATIONS_MAX + 1).collect();
            to_visit.extend(deeper.into_iter().rev().map(|role| chain.below(role)));
        }
        Err(TrustError::UnknownTarget {
            path: path.to_owned(),
            version: top.version,
            delegated: visited.len() - 1,
        })
    }

    /// As [`Self::find`], with the delegated metadata that was taken so far.
    ///
    /// # Errors
    /// As [`Self::find`], and [`TrustError::OutOfOrder`] if more metadata is needed.
    pub fn target(&self, path: &str) -> Result<FoundTarget, TrustError> {
        match self.find(path)? {
            Lookup::Found(found) => Ok(found),
            Lookup::Needs(_) => Err(TrustError::OutOfOrder {
                step: "using a delegated target",
                needs: "fetch the metadata of the delegated role first",
            }),
        }
    }

    /// Takes metadata that a search needs: what was stored, or what was fetched (5.6.1 to 5.6.6).
    ///
    /// # Errors
    /// Length or hash other than the snapshot lists, too few signatures by the keys that the
    /// delegator names, version other than listed, expired, or more delegated metadata than
    /// [`DELEGATED_METADATA_MAX_BYTES`]. After a stored file is refused, fetch; after a fetched one
    /// is, the search has failed.
    pub fn update_delegated(
        &mut self,
        file: &DelegatedFile,
        bytes: &[u8],
    ) -> Result<(), TrustError> {
        let role = &file.role;
        let listed = self.snapshot()?.listed(role)?;
        let delegations = self.delegations_above(&file.chain)?;
        // 5.6.2 Length and hash against snapshot, before anything is parsed.
        check_bytes(&role.to_string(), listed.length, &listed.hashes, bytes)?;
        // 5.6.3 Arbitrary software attack: signed by the keys that the delegator names.
        let envelope = parse_bounded(role, bytes)?;
        read_header(&envelope, Role::Targets)?;
        let delegator = Delegator {
            name: delegations.name,
            version: delegations.version,
            keys: &delegations.given.keys,
        };
        delegator.verify(role, delegations.given.keys_of(role.as_str()), &envelope)?;
        let new = Received {
            metadata: TargetsMetadata::read(&envelope)?,
            file: Measured::of(bytes),
        };
        // 5.6.4 Mix-and-match: the version that snapshot names. 5.6.5 Freeze attack.
        new.check(role, listed, self.now)?;
        // Endless data in many pieces.
        let held: u64 = self.delegated.values().map(|r| r.file.length()).sum();
        let got = held.saturating_add(new.file.length());
        if got > DELEGATED_METADATA_MAX_BYTES {
            return Err(TrustError::TooLarge {
                what: "delegated metadata in all".to_owned(),
                max: DELEGATED_METADATA_MAX_BYTES,
                got,
            });
        }
        // 5.6.6 The caller stores it.
        self.delegated.insert(file.chain.clone(), new);
        Ok(())
    }

    /// Metadata of the role at the end of `chain`, if it is here and current.
    fn along<'a>(
        &'a self,
        chain: &Chain,
        top: &'a TargetsMetadata,
    ) -> Result<Option<&'a TargetsMetadata>, TrustError> {
        if chain.0.is_empty() {
            return Ok(Some(top));
        }
        let role = chain.role();
        let listed = self.snapshot()?.listed(&role)?;
        let held = self.delegated.get(chain);
        let current = held.filter(|r| r.check(&role, listed, self.now).is_ok());
        Ok(current.map(|r| &r.metadata))
    }

    /// 5.6.1 The version that the snapshot lists.
    fn needed(&self, chain: Chain, role: RoleName) -> Result<DelegatedFile, TrustError> {
        let request = self.request_for(&role, self.snapshot()?.listed(&role)?);
        Ok(DelegatedFile {
            chain,
            role,
            request,
        })
    }

    fn delegations_above(&self, chain: &Chain) -> Result<Above<'_>, TrustError> {
        let lost = TrustError::OutOfOrder {
            step: "taking delegated metadata",
            needs: "search again: the delegating role has changed",
        };
        let Some((above, _)) = chain.split() else {
            return Err(lost);
        };
        let targets = self.along(&above, self.targets()?)?.ok_or(lost.clone())?;
        Ok(Above {
            name: above.role(),
            version: targets.version,
            given: targets.delegations.as_ref().ok_or(lost)?,
        })
    }

    /// Targets of the role that lists `found`, and the delegations that lead there, each with the
    /// name of the role that it hands on to.
    pub(in crate::trust) fn path_to(
        &self,
        found: &FoundTarget,
    ) -> Result<(&TargetsMetadata, Vec<(&Delegations, String)>), TrustError> {
        let top = self.targets()?;
        let mut targets = top;
        let mut chain = Chain::default();
        let mut path = Vec::new();
        for name in &found.chain.0 {
            let above = targets.delegations.as_ref();
            path.extend(above.map(|d| (d, name.clone())));
            chain = chain.below(name);
            targets = self.along(&chain, top)?.ok_or(TrustError::OutOfOrder {
                step: "using a delegated target",
                needs: "search again: the delegated role has changed",
            })?;
        }
        Ok((targets, path))
    }
}

fn delegated(role: &str) -> RoleName {
    RoleName::Delegated(role.to_owned())
}

/// Metadata that delegates.
struct Above<'a> {
    name: RoleName,
    version: u64,
    given: &'a Delegations,
}
