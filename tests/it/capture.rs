//! Inputs that drift, kept sealed on a device, asked for, fetched and opened; and nothing of it where
//! either side says no.

#![allow(clippy::unwrap_used, clippy::panic)]

use dunlin::capture::open;
use dunlin::demo::models;
use dunlin::pack::{PackRequest, PackedBundle, pack};
use dunlin_agent::capture::{Shelf, standings};
use dunlin_protocol::capture::Standing;
use dunlin_protocol::capture::samples::{CapturedRow, CapturedValues};
use dunlin_protocol::capture::seal::SecretKey;
use dunlin_protocol::id::Digest;
use dunlin_server::rollout::model::RolloutState;
use dunlin_tests::fleet::{Fleet, FleetBuilder};
use dunlin_tests::http;
use dunlin_tests::operator::{all_at_once, eventually};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const PIXELS: usize = 64;
/// Far outside of 0 to 16, and nothing that a stream of digits has.
const DRIFTED: f32 = 640.25;

/// Packs a version of the digits, with a section of its own in the spec.
fn packed(fleet: &Fleet, version: u64, section: &str) -> PackedBundle {
    let spec = models::write("v1", &fleet.dir.path().join(format!("spec-{version}"))).unwrap();
    let file = spec.join("bundle.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}\n{section}")).unwrap();
    let request = PackRequest {
        version: Some(version),
        ..PackRequest::new(spec)
    };
    let out = fleet.dir.path().join(format!("packed-{version}"));
    pack(&request, &out).unwrap().0
}

async fn roll_out(fleet: &mut Fleet, version: u64, section: &str) {
    let bundle = packed(fleet, version, section);
    fleet.operator.publish(&bundle).await.unwrap();
    let id = fleet
        .operator
        .roll_out(version, all_at_once(1))
        .await
        .unwrap();
    let ended = fleet.operator.ended(&id).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished, "{:?}", ended.report);
}

/// A picture that is none, different for every `n`.
fn drifted(n: usize) -> Vec<f32> {
    let pixel = |at: usize| DRIFTED + f32::from(u16::try_from(n * PIXELS + at).unwrap());
    (0..PIXELS).map(pixel).collect()
}

async fn infer(socket: &Path, pixels: &[f32]) {
    let body = json!({
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, PIXELS], "data": pixels}],
    });
    let body = body.to_string();
    let ask = http::request("POST", "/v2/models/digits/infer", &[], body.as_bytes());
    let answer = http::over_unix(socket, &ask).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn batches(state: &Path) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(Shelf::folder(state));
    let files = folder.into_iter().flatten().map(|e| e.unwrap().path());
    files
        .filter(|p| p.extension().is_some_and(|e| e == "sealed"))
        .collect()
}

/// Whether any file below a folder holds the bytes of a picture's beginning.
fn on_disk(folder: &Path, pixels: &[f32]) -> bool {
    let needle: Vec<u8> = pixels[..4].iter().flat_map(|p| p.to_le_bytes()).collect();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = std::fs::read(&path)
                && bytes.windows(needle.len()).any(|w| w == needle)
            {
                return true;
            }
        }
    }
    false
}

/// Asks both devices, and waits for both answers.
async fn asked(fleet: &Fleet, family: &str) -> (Value, Value) {
    let body = json!({"family": family, "reason": "a test"});
    let client = fleet.operator.client();
    let made = client.post("/api/v1/capture-requests", body).await.unwrap();
    assert_eq!(made["devices"], 2);
    let devices = eventually("both devices answer", async || {
        let list: Value = client.get("/api/v1/capture-requests").await?;
        let all = list["requests"].as_array().unwrap().iter();
        let mut own = all.filter(|r| r["id"] == made["id"]);
        let devices = own.next().unwrap()["devices"].clone();
        let waits = |d: &Value| d["state"] == "waiting";
        Ok(match devices.as_array().unwrap().iter().any(waits) {
            true => Err(devices.to_string()),
            false => Ok(devices),
        })
    });
    let devices = devices.await.unwrap();
    (devices[0].clone(), devices[1].clone())
}

fn pixels(row: &CapturedRow) -> Vec<f64> {
    match &row.inputs[0].values {
        CapturedValues::Floats(pixels) => pixels.clone(),
        other => panic!("{other:?}"),
    }
}

