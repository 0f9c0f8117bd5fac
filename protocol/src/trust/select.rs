//! The device's own rule: of what is signed, what may this device install?

use std::collections::BTreeMap;

use super::targets::{TargetCustom, TargetEntry, TargetsMetadata};
use super::verify::Verified;
use super::{SelectionError, TrustError};
use crate::bundle::Manifest;
use crate::id::Family;

/// Hardware name of a target that runs anywhere.
pub const ANY_HARDWARE: &str = "any";

/// A signed target that this device may install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedTarget {
    entry: Verified<TargetEntry>,
    custom: TargetCustom,
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
/// [`raise_floors`]. The target's own floor counts as well.
///
/// # Errors
/// Below the floor, for other hardware, or without a usable `custom.dunlin`.
pub fn check_target(
    entry: Verified<TargetEntry>,
    floors: &BTreeMap<Family, u64>,
    hardware: &str,
) -> Result<VerifiedTarget, SelectionError> {
    let custom = TargetCustom::read(&entry).map_err(|e| SelectionError::MissingCustom {
        path: entry.path.clone(),
        reason: e.to_string(),
    })?;
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
    Ok(VerifiedTarget { entry, custom })
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
    for entry in targets.targets.values() {
        let custom = &entry.custom["dunlin"];
        let family = custom["family"].as_str().and_then(|f| f.parse().ok());
        let (Some(family), Some(floor)) = (family, custom["rollback_floor"].as_u64()) else {
            continue;
        };
        let seen = floors.entry(family).or_insert(0);
        *seen = floor.max(*seen);
    }
}
