//! A repository in an archive (`dunlin bundle export`) or in a folder of the same layout.

use bytes::Bytes;
use dunlin_protocol::archive::{ENTRIES_MAX, Index, length_max};
use dunlin_protocol::repository::RepositoryFile;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes read at a time.
const PIECE_BYTES: u64 = 256 * 1024;

/// Why a file did not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// The archive or the folder has no such file.
    #[error("{}: holds no {file}", path.display())]
    Absent {
        /// Archive or folder.
        path: PathBuf,
        /// The file.
        file: RepositoryFile,
    },
    /// The file is shorter than what is here of it already.
    #[error("{}: {file} has {total_bytes} bytes, asked for byte {offset} and on", path.display())]
    BeyondEnd {
        /// Archive or folder.
        path: PathBuf,
        /// The file.
        file: RepositoryFile,
        /// First byte asked for.
        offset: u64,
        /// Length of the file.
        total_bytes: u64,
    },
    /// The archive is none, or a file of the folder is no plain one.
    #[error("{}: {problem}", path.display())]
    Refused {
        /// Archive or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The system refused.
    #[error("{}: cannot be read: {problem}", path.display())]
    Read {
        /// Archive, or file in the folder.
        path: PathBuf,
        /// The system's words.
        problem: String,
    },
}

/// An archive or a folder; clones share it.
#[derive(Debug, Clone)]
pub struct Local {
    path: PathBuf,
    inner: Arc<Inner>,
}

#[derive(Debug)]
enum Inner {
    Archive { file: Arc<File>, index: Index },
    Folder,
}

impl Local {
    /// Opens an archive and reads its index, or a folder.
    ///
    /// # Errors
    /// Not there, or no archive ([`dunlin_protocol::archive`]).
    pub fn open_path(path: &Path) -> Result<Self, LocalError> {
        let read = |e: io::Error| LocalError::Read {
            path: path.to_owned(),
            problem: e.to_string(),
        };
        let mut file = File::open(path).map_err(read)?;
        let kind = file.metadata().map_err(read)?;
        let inner = if kind.is_dir() {
            Inner::Folder
        } else if kind.is_file() {
            let index = Index::read(&mut file).map_err(|e| LocalError::Refused {
                path: path.to_owned(),
                problem: e.to_string(),
            })?;
            Inner::Archive {
                file: Arc::new(file),
                index,
            }
        } else {
            return Err(LocalError::Refused {
                path: path.to_owned(),
                problem: "neither a file nor a folder".to_owned(),
            });
        };
        Ok(Self {
            path: path.to_owned(),
            inner: Arc::new(inner),
        })
    }

    /// Every file of a repository that lies in it, in order. A folder may hold others too: they
    /// are passed over.
    ///
    /// # Errors
    /// The folder cannot be listed, or holds more than an archive may.
    pub fn files(&self) -> Result<Vec<RepositoryFile>, LocalError> {
        match &*self.inner {
            Inner::Archive { index, .. } => Ok(index.files().map(|(f, _)| f.clone()).collect()),
            Inner::Folder => {
                let mut found = Vec::new();
                for top in ["metadata", "targets", "blobs", "patches"] {
                    list(&self.path, Path::new(top), 0, &mut found)?;
                }
                found.sort();
                Ok(found)
            }
        }
    }

    /// Begins reading a file at byte `offset`.
    ///
    /// # Errors
    /// [`LocalError`]
    pub fn open(&self, file: &RepositoryFile, offset: u64) -> Result<LocalDownload, LocalError> {
        let (handle, range) = match &*self.inner {
            Inner::Archive {
                file: handle,
                index,
            } => {
                let range = index.get(file).ok_or_else(|| self.absent(file))?;
                (Arc::clone(handle), range)
            }
            Inner::Folder => {
                let (handle, length) = self.open_in_folder(file)?;
                (Arc::new(handle), 0..length)
            }
        };
        let total_bytes = range.end - range.start;
        if offset > total_bytes {
            return Err(LocalError::BeyondEnd {
                path: self.path.clone(),
                file: file.clone(),
                offset,
                total_bytes,
            });
        }
        Ok(LocalDownload {
            path: self.path.clone(),
            handle,
            begin: range.start,
            at: range.start + offset,
            end: range.end,
        })
    }

