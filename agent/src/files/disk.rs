//! The file system under everything an update reads and writes: one small trait, so that a test can
//! cut the power at any operation of it, and [`Disk`], the handle that the agent passes around.
//!
//! Durability is what POSIX promises, no more: bytes are there after a power cut once
//! [`OpenFile::sync`] returned, names once [`FileSystem::sync_dir`] did.

use super::{FileError, at};
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file. Reads and writes begin where the file was opened for them.
pub trait OpenFile: Read + Write + Seek + Send {
    /// Cuts or extends the file to `length_bytes`.
    ///
    /// # Errors
    /// The operating system's.
    fn set_len(&mut self, length_bytes: u64) -> io::Result<()>;

    /// Makes content and length durable.
    ///
    /// # Errors
    /// The operating system's; what was written since the last sync may be lost then.
    fn sync(&mut self) -> io::Result<()>;
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link, or something else.
    Other,
}

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: Kind,
    /// Length of a file, in bytes.
    pub length_bytes: u64,
    /// Permission bits.
    pub mode: u32,
}

/// The operations an update is made of. Every method that changes something is one point at which
/// the power may fail.
///
/// Errors are the operating system's.
#[allow(clippy::missing_errors_doc)]
pub trait FileSystem: fmt::Debug + Send + Sync {
    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>>;
    /// Creates a file that must not be there yet, for writing, with exactly this mode.
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn OpenFile>>;
    /// Opens a file to write at its end; makes it if it is not there.
    fn append(&self, path: &Path, mode: u32) -> io::Result<Box<dyn OpenFile>>;
    /// Gives a file or link another name, in place of what has that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name.
    fn hard_link(&self, file: &Path, link: &Path) -> io::Result<()>;
    /// Makes a symbolic link.
    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()>;
    /// Where a symbolic link points.
    fn read_link(&self, path: &Path) -> io::Result<PathBuf>;
    /// Removes the name of a file or link.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Makes a folder in one that is there.
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Sets the permissions of a file or folder.
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// The names in a folder, in no order, and what they are; links are not followed.
    fn list(&self, path: &Path) -> io::Result<Vec<(std::ffi::OsString, Metadata)>>;
    /// What a name is; links are followed.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;
    /// Bytes that an unprivileged process may still write to the disk a path is on.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
struct Native;

impl OpenFile for File {
    fn set_len(&mut self, length_bytes: u64) -> io::Result<()> {
        File::set_len(self, length_bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl From<std::fs::Metadata> for Metadata {
    fn from(found: std::fs::Metadata) -> Self {
        let kind = match found.file_type() {
            t if t.is_file() => Kind::File,
            t if t.is_dir() => Kind::Folder,
            _ => Kind::Other,
        };
        Self {
            kind,
            length_bytes: found.len(),
            mode: found.permissions().mode() & 0o7777,
        }
    }
}

impl FileSystem for Native {
    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn OpenFile>> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(mode).open(path)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        Ok(Box::new(file))
    }

    fn append(&self, path: &Path, mode: u32) -> io::Result<Box<dyn OpenFile>> {
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).mode(mode).open(path)?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn hard_link(&self, file: &Path, link: &Path) -> io::Result<()> {
        std::fs::hard_link(file, link)
    }

    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(target, link)
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        std::fs::read_link(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        DirBuilder::new().mode(mode).create(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        std::fs::set_permissions(path, Permissions::from_mode(mode))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(std::ffi::OsString, Metadata)>> {
        std::fs::read_dir(path)?
            .map(|entry| {
                let entry = entry?;
                Ok((entry.file_name(), entry.metadata()?.into()))
            })
            .collect()
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        Ok(std::fs::metadata(path)?.into())
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(path)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

/// The disk that an update works on; cloned freely.
#[derive(Debug, Clone)]
pub struct Disk(Arc<dyn FileSystem>);

impl Default for Disk {
    fn default() -> Self {
        Self::native()
    }
}

/// Every method names what was tried, and on which path, in its [`FileError::Io`].
#[allow(clippy::missing_errors_doc)]
impl Disk {
    /// The operating system's file system.
    #[must_use]
    pub fn native() -> Self {
        Self::new(Native)
    }

    /// Another one.
    #[must_use]
    pub fn new(system: impl FileSystem + 'static) -> Self {
        Self(Arc::new(system))
    }

    /// Opens a file for reading.
    pub fn open(&self, path: &Path) -> Result<Box<dyn OpenFile>, FileError> {
        self.0.open(path).map_err(at("open", path))
    }

    /// Creates a file that is not there yet.
    pub fn create_new(&self, path: &Path, mode: u32) -> Result<Box<dyn OpenFile>, FileError> {
        self.0.create_new(path, mode).map_err(at("create", path))
    }

    /// Opens a file, new or not, to write on after its first `keep_bytes` bytes; the rest goes.
    pub fn append_after(
        &self,
        path: &Path,
        keep_bytes: u64,
        mode: u32,
    ) -> Result<Box<dyn OpenFile>, FileError> {
        let mut file = self.0.append(path, mode).map_err(at("open", path))?;
        file.set_len(keep_bytes).map_err(at("shorten", path))?;
        Ok(file)
    }

    /// Gives a file or link another name, in place of what has that name.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        self.0.rename(from, to).map_err(at("rename", to))
    }

    /// Gives a file a second name.
    pub fn hard_link(&self, file: &Path, link: &Path) -> Result<(), FileError> {
        self.0.hard_link(file, link).map_err(at("link", link))
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, target: &Path, link: &Path) -> Result<(), FileError> {
        self.0.symlink(target, link).map_err(at("link", link))
    }

    /// Where a symbolic link points.
    pub fn read_link(&self, path: &Path) -> Result<PathBuf, FileError> {
        self.0.read_link(path).map_err(at("read link", path))
    }

    /// What a name is, `None` if there is no such name.
    pub fn look(&self, path: &Path) -> Result<Option<Metadata>, FileError> {
        match self.0.metadata(path) {
            Ok(found) => Ok(Some(found)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(at("look at", path)(e)),
        }
    }

    /// The names in a folder and what they are; none if there is no such folder.
    pub fn list(&self, path: &Path) -> Result<Vec<(std::ffi::OsString, Metadata)>, FileError> {
        match self.0.list(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(at("list", path)),
        }
    }

    /// Bytes that may still be written to the disk a path is on.
    pub fn free_bytes(&self, path: &Path) -> Result<u64, FileError> {
        self.0.free_bytes(path).map_err(at("look at", path))
    }

    /// Removes a file or link; that it is not there is fine.
    pub fn remove_if_there(&self, path: &Path) -> Result<(), FileError> {
        match self.0.remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(e)),
            _ => Ok(()),
        }
    }

    /// Whether a name is a symbolic link.
    fn is_link(&self, path: &Path) -> bool {
        // The trait looks through links everywhere else; this fails on whatever is none.
        self.0.read_link(path).is_ok()
    }

    /// Removes a folder and all files in it; that it is not there is fine. Of a link, the link goes.
    pub fn remove_tree(&self, path: &Path) -> Result<(), FileError> {
        if self.is_link(path) {
            return self.remove_if_there(path);
        }
        for (name, found) in self.list(path)? {
            let inner = path.join(name);
            match found.kind {
                Kind::Folder => self.remove_tree(&inner)?,
                Kind::File | Kind::Other => self.remove_if_there(&inner)?,
            }
        }
        match self.0.remove_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("remove folder", path)(e)),
            _ => Ok(()),
        }
    }

    /// Makes the names in a folder durable.
    pub fn sync_dir(&self, path: &Path) -> Result<(), FileError> {
        let path = or_here(path);
        self.0.sync_dir(path).map_err(at("sync folder", path))
    }

    /// Makes a folder (and those above it) that only its owner may enter; narrows one that is wider,
    /// except through a link: what that leads to is perhaps not ours, and refused if others may enter.
    pub fn create_private_dir(&self, path: &Path) -> Result<(), FileError> {
        let mode = match self.look(path)? {
            Some(found) if found.kind == Kind::Folder => found.mode,
            _ => self.make_dirs(path)?,
        };
        if mode & 0o077 != 0 {
            if self.is_link(path) {
                let why = "a link to a folder that others may enter (make it mode 0700 there)";
                return Err(at("use as private folder", path)(io::Error::other(why)));
            }
            let narrow = self.0.set_mode(path, 0o700);
            narrow.map_err(at("narrow permissions of", path))?;
        }
        Ok(())
    }

    fn make_dirs(&self, path: &Path) -> Result<u32, FileError> {
        const PRIVATE: u32 = 0o700;
        let parent = or_here(path.parent().unwrap_or(Path::new("")));
        if self.look(parent)?.is_none() {
            self.make_dirs(parent)?;
        }
        match self.0.create_dir(path, PRIVATE) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(at("create folder", path)(e));
            }
            _ => {}
        }
        self.sync_dir(parent)?;
        Ok(self.look(path)?.map_or(PRIVATE, |found| found.mode))
    }

