//! Playing a captured fleet server: the state folder is open to us, with its online keys and its
//! database, and the ordinary checks of the API are gone around. What the offline keys did not
//! sign must still not run: that is the device's own doing.

use anyhow::{Context as _, ensure};
use dunlin_protocol::bundle::Blob;
use dunlin_protocol::command::{DesiredBundle, Probation};
use dunlin_protocol::id::{DeviceId, Digest, Family};
use dunlin_server::repository::Repository;
use dunlin_server::store::Store;
use std::path::{Path, PathBuf};

pub(super) struct Captured {
    state_dir: PathBuf,
    store: Store,
}

impl Captured {
    pub(super) async fn open(state_dir: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            state_dir: state_dir.to_owned(),
            store: Store::open(&state_dir.join("dunlin.db")).await?,
        })
    }

    /// Tells a device what to run, past the API's checks.
    pub(super) async fn order(
        &self,
        device: &DeviceId,
        family: &Family,
        version: u64,
        digest: Digest,
    ) -> anyhow::Result<()> {
        let bundle = DesiredBundle {
            family: family.clone(),
            version,
            target: dunlin_protocol::bundle::target_path(family, version),
            digest,
            rollout: None,
            probation: Probation {
                inferences: 20,
                time_ms: 1_000,
                errors_max: 0,
                deadline_ms: 60_000,
                ..Probation::default()
            },
            asked: None,
        };
        self.store
            .set_desired(&[(device.clone(), vec![bundle])])
            .await?;
        Ok(())
    }

    /// Flips one bit in the middle of a stored blob, and of every patch to it: a device would else
    /// do without the blob. Called twice, it heals them.
    pub(super) fn flip_bit(&self, blob: &Blob) -> anyhow::Result<()> {
        let blobs = self.state_dir.join("blobs");
        flip_bit_of(&blobs.join(blob.transport().0.to_string()))?;
        let patches = blobs.join("patches").join(blob.sha256.to_string());
        for patch in std::fs::read_dir(patches).into_iter().flatten() {
            flip_bit_of(&patch?.path())?;
        }
        Ok(())
    }

    /// Serves targets metadata that the offline keys did not sign as they should, under snapshot
    /// and timestamp that the server's own keys sign.
    pub(super) fn serve_targets(&self, bytes: &[u8]) -> anyhow::Result<()> {
        Repository::open(&self.state_dir)?
            .sign_snapshot_and_timestamp(bytes, jiff::Timestamp::now())?;
        Ok(())
    }
}

fn flip_bit_of(path: &Path) -> anyhow::Result<()> {
    let mut bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    ensure!(!bytes.is_empty(), "{} is empty", path.display());
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).with_context(|| path.display().to_string())
}
