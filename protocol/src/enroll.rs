//! First contact: claim tokens and the enrolment exchange; then how certificates are renewed.

mod renewal;

pub use renewal::{
    IdentityView, RENEWAL_MAX_BYTES, RecoverRequest, RecoveryNonce, RenewRequest, RenewResponse,
    recovery_message,
};

use crate::id::{DeviceId, Digest, FleetId};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Largest enrolment request or response, in bytes.
pub const ENROLL_MAX_BYTES: usize = 256 * 1024;

const PREFIX: &str = "dunlin-claim-1.";
const TOKEN_MAX_CHARS: usize = 2048;

/// Why a text is no claim token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Does not begin as one.
    #[error("a claim token begins with {PREFIX:?}; was it cut when it was copied?")]
    Prefix,
    /// Longer than any token.
    #[error("claim token: {0} characters, at most {TOKEN_MAX_CHARS}")]
    Length(usize),
    /// Not what the prefix promises.
    #[error("claim token is damaged: {0}")]
    Damaged(String),
}

/// What an operator hands to a device: where to enrol, the right to, and the hashes that make
/// first contact authenticated. `Debug` hides the secret; only `Display` writes the whole token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimToken {
    /// Base URL of the server's device listener, `https://host:port`.
    pub url: String,
    /// The right to enrol, 64 hexadecimal digits, hashed at rest on the server.
    pub secret: String,
    /// SHA-256 of the fleet CA's certificate (DER).
    pub ca_sha256: Digest,
    /// SHA-256 of the first root metadata file, from the operator's own key folder.
    pub root_sha256: Digest,
}

impl fmt::Debug for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClaimToken")
            .field("url", &self.url)
            .field("ca_sha256", &self.ca_sha256)
            .field("root_sha256", &self.root_sha256)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for ClaimToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TOKEN_MAX_CHARS {
            return Err(TokenError::Length(text.len()));
        }
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let json = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|e| TokenError::Damaged(e.to_string()))?;
        // The parser's message could quote the secret.
        serde_json::from_slice(&json)
            .map_err(|_| TokenError::Damaged("its content is not a claim".to_owned()))
    }
}

/// `POST /enroll`.
#[derive(Clone, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// The claim token's secret.
    pub secret: String,
    /// The id the device would like; the server chooses one otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// Certificate signing request (PKCS #10, PEM) for the key made on the device.
    pub csr_pem: String,
    /// Architecture as Rust names it.
    pub arch: String,
    /// What the device says it is, matched against a target's hardware list.
    pub hardware: String,
    /// Version of the agent.
    pub agent_version: String,
}

/// What an enrolled device keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollResponse {
    /// The fleet.
    pub fleet: FleetId,
    /// The device's id, also its certificate's common name.
    pub device: DeviceId,
    /// The device's certificate, PEM.
    pub certificate_pem: String,
    /// The fleet CA's certificate, PEM.
    pub ca_pem: String,
    /// The first root metadata file, exactly as hashed in the claim token.
    pub root_json: String,
    /// Host of the MQTT broker (TLS).
    pub mqtt_host: String,
    /// Port of the MQTT broker.
    pub mqtt_port: u16,
    /// Base URL of the bundle repository, `https://host:port`.
    pub repository_url: String,
    /// Labels the claim token gives.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_copying_and_hides_its_secret() {
        let token = ClaimToken {
            url: "https://fleet.example:8443".to_owned(),
            secret: "5ec2e7".to_owned(),
            ca_sha256: Digest::of(b"ca"),
            root_sha256: Digest::of(b"root"),
        };
        let text = token.to_string();
        assert_eq!(format!(" {text}\n").parse::<ClaimToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains("5ec2e7"));
        assert_eq!(text[1..].parse::<ClaimToken>(), Err(TokenError::Prefix));
        assert!(matches!(
            text[..text.len() - 9].parse::<ClaimToken>(),
            Err(TokenError::Damaged(_))
        ));
    }
}
