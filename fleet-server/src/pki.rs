//! The fleet's own certificate authority, the server's certificates and those it signs for
//! devices. Keys never leave this folder; of a device's request only the proven public key is
//! taken, subject and extensions are the server's.
//!
//! `pki/ca.pem`, `server.pem`, `mqtt-client.pem` and their `.key`s (mode 0600). A key is written
//! before its certificate, so that a cut in between leaves a key nobody knows, which is made anew.

mod device;
mod own;
mod stored;
#[cfg(test)]
mod tests;

pub use device::{
    CSR_MAX_BYTES, CheckedCsr, ClientCertificate, DevicePass, peer_identity, peer_name,
};

use crate::acl::SERVER_NAME;
use crate::files::{self, FileError};
use dunlin_protocol::id::{Digest, FleetId};
use own::Own;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber,
};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stored::{PEM_MAX_BYTES, Wanted, damaged, missing, open_ca, open_pair, read_chain};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroize as _;

const SERVER_LIFE: Duration = Duration::days(825);
const DEVICE_LIFE: Duration = Duration::days(365);
/// Devices' clocks may be behind.
const BACKDATE: Duration = Duration::hours(1);

/// Signs, and is vouched for by, the certificate (PEM and DER).
type Ca = (Issuer<'static, KeyPair>, String, CertificateDer<'static>);

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
    /// A device's certificate that was shown.
    #[error("device certificate: {0}")]
    Pass(String),
    /// Signing or TLS set-up failed.
    #[error("PKI: {0}")]
    Library(String),
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
    fleet: FleetId,
    /// Names that the server's certificate carries.
    names: Vec<String>,
    server: Arc<Own>,
    mqtt_client: Arc<Own>,
    device_life: Duration,
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
        let ca = open_ca(folder, fleet, now)?;
        let (server, mqtt_client) = open_own(folder, &ca, fleet, names, now)?;
        let (issuer, ca_pem, ca_der) = ca;
        Ok(Self {
            server: Arc::new(Own::new(server)?),
            mqtt_client: Arc::new(Own::new(mqtt_client)?),
            folder: folder.to_owned(),
            issuer,
            ca_pem,
            ca_der,
            fleet: fleet.clone(),
            names: names.to_vec(),
            device_life: DEVICE_LIFE,
        })
    }

    /// Gives the certificates of devices this life, in seconds.
    #[must_use]
    pub fn with_device_life(mut self, life_s: u32) -> Self {
        self.device_life = Duration::seconds(i64::from(life_s));
        self
    }

    /// Renews the server's own certificates if they near their end, for new connections from then
    /// on; whether one was renewed. The CA stays, so that devices notice nothing.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn renew_own(&self, now: jiff::Timestamp) -> Result<bool, PkiError> {
        let now = OffsetDateTime::from_unix_timestamp(now.as_second()).map_err(library)?;
        let ca = open_ca(&self.folder, &self.fleet, now)?;
        if ca.2 != self.ca_der {
            let problem = "is another CA than at start: restart, if that is meant";
            return Err(damaged(&self.folder.join("ca.pem"), problem));
        }
        let (server, mqtt_client) = open_own(&self.folder, &ca, &self.fleet, &self.names, now)?;
        let server = self.server.replace(server)?;
        Ok(self.mqtt_client.replace(mqtt_client)? || server)
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

    /// Name of the servers' shared subscription: the same for all that have this CA's key, and to
    /// be guessed by nobody else.
    #[must_use]
    pub fn share_name(&self) -> String {
        let mut secret = b"dunlin shared subscription\0".to_vec();
        secret.extend(self.issuer.key().serialize_der());
        let name = Digest::of(&secret);
        secret.zeroize();
        format!("dunlin-{}", &name.to_string()[..32])
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

    /// TLS of the admin API: no client certificates.
    ///
    /// # Errors
    /// The library refuses the certificate.
    pub fn admin_tls(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let builder = ServerConfig::builder().with_no_client_auth();
        Ok(self.with_server_certificate(builder))
    }

    /// TLS of the devices' listener: a client certificate is taken if there is one, and then it
    /// must be the fleet CA's.
    ///
    /// # Errors
    /// The library refuses the certificate.
    pub fn device_tls(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots()?));
        let verifier = verifier.allow_unauthenticated().build().map_err(library)?;
        let builder = ServerConfig::builder().with_client_cert_verifier(verifier);
        Ok(self.with_server_certificate(builder))
    }

    /// TLS of the embedded broker: a client certificate of the fleet CA is demanded.
    ///
    /// # Errors
    /// The library refuses the certificate.
    pub fn mqtt_tls(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots()?));
        let verifier = verifier.build().map_err(library)?;
        let builder = ServerConfig::builder().with_client_cert_verifier(verifier);
        Ok(self.with_server_certificate(builder))
    }

    /// TLS of the server's own MQTT client, towards a broker with a certificate of the fleet CA.
    ///
    /// # Errors
    /// The library refuses the certificate.
    pub fn mqtt_client_tls(&self) -> Result<Arc<ClientConfig>, PkiError> {
        Ok(self.own_client_config(self.roots()?))
    }

    /// TLS of the server's MQTT client towards an external broker, whose certificate is of the CA in
    /// `ca_file`, or of the fleet CA. Certificate and key from files are read once; without them,
    /// it shows the server's own certificate, which is renewed while it runs.
    ///
    /// # Errors
    /// Files that cannot be read or do not hold what they should.
    pub fn external_mqtt_tls(
        &self,
        ca_file: Option<&Path>,
        cert_and_key: Option<(&Path, &Path)>,
    ) -> Result<Arc<ClientConfig>, PkiError> {
        let ca = ca_file.map_or_else(|| self.mqtt_client_files().ca, Path::to_path_buf);
        match cert_and_key {
            None => Ok(self.own_client_config(roots_from(&ca)?)),
            Some((cert, key)) => client_tls_from_files(&PemFiles {
                ca,
                cert: cert.to_path_buf(),
                key: key.to_path_buf(),
            }),
        }
    }

    /// Each connection is made with the certificate of that time.
    fn own_client_config(&self, roots: RootCertStore) -> Arc<ClientConfig> {
        let own = Arc::clone(&self.mqtt_client);
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_cert_resolver(own);
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }

    fn roots(&self) -> Result<RootCertStore, PkiError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca_der.clone()).map_err(library)?;
        Ok(roots)
    }

    fn with_server_certificate(
        &self,
        builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
    ) -> Arc<ServerConfig> {
        let own = Arc::clone(&self.server);
        let mut config = builder.with_cert_resolver(own);
        config.max_early_data_size = 0;
        // A resumed session would bring a client's certificate back unchecked, though it has ended.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }
}