async fn fetched(fleet: &Fleet, key: &SecretKey) -> Vec<CapturedRow> {
    let client = fleet.operator.client();
    let mut rows = Vec::new();
    for batch in client.captures(&[]).await.unwrap() {
        let sha256: Digest = batch["sha256"].as_str().unwrap().parse().unwrap();
        let sealed = client.capture(&sha256).await.unwrap();
        let refused = open(&sealed, &SecretKey::derive(&[9; 32])).unwrap_err();
        assert!(refused.to_string().contains("sealed to"), "{refused}");
        rows.extend(open(&sealed, key).unwrap());
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn drifted_inputs_are_kept_sealed_fetched_and_opened_where_both_sides_allow() {
    let mut fleet = FleetBuilder::new(env!("CARGO_BIN_EXE_dunlin-under-test"))
        .agent_config("[capture]\nallow = true\n")
        .boot()
        .await
        .unwrap();
    // The owner of the second one says nothing, which is no.
    fleet.agent_config = String::new();
    let claim = fleet.operator.claim(1).await.unwrap();
    fleet.add_device("dev-02", &claim).await.unwrap();
    fleet.operator.online(2).await.unwrap();
    let key = SecretKey::derive(&[7; 32]);
    let section = format!(
        "[capture]\nrecipient = \"{}\"\nsamples = 3\n",
        key.recipient()
    );
    roll_out(&mut fleet, 1, &section).await;

    let state = |at: usize| fleet.devices[at].settings.state_dir.clone();
    let (allows, forbids) = (state(0), state(1));
    for (n, device) in [0, 1].into_iter().cycle().take(16).enumerate() {
        infer(
            &fleet.devices[device].settings.inference.socket,
            &drifted(n / 2),
        )
        .await;
    }
    eventually("windows with what was sent are sealed", async || {
        // Windows last 250 ms; the stream of ordinary digits goes on.
        let sealed = batches(&allows).len();
        Ok(if sealed >= 12 {
            Ok(())
        } else {
            Err(sealed.to_string())
        })
    })
    .await
    .unwrap();
    assert!(
        !on_disk(&allows, &drifted(0)),
        "plain samples are on the disk"
    );
    let owners: Vec<_> = fleet
        .devices
        .iter()
        .map(|d| d.settings.capture.owner.clone())
        .collect();
    assert_eq!(standings(&allows, &owners[0])[0].1, Standing::Kept);
    assert_eq!(standings(&forbids, &owners[1])[0].1, Standing::OwnerForbids);

    let (first, second) = asked(&fleet, "digits").await;
    assert_eq!(
        (&first["device"], &first["state"]),
        (&json!("dev-01"), &json!("done"))
    );
    assert!(first["batches"].as_i64().unwrap() >= 12, "{first}");
    assert_eq!(
        (&second["state"], &second["batches"]),
        (&json!("refused"), &json!(0))
    );
    assert!(
        second["detail"].as_str().unwrap().contains("owner"),
        "{second}"
    );
    assert!(!Shelf::folder(&forbids).exists());

    let rows = fetched(&fleet, &key).await;
    let sent: Vec<Vec<f64>> = (0..8)
        .map(|n| drifted(n).into_iter().map(f64::from).collect())
        .collect();
    let (odd, ordinary): (Vec<_>, Vec<_>) = rows.iter().partition(|r| pixels(r)[0] > 100.0);
    assert!(odd.iter().all(|row| sent.contains(&pixels(row))));
    // Eight within windows of three: each weighs a thousand times what a digit may.
    let found = sent
        .iter()
        .filter(|s| odd.iter().any(|row| pixels(row) == **s))
        .count();
    assert!(found >= 3, "{found} of 8 in {} rows", rows.len());
    assert!(odd.iter().all(|row| row.weight > 100.0));
    assert!(
        ordinary
            .iter()
            .all(|row| pixels(row).iter().all(|p| (0.0..=16.0).contains(p)))
    );
    let row = odd[0];
    assert_eq!((row.device.as_str(), row.version), ("dev-01", 1));
    assert!(row.lineage.data_sha256.is_some() && row.label.is_some());
    assert_eq!(row.features[5], ("pixels[5]".to_owned(), pixels(row)[5]));
    assert!((row.window_start_ms..row.window_end_ms).contains(&row.time_ms));

    let audit: Value = fleet.operator.client().get("/api/v1/audit").await.unwrap();
    let deeds = |actor: &str, action: &str| {
        let all = audit["audit"].as_array().unwrap().iter();
        all.filter(|d| d["actor"] == actor && d["action"] == action)
            .count()
    };
    assert_eq!(deeds("admin:admin", "capture.request"), 1);
    assert_eq!(deeds("device:dev-02", "capture.answered"), 1);
    let (uploads, downloads) = ("capture.upload", "capture.download");
    assert_eq!(
        deeds("device:dev-01", uploads),
        deeds("admin:admin", downloads)
    );

    // The next version's bundle says nothing, which is no as well.
    roll_out(&mut fleet, 2, "").await;
    let (first, _) = asked(&fleet, "digits").await;
    assert_eq!(first["state"], "done");
    let before = fleet.devices[0].answers();
    eventually("answers of several windows", async || {
        let more = fleet.devices[0].answers() - before;
        Ok(if more >= 50 {
            Ok(())
        } else {
            Err(more.to_string())
        })
    })
    .await
    .unwrap();
    assert_eq!(batches(&allows), Vec::<PathBuf>::new());
    assert_eq!(standings(&allows, &owners[0])[0].1, Standing::BundleForbids);
    fleet.end().await.unwrap();
}
