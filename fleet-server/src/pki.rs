//! The fleet's own certificate authority, the server's certificates and those it signs for
//! devices. Keys never leave this folder; of a device's request only the proven public key is
//! taken, subject and extensions are the server's.
//!
//! `pki/ca.pem`, `server.pem`, `mqtt-client.pem` and their `.key`s (mode 0600). A key is written
//! before its certificate, so that a cut in between leaves a key nobody knows, which is made anew.

use crate::acl::SERVER_NAME;
use crate::files::{self, FileError, PUBLIC, SECRET};
use dunlin_protocol::id::{DeviceId, Digest, FleetId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Largest certificate signing request, in bytes of PEM.
pub const CSR_MAX_BYTES: usize = 16 * 1024;
const PEM_MAX_BYTES: usize = 64 * 1024;
const CA_LIFE: Duration = Duration::days(3650);
const SERVER_LIFE: Duration = Duration::days(825);
const DEVICE_LIFE: Duration = Duration::days(365);
/// A server's certificate nearer to its end than this is made anew at start.
const RENEW_BEFORE: Duration = Duration::days(30);
/// Devices' clocks may be behind.
const BACKDATE: Duration = Duration::hours(1);

/// Why a key, a certificate or a request cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("PKI: {0}")]
    File(#[from] FileError),
    /// The CA's certificate is there, its key is not.
    #[error(
        "PKI: {} is missing beside its certificate: restore it from a backup (a new CA would lock every device out)",
        .0.display()
    )]
    CaKeyMissing(PathBuf),
    /// A file does not hold what its name says.
    #[error("PKI: {}: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A certificate signing request.
    #[error("certificate signing request: {0}")]
    Csr(String),
    /// Signing or TLS set-up failed.
    #[error("PKI: {0}")]
    Library(String),
}

/// A request whose sender has proven to hold the key.
pub struct CheckedCsr {
    request: CertificateSigningRequestParams,
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER).
    pub public_key_sha256: [u8; 32],
}

/// A certificate signed for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCertificate {
    /// The certificate, PEM.
    pub pem: String,
    /// SHA-256 of the certificate (DER).
    pub sha256: Digest,
}

/// Files for an MQTT client of the server's, or a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PemFiles {
    /// The fleet CA's certificate.
    pub ca: PathBuf,
    /// The certificate (chain).
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Certificate and key of one name.
struct Pair {
    chain: Vec<CertificateDer<'static>>,
    key_der: Vec<u8>,
}

/// The open PKI.
pub struct Pki {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    server: Pair,
    mqtt_client: Pair,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

fn library(e: impl std::fmt::Display) -> PkiError {
    PkiError::Library(e.to_string())
}

impl Pki {
    /// Opens the PKI in a folder; makes what is missing, renews the server's certificates when
    /// they near their end or its names changed.
    ///
    /// # Errors
    /// Files that cannot be read or written or do not hold what they should; a CA without its key.
    pub fn open(
        folder: &Path,
        fleet: &FleetId,
        names: &[String],
        now: jiff::Timestamp,
    ) -> Result<Self, PkiError> {
        let now = OffsetDateTime::from_unix_timestamp(now.as_second()).map_err(library)?;
        files::make_private_folder(folder)?;
        let (issuer, ca_pem, ca_der) = open_ca(folder, fleet, now)?;
        let server = Wanted {
            file: "server",
            common_name: &format!("dunlin-server {fleet}"),
            names,
            usage: ExtendedKeyUsagePurpose::ServerAuth,
        };
        let mqtt_client = Wanted {
            file: "mqtt-client",
            common_name: SERVER_NAME,
            names: &[],
            usage: ExtendedKeyUsagePurpose::ClientAuth,
        };
        Ok(Self {
            server: open_pair(folder, &issuer, &ca_der, &ca_pem, &server, now)?,
            mqtt_client: open_pair(folder, &issuer, &ca_der, &ca_pem, &mqtt_client, now)?,
            folder: folder.to_owned(),
            issuer,
            ca_pem,
            ca_der,
        })
    }

    /// The fleet CA's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// SHA-256 of the fleet CA's certificate (DER).
    #[must_use]
    pub fn ca_sha256(&self) -> Digest {
        Digest::of(&self.ca_der)
    }

    /// The files of the server's own MQTT client.
    #[must_use]
    pub fn mqtt_client_files(&self) -> PemFiles {
        self.pem_files("mqtt-client")
    }

    /// The files of the server's own certificate, which an external broker may use too.
    #[must_use]
    pub fn server_files(&self) -> PemFiles {
        self.pem_files("server")
    }

    fn pem_files(&self, name: &str) -> PemFiles {
        PemFiles {
            ca: self.folder.join("ca.pem"),
            cert: self.folder.join(format!("{name}.pem")),
            key: self.folder.join(format!("{name}.key")),
        }
    }

