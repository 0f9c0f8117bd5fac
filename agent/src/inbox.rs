//! Bundles brought to the device by hand: `dunlin-agent install` puts one here, the supervisor, now
//! or whenever it runs, picks it up.
//!
//! ```text
//! inbox/ID.tar        the archive, whole and durable before it is asked for
//! inbox/request.json  which archive is wanted, replaced in one step; it alone counts
//! inbox/lock          held while one of the two sides changes something
//! ```
//! Whatever else lies here is the rest of a call that was cut, and goes with the next one. Nothing in
//! the archive is believed because it lies here: it is verified like a download.

use crate::files::{self, Disk, FileError, FileLock, OpenFile};
use dunlin_protocol::command::DesiredBundle;
use serde::{Deserialize, Serialize};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

const SCHEMA: &str = "dunlin.install/1";
const REQUEST: &str = "request.json";
const REQUEST_MAX_BYTES: u64 = 64 * 1024;
/// Hexadecimal digits of a request's id.
const ID_DIGITS: usize = 32;

/// Why the inbox cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    /// A file cannot be read or written.
    #[error("inbox: {0}")]
    File(#[from] FileError),
    /// The request is none.
    #[error("inbox {}: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The archive could not be written.
    #[error("inbox: {0}")]
    Write(String),
}

/// What is to be installed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// 32 hexadecimal digits, different for every call.
    pub id: String,
    /// The bundle, whose files are in `inbox/ID.tar`.
    pub want: DesiredBundle,
}

#[derive(Serialize, Deserialize)]
struct Document {
    schema: String,
    #[serde(flatten)]
    request: Request,
}

/// The inbox of a state folder.
#[derive(Debug, Clone)]
pub struct Inbox {
    disk: Disk,
    dir: PathBuf,
}

impl Inbox {
    /// The inbox of a state folder; nothing is made yet.
    #[must_use]
    pub fn new(disk: &Disk, state_dir: &Path) -> Self {
        Self {
            disk: disk.clone(),
            dir: state_dir.join("inbox"),
        }
    }

    /// Where the archive of a request is.
    #[must_use]
    pub fn archive(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.tar"))
    }

    /// What waits to be installed, if anything does.
    ///
    /// # Errors
    /// The request cannot be read, or is none.
    pub fn request(&self) -> Result<Option<Request>, InboxError> {
        let path = self.dir.join(REQUEST);
        let Some(bytes) = self.disk.read_if_there(&path, REQUEST_MAX_BYTES)? else {
            return Ok(None);
        };
        let damaged = |problem: String| InboxError::Damaged {
            path: path.clone(),
            problem,
        };
        let read: Document = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if read.schema != SCHEMA {
            let got = read.schema;
            return Err(damaged(format!("expected schema {SCHEMA:?}, got {got:?}")));
        }
        // It becomes part of a path.
        let id = &read.request.id;
        if id.len() != ID_DIGITS || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(damaged(format!("expected an id, got {id:?}")));
        }
        Ok(Some(read.request))
    }

    /// Puts a bundle in, in the place of one that still waits; `write` writes its archive. When
    /// this returns it survives a power cut.
    ///
    /// # Errors
    /// [`InboxError`]; what waited before then still does.
    pub fn put<E: std::fmt::Display>(
        &self,
        want: &DesiredBundle,
        write: impl FnOnce(&mut BufWriter<Box<dyn OpenFile>>) -> Result<(), E>,
    ) -> Result<Request, InboxError> {
        self.disk.create_private_dir(&self.dir)?;
        let _lock = FileLock::take(&self.lock())?;
        let request = Request {
            id: new_id()?,
            want: want.clone(),
        };
        self.clean(self.request().ok().flatten().as_ref())?;
        let (path, part) = (
            self.archive(&request.id),
            self.dir.join(format!("{}.part", request.id)),
        );
        if let Err(error) = self.write_archive(&part, write) {
            let _ = self.disk.remove_if_there(&part);
            return Err(error);
        }
        self.disk.rename(&part, &path)?;
        self.disk.sync_dir(&self.dir)?;
        let document = Document {
            schema: SCHEMA.to_owned(),
            request,
        };
        let json = serde_json::to_vec(&document).map_err(|e| InboxError::Write(e.to_string()))?;
        self.disk
            .write_atomic(&self.dir.join(REQUEST), &json, 0o600)?;
        self.clean(Some(&document.request))?;
        Ok(document.request)
    }

    /// Takes a request out that needs its archive no longer. A newer one stays, and so does this
    /// one while somebody puts one in: to be called again.
    ///
    /// # Errors
    /// [`InboxError`]
    pub fn remove(&self, id: &str) -> Result<(), InboxError> {
        let Some(_lock) = FileLock::try_take(&self.lock())? else {
            return Ok(());
        };
        let waiting = self.request()?;
        if waiting.as_ref().is_some_and(|request| request.id == id) {
            self.disk.remove_if_there(&self.dir.join(REQUEST))?;
            self.clean(None)?;
        }
        Ok(())
    }

    /// Takes out whatever is there, readable or not, and says whether it did: not while somebody puts
    /// one in, which may take as long as a large archive. To be called again then.
    ///
    /// # Errors
    /// [`InboxError`]
    pub fn empty(&self) -> Result<bool, InboxError> {
        if self.disk.look(&self.dir)?.is_none() {
            return Ok(true);
        }
        let Some(_lock) = FileLock::try_take(&self.lock())? else {
            return Ok(false);
        };
        self.disk.remove_if_there(&self.dir.join(REQUEST))?;
        self.clean(None)?;
        Ok(true)
    }

    /// Removes every file that `kept` does not need.
    fn clean(&self, kept: Option<&Request>) -> Result<(), InboxError> {
        let archive = kept.map(|request| self.archive(&request.id));
        for (name, _) in self.disk.list(&self.dir)? {
            let path = self.dir.join(name);
            let is_rest = path.extension().is_some_and(|e| e == "tar" || e == "part");
            if is_rest && archive.as_ref() != Some(&path) {
                self.disk.remove_if_there(&path)?;
            }
        }
        Ok(self.disk.sync_dir(&self.dir)?)
    }

    fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    fn write_archive<E: std::fmt::Display>(
        &self,
        part: &Path,
        write: impl FnOnce(&mut BufWriter<Box<dyn OpenFile>>) -> Result<(), E>,
    ) -> Result<(), InboxError> {
        let file = self.disk.create_new(part, 0o600)?;
        let mut out = BufWriter::with_capacity(256 * 1024, file);
        write(&mut out).map_err(|e| InboxError::Write(e.to_string()))?;
        let synced = out.flush().and_then(|()| out.get_mut().sync());
        Ok(synced.map_err(files::at("write", part))?)
    }
}

