//! The slots on disk, two for each family, and the link to the one that serves.
//!
//! ```text
//! models/FAMILY/a, models/FAMILY/b   one bundle each
//! models/FAMILY/current              a link to the one that serves
//! ```

use crate::bundle::stage;
use crate::device::{Held, Slot};
use crate::files::{Disk, FileError, Kind};
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::report::Installed;
use std::path::{Path, PathBuf};

/// Name of the link to the slot that serves.
const CURRENT: &str = "current";
/// Where agents up to 0.1 had the two slots of their one family.
const BEFORE: &str = "slots";

/// The slots of a state folder.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    disk: Disk,
    folder: PathBuf,
    before: PathBuf,
}

impl Slots {
    pub(super) fn new(disk: &Disk, state_dir: &Path) -> Self {
        Self {
            disk: disk.clone(),
            folder: stage::models_dir(state_dir),
            before: state_dir.join(BEFORE),
        }
    }

    /// Folder of a slot.
    pub(super) fn folder(&self, family: &Family, slot: Slot) -> PathBuf {
        self.of(family).join(slot.name())
    }

    fn of(&self, family: &Family) -> PathBuf {
        self.folder.join(family.as_str())
    }

    /// Moves the slots of an agent of before to where they are now, in one step; what is not whole
    /// goes. To be called again if it fails.
    pub(super) fn take_over(&self) -> Result<(), FileError> {
        let disk = &self.disk;
        if disk.look(&self.before)?.is_none() {
            return Ok(());
        }
        let current = disk.read_link(&self.before.join(CURRENT)).ok();
        let slots = current.into_iter().chain(["a".into(), "b".into()]);
        let held = slots
            .into_iter()
            .find_map(|slot| stage::read(disk, &self.before.join(slot)));
        if let Some(staged) = held {
            let now = self.of(&staged.family);
            disk.create_private_dir(&self.folder)?;
            if disk.look(&now)?.is_none() {
                disk.rename(&self.before, &now)?;
                disk.sync_dir(&self.folder)?;
            }
        }
        disk.remove_tree(&self.before)?;
        match self.before.parent() {
            Some(state_dir) => disk.sync_dir(state_dir),
            None => Ok(()),
        }
    }

    /// Removes what atomic writes left half way, and folders of families that are none.
    pub(super) fn sweep(&self) -> Result<(), FileError> {
        self.disk.remove_half_written(&self.folder)?;
        for family in self.families()? {
            self.disk.remove_half_written(&self.of(&family))?;
        }
        Ok(())
    }

    /// Every family that has a folder.
    pub(super) fn families(&self) -> Result<Vec<Family>, FileError> {
        let found = self.disk.list(&self.folder)?;
        let folders = found.into_iter().filter(|(_, f)| f.kind == Kind::Folder);
        Ok(folders
            .filter_map(|(name, _)| name.to_str()?.parse().ok())
            .collect())
    }

    /// Removes a family's folder whole.
    pub(super) fn remove(&self, family: &Family) -> Result<(), FileError> {
        self.disk.remove_tree(&self.of(family))?;
        self.disk.sync_dir(&self.folder)
    }

    /// Checks every hash of a staged bundle. It may take minutes.
    pub(super) async fn whole(
        &self,
        family: &Family,
        slot: Slot,
        digest: &Digest,
    ) -> Result<(), String> {
        let (disk, folder) = (self.disk.clone(), self.folder(family, slot));
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

    /// Points a family's `current` at a slot by one rename, durable before anything is served from it.
    pub(super) fn switch(&self, family: &Family, to: Option<Slot>) -> Result<(), FileError> {
        let (disk, folder) = (&self.disk, self.of(family));
        let link = folder.join(CURRENT);
        match to {
            Some(slot) => {
                disk.create_private_dir(&folder)?;
                disk.link_atomic(Path::new(slot.name()), &link)
            }
            None if disk.look(&folder)?.is_none() => Ok(()),
            None => {
                disk.remove_if_there(&link)?;
                disk.sync_dir(&folder)
            }
        }
    }

    /// What each family's `current` names, if it is whole.
    pub(super) fn served_last(&self) -> Vec<Held> {
        let families = self.families().unwrap_or_default();
        families
            .iter()
            .filter_map(|family| self.served_last_of(family))
            .collect()
    }

    fn served_last_of(&self, family: &Family) -> Option<Held> {
        let link = self.disk.read_link(&self.of(family).join(CURRENT)).ok()?;
        let slot = slot_of(&link)?;
        match stage::check(&self.disk, &self.folder(family, slot)) {
            Ok(found) => found.map(|staged| Held {
                slot,
                bundle: Installed {
                    family: staged.family,
                    version: staged.version,
                    digest: staged.digest,
                },
            }),
            Err(error) => {
                tracing::warn!(%family, slot = slot.name(), %error, "the slot that served last is not whole");
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
