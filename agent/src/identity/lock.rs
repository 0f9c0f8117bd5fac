//! Enrolment is a command of its own, renewal is the running agent's: they take turns, or one would
//! sweep away the key that the other is about to name.

use super::{IdentityError, folder};
use crate::files::{self, FileLock};
use std::path::Path;

/// Held by whoever changes the identity, across processes; let go when dropped.
#[derive(Debug)]
pub struct IdentityLock {
    _lock: FileLock,
}

impl IdentityLock {
    /// Takes it, or says that somebody has it.
    ///
    /// # Errors
    /// [`IdentityError::Busy`], [`IdentityError::File`]
    pub fn take(state_dir: &Path) -> Result<Self, IdentityError> {
        files::create_private_dir(&folder(state_dir))?;
        let path = folder(state_dir).join("lock");
        match FileLock::try_take(&path)? {
            Some(lock) => Ok(Self { _lock: lock }),
            None => Err(IdentityError::Busy { path }),
        }
    }
}