/// The server's pair and its MQTT client's.
fn open_own(
    folder: &Path,
    ca: &Ca,
    fleet: &FleetId,
    names: &[String],
    now: OffsetDateTime,
) -> Result<(Pair, Pair), PkiError> {
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
    Ok((
        open_pair(folder, ca, &server, now)?,
        open_pair(folder, ca, &mqtt_client, now)?,
    ))
}

/// TLS of an MQTT client with certificates from files, for an external broker.
///
/// # Errors
/// Files that cannot be read or do not hold what they should.
pub fn client_tls_from_files(files: &PemFiles) -> Result<Arc<ClientConfig>, PkiError> {
    let roots = roots_from(&files.ca)?;
    let chain = read_chain(&files.cert)?
        .ok_or_else(|| missing(&files.cert))?
        .1;
    let key = files::read_bounded(&files.key, PEM_MAX_BYTES)?.ok_or_else(|| missing(&files.key))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| damaged(&files.key, e))?;
    client_config(roots, chain, key)
}

fn roots_from(file: &Path) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for ca in read_chain(file)?.ok_or_else(|| missing(file))?.1 {
        roots.add(ca).map_err(|e| damaged(file, e))?;
    }
    Ok(roots)
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

fn leaf(
    common_name: &str,
    names: &[String],
    usage: ExtendedKeyUsagePurpose,
    (not_before, not_after): (OffsetDateTime, OffsetDateTime),
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
    (params.not_before, params.not_after) = (not_before, not_after);
    Ok(params)
}

/// 126 random bits, so that the number is positive and of fixed length (RFC 5280, 4.1.2.2).
fn serial() -> Result<SerialNumber, PkiError> {
    let mut raw = [0_u8; 16];
    getrandom::fill(&mut raw).map_err(library)?;
    raw[0] = (raw[0] & 0x3f) | 0x40;
    Ok(SerialNumber::from_slice(&raw))
}