    /// Reads a certificate signing request and checks that its sender holds the key.
    ///
    /// # Errors
    /// Too long, no request, a kind of key not supported, or a signature that does not verify.
    pub fn check_csr(&self, csr_pem: &str) -> Result<CheckedCsr, PkiError> {
        if csr_pem.len() > CSR_MAX_BYTES {
            return Err(PkiError::Csr(format!(
                "{} bytes, at most {CSR_MAX_BYTES} are accepted",
                csr_pem.len()
            )));
        }
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| PkiError::Csr(format!("{e} (expected PKCS #10 in PEM)")))?;
        let public_key_sha256 = Digest::of(&request.public_key.subject_public_key_info()).0;
        Ok(CheckedCsr {
            request,
            public_key_sha256,
        })
    }

    /// Signs a certificate for a device: common name = its id, for TLS clients only, one year.
    ///
    /// # Errors
    /// The library failed.
    pub fn sign_device(
        &self,
        csr: CheckedCsr,
        device: &DeviceId,
        now: jiff::Timestamp,
    ) -> Result<DeviceCertificate, PkiError> {
        let now = OffsetDateTime::from_unix_timestamp(now.as_second()).map_err(library)?;
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let mut request = csr.request;
        request.params = leaf(device.as_str(), &[], usage, now, DEVICE_LIFE)?;
        let certificate = request.signed_by(&self.issuer).map_err(library)?;
        Ok(DeviceCertificate {
            pem: certificate.pem(),
            sha256: Digest::of(certificate.der()),
        })
    }

    /// TLS of the admin API: no client certificates.
    ///
    /// # Errors
    /// The library refuses the certificate.
    pub fn admin_tls(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let builder = ServerConfig::builder().with_no_client_auth();
        self.with_server_certificate(builder)
    }

    /// TLS of the devices' listener: a client certificate is taken if there is one, and then it
    /// must be the fleet CA's.
    ///
    /// # Errors
    /// The library refuses the certificate.
    pub fn device_tls(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots()?));
        let verifier = verifier.allow_unauthenticated().build().map_err(library)?;
        self.with_server_certificate(ServerConfig::builder().with_client_cert_verifier(verifier))
    }

    /// TLS of the embedded broker: a client certificate of the fleet CA is demanded.
    ///
    /// # Errors
    /// The library refuses the certificate.
    pub fn mqtt_tls(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots()?));
        let verifier = verifier.build().map_err(library)?;
        self.with_server_certificate(ServerConfig::builder().with_client_cert_verifier(verifier))
    }

    /// TLS of the server's own MQTT client, towards a broker with a certificate of the fleet CA.
    ///
    /// # Errors
    /// The library refuses the certificate.
    pub fn mqtt_client_tls(&self) -> Result<Arc<ClientConfig>, PkiError> {
        let own = &self.mqtt_client;
        client_config(self.roots()?, own.chain.clone(), own.key()?)
    }

    fn roots(&self) -> Result<RootCertStore, PkiError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca_der.clone()).map_err(library)?;
        Ok(roots)
    }

    fn with_server_certificate(
        &self,
        builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
    ) -> Result<Arc<ServerConfig>, PkiError> {
        let own = &self.server;
        let mut config = builder
            .with_single_cert(own.chain.clone(), own.key()?)
            .map_err(library)?;
        config.max_early_data_size = 0;
        Ok(Arc::new(config))
    }
}

impl Pair {
    fn key(&self) -> Result<PrivateKeyDer<'static>, PkiError> {
        PrivateKeyDer::try_from(self.key_der.clone()).map_err(library)
    }
}

/// TLS of an MQTT client with certificates from files, for an external broker.
///
/// # Errors
/// Files that cannot be read or do not hold what they should.
pub fn client_tls_from_files(files: &PemFiles) -> Result<Arc<ClientConfig>, PkiError> {
    let mut roots = RootCertStore::empty();
    for ca in read_chain(&files.ca)?.ok_or_else(|| missing(&files.ca))?.1 {
        roots.add(ca).map_err(|e| damaged(&files.ca, e))?;
    }
    let chain = read_chain(&files.cert)?
        .ok_or_else(|| missing(&files.cert))?
        .1;
    let key = files::read_bounded(&files.key, PEM_MAX_BYTES)?.ok_or_else(|| missing(&files.key))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| damaged(&files.key, e))?;
    client_config(roots, chain, key)
}

