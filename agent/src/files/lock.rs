//! Locks between processes.

use super::{FileError, at};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// A file that this process has locked; unlocked when dropped, and by the kernel when it dies.
///
/// Closing the file would not do: between its fork and its exec a child (a worker that is just
/// starting) has every descriptor of its parent, and a lock lasts until the last of them is closed.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Takes the lock, or `None` when somebody has it; makes the file if it is not there.
    ///
    /// # Errors
    /// [`FileError::Io`]
    pub fn try_take(path: &Path) -> Result<Option<Self>, FileError> {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(at("lock", path)(error)),
        }
    }

    /// Takes the lock, waiting for whoever has it; makes the file if it is not there.
    ///
    /// # Errors
    /// [`FileError::Io`]
    pub fn take(path: &Path) -> Result<Self, FileError> {
        let file = open(path)?;
        file.lock().map_err(at("lock", path))?;
        Ok(Self(file))
    }

    /// Whether somebody has it; makes nothing, and holds it for an instant if nobody does.
    #[must_use]
    pub fn is_taken(path: &Path) -> bool {
        let Ok(file) = File::open(path) else {
            return false;
        };
        match file.try_lock() {
            Ok(()) => {
                drop(Self(file));
                false
            }
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(_)) => false,
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // What the kernel cannot unlock is unlocked by closing it.
        let _ = self.0.unlock();
    }
}

fn open(path: &Path) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    options.open(path).map_err(at("open", path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!FileLock::is_taken(&path));
        assert!(!path.exists());
        let first = FileLock::try_take(&path).unwrap().unwrap();
        assert!(FileLock::is_taken(&path));
        assert!(FileLock::try_take(&path).unwrap().is_none());
        drop(first);
        assert!(!FileLock::is_taken(&path));
        FileLock::take(&path).unwrap();
    }

    #[test]
    fn a_copy_of_its_descriptor_does_not_hold_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = FileLock::take(&path).unwrap();
        // As a child has it between fork and exec.
        let copy = lock.0.try_clone().unwrap();
        assert!(FileLock::try_take(&path).unwrap().is_none());
        drop(lock);
        assert!(FileLock::try_take(&path).unwrap().is_some());
        drop(copy);
    }
}
