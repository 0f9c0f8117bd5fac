//! Files that are whole or not there: written aside, synced, renamed, their folder synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Mode of files that everybody may read.
pub(crate) const PUBLIC: u32 = 0o644;
/// Mode of private keys.
pub(crate) const SECRET: u32 = 0o600;

/// A file or folder that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct FileError {
    /// Which.
    pub path: PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

/// Names the path in an error of the system.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> FileError + '_ {
    move |source| FileError {
        path: path.to_owned(),
        source,
    }
}

/// Writes a file so that, whenever the power goes, the old content or the new is there in full.
///
/// # Errors
/// The system's, with the path.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    #[cfg(test)]
    cut::write(path)?;
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let write = || -> io::Result<()> {
        // An earlier run that was cut may have left one behind.
        match fs::remove_file(&part) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(at(path))
}

/// Moves a file over another of the same file system, durably.
///
/// # Errors
/// The system's, with the path.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    #[cfg(test)]
    cut::write(to)?;
    let moved = || -> io::Result<()> {
        fs::rename(from, to)?;
        for folder in [to.parent(), from.parent()].into_iter().flatten() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    moved().map_err(at(to))
}

/// A file's content of at most `max_bytes`; `None` if there is no such file.
///
/// # Errors
/// The system's, with the path; longer than `max_bytes`.
pub(crate) fn read_bounded(path: &Path, max_bytes: usize) -> Result<Option<Vec<u8>>, FileError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let limit = max_bytes as u64 + 1;
        File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        if bytes.len() > max_bytes {
            let problem = format!("more than {max_bytes} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at(path)(e)),
    }
}

/// Makes a folder and those above it, readable by nobody else.
///
/// # Errors
/// The system's, with the path.
pub(crate) fn make_private_folder(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(at(path))
}

#[cfg(test)]
pub(crate) use cut::cut_after;

/// In tests, the end of a process between two writes: after a number of them no other succeeds.
#[cfg(test)]
mod cut {
    use super::{FileError, Path, at, io};
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Runs `work`, whose writes after the first `writes` all fail, with nothing of them on disk.
    pub(crate) fn cut_after<T>(writes: u32, work: impl FnOnce() -> T) -> T {
        LEFT.set(Some(writes));
        let done = work();
        LEFT.set(None);
        done
    }

    pub(super) fn write(path: &Path) -> Result<(), FileError> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) => Err(at(path)(io::Error::other("cut"))),
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }
}