fn client_config(
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, PkiError> {
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(library)?;
    Ok(Arc::new(config))
}

/// The name in a verified client certificate, and the certificate's SHA-256.
///
/// # Errors
/// Not a certificate, or its common name is no device id; in words.
pub fn peer_identity(certificate_der: &[u8]) -> Result<(DeviceId, Digest), String> {
    let (_, certificate) = X509Certificate::from_der(certificate_der)
        .map_err(|e| format!("client certificate: {e}"))?;
    let mut names = certificate.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err("client certificate: expected exactly one common name".to_owned());
    };
    let name = name
        .as_str()
        .map_err(|e| format!("client certificate: {e}"))?;
    let device = name.parse::<DeviceId>();
    let device = device.map_err(|e| format!("client certificate's common name: {e}"))?;
    Ok((device, Digest::of(certificate_der)))
}

fn missing(path: &Path) -> PkiError {
    damaged(path, "there is no such file")
}

fn damaged(path: &Path, problem: impl std::fmt::Display) -> PkiError {
    PkiError::Damaged {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

/// A PEM file's text and certificates; `None` if there is no file.
fn read_chain(path: &Path) -> Result<Option<(String, Vec<CertificateDer<'static>>)>, PkiError> {
    let Some(bytes) = files::read_bounded(path, PEM_MAX_BYTES)? else {
        return Ok(None);
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let chain = chain.map_err(|e| damaged(path, e))?;
    if chain.is_empty() {
        return Err(damaged(path, "holds no certificate"));
    }
    let text = String::from_utf8(bytes).map_err(|e| damaged(path, e))?;
    Ok(Some((text, chain)))
}

fn read_key(path: &Path) -> Result<Option<KeyPair>, PkiError> {
    let Some(bytes) = files::read_bounded(path, PEM_MAX_BYTES)? else {
        return Ok(None);
    };
    // The parser's message could quote the key.
    let bad = || damaged(path, "holds no private key in PKCS#8 PEM");
    let text = String::from_utf8(bytes).map_err(|_| bad())?;
    KeyPair::from_pem(&text).map(Some).map_err(|_| bad())
}

type Ca = (Issuer<'static, KeyPair>, String, CertificateDer<'static>);

fn open_ca(folder: &Path, fleet: &FleetId, now: OffsetDateTime) -> Result<Ca, PkiError> {
    let (cert_file, key_file) = (folder.join("ca.pem"), folder.join("ca.key"));
    if let Some((pem, chain)) = read_chain(&cert_file)? {
        let key = read_key(&key_file)?.ok_or(PkiError::CaKeyMissing(key_file))?;
        let der = chain[0].clone();
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| damaged(&cert_file, e))?;
        return Ok((issuer, pem, der));
    }
    let key = KeyPair::generate().map_err(library)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Dunlin fleet {fleet} CA"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    (params.not_before, params.not_after) = (now - BACKDATE, now + CA_LIFE);
    let certificate = params.self_signed(&key).map_err(library)?;
    let pem = certificate.pem();
    files::write_atomic(&key_file, key.serialize_pem().as_bytes(), SECRET)?;
    files::write_atomic(&cert_file, pem.as_bytes(), PUBLIC)?;
    let der = certificate.der().clone();
    Ok((Issuer::new(params, key), pem, der))
}

/// A certificate of the server's own.
struct Wanted<'a> {
    file: &'static str,
    common_name: &'a str,
    names: &'a [String],
    usage: ExtendedKeyUsagePurpose,
}

fn open_pair(
    folder: &Path,
    issuer: &Issuer<'static, KeyPair>,
    ca_der: &CertificateDer<'static>,
    ca_pem: &str,
    wanted: &Wanted<'_>,
    now: OffsetDateTime,
) -> Result<Pair, PkiError> {
    let cert_file = folder.join(format!("{}.pem", wanted.file));
    let key_file = folder.join(format!("{}.key", wanted.file));
    if let (Some((_, chain)), Some(key)) = (read_chain(&cert_file)?, read_key(&key_file)?)
        && chain.get(1) == Some(ca_der)
        && is_current(&chain[0], &key, wanted.names, now)
    {
        let key_der = key.serialize_der();
        return Ok(Pair { chain, key_der });
    }
    let key = KeyPair::generate().map_err(library)?;
    let params = leaf(
        wanted.common_name,
        wanted.names,
        wanted.usage.clone(),
        now,
        SERVER_LIFE,
    )?;
    let certificate = params.signed_by(&key, issuer).map_err(library)?;
    files::write_atomic(&key_file, key.serialize_pem().as_bytes(), SECRET)?;
    let chain_pem = format!("{}{ca_pem}", certificate.pem());
    files::write_atomic(&cert_file, chain_pem.as_bytes(), PUBLIC)?;
    Ok(Pair {
        chain: vec![certificate.der().clone(), ca_der.clone()],
        key_der: key.serialize_der(),
    })
}

/// Whether a certificate is for this key and these names and has a while to go.
fn is_current(der: &[u8], key: &KeyPair, names: &[String], now: OffsetDateTime) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return false;
    };
    let ends = certificate.validity().not_after.timestamp();
    if ends < (now + RENEW_BEFORE).unix_timestamp() {
        return false;
    }
    if certificate.public_key().raw != key.subject_public_key_info() {
        return false;
    }
    let listed = match certificate.subject_alternative_name() {
        Ok(Some(extension)) => extension
            .value
            .general_names
            .iter()
            .map(name_text)
            .collect(),
        _ => Vec::new(),
    };
    names.iter().eq(listed.iter())
}

