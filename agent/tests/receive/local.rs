//! The same bundles from an archive and from a folder.

use super::repository::{Release, model};
use super::{Fleet, info};
use dunlin_agent::bundle::{Kind, Local, UpdateError, stage};
use dunlin_agent::files::Disk;
use dunlin_protocol::archive::Writer;
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::SigningKey;
use jiff::{SignedDuration, Timestamp};
use std::path::{Path, PathBuf};

fn model_path() -> String {
    format!("blobs/{}", Digest::of(&model(1)))
}

/// The repository's files in an archive.
fn archive(fleet: &Fleet) -> PathBuf {
    let path = fleet.dir.path().join("stick.tar");
    let mut writer = Writer::new(std::fs::File::create(&path).unwrap());
    for (name, bytes) in &fleet.repository.files {
        let file = name.parse().unwrap();
        writer
            .add(&file, bytes.len() as u64, &mut &bytes[..])
            .unwrap();
    }
    writer.finish().unwrap();
    path
}

fn folder(fleet: &Fleet) -> PathBuf {
    let path = fleet.dir.path().join("stick");
    for (name, bytes) in &fleet.repository.files {
        let file = path.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    path
}

async fn receive(fleet: &Fleet, from: &Path, want: &DesiredBundle) -> Result<(), UpdateError> {
    let local = Local::open_path(from).unwrap();
    let (now, slot) = (Timestamp::now(), fleet.slot("a"));
    let received = fleet
        .receiver
        .receive_local(&local, want, now, &slot, |_, _| {});
    received.await.map(drop)
}

#[tokio::test]
async fn an_archive_and_a_folder_install_without_any_server() {
    for of in [archive, folder] {
        let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
        receive(&fleet, &of(&fleet), &wants[0]).await.unwrap();
        let held = stage::read(&Disk::native(), &fleet.slot("a"));
        assert_eq!(held, Some(info(&wants[0])));
        assert!(fleet.server.asked("").is_empty());
    }
}

#[tokio::test]
async fn a_bit_that_fell_over_is_refused() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let (path, start) = (archive(&fleet), &model(1)[..32]);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(32).position(|window| window == start);
    bytes[at.unwrap()] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = receive(&fleet, &path, &wants[0]).await.unwrap_err();
    assert_eq!((error.kind, error.code), (Kind::Refused, "hash"), "{error}");
    assert_eq!(fleet.partials(), 0);
}

#[tokio::test]
async fn an_archive_without_a_file_says_which() {
    let (mut fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    fleet.repository.files.remove(&model_path());
    let error = receive(&fleet, &archive(&fleet), &wants[0]).await;
    let error = error.unwrap_err();
    assert_eq!((error.kind, error.code), (Kind::Refused, "archive"));
    assert!(error.detail.contains(&model_path()), "{error}");
}

#[tokio::test]
async fn an_archive_from_before_what_the_device_has_seen_is_refused() {
    let (mut fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let old = archive(&fleet);
    fleet.repository.publish();
    fleet.upload();
    fleet.receive(&wants[0]).await.unwrap();
    let error = receive(&fleet, &old, &wants[0]).await.unwrap_err();
    assert_eq!((error.kind, error.code), (Kind::Refused, "rollback"));
}

#[tokio::test]
async fn an_archive_past_its_time_is_refused_and_not_tried_again() {
    let (mut fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let keys = [2, 3].map(|n| SigningKey::from_seed(&[n; 32]));
    let past = Timestamp::now() - SignedDuration::from_hours(1);
    fleet.repository.publish_by(&[&keys[0], &keys[1]], past);
    let error = receive(&fleet, &archive(&fleet), &wants[0]).await;
    let error = error.unwrap_err();
    assert_eq!((error.kind, error.code), (Kind::Refused, "expired"));
}

#[tokio::test]
async fn a_folder_leads_nowhere_else() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let path = folder(&fleet);
    let blob = path.join(model_path());
    let elsewhere = fleet.dir.path().join("elsewhere");
    std::fs::rename(&blob, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &blob).unwrap();
    let error = receive(&fleet, &path, &wants[0]).await.unwrap_err();
    assert_eq!((error.kind, error.code), (Kind::Refused, "archive"));
    assert!(error.detail.contains("not a plain file"), "{error}");
}

#[test]
fn what_is_no_archive_is_refused_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar");
    assert!(Local::open_path(&path).is_err());
    std::fs::write(&path, b"PK\x03\x04").unwrap();
    let error = Local::open_path(&path).unwrap_err().to_string();
    assert!(error.contains("was it copied whole?"), "{error}");
    std::fs::write(&path, [b'x'; 2048]).unwrap();
    let error = Local::open_path(&path).unwrap_err().to_string();
    assert!(error.contains("plain ustar archive"), "{error}");
}