fn new_id() -> Result<String, InboxError> {
    let mut id = [0; ID_DIGITS / 2];
    getrandom::fill(&mut id).map_err(|e| InboxError::Write(e.to_string()))?;
    Ok(hex::encode(id))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dunlin_protocol::command::Probation;
    use dunlin_protocol::id::Digest;

    fn want(version: u64) -> DesiredBundle {
        DesiredBundle {
            family: "digits".parse().unwrap(),
            version,
            target: format!("digits/{version}/manifest.json"),
            digest: Digest::of(&version.to_be_bytes()),
            rollout: None,
            probation: Probation::default(),
            asked: None,
        }
    }

    fn put(inbox: &Inbox, version: u64, content: &[u8]) -> Request {
        let write = |out: &mut BufWriter<Box<dyn OpenFile>>| out.write_all(content);
        inbox.put(&want(version), write).unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir.join("inbox")).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|n| n != "lock").collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_request_counts_and_goes_when_it_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let inbox = Inbox::new(&Disk::native(), dir.path());
        assert_eq!(inbox.request().unwrap(), None);
        let first = put(&inbox, 1, b"one");
        let second = put(&inbox, 2, b"two");
        assert_eq!(inbox.request().unwrap(), Some(second.clone()));
        assert_eq!(std::fs::read(inbox.archive(&second.id)).unwrap(), b"two");
        assert_eq!(
            names(dir.path()),
            [format!("{}.tar", second.id), REQUEST.to_owned()]
        );
        // The supervisor was still at the first one.
        inbox.remove(&first.id).unwrap();
        assert_eq!(inbox.request().unwrap(), Some(second.clone()));
        inbox.remove(&second.id).unwrap();
        assert_eq!(inbox.request().unwrap(), None);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn what_cannot_be_written_leaves_what_waits_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let inbox = Inbox::new(&Disk::native(), dir.path());
        let waits = put(&inbox, 1, b"one");
        // A call before was cut.
        std::fs::write(dir.path().join("inbox/dead.part"), b"half").unwrap();
        let failed = inbox.put(&want(2), |_| Err("the stick was pulled out"));
        let problem = failed.unwrap_err().to_string();
        assert!(problem.contains("the stick was pulled out"), "{problem}");
        assert_eq!(inbox.request().unwrap(), Some(waits));
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[test]
    fn a_request_that_is_none_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let inbox = Inbox::new(&Disk::native(), dir.path());
        let mut document = serde_json::json!({"schema": SCHEMA, "id": "../../x", "want": want(1)});
        Disk::native()
            .create_private_dir(&dir.path().join("inbox"))
            .unwrap();
        let path = dir.path().join("inbox").join(REQUEST);
        for bad in ["{".to_owned(), document.to_string()] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(inbox.request(), Err(InboxError::Damaged { .. })));
        }
        document["id"] = "0".repeat(ID_DIGITS).into();
        std::fs::write(&path, document.to_string()).unwrap();
        assert!(inbox.request().unwrap().is_some());
        let other_side = FileLock::take(&inbox.lock()).unwrap();
        assert!(!inbox.empty().unwrap(), "nobody waits for a copy");
        assert!(inbox.request().unwrap().is_some());
        drop(other_side);
        assert!(inbox.empty().unwrap());
        assert_eq!(inbox.request().unwrap(), None);
    }
}
