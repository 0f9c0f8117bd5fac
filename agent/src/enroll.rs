//! First contact: a claim token becomes an identity and a trust root.
//!
//! The token seals the hashes of the fleet CA and of the root metadata, so that nothing that the
//! network says is believed: the server's chain must end in that CA, the root must be that file.
//! Everything may be cut at any point and repeated: the device's key is stored first and used
//! again, the identity is stored last and makes the device enrolled.

use crate::bundle::TrustStore;
use crate::clock::Clock;
use crate::config::Settings;
use crate::files::{self, Disk, FileError};
use crate::http::{Client, HttpError, Limits, Proxy};
use crate::identity::{
    self, DeviceKey, Enrolled, FleetServer, Identity, IdentityError, IdentityLock,
};
use crate::throttle::Throttle;
use dunlin_protocol::command::{self, MessageError};
use dunlin_protocol::enroll::{ClaimToken, ENROLL_MAX_BYTES, EnrollRequest, EnrollResponse};
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::{TrustError, TrustedSet};
use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use std::sync::{Arc, Mutex, PoisonError};

/// Why a device could not enrol. Nothing is lost: the same command may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Key or certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The server cannot be asked, or answers with an error.
    #[error("enrolment: {0}")]
    Http(HttpError),
    /// The server belongs to another fleet, or someone stands in between.
    #[error(
        "{url} shows no certificate of the fleet CA that the claim token seals (SHA-256 {expected}); it shows {got:?}. Is the token of this server?"
    )]
    WrongCa {
        /// The server.
        url: String,
        /// Digest of the CA's certificate (DER) in the token.
        expected: Digest,
        /// Digests of the certificates shown.
        got: Vec<Digest>,
    },
    /// The token's time is over.
    #[error("the claim token has expired: {message}. Ask the operator for a new one")]
    TokenExpired {
        /// The server's words.
        message: String,
    },
    /// The token is unknown, used up or withdrawn.
    #[error(
        "the server refuses the claim token ({code}): {message}. Ask the operator for a new one"
    )]
    TokenRefused {
        /// HTTP status.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// The answer is no answer to enrolment.
    #[error("enrolment: the server's answer: {0}")]
    Malformed(#[from] MessageError),
    /// The answer is of the right shape, yet cannot be used.
    #[error("enrolment: the server's answer: {field}: {problem}")]
    BadAnswer {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The server hands out another root than the operator sealed.
    #[error(
        "the server's trust root has SHA-256 {got}, the claim token seals {expected}: not taken. Is the server's root the one in the operator's key folder?"
    )]
    WrongRoot {
        /// Digest in the token.
        expected: Digest,
        /// Digest of what the server sent.
        got: Digest,
    },
    /// The sealed root is no root.
    #[error("the trust root is not usable: {0}")]
    BadRoot(TrustError),
    /// This device already trusts another root.
    #[error(
        "this device enrolled with trust root {have}, the claim token seals {offered}: enrolling never replaces a root. A device for another fleet starts with an empty state folder"
    )]
    DifferentRoot {
        /// Digest of the root the device enrolled with.
        have: Digest,
        /// Digest in the token.
        offered: Digest,
    },
}

/// Enrols this device, or renews its certificate if it is enrolled already.
///
/// # Errors
/// [`EnrollError`]
pub async fn enroll(
    settings: &Settings,
    token: &ClaimToken,
) -> Result<EnrollResponse, EnrollError> {
    let state_dir = &settings.state_dir;
    files::create_private_dir(state_dir)?;
    let _lock = IdentityLock::take(state_dir)?;
    let trust = TrustStore::new(&Disk::native(), state_dir);
    // Before anything is sent: a use of the token must not be spent for nothing.
    check_same_root(&trust, &token.root_sha256)?;
    let key = DeviceKey::load_or_create(state_dir)?;
    let request = EnrollRequest {
        secret: token.secret.clone(),
        device: settings.device.clone(),
        csr_pem: key.csr_pem(settings.device.as_ref().map_or("device", |d| d.as_str()))?,
        arch: std::env::consts::ARCH.to_owned(),
        hardware: settings.hardware.clone(),
        agent_version: crate::VERSION.to_owned(),
    };
    let response = exchange(settings, token, &request).await?;
    let identity = check(&response, token, key)?;
    trust.adopt_root(response.root_json.as_bytes())?;
    identity.store(state_dir)?;
    Ok(response)
}

