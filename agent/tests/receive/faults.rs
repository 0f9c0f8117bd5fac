//! One test a fault: what the device says of it, and what it keeps.

use super::repository::{Release, model};
use super::server::Fault;
use super::{Fleet, info, limits, receiver_on, receiver_with};
use dunlin_agent::bundle::{Kind, UpdateError, stage};
use dunlin_agent::files::Disk;
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::SigningKey;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

fn kind_and_code(error: &UpdateError) -> (Kind, &'static str) {
    (error.kind, error.code)
}

fn model_path() -> String {
    format!("blobs/{}", Digest::of(&model(1)))
}

#[tokio::test]
async fn a_cut_download_is_resumed_where_it_broke_off() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    fleet
        .server
        .spoil(&model_path(), Fault::CutAfterOnce(500_000));
    let error = fleet.receive(&wants[0]).await.unwrap_err();
    assert_eq!(
        kind_and_code(&error),
        (Kind::Transient, "broken"),
        "{error}"
    );
    assert_eq!(stage::read(&Disk::native(), &fleet.slot("a")), None);
    fleet.server.asked("");
    fleet.receive(&wants[0]).await.unwrap();
    let asked = fleet.server.asked(&model_path());
    assert_eq!(asked, [(model_path(), 500_000)]);
    assert_eq!(
        stage::read(&Disk::native(), &fleet.slot("a")),
        Some(info(&wants[0]))
    );
}

#[tokio::test]
async fn cut_after_every_piece_it_goes_on_from_there() {
    const PIECE: usize = 20_000;
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let pieces = model(1).len() / PIECE;
    for _ in 1..pieces {
        fleet
            .server
            .spoil(&model_path(), Fault::CutAfterOnce(PIECE));
        let error = fleet.receive(&wants[0]).await.unwrap_err();
        assert_eq!(error.kind, Kind::Transient, "{error}");
        assert_eq!(stage::read(&Disk::native(), &fleet.slot("a")), None);
    }
    fleet.server.heal();
    fleet.receive(&wants[0]).await.unwrap();
    assert_eq!(
        stage::read(&Disk::native(), &fleet.slot("a")),
        Some(info(&wants[0]))
    );
    let asked = fleet.server.asked(&model_path());
    let expected = (0..pieces).map(|n| (model_path(), (n * PIECE) as u64));
    assert_eq!(asked, expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn a_server_without_ranges_starts_over() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    fleet
        .server
        .spoil(&model_path(), Fault::CutAfterOnce(500_000));
    fleet.receive(&wants[0]).await.unwrap_err();
    fleet.server.spoil(&model_path(), Fault::NoRanges);
    fleet.receive(&wants[0]).await.unwrap();
}

#[tokio::test]
async fn a_flipped_bit_is_fetched_once_more_and_then_refused() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    fleet.server.spoil(&model_path(), Fault::FlippedBit);
    let error = fleet.receive(&wants[0]).await.unwrap_err();
    assert_eq!(kind_and_code(&error), (Kind::Refused, "hash"));
    let expected = Digest::of(&model(1)).to_string();
    assert!(
        error.detail.starts_with("model.onnx: SHA-256 is "),
        "{error}"
    );
    assert!(error.detail.contains(&expected), "{error}");
    assert_eq!(fleet.server.asked(&model_path()).len(), 2);
    assert_eq!(fleet.partials(), 0);
    assert_eq!(stage::read(&Disk::native(), &fleet.slot("a")), None);

    fleet.server.spoil(&model_path(), Fault::FlippedBitOnce);
    fleet.receive(&wants[0]).await.unwrap();
}

#[tokio::test]
async fn a_flipped_bit_in_manifest_or_metadata_is_refused() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    for (path, codes) in [
        ("targets/", &["hash"][..]),
        ("metadata/1.snapshot.json", &["hash"]),
        ("metadata/1.targets.json", &["hash"]),
        (
            "metadata/timestamp.json",
            &["threshold", "not_json", "bad_field"],
        ),
    ] {
        fleet.server.spoil(path, Fault::FlippedBit);
        let dir = tempfile::tempdir().unwrap();
        dunlin_agent::bundle::TrustStore::new(&Disk::native(), dir.path())
            .adopt_root(&fleet.repository.metadata("1.root.json"))
            .unwrap();
        let receiver = super::receiver(&fleet.server, &dir);
        let error = receiver
            .receive(&wants[0], Timestamp::now(), &fleet.slot("a"), |_, _| {})
            .await
            .unwrap_err();
        assert_eq!(error.kind, Kind::Refused, "{path}: {error}");
        assert!(codes.contains(&error.code), "{path}: {error}");
    }
}

