//! Private keys in PKCS #8 PEM, plain or encrypted, as OpenSSL reads and writes them.
//!
//! Encrypted means PBES2 (RFC 8018) with scrypt and AES-256-CBC. What others encrypted with
//! PBKDF2-HMAC-SHA-256 is read as well: that is what `openssl genpkey -aes256` writes.

use dunlin_protocol::trust::{SigningKey, TrustError};
use pkcs8::pkcs5::pbes2::{Kdf, Parameters};
use pkcs8::pkcs5::{EncryptionScheme, scrypt};
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};
use zeroize::Zeroizing;

const PLAIN: &str = "PRIVATE KEY";
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";

/// scrypt with N = 2^14, r = 8, p = 5: 16 MiB, among OWASP's choices and within the 32 MiB that
/// OpenSSL allows a key file.
const SCRYPT_LOG_N: u8 = 14;
const SCRYPT_R: u32 = 8;
const SCRYPT_P: u32 = 5;

/// Most memory that a key file may ask for, in bytes.
const KDF_MEMORY_MAX_BYTES: u64 = 256 << 20;
/// Most work that a key file may ask for: scrypt's N·r·p, PBKDF2's iterations.
const KDF_WORK_MAX: u64 = 1 << 24;

/// Why a private key is not read or written.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// Not a PEM file of the kind.
    #[error(
        "expected a private key in PKCS #8 PEM (BEGIN PRIVATE KEY or BEGIN ENCRYPTED PRIVATE KEY): {0}"
    )]
    NotPkcs8(String),
    /// A derivation that would take all memory or for ever.
    #[error(
        "its passphrase would need {what}, more than is accepted: encrypt it again with `openssl pkcs8 -topk8`"
    )]
    TooExpensive {
        /// The cost.
        what: String,
    },
    /// Wrong passphrase; a damaged file looks the same.
    #[error("wrong passphrase, or the file is damaged")]
    WrongPassphrase,
    /// Encrypted in a way that is not supported.
    #[error(
        "encrypted with {0}: expected PBES2 with scrypt or PBKDF2-HMAC-SHA-256 and AES, as `openssl pkcs8 -topk8` writes it"
    )]
    Unsupported(String),
    /// The encoder failed.
    #[error("cannot be encrypted: {0}")]
    Encrypt(String),
    /// Not an Ed25519 key.
    #[error("{0}")]
    Key(#[from] TrustError),
}

/// Fresh random bytes for one encryption; never use them twice.
pub struct Salt {
    /// For the key derivation.
    pub salt: [u8; 16],
    /// For the cipher.
    pub iv: [u8; 16],
}

/// Whether a passphrase is needed to read this text.
#[must_use]
pub fn is_encrypted(pem: &str) -> bool {
    pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
}

/// Writes a key as `BEGIN ENCRYPTED PRIVATE KEY`.
///
/// # Errors
/// [`PemError::Encrypt`], [`PemError::Key`]; there is no reason for either.
pub fn encrypt(
    key: &SigningKey,
    passphrase: &[u8],
    fresh: &Salt,
) -> Result<Zeroizing<String>, PemError> {
    let failed = |e: &dyn std::fmt::Display| PemError::Encrypt(e.to_string());
    let plain = key.to_pkcs8_pem()?;
    let (_, document) = SecretDocument::from_pem(plain.expose()).map_err(|e| failed(&e))?;
    let info = PrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|e| failed(&e))?;
    let cost = scrypt::Params::new(SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P).map_err(|e| failed(&e))?;
    let scheme = Parameters::generate_scrypt_aes256cbc(cost, &fresh.salt, fresh.iv)
        .map_err(|e| failed(&e))?;
    let sealed = info
        .encrypt_with_params(scheme, passphrase)
        .map_err(|e| failed(&e))?;
    sealed
        .to_pem(ENCRYPTED, LineEnding::LF)
        .map_err(|e| failed(&e))
}

/// Reads a plain key.
///
/// # Errors
/// [`PemError::Key`]
pub fn read_plain(pem: &str) -> Result<SigningKey, PemError> {
    Ok(SigningKey::from_pkcs8_pem(pem)?)
}

