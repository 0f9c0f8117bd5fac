//! Everything around the device: the server, its repository, and what must hold of a disk.

use super::device::{Device, Script};
use super::disk::{Outcome, SimDisk};
use super::repository::{Release, Repository};
use super::server::{Fault, Server};
use dunlin_agent::bundle::{Receiver, TrustStore, stage};
use dunlin_agent::files::{Disk, FileSystem as _};
use dunlin_agent::http::{Client, Limits};
use dunlin_agent::ledger::Ledger;
use dunlin_protocol::bundle::{HostFacts, Manifest};
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::Digest;
use dunlin_protocol::patch::{self, Options};
use dunlin_protocol::trust::SigningKey;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The state folder on every disk.
pub(crate) const FOLDER: &str = "/state";
/// The server breaks what the second version's model comes by off after so many bytes, once.
const CUT_AFTER_BYTES: usize = 9_000;
const PATCH_CUT_AFTER_BYTES: usize = 10;

pub(crate) struct World {
    server: Arc<Server>,
    tls: Arc<rustls::ClientConfig>,
    root: Vec<u8>,
    model_of_two: String,
    /// The path that breaks off, and where.
    breaks_off: (String, usize),
    versions: [DesiredBundle; 2],
    /// What the server offers before and after the second version was published.
    published: [BTreeMap<String, Vec<u8>>; 2],
    _dir: tempfile::TempDir,
}

impl World {
    /// A repository with two versions: between them the root and the online keys were rotated.
    pub(crate) async fn new() -> Self {
        Self::with(Release::version(2)).await
    }

    /// The second version is like the first, and there is a patch.
    pub(crate) async fn patched() -> Self {
        let like = Some(1);
        Self::with(Release {
            like,
            ..Release::version(2)
        })
        .await
    }

    async fn with(second: Release) -> Self {
        let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
        let mut repository = Repository::new();
        repository.model_words = 3_000;
        let root = repository.metadata("1.root.json");
        let one = repository.add(&Release::version(1));
        repository.publish();
        let first = repository.files.clone();
        let old = std::mem::replace(&mut repository.root, SigningKey::from_seed(&[11; 32]));
        repository.timestamp = SigningKey::from_seed(&[15; 32]);
        repository.sign_root(2, &[&old]);
        let words = repository.model_words;
        let two = repository.add(&second);
        repository.publish();
        let (old, new) = (Release::version(1).model(words), second.model(words));
        let (from, to) = (Digest::of(&old), Digest::of(&new));
        let model_of_two = format!("blobs/{to}");
        let mut breaks_off = (model_of_two.clone(), CUT_AFTER_BYTES);
        if second.like.is_some() {
            let made = patch::make(&old, &new, &Options::default()).unwrap();
            let path = format!("patches/{from}/{to}");
            repository.files.insert(path.clone(), made.patch);
            breaks_off = (path, PATCH_CUT_AFTER_BYTES);
        }
        Self {
            tls: server.identity(dir.path()).rustls_client_config(),
            server,
            root,
            model_of_two,
            breaks_off,
            versions: [one, two],
            published: [first, repository.files],
            _dir: dir,
        }
    }

    pub(crate) fn version(&self, version: u64) -> DesiredBundle {
        self.versions[version as usize - 1].clone()
    }

    /// Name of the second version's model.
    pub(crate) fn model_of_two(&self) -> &str {
        self.model_of_two.trim_start_matches("blobs/")
    }

    /// The server as the script wants it; it breaks off once.
    pub(crate) fn begin(&self, script: &Script) {
        let published = self.published[script.published() - 1].clone();
        self.server.content.lock().unwrap().files = published;
        let (path, after_bytes) = &self.breaks_off;
        self.server.asked("");
        self.server.spoil(path, Fault::CutAfterOnce(*after_bytes));
    }

    /// Whether the second version's model was asked for itself since the script began.
    pub(crate) fn model_was_asked_for(&self) -> bool {
        !self.server.asked(&self.model_of_two).is_empty()
    }

    /// It does not break off any more.
    pub(crate) fn heal(&self) {
        self.server.heal();
    }

    pub(crate) fn receiver(&self, disk: &Disk) -> Option<Receiver> {
        let limits = Limits {
            connect_timeout: Duration::from_secs(20),
            request_timeout: Duration::from_secs(20),
            rate_window: Duration::from_secs(30),
            rate_min_bytes_s: 1024,
            bandwidth_bytes_s: 0,
        };
        let client = Client::new(&self.tls, limits);
        let host = || HostFacts {
            arch: "x86_64".to_owned(),
            agent_version: "0.1.0".to_owned(),
            ram_bytes: 1 << 30,
            disk_free_bytes: 1 << 30,
        };
        let folder = Path::new(FOLDER);
        let url = &self.server.url;
        Receiver::with(client, url, disk, folder, "jetson", Box::new(host)).ok()
    }

    /// A device that has enrolled and has nothing yet.
    pub(crate) fn enrolled(&self) -> SimDisk {
        let disk = SimDisk::with_folder(Path::new(FOLDER));
        TrustStore::new(&Disk::new(disk.clone()), Path::new(FOLDER))
            .adopt_root(&self.root)
            .unwrap();
        // What enrolment did is durable.
        disk.restart(Outcome::Nothing)
    }

    /// A device that keeps a version.
    pub(crate) async fn running(&self, version: u64) -> SimDisk {
        self.after(&self.enrolled(), &Script::install(version))
            .await
    }

