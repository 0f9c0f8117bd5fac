//! Who this device is: the key made on it, and the certificate that the fleet's CA gave for it.
//!
//! `<state_dir>/identity/device.key` (ECDSA P-256, PKCS #8 PEM, mode 0600) is made at enrolment;
//! every renewal makes another, `device.<digits>.key`. None ever leaves.
//! `<state_dir>/identity/enrolled.json` holds all that enrolment brought and names the key, in one
//! file, so that key, certificate, CA and addresses always belong together. A device is enrolled
//! once it exists.

mod key;
mod lock;
mod succession;
mod tls;

pub use key::DeviceKey;
pub use lock::IdentityLock;
pub use succession::Candidate;
pub(crate) use tls::FleetServer;
pub use tls::provider;

use crate::clock::{Clock, not_before_is_no_reason};
use crate::files::{self, Disk, FileError};
use dunlin_protocol::enroll::{ENROLL_MAX_BYTES, EnrollResponse};
use dunlin_protocol::id::{DeviceId, Digest, FleetId};
use jiff::Timestamp;
use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tls::Live;

/// Most certificates in a chain.
const CHAIN_MAX: usize = 8;

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of it cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Others may read the key.
    #[error("{}: mode {mode:o} lets others read the device's key; if it was never copied: chmod 600", path.display())]
    OpenKey {
        /// The key file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file of it is damaged.
    #[error("{}: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong; never any secret.
        problem: String,
    },
    /// Somebody else is changing the identity.
    #[error("an enrolment or a renewal is under way ({} is locked): try again", path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// The identity on disk is no longer the one that was to be followed.
    #[error("the device enrolled anew meanwhile: that identity stays")]
    Superseded,
    /// A certificate that is not this device's, or of another CA.
    #[error("device certificate: {0}")]
    Certificate(String),
    /// No key can be made, or no request signed.
    #[error("device key: {0}")]
    Key(String),
}

/// What enrolment brought, less the trust root, which lives with the rest of trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The fleet.
    pub fleet: FleetId,
    /// This device.
    pub device: DeviceId,
    /// The device's certificate, PEM.
    pub certificate_pem: String,
    /// The fleet CA's certificate, PEM.
    pub ca_pem: String,
    /// Host of the MQTT broker.
    pub mqtt_host: String,
    /// Port of the MQTT broker.
    pub mqtt_port: u16,
    /// Base URL of the bundle repository.
    pub repository_url: String,
    /// Labels the claim token gave.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Name of the key's file beside this one.
    #[serde(default = "key::first_key_file")]
    pub key_file: String,
}

impl From<&EnrollResponse> for Enrolled {
    fn from(r: &EnrollResponse) -> Self {
        Self {
            fleet: r.fleet.clone(),
            device: r.device.clone(),
            certificate_pem: r.certificate_pem.clone(),
            ca_pem: r.ca_pem.clone(),
            mqtt_host: r.mqtt_host.clone(),
            mqtt_port: r.mqtt_port,
            repository_url: r.repository_url.clone(),
            labels: r.labels.clone(),
            key_file: key::first_key_file(),
        }
    }
}

/// How long a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First instant at which it is valid.
    pub not_before: Timestamp,
    /// Last instant at which it is valid.
    pub not_after: Timestamp,
}

/// An enrolled device. Clones share the certificate: one that follows is used by all from their next
/// connection on.
#[derive(Debug, Clone)]
pub struct Identity {
    /// What enrolment brought; the certificate is the one at start.
    pub enrolled: Enrolled,
    live: Arc<Live>,
    tls: Arc<ClientConfig>,
    clock: Arc<Clock>,
}

impl Identity {
    /// Reads the identity; `None` if the device is not enrolled.
    ///
    /// An expired certificate is no error here: the agent goes on inferring without the server.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn load(state_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(enrolled) = read_enrolled(state_dir)? else {
            return Ok(None);
        };
        let key = DeviceKey::load(state_dir, &enrolled.key_file)?.ok_or_else(|| {
            IdentityError::Damaged {
                path: folder(state_dir).join(&enrolled.key_file),
                problem: "is missing though the device is enrolled; enrol again".to_owned(),
            }
        })?;
        let clock = Arc::new(Clock::open(state_dir));
        Self::assemble(key, enrolled, clock).map(Some)
    }

    /// Checks a response to enrolment against this device's key and the pinned CA, and that the
    /// certificate is valid now.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`]
    pub fn check(
        key: DeviceKey,
        enrolled: Enrolled,
        ca_sha256: &Digest,
    ) -> Result<Self, IdentityError> {
        let got = Digest::of(&authority(&enrolled)?);
        if got != *ca_sha256 {
            return Err(IdentityError::Certificate(format!(
                "the CA that came with it has SHA-256 {got}, the claim token says {ca_sha256}"
            )));
        }
        let clock = Arc::new(Clock::open(&key.state_dir));
        check_vouched(&enrolled, &clock)?;
        Self::assemble(key, enrolled, clock)
    }

    /// Stores it in one atomic write; enrolled from here on.
    ///
    /// # Errors
    /// [`IdentityError::File`]
    pub fn store(&self, state_dir: &Path) -> Result<(), IdentityError> {
        files::create_private_dir(&folder(state_dir))?;
        write_enrolled(&Disk::native(), state_dir, &self.live.held().enrolled)
    }

    /// Mutual TLS (1.2 or newer): shows the device's newest certificate, trusts the fleet CA alone.
    #[must_use]
    pub fn rustls_client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls)
    }

    /// What time it is.
    #[must_use]
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// How long the newest certificate is good.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.live.held().validity
    }

    fn assemble(
        key: DeviceKey,
        enrolled: Enrolled,
        clock: Arc<Clock>,
    ) -> Result<Self, IdentityError> {
        let roots = roots(authority(&enrolled)?)?;
        let live = Arc::new(Live::new(tls::Held::new(key, enrolled.clone())?));
        let tls = tls::mutual(roots, Arc::clone(&live), Arc::clone(&clock))?;
        Ok(Self {
            enrolled,
            live,
            tls,
            clock,
        })
    }
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("identity")
}

