//! Who this device is: the key made on it, and the certificate that the fleet's CA gave for it.
//!
//! `<state_dir>/identity/device.key` (ECDSA P-256, PKCS #8 PEM, mode 0600) is made once and never
//! leaves; `<state_dir>/identity/enrolled.json` holds all that enrolment brought, in one file, so
//! that certificate, CA and addresses always belong together. A device is enrolled once it exists.

use crate::files::{self, FileError};
use dunlin_protocol::enroll::{ENROLL_MAX_BYTES, EnrollResponse};
use dunlin_protocol::id::{DeviceId, Digest, FleetId};
use jiff::Timestamp;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const KEY_MAX_BYTES: u64 = 16 * 1024;
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
    /// A certificate that is not this device's, or of another CA.
    #[error("device certificate: {0}")]
    Certificate(String),
    /// No key can be made, or no request signed.
    #[error("device key: {0}")]
    Key(String),
}

/// The private key of this device.
pub struct DeviceKey {
    pair: KeyPair,
}

impl std::fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeviceKey(…)")
    }
}

impl DeviceKey {
    /// The key in `<state_dir>/identity/device.key`, made and stored first if there is none.
    ///
    /// # Errors
    /// [`IdentityError`]; a damaged or open key is never replaced silently.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, IdentityError> {
        if let Some(key) = Self::load(state_dir)? {
            return Ok(key);
        }
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|e| IdentityError::Key(e.to_string()))?;
        files::create_private_dir(state_dir)?;
        files::create_private_dir(&folder(state_dir))?;
        files::write_atomic(&key_path(state_dir), pair.serialize_pem().as_bytes(), 0o600)?;
        Ok(Self { pair })
    }

    fn load(state_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = key_path(state_dir);
        let Some(bytes) = files::read_if_there(&path, KEY_MAX_BYTES)? else {
            return Ok(None);
        };
        let mode = std::fs::metadata(&path)
            .map_err(files::at("read permissions of", &path))?
            .permissions()
            .mode()
            & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::OpenKey { path, mode });
        }
        // The parser's words could quote the key.
        let pair = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok());
        match pair {
            Some(pair) => Ok(Some(Self { pair })),
            None => Err(IdentityError::Damaged {
                path,
                problem: "no private key in PKCS #8 PEM; restore it, or delete it and enrol anew"
                    .to_owned(),
            }),
        }
    }

    /// A certificate signing request (PKCS #10, PEM) for this key. The server decides about the name.
    ///
    /// # Errors
    /// [`IdentityError::Key`]
    pub fn csr_pem(&self, common_name: &str) -> Result<String, IdentityError> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params
            .serialize_request(&self.pair)
            .and_then(|request| request.pem())
            .map_err(|e| IdentityError::Key(e.to_string()))
    }
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
        }
    }
}

/// An enrolled device.
#[derive(Debug, Clone)]
pub struct Identity {
    /// What enrolment brought.
    pub enrolled: Enrolled,
    /// Last instant at which the certificate is valid.
    pub certificate_not_after: Timestamp,
    tls: Arc<ClientConfig>,
}

impl Identity {
    /// Reads the identity; `None` if the device is not enrolled.
    ///
    /// An expired certificate is no error here: the agent goes on inferring without the server.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn load(state_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = enrolled_path(state_dir);
        let Some(bytes) = files::read_if_there(&path, ENROLL_MAX_BYTES as u64)? else {
            return Ok(None);
        };
        let enrolled: Enrolled =
            serde_json::from_slice(&bytes).map_err(|e| IdentityError::Damaged {
                path,
                problem: format!("{e}; enrol again"),
            })?;
        let key = DeviceKey::load(state_dir)?.ok_or_else(|| IdentityError::Damaged {
            path: key_path(state_dir),
            problem: "is missing though the device is enrolled; enrol again".to_owned(),
        })?;
        Self::assemble(&key, enrolled).map(Some)
    }

    /// Checks a response to enrolment against this device's key and the pinned CA, and that the
    /// certificate is valid now.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`]
    pub fn check(
        key: &DeviceKey,
        enrolled: Enrolled,
        ca_sha256: &Digest,
    ) -> Result<Self, IdentityError> {
        let bad = IdentityError::Certificate;
        let ca = authority(&enrolled)?;
        let got = Digest::of(&ca);
        if got != *ca_sha256 {
            return Err(bad(format!(
                "the CA that came with it has SHA-256 {got}, the claim token says {ca_sha256}"
            )));
        }
        let chain = chain(&enrolled)?;
        let (leaf, intermediates) = chain
            .split_first()
            .ok_or_else(|| bad("no certificate in it".to_owned()))?;
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
            .build()
            .map_err(|e| bad(e.to_string()))?
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map_err(|e| bad(format!("the fleet CA does not vouch for it: {e}")))?;
        Self::assemble(key, enrolled)
    }

    /// Stores it in one atomic write; enrolled from here on.
    ///
    /// # Errors
    /// [`IdentityError::File`]
    pub fn store(&self, state_dir: &Path) -> Result<(), IdentityError> {
        let path = enrolled_path(state_dir);
        let json =
            serde_json::to_vec_pretty(&self.enrolled).map_err(|e| IdentityError::Damaged {
                path: path.clone(),
                problem: e.to_string(),
            })?;
        files::create_private_dir(&folder(state_dir))?;
        Ok(files::write_atomic(&path, &json, 0o600)?)
    }

    /// Mutual TLS (1.2 or newer): shows the device's certificate, trusts the fleet CA alone.
    #[must_use]
    pub fn rustls_client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls)
    }

    fn assemble(key: &DeviceKey, enrolled: Enrolled) -> Result<Self, IdentityError> {
        let bad = IdentityError::Certificate;
        let chain = chain(&enrolled)?;
        let leaf = chain
            .first()
            .ok_or_else(|| bad("no certificate in it".to_owned()))?;
        let certificate_not_after = check_leaf(leaf, key, &enrolled.device)?;
        let key_der = PrivateKeyDer::Pkcs8(key.pair.serialize_der().into());
        let tls = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(e.to_string()))?
            .with_root_certificates(roots(authority(&enrolled)?)?)
            .with_client_auth_cert(chain, key_der)
            .map_err(|e| bad(e.to_string()))?;
        Ok(Self {
            enrolled,
            certificate_not_after,
            tls: Arc::new(tls),
        })
    }
}

