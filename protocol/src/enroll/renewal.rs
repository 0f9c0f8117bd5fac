//! A device's certificate follows on the one before: renewed while that is valid, recovered by proof
//! of its key once it has ended.

use crate::id::{DeviceId, Digest, FleetId};
use serde::{Deserialize, Serialize};

/// Largest renewal or recovery request or answer, in bytes.
pub const RENEWAL_MAX_BYTES: usize = 64 * 1024;
/// Begins every message that a device signs to recover, so that the signature serves nothing else.
const RECOVERY_DOMAIN: &[u8] = b"dunlin device recovery 1\0";

/// `GET /identity`, over mutual TLS: what the server thinks of the certificate shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityView {
    /// The device that the certificate names.
    pub device: DeviceId,
    /// SHA-256 of the certificate shown (DER).
    pub certificate_sha256: Digest,
}

/// `POST /identity/renew`, over mutual TLS with the certificate that is to be followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Certificate signing request (PKCS #10, PEM) for a new key made on the device.
    pub csr_pem: String,
}

/// Answers [`RenewRequest`] and [`RecoverRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewResponse {
    /// The next certificate, PEM. The one before is good until this one is first used.
    pub certificate_pem: String,
}

/// `POST /identity/recover/nonce`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryNonce {
    /// Opaque; goes into the signed message and back to the server.
    pub nonce: String,
    /// How long it may be used, in milliseconds.
    pub valid_ms: u64,
}

/// `POST /identity/recover`, over TLS in which only the server is authenticated: a server refuses
/// mutual TLS with a certificate that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverRequest {
    /// The certificate that has ended, PEM.
    pub certificate_pem: String,
    /// Certificate signing request (PKCS #10, PEM) for a new key made on the device.
    pub csr_pem: String,
    /// From [`RecoveryNonce`].
    pub nonce: String,
    /// ECDSA P-256 signature (SHA-256, ASN.1 DER) by the key of the ended certificate over
    /// [`recovery_message`], in hexadecimal.
    pub proof_hex: String,
}

/// What a device signs to recover: domain, then each part after its length (8 bytes, big-endian), so
/// that no two sets of parts give one message.
///
/// `certificate_sha256` is of the ended certificate (DER); the request is bound as sent.
#[must_use]
pub fn recovery_message(
    fleet: &FleetId,
    device: &DeviceId,
    nonce: &str,
    certificate_sha256: &Digest,
    csr_pem: &str,
) -> Vec<u8> {
    let mut message = RECOVERY_DOMAIN.to_vec();
    for part in [
        fleet.as_str().as_bytes(),
        device.as_str().as_bytes(),
        nonce.as_bytes(),
        certificate_sha256.as_bytes(),
        csr_pem.as_bytes(),
    ] {
        message.extend_from_slice(&(part.len() as u64).to_be_bytes());
        message.extend_from_slice(part);
    }
    message
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(device: &str, nonce: &str, csr: &str) -> Vec<u8> {
        let (fleet, device) = ("demo".parse().unwrap(), device.parse().unwrap());
        recovery_message(&fleet, &device, nonce, &Digest::of(b"certificate"), csr)
    }

    #[test]
    fn the_message_is_what_it_was() {
        // Devices in the field sign this: it never changes under one domain.
        let digest = Digest::of(&message("edge-1", "00ff", "csr"));
        assert_eq!(
            digest.to_string(),
            "4e897d99003f8e6c3ccb8c27f461de232be39a2efa0301af92b1cd1cf43716ee"
        );
    }

    #[test]
    fn every_part_counts_and_none_flows_into_its_neighbour() {
        let one = message("edge-1", "00ff", "csr");
        assert!(one.starts_with(b"dunlin device recovery 1\0"));
        for other in [
            message("edge-2", "00ff", "csr"),
            message("edge-1", "00fe", "csr"),
            message("edge-1", "00ff", "csR"),
            message("edge-10", "0ff", "csr"),
        ] {
            assert_ne!(one, other);
        }
    }
}
