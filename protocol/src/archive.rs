//! A repository's files in one, for a USB stick: a plain ustar archive (POSIX.1-1988), as any `tar`
//! reads it, and nothing else of what `tar` can do.
//!
//! Only regular files whose names are those of a [`RepositoryFile`] are taken (folders are passed
//! over). Links, devices, extended and long-name headers, sparse files, sizes beyond eight
//! gigabytes, doubled and foreign names are refused, and so is an archive that ends early. Reading
//! the index looks at headers alone; what the entries hold is verified when it is used.

use crate::bundle::{BLOB_MAX_BYTES, MANIFEST_MAX_BYTES};
use crate::id::Digest;
use crate::repository::{PathError, RepositoryFile};
use crate::trust::TARGETS_MAX_BYTES;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;

/// Most entries of an archive.
pub const ENTRIES_MAX: usize = 4096;
const RECORD: usize = 512;
const RECORD_BYTES: u64 = RECORD as u64;
/// Most bytes of the two parts a name is kept in.
const NAME: usize = 100;
const PREFIX: usize = 155;
/// Bytes copied at a time.
const COPY_BYTES: usize = 64 * 1024;

/// Why an archive is refused, or cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read or written.
    #[error("archive: {0}")]
    Io(#[from] std::io::Error),
    /// It ends in the middle of something.
    #[error(
        "archive: ends at byte {length}, but {what} goes on to byte {needed}: was it copied whole?"
    )]
    Truncated {
        /// What is cut.
        what: String,
        /// Where it should end.
        needed: u64,
        /// Length of the archive in bytes.
        length: u64,
    },
    /// Not a header of a plain ustar archive.
    #[error("archive: header at byte {at}: {field}: expected {expected}, got {got}")]
    Header {
        /// Where the header begins.
        at: u64,
        /// Its field.
        field: &'static str,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        got: String,
    },
    /// A name that no file of a repository has.
    #[error("archive: entry at byte {at}: {source}")]
    Name {
        /// Where its header begins.
        at: u64,
        /// What is wrong with it.
        source: PathError,
    },
    /// One name twice: which of the two counts would be anybody's guess.
    #[error("archive: {0} is there twice")]
    Twice(RepositoryFile),
    /// Longer than a file of its kind may be.
    #[error("archive: {file} has {got} bytes, at most {max} are accepted")]
    TooLarge {
        /// The file.
        file: RepositoryFile,
        /// Limit in bytes.
        max: u64,
        /// Length in the header.
        got: u64,
    },
    /// More entries than a bundle can have.
    #[error("archive: more than {ENTRIES_MAX} entries")]
    TooMany,
    /// A blob that is not what its name says.
    #[error("archive: {file}: its bytes have SHA-256 {got}")]
    Hash {
        /// The file.
        file: RepositoryFile,
        /// Of what was to be written.
        got: Digest,
    },
    /// Other bytes than were announced to the writer.
    #[error("archive: {file}: {expected} bytes were announced, {got} came")]
    Length {
        /// The file.
        file: RepositoryFile,
        /// Announced.
        expected: u64,
        /// Written.
        got: u64,
    },
}

/// Where an archive's files are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    files: BTreeMap<RepositoryFile, Range<u64>>,
}

