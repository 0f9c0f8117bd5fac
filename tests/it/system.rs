//! The whole system in one process: broker, server, agents, and each agent's worker beside them.

#![allow(clippy::unwrap_used, clippy::panic)]

use dunlin_protocol::id::Digest;
use dunlin_protocol::report::Progress;
use dunlin_protocol::telemetry::Body;
use dunlin_server::repository::Repository;
use dunlin_server::rollout::model::RolloutState;
use dunlin_server::store::WindowQuery;
use dunlin_tests::fleet::{Broker, Fleet, FleetBuilder};
use dunlin_tests::golden::infer_body;
use dunlin_tests::http::{over_unix, request};
use dunlin_tests::operator::{all_at_once, eventually, gated};

fn fleet(devices: usize) -> FleetBuilder {
    FleetBuilder::new(env!("CARGO_BIN_EXE_dunlin-under-test")).devices(devices)
}

/// Signs, publishes and installs version 1 everywhere.
async fn with_version_one(builder: FleetBuilder) -> Fleet {
    let mut fleet = builder.boot().await.unwrap();
    let v1 = fleet.operator.pack("v1", 1, 1).unwrap();
    fleet.operator.publish(&v1).await.unwrap();
    let id = fleet.operator.roll_out(1, all_at_once(1)).await.unwrap();
    let ended = fleet.operator.ended(&id).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished);
    fleet
}

async fn more_answers(fleet: &Fleet, each: u64) {
    let from: Vec<u64> = fleet.devices.iter().map(|d| d.answers()).collect();
    eventually("answers", async || {
        let now = fleet.devices.iter().map(|d| d.answers());
        let enough = now.zip(&from).all(|(now, from)| now >= from + each);
        Ok(if enough {
            Ok(())
        } else {
            Err("too few".to_owned())
        })
    })
    .await
    .unwrap();
}

/// Inferences of a device's windows in the server's database.
async fn inferences_stored(fleet: &Fleet, at: usize) -> u64 {
    let query = WindowQuery {
        family: fleet.operator.family.clone(),
        version: None,
        devices: Some([fleet.devices[at].id.clone()].into()),
        since_ms: None,
        until_ms: None,
    };
    let windows = fleet.server().store.windows(&query).await.unwrap();
    windows.iter().map(|(_, w)| w.inferences).sum()
}