/// The cryptography of every TLS connection of the agent.
#[must_use]
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("identity")
}

fn key_path(state_dir: &Path) -> PathBuf {
    folder(state_dir).join("device.key")
}

fn enrolled_path(state_dir: &Path) -> PathBuf {
    folder(state_dir).join("enrolled.json")
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

/// The certificate is for this key and this device; returns its end of validity.
fn check_leaf(
    leaf: &CertificateDer<'_>,
    key: &DeviceKey,
    device: &DeviceId,
) -> Result<Timestamp, IdentityError> {
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
    let seconds = certificate.validity().not_after.timestamp();
    match Timestamp::from_second(seconds) {
        Ok(end) => Ok(end),
        Err(e) => bad(format!("its end of validity is no date: {e}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateSigningRequestParams, CertifiedIssuer,
        ExtendedKeyUsagePurpose, IsCa,
    };

    fn ca() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn enrolled(ca: &CertifiedIssuer<'static, KeyPair>, csr: &str, name: &str) -> Enrolled {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params.distinguished_name = rcgen::DistinguishedName::new();
        request
            .params
            .distinguished_name
            .push(DnType::CommonName, name);
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Enrolled {
            fleet: "demo".parse().unwrap(),
            device: "edge-1".parse().unwrap(),
            certificate_pem: request.signed_by(ca).unwrap().pem(),
            ca_pem: ca.pem(),
            mqtt_host: "localhost".to_owned(),
            mqtt_port: 8883,
            repository_url: "https://localhost:8443".to_owned(),
            labels: BTreeMap::new(),
        }
    }

    #[test]
    fn the_key_is_made_once_and_an_identity_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let key = DeviceKey::load_or_create(dir.path()).unwrap();
        let again = DeviceKey::load_or_create(dir.path()).unwrap();
        assert_eq!(
            key.pair.subject_public_key_info(),
            again.pair.subject_public_key_info()
        );
        assert!(Identity::load(dir.path()).unwrap().is_none());

        let ca = ca();
        let response = enrolled(&ca, &key.csr_pem("edge-1").unwrap(), "edge-1");
        let pin = Digest::of(ca.der());
        Identity::check(&key, response.clone(), &pin)
            .unwrap()
            .store(dir.path())
            .unwrap();
        let identity = Identity::load(dir.path()).unwrap().unwrap();
        assert_eq!(identity.enrolled, response);
        assert!(identity.certificate_not_after > Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn a_certificate_of_another_key_name_or_ca_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let other_dir = tempfile::tempdir().unwrap();
        let key = DeviceKey::load_or_create(dir.path()).unwrap();
        let other = DeviceKey::load_or_create(other_dir.path()).unwrap();
        let ca = ca();
        let pin = Digest::of(ca.der());
        let csr = key.csr_pem("x").unwrap();
        let says = |e: Result<Identity, IdentityError>| e.unwrap_err().to_string();

        let foreign = enrolled(&ca, &other.csr_pem("x").unwrap(), "edge-1");
        assert!(says(Identity::check(&key, foreign, &pin)).contains("another key"));
        let renamed = enrolled(&ca, &csr, "edge-2");
        assert!(says(Identity::check(&key, renamed, &pin)).contains("edge-2"));
        let wrong_pin = Identity::check(&key, enrolled(&ca, &csr, "edge-1"), &Digest::of(b""));
        assert!(says(wrong_pin).contains("claim token says"));
        let mut swapped = enrolled(&ca, &csr, "edge-1");
        let second_ca = self::ca();
        swapped.ca_pem = second_ca.pem();
        let unvouched = Identity::check(&key, swapped, &Digest::of(second_ca.der()));
        assert!(says(unvouched).contains("does not vouch"));
    }

    #[test]
    fn an_open_or_damaged_key_is_neither_used_nor_replaced() {
        let dir = tempfile::tempdir().unwrap();
        DeviceKey::load_or_create(dir.path()).unwrap();
        let path = key_path(dir.path());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let open = DeviceKey::load_or_create(dir.path()).unwrap_err();
        assert!(matches!(open, IdentityError::OpenKey { mode: 0o644, .. }));
        files::write_atomic(&path, b"-----BEGIN PRIVATE KEY-----\nAA", 0o600).unwrap();
        let damaged = DeviceKey::load_or_create(dir.path()).unwrap_err();
        assert!(matches!(damaged, IdentityError::Damaged { .. }));
    }
}