    /// Replaces `path` by `bytes` with permissions `mode`: after a power cut it holds the old
    /// content or the new, never a part. Not for two writers of one path at a time.
    ///
    /// # Errors
    /// [`FileError::Io`]; the old content is then still there.
    pub fn write_atomic(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
        let new = half_written(path);
        // A name of its own for every attempt would leave litter behind each kill.
        self.remove_if_there(&new)?;
        let mut file = self.create_new(&new, mode)?;
        let written = (|| {
            file.write_all(bytes)?;
            file.sync()?;
            self.0.rename(&new, path)
        })();
        if let Err(error) = written {
            let _ = self.0.remove_file(&new);
            return Err(at("write", path)(error));
        }
        self.sync_dir(path.parent().unwrap_or(Path::new("")))
    }

    /// As [`Self::write_atomic`], for a symbolic link.
    pub fn link_atomic(&self, target: &Path, link: &Path) -> Result<(), FileError> {
        let new = half_written(link);
        self.remove_if_there(&new)?;
        self.symlink(target, &new)?;
        if let Err(error) = self.rename(&new, link) {
            let _ = self.0.remove_file(&new);
            return Err(error);
        }
        self.sync_dir(link.parent().unwrap_or(Path::new("")))
    }

    /// Removes from a folder what atomic writes left there that were cut off half way. Not while
    /// somebody writes there.
    pub fn remove_half_written(&self, folder: &Path) -> Result<(), FileError> {
        for (name, found) in self.list(folder)? {
            let text = name.to_string_lossy();
            let is_half = text.starts_with('.') && text.ends_with(".new");
            if is_half && found.kind != Kind::Folder {
                self.remove_if_there(&folder.join(name))?;
            }
        }
        Ok(())
    }

    /// Reads a file of at most `max_bytes` bytes.
    ///
    /// # Errors
    /// [`FileError`]; a longer file is not read to its end.
    pub fn read_bounded(&self, path: &Path, max_bytes: u64) -> Result<Vec<u8>, FileError> {
        let file = self.open(path)?;
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

    /// As [`Self::read_bounded`], `None` if there is no such file.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn read_if_there(&self, path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
        match self.read_bounded(path, max_bytes) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Name of a file or link until it is whole.
fn half_written(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}
