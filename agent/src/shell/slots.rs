//! The two slots on disk and the link to the one that serves.

use crate::bundle::stage;
use crate::device::{Held, Slot};
use crate::files::{Disk, FileError};
use dunlin_protocol::id::Digest;
use dunlin_protocol::report::Installed;
use std::path::{Path, PathBuf};

/// Name of the link to the slot that serves.
const CURRENT: &str = "current";

/// `<state_dir>/slots`.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    disk: Disk,
    folder: PathBuf,
}

impl Slots {
    pub(super) fn new(disk: &Disk, state_dir: &Path) -> Self {
        Self {
            disk: disk.clone(),
            folder: state_dir.join("slots"),
        }
    }

    /// Folder of a slot.
    pub(super) fn folder(&self, slot: Slot) -> PathBuf {
        self.folder.join(slot.name())
    }

    /// Checks every hash of a staged bundle. It may take minutes.
    pub(super) async fn whole(&self, slot: Slot, digest: &Digest) -> Result<(), String> {
        let (disk, folder) = (self.disk.clone(), self.folder(slot));
        let path = folder.clone();
        let read = tokio::task::spawn_blocking(move || stage::check(&disk, &folder));
        let problem = match read.await {
            Ok(Ok(Some(staged))) if staged.digest == *digest => return Ok(()),
            Ok(Ok(Some(staged))) => format!("expected bundle {digest}, got {}", staged.digest),
            Ok(Ok(None)) => format!("expected bundle {digest}, nothing was ever completed there"),
            Ok(Err(e)) => e.to_string(),
            Err(e) => e.to_string(),
        };
        Err(format!("{}: {problem}", path.display()))
    }

    /// Points `slots/current` at a slot by one rename, durable before anything is served from it.
    pub(super) fn switch(&self, to: Option<Slot>) -> Result<(), FileError> {
        let disk = &self.disk;
        disk.create_private_dir(&self.folder)?;
        let link = self.folder.join(CURRENT);
        match to {
            Some(slot) => disk.link_atomic(Path::new(slot.name()), &link),
            None => {
                disk.remove_if_there(&link)?;
                disk.sync_dir(&self.folder)
            }
        }
    }

    /// What `slots/current` names, if it is whole.
    pub(super) fn served_last(&self) -> Option<Held> {
        let link = self.disk.read_link(&self.folder.join(CURRENT)).ok()?;
        let slot = slot_of(&link)?;
        match stage::check(&self.disk, &self.folder(slot)) {
            Ok(found) => found.map(|staged| Held {
                slot,
                bundle: Installed {
                    family: staged.family,
                    version: staged.version,
                    digest: staged.digest,
                },
            }),
            Err(error) => {
                tracing::warn!(slot = slot.name(), %error, "the slot that served last is not whole");
                None
            }
        }
    }
}

/// The slot a folder belongs to.
pub(super) fn slot_of(folder: &Path) -> Option<Slot> {
    let name = folder.file_name()?.to_str()?;
    [Slot::A, Slot::B].into_iter().find(|s| s.name() == name)
}
