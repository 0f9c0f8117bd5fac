//! Receiving bundles and enrolling, over real HTTPS, from a server that may do anything.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "receive/blocks.rs"]
mod blocks;
#[path = "receive/delegated.rs"]
mod delegated;
#[path = "receive/enrolling.rs"]
mod enrolling;
#[path = "receive/faults.rs"]
mod faults;
#[path = "receive/local.rs"]
mod local;
#[path = "receive/patches.rs"]
mod patches;
#[path = "receive/proxied.rs"]
mod proxied;
#[path = "receive/repository.rs"]
mod repository;
#[path = "receive/server.rs"]
mod server;

use dunlin_agent::bundle::{Receiver, StagedInfo, UpdateError, stage};
use dunlin_agent::bundle::{Staged, TrustStore};
use dunlin_agent::files::Disk;
use dunlin_agent::http::{Client, Limits};
use dunlin_protocol::bundle::HostFacts;
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::Digest;
use jiff::Timestamp;
use repository::{Release, Repository, golden, model};
use server::Server;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// A server with a repository, and one device.
struct Fleet {
    server: Arc<Server>,
    repository: Repository,
    receiver: Receiver,
    dir: TempDir,
}

impl Fleet {
    async fn new() -> Self {
        let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
        let repository = Repository::new();
        let receiver = receiver(&server, &dir);
        TrustStore::new(&Disk::native(), dir.path())
            .adopt_root(&repository.metadata("1.root.json"))
            .unwrap();
        Self {
            server,
            repository,
            receiver,
            dir,
        }
    }

    /// A fleet whose repository lists these releases.
    async fn with(releases: &[Release]) -> (Self, Vec<DesiredBundle>) {
        let mut fleet = Self::new().await;
        let wants = releases.iter().map(|r| fleet.repository.add(r)).collect();
        fleet.repository.publish();
        fleet.upload();
        (fleet, wants)
    }

    fn upload(&self) {
        self.server.content.lock().unwrap().files = self.repository.files.clone();
    }

    fn slot(&self, name: &str) -> PathBuf {
        self.dir.path().join("slots").join(name)
    }

    async fn receive(&self, want: &DesiredBundle) -> Result<Staged, UpdateError> {
        let slot = self.slot("a");
        self.receiver
            .receive(want, Timestamp::now(), &slot, |_, _| {})
            .await
    }

    fn partials(&self) -> usize {
        let folder = self.dir.path().join("blobs/partial");
        std::fs::read_dir(folder).unwrap().count()
    }
}

fn limits() -> Limits {
    Limits {
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(5),
        rate_window: Duration::from_secs(30),
        rate_min_bytes_s: 1024,
        bandwidth_bytes_s: 0,
    }
}

fn receiver(server: &Server, dir: &TempDir) -> Receiver {
    receiver_with(server, dir, limits())
}

fn receiver_with(server: &Server, dir: &TempDir, limits: Limits) -> Receiver {
    receiver_on(server, dir, limits, 1 << 30)
}

fn receiver_on(server: &Server, dir: &TempDir, limits: Limits, disk_free_bytes: u64) -> Receiver {
    receiver_where(server, dir, limits, move || disk_free_bytes)
}

/// On a disk of which so many bytes are free whenever that is asked.
fn receiver_where(
    server: &Server,
    dir: &TempDir,
    limits: Limits,
    disk_free_bytes: impl Fn() -> u64 + Send + Sync + 'static,
) -> Receiver {
    let identity = server.identity(dir.path());
    let client = Client::new(&identity.rustls_client_config(), limits);
    let host = move || HostFacts {
        arch: "x86_64".to_owned(),
        agent_version: "0.1.0".to_owned(),
        ram_bytes: 1 << 30,
        disk_free_bytes: disk_free_bytes(),
    };
    let disk = Disk::native();
    Receiver::with(
        client,
        &server.url,
        &disk,
        dir.path(),
        "jetson",
        Box::new(host),
    )
    .unwrap()
}

fn info(want: &DesiredBundle) -> StagedInfo {
    StagedInfo {
        family: want.family.clone(),
        version: want.version,
        digest: want.digest,
    }
}

#[tokio::test]
async fn a_bundle_arrives_whole_and_is_not_fetched_again() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let mut told = Vec::new();
    let staged = fleet
        .receiver
        .receive(
            &wants[0],
            Timestamp::now(),
            &fleet.slot("a"),
            |done, all| {
                told.push((done, all));
            },
        )
        .await
        .unwrap();
    assert_eq!(staged.info, info(&wants[0]));
    assert_eq!(
        stage::read(&Disk::native(), &fleet.slot("a")),
        Some(info(&wants[0]))
    );
    let file = |name: &str| std::fs::read(fleet.slot("a").join(name)).unwrap();
    assert_eq!(file("model.onnx"), model(1));
    assert_eq!(file("golden.json"), golden());
    assert_eq!(file("card.md"), b"# A card");
    let (last, total) = *told.last().unwrap();
    assert!(last == total && total > 1_200_000 && told[0] == (0, total));
    assert_eq!(fleet.partials(), 0);

    assert_eq!(fleet.server.asked("").len(), 8);
    let again = fleet.slot("b");
    fleet
        .receiver
        .receive(&wants[0], Timestamp::now(), &again, |_, _| {})
        .await
        .unwrap();
    assert_eq!(stage::read(&Disk::native(), &again), Some(info(&wants[0])));
    let asked: Vec<_> = fleet.server.asked("").into_iter().map(|(p, _)| p).collect();
    assert_eq!(asked, ["metadata/2.root.json", "metadata/timestamp.json"]);
}

