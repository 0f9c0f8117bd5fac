//! A desired bundle becomes a whole slot: refresh trust, select, fetch what is missing, stage.
//!
//! Blobs are kept under `<state_dir>/blobs/<sha256>`, whole and hashed before they get that name;
//! what is under way lies in `blobs/partial/` and is resumed. Every step may be cut at any point, by
//! power or by dropping the future: the next call goes on from what is there.
//!
//! * `fit`: whether the device can hold it, before anything large is fetched.
//! * `fetch`: what is missing, from any `Source`.
//! * `patch`: the model as its difference to one that is held, where that is smaller.
//! * `meter`: progress and cost.

mod fetch;
mod fit;
mod meter;
mod patch;

pub(crate) use fit::DISK_RESERVE_BYTES;
pub use fit::{HostFactsProvider, host_facts, ram_of_others};
pub use meter::Spent;

use super::source::{Auto, BlockLink, Https, Local, Source};
use super::stage::{self, StagedInfo};
use super::verify::{self, TrustStore};
use super::{DISK_FULL, Kind, UpdateError};
use crate::config::{Settings, Transport};
use crate::files::{self, Disk, FileError};
use crate::http::{Client, Limits, Proxy};
use crate::identity::Identity;
use crate::throttle::Throttle;
use dunlin_protocol::bundle::{MANIFEST_MAX_BYTES, Manifest};
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::Verified;
use jiff::Timestamp;
use meter::Meter;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};

/// A bundle that lies whole in a slot. Only verification leads here.
#[derive(Debug, Clone)]
pub struct Staged {
    /// The slot.
    pub slot: PathBuf,
    /// What is in it.
    pub info: StagedInfo,
    /// Its manifest.
    pub manifest: Verified<Manifest>,
    /// What it cost.
    pub spent: Spent,
}

/// Fetches, verifies and stages bundles; one at a time.
pub struct Receiver {
    source: Source,
    https: Https,
    disk: Disk,
    trust: TrustStore,
    blobs: PathBuf,
    hardware: String,
    host: HostFactsProvider,
    /// Receiving and collecting garbage take turns.
    turn: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Somebody's turn. Blocking work goes on when the future that began it is dropped: it holds the
/// turn as well, so that the next one never meets it.
type Turn = Arc<OwnedMutexGuard<()>>;

impl Receiver {
    /// A receiver for an enrolled device.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn new(
        disk: &Disk,
        settings: &Settings,
        identity: &Identity,
        throttle: Throttle,
        link: BlockLink,
    ) -> Result<Self, FileError> {
        let client = Client::with(
            &identity.rustls_client_config(),
            Limits::from(&settings.update),
            Proxy::configured(settings.update.proxy.as_ref()),
            throttle,
        );
        let (facts_disk, folder) = (disk.clone(), settings.state_dir.clone());
        let memory_limit_mib = settings.inference.memory_limit_mib;
        Self::with(
            client,
            &identity.enrolled.repository_url,
            disk,
            &settings.state_dir,
            &settings.hardware,
            Box::new(move || host_facts(&facts_disk, &folder, memory_limit_mib)),
        )
        .map(|receiver| receiver.over(settings.update.transport, link))
    }