    fn absent(&self, file: &RepositoryFile) -> LocalError {
        LocalError::Absent {
            path: self.path.clone(),
            file: file.clone(),
        }
    }

    /// A link could lead anywhere, and a pipe would never end: plain files only.
    fn open_in_folder(&self, file: &RepositoryFile) -> Result<(File, u64), LocalError> {
        let path = self.path.join(file.to_string());
        let read = |e: io::Error| LocalError::Read {
            path: path.clone(),
            problem: e.to_string(),
        };
        let refused = |problem: String| LocalError::Refused {
            path: path.clone(),
            problem,
        };
        let found = match std::fs::symlink_metadata(&path) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(self.absent(file));
            }
            other => other.map_err(read)?,
        };
        if !found.is_file() {
            return Err(refused("not a plain file".to_owned()));
        }
        let max = length_max(file);
        if found.len() > max {
            let got = found.len();
            return Err(refused(format!("{got} bytes, at most {max} are accepted")));
        }
        Ok((File::open(&path).map_err(read)?, found.len()))
    }
}

/// A repository's files below a folder, as deep as their paths may be.
fn list(
    root: &Path,
    below: &Path,
    depth: usize,
    found: &mut Vec<RepositoryFile>,
) -> Result<(), LocalError> {
    const DEPTH_MAX: usize = 8;
    let folder = root.join(below);
    let read = |e: io::Error| LocalError::Read {
        path: folder.clone(),
        problem: e.to_string(),
    };
    let entries = match std::fs::read_dir(&folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(read)?,
    };
    for entry in entries {
        let entry = entry.map_err(read)?;
        let path = below.join(entry.file_name());
        let kind = entry.file_type().map_err(read)?;
        if kind.is_dir() && depth < DEPTH_MAX {
            list(root, &path, depth + 1, found)?;
        } else if kind.is_file()
            && let Some(Ok(file)) = path.to_str().map(str::parse)
        {
            if found.len() >= ENTRIES_MAX {
                return Err(LocalError::Refused {
                    path: root.to_owned(),
                    problem: format!("more than {ENTRIES_MAX} files"),
                });
            }
            found.push(file);
        }
    }
    Ok(())
}

/// A file that is being read.
#[derive(Debug)]
pub struct LocalDownload {
    path: PathBuf,
    handle: Arc<File>,
    begin: u64,
    at: u64,
    end: u64,
}

impl LocalDownload {
    /// First byte that is read.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.at - self.begin
    }

    /// Length of the whole file.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.end - self.begin
    }

    /// The next piece; `None` at the end. A stick may be slow: another thread waits for it.
    ///
    /// # Errors
    /// The system refused, or the file was cut meanwhile.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, LocalError> {
        let left = self.end - self.at;
        if left == 0 {
            return Ok(None);
        }
        let length = usize::try_from(left.min(PIECE_BYTES)).unwrap_or(usize::MAX);
        let (handle, at) = (Arc::clone(&self.handle), self.at);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; length];
            handle.read_exact_at(&mut bytes, at).map(|()| bytes)
        });
        let bytes = read.await.unwrap_or_else(|e| Err(io::Error::other(e)));
        let bytes = bytes.map_err(|e| LocalError::Read {
            path: self.path.clone(),
            problem: e.to_string(),
        })?;
        self.at += bytes.len() as u64;
        Ok(Some(bytes.into()))
    }
}

/// Reads on the calling thread, for whoever copies.
impl io::Read for LocalDownload {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let read = self.handle.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