fn enrolled_path(state_dir: &Path) -> PathBuf {
    folder(state_dir).join("enrolled.json")
}

fn read_enrolled(state_dir: &Path) -> Result<Option<Enrolled>, IdentityError> {
    let path = enrolled_path(state_dir);
    let Some(bytes) = files::read_if_there(&path, ENROLL_MAX_BYTES as u64)? else {
        return Ok(None);
    };
    match serde_json::from_slice(&bytes) {
        Ok(enrolled) => Ok(Some(enrolled)),
        Err(e) => Err(IdentityError::Damaged {
            path,
            problem: format!("{e}; enrol again"),
        }),
    }
}

fn write_enrolled(disk: &Disk, state_dir: &Path, enrolled: &Enrolled) -> Result<(), IdentityError> {
    let path = enrolled_path(state_dir);
    let json = serde_json::to_vec_pretty(enrolled).map_err(|e| IdentityError::Damaged {
        path: path.clone(),
        problem: e.to_string(),
    })?;
    Ok(disk.write_atomic(&path, &json, 0o600)?)
}

fn authority(enrolled: &Enrolled) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(enrolled.ca_pem.as_bytes())
        .map_err(|e| IdentityError::Certificate(format!("the fleet CA is no PEM: {e}")))
}

fn chain(enrolled: &Enrolled) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(enrolled.certificate_pem.as_bytes())
        .take(CHAIN_MAX)
        .collect::<Result<_, _>>()
        .map_err(|e| IdentityError::Certificate(format!("it is no PEM: {e}")))
}

fn roots(ca: CertificateDer<'static>) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots
        .add(ca)
        .map_err(|e| IdentityError::Certificate(format!("the fleet CA is not usable: {e}")))?;
    Ok(roots)
}

/// The fleet CA signed the certificate, and it has not ended.
fn check_vouched(enrolled: &Enrolled, clock: &Clock) -> Result<(), IdentityError> {
    let bad = IdentityError::Certificate;
    let chain = chain(enrolled)?;
    let (leaf, intermediates) = chain
        .split_first()
        .ok_or_else(|| bad("no certificate in it".to_owned()))?;
    let roots = roots(authority(enrolled)?)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|e| bad(e.to_string()))?;
    not_before_is_no_reason(clock.unix(), |at| {
        verifier.verify_client_cert(leaf, intermediates, at)
    })
    .map_err(|e| bad(format!("the fleet CA does not vouch for it: {e}")))?;
    Ok(())
}

/// The certificate is for this key and this device; returns its time.
fn check_leaf(
    leaf: &CertificateDer<'_>,
    key: &DeviceKey,
    device: &DeviceId,
) -> Result<Validity, IdentityError> {
    let bad = |problem: String| Err(IdentityError::Certificate(problem));
    let certificate = match x509_parser::parse_x509_certificate(leaf) {
        Ok((_, certificate)) => certificate,
        Err(e) => return bad(format!("it is no X.509: {e}")),
    };
    if certificate.public_key().raw != key.pair.subject_public_key_info() {
        return bad("it is for another key than this device's".to_owned());
    }
    let names: Vec<_> = certificate
        .subject()
        .iter_common_name()
        .map(|name| name.as_str().unwrap_or("(not text)"))
        .collect();
    if names != [device.as_str()] {
        return bad(format!("it is for {names:?}, expected {device}"));
    }
    let validity = certificate.validity();
    let [begin, end] = [validity.not_before, validity.not_after].map(|t| t.timestamp());
    match (Timestamp::from_second(begin), Timestamp::from_second(end)) {
        (Ok(not_before), Ok(not_after)) => Ok(Validity {
            not_before,
            not_after,
        }),
        (Err(e), _) | (_, Err(e)) => bad(format!("its validity is no date: {e}")),
    }
}

#[cfg(test)]
mod tests;
