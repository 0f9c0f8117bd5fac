//! Keys made on the device.

use super::{IdentityError, folder};
use crate::files::{self, Disk, FileError};
use dunlin_protocol::id::Digest;
use rcgen::{
    CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SigningKey as _,
};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

const KEY_MAX_BYTES: u64 = 16 * 1024;

/// The key that a device enrols with.
pub(super) fn first_key_file() -> String {
    "device.key".to_owned()
}

/// Whether a name is one that keys are stored under.
pub(super) fn is_key_file(name: &str) -> bool {
    let middle = name
        .strip_prefix("device.")
        .and_then(|rest| rest.strip_suffix(".key"));
    let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    name == first_key_file() || middle.is_some_and(|m| m.len() == 16 && m.chars().all(is_hex))
}

/// The private key of this device.
pub struct DeviceKey {
    pub(super) pair: KeyPair,
    /// Its file's name in the identity folder.
    pub(super) file: String,
    pub(super) state_dir: PathBuf,
}

impl std::fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeviceKey(…)")
    }
}

impl DeviceKey {
    /// The key that the device's certificate is for, or, before it enrolled, the key in
    /// `<state_dir>/identity/device.key`, made and stored first if there is none.
    ///
    /// # Errors
    /// [`IdentityError`]; a damaged or open key is never replaced silently.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, IdentityError> {
        let enrolled = super::read_enrolled(state_dir)?;
        let file = enrolled.map_or_else(first_key_file, |e| e.key_file);
        if let Some(key) = Self::load(state_dir, &file)? {
            return Ok(key);
        }
        files::create_private_dir(state_dir)?;
        files::create_private_dir(&folder(state_dir))?;
        let key = Self::make(state_dir, file)?;
        key.store(&Disk::native())?;
        Ok(key)
    }

    /// A new key in memory, under a name that no other key has.
    pub(super) fn next(state_dir: &Path) -> Result<Self, IdentityError> {
        let mut key = Self::make(state_dir, String::new())?;
        let digest = Digest::of(&key.pair.subject_public_key_info());
        key.file = format!("device.{}.key", hex::encode(&digest.as_bytes()[..8]));
        Ok(key)
    }

    fn make(state_dir: &Path, file: String) -> Result<Self, IdentityError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|e| IdentityError::Key(e.to_string()))?;
        Ok(Self {
            pair,
            file,
            state_dir: state_dir.to_owned(),
        })
    }

    pub(super) fn store(&self, disk: &Disk) -> Result<(), FileError> {
        let path = folder(&self.state_dir).join(&self.file);
        disk.write_atomic(&path, self.pair.serialize_pem().as_bytes(), 0o600)
    }

    pub(super) fn load(state_dir: &Path, file: &str) -> Result<Option<Self>, IdentityError> {
        let path = folder(state_dir).join(file);
        if !is_key_file(file) {
            let problem = format!("{file:?} is no name of a key file; enrol again");
            return Err(IdentityError::Damaged { path, problem });
        }
        let Some(bytes) = files::read_if_there(&path, KEY_MAX_BYTES)? else {
            return Ok(None);
        };
        let mode = std::fs::metadata(&path)
            .map_err(files::at("read permissions of", &path))?
            .permissions()
            .mode()
            & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::OpenKey { path, mode });
        }
        // The parser's words could quote the key.
        let pair = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok());
        match pair {
            Some(pair) => Ok(Some(Self {
                pair,
                file: file.to_owned(),
                state_dir: state_dir.to_owned(),
            })),
            None => Err(IdentityError::Damaged {
                path,
                problem: "no private key in PKCS #8 PEM; restore it, or delete it and enrol anew"
                    .to_owned(),
            }),
        }
    }

    /// ECDSA P-256 over the message's SHA-256, in ASN.1 DER.
    ///
    /// # Errors
    /// [`IdentityError::Key`]
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        let signed = self.pair.sign(message);
        signed.map_err(|e| IdentityError::Key(e.to_string()))
    }

    /// A certificate signing request (PKCS #10, PEM) for this key. The server decides about the name.
    ///
    /// # Errors
    /// [`IdentityError::Key`]
    pub fn csr_pem(&self, common_name: &str) -> Result<String, IdentityError> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params
            .serialize_request(&self.pair)
            .and_then(|request| request.pem())
            .map_err(|e| IdentityError::Key(e.to_string()))
    }
}
