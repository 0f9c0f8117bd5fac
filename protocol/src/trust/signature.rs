//! Public keys and the verification of one signature: Ed25519, RSA and ECDSA on P-256.
//!
//! The only place that names `ring`, and of it only verification, which is pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::pkcs8::ObjectIdentifier;
use ed25519_dalek::pkcs8::spki::SubjectPublicKeyInfoRef;
use ed25519_dalek::pkcs8::spki::der::Decode as _;
use ed25519_dalek::{Signature, VerifyingKey};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

const PEM_BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const PEM_END: &str = "-----END PUBLIC KEY-----";

/// A public key that can verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PublicKey {
    /// `verify_strict`: no weak key, one encoding only.
    Ed25519(VerifyingKey),
    /// PSS padding with a salt as long as the hash; an `RSAPublicKey` in DER, 2048 to 8192 bits.
    RsaPss(Vec<u8>),
    /// PKCS#1 v1.5 padding; the key as for PSS.
    RsaPkcs1v15(Vec<u8>),
    /// An uncompressed point; signatures are DER.
    EcdsaP256(Vec<u8>),
}

impl PublicKey {
    /// The key that `keytype`, `scheme` and `keyval.public` describe; `None` if the kind is unknown
    /// or the text is no such key.
    pub(super) fn read(keytype: &str, scheme: &str, public: &str) -> Option<Self> {
        match (keytype, scheme) {
            ("ed25519", "ed25519") => {
                let mut raw = [0_u8; 32];
                hex::decode_to_slice(public, &mut raw).ok()?;
                VerifyingKey::from_bytes(&raw).ok().map(Self::Ed25519)
            }
            ("rsa", "rsassa-pss-sha256") => match Self::from_pem(public)? {
                Self::RsaPss(key) => Some(Self::RsaPss(key)),
                _ => None,
            },
            ("rsa", "rsa-pkcs1v15-sha256") => match Self::from_pem(public)? {
                Self::RsaPss(key) => Some(Self::RsaPkcs1v15(key)),
                _ => None,
            },
            // The second name of the type is the one of older repositories.
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => {
                match Self::from_pem(public)? {
                    Self::EcdsaP256(key) => Some(Self::EcdsaP256(key)),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Reads `BEGIN PUBLIC KEY` (a SubjectPublicKeyInfo); an RSA key is taken for PSS.
    pub(super) fn from_pem(pem: &str) -> Option<Self> {
        let (_, rest) = pem.split_once(PEM_BEGIN)?;
        let (body, _) = rest.split_once(PEM_END)?;
        let body: String = body.split_ascii_whitespace().collect();
        let der = STANDARD.decode(body).ok()?;
        let info = SubjectPublicKeyInfoRef::from_der(&der).ok()?;
        let key = info.subject_public_key.as_bytes()?;
        match info.algorithm.oid {
            RSA => Some(Self::RsaPss(key.to_vec())),
            EC if info.algorithm.parameters_oid().ok()? == P256 => {
                let uncompressed = key.len() == 65 && key[0] == 4;
                uncompressed.then(|| Self::EcdsaP256(key.to_vec()))
            }
            ED25519 => {
                let raw = key.try_into().ok()?;
                VerifyingKey::from_bytes(raw).ok().map(Self::Ed25519)
            }
            _ => None,
        }
    }

    /// Whether `signature` is this key's over `message`.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let with = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            let key = UnparsedPublicKey::new(algorithm, key);
            key.verify(message, signature).is_ok()
        };
        match self {
            Self::Ed25519(key) => Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
            Self::RsaPss(key) => with(&RSA_PSS_2048_8192_SHA256, key),
            Self::RsaPkcs1v15(key) => with(&RSA_PKCS1_2048_8192_SHA256, key),
            Self::EcdsaP256(key) => with(&ECDSA_P256_SHA256_ASN1, key),
        }
    }

    /// What makes two keys the same key, whatever their ids, schemes and other fields are.
    pub(super) fn material(&self) -> &[u8] {
        match self {
            Self::Ed25519(key) => key.as_bytes(),
            Self::RsaPss(key) | Self::RsaPkcs1v15(key) | Self::EcdsaP256(key) => key,
        }
    }
}
