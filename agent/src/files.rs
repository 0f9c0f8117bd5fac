//! Files that survive a power cut: written whole or not at all, read with a bound.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
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

/// Replaces `path` by `bytes` with permissions `mode`: after a power cut it holds the old content
/// or the new, never a part. Not for two writers of one path at a time.
///
/// # Errors
/// [`FileError::Io`]; the old content is then still there.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let new = path.with_file_name(name);
    // A name of its own for every attempt would leave litter behind each kill.
    remove_if_there(&new)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)
        .map_err(at("create", &new))?;
    let written = (|| {
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    })();
    if let Err(error) = written {
        let _ = std::fs::remove_file(&new);
        return Err(at("write", path)(error));
    }
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Reads a file of at most `max_bytes` bytes.
///
/// # Errors
/// [`FileError`]; a longer file is not read to its end.
pub fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(at("open", path))?;
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(at("read", path))?;
    if bytes.len() as u64 > max_bytes {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            max_bytes,
        });
    }
    Ok(bytes)
}

/// As [`read_bounded`], `None` if there is no such file.
///
/// # Errors
/// [`FileError`]
pub fn read_if_there(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
    match read_bounded(path, max_bytes) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a file; that it is not there is fine.
///
/// # Errors
/// [`FileError::Io`]
pub fn remove_if_there(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Makes the names in a folder durable.
///
/// # Errors
/// [`FileError::Io`]
pub fn sync_dir(path: &Path) -> Result<(), FileError> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(at("sync folder", path))
}

/// Makes a folder (and those above it) that only its owner may enter; narrows one that is wider.
///
/// # Errors
/// [`FileError::Io`]
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    if !path.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(at("create folder", path))?;
        if let Some(parent) = path.parent() {
            sync_dir(parent)?;
        }
    }
    let mode = std::fs::metadata(path)
        .map_err(at("read permissions of", path))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(at("narrow permissions of", path))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
