//! Devices that run models of two families, each rolled out by itself.

#![allow(clippy::unwrap_used, clippy::panic)]

use dunlin::api::CreateRollout;
use dunlin::pack::{PackRequest, pack};
use dunlin_protocol::bundle::Manifest;
use dunlin_protocol::command::{Probation, Shadow};
use dunlin_protocol::id::{DeviceId, Digest};
use dunlin_protocol::report::{ModelReport, Progress};
use dunlin_server::rollout::model::RolloutState;
use dunlin_tests::fleet::{Fleet, FleetBuilder};
use dunlin_tests::http;
use dunlin_tests::operator::{all_at_once, eventually, probation};
use dunlin_tests::process::{children_of, kill_child};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Levels of a running mean, kept for each stream.
const LEVEL: &str = "running-level";

fn recipe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/running-level/bundle.toml")
}

/// Signs and publishes a version of the second family.
async fn publish_level(fleet: &mut Fleet, version: u64) {
    let request = PackRequest {
        version: Some(version),
        ..PackRequest::new(recipe())
    };
    let out = fleet.dir.path().join(format!("level-{version}"));
    let packed = pack(&request, &out).unwrap().0;
    fleet.operator.publish(&packed).await.unwrap();
}

async fn roll_out_level(fleet: &Fleet, version: u64) -> RolloutState {
    let request = CreateRollout {
        family: LEVEL.parse().unwrap(),
        version,
        policy: Some(all_at_once(3)),
        selector: None,
        // Nobody asks for it yet.
        probation: Some(Probation {
            inferences: 0,
            time_ms: 500,
            ..Probation::default()
        }),
    };
    let id = fleet
        .operator
        .client()
        .create_rollout(&request)
        .await
        .unwrap()
        .id;
    fleet.operator.ended(&id).await.unwrap().state
}