#[tokio::test]
async fn targets_signed_by_too_few_keys_are_refused() {
    let mut fleet = Fleet::new().await;
    let want = fleet.repository.add(&Release::version(1));
    let one = SigningKey::from_seed(&[2; 32]);
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
    fleet.repository.publish_by(&[&one, &one], tomorrow);
    fleet.upload();
    let error = fleet.receive(&want).await.unwrap_err();
    assert_eq!(kind_and_code(&error), (Kind::Refused, "threshold"));
    assert!(error.detail.contains("1 of the 2 distinct keys"), "{error}");
    assert!(fleet.server.asked("blobs/").is_empty());
}

#[tokio::test]
async fn a_version_below_the_floor_is_refused_also_when_the_floor_is_gone() {
    let raised = Release {
        floor: 2,
        ..Release::version(2)
    };
    let (fleet, wants) = Fleet::with(&[Release::version(1), raised]).await;
    let error = fleet.receive(&wants[0]).await.unwrap_err();
    assert_eq!(kind_and_code(&error), (Kind::Refused, "below_floor"));

    // The same keys now list version 1 alone; the device remembers.
    let mut later = super::Repository::new();
    let want = later.add(&Release::version(1));
    for _ in 0..3 {
        later.publish();
    }
    fleet.server.content.lock().unwrap().files = later.files;
    let error = fleet.receive(&want).await.unwrap_err();
    assert_eq!(kind_and_code(&error), (Kind::Refused, "below_floor"));
}

#[tokio::test]
async fn other_hardware_and_too_small_devices_are_refused_before_any_download() {
    let elsewhere = Release {
        hardware: "raspberry-pi",
        ..Release::version(1)
    };
    let large = Release {
        ram_bytes: 1 << 40,
        ..Release::version(2)
    };
    let foreign = Release {
        arch: "aarch64",
        ..Release::version(3)
    };
    let late = Release {
        agent_min: "99.0.0",
        ..Release::version(4)
    };
    let (fleet, wants) = Fleet::with(&[elsewhere, large, foreign, late]).await;
    let error = fleet.receive(&wants[0]).await.unwrap_err();
    assert_eq!(kind_and_code(&error), (Kind::Refused, "hardware"));
    assert!(error.detail.contains("jetson"), "{error}");
    for (want, words) in wants[1..].iter().zip(["memory", "aarch64", "99.0.0"]) {
        let error = fleet.receive(want).await.unwrap_err();
        assert_eq!(kind_and_code(&error), (Kind::Refused, "unfit"));
        assert!(error.detail.contains(words), "{error}");
    }
    assert!(fleet.server.asked("blobs/").is_empty());
}

#[tokio::test]
async fn a_device_counts_the_memory_of_its_other_models() {
    let most = Release {
        ram_bytes: (1 << 30) - (1 << 19),
        ..Release::version(2)
    };
    let (fleet, wants) = Fleet::with(&[Release::version(1), most]).await;
    let models = fleet.dir.path().join("models");
    let receive = async |want, slot: &str| {
        let slot = models.join(slot);
        let received = fleet
            .receiver
            .receive(want, Timestamp::now(), &slot, |_, _| {});
        received.await
    };
    // It fits alone, and not beside another one that serves.
    receive(&wants[0], "faces/a").await.unwrap();
    receive(&wants[1], "digits/a").await.unwrap();
    std::os::unix::fs::symlink("a", models.join("faces/current")).unwrap();
    let error = receive(&wants[1], "digits/b").await.unwrap_err();
    assert_eq!(kind_and_code(&error), (Kind::Refused, "unfit"));
    let beside = "(1048576 bytes of memory are the other models')";
    assert!(error.detail.contains(beside), "{error}");
}

#[tokio::test]
async fn an_update_leaves_disk_to_the_rest_of_the_device() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let slot = fleet.slot("a");
    let on = |bytes| receiver_on(&fleet.server, &fleet.dir, limits(), bytes);
    let small = on((16 << 20) + 1_000_000);
    let error = small
        .receive(&wants[0], Timestamp::now(), &slot, |_, _| {})
        .await
        .unwrap_err();
    assert_eq!(kind_and_code(&error), (Kind::Refused, "unfit"));
    assert!(error.detail.contains("in reserve"), "{error}");
    assert!(fleet.server.asked("blobs/").is_empty());
    on(20 << 20)
        .receive(&wants[0], Timestamp::now(), &slot, |_, _| {})
        .await
        .unwrap();
    // What is on the device already needs no room.
    small
        .receive(&wants[0], Timestamp::now(), &slot, |_, _| {})
        .await
        .unwrap();
}

