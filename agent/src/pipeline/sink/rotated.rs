//! A file of results, a line each, that never grows beyond its bound: full, it becomes `.1`, what
//! was `.1` becomes `.2`, and the oldest goes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes of one file.
const FILE_MAX_BYTES: u64 = 16 << 20;
/// Full files that are kept.
const KEPT: u32 = 3;

/// Why a result is not in the file.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {source}", path.display())]
pub(super) struct RotatedError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub(in crate::pipeline) struct Rotated {
    path: PathBuf,
    max_bytes: u64,
    file: Option<(File, u64)>,
    synced: Instant,
    dirty: bool,
}

impl Rotated {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            max_bytes: FILE_MAX_BYTES,
            file: None,
            synced: Instant::now(),
            dirty: false,
        }
    }

    /// Appends a line, whole or not at all.
    pub(super) fn append(&mut self, line: &[u8]) -> Result<(), RotatedError> {
        let path = self.path.clone();
        let at = |action| {
            let path = path.clone();
            move |source| RotatedError {
                action,
                path,
                source,
            }
        };
        let line = [line, b"\n"].concat();
        let (file, length) = match self.file.take() {
            Some(open) => open,
            None => open(&self.path).map_err(at("open"))?,
        };
        let bytes = line.len() as u64;
        let (mut file, length) = if length > 0 && length + bytes > self.max_bytes {
            file.sync_data().map_err(at("sync"))?;
            drop(file);
            self.rotate().map_err(at("rotate"))?;
            open(&self.path).map_err(at("open"))?
        } else {
            (file, length)
        };
        if let Err(e) = file.write_all(&line) {
            // Half a line is no result; opening the file cuts it off too.
            let _ = file.set_len(length);
            return Err(at("write")(e));
        }
        self.file = Some((file, length + bytes));
        self.dirty = true;
        if self.synced.elapsed() >= super::SYNC_EVERY {
            self.sync()?;
        }
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<(), RotatedError> {
        if let (true, Some((file, _))) = (self.dirty, &self.file) {
            file.sync_data().map_err(|source| RotatedError {
                action: "sync",
                path: self.path.clone(),
                source,
            })?;
        }
        self.dirty = false;
        self.synced = Instant::now();
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        for n in (1..KEPT).rev() {
            match std::fs::rename(numbered(&self.path, n), numbered(&self.path, n + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        std::fs::rename(&self.path, numbered(&self.path, 1))
    }
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

/// Opens the file at its end; a line that a kill cut off is not a result, and goes.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)?;
    let mut end = file.metadata()?.len();
    let mut piece = [0_u8; 4096];
    while end > 0 {
        let from = end.saturating_sub(piece.len() as u64);
        let piece = &mut piece[..usize::try_from(end - from).unwrap_or(0)];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(piece)?;
        match piece.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => {
                end = from + at as u64 + 1;
                break;
            }
            None => end = from,
        }
    }
    if end < file.metadata()?.len() {
        file.set_len(end)?;
    }
    Ok((file, end))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_cuts_off_half_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.jsonl");
        std::fs::write(&path, "whole\nhal").unwrap();
        let mut file = Rotated::new(path.clone());
        file.max_bytes = 20;
        file.append(b"first").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole\nfirst\n");
        for n in 0..20 {
            file.append(format!("line-{n:03}").as_bytes()).unwrap();
        }
        file.sync().unwrap();
        let read = |n| std::fs::read_to_string(numbered(&path, n));
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "line-018\nline-019\n"
        );
        assert_eq!(read(1).unwrap(), "line-016\nline-017\n");
        assert_eq!(read(3).unwrap(), "line-012\nline-013\n");
        assert!(read(4).is_err());
    }

    #[test]
    fn an_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = Rotated::new(dir.path().join("none/x.jsonl"));
        let told = file.append(b"x").unwrap_err().to_string();
        assert!(
            told.starts_with("open ") && told.contains("none/x.jsonl"),
            "{told}"
        );
    }
}