impl Index {
    /// Reads every header of an archive, and none of its content.
    ///
    /// # Errors
    /// [`ArchiveError`]: anything but a whole, plain archive of repository files.
    pub fn read(from: &mut (impl Read + Seek)) -> Result<Self, ArchiveError> {
        let length = from.seek(SeekFrom::End(0))?;
        let mut index = Self::default();
        let (mut at, mut entries) = (0, 0);
        loop {
            let needed = at + RECORD_BYTES;
            if needed > length {
                let what = "a header, or the mark of its end,".to_owned();
                return Err(ArchiveError::Truncated {
                    what,
                    needed,
                    length,
                });
            }
            let mut record = [0; RECORD];
            from.seek(SeekFrom::Start(at))?;
            from.read_exact(&mut record)?;
            if record == [0; RECORD] {
                return Ok(index);
            }
            entries += 1;
            if entries > ENTRIES_MAX {
                return Err(ArchiveError::TooMany);
            }
            let header = Header::parse(&record, at)?;
            let begin = needed;
            // A length field holds less than 2^33: no overflow.
            let end = begin + header.length;
            at = begin + header.length.div_ceil(RECORD_BYTES) * RECORD_BYTES;
            if end > length {
                return Err(ArchiveError::Truncated {
                    what: header.name,
                    needed: end,
                    length,
                });
            }
            index.add(&header, begin..end)?;
        }
    }

    fn add(&mut self, header: &Header, range: Range<u64>) -> Result<(), ArchiveError> {
        if header.is_folder {
            return Ok(());
        }
        let at = range.start - RECORD_BYTES;
        let name = header.name.parse();
        let file = name.map_err(|source| ArchiveError::Name { at, source })?;
        let (max, got) = (length_max(&file), header.length);
        if got > max {
            return Err(ArchiveError::TooLarge { file, max, got });
        }
        if self.files.contains_key(&file) {
            return Err(ArchiveError::Twice(file));
        }
        self.files.insert(file, range);
        Ok(())
    }

    /// Where a file's bytes are in the archive.
    #[must_use]
    pub fn get(&self, file: &RepositoryFile) -> Option<Range<u64>> {
        self.files.get(file).cloned()
    }

    /// Every file, in order, with its length in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&RepositoryFile, u64)> {
        self.files.iter().map(|(f, r)| (f, r.end - r.start))
    }
}

/// Longest a file of its kind may be, in bytes.
#[must_use]
pub fn length_max(file: &RepositoryFile) -> u64 {
    match file {
        RepositoryFile::Metadata(_) => TARGETS_MAX_BYTES as u64,
        RepositoryFile::Target(_) => MANIFEST_MAX_BYTES as u64,
        RepositoryFile::Blob(_) | RepositoryFile::Patch { .. } => BLOB_MAX_BYTES,
    }
}

struct Header {
    name: String,
    length: u64,
    is_folder: bool,
}

impl Header {
    fn parse(record: &[u8; RECORD], at: u64) -> Result<Self, ArchiveError> {
        let bad = |field, expected, got: String| ArchiveError::Header {
            at,
            field,
            expected,
            got,
        };
        if record[257..265] != *b"ustar\x0000" {
            let got = format!("{:?}", String::from_utf8_lossy(&record[257..265]));
            let expected = "a plain ustar archive (dunlin bundle export, tar --format=ustar)";
            return Err(bad("magic", expected, got));
        }
        let sum: u64 = record
            .iter()
            .enumerate()
            .map(|(i, b)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    u64::from(*b)
                }
            })
            .sum();
        let said = octal(&record[148..156]);
        if said != Some(sum) {
            return Err(bad("checksum", "that of the header", format!("{said:?}")));
        }
        let is_folder = match record[156] {
            b'0' | 0 => false,
            b'5' => true,
            other => {
                let got = format!("type {:?}", char::from(other));
                return Err(bad("type", "a regular file or a folder", got));
            }
        };
        if record[157] != 0 {
            return Err(bad("link name", "none", "one".to_owned()));
        }
        let length = octal(&record[124..136]).ok_or_else(|| {
            let got = hex::encode(&record[124..136]);
            bad("size", "at most eleven octal digits", got)
        })?;
        if is_folder && length != 0 {
            return Err(bad("size", "0 for a folder", length.to_string()));
        }
        let (name, prefix) = (text(&record[..NAME]), text(&record[345..345 + PREFIX]));
        let name = match (name, prefix) {
            (Some(name), Some("")) => name.to_owned(),
            (Some(name), Some(prefix)) => format!("{prefix}/{name}"),
            _ => return Err(bad("name", "UTF-8 text", "other bytes".to_owned())),
        };
        Ok(Self {
            name,
            length,
            is_folder,
        })
    }

    fn write(name: &str, length: u64) -> Option<[u8; RECORD]> {
        let (prefix, name) = if name.len() <= NAME {
            ("", name)
        } else {
            let mut slashes = name.match_indices('/').map(|(at, _)| at);
            let at = slashes.find(|at| *at <= PREFIX && name.len() - at - 1 <= NAME)?;
            (&name[..at], &name[at + 1..])
        };
        if length >= 1 << 33 {
            return None;
        }
        let mut record = [0; RECORD];
        let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\x000000000\0");
        put(124, format!("{length:011o}\0").as_bytes());
        put(136, b"00000000000\0        0");
        put(257, b"ustar\x0000");
        put(345, prefix.as_bytes());
        let sum: u64 = record.iter().map(|b| u64::from(*b)).sum();
        record[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Some(record)
    }
}

