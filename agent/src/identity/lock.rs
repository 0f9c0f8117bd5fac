//! Enrolment is a command of its own, renewal is the running agent's: they take turns, or one would
//! sweep away the key that the other is about to name.

use super::{IdentityError, folder};
use crate::files;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Held by whoever changes the identity, across processes; let go when dropped.
#[derive(Debug)]
pub struct IdentityLock {
    _file: File,
}

impl IdentityLock {
    /// Takes it, or says that somebody has it.
    ///
    /// # Errors
    /// [`IdentityError::Busy`], [`IdentityError::File`]
    pub fn take(state_dir: &Path) -> Result<Self, IdentityError> {
        files::create_private_dir(&folder(state_dir))?;
        let path = folder(state_dir).join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(files::at("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(IdentityError::Busy { path }),
            Err(TryLockError::Error(error)) => Err(files::at("lock", &path)(error).into()),
        }
    }
}