/// Bytes of all files below a folder, those with several names once.
fn used_bytes(folder: &Path, seen: &mut BTreeSet<u64>) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap();
    let size = |entry: std::fs::DirEntry| {
        let found = entry.metadata().unwrap();
        match found.is_dir() {
            true => used_bytes(&entry.path(), seen),
            false if seen.insert(found.ino()) => found.len(),
            false => 0,
        }
    };
    entries.map(Result::unwrap).map(size).sum()
}

#[tokio::test]
async fn on_a_small_disk_the_version_before_gives_way_to_the_next() {
    let (fleet, wants) = Fleet::with(&[1, 2, 3].map(Release::version)).await;
    // Two versions and a bit fit, and the reserve.
    let folder = fleet.dir.path().to_owned();
    let capacity = used_bytes(&folder, &mut BTreeSet::new()) + (16 << 20) + 2_900_000;
    let free = move || capacity.saturating_sub(used_bytes(&folder, &mut BTreeSet::new()));
    let small = super::receiver_where(&fleet.server, &fleet.dir, limits(), free);
    let put = async |want, slot: &str| {
        let slot = fleet.slot(slot);
        small
            .receive(want, Timestamp::now(), &slot, |_, _| {})
            .await
    };
    put(&wants[0], "a").await.unwrap();
    put(&wants[1], "b").await.unwrap();
    // Half fetched is the third when there is no room for it but the first's.
    let third = format!("blobs/{}", Digest::of(&model(3)));
    fleet.server.spoil(&third, Fault::CutAfterOnce(500_000));
    let error = put(&wants[2], "a").await.unwrap_err();
    assert_eq!(
        kind_and_code(&error),
        (Kind::Transient, "broken"),
        "{error}"
    );
    fleet.server.asked("");
    put(&wants[2], "a").await.unwrap();
    assert_eq!(fleet.server.asked("blobs/"), [(third, 500_000)]);
    let held = |slot: &str| stage::read(&Disk::native(), &fleet.slot(slot));
    assert_eq!(held("a"), Some(info(&wants[2])));
    assert_eq!(held("b"), Some(info(&wants[1])));
    // What is kept was not touched.
    put(&wants[1], "b").await.unwrap();
    assert!(fleet.server.asked("blobs/").is_empty());
    // Where nothing may go, it does not fit.
    let error = put(&wants[0], "c").await.unwrap_err();
    assert_eq!(kind_and_code(&error), (Kind::Refused, "unfit"), "{error}");
    assert_eq!(held("b"), Some(info(&wants[1])));
}

#[tokio::test]
async fn what_was_asked_for_must_be_what_is_signed() {
    let (fleet, mut wants) = Fleet::with(&[Release::version(1)]).await;
    let mut want = wants.remove(0);
    want.digest = Digest::of(b"another");
    assert_eq!(fleet.receive(&want).await.unwrap_err().code, "hash");
    want.version = 9;
    assert_eq!(fleet.receive(&want).await.unwrap_err().code, "wrong_target");
    want.target = "digits/9/manifest.json".to_owned();
    let error = fleet.receive(&want).await.unwrap_err();
    assert_eq!(kind_and_code(&error), (Kind::Refused, "unknown_target"));
}