fn check_same_root(trust: &TrustStore, offered: &Digest) -> Result<(), EnrollError> {
    match trust.adopted_roots()? {
        have if have.is_empty() || have.contains(offered) => Ok(()),
        have => Err(EnrollError::DifferentRoot {
            have: have[0],
            offered: *offered,
        }),
    }
}

async fn exchange(
    settings: &Settings,
    token: &ClaimToken,
    request: &EnrollRequest,
) -> Result<EnrollResponse, EnrollError> {
    let verifier = Arc::new(PinnedCa::new(token.ca_sha256));
    let clock = Arc::new(Clock::open(&settings.state_dir));
    let tls = ClientConfig::builder_with_details(identity::provider(), clock)
        .with_safe_default_protocol_versions()
        .map_err(|e| IdentityError::Certificate(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let limits = Limits::from(&settings.update);
    let client = Client::with(
        &tls,
        limits,
        Proxy::configured(settings.update.proxy.as_ref()),
        Throttle::new(limits.bandwidth_bytes_s),
    );
    let url = format!("{}/enroll", token.url.trim_end_matches('/'));
    let answer = client
        .post_json(&url, request, ENROLL_MAX_BYTES as u64)
        .await
        .map_err(|error| refusal(error, token, &verifier))?;
    Ok(command::parse(
        "enrolment response",
        ENROLL_MAX_BYTES,
        &answer,
    )?)
}

fn refusal(error: HttpError, token: &ClaimToken, verifier: &PinnedCa) -> EnrollError {
    match error {
        HttpError::Status {
            url,
            code,
            reason,
            message,
        } => {
            let says = |word| reason.as_deref().is_some_and(|r| r.contains(word));
            if code == 410 || says("expired") {
                EnrollError::TokenExpired { message }
            } else if matches!(code, 401 | 403) || says("token") || says("claim") {
                EnrollError::TokenRefused { code, message }
            } else {
                EnrollError::Http(HttpError::Status {
                    url,
                    code,
                    reason,
                    message,
                })
            }
        }
        HttpError::Tls { url, problem } => match verifier.strangers() {
            got if got.is_empty() => EnrollError::Http(HttpError::Tls { url, problem }),
            got => EnrollError::WrongCa {
                url,
                expected: token.ca_sha256,
                got,
            },
        },
        other => EnrollError::Http(other),
    }
}

/// All that is checked before anything is stored.
fn check(
    response: &EnrollResponse,
    token: &ClaimToken,
    key: DeviceKey,
) -> Result<Identity, EnrollError> {
    let root = response.root_json.as_bytes();
    let got = Digest::of(root);
    if got != token.root_sha256 {
        return Err(EnrollError::WrongRoot {
            expected: token.root_sha256,
            got,
        });
    }
    // Its expiry does not matter here: it may be what vouches for the next one.
    TrustedSet::from_root(root, Timestamp::now()).map_err(EnrollError::BadRoot)?;
    let bad = |field, problem: &str| {
        Err(EnrollError::BadAnswer {
            field,
            problem: problem.to_owned(),
        })
    };
    if !response.repository_url.starts_with("https://") {
        return bad("repository_url", "expected https://host:port");
    }
    if response.mqtt_host.is_empty() || response.mqtt_port == 0 {
        return bad("mqtt_host, mqtt_port", "expected a host and a port");
    }
    Ok(Identity::check(
        key,
        Enrolled::from(response),
        &token.ca_sha256,
    )?)
}

/// Trusts exactly one CA, known by the digest of its certificate: the server must show it in its
/// chain, and its own certificate must be valid under it, for the name asked for, now.
#[derive(Debug)]
struct PinnedCa {
    pin: Digest,
    provider: Arc<CryptoProvider>,
    strangers: Mutex<Vec<Digest>>,
}

impl PinnedCa {
    fn new(pin: Digest) -> Self {
        Self {
            pin,
            provider: identity::provider(),
            strangers: Mutex::new(Vec::new()),
        }
    }

    /// Digests of what a server showed instead of the CA.
    fn strangers(&self) -> Vec<Digest> {
        let list = self.strangers.lock();
        list.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(ca) = intermediates.iter().find(|c| Digest::of(c) == self.pin) else {
            let shown = std::iter::once(end_entity).chain(intermediates);
            let mut list = self
                .strangers
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *list = shown.take(8).map(|c| Digest::of(c)).collect();
            return Err(CertificateError::UnknownIssuer.into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        FleetServer::new(roots)
            .map_err(|e| rustls::Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
