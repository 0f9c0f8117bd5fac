//! A model as its difference to one that is held.

use super::repository::{MODEL_WORDS, Release};
use super::server::Fault;
use super::{Fleet, info, limits, receiver_on};
use dunlin_agent::bundle::receive::Spent;
use dunlin_agent::bundle::{Kind, stage};
use dunlin_agent::files::Disk;
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::Digest;
use dunlin_protocol::patch::{self, Options};
use jiff::Timestamp;

/// Version 2 is like version 1; the device has version 1, and the server a patch.
struct Two {
    fleet: Fleet,
    wants: Vec<DesiredBundle>,
    patch: String,
    model: String,
}

impl Two {
    async fn new() -> Self {
        let second = Release {
            like: Some(1),
            ..Release::version(2)
        };
        let (old, new) = (
            Release::version(1).model(MODEL_WORDS),
            second.model(MODEL_WORDS),
        );
        let (mut fleet, wants) = Fleet::with(&[Release::version(1), second]).await;
        let (from, to) = (Digest::of(&old), Digest::of(&new));
        let patch = format!("patches/{from}/{to}");
        let made = patch::make(&old, &new, &Options::default()).unwrap();
        fleet.repository.files.insert(patch.clone(), made.patch);
        fleet.upload();
        fleet.receive(&wants[0]).await.unwrap();
        fleet.server.asked("");
        Self {
            fleet,
            wants,
            patch,
            model: format!("blobs/{to}"),
        }
    }

    fn put(&self, bytes: Vec<u8>) {
        let mut content = self.fleet.server.content.lock().unwrap();
        content.files.insert(self.patch.clone(), bytes);
    }

    fn length(&self) -> u64 {
        self.fleet.repository.files[&self.patch].len() as u64
    }

    async fn receive(&self) -> Spent {
        let staged = self.fleet.receive(&self.wants[1]).await.unwrap();
        assert_eq!(self.fleet.partials(), 0);
        let held = stage::read(&Disk::native(), &self.fleet.slot("a"));
        assert_eq!(held, Some(info(&self.wants[1])));
        staged.spent
    }

    /// Received by the whole blob, after the patch was tried and found to be of no use.
    async fn falls_back(&self, tries: usize) {
        let spent = self.receive().await;
        assert_eq!((spent.patches, spent.patches_failed), (0, 1));
        let asked = self.fleet.server.asked("");
        let of = |path: &str| asked.iter().filter(|(p, _)| p == path).count();
        assert_eq!((of(&self.patch), of(&self.model)), (tries, 1), "{asked:?}");
    }
}

#[tokio::test]
async fn a_patch_takes_the_place_of_the_model() {
    let two = Two::new().await;
    let spent = two.receive().await;
    assert_eq!((spent.patches, spent.patches_failed), (1, 0));
    assert_eq!(spent.fetched_bytes, two.length());
    assert!(spent.fetched_bytes < 20_000, "{spent:?}");
    assert!(spent.saved_bytes() > 1_180_000, "{spent:?}");
    let asked = two.fleet.server.asked("");
    assert!(asked.contains(&(two.patch.clone(), 0)), "{asked:?}");
    assert!(asked.iter().all(|(path, _)| *path != two.model));
}

#[tokio::test]
async fn a_cut_patch_is_resumed() {
    let two = Two::new().await;
    let half = usize::try_from(two.length() / 2).unwrap();
    two.fleet
        .server
        .spoil(&two.patch, Fault::CutAfterOnce(half));
    let error = two.fleet.receive(&two.wants[1]).await.unwrap_err();
    assert_eq!(error.kind, Kind::Transient, "{error}");
    two.fleet.server.asked("");
    let spent = two.receive().await;
    assert_eq!(spent.patches, 1);
    assert_eq!(spent.fetched_bytes, two.length() - half as u64);
    let asked = two.fleet.server.asked("patches/");
    assert_eq!(asked, [(two.patch.clone(), half as u64)]);
}

#[tokio::test]
async fn a_patch_that_lies_or_is_none_costs_one_try() {
    let two = Two::new().await;
    two.put(b"no patch".to_vec());
    two.falls_back(1).await;

    // One that leads to another file.
    let two = Two::new().await;
    let (old, mut other) = (
        Release::version(1).model(MODEL_WORDS),
        Release::version(1).model(MODEL_WORDS),
    );
    other[77] ^= 1;
    two.put(
        patch::make(&old, &other, &Options::default())
            .unwrap()
            .patch,
    );
    two.falls_back(1).await;

    // One that ends early, and a server that drops the connection at once.
    let two = Two::new().await;
    let mut short = two.fleet.repository.files[&two.patch].clone();
    short.truncate(short.len() / 2);
    two.put(short);
    two.falls_back(1).await;
}

#[tokio::test]
async fn a_patch_as_long_as_the_model_is_not_fetched() {
    let two = Two::new().await;
    two.put(vec![0; 1_200_000]);
    let spent = two.receive().await;
    assert_eq!((spent.patches, spent.patches_failed), (0, 0));
    assert_eq!(spent.fetched_bytes, 1_200_000);
}

#[tokio::test]
async fn a_device_without_room_for_patch_and_model_takes_the_model() {
    let two = Two::new().await;
    let room = (16 << 20) + 1_200_000;
    let receiver = receiver_on(&two.fleet.server, &two.fleet.dir, limits(), room);
    let slot = two.fleet.slot("a");
    let staged = receiver
        .receive(&two.wants[1], Timestamp::now(), &slot, |_, _| {})
        .await
        .unwrap();
    assert_eq!(staged.spent.patches, 0);
    assert_eq!(staged.spent.fetched_bytes, 1_200_000);
}

#[tokio::test]
async fn a_model_that_is_half_here_is_finished_instead() {
    let two = Two::new().await;
    let without = two
        .fleet
        .server
        .content
        .lock()
        .unwrap()
        .files
        .remove(&two.patch);
    two.fleet
        .server
        .spoil(&two.model, Fault::CutAfterOnce(600_000));
    two.fleet.receive(&two.wants[1]).await.unwrap_err();
    two.put(without.unwrap());
    let spent = two.receive().await;
    assert_eq!((spent.patches, spent.fetched_bytes), (0, 600_000));
}
