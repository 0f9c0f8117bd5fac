//! Whether this device can hold and run a bundle, asked before anything large is fetched.

use super::fetch::Missing;
use super::{Receiver, UpdateError};
use crate::files::Disk;
use dunlin_protocol::bundle::{HostFacts, Manifest, check_fit};
use std::path::Path;

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

impl Receiver {
    pub(super) fn check_fit(
        &self,
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
        check_fit(manifest, &host)
            .map_err(|e| UpdateError::refused("unfit", format!("{bundle} {e}")))
    }

    /// Bytes that the missing blobs take while they are fetched and unpacked, less what is fetched
    /// of them already.
    fn room(&self, missing: &[Missing<'_>]) -> u64 {
        missing.iter().fold(0, |sum, Missing { blob, .. }| {
            let packed = blob.packed.as_ref().map_or(0, |p| p.length);
            let partial = self.partials().join(blob.transport().0.to_string());
            let found = self.disk.look(&partial).ok().flatten();
            let have = found.map_or(0, |m| m.length_bytes);
            let needed = blob.length.saturating_add(packed).saturating_sub(have);
            sum.saturating_add(needed)
        })
    }
}
