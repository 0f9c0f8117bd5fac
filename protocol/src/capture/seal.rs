//! Sealing: HPKE (RFC 9180) in base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
//! ChaCha20-Poly1305.
//!
//! ```text
//! offset bytes
//!  0     4     "DCP1"
//!  4     4     length of the header, big-endian, at most 4096
//!  8     n     header: [`Header`] as JSON
//!  8+n   32    encapsulated key
//! 40+n   …     ciphertext, its last 16 bytes the tag
//! ```
//! All up to the encapsulated key is associated data: a batch whose header says another device,
//! bundle or window than it was sealed for does not open. Base mode proves no sender: who delivered a
//! batch is known by the connection that it came over, and whoever has the public key can make one.

use super::WINDOW_MAX_BYTES;
use super::samples::INDEX_MAX_BYTES;
use crate::id::{DeviceId, Digest, Family, FleetId, RecipientKey};
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{
    Deserializable as _, HpkeError, Kem, OpModeR, OpModeS, Serializable as _, single_shot_open,
    single_shot_seal_with_rng,
};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::convert::Infallible;

const MAGIC: [u8; 4] = *b"DCP1";
const INFO: &[u8] = b"dunlin capture/1";
const HEADER_MAX_BYTES: usize = 4096;
const PREFIX_BYTES: usize = 8;
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// Most bytes that are sealed in one batch.
pub const PLAIN_MAX_BYTES: usize = INDEX_MAX_BYTES + WINDOW_MAX_BYTES as usize + 4;
/// Longest sealed batch, in bytes.
pub const SEALED_MAX_BYTES: usize =
    PREFIX_BYTES + HEADER_MAX_BYTES + KEY_BYTES + PLAIN_MAX_BYTES + TAG_BYTES;

/// Beginning of an X25519 private key in PKCS#8 (RFC 8410), before its 32 bytes.
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x04, 0x22, 0x04, 0x20,
];

/// Why a batch cannot be sealed, read or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Longer than any that is made, or too short to be one.
    #[error("sealed batch: {got} bytes, expected at most {max}")]
    Length {
        /// Limit in bytes.
        max: usize,
        /// Length found.
        got: usize,
    },
    /// Not this format.
    #[error("sealed batch: {0}")]
    Format(String),
    /// The recipient's key is none that anything can be sealed to.
    #[error("recipient {0}: no usable X25519 public key")]
    Recipient(RecipientKey),
    /// It was sealed to another key.
    #[error("sealed to {expected}, this is the key of {got}")]
    WrongKey {
        /// Whom it was sealed to.
        expected: RecipientKey,
        /// Whose key was given.
        got: RecipientKey,
    },
    /// Header or content is not what was sealed.
    #[error("sealed batch of {device}: header or content was changed, it does not open")]
    Tampered {
        /// Whose batch it says to be.
        device: DeviceId,
    },
    /// Not an X25519 private key.
    #[error("secret key: {0}")]
    SecretKey(&'static str),
}

/// Why the samples of a window were sealed when they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The window closed.
    Window,
    /// A detector saw a change within the window.
    Detector,
}

/// What is known of a batch without opening it, and what it is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The fleet.
    pub fleet: FleetId,
    /// The device that kept it.
    pub device: DeviceId,
    /// The model's family.
    pub family: Family,
    /// Its version.
    pub version: u64,
    /// Digest of its manifest.
    pub bundle: Digest,
    /// Whom it is sealed to.
    pub recipient: RecipientKey,
    /// Begin of the window, in milliseconds since 1970 by the device's clock.
    pub start_ms: i64,
    /// Its end.
    pub end_ms: i64,
    /// Why it was sealed.
    pub cause: Cause,
    /// Samples in it.
    pub samples: u32,
    /// Answered requests that they were drawn from.
    pub considered: u64,
    /// Of those, inputs too large to be kept.
    pub too_large: u64,
}

/// A private key that opens what was sealed to its [`RecipientKey`].
pub struct SecretKey(<X25519HkdfSha256 as Kem>::PrivateKey);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretKey(of {})", self.recipient())
    }
}

impl SecretKey {
    /// The key that follows from 32 random bytes, which are used for nothing else.
    #[must_use]
    pub fn derive(random: &[u8; 32]) -> Self {
        Self(X25519HkdfSha256::derive_keypair(random).0)
    }

    /// Its public half.
    #[must_use]
    pub fn recipient(&self) -> RecipientKey {
        let bytes = X25519HkdfSha256::sk_to_pk(&self.0).to_bytes();
        RecipientKey(bytes.into())
    }

    /// As PKCS#8 DER (RFC 8410), as OpenSSL writes it.
    #[must_use]
    pub fn to_pkcs8(&self) -> Vec<u8> {
        [&PKCS8[..], &self.0.to_bytes()[..]].concat()
    }