    /// A receiver from its parts, over HTTPS.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn with(
        client: Client,
        base_url: &str,
        disk: &Disk,
        state_dir: &Path,
        hardware: &str,
        host: HostFactsProvider,
    ) -> Result<Self, FileError> {
        let https = Https::new(client, base_url);
        Ok(Self {
            source: Source::Https(https.clone()),
            https,
            disk: disk.clone(),
            trust: TrustStore::new(disk, state_dir),
            blobs: state_dir.join("blobs"),
            hardware: hardware.to_owned(),
            host,
            turn: Arc::default(),
        })
    }

    /// The same, fetching over another transport.
    #[must_use]
    pub fn over(mut self, transport: Transport, link: BlockLink) -> Self {
        let https = self.https.clone();
        self.source = match transport {
            Transport::Https => Source::Https(https),
            Transport::Mqtt => Source::Blocks(link),
            Transport::Auto => Source::Auto(Auto::new(https, link)),
        };
        self
    }

    /// Brings `want` into `slot`, which is cleared only once everything is on the device.
    ///
    /// `now` is the clock's time; a clock behind what was seen before is put right. `progress` gets
    /// (bytes on the device, bytes in all), at most a few hundred times.
    ///
    /// # Errors
    /// [`UpdateError`]; call again after [`Kind::Transient`].
    pub async fn receive(
        &self,
        want: &DesiredBundle,
        now: Timestamp,
        slot: &Path,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Staged, UpdateError> {
        self.source.begin_attempt();
        self.receive_from(&self.source, want, now, slot, progress)
            .await
    }

    /// As [`Self::receive`], from an archive or a folder on the device, and nowhere else.
    ///
    /// # Errors
    /// [`UpdateError`], never [`Kind::Transient`]: the same files say the same again.
    pub async fn receive_local(
        &self,
        local: &Local,
        want: &DesiredBundle,
        now: Timestamp,
        slot: &Path,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Staged, UpdateError> {
        let source = Source::Local(local.clone());
        let received = self.receive_from(&source, want, now, slot, progress).await;
        received.map_err(|error| match error.kind {
            Kind::Transient => UpdateError {
                kind: Kind::Refused,
                ..error
            },
            _ => error,
        })
    }

    async fn receive_from(
        &self,
        source: &Source,
        want: &DesiredBundle,
        now: Timestamp,
        slot: &Path,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Staged, UpdateError> {
        let turn: Turn = Arc::new(Arc::clone(&self.turn).lock_owned().await);
        let received = self
            .receive_in_turn(&turn, source, want, now, slot, progress)
            .await;
        if let Err(error) = &received
            && error.code == DISK_FULL
        {
            // Room for the ledger and the telemetry is worth more than a resumed download.
            match remove_others(&self.disk, &self.partials(), |_| false) {
                Ok(bytes) => tracing::warn!(bytes, "disk full: what was half fetched is removed"),
                Err(error) => tracing::error!(%error, "disk full, and nothing can be removed"),
            }
        }
        received
    }

    async fn receive_in_turn(
        &self,
        turn: &Turn,
        source: &Source,
        want: &DesiredBundle,
        now: Timestamp,
        slot: &Path,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Staged, UpdateError> {
        // Not before: an agent must start on a full disk too.
        self.disk.create_private_dir(&self.blobs)?;
        self.disk.create_private_dir(&self.partials())?;
        let mut set = verify::refresh(source, &self.trust, now).await?;
        let target = verify::select(source, &mut set, &self.trust, want, &self.hardware).await?;
        let (manifest, bytes) = self.manifest(source, target).await?;

        let missing = self.missing(turn, &manifest).await?;
        self.make_room(turn, slot, want.digest, &manifest, &missing)
            .await?;
        self.check_fit(slot, &manifest, &missing)?;
        let mut meter = Meter::new(&manifest, &missing, progress);
        for file in &missing {
            if !self
                .patch(turn, source, &manifest, file, &mut meter)
                .await?
            {
                self.fetch(turn, source, file, &mut meter).await?;
            }
        }
        let spent = meter.spent;
        let info = self.stage(turn, slot, manifest.clone(), bytes).await?;
        Ok(Staged {
            slot: slot.to_owned(),
            info,
            manifest,
            spent,
        })
    }

    /// Removes every blob that none of the bundles with manifest digests `keep` names, and all that
    /// is under way; returns the bytes of names removed. Slots are not touched.
    ///
    /// # Errors
    /// [`FileError`]
    pub async fn gc(&self, keep: &[Digest]) -> Result<u64, FileError> {
        let turn = self.turn.lock().await;
        self.gc_in_turn(&turn, keep)
    }

    fn gc_in_turn(&self, _turn: &MutexGuard<'_, ()>, keep: &[Digest]) -> Result<u64, FileError> {
        let kept = named_by(&self.disk, &self.blobs, keep);
        Ok(
            remove_others(&self.disk, &self.blobs, |name| kept.contains(name))?
                + remove_others(&self.disk, &self.partials(), |_| false)?,
        )
    }

    /// As [`Self::gc`], and clears `spares`, slots that do not serve, unless one holds one of
    /// `keep`. Nothing is done if `is_stale` says, once it is this one's turn, that `keep` is of the
    /// past. That it fails is only logged: space is short at worst.
    pub async fn tidy(
        &self,
        keep: &[Digest],
        spares: &[PathBuf],
        is_stale: impl FnOnce() -> bool + Send,
    ) {
        let turn = self.turn.lock().await;
        if is_stale() {
            return;
        }
        for slot in spares {
            let held = stage::claims(&self.disk, slot);
            if !held.is_some_and(|digest| keep.contains(&digest))
                && let Err(error) = stage::clear(&self.disk, slot)
            {
                tracing::warn!(slot = %slot.display(), %error, "a slot that is of no use stays");
            }
        }
        match self.gc_in_turn(&turn, keep) {
            Ok(0) => {}
            Ok(bytes) => tracing::info!(bytes, "blobs no longer needed are removed"),
            Err(error) => tracing::warn!(%error, "blobs no longer needed stay"),
        }
    }

    fn partials(&self) -> PathBuf {
        self.blobs.join("partial")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.to_string())
    }

    async fn stage(
        &self,
        turn: &Turn,
        slot: &Path,
        manifest: Verified<Manifest>,
        bytes: Vec<u8>,
    ) -> Result<StagedInfo, UpdateError> {
        let (disk, slot, blobs) = (self.disk.clone(), slot.to_owned(), self.blobs.clone());
        let write = move || stage::write(&disk, &slot, &manifest, &bytes, &blobs);
        blocking(turn, write).await?
    }
}

/// The blobs that bundles with these manifest digests name, and the manifests. One that cannot be
/// read keeps nothing: it is fetched again should it be wanted.
fn named_by(disk: &Disk, blobs: &Path, bundles: &[Digest]) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for digest in bundles {
        let path = blobs.join(digest.to_string());
        let bytes = match disk.read_if_there(&path, MANIFEST_MAX_BYTES as u64) {
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "a held manifest cannot be read and counts as absent");
                continue;
            }
        };
        if let Ok(manifest) = Manifest::parse(&bytes) {
            named.insert(digest.to_string());
            let blobs = manifest.files.named().into_iter();
            named.extend(blobs.map(|(_, b)| b.sha256.to_string()));
        }
    }
    named
}

/// Removes all files of a folder but those kept; returns the length of what went.
fn remove_others(
    disk: &Disk,
    folder: &Path,
    is_kept: impl Fn(&str) -> bool,
) -> Result<u64, FileError> {
    if disk.look(folder)?.is_none() {
        return Ok(0);
    }
    let mut removed = 0;
    for (name, found) in disk.list(folder)? {
        if found.kind == files::Kind::File && !name.to_str().is_some_and(&is_kept) {
            disk.remove_if_there(&folder.join(name))?;
            removed += found.length_bytes;
        }
    }
    disk.sync_dir(folder)?;
    Ok(removed)
}

async fn blocking<T: Send + 'static>(
    turn: &Turn,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, UpdateError> {
    let turn = Arc::clone(turn);
    let job = move || {
        let done = work();
        drop(turn);
        done
    };
    tokio::task::spawn_blocking(job)
        .await
        .map_err(|e| UpdateError::failed("internal", format!("a task died: {e}")))
}
