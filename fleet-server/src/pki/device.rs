//! Certificates of devices and consumers: signing them, and reading them back.

use super::{Pki, PkiError, leaf, library};
use crate::consumer::ConsumerName;
use dunlin_protocol::id::{DeviceId, Digest};
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose, PublicKeyData as _};
use rustls::SignatureScheme;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Largest certificate signing request, or certificate of a device, in bytes of PEM.
pub const CSR_MAX_BYTES: usize = 16 * 1024;
/// Clocks of other servers, and devices', may be behind.
const BACKDATE_MAX: Duration = Duration::hours(1);
/// Of a certificate's life, at most this part is before it was signed.
const BACKDATE_PART: i32 = 20;

/// A request whose sender has proven to hold the key.
pub struct CheckedCsr {
    request: CertificateSigningRequestParams,
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER).
    pub public_key_sha256: [u8; 32],
}

/// A certificate signed for a device or a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, PEM.
    pub pem: String,
    /// SHA-256 of the certificate (DER).
    pub sha256: Digest,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: i64,
}

/// A certificate that this fleet's CA gave to a device; its time may be over.
#[derive(Debug)]
pub struct DevicePass {
    /// The device.
    pub device: DeviceId,
    /// SHA-256 of the certificate (DER).
    pub sha256: Digest,
    /// SHA-256 of its public key (SubjectPublicKeyInfo, DER).
    pub public_key_sha256: [u8; 32],
    /// Last instant at which it is valid.
    pub not_after: jiff::Timestamp,
    /// When it was signed, to the second.
    pub issued: jiff::Timestamp,
    public_key: Vec<u8>,
}

impl DevicePass {
    /// Whether the certificate's key (P-256, the kind that devices make) signed the message.
    #[must_use]
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let provider = rustls::crypto::ring::default_provider();
        let known = provider.signature_verification_algorithms.mapping;
        let wanted = SignatureScheme::ECDSA_NISTP256_SHA256;
        // The first of a scheme is for keys of its own curve.
        let algorithm = known
            .iter()
            .find(|(scheme, _)| *scheme == wanted)
            .and_then(|(_, algorithms)| algorithms.first());
        algorithm.is_some_and(|algorithm| {
            let verified = algorithm.verify_signature(&self.public_key, message, signature);
            verified.is_ok()
        })
    }
}

impl Pki {
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

    /// Signs a certificate for a device: common name = its id, for TLS clients only.
    ///
    /// # Errors
    /// The library failed.
    pub fn sign_device(
        &self,
        csr: CheckedCsr,
        device: &DeviceId,
        now: jiff::Timestamp,
    ) -> Result<ClientCertificate, PkiError> {
        self.sign_client(csr, device.as_str(), now)
    }

    /// Signs a certificate for a consumer: a name that no device can have, for TLS clients only.
    ///
    /// # Errors
    /// The library failed.
    pub fn sign_consumer(
        &self,
        csr: CheckedCsr,
        consumer: &ConsumerName,
        now: jiff::Timestamp,
    ) -> Result<ClientCertificate, PkiError> {
        self.sign_client(csr, &consumer.client_id(), now)
    }

    fn sign_client(
        &self,
        csr: CheckedCsr,
        common_name: &str,
        now: jiff::Timestamp,
    ) -> Result<ClientCertificate, PkiError> {
        let now = OffsetDateTime::from_unix_timestamp(now.as_second()).map_err(library)?;
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let mut request = csr.request;
        let backdate = BACKDATE_MAX.min(self.device_life / BACKDATE_PART);
        let span = (now - backdate, now + self.device_life);
        request.params = leaf(common_name, &[], usage, span)?;
        let certificate = request.signed_by(&self.issuer).map_err(library)?;
        Ok(ClientCertificate {
            pem: certificate.pem(),
            sha256: Digest::of(certificate.der()),
            expires_ms: span.1.unix_timestamp().saturating_mul(1000),
        })
    }

    /// Reads a device certificate that this CA signed for TLS clients, also one whose time is over.
    ///
    /// # Errors
    /// [`PkiError::Pass`]: too long, no certificate, of another CA, or without a device's name.
    pub fn read_pass(&self, pem: &str) -> Result<DevicePass, PkiError> {
        let bad = |problem: String| PkiError::Pass(problem);
        if pem.len() > CSR_MAX_BYTES {
            let got = pem.len();
            return Err(bad(format!(
                "{got} bytes, at most {CSR_MAX_BYTES} are accepted"
            )));
        }
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| bad(format!("{e} (expected PEM)")))?;
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|e| bad(format!("it is no X.509: {e}")))?;
        let ends = certificate.validity().not_after.timestamp();
        let date = |seconds| {
            let date = jiff::Timestamp::from_second(seconds);
            date.map_err(|e| bad(format!("its validity is no date: {e}")))
        };
        let not_after = date(ends)?;
        let begins = certificate.validity().not_before.timestamp();
        let issued = date(begins + backdated_s(begins, ends))?;
        // At its last second: what is asked is whether it was ever good.
        let then = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            u64::try_from(ends).unwrap_or_default(),
        ));
        WebPkiClientVerifier::builder(Arc::new(self.roots()?))
            .build()
            .map_err(library)?
            .verify_client_cert(&der, &[], then)
            .map_err(|e| bad(format!("the fleet CA does not vouch for it: {e}")))?;
        let (device, sha256) = peer_identity(&der).map_err(bad)?;
        let key = certificate.public_key();
        Ok(DevicePass {
            device,
            sha256,
            public_key_sha256: Digest::of(key.raw).0,
            not_after,
            issued,
            public_key: key.subject_public_key.data.to_vec(),
        })
    }
}

/// By how many seconds a certificate of this span was dated back when it was signed.
fn backdated_s(begins: i64, ends: i64) -> i64 {
    let parts = i64::from(BACKDATE_PART) + 1;
    // Of whole seconds: the life is the rest.
    let part = ends.saturating_sub(begins) / parts;
    part.min(BACKDATE_MAX.whole_seconds())
}

/// The device in a verified client certificate, and the certificate's SHA-256.
///
/// # Errors
/// Not a certificate, or its common name is no device id; in words.
pub fn peer_identity(certificate_der: &[u8]) -> Result<(DeviceId, Digest), String> {
    let (name, sha256) = peer_name(certificate_der)?;
    let device = name.parse::<DeviceId>();
    let device = device.map_err(|e| format!("client certificate's common name: {e}"))?;
    Ok((device, sha256))
}

/// The common name in a verified client certificate, and the certificate's SHA-256.
///
/// # Errors
/// Not a certificate, or not of exactly one common name; in words.
pub fn peer_name(certificate_der: &[u8]) -> Result<(String, Digest), String> {
    let (_, certificate) = X509Certificate::from_der(certificate_der)
        .map_err(|e| format!("client certificate: {e}"))?;
    let mut names = certificate.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err("client certificate: expected exactly one common name".to_owned());
    };
    let name = name
        .as_str()
        .map_err(|e| format!("client certificate: {e}"))?;
    Ok((name.to_owned(), Digest::of(certificate_der)))
}