    /// Reads PKCS#8 DER (RFC 8410).
    ///
    /// # Errors
    /// Not an X25519 private key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, SealError> {
        let raw = der.strip_prefix(&PKCS8[..]);
        let raw = raw.ok_or(SealError::SecretKey(
            "expected X25519 in PKCS#8, unencrypted",
        ))?;
        let key = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(raw);
        key.map(Self)
            .map_err(|_| SealError::SecretKey("expected 32 bytes in it"))
    }
}

fn public(key: &RecipientKey) -> Result<<X25519HkdfSha256 as Kem>::PublicKey, SealError> {
    <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(key.as_bytes())
        .map_err(|_| SealError::Recipient(*key))
}

/// Whether anything can be sealed to a key: one of low order would give the content to everybody.
///
/// # Errors
/// [`SealError::Recipient`]
pub fn check_recipient(key: &RecipientKey) -> Result<(), SealError> {
    let mode = OpModeS::Base;
    let random = &mut Stream::new([0; 32]);
    let sealed = single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &mode,
        &public(key)?,
        INFO,
        &[],
        &[],
        random,
    );
    sealed.map(drop).map_err(|_| SealError::Recipient(*key))
}

/// Seals `plain` to the header's recipient. `random` are 32 random bytes, used for nothing else.
///
/// # Errors
/// Too long, or a recipient that nothing can be sealed to.
pub fn seal(header: &Header, plain: &[u8], random: [u8; 32]) -> Result<Vec<u8>, SealError> {
    if plain.len() > PLAIN_MAX_BYTES {
        return Err(SealError::Length {
            max: PLAIN_MAX_BYTES,
            got: plain.len(),
        });
    }
    let json = serde_json::to_vec(header).map_err(|e| SealError::Format(e.to_string()))?;
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
    let mut sealed = [&MAGIC[..], &length.to_be_bytes(), &json].concat();
    let (key, content) =
        single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &public(&header.recipient)?,
            INFO,
            plain,
            &sealed,
            &mut Stream::new(random),
        )
        .map_err(|_| SealError::Recipient(header.recipient))?;
    sealed.extend_from_slice(&key.to_bytes());
    sealed.extend_from_slice(&content);
    Ok(sealed)
}

/// The parts of a sealed batch.
#[derive(Debug, Clone)]
pub struct Sealed<'a> {
    /// What it says to be; proven only by opening it.
    pub header: Header,
    bound: &'a [u8],
    key: &'a [u8],
    content: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Takes a batch apart; nothing is proven by that.
    ///
    /// # Errors
    /// Its length, or what is not of this format.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, SealError> {
        if bytes.len() > SEALED_MAX_BYTES {
            return Err(SealError::Length {
                max: SEALED_MAX_BYTES,
                got: bytes.len(),
            });
        }
        let short = || SealError::Format("it ends too early".to_owned());
        let (magic, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
        if *magic != MAGIC {
            return Err(SealError::Format("it does not begin with DCP1".to_owned()));
        }
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > HEADER_MAX_BYTES {
            let problem = format!("header of {length} bytes, at most {HEADER_MAX_BYTES}");
            return Err(SealError::Format(problem));
        }
        let (json, rest) = rest.split_at_checked(length).ok_or_else(short)?;
        let (key, content) = rest.split_at_checked(KEY_BYTES).ok_or_else(short)?;
        if content.len() < TAG_BYTES {
            return Err(short());
        }
        let header =
            serde_json::from_slice(json).map_err(|e| SealError::Format(format!("header: {e}")))?;
        Ok(Self {
            header,
            bound: &bytes[..PREFIX_BYTES + length],
            key,
            content,
        })
    }

    /// Opens it.
    ///
    /// # Errors
    /// The key is another's, or the batch was changed.
    pub fn open(&self, key: &SecretKey) -> Result<Vec<u8>, SealError> {
        let got = key.recipient();
        if got != self.header.recipient {
            return Err(SealError::WrongKey {
                expected: self.header.recipient,
                got,
            });
        }
        let opened = || -> Result<Vec<u8>, HpkeError> {
            let encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(self.key)?;
            single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
                &OpModeR::Base,
                &key.0,
                &encapsulated,
                INFO,
                self.content,
                self.bound,
            )
        };
        opened().map_err(|_| SealError::Tampered {
            device: self.header.device.clone(),
        })
    }
}

/// The bytes that follow from a seed: SHA-256 of the seed and a counter, block by block. HPKE draws 32.
struct Stream {
    seed: [u8; 32],
    blocks: u64,
}

impl Stream {
    fn new(seed: [u8; 32]) -> Self {
        Self { seed, blocks: 0 }
    }

    fn block(&mut self) -> [u8; 32] {
        let hash = sha2::Sha256::new()
            .chain_update(self.seed)
            .chain_update(self.blocks.to_be_bytes());
        self.blocks += 1;
        hash.finalize().into()
    }
}