    /// The same as an agent left it that ran one family.
    pub(crate) fn as_of_before(&self, now: &SimDisk) -> SimDisk {
        let disk = now.restart(Outcome::Everything);
        let (handle, folder) = (Disk::new(disk.clone()), Path::new(FOLDER));
        let slots = folder.join("models/digits");
        handle.rename(&slots, &folder.join("slots")).unwrap();
        handle.remove_tree(&folder.join("models")).unwrap();
        let ledger = folder.join("ledger.json");
        let text = handle.read_bounded(&ledger, 1 << 20).unwrap();
        let mut document: serde_json::Value = serde_json::from_slice(&text).unwrap();
        document["schema"] = "dunlin.ledger/1".into();
        let state = document["state"].as_object_mut().unwrap();
        let model = state.remove("models").unwrap()["digits"].clone();
        state.extend(model.as_object().unwrap().clone());
        handle
            .write_atomic(&ledger, document.to_string().as_bytes(), 0o600)
            .unwrap();
        handle.sync_dir(folder).unwrap();
        disk.restart(Outcome::Nothing)
    }

    pub(crate) async fn after(&self, start: &SimDisk, script: &Script) -> SimDisk {
        let disk = start.restart(Outcome::Everything);
        self.begin(script);
        let mut device = Device::boot(self, &disk, script).unwrap();
        let end = device.run().await;
        drop(device);
        script.check(self, &disk, &end, "setting up");
        // All of it must be durable.
        disk.restart(Outcome::Nothing)
    }

    /// Nothing lies on the disk that no bundle in use needs. `undecided`: the ledger could not be
    /// written, so that the update is still under way.
    pub(crate) fn nothing_is_left_over(&self, disk: &SimDisk, context: &str, undecided: bool) {
        let handle = Disk::new(disk.clone());
        let state = Ledger::new(&handle, Path::new(FOLDER)).load().unwrap();
        let mut in_use = state.map(|s| s.in_use()).unwrap_or_default();
        if undecided {
            in_use.extend(self.versions.iter().map(|v| v.digest));
        }
        let blobs = Path::new(FOLDER).join("blobs");
        let mut allowed = BTreeSet::new();
        for digest in &in_use {
            let path = blobs.join(digest.to_string());
            let Ok(Some(bytes)) = handle.read_if_there(&path, 1 << 20) else {
                continue;
            };
            let manifest = Manifest::parse(&bytes).unwrap();
            let named = manifest.files.named().into_iter();
            allowed.insert(path);
            allowed.extend(named.map(|(_, b)| blobs.join(b.sha256.to_string())));
        }
        let slots = Path::new(FOLDER).join("models/digits");
        let known = ["ledger.json", "trust/floors.json", "trust/time_floor"];
        let trust = ["enrolled_root", "root", "timestamp", "snapshot", "targets"];
        allowed.extend(known.map(|n| Path::new(FOLDER).join(n)));
        allowed.extend(trust.map(|n| Path::new(FOLDER).join(format!("trust/{n}.json"))));
        allowed.insert(slots.join("current"));
        for file in disk.files() {
            if undecided && file.starts_with(blobs.join("partial")) {
                continue;
            }
            let slot = file.strip_prefix(&slots).ok().and_then(|f| f.parent());
            let claimed = slot
                .filter(|slot| !slot.as_os_str().is_empty())
                .and_then(|slot| stage::check(&handle, &slots.join(slot)).ok().flatten());
            let is_held = claimed.is_some_and(|found| in_use.contains(&found.digest));
            assert!(
                allowed.contains(&file) || is_held,
                "{context}: {} is left over ({} bytes on the disk, in use {in_use:?})\n{}",
                file.display(),
                disk.used_bytes(),
                disk.trace()
            );
        }
    }

    /// The newest root and the floors never sink; a version that is kept was let in by them.
    pub(crate) fn trust_holds(&self, disk: &SimDisk, context: &str, least_root: u64) {
        let handle = Disk::new(disk.clone());
        let root = handle
            .read_bounded(&Path::new(FOLDER).join("trust/root.json"), 1 << 20)
            .unwrap_or_else(|e| panic!("{context}: {e}"));
        let json: serde_json::Value = serde_json::from_slice(&root).unwrap();
        let version = json["signed"]["version"].as_u64().unwrap();
        assert!(version >= least_root, "{context}: root {version}");
        let store = TrustStore::new(&handle, Path::new(FOLDER));
        store.floors().unwrap_or_else(|e| panic!("{context}: {e}"));
        store
            .now(jiff::Timestamp::UNIX_EPOCH)
            .unwrap_or_else(|e| panic!("{context}: {e}"));
    }

    pub(crate) fn slot_folders() -> [PathBuf; 2] {
        ["a", "b"].map(|s| Path::new(FOLDER).join("models/digits").join(s))
    }
}

impl World {
    /// The version whose bundle lies whole in a folder, its bytes compared with the original's.
    pub(crate) fn whole_version(&self, disk: &SimDisk, slot: &Path) -> Option<u64> {
        if disk.metadata(slot).is_err() {
            return None;
        }
        let found = stage::check(&Disk::new(disk.clone()), slot).ok()??;
        let mut versions = self.versions.iter();
        versions
            .find(|v| v.digest == found.digest)
            .map(|v| v.version)
    }
}