/// The main job over one broker: a good version goes to the end, a bad one is stopped and its
/// canaries go back, and every answer an application got is in the server's database once.
async fn main_job(broker: Broker) {
    let mut fleet = with_version_one(fleet(10).broker(broker)).await;
    more_answers(&fleet, 180).await;

    let v2 = fleet.operator.pack("v2", 2, 1).unwrap();
    fleet.operator.publish(&v2).await.unwrap();
    let id = fleet.operator.roll_out(2, gated(5, 5_000)).await.unwrap();
    let ended = fleet.operator.ended(&id).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished, "{:?}", ended.report);
    more_answers(&fleet, 180).await;

    let v3 = fleet.operator.pack("v3", 3, 1).unwrap();
    fleet.operator.publish(&v3).await.unwrap();
    let id = fleet.operator.roll_out(3, gated(6, 5_000)).await.unwrap();
    let ended = fleet.operator.ended(&id).await.unwrap();
    assert!(
        matches!(ended.state, RolloutState::Stopped { stage: 0, .. }),
        "{:?}",
        ended.state
    );
    for device in &fleet.devices {
        fleet.operator.on_version(&device.id, 2).await.unwrap();
    }

    let fed = fleet.stop_streams().await.unwrap();
    assert_eq!(
        fed.iter().map(|f| f.failed).sum::<u64>(),
        0,
        "{:?}",
        fed[0].last_failure
    );
    for (at, fed) in fed.iter().enumerate() {
        let answered: u64 = fed.by_version.values().map(|(n, _)| n).sum();
        eventually("every answer is counted once", async || {
            let stored = inferences_stored(&fleet, at).await;
            assert!(stored <= answered, "{stored} stored of {answered}");
            Ok(if stored == answered {
                Ok(())
            } else {
                Err(format!("{stored} of {answered}"))
            })
        })
        .await
        .unwrap();
    }
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_main_job_over_the_embedded_broker() {
    main_job(Broker::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_main_job_over_mosquitto() {
    main_job(Broker::Mosquitto).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_restarted_device_serves_what_it_kept_and_counts_on() {
    let mut fleet = with_version_one(fleet(1)).await;
    more_answers(&fleet, 20).await;
    fleet.restart_device(0).await.unwrap();
    more_answers(&fleet, 20).await;
    fleet
        .operator
        .on_version(&fleet.devices[0].id, 1)
        .await
        .unwrap();
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_device_that_was_away_gets_the_newest_desired_state_when_it_comes_back() {
    let mut fleet = with_version_one(fleet(1)).await;
    fleet.devices[0].stop().await.unwrap();
    fleet.operator.online(0).await.unwrap();
    let v2 = fleet.operator.pack("v2", 2, 1).unwrap();
    fleet.operator.publish(&v2).await.unwrap();
    let id = fleet.operator.roll_out(2, all_at_once(1)).await.unwrap();
    fleet.restart_device(0).await.unwrap();
    let ended = fleet.operator.ended(&id).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished);
    fleet
        .operator
        .on_version(&fleet.devices[0].id, 2)
        .await
        .unwrap();
    fleet.end().await.unwrap();
}

/// Orders a device, past the API's checks, and expects its refusal by this code.
async fn refused(fleet: &Fleet, version: u64, digest: Digest, code: &str) {
    use dunlin_protocol::command::DesiredBundle;
    let (device, family) = (&fleet.devices[0].id, &fleet.operator.family);
    let bundle = DesiredBundle {
        family: family.clone(),
        version,
        target: dunlin_protocol::bundle::target_path(family, version),
        digest,
        rollout: None,
        probation: dunlin_tests::operator::probation(),
        asked: None,
    };
    let desired = [(device.clone(), vec![bundle])];
    fleet.server().store.set_desired(&desired).await.unwrap();
    let reported = fleet.operator.settled(device, version).await.unwrap();
    match reported.progress {
        Progress::Refused(failure) => assert_eq!(failure.code, code, "{}", failure.detail),
        other => panic!("expected a refusal ({code}), got {other:?}"),
    }
    assert_eq!(reported.active.map(|a| a.version), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_the_offline_keys_did_not_sign_is_refused_by_the_device_itself() {
    let mut fleet = with_version_one(fleet(1)).await;
    let v2 = fleet.operator.pack("v2", 2, 1).unwrap();
    fleet.operator.publish(&v2).await.unwrap();
    let id = fleet.operator.roll_out(2, all_at_once(1)).await.unwrap();
    fleet.operator.ended(&id).await.unwrap();

    // The floor rises to 2, which closes version 1; the API refuses it as well.
    let v2 = fleet.operator.pack("v2", 2, 2).unwrap();
    fleet.operator.publish(&v2).await.unwrap();
    let device = fleet.devices[0].id.clone();
    let pinned = fleet
        .operator
        .client()
        .pin_device(&device, &fleet.operator.family, 1)
        .await;
    assert!(pinned.is_err());
    let v1 = fleet.operator.pack("v1", 1, 1).unwrap();
    refused(&fleet, 1, v1.digest(), "below_floor").await;

    // A blob with one flipped bit.
    let v4 = fleet.operator.pack("v3", 4, 2).unwrap();
    fleet.operator.publish(&v4).await.unwrap();
    let blob = v4.manifest.files.model.transport().0.to_string();
    let path = fleet.dir.path().join("server/blobs").join(blob);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    // By a patch the device would do without the blob.
    std::fs::remove_dir_all(fleet.dir.path().join("server/blobs/patches")).unwrap();
    refused(&fleet, 4, v4.digest(), "hash").await;

    // A digest that the signed targets do not have.
    refused(&fleet, 2, Digest::of(b"forged"), "hash").await;

    // One signature of two, under metadata that the server's own keys sign.
    let v5 = fleet.operator.pack("v1", 5, 2).unwrap();
    let few = fleet.operator.signed(std::slice::from_ref(&v5), 1).unwrap();
    let client = fleet.operator.client();
    let published = dunlin::publish::publish(client, std::slice::from_ref(&v5), &few).await;
    assert!(published.is_err());
    let repository = Repository::open(&fleet.dir.path().join("server")).unwrap();
    repository
        .sign_snapshot_and_timestamp(&few, jiff::Timestamp::now())
        .unwrap();
    refused(&fleet, 5, v5.digest(), "threshold").await;
    more_answers(&fleet, 5).await;
    fleet.end().await.unwrap();
}

/// What the device's detectors had seen when its agent last ended in order.
fn answers_watched(fleet: &Fleet) -> u64 {
    let file = fleet.devices[0].settings.state_dir.join("detectors.json");
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    kept[0][1]["answers"].as_u64().unwrap()
}

/// From a sensor to the server's answer, the agent restarted in between: a camera begins to see grey.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_drift_is_detected_on_the_device_and_scored_on_the_server() {
    let mut fleet = with_version_one(fleet(1)).await;
    more_answers(&fleet, 300).await;
    let fed = fleet.stop_streams().await.unwrap();
    let usual: u64 = fed[0].by_version.values().map(|(n, _)| n).sum();
    fleet.restart_device(0).await.unwrap();
    assert_eq!(answers_watched(&fleet), usual);

    let socket = fleet.devices[0].settings.inference.socket.clone();
    let body = infer_body(&serde_json::json!(vec![8.0; 64])).to_string();
    let headers = [("content-type", "application/json")];
    let grey = request("POST", "/v2/models/digits/infer", &headers, body.as_bytes());
    let device = fleet.devices[0].id.clone();
    let mut greys = 0;
    let detected = eventually("a change is detected", async || {
        let answer = over_unix(&socket, &grey).await;
        greys += u64::from(answer.is_ok_and(|answer| answer.status == 200));
        let events = fleet.server().store.events(&device, 100).await?;
        let mut bodies = events.into_iter().map(|event| event.record.body);
        let found = bodies.find_map(|body| match body {
            Body::Event(event) if event.code == "drift_detected" => Some(event),
            _ => None,
        });
        Ok(found.ok_or(format!("nothing after {greys} grey pictures")))
    })
    .await
    .unwrap();
    assert!(detected.detail.contains("signal="), "{detected:?}");
    assert!(detected.detail.contains("width="), "{detected:?}");
    let manifest = fleet.operator.reported(&device).await.unwrap().unwrap();
    assert_eq!(detected.bundle, manifest.active.map(|active| active.digest));

    // The last window with them closes, and stuck pixels are told apart from drifted answers.
    let query = [("family", "digits".to_owned())];
    let drift = eventually("every answer is scored", async || {
        let answer = fleet.operator.client().drift(&query).await?;
        let drift = answer["drift"][0].clone();
        let scored = drift["inferences"].as_u64();
        Ok(if scored == Some(usual + greys) {
            Ok(drift)
        } else {
            Err(format!("{scored:?} of {usual} and {greys}"))
        })
    })
    .await
    .unwrap();
    assert_eq!(drift["status"], "alarm");
    assert_eq!(drift["left_out"], serde_json::json!({}));
    for score in ["psi", "kolmogorov_smirnov", "wasserstein", "hellinger"] {
        assert!(drift["entropy"][score].is_object(), "{score}: {drift}");
    }
    fleet.devices[0].stop().await.unwrap();
    assert_eq!(answers_watched(&fleet), usual + greys);
    fleet.end().await.unwrap();
}
