//! A certificate of the server's own that can be replaced while connections are made with it.

use super::{Pair, PkiError, library};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::{Arc, PoisonError, RwLock};

/// What new handshakes use; those made before keep theirs.
#[derive(Debug)]
pub(super) struct Own {
    certified: RwLock<Arc<CertifiedKey>>,
}

impl Own {
    pub(super) fn new(pair: Pair) -> Result<Self, PkiError> {
        Ok(Self {
            certified: RwLock::new(Arc::new(certified(pair)?)),
        })
    }

    /// Takes the pair for new handshakes; whether it is another than before.
    pub(super) fn replace(&self, pair: Pair) -> Result<bool, PkiError> {
        if pair.chain == self.chain() {
            return Ok(false);
        }
        let fresh = Arc::new(certified(pair)?);
        *self
            .certified
            .write()
            .unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(true)
    }

    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.now().cert.clone()
    }

    fn now(&self) -> Arc<CertifiedKey> {
        let certified = self.certified.read();
        Arc::clone(&certified.unwrap_or_else(PoisonError::into_inner))
    }
}

fn certified(pair: Pair) -> Result<CertifiedKey, PkiError> {
    let key = PrivateKeyDer::try_from(pair.key_der).map_err(library)?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(library)?;
    Ok(CertifiedKey::new(pair.chain, key))
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