/// Reads an encrypted key.
///
/// # Errors
/// [`PemError`]; nothing in it tells of the key or the passphrase.
pub fn decrypt(pem: &str, passphrase: &[u8]) -> Result<SigningKey, PemError> {
    let not_pkcs8 = |e: &dyn std::fmt::Display| PemError::NotPkcs8(e.to_string());
    let (label, document) = SecretDocument::from_pem(pem).map_err(|e| not_pkcs8(&e))?;
    if label != ENCRYPTED {
        return Err(PemError::NotPkcs8(format!("it is a {label}")));
    }
    let info =
        EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|e| not_pkcs8(&e))?;
    check_cost(&info.encryption_algorithm)?;
    // A wrong passphrase shows as bad padding, or, by chance, as content that is no key.
    let plain = info
        .decrypt(passphrase)
        .map_err(|_| PemError::WrongPassphrase)?;
    let plain = plain
        .to_pem(PLAIN, LineEnding::LF)
        .map_err(|_| PemError::WrongPassphrase)?;
    read_plain(&plain)
}

/// The file names its own cost: a hostile one must not take the machine along.
fn check_cost(scheme: &EncryptionScheme) -> Result<(), PemError> {
    let EncryptionScheme::Pbes2(parameters) = scheme else {
        return Err(PemError::Unsupported(
            "PBES1, which is broken or nearly so".to_owned(),
        ));
    };
    match &parameters.kdf {
        Kdf::Scrypt(scrypt) => {
            let block = u64::from(scrypt.block_size);
            let work = scrypt.cost_parameter.saturating_mul(block);
            let memory_bytes = work.saturating_mul(128);
            let work = work.saturating_mul(u64::from(scrypt.parallelization));
            if memory_bytes > KDF_MEMORY_MAX_BYTES || work > KDF_WORK_MAX {
                let what = format!("{} MiB of memory for scrypt", memory_bytes >> 20);
                return Err(PemError::TooExpensive { what });
            }
            Ok(())
        }
        Kdf::Pbkdf2(pbkdf2) if u64::from(pbkdf2.iteration_count) > KDF_WORK_MAX => {
            let what = format!("{} iterations of PBKDF2", pbkdf2.iteration_count);
            Err(PemError::TooExpensive { what })
        }
        Kdf::Pbkdf2(_) => Ok(()),
        _ => Err(PemError::Unsupported("an unknown derivation".to_owned())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SALT: Salt = Salt {
        salt: [7; 16],
        iv: [9; 16],
    };

    #[test]
    fn an_encrypted_key_comes_back_with_its_passphrase_alone() {
        let key = SigningKey::from_seed(&[3; 32]);
        let pem = encrypt(&key, b"correct horse", &SALT).unwrap();
        assert!(is_encrypted(&pem));
        let back = decrypt(&pem, b"correct horse").unwrap();
        assert_eq!(back.keyid().unwrap(), key.keyid().unwrap());
        for wrong in [&b"correct hors"[..], b"", b"correct horse\n"] {
            let refused = decrypt(&pem, wrong).unwrap_err();
            assert!(matches!(refused, PemError::WrongPassphrase), "{refused}");
        }
    }

    #[test]
    fn a_file_cannot_ask_for_all_memory() {
        let scrypt = |log_n, r, p| {
            let cost = scrypt::Params::new(log_n, r, p).unwrap();
            let scheme = Parameters::generate_scrypt_aes256cbc(cost, &[1; 16], [2; 16]).unwrap();
            check_cost(&EncryptionScheme::Pbes2(scheme))
        };
        assert!(scrypt(14, 8, 1).is_ok());
        assert!(scrypt(17, 8, 1).is_ok());
        assert!(matches!(
            scrypt(25, 8, 1),
            Err(PemError::TooExpensive { .. })
        ));
        assert!(matches!(
            scrypt(14, 8, 4000),
            Err(PemError::TooExpensive { .. })
        ));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        for text in [
            "",
            "geheim",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nZ2VoZWlt\n-----END ENCRYPTED PRIVATE KEY-----\n",
        ] {
            let refused = decrypt(text, b"x").unwrap_err().to_string();
            assert!(
                !refused.contains("geheim") && !refused.contains("Z2Vo"),
                "{refused}"
            );
        }
    }
}
