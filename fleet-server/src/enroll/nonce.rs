//! Nonces that need no memory: a time and random bytes under a MAC whose key lives as long as the
//! process. One that is forged, changed, of another process or too old is refused.
//!
//! Within its time one may be used twice: the message it goes into names the new key as well, so that
//! a repetition gives a certificate for the same key again, which is of use to its holder alone.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// How long a nonce may be used, in milliseconds.
pub(super) const VALID_MS: i64 = 120_000;
const TIME_BYTES: usize = 8;
const RANDOM_BYTES: usize = 16;
const MAC_BYTES: usize = 32;
const BODY_BYTES: usize = TIME_BYTES + RANDOM_BYTES;
const DOMAIN: &[u8] = b"dunlin recovery nonce 1\0";

/// Why a nonce is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NonceError {
    /// Not from this process.
    Unknown,
    /// Older than [`VALID_MS`].
    Old,
}

/// Makes and checks nonces.
pub(super) struct Nonces {
    mac: Hmac<Sha256>,
}

impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nonces(…)")
    }
}

impl Nonces {
    /// With a key of this process.
    ///
    /// # Errors
    /// No randomness.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        // One block of SHA-256.
        let mut key = [0_u8; 64];
        getrandom::fill(&mut key)?;
        Ok(Self {
            mac: Hmac::new(&key.into()),
        })
    }

    /// A fresh nonce, in hexadecimal.
    ///
    /// # Errors
    /// No randomness.
    pub(super) fn issue(&self, now_ms: i64) -> Result<String, getrandom::Error> {
        let mut random = [0_u8; RANDOM_BYTES];
        getrandom::fill(&mut random)?;
        let mut nonce = Vec::with_capacity(BODY_BYTES + MAC_BYTES);
        nonce.extend_from_slice(&now_ms.to_be_bytes());
        nonce.extend_from_slice(&random);
        let tag = self.over(&nonce).finalize().into_bytes();
        nonce.extend_from_slice(&tag);
        Ok(hex::encode(nonce))
    }

    /// Checks a nonce.
    ///
    /// # Errors
    /// [`NonceError`]
    pub(super) fn check(&self, nonce: &str, now_ms: i64) -> Result<(), NonceError> {
        let mut bytes = [0_u8; BODY_BYTES + MAC_BYTES];
        hex::decode_to_slice(nonce, &mut bytes).map_err(|_| NonceError::Unknown)?;
        let (body, tag) = bytes.split_at(BODY_BYTES);
        // Compares in constant time.
        let verified = self.over(body).verify_slice(tag);
        verified.map_err(|_| NonceError::Unknown)?;
        let mut time = [0_u8; TIME_BYTES];
        time.copy_from_slice(&body[..TIME_BYTES]);
        let age_ms = now_ms.saturating_sub(i64::from_be_bytes(time));
        if !(-VALID_MS..=VALID_MS).contains(&age_ms) {
            return Err(NonceError::Old);
        }
        Ok(())
    }

    fn over(&self, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(DOMAIN);
        mac.update(body);
        mac
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_nonce_is_taken_in_its_time_by_whoever_made_it() {
        let (ours, theirs) = (Nonces::new().unwrap(), Nonces::new().unwrap());
        let nonce = ours.issue(1_000).unwrap();
        assert_eq!(ours.check(&nonce, 1_000 + VALID_MS), Ok(()));
        assert_eq!(ours.check(&nonce, 1_001 + VALID_MS), Err(NonceError::Old));
        assert_eq!(theirs.check(&nonce, 1_000), Err(NonceError::Unknown));
        assert_ne!(ours.issue(1_000).unwrap(), nonce);
    }

    #[test]
    fn every_changed_digit_and_every_other_length_is_refused() {
        let nonces = Nonces::new().unwrap();
        let nonce = nonces.issue(1_000).unwrap();
        for at in 0..nonce.len() {
            let mut changed = nonce.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(nonces.check(&changed, 1_000), Err(NonceError::Unknown));
        }
        for bad in ["", "00", &nonce[2..], &format!("{nonce}00"), "zz"] {
            assert_eq!(nonces.check(bad, 1_000), Err(NonceError::Unknown));
        }
    }
}
