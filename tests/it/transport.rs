//! Bundles on their ways to whole devices: over MQTT alone, and by hand.

#![allow(clippy::unwrap_used, clippy::panic)]

use dunlin::export::{Exported, Origin, export};
use dunlin_agent::config::Settings;
use dunlin_agent::device::{Phase, State};
use dunlin_agent::files::Disk;
use dunlin_agent::install::{Outcome, Wish, outcome, submit};
use dunlin_agent::ledger::Ledger;
use dunlin_protocol::command::Probation;
use dunlin_protocol::telemetry::Body;
use dunlin_server::rollout::model::RolloutState;
use dunlin_tests::fleet::{Broker, Fleet, FleetBuilder};
use dunlin_tests::operator::{TIMEOUT, all_at_once, eventually, probation};
use std::path::{Path, PathBuf};

const PROGRAM: &str = env!("CARGO_BIN_EXE_dunlin-under-test");

fn fleet(devices: usize) -> FleetBuilder {
    FleetBuilder::new(PROGRAM).devices(devices)
}

/// Waits for a device's word that it fetched a version by a patch, and so less than all of it.
async fn came_by_a_patch(fleet: &Fleet, at: usize, version: u64) {
    let device = &fleet.devices[at].id;
    let detail = eventually("the cost of an update is told", async || {
        let events = fleet.server().store.events(device, 1000).await?;
        let mut details = events
            .iter()
            .filter_map(|stored| match &stored.record.body {
                Body::Event(event) if event.code == "bundle_fetched" => Some(event.detail.clone()),
                _ => None,
            });
        let start = format!("version {version}: ");
        let found = details.find(|detail| detail.starts_with(&start));
        Ok(found.ok_or_else(|| "not told".to_owned()))
    });
    let detail = detail.await.unwrap();
    assert!(detail.ends_with(", by a patch"), "{detail}");
    let numbers: Vec<u64> = detail
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect();
    let [_, fetched, whole, saved] = numbers[..] else {
        panic!("{detail}");
    };
    assert!(fetched < whole && fetched + saved == whole, "{detail}");
}

async fn roll_out(fleet: &mut Fleet, model: &str, version: u64) {
    let packed = fleet.operator.pack(model, version, 1).unwrap();
    fleet.operator.publish(&packed).await.unwrap();
    let id = fleet
        .operator
        .roll_out(version, all_at_once(1))
        .await
        .unwrap();
    let ended = fleet.operator.ended(&id).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished, "{:?}", ended.report);
}