async fn roll_out_digits(fleet: &mut Fleet, model: &str, version: u64) {
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

/// What a device reports of a family.
async fn model(fleet: &Fleet, device: &DeviceId, family: &str) -> Option<ModelReport> {
    let reported = fleet.operator.reported(device).await.unwrap()?;
    reported.of(&family.parse().unwrap())
}

async fn settled(fleet: &Fleet, device: &DeviceId, expected: &[(&str, u64)]) {
    eventually("every model is settled", async || {
        let mut seen = Vec::new();
        for (family, version) in expected {
            let model = model(fleet, device, family).await;
            let active = model.as_ref().and_then(|m| m.active.as_ref());
            let is_done = model
                .as_ref()
                .is_some_and(|m| m.progress == Progress::Succeeded);
            if !is_done || active.is_none_or(|a| a.version != *version) {
                seen.push(format!("{family}: {model:?}"));
            }
        }
        Ok(if seen.is_empty() {
            Ok(())
        } else {
            Err(seen.join("; "))
        })
    })
    .await
    .unwrap();
}

async fn served(socket: &Path) -> anyhow::Result<Vec<String>> {
    let ask = http::request("POST", "/v2/repository/index", &[], b"{}");
    let index = http::over_unix(socket, &ask).await?.json();
    let models = index.as_array().cloned().unwrap_or_default();
    let name = |m: &Value| {
        format!(
            "{}/{}",
            m["name"].as_str().unwrap(),
            m["version"].as_str().unwrap()
        )
    };
    Ok(models.iter().map(name).collect())
}

/// Asks the level of a stream after one more sample.
async fn level(socket: &Path, start: bool, samples: [i16; 4]) -> Value {
    let body = json!({
        "parameters": {"sequence_id": "pump-7", "sequence_start": start},
        "inputs": [{"name": "samples", "datatype": "INT16", "shape": [1, 4], "data": samples}],
    });
    let path = format!("/v2/models/{LEVEL}/infer");
    let headers = [("content-type", "application/json")];
    let request = http::request("POST", &path, &headers, body.to_string().as_bytes());
    http::over_unix(socket, &request).await.unwrap().json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_families_are_rolled_out_served_and_replaced_each_by_itself() {
    let builder = FleetBuilder::new(env!("CARGO_BIN_EXE_dunlin-under-test")).devices(2);
    let mut fleet = builder.boot().await.unwrap();
    roll_out_digits(&mut fleet, "v1", 1).await;
    publish_level(&mut fleet, 1).await;
    assert_eq!(roll_out_level(&fleet, 1).await, RolloutState::Finished);
    let devices: Vec<DeviceId> = fleet.devices.iter().map(|d| d.id.clone()).collect();
    for device in &devices {
        settled(&fleet, device, &[("digits", 1), (LEVEL, 1)]).await;
    }
    let socket = fleet.devices[0].settings.inference.socket.clone();
    assert_eq!(
        served(&socket).await.unwrap(),
        ["digits/1", "running-level/1"]
    );
    let first = level(&socket, true, [900; 4]).await;
    assert!(first["outputs"][0]["data"][0].is_number(), "{first}");

    // A newer version of one leaves the other where it is, its streams too.
    let before = model(&fleet, &devices[0], LEVEL).await;
    roll_out_digits(&mut fleet, "v2", 2).await;
    for device in &devices {
        settled(&fleet, device, &[("digits", 2), (LEVEL, 1)]).await;
    }
    assert_eq!(model(&fleet, &devices[0], LEVEL).await, before);
    let second = level(&socket, false, [0; 4]).await;
    // Of nothing but silence it would be 0.
    assert_ne!(second["outputs"][0]["data"][0], json!(0.0), "{second}");

    // Devices are found by either, and shown with both.
    for (family, version, found) in [("digits", 2, 2), (LEVEL, 1, 2), (LEVEL, 2, 0)] {
        let query = [
            ("family", family.to_owned()),
            ("version", version.to_string()),
        ];
        assert_eq!(
            fleet.operator.client().devices(&query).await.unwrap().len(),
            found
        );
    }
    let shown = fleet.operator.client().device(&devices[0]).await.unwrap();
    assert_eq!(shown["models"].as_array().unwrap().len(), 2);
    assert_eq!(shown["active"].as_array().unwrap().len(), 2);

    // A restart, and the death of the worker, bring both back.
    fleet.restart_device(0).await.unwrap();
    both_serve(&socket).await;
    worker_comes_back(&fleet, &socket).await;
    for device in &fleet.devices {
        what_is_in_use_is_kept(&device.settings.state_dir);
    }
    let fed = fleet.stop_streams().await.unwrap();
    println!("{fed:?}");
    fleet.end().await.unwrap();
}

/// What serves of either family can be patched from, or gone back to, without another download.
fn what_is_in_use_is_kept(state_dir: &Path) {
    for family in ["digits", LEVEL] {
        let link = state_dir.join("models").join(family).join("current");
        let bytes = std::fs::read(link.join("manifest.json")).unwrap();
        let manifest = Manifest::parse(&bytes).unwrap();
        let files = manifest.files.named().into_iter();
        for digest in files
            .map(|(_, file)| file.sha256)
            .chain([Digest::of(&bytes)])
        {
            let blob = state_dir.join("blobs").join(digest.to_string());
            assert!(blob.exists(), "{family}: {}", blob.display());
        }
    }
}

async fn both_serve(socket: &Path) {
    eventually("both serve", async || {
        let served = served(socket).await.unwrap_or_default();
        Ok(if served == ["digits/2", "running-level/1"] {
            Ok(())
        } else {
            Err(format!("{served:?}"))
        })
    })
    .await
    .unwrap();
}

/// The worker of a device; the devices of this test run in this process.
fn worker_of(socket: &Path) -> Option<i32> {
    let name = socket.to_str().unwrap().as_bytes();
    children_of(i32::try_from(std::process::id()).unwrap())
        .into_iter()
        .find(|child| {
            let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            line.split(|b| *b == 0).any(|word| word == name)
        })
}

async fn worker_comes_back(fleet: &Fleet, socket: &Path) {
    let before = worker_of(socket).unwrap();
    kill_child(before).unwrap();
    let killed = Instant::now();
    eventually("another worker", async || {
        let now = worker_of(socket);
        Ok(if now.is_some_and(|now| now != before) {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        })
    })
    .await
    .unwrap();
    both_serve(socket).await;
    println!(
        "both models serve again {:?} after the worker was killed",
        killed.elapsed()
    );
    for device in &fleet.devices {
        settled(fleet, &device.id, &[("digits", 2), (LEVEL, 1)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_version_goes_through_the_shadow_before_it_serves() {
    let builder = FleetBuilder::new(env!("CARGO_BIN_EXE_dunlin-under-test"));
    let mut fleet = builder.boot().await.unwrap();
    roll_out_digits(&mut fleet, "v1", 1).await;
    let device = fleet.devices[0].id.clone();
    for (name, version) in [("v2", 2), ("v3", 3)] {
        let packed = fleet.operator.pack(name, version, 1).unwrap();
        fleet.operator.publish(&packed).await.unwrap();
    }
    let shadowed = |agreement_permille_min| Probation {
        shadow: Some(Shadow {
            comparisons: 40,
            sample_permille: 1000,
            cpu_permille: 1000,
            agreement_permille_min,
            ..Shadow::default()
        }),
        ..probation()
    };
    // Version 2 was trained anew and answers nearly alike.
    let policy = all_at_once(5);
    let rollout = fleet
        .operator
        .roll_out_under(2, policy, shadowed(Some(800)));
    let rollout = rollout.await.unwrap();
    let seen = eventually("it is in the shadow", async || {
        let model = model(&fleet, &device, "digits").await;
        let seen = model.as_ref().and_then(|m| m.waiting.clone());
        Ok(seen
            .filter(|w| w.code == "shadow")
            .ok_or_else(|| format!("{model:?}")))
    });
    assert!(
        seen.await
            .unwrap()
            .detail
            .contains("of 40 answers compared")
    );
    let ended = fleet.operator.ended(&rollout).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished, "{:?}", ended.report);
    settled(&fleet, &device, &[("digits", 2)]).await;
    let report = model(&fleet, &device, "digits")
        .await
        .unwrap()
        .shadow
        .unwrap();
    assert!(
        report.compared >= 40 && report.agreed * 10 >= report.compared * 8,
        "{report:?}"
    );
    // Version 3 does worse in the field: nobody ever got an answer from it.
    let policy = all_at_once(6);
    let rollout = fleet
        .operator
        .roll_out_under(3, policy, shadowed(Some(1000)));
    rollout.await.unwrap();
    let settled = fleet.operator.settled(&device, 3).await.unwrap();
    assert!(
        matches!(&settled.progress, Progress::Failed(f) if f.code == "shadow_disagrees"),
        "{settled:?}"
    );
    let fed = fleet.stop_streams().await.unwrap();
    assert!(!fed[0].by_version.contains_key(&3), "{fed:?}");
    assert_eq!(fed[0].failed, 0, "{fed:?}");
    fleet.end().await.unwrap();
}
