//! Whether a bundle fits a device, decided before anything is downloaded.

use super::Manifest;

/// What a device is, as far as bundles care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Architecture as Rust names it.
    pub arch: String,
    /// The agent's own version.
    pub agent_version: String,
    /// Memory the worker may use, in bytes.
    pub ram_bytes: u64,
    /// Free space where bundles are kept, in bytes.
    pub disk_free_bytes: u64,
}

/// Why a bundle does not fit this device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Built for other processors.
    #[error("needs one of {wanted:?}, this device is {got:?}")]
    Arch {
        /// Architectures the manifest lists.
        wanted: Vec<String>,
        /// This device's.
        got: String,
    },
    /// The agent is too old.
    #[error("needs agent {wanted} or newer, this is {got}")]
    Agent {
        /// Oldest agent that can run it.
        wanted: String,
        /// This agent.
        got: String,
    },
    /// Not enough memory.
    #[error("needs {wanted_bytes} bytes of memory, the worker may use {got_bytes}")]
    Ram {
        /// Need.
        wanted_bytes: u64,
        /// Limit.
        got_bytes: u64,
    },
    /// Not enough disk.
    #[error("needs {wanted_bytes} bytes of disk, {got_bytes} are free")]
    Disk {
        /// Need.
        wanted_bytes: u64,
        /// Free.
        got_bytes: u64,
    },
}

/// Checks the manifest's needs against the device.
///
/// # Errors
/// The first need that is not met.
pub fn check_fit(manifest: &Manifest, host: &HostFacts) -> Result<(), Unfit> {
    let need = &manifest.resources;
    if !need.arch.iter().any(|a| a == "any" || *a == host.arch) {
        return Err(Unfit::Arch {
            wanted: need.arch.clone(),
            got: host.arch.clone(),
        });
    }
    if parse_version(&host.agent_version) < parse_version(&need.agent_min) {
        return Err(Unfit::Agent {
            wanted: need.agent_min.clone(),
            got: host.agent_version.clone(),
        });
    }
    if host.ram_bytes < need.ram_bytes {
        return Err(Unfit::Ram {
            wanted_bytes: need.ram_bytes,
            got_bytes: host.ram_bytes,
        });
    }
    let disk = need
        .disk_bytes
        .max(manifest.files.named().iter().map(|(_, b)| b.length).sum());
    if host.disk_free_bytes < disk {
        return Err(Unfit::Disk {
            wanted_bytes: disk,
            got_bytes: host.disk_free_bytes,
        });
    }
    Ok(())
}

/// `major.minor.patch` as an ordered triple.
pub(crate) fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.splitn(3, '.').map(|p| p.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_need_is_checked() {
        let host = HostFacts {
            arch: "x86_64".to_owned(),
            agent_version: "0.10.0".to_owned(),
            ram_bytes: 1 << 30,
            disk_free_bytes: 1 << 30,
        };
        let m = super::super::manifest::tests::sample();
        assert_eq!(check_fit(&m, &host), Ok(()));
        let with = |change: fn(&mut Manifest)| {
            let mut m = m.clone();
            change(&mut m);
            check_fit(&m, &host).unwrap_err()
        };
        assert!(matches!(
            with(|m| m.resources.arch = vec!["arm".to_owned()]),
            Unfit::Arch { .. }
        ));
        assert!(matches!(
            with(|m| m.resources.agent_min = "0.10.1".to_owned()),
            Unfit::Agent { .. }
        ));
        assert!(matches!(
            with(|m| m.resources.ram_bytes = 2 << 30),
            Unfit::Ram { .. }
        ));
        assert!(matches!(
            with(|m| m.files.model.length = 2 << 30),
            Unfit::Disk { .. }
        ));
    }
}