fn name_text(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(raw) => {
            match (<[u8; 4]>::try_from(*raw), <[u8; 16]>::try_from(*raw)) {
                (Ok(v4), _) => std::net::Ipv4Addr::from(v4).to_string(),
                (_, Ok(v6)) => std::net::Ipv6Addr::from(v6).to_string(),
                _ => String::new(),
            }
        }
        _ => String::new(),
    }
}

fn leaf(
    common_name: &str,
    names: &[String],
    usage: ExtendedKeyUsagePurpose,
    now: OffsetDateTime,
    life: Duration,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(names.to_vec()).map_err(library)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial()?);
    (params.not_before, params.not_after) = (now - BACKDATE, now + life);
    Ok(params)
}

/// 126 random bits, so that the number is positive and of fixed length (RFC 5280, 4.1.2.2).
fn serial() -> Result<SerialNumber, PkiError> {
    let mut raw = [0_u8; 16];
    getrandom::fill(&mut raw).map_err(library)?;
    raw[0] = (raw[0] & 0x3f) | 0x40;
    Ok(SerialNumber::from_slice(&raw))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn open(folder: &Path, names: &[&str], day: i64) -> Pki {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let now = jiff::Timestamp::from_second(1_700_000_000 + day * 86_400).unwrap();
        Pki::open(folder, &"demo".parse().unwrap(), &names, now).unwrap()
    }

    fn csr(common_name: &str) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn the_ca_stays_and_the_server_certificate_follows_names_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), &["localhost", "127.0.0.1"], 0);
        let again = open(dir.path(), &["localhost", "127.0.0.1"], 1);
        assert_eq!(first.ca_sha256(), again.ca_sha256());
        assert_eq!(first.server.chain, again.server.chain);
        let renamed = open(dir.path(), &["fleet.example", "::1"], 1);
        assert_ne!(first.server.chain[0], renamed.server.chain[0]);
        assert_eq!(
            open(dir.path(), &["fleet.example", "::1"], 2).server.chain,
            renamed.server.chain
        );
        assert_ne!(
            open(dir.path(), &["fleet.example", "::1"], 800)
                .server
                .chain,
            renamed.server.chain
        );
        let mode = std::fs::metadata(dir.path().join("ca.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        first.device_tls().unwrap();
        first.mqtt_tls().unwrap();
        client_tls_from_files(&first.mqtt_client_files()).unwrap();
    }

    #[test]
    fn only_the_key_is_taken_from_a_request() {
        let dir = tempfile::tempdir().unwrap();
        let pki = open(dir.path(), &["localhost"], 0);
        let device: DeviceId = "edge-1".parse().unwrap();
        let checked = pki.check_csr(&csr("root")).unwrap();
        let now = jiff::Timestamp::from_second(1_700_000_000).unwrap();
        let signed = pki.sign_device(checked, &device, now).unwrap();
        let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
        assert_eq!(peer_identity(&der), Ok((device, signed.sha256)));
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert!(certificate.subject_alternative_name().unwrap().is_none());
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
    }

    #[test]
    fn bad_requests_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pki = open(dir.path(), &["localhost"], 0);
        let good = csr("a");
        for bad in ["", "nonsense", &good[..good.len() / 2], &good.repeat(100)] {
            assert!(matches!(pki.check_csr(bad), Err(PkiError::Csr(_))));
        }
        // One bit of the signature flipped: possession is not proven.
        let (_, pem) = x509_parser::pem::parse_x509_pem(good.as_bytes()).unwrap();
        let mut der = pem.contents;
        let last = der.len() - 1;
        der[last] ^= 1;
        use base64::Engine as _;
        let forged = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            base64::engine::general_purpose::STANDARD.encode(der)
        );
        assert!(matches!(pki.check_csr(&forged), Err(PkiError::Csr(_))));
    }

    #[test]
    fn a_ca_without_its_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), &["localhost"], 0);
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        let now = jiff::Timestamp::from_second(1_700_000_000).unwrap();
        let again = Pki::open(dir.path(), &"demo".parse().unwrap(), &[], now);
        assert!(matches!(again, Err(PkiError::CaKeyMissing(_))));
    }
}
