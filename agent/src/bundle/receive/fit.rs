//! Whether this device can hold and run a bundle, asked before anything large is fetched.

use super::fetch::Missing;
use super::{Receiver, Turn, UpdateError, blocking, remove_others};
use crate::bundle::stage;
use crate::files::{Disk, FileError, Kind};
use dunlin_protocol::bundle::{Blob, HostFacts, MANIFEST_MAX_BYTES, Manifest, check_fit};
use dunlin_protocol::id::{Digest, Family};
use std::path::{Path, PathBuf};

/// Free disk that an update leaves to the ledger, the telemetry and the rest of the device, in bytes.
pub(crate) const DISK_RESERVE_BYTES: u64 = 16 << 20;

/// What this device is, asked anew for every bundle.
pub type HostFactsProvider = Box<dyn Fn() -> HostFacts + Send + Sync>;

/// Facts about this device: its disk as it is now, its memory as the worker is limited.
#[must_use]
pub fn host_facts(disk: &Disk, state_dir: &Path, memory_limit_mib: u64) -> HostFacts {
    let disk_free_bytes = disk.free_bytes(state_dir).unwrap_or_else(|error| {
        tracing::warn!(%error, "free disk space is unknown, taken as none");
        0
    });
    HostFacts {
        arch: std::env::consts::ARCH.to_owned(),
        agent_version: crate::VERSION.to_owned(),
        ram_bytes: memory_limit_mib.saturating_mul(1 << 20),
        disk_free_bytes,
    }
}

/// Memory that the models of other families need, of those that serve in the slots of `models_dir`,
/// in bytes, by their signed manifests.
#[must_use]
pub fn ram_of_others(disk: &Disk, models_dir: &Path, family: &Family) -> u64 {
    let found = disk.list(models_dir).unwrap_or_default();
    let others = found
        .into_iter()
        .filter(|(name, found)| found.kind == Kind::Folder && name != family.as_str());
    let needs = others.filter_map(|(name, _)| {
        let manifest = models_dir.join(name).join("current").join(stage::MANIFEST);
        let max = u64::try_from(MANIFEST_MAX_BYTES).unwrap_or(u64::MAX);
        let bytes = disk.read_if_there(&manifest, max).ok()??;
        Some(Manifest::parse(&bytes).ok()?.resources.ram_bytes)
    });
    needs.fold(0, u64::saturating_add)
}

