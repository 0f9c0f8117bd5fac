//! The next key and certificate: made beside the present ones, tried, then put in their place by one
//! atomic write.
//!
//! ```text
//! in memory        on disk
//! ─────────        ───────
//! key, request
//! certificate
//! tried over TLS
//!                  device.<digits>.key      an unnamed file more, swept up the next time
//!                  enrolled.json            ◀── from here on it counts
//!                  the key before is removed
//! ```
//! Cut anywhere above the line that counts, the present identity is whole and the server still takes
//! it; below, the next one is.

use super::key::is_key_file;
use super::tls::{Held, Live, anonymous, mutual};
use super::{
    DeviceKey, Enrolled, Identity, IdentityError, IdentityLock, authority, check_vouched, folder,
    roots, write_enrolled,
};
use crate::files::{Disk, FileError};
use dunlin_protocol::enroll::recovery_message;
use dunlin_protocol::id::Digest;
use rustls::ClientConfig;
use std::path::Path;
use std::sync::Arc;

/// The next identity, whole but not in use.
#[derive(Debug)]
pub struct Candidate {
    held: Arc<Held>,
    tls: Arc<ClientConfig>,
}

impl Candidate {
    /// Mutual TLS with the next certificate.
    #[must_use]
    pub fn rustls_client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls)
    }

    /// SHA-256 of the next certificate (DER).
    #[must_use]
    pub fn certificate_sha256(&self) -> Digest {
        self.held.sha256
    }
}

impl Identity {
    /// A new key, in memory only.
    ///
    /// # Errors
    /// [`IdentityError::Key`]
    pub fn next_key(&self) -> Result<DeviceKey, IdentityError> {
        DeviceKey::next(&self.live.held().key.state_dir)
    }

    /// SHA-256 of the present certificate (DER).
    #[must_use]
    pub fn certificate_sha256(&self) -> Digest {
        self.live.held().sha256
    }

    /// The present certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        self.live.held().enrolled.certificate_pem.clone()
    }

    /// Signs with the present key that the certificate request is this device's, for a server that
    /// refuses the present certificate since its time is over.
    ///
    /// # Errors
    /// [`IdentityError::Key`]
    pub fn prove(&self, nonce: &str, csr_pem: &str) -> Result<Vec<u8>, IdentityError> {
        let held = self.live.held();
        let Enrolled { fleet, device, .. } = &held.enrolled;
        let message = recovery_message(fleet, device, nonce, &held.sha256, csr_pem);
        held.key.sign(&message)
    }

    /// TLS that shows no certificate and trusts the fleet CA alone.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`]
    pub fn anonymous_tls(&self) -> Result<ClientConfig, IdentityError> {
        let roots = roots(authority(&self.live.held().enrolled)?)?;
        anonymous(roots, Arc::clone(&self.clock))
    }

    /// Checks a certificate for the next key: of the fleet's CA, for this device, not ended.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`]
    pub fn candidate(
        &self,
        key: DeviceKey,
        certificate_pem: String,
    ) -> Result<Candidate, IdentityError> {
        let enrolled = Enrolled {
            certificate_pem,
            ..self.live.held().enrolled.clone()
        };
        check_vouched(&enrolled, &self.clock)?;
        let roots = roots(authority(&enrolled)?)?;
        let live = Arc::new(Live::new(Held::new(key, enrolled)?));
        Ok(Candidate {
            held: live.held(),
            tls: mutual(roots, live, Arc::clone(&self.clock))?,
        })
    }

    /// Puts the next identity in the place of the present one, on disk and for new connections.
    ///
    /// # Errors
    /// [`IdentityError::File`]; the present one is then still in place, or the next one already is.
    /// [`IdentityError::Busy`], [`IdentityError::Superseded`]: somebody enrols, or has enrolled.
    pub fn adopt(&self, disk: &Disk, candidate: &Candidate) -> Result<(), IdentityError> {
        let state_dir = &candidate.held.key.state_dir;
        let _lock = IdentityLock::take(state_dir)?;
        self.still_counts(state_dir)?;
        candidate.held.key.store(disk)?;
        write_enrolled(disk, state_dir, &candidate.held.enrolled)?;
        self.live.replace(Arc::clone(&candidate.held));
        if let Err(error) = sweep(disk, state_dir, &candidate.held.key.file) {
            // It is superseded, so of no use to whoever finds it; the next renewal tries again.
            tracing::warn!(%error, "the key before could not be removed");
        }
        Ok(())
    }

    /// Whether the identity on disk is the one in use. If it is another of the same device, which an
    /// enrolment or an adoption that was cut off put there, that one is used from now on.
    fn still_counts(&self, state_dir: &Path) -> Result<(), IdentityError> {
        let held = self.live.held();
        let found = match Self::load(state_dir) {
            Ok(Some(found)) => found,
            Ok(None) => return Err(IdentityError::Superseded),
            // What is about to be written mends it.
            Err(IdentityError::Damaged { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let found = found.live.held();
        if found.enrolled == held.enrolled {
            return Ok(());
        }
        let whose = |e: &Enrolled| (e.fleet.clone(), e.device.clone(), e.ca_pem.clone());
        if whose(&found.enrolled) == whose(&held.enrolled) {
            self.live.replace(found);
        }
        Err(IdentityError::Superseded)
    }
}

/// Removes every key but one, and what an earlier writer that was killed left of one.
fn sweep(disk: &Disk, state_dir: &Path, keep: &str) -> Result<(), FileError> {
    let folder = folder(state_dir);
    for (name, _) in disk.list(&folder)? {
        let is_other_key = name.to_str().is_some_and(|n| {
            let part = n.strip_prefix('.').and_then(|n| n.strip_suffix(".new"));
            n != keep && is_key_file(part.unwrap_or(n))
        });
        if is_other_key {
            disk.remove_if_there(&folder.join(name))?;
        }
    }
    disk.sync_dir(&folder)
}
