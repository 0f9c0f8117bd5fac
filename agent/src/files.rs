//! Files that survive a power cut: written whole or not at all, read with a bound.
//!
//! What an update touches goes through a [`Disk`] that is passed in; the functions here are for the
//! rest (configuration, identity) and use the operating system's.

mod disk;
mod lock;

pub use disk::{Disk, FileSystem, Kind, Metadata, OpenFile};
pub use lock::FileLock;

use std::io;
use std::path::{Path, PathBuf};

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Longer than anything that belongs there.
    #[error("{}: longer than the {max_bytes} bytes that are accepted", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Limit in bytes.
        max_bytes: u64,
    },
}

impl FileError {
    /// Whether the disk (or the quota) is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(
            self,
            Self::Io { source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        )
    }

    /// Whether there is no such file.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Names the action and the path of an I/O error: `.map_err(at("open", path))`.
pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError + use<> {
    let path = path.to_owned();
    move |source| FileError::Io {
        action,
        path,
        source,
    }
}

/// As [`Disk::write_atomic`].
///
/// # Errors
/// [`FileError::Io`]; the old content is then still there.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    Disk::native().write_atomic(path, bytes, mode)
}

/// As [`Disk::read_bounded`].
///
/// # Errors
/// [`FileError`]; a longer file is not read to its end.
pub fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, FileError> {
    Disk::native().read_bounded(path, max_bytes)
}

/// As [`Disk::read_if_there`].
///
/// # Errors
/// [`FileError`]
pub fn read_if_there(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
    Disk::native().read_if_there(path, max_bytes)
}

/// As [`Disk::create_private_dir`].
///
/// # Errors
/// [`FileError::Io`]
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    Disk::native().create_private_dir(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        create_private_dir(path.parent().unwrap()).unwrap();
        write_atomic(&path, b"one", 0o600).unwrap();
        write_atomic(&path, b"two", 0o640).unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap(), b"two");
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o640);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        // Nothing else is left behind.
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
    }

    #[test]
    fn links_are_neither_followed_by_removal_nor_by_narrowing() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        let (theirs, link) = (dir.path().join("theirs"), dir.path().join("link"));
        std::fs::create_dir(&theirs).unwrap();
        std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(theirs.join("f"), b"kept").unwrap();
        std::os::unix::fs::symlink(&theirs, &link).unwrap();
        let refused = create_private_dir(&link).unwrap_err().to_string();
        assert!(refused.contains("link to a folder"), "{refused}");
        assert_eq!(mode(&theirs), 0o755);
        Disk::native().remove_tree(&link).unwrap();
        assert!(!link.is_symlink());
        assert_eq!(std::fs::read(theirs.join("f")).unwrap(), b"kept");
        // One that is private already may lie elsewhere.
        std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&theirs, &link).unwrap();
        create_private_dir(&link).unwrap();
    }

    #[test]
    fn an_earlier_writer_killed_half_way_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".f.new"), b"half").unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"whole", 0o600).unwrap();
        assert_eq!(read_bounded(&path, 100).unwrap(), b"whole");
    }

    #[test]
    fn reading_is_bounded_and_errors_name_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(read_if_there(&path, 1).unwrap(), None);
        let missing = read_bounded(&path, 1).unwrap_err();
        assert!(missing.is_not_found());
        assert!(missing.to_string().contains(path.to_str().unwrap()));
        std::fs::write(&path, b"abc").unwrap();
        let long = read_bounded(&path, 2).unwrap_err().to_string();
        assert!(long.contains("longer than the 2 bytes"), "{long}");
        let nowhere = write_atomic(&dir.path().join("no/f"), b"", 0o600).unwrap_err();
        assert!(nowhere.to_string().contains("no/.f.new"), "{nowhere}");
    }
}