/// HTTPS serves nobody: what arrives came over MQTT.
async fn versions_arrive_over_mqtt_alone(broker: Broker) {
    let mut fleet = fleet(2)
        .broker(broker)
        .transport("mqtt")
        .boot()
        .await
        .unwrap();
    roll_out(&mut fleet, "v1", 1).await;
    roll_out(&mut fleet, "v2", 2).await;
    for (at, device) in fleet.devices.iter().enumerate() {
        fleet.operator.on_version(&device.id, 2).await.unwrap();
        came_by_a_patch(&fleet, at, 2).await;
    }
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn versions_arrive_over_mqtt_alone_over_the_embedded_broker() {
    versions_arrive_over_mqtt_alone(Broker::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn versions_arrive_over_mqtt_alone_over_mosquitto() {
    versions_arrive_over_mqtt_alone(Broker::Mosquitto).await;
}

async fn exported(fleet: &Fleet, out: &Path) -> Exported {
    let origin = Origin::Server(Box::new(fleet.operator.client().clone()));
    let (family, now) = (&fleet.operator.family, jiff::Timestamp::now());
    export(&origin, family, None, &[], out, now, &mut |_| {})
        .await
        .unwrap()
}

fn wish(from: PathBuf) -> Wish {
    Wish {
        from,
        family: None,
        version: None,
        probation: probation(),
    }
}

async fn installed(settings: &Settings, wish: &Wish) -> Outcome {
    let request = submit(settings, wish, &mut |_| {}).await.unwrap();
    outcome(settings, &request, TIMEOUT, &mut |_| {})
        .await
        .unwrap()
}

fn state(settings: &Settings) -> State {
    let disk = Disk::native();
    let ledger = Ledger::new(&disk, &settings.state_dir);
    ledger.load().unwrap().unwrap()
}

fn version(settings: &Settings) -> Option<u64> {
    state(settings)
        .active()
        .first()
        .map(|active| active.version)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_file_installs_on_devices_whose_server_is_gone() {
    let mut fleet = fleet(2).boot().await.unwrap();
    roll_out(&mut fleet, "v1", 1).await;
    let v2 = fleet.operator.pack("v2", 2, 1).unwrap();
    fleet.operator.publish(&v2).await.unwrap();
    let out = fleet.dir.path().join("digits.tar");
    let done = exported(&fleet, &out).await;
    assert_eq!((done.version, done.digest), (2, v2.digest()));
    assert!(done.valid_until > jiff::Timestamp::now());
    // The same repository, the same bytes.
    let again = fleet.dir.path().join("again.tar");
    exported(&fleet, &again).await;
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&again).unwrap());

    fleet.stop_server().await;
    let settings = fleet.devices[0].settings.clone();
    assert_eq!(
        installed(&settings, &wish(out.clone())).await,
        Outcome::Succeeded
    );
    assert_eq!(version(&settings), Some(2));
    assert!(!settings.state_dir.join("inbox/request.json").exists());

    // The other one's agent does not run when the file is put in; the stick is gone when it does.
    fleet.devices[1].stop().await.unwrap();
    let settings = fleet.devices[1].settings.clone();
    let request = submit(&settings, &wish(out.clone()), &mut |_| {})
        .await
        .unwrap();
    std::fs::remove_file(&out).unwrap();
    assert_eq!(version(&settings), Some(1));
    fleet.start_device(1).unwrap();
    let ended = outcome(&settings, &request, TIMEOUT, &mut |_| {}).await;
    assert_eq!(ended.unwrap(), Outcome::Succeeded);
    assert_eq!(version(&settings), Some(2));
    fleet.end().await.unwrap();
}

/// What somebody types; what it printed.
async fn typed(fleet: &Fleet, line: &str) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new(PROGRAM);
    let admin = format!("http://{}", fleet.server().admin);
    let token = fleet.server().first_admin_token.clone().unwrap();
    let output = command
        .env("DUNLIN_SERVER", admin)
        .env("DUNLIN_TOKEN", token)
        .current_dir(fleet.dir.path())
        .args(line.split_whitespace())
        .output();
    let output = output.await.unwrap();
    let (out, err) = (output.stdout, output.stderr);
    let text = String::from_utf8_lossy(&out).into_owned() + &String::from_utf8_lossy(&err);
    (output.status.code(), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_two_commands_bring_a_version_by_hand_and_patches_spare_most_of_it() {
    let mut fleet = fleet(1).boot().await.unwrap();
    roll_out(&mut fleet, "v1", 1).await;
    let v2 = fleet.operator.pack("v2", 2, 1).unwrap();
    fleet.operator.publish(&v2).await.unwrap();
    let (status, said) = typed(
        &fleet,
        "bundle export --family digits --patch-from 1 -o stick.tar",
    )
    .await;
    assert_eq!(status, Some(0), "{said}");
    let install = "agent install stick.tar --config dev-01/agent.toml";
    let (status, said) = typed(
        &fleet,
        &format!("{install} --probation-inferences 5 --probation-s 1"),
    )
    .await;
    assert_eq!(status, Some(0), "{said}");
    for words in ["signatures, floors and hardware are right", "installed:"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(version(&fleet.devices[0].settings), Some(2));
    came_by_a_patch(&fleet, 0, 2).await;

    // The server's next version over HTTPS, on top of what was brought.
    roll_out(&mut fleet, "v3", 3).await;
    came_by_a_patch(&fleet, 0, 3).await;
    // Older metadata than the device has seen by now.
    let (status, said) = typed(&fleet, install).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("refused (rollback"), "{said}");
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bad_file_is_refused_while_somebody_stands_there() {
    let mut fleet = fleet(1).boot().await.unwrap();
    roll_out(&mut fleet, "v1", 1).await;
    let out = fleet.dir.path().join("digits.tar");
    exported(&fleet, &out).await;
    let settings = fleet.devices[0].settings.clone();
    let whole = std::fs::read(&out).unwrap();
    let refused = async |bytes: &[u8], words: &str| {
        std::fs::write(&out, bytes).unwrap();
        let error = submit(&settings, &wish(out.clone()), &mut |_| {}).await;
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains(words), "{error}");
        assert!(!settings.state_dir.join("inbox/request.json").exists());
    };
    refused(&whole[..whole.len() / 2], "was it copied whole?").await;
    // A flipped bit in the manifest, and one in a blob, which begins one header after its name.
    let flipped = |what: &[u8], beyond: usize| {
        let at = whole.windows(what.len()).position(|w| w == what).unwrap();
        let mut bytes = whole.clone();
        bytes[at + beyond] ^= 1;
        bytes
    };
    refused(&flipped(b"dunlin.manifest/1", 0), "refused (hash)").await;
    refused(&flipped(b"blobs/", 512 + 10), "its bytes have SHA-256").await;
    std::fs::write(&out, &whole).unwrap();
    let nowhere = Wish {
        version: Some(7),
        ..wish(out.clone())
    };
    let error = submit(&settings, &nowhere, &mut |_| {}).await.unwrap_err();
    assert!(
        error.to_string().ends_with("holds digits version 1"),
        "{error}"
    );
    // What is kept already is kept.
    assert_eq!(installed(&settings, &wish(out)).await, Outcome::Succeeded);
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_servers_next_word_wins_over_a_file() {
    let mut fleet = fleet(1).boot().await.unwrap();
    roll_out(&mut fleet, "v1", 1).await;
    let v2 = fleet.operator.pack("v2", 2, 1).unwrap();
    fleet.operator.publish(&v2).await.unwrap();
    let out = fleet.dir.path().join("digits.tar");
    exported(&fleet, &out).await;
    let settings = fleet.devices[0].settings.clone();
    // A probation that no time is long enough for.
    let endless = Wish {
        probation: Probation {
            inferences: u64::MAX,
            ..probation()
        },
        ..wish(out)
    };
    let request = submit(&settings, &endless, &mut |_| {}).await.unwrap();
    eventually("it is on probation", async || {
        let state = state(&settings);
        let model = state.models.into_values().next().unwrap_or_default();
        Ok(match &model.phase {
            Phase::Probation { want, .. } if want.version == 2 => Ok(()),
            other => Err(format!("{other:?}")),
        })
    })
    .await
    .unwrap();
    // The server's same word is said again at every connect; the next is another rollout.
    fleet.operator.roll_out(1, all_at_once(2)).await.unwrap();
    let watched = outcome(&settings, &request, TIMEOUT, &mut |_| {}).await;
    assert_eq!(watched.unwrap(), Outcome::Superseded);
    fleet
        .operator
        .on_version(&fleet.devices[0].id, 1)
        .await
        .unwrap();
    fleet.end().await.unwrap();
}
