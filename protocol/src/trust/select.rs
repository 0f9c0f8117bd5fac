//! The device's own rule: of what is signed, what may this device install?

use std::collections::BTreeMap;

use super::targets::{TargetCustom, TargetEntry, TargetsMetadata};
use super::verify::{FoundTarget, Origin, TrustedSet, Verified};
use super::{SelectionError, TrustError};
use crate::bundle::Manifest;
use crate::id::{Digest, Family};

/// Hardware name of a target that runs anywhere.
pub const ANY_HARDWARE: &str = "any";

/// Most comparisons of a path with a pattern for the floors of one delegated role: about a second
/// on a small device.
const FLOOR_CHECKS_MAX: usize = 2_000_000;

/// A signed target that this device may install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedTarget {
    entry: Verified<TargetEntry>,
    custom: TargetCustom,
    digest: Digest,
}

impl VerifiedTarget {
    /// The signed target.
    #[must_use]
    pub fn entry(&self) -> &Verified<TargetEntry> {
        &self.entry
    }

    /// What the key holders say of it.
    #[must_use]
    pub fn custom(&self) -> &TargetCustom {
        &self.custom
    }

    /// The bundle's digest: the SHA-256 of its manifest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Reads the bundle's manifest: see [`Verified::open_manifest`].
    ///
    /// # Errors
    /// Other bytes than signed, or no manifest.
    pub fn open_manifest(self, bytes: &[u8]) -> Result<Verified<Manifest>, TrustError> {
        self.entry.open_manifest(bytes)
    }
}

/// May a device that is `hardware` install `entry`?
///
/// `floors` are the highest rollback floors the device has ever seen, by family: keep them with
/// [`raise_floors`] and [`raise_delegated_floors`]. The target's own floor counts as well.
///
/// # Errors
/// Below the floor, for other hardware, without a usable `custom.dunlin` or without a SHA-256, or
/// signed by a delegated role as another family than its path names.
pub fn check_target(
    found: FoundTarget,
    floors: &BTreeMap<Family, u64>,
    hardware: &str,
) -> Result<VerifiedTarget, SelectionError> {
    let unusable = |e: TrustError| SelectionError::MissingCustom {
        path: found.path.clone(),
        reason: e.to_string(),
    };
    let custom = TargetCustom::read(&found).map_err(unusable)?;
    let digest = found.sha256().map_err(unusable)?;
    if found.is_delegated() && family_of(&found.path) != Some(custom.family.as_str()) {
        return Err(SelectionError::WrongFamily {
            path: found.path.clone(),
            family: custom.family,
        });
    }
    let fits = |name: &String| name == hardware || name == ANY_HARDWARE;
    if !custom.hardware.iter().any(fits) {
        return Err(SelectionError::WrongHardware {
            wants: custom.hardware,
            has: hardware.to_owned(),
        });
    }
    let seen = floors.get(&custom.family).copied().unwrap_or(0);
    let floor = seen.max(custom.rollback_floor);
    if custom.version < floor {
        return Err(SelectionError::BelowFloor {
            family: custom.family,
            version: custom.version,
            floor,
        });
    }
    Ok(VerifiedTarget {
        entry: found.into_entry(),
        custom,
        digest,
    })
}

/// The family that a target's path names: all before the first `/`.
fn family_of(path: &str) -> Option<&str> {
    path.split_once('/').map(|(family, _)| family)
}

/// The highest rollback floor over all listed targets of a family, 0 if none names one.
#[must_use]
pub fn highest_floor(targets: &TargetsMetadata, family: &Family) -> u64 {
    let mut floors = BTreeMap::new();
    raise_floors(&mut floors, targets);
    floors.get(family).copied().unwrap_or(0)
}

/// Raises the floors seen so far to those that `targets` lists; none ever sinks.
///
/// A target counts as soon as it names family and floor, even if this version of Dunlin cannot
/// use it otherwise. Persist the result before anything is installed.
pub fn raise_floors(floors: &mut BTreeMap<Family, u64>, targets: &TargetsMetadata) {
    for (family, floor) in targets.targets.values().filter_map(floor_of) {
        raise(floors, family, floor);
    }
}

/// Raises the floor of the family of `found` to those that its role lists, if that is a delegated
/// one. For top-level targets see [`raise_floors`].
///
/// A delegated role speaks for the family for which the search led to it, and for no other; and of
/// that family only for paths that every delegation on the way covers. Whatever else it lists raises
/// nothing: nobody can lock a family that was not handed to them.
///
/// # Errors
/// The role lists more targets, or is delegated by more paths, than can be checked in good time;
/// or what keeps the metadata from being current.
pub fn raise_delegated_floors(
    floors: &mut BTreeMap<Family, u64>,
    set: &TrustedSet,
    found: &FoundTarget,
) -> Result<(), DelegatedFloorError> {
    let Some(family) = family_of(&found.path).filter(|_| found.is_delegated()) else {
        return Ok(());
    };
    let Origin {
        targets,
        delegations,
    } = set.origin(found)?;
    let of_family: Vec<&TargetEntry> = targets
        .targets
        .values()
        .filter(|entry| family_of(&entry.path) == Some(family))
        .collect();
    let patterns: usize = delegations.iter().map(|(d, role)| d.scope_len(role)).sum();
    if of_family.len().saturating_mul(patterns) > FLOOR_CHECKS_MAX {
        return Err(SelectionError::TooManyPaths {
            role: found.role().as_str().to_owned(),
            entries: of_family.len(),
            patterns,
        }
        .into());
    }
    for entry in of_family {
        let allowed = delegations
            .iter()
            .all(|(d, role)| d.allows(role, &entry.path));
        match floor_of(entry) {
            Some((named, floor)) if allowed && named.as_str() == family => {
                raise(floors, named, floor);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Why the floors of a delegated role cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DelegatedFloorError {
    /// Its metadata is not current.
    #[error("{0}")]
    Trust(#[from] TrustError),
    /// It is too large to be checked.
    #[error("{0}")]
    Selection(#[from] SelectionError),
}

fn floor_of(entry: &TargetEntry) -> Option<(Family, u64)> {
    let custom = &entry.custom["dunlin"];
    let family = custom["family"].as_str()?.parse().ok()?;
    Some((family, custom["rollback_floor"].as_u64()?))
}

fn raise(floors: &mut BTreeMap<Family, u64>, family: Family, floor: u64) {
    let seen = floors.entry(family).or_insert(0);
    *seen = floor.max(*seen);
}