impl TryRng for Stream {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let block = self.block();
        Ok(u32::from_be_bytes([block[0], block[1], block[2], block[3]]))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let (low, high) = (self.try_next_u32()?, self.try_next_u32()?);
        Ok(u64::from(low) | u64::from(high) << 32)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(32) {
            let block = self.block();
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for Stream {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    pub(in crate::capture) fn header(recipient: RecipientKey) -> Header {
        Header {
            fleet: "north".parse().unwrap(),
            device: "edge-07".parse().unwrap(),
            family: "digits".parse().unwrap(),
            version: 3,
            bundle: Digest([7; 32]),
            recipient,
            start_ms: 1000,
            end_ms: 2000,
            cause: Cause::Window,
            samples: 1,
            considered: 10,
            too_large: 0,
        }
    }

    #[test]
    fn what_is_sealed_opens_with_the_one_key() {
        let key = SecretKey::derive(&[1; 32]);
        let sealed = seal(&header(key.recipient()), b"seen", [9; 32]).unwrap();
        let parsed = Sealed::parse(&sealed).unwrap();
        assert_eq!(parsed.header, header(key.recipient()));
        assert_eq!(parsed.open(&key).unwrap(), b"seen");
        // The same random bytes give the same batch, others another.
        assert_eq!(
            seal(&header(key.recipient()), b"seen", [9; 32]).unwrap(),
            sealed
        );
        assert_ne!(
            seal(&header(key.recipient()), b"seen", [8; 32]).unwrap(),
            sealed
        );
        let other = SecretKey::derive(&[2; 32]);
        let refused = parsed.open(&other).unwrap_err();
        assert_eq!(
            refused,
            SealError::WrongKey {
                expected: key.recipient(),
                got: other.recipient()
            }
        );
    }

    #[test]
    fn no_byte_may_change() {
        let key = SecretKey::derive(&[1; 32]);
        let sealed = seal(&header(key.recipient()), b"what was seen", [9; 32]).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            let opened = Sealed::parse(&changed).and_then(|s| s.open(&key));
            assert!(opened.is_err(), "byte {at}");
        }
        for end in 0..sealed.len() {
            let opened = Sealed::parse(&sealed[..end]).and_then(|s| s.open(&key));
            assert!(opened.is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_batch_cannot_pass_for_anothers() {
        let key = SecretKey::derive(&[1; 32]);
        let mine = header(key.recipient());
        let sealed = seal(&mine, b"seen", [9; 32]).unwrap();
        let tail = &sealed[PREFIX_BYTES + serde_json::to_vec(&mine).unwrap().len()..];
        let forge = |header: &Header| {
            let json = serde_json::to_vec(header).unwrap();
            let length = u32::try_from(json.len()).unwrap().to_be_bytes();
            let forged = [&MAGIC[..], &length, &json, tail].concat();
            Sealed::parse(&forged).unwrap().open(&key)
        };
        assert_eq!(forge(&mine).unwrap(), b"seen");
        let mut other = mine.clone();
        other.device = "edge-08".parse().unwrap();
        assert!(matches!(forge(&other), Err(SealError::Tampered { .. })));
        let mut other = mine.clone();
        other.bundle = Digest([8; 32]);
        assert!(matches!(forge(&other), Err(SealError::Tampered { .. })));
        let mut other = mine;
        other.end_ms += 1;
        assert!(matches!(forge(&other), Err(SealError::Tampered { .. })));
    }

    #[test]
    fn keys_are_those_of_rfc_8410() {
        // Made by `openssl genpkey -algorithm X25519`; the public half by `openssl pkey -pubout`.
        let raw = "38aeac97bd71849239ed9e394c8f96dbe105639100d3fe3952e370e0ad00d04a";
        let der = [&PKCS8[..], &hex::decode(raw).unwrap()].concat();
        let key = SecretKey::from_pkcs8(&der).unwrap();
        let again = SecretKey::from_pkcs8(&key.to_pkcs8()).unwrap();
        let public = "a68653e6b5390d08b1111954fa1895f945659a9e356fd6dcc61ecaa277440b6a";
        assert_eq!(again.recipient().to_string(), public);
        assert!(SecretKey::from_pkcs8(&der[1..]).is_err());
        assert!(SecretKey::from_pkcs8(&der[..40]).is_err());
    }

    #[test]
    fn absurd_lengths_are_refused_before_anything_is_read() {
        let long = vec![0; SEALED_MAX_BYTES + 1];
        assert!(matches!(
            Sealed::parse(&long),
            Err(SealError::Length { .. })
        ));
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&u32::MAX.to_be_bytes());
        header.extend_from_slice(&[b' '; 100]);
        let refused = Sealed::parse(&header).unwrap_err().to_string();
        assert!(refused.contains("at most 4096"), "{refused}");
        let key = SecretKey::derive(&[1; 32]);
        let plain = vec![0; PLAIN_MAX_BYTES + 1];
        assert!(seal(&header_of(&key), &plain, [0; 32]).is_err());
        let most = seal(&header_of(&key), &plain[1..], [0; 32]).unwrap();
        assert!(most.len() <= SEALED_MAX_BYTES);
        assert!(Sealed::parse(&most).unwrap().open(&key).is_ok());
    }

    fn header_of(key: &SecretKey) -> Header {
        header(key.recipient())
    }
}