impl Receiver {
    /// Where room for the missing blobs is short, removes what neither the other slots nor this
    /// bundle need: above all the version that `slot` still holds, which is about to give way.
    /// That it fails is only logged: the bundle does not fit then, at worst.
    pub(super) async fn make_room(
        &self,
        turn: &Turn,
        slot: &Path,
        digest: Digest,
        manifest: &Manifest,
        missing: &[Missing<'_>],
    ) -> Result<(), UpdateError> {
        let wanted = self.room(missing).saturating_add(DISK_RESERVE_BYTES);
        if missing.is_empty() || (self.host)().disk_free_bytes >= wanted {
            return Ok(());
        }
        let named = manifest.files.named().into_iter();
        let unneeded = Unneeded {
            disk: self.disk.clone(),
            blobs: self.blobs.clone(),
            partials: self.partials(),
            slot: slot.to_owned(),
            digest,
            named: named.map(|(_, blob)| blob.clone()).collect(),
        };
        match blocking(turn, move || unneeded.remove()).await? {
            Ok(bytes) => {
                tracing::info!(bytes, "room is short: what is no longer needed is removed")
            }
            Err(error) => tracing::warn!(%error, "room is short, and not all can be removed"),
        }
        Ok(())
    }

    pub(super) fn check_fit(
        &self,
        slot: &Path,
        manifest: &Manifest,
        missing: &[Missing<'_>],
    ) -> Result<(), UpdateError> {
        let mut host = (self.host)();
        let bundle = format!("{} version {}", manifest.family, manifest.version);
        let (missing_bytes, free) = (self.room(missing), host.disk_free_bytes);
        let wanted = missing_bytes.saturating_add(DISK_RESERVE_BYTES);
        if !missing.is_empty() && free < wanted {
            return Err(UpdateError::refused(
                "unfit",
                format!(
                    "{bundle}: needs {wanted} bytes of free disk while it is fetched and unpacked \
                     ({DISK_RESERVE_BYTES} of them kept in reserve), got {free}"
                ),
            ));
        }
        // What is here already needs no space any more.
        let all: u64 = manifest.files.named().iter().map(|(_, b)| b.length).sum();
        let needed: u64 = missing.iter().map(|m| m.blob.length).sum();
        host.disk_free_bytes = host.disk_free_bytes.saturating_add(all - needed);
        let models_dir = slot.parent().and_then(Path::parent);
        let others = models_dir.map_or(0, |dir| ram_of_others(&self.disk, dir, &manifest.family));
        host.ram_bytes = host.ram_bytes.saturating_sub(others);
        check_fit(manifest, &host).map_err(|e| {
            let beside = match others {
                0 => String::new(),
                bytes => format!(" ({bytes} bytes of memory are the other models')"),
            };
            UpdateError::refused("unfit", format!("{bundle} {e}{beside}"))
        })
    }

    /// Bytes that the missing blobs take while they are fetched and unpacked, less what is fetched
    /// of them already.
    fn room(&self, missing: &[Missing<'_>]) -> u64 {
        // The folder is not there before the first fetch.
        let partials = self.disk.list(&self.partials()).unwrap_or_default();
        missing.iter().fold(0, |sum, Missing { blob, .. }| {
            let packed = blob.packed.as_ref().map_or(0, |p| p.length);
            let begun = partials
                .iter()
                .filter(|(name, _)| name.to_str().is_some_and(|n| is_begun(n, blob)));
            let have: u64 = begun.map(|(_, found)| found.length_bytes).sum();
            let needed = blob.length.saturating_add(packed).saturating_sub(have);
            sum.saturating_add(needed)
        })
    }
}

/// Whether a file in `blobs/partial` is of this blob: it, or a patch that leads to it.
fn is_begun(name: &str, blob: &Blob) -> bool {
    name.starts_with(&blob.transport().0.to_string())
        || name.ends_with(&format!("-{}.patch", blob.sha256))
}

/// What may go for a bundle that is about to be fetched.
struct Unneeded {
    disk: Disk,
    blobs: PathBuf,
    partials: PathBuf,
    /// The bundle goes here.
    slot: PathBuf,
    digest: Digest,
    named: Vec<Blob>,
}

impl Unneeded {
    /// Returns the bytes of names removed; slots do not count.
    fn remove(&self) -> Result<u64, FileError> {
        let disk = &self.disk;
        let held = stage::claims(disk, &self.slot);
        if held.is_some_and(|digest| digest != self.digest) {
            stage::clear(disk, &self.slot)?;
        }
        let mut needed = vec![self.digest];
        needed.extend(self.in_other_slots()?);
        let mut kept = super::named_by(disk, &self.blobs, &needed);
        kept.extend(self.named.iter().map(|blob| blob.sha256.to_string()));
        let removed = remove_others(disk, &self.blobs, |name| kept.contains(name))?;
        let is_begun = |name: &str| self.named.iter().any(|blob| is_begun(name, blob));
        Ok(removed + remove_others(disk, &self.partials, is_begun)?)
    }

    /// Of this family and of all others.
    fn in_other_slots(&self) -> Result<Vec<Digest>, FileError> {
        let family = self.slot.parent();
        let Some(models) = family.and_then(Path::parent) else {
            return Ok(Vec::new());
        };
        let mut held = Vec::new();
        for family in self.folders(models)? {
            let slots = self.folders(&family)?.into_iter();
            let others = slots.filter(|slot| *slot != self.slot);
            held.extend(others.filter_map(|slot| stage::claims(&self.disk, &slot)));
        }
        Ok(held)
    }

    fn folders(&self, of: &Path) -> Result<Vec<PathBuf>, FileError> {
        let found = self.disk.list(of)?.into_iter();
        let folders = found.filter(|(_, found)| found.kind == Kind::Folder);
        Ok(folders.map(|(name, _)| of.join(name)).collect())
    }
}