#[tokio::test]
async fn of_the_next_version_only_what_differs_is_fetched() {
    let (fleet, wants) = Fleet::with(&[Release::version(1), Release::version(2)]).await;
    fleet.receive(&wants[0]).await.unwrap();
    fleet.server.asked("");
    fleet.receive(&wants[1]).await.unwrap();
    let asked = fleet.server.asked("blobs/");
    assert_eq!(asked, [(format!("blobs/{}", Digest::of(&model(2))), 0)]);
    assert_eq!(
        stage::read(&Disk::native(), &fleet.slot("a")),
        Some(info(&wants[1]))
    );
}

#[tokio::test]
async fn rotated_keys_are_followed_from_root_to_root() {
    let (mut fleet, wants) = Fleet::with(&[Release::version(1), Release::version(2)]).await;
    fleet.receive(&wants[0]).await.unwrap();
    let old_root = std::mem::replace(
        &mut fleet.repository.root,
        dunlin_protocol::trust::SigningKey::from_seed(&[11; 32]),
    );
    fleet.repository.timestamp = dunlin_protocol::trust::SigningKey::from_seed(&[15; 32]);
    fleet.repository.sign_root(2, &[&old_root]);
    fleet.repository.publish();
    fleet.upload();
    fleet.receive(&wants[1]).await.unwrap();
    let stored = std::fs::read(fleet.dir.path().join("trust/root.json")).unwrap();
    assert_eq!(stored, fleet.repository.metadata("2.root.json"));

    // A third root that the second did not sign is no root.
    fleet.repository.root = dunlin_protocol::trust::SigningKey::from_seed(&[21; 32]);
    fleet.repository.sign_root(3, &[]);
    fleet.upload();
    assert_eq!(
        fleet.receive(&wants[1]).await.unwrap_err().code,
        "threshold"
    );
}

#[tokio::test]
async fn dropped_at_any_moment_it_goes_on_from_there() {
    let (fleet, wants) = Fleet::with(&[Release::version(1), Release::version(2)]).await;
    let (mut state, mut dropped) = (7_u64, 0);
    for round in 0..12_u64 {
        let dir = tempfile::tempdir().unwrap();
        TrustStore::new(&Disk::native(), dir.path())
            .adopt_root(&fleet.repository.metadata("1.root.json"))
            .unwrap();
        let slot = dir.path().join("slot");
        let want = &wants[(round % 2) as usize];
        let receiver = receiver(&fleet.server, &dir);
        for _ in 0..6 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let limit = Duration::from_micros((state >> 33) & 0xffff);
            let call = receiver.receive(want, Timestamp::now(), &slot, |_, _| {});
            if let Ok(done) = tokio::time::timeout(limit, call).await {
                done.unwrap();
            } else {
                dropped += 1;
            }
            let held = stage::read(&Disk::native(), &slot);
            assert!(held.is_none() || held == Some(info(want)), "{held:?}");
        }
        receiver
            .receive(want, Timestamp::now(), &slot, |_, _| {})
            .await
            .unwrap();
        assert_eq!(stage::read(&Disk::native(), &slot), Some(info(want)));
    }
    assert!(dropped > 0, "no call was dropped");
}

#[tokio::test]
async fn a_slot_with_one_wrong_bit_is_not_used() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    fleet.receive(&wants[0]).await.unwrap();
    let path = fleet.slot("a").join("card.md");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"# A cord").unwrap();
    let why = stage::check(&Disk::native(), &fleet.slot("a"))
        .unwrap_err()
        .to_string();
    assert!(why.starts_with("card.md: expected SHA-256"), "{why}");
    assert_eq!(stage::read(&Disk::native(), &fleet.slot("a")), None);
    // Received again it is whole, and a damaged blob on the device is fetched anew.
    let blob = fleet
        .dir
        .path()
        .join(format!("blobs/{}", Digest::of(&model(1))));
    std::fs::write(&blob, b"rotten").unwrap();
    fleet.server.asked("");
    fleet.receive(&wants[0]).await.unwrap();
    assert_eq!(fleet.server.asked("blobs/").len(), 1);
    assert_eq!(
        stage::read(&Disk::native(), &fleet.slot("a")),
        Some(info(&wants[0]))
    );
}

#[tokio::test]
async fn garbage_goes_and_what_is_kept_stays() {
    let (fleet, wants) = Fleet::with(&[Release::version(1), Release::version(2)]).await;
    fleet.receive(&wants[0]).await.unwrap();
    fleet.receive(&wants[1]).await.unwrap();
    let partial = fleet.dir.path().join("blobs/partial/x");
    std::fs::write(&partial, b"half").unwrap();
    let removed = fleet.receiver.gc(&[wants[1].digest]).await.unwrap();
    assert!(removed >= 1_200_000, "{removed}");
    assert!(!partial.exists());
    fleet.server.asked("");
    fleet.receive(&wants[1]).await.unwrap();
    assert!(fleet.server.asked("blobs/").is_empty());
    fleet.receive(&wants[0]).await.unwrap();
    assert_eq!(fleet.server.asked("blobs/").len(), 1);
}
