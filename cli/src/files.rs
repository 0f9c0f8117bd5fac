//! Files read with a bound and written whole.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("{action} {path}: {error}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// Longer than such a file may be.
    #[error("{path}: longer than the {max} bytes such a file may have")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Limit in bytes.
        max: u64,
    },
    /// Not text.
    #[error("{path}: is not UTF-8 text")]
    NotText {
        /// The file.
        path: PathBuf,
    },
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FileError {
    let path = path.to_owned();
    move |error| FileError::Io {
        action,
        path,
        error,
    }
}

/// Reads a whole file of at most `max` bytes.
///
/// # Errors
/// It cannot be read, or is longer.
pub fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, FileError> {
    let file = fs::File::open(path).map_err(io("cannot open", path))?;
    let mut bytes = Vec::new();
    let limit = max.saturating_add(1);
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(io("cannot read", path))?;
    if bytes.len() as u64 > max {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            max,
        });
    }
    Ok(bytes)
}

/// As [`read_bounded`], as text.
///
/// # Errors
/// It cannot be read, is longer, or is not UTF-8.
pub fn read_text(path: &Path, max: u64) -> Result<String, FileError> {
    String::from_utf8(read_bounded(path, max)?).map_err(|_| FileError::NotText {
        path: path.to_owned(),
    })
}

/// Writes a file so that it is either the old one or the whole new one.
///
/// # Errors
/// The system refused.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_with_mode(path, bytes, 0o644)
}

/// As [`write_whole`], readable by its owner alone.
///
/// # Errors
/// The system refused.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_with_mode(path, bytes, 0o600)
}

/// Writes a file that is not there yet, readable by its owner alone, and syncs it.
///
/// # Errors
/// There is one of that name, or the system refused; nothing of it is left then.
pub fn create_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io("cannot create", path))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|error| {
        let _ = fs::remove_file(path);
        io("cannot write", path)(error)
    })
}

fn write_with_mode(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let beside = path.with_file_name(name);
    // A leftover of an earlier process with our id keeps its mode otherwise.
    let _ = fs::remove_file(&beside);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&beside);
        io("cannot write", path)(error)
    })
}

/// A file that is written beside the one it is to be, and removed unless it is [`keep`](Self::keep)ed.
#[derive(Debug)]
pub struct Beside {
    beside: PathBuf,
    path: PathBuf,
    is_kept: bool,
}

/// Begins a file that is to be written piece by piece, so that it is either the old one or the whole
/// new one.
///
/// # Errors
/// The system refused.
pub fn stream_whole(path: &Path) -> Result<(fs::File, Beside), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let beside = path.with_file_name(name);
    let _ = fs::remove_file(&beside);
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&beside)
        .map_err(io("cannot create", &beside))?;
    let path = path.to_owned();
    let is_kept = false;
    Ok((
        file,
        Beside {
            beside,
            path,
            is_kept,
        },
    ))
}

impl Beside {
    /// Puts it in its place, on disk.
    ///
    /// # Errors
    /// The system refused.
    pub fn keep(mut self, file: &fs::File) -> Result<(), FileError> {
        let kept = file
            .sync_all()
            .and_then(|()| fs::rename(&self.beside, &self.path));
        self.is_kept = kept.is_ok();
        kept.map_err(io("cannot write", &self.path))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = fs::remove_file(&self.beside);
        }
    }
}

/// Makes a folder and those above it.
///
/// # Errors
/// The system refused.
pub fn make_folder(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(io("cannot make folder", path))
}

/// Makes a folder that only its owner may enter, and those above it.
///
/// # Errors
/// The system refused.
pub fn make_private_folder(path: &Path) -> Result<(), FileError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).map_err(io("cannot make folder", path))
}

/// Names in a folder, sorted.
///
/// # Errors
/// The folder cannot be listed.
pub fn names_in(folder: &Path) -> Result<Vec<String>, FileError> {
    let entries = fs::read_dir(folder).map_err(io("cannot list", folder))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io("cannot list", folder))?;
        names.extend(entry.file_name().to_str().map(str::to_owned));
    }
    names.sort();
    Ok(names)
}
