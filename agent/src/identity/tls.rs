//! TLS of the agent: what it shows and whom it trusts.

use super::{DeviceKey, Enrolled, IdentityError, Validity, chain, check_leaf};
use crate::clock::{Clock, not_before_is_no_reason};
use dunlin_protocol::id::Digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::sync::{Arc, PoisonError, RwLock};

/// The cryptography of every TLS connection of the agent.
#[must_use]
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A key and the certificate for it.
pub(super) struct Held {
    pub(super) key: DeviceKey,
    pub(super) enrolled: Enrolled,
    pub(super) validity: Validity,
    /// SHA-256 of the certificate (DER).
    pub(super) sha256: Digest,
    certified: Arc<CertifiedKey>,
}

impl Held {
    /// # Errors
    /// The certificate is not for this key and device.
    pub(super) fn new(key: DeviceKey, enrolled: Enrolled) -> Result<Self, IdentityError> {
        let bad = |e: rustls::Error| IdentityError::Certificate(e.to_string());
        let chain = chain(&enrolled)?;
        let Some(leaf) = chain.first() else {
            let problem = "no certificate in it".to_owned();
            return Err(IdentityError::Certificate(problem));
        };
        let validity = check_leaf(leaf, &key, &enrolled.device)?;
        let sha256 = Digest::of(leaf);
        let key_der = PrivateKeyDer::Pkcs8(key.pair.serialize_der().into());
        let signing = rustls::crypto::ring::sign::any_supported_type(&key_der).map_err(bad)?;
        Ok(Self {
            enrolled: Enrolled {
                key_file: key.file.clone(),
                ..enrolled
            },
            key,
            validity,
            sha256,
            certified: Arc::new(CertifiedKey::new(chain, signing)),
        })
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("device", &self.enrolled.device)
            .field("sha256", &self.sha256)
            .finish_non_exhaustive()
    }
}

/// What new connections show.
#[derive(Debug)]
pub(super) struct Live(RwLock<Arc<Held>>);

impl Live {
    pub(super) fn new(held: Held) -> Self {
        Self(RwLock::new(Arc::new(held)))
    }

    pub(super) fn held(&self) -> Arc<Held> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn replace(&self, held: Arc<Held>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = held;
    }
}

impl ResolvesClientCert for Live {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.held().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Shows what `live` holds, trusts `roots` alone.
pub(super) fn mutual(
    roots: RootCertStore,
    live: Arc<Live>,
    clock: Arc<Clock>,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let mut config = ClientConfig::builder_with_details(provider(), clock)
        .with_safe_default_protocol_versions()
        .map_err(|e| IdentityError::Certificate(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(FleetServer::new(roots)?))
        .with_client_cert_resolver(live);
    // A resumed session would show the certificate that it began with.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Shows nothing, trusts `roots` alone.
pub(super) fn anonymous(
    roots: RootCertStore,
    clock: Arc<Clock>,
) -> Result<ClientConfig, IdentityError> {
    Ok(ClientConfig::builder_with_details(provider(), clock)
        .with_safe_default_protocol_versions()
        .map_err(|e| IdentityError::Certificate(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(FleetServer::new(roots)?))
        .with_no_client_auth())
}

/// Verifies servers as ever, but for a beginning of validity after our time: that is a lower bound.
#[derive(Debug)]
pub(crate) struct FleetServer(Arc<WebPkiServerVerifier>);

impl FleetServer {
    pub(crate) fn new(roots: RootCertStore) -> Result<Self, IdentityError> {
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map(Self)
            .map_err(|e| IdentityError::Certificate(e.to_string()))
    }
}

impl ServerCertVerifier for FleetServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        not_before_is_no_reason(now, |at| {
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