#[tokio::test]
async fn an_expired_timestamp_installs_nothing_whatever_the_clock_says() {
    let (mut fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    fleet.receive(&wants[0]).await.unwrap();
    let keys = [
        SigningKey::from_seed(&[2; 32]),
        SigningKey::from_seed(&[3; 32]),
    ];
    let past = Timestamp::now() - SignedDuration::from_hours(1);
    fleet.repository.publish_by(&[&keys[0], &keys[1]], past);
    fleet.upload();
    let slot = fleet.slot("b");
    for clock in [Timestamp::now(), past - SignedDuration::from_hours(1)] {
        let error = fleet
            .receiver
            .receive(&wants[0], clock, &slot, |_, _| {})
            .await
            .unwrap_err();
        assert_eq!(
            kind_and_code(&error),
            (Kind::Transient, "expired"),
            "{error}"
        );
    }
    // What runs is not touched.
    assert_eq!(
        stage::read(&Disk::native(), &fleet.slot("a")),
        Some(info(&wants[0]))
    );
}

#[tokio::test]
async fn metadata_from_yesterday_are_refused() {
    let (mut fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let yesterday = fleet.repository.files.clone();
    fleet.repository.publish();
    fleet.upload();
    fleet.receive(&wants[0]).await.unwrap();
    fleet.server.content.lock().unwrap().files = yesterday;
    let error = fleet.receive(&wants[0]).await.unwrap_err();
    assert_eq!(kind_and_code(&error), (Kind::Refused, "rollback"));
}

#[tokio::test]
async fn endless_data_end_at_the_signed_length() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    for path in ["metadata/timestamp.json", "targets/", "blobs/"] {
        fleet.server.spoil(path, Fault::Endless);
        let error = fleet.receive(&wants[0]).await.unwrap_err();
        let (kind, code) = kind_and_code(&error);
        assert_eq!(
            (kind, code),
            (Kind::Refused, "too_large"),
            "{path}: {error}"
        );
    }
    fleet.server.heal();
    fleet.receive(&wants[0]).await.unwrap();
}

#[tokio::test]
async fn a_slow_or_silent_server_is_given_up() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let mut limits = limits();
    limits.rate_window = Duration::from_millis(100);
    limits.request_timeout = Duration::from_millis(300);
    let receiver = receiver_with(&fleet.server, &fleet.dir, limits);
    let slot = fleet.slot("a");
    fleet.server.spoil(&model_path(), Fault::Stalls);
    let error = receiver
        .receive(&wants[0], Timestamp::now(), &slot, |_, _| {})
        .await
        .unwrap_err();
    assert_eq!(
        kind_and_code(&error),
        (Kind::Transient, "too_slow"),
        "{error}"
    );

    limits.rate_window = Duration::from_secs(30);
    let receiver = receiver_with(&fleet.server, &fleet.dir, limits);
    let error = receiver
        .receive(&wants[0], Timestamp::now(), &slot, |_, _| {})
        .await
        .unwrap_err();
    assert_eq!(
        kind_and_code(&error),
        (Kind::Transient, "timeout"),
        "{error}"
    );

    limits.connect_timeout = Duration::from_millis(300);
    let receiver = receiver_with(&fleet.server, &fleet.dir, limits);
    fleet.server.spoil("metadata/timestamp.json", Fault::Silent);
    let error = receiver
        .receive(&wants[0], Timestamp::now(), &slot, |_, _| {})
        .await
        .unwrap_err();
    assert_eq!(
        kind_and_code(&error),
        (Kind::Transient, "timeout"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_in_trouble_is_tried_again_later() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    for (path, code, reported, words) in [
        (model_path(), 404, "status", "404"),
        (
            "metadata/timestamp.json".to_owned(),
            404,
            "missing",
            "no such file",
        ),
        ("metadata/1.targets.json".to_owned(), 503, "status", "503"),
        ("metadata/2.root.json".to_owned(), 500, "status", "500"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        dunlin_agent::bundle::TrustStore::new(&Disk::native(), dir.path())
            .adopt_root(&fleet.repository.metadata("1.root.json"))
            .unwrap();
        fleet
            .server
            .content
            .lock()
            .unwrap()
            .files
            .entry(path.clone())
            .or_default()
            .push(b' ');
        fleet.server.spoil(&path, Fault::Status(code));
        let error = super::receiver(&fleet.server, &dir)
            .receive(&wants[0], Timestamp::now(), &fleet.slot("a"), |_, _| {})
            .await
            .unwrap_err();
        assert_eq!(
            kind_and_code(&error),
            (Kind::Transient, reported),
            "{error}"
        );
        assert!(error.detail.contains(words), "{error}");
        fleet.upload();
    }
}

#[tokio::test]
async fn without_a_trust_root_nothing_is_taken() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    std::fs::remove_file(fleet.dir.path().join("trust/root.json")).unwrap();
    let error = fleet.receive(&wants[0]).await.unwrap_err();
    assert_eq!(kind_and_code(&error), (Kind::Refused, "no_root"));
}

#[tokio::test]
async fn bandwidth_is_capped() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let mut limits = limits();
    limits.bandwidth_bytes_s = 4_000_000;
    let receiver = receiver_with(&fleet.server, &fleet.dir, limits);
    let begun = std::time::Instant::now();
    let slot = fleet.slot("a");
    receiver
        .receive(&wants[0], Timestamp::now(), &slot, |_, _| {})
        .await
        .unwrap();
    // 1.2 MB at 4 MB a second.
    assert!(begun.elapsed() >= Duration::from_millis(290));
}