/// Octal digits, ended by zeros or spaces; nothing else.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(field).ok()?;
    let digits = digits.trim_start_matches(' ').trim_end_matches(['\0', ' ']);
    let is_octal = !digits.is_empty() && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
    (is_octal && digits.len() <= 11)
        .then(|| u64::from_str_radix(digits, 8).ok())
        .flatten()
}

/// Text up to the first zero.
fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).ok()
}

/// Writes an archive; the same files in the same order give the same bytes.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    files: BTreeMap<RepositoryFile, u64>,
}

impl<W: Write> Writer<W> {
    /// An archive without entries.
    pub fn new(to: W) -> Self {
        Self {
            to,
            files: BTreeMap::new(),
        }
    }

    /// Adds a file whose bytes come from `content`, exactly `length` of them. A blob's must have the
    /// hash that is its name, so that damage is found where the archive is made.
    ///
    /// # Errors
    /// Written twice, too long, other bytes than announced, or the writer's own.
    pub fn add(
        &mut self,
        file: &RepositoryFile,
        length: u64,
        content: &mut impl Read,
    ) -> Result<(), ArchiveError> {
        let max = length_max(file);
        let record = Header::write(&file.to_string(), length).filter(|_| length <= max);
        let record = record.ok_or_else(|| ArchiveError::TooLarge {
            file: file.clone(),
            max,
            got: length,
        })?;
        if self.files.insert(file.clone(), length).is_some() {
            return Err(ArchiveError::Twice(file.clone()));
        }
        if self.files.len() > ENTRIES_MAX {
            return Err(ArchiveError::TooMany);
        }
        self.to.write_all(&record)?;
        let (mut hasher, mut got) = (Sha256::new(), 0);
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let read = content.read(&mut buffer)?;
            got += read as u64;
            if read == 0 || got > length {
                break;
            }
            hasher.update(&buffer[..read]);
            self.to.write_all(&buffer[..read])?;
        }
        let file = file.clone();
        if got != length {
            let expected = length;
            return Err(ArchiveError::Length {
                file,
                expected,
                got,
            });
        }
        let got = Digest(hasher.finalize().into());
        if matches!(file, RepositoryFile::Blob(digest) if digest != got) {
            return Err(ArchiveError::Hash { file, got });
        }
        let padding = length.next_multiple_of(RECORD_BYTES) - length;
        let zeros = [0; RECORD];
        // Less than a record: it fits.
        let padding = usize::try_from(padding).unwrap_or(0);
        Ok(self.to.write_all(&zeros[..padding])?)
    }

    /// Ends the archive and gives back what was written to.
    ///
    /// # Errors
    /// The writer's own.
    pub fn finish(mut self) -> Result<W, ArchiveError> {
        self.to.write_all(&[0; 2 * RECORD])?;
        self.to.flush()?;
        Ok(self.to)
    }
}

#[cfg(test)]
#[path = "archive/tests.rs"]
mod tests;
