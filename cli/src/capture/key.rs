//! The private key's file: X25519 in PKCS#8 PEM (RFC 8410), as OpenSSL reads and writes it.

use crate::files::{self, FileError};
use dunlin_protocol::capture::seal::{SealError, SecretKey};
use pkcs8::{LineEnding, SecretDocument};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const KEY_MAX_BYTES: u64 = 4096;
const LABEL: &str = "PRIVATE KEY";

/// Why a key is not read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not a PEM file of the kind.
    #[error("{path}: expected an X25519 private key in PKCS#8 PEM (BEGIN PRIVATE KEY): {problem}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Not such a key.
    #[error("{path}: {error}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: SealError,
    },
}

/// Reads a private key.
///
/// # Errors
/// [`KeyError`]
pub fn read_key(path: &Path) -> Result<SecretKey, KeyError> {
    let text = Zeroizing::new(files::read_text(path, KEY_MAX_BYTES)?);
    let pem = |problem: String| KeyError::Pem {
        path: path.to_owned(),
        problem,
    };
    let (label, der) = SecretDocument::from_pem(&text).map_err(|e| pem(e.to_string()))?;
    if label != LABEL {
        return Err(pem(format!("it says BEGIN {label}")));
    }
    SecretKey::from_pkcs8(der.as_bytes()).map_err(|error| KeyError::Key {
        path: path.to_owned(),
        error,
    })
}

/// Writes a private key, mode 0600, where nothing is yet.
///
/// # Errors
/// [`KeyError`]
pub fn write_key(path: &Path, key: &SecretKey) -> Result<(), KeyError> {
    let der = Zeroizing::new(key.to_pkcs8());
    let pem = |e: String| KeyError::Pem {
        path: path.to_owned(),
        problem: e,
    };
    let document = SecretDocument::try_from(&der[..]).map_err(|e| pem(e.to_string()))?;
    let text = document.to_pem(LABEL, LineEnding::LF);
    let text = text.map_err(|e| pem(e.to_string()))?;
    Ok(files::create_secret(path, text.as_bytes())?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_its_owners_alone_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capture.key");
        let key = SecretKey::derive(&[3; 32]);
        write_key(&path, &key).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(read_key(&path).unwrap().recipient(), key.recipient());
        assert!(write_key(&path, &key).is_err());
    }

    #[test]
    fn what_is_no_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        std::fs::write(&path, "hello").unwrap();
        let problem = read_key(&path).unwrap_err().to_string();
        assert!(problem.contains("expected an X25519"), "{problem}");
        // One of openssl's, of another kind.
        let ed25519 = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
        std::fs::write(&path, ed25519).unwrap();
        let problem = read_key(&path).unwrap_err().to_string();
        assert!(problem.contains("expected X25519"), "{problem}");
    }
}
