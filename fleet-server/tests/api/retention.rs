//! Windows that are added up as they age, seen through the API.

use super::export::{START_MS, at, drift, file, filled, rows, segment, spread, window};
use super::fixture::Fleet;
use dunlin_server::blobs::Blobs;
use dunlin_server::config::TelemetrySettings;
use dunlin_server::telemetry::retention::{Pass, add_up};
use http::StatusCode;
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::sync::watch;

const DAY_MS: i64 = 24 * 3_600_000;

/// As the server does it every hour, so many days after the windows arrived.
async fn pass(fleet: &Fleet, days: i64) -> Pass {
    let blobs = Blobs::open(&fleet.dir.path().join("state/blobs")).unwrap();
    let (_say, mut stop) = watch::channel(false);
    let now_ms = START_MS + (1 + days) * DAY_MS + 1;
    let settings = TelemetrySettings::default();
    add_up(&fleet.server.store, &blobs, settings, now_ms, &mut stop)
        .await
        .unwrap()
}

async fn exported(fleet: &Fleet) -> Vec<(u64, u64)> {
    let answer = fleet
        .get("/api/v1/export/windows.parquet?family=digits")
        .await;
    let rows = rows(&file(&answer));
    let pair = |row: &parquet::record::Row| {
        let count = |name: &str| row.get_ulong(at(row, name)).unwrap();
        (count("parts"), count("inferences"))
    };
    use parquet::record::RowAccessor as _;
    rows.iter().map(pair).collect()
}

#[tokio::test]
async fn what_is_asked_of_whole_days_stays_the_same_however_old_it_is() {
    let (fleet, bundle) = filled().await;
    let before = drift(&fleet).await;
    assert_eq!(before["features"][0]["isolated"]["constant_windows"], 1);
    assert_eq!(exported(&fleet).await.len(), 704);
    assert_eq!(pass(&fleet, 6).await.rows, 0, "too young");

    let hours = pass(&fleet, 7).await;
    assert_eq!(drift(&fleet).await, before);
    let parts = exported(&fleet).await;
    // 11 hours and 40 minutes of one device; of the other a sound one, a stuck sensor's and two that
    // count in no score, one of which in no sum.
    assert_eq!((parts.len(), hours.added_up), (12 + 4, 688));
    assert_eq!(parts.iter().map(|p| p.0).sum::<u64>(), 704);
    assert!(parts.contains(&(60, 60 * 40)), "{parts:?}");
    let svg = "/api/v1/drift/plot.svg?family=digits&signal=confidence";
    assert_eq!(fleet.get(svg).await.status, StatusCode::OK);

    // One that a device sends only now, of a time that is added up already.
    let late = [segment("edge-1", 2, vec![window(&bundle, 700, spread())])];
    fleet.server.store.ingest(&late).await.unwrap();
    let before = drift(&fleet).await;
    pass(&fleet, 60).await;
    assert_eq!(drift(&fleet).await, before);
    let parts = exported(&fleet).await;
    assert_eq!(parts.len(), 1 + 4);
    assert!(parts.contains(&(701, 701 * 40)), "{parts:?}");
    assert_eq!(pass(&fleet, 61).await.added_up, 0, "nothing is left to do");
    fleet.server.shutdown().await;
}

#[tokio::test]
async fn windows_stay_as_they_came_while_a_rollout_of_their_family_runs() {
    let (fleet, _) = filled().await;
    let key = KeyPair::generate().unwrap();
    let secret = fleet.claim(1).await;
    fleet.enrol(&secret, Some("edge-1"), &key).await;
    let ungated = json!({ "family": "digits", "version": 1, "policy": { "gate": null } });
    let created = fleet.post("/api/v1/rollouts", &ungated).await;
    assert_eq!(created.status, StatusCode::CREATED, "{:?}", created.bytes);
    assert_eq!(pass(&fleet, 100).await, Pass::default());
    assert_eq!(exported(&fleet).await.len(), 704);
    let id = created.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/rollouts/{id}/abort");
    let aborted = fleet.post(&path, &Value::Null).await;
    assert!(aborted.status.is_success(), "{:?}", aborted.bytes);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(30), async {
        while !fleet
            .server
            .store
            .running_rollouts()
            .await
            .unwrap()
            .is_empty()
        {
            tokio::task::yield_now().await;
        }
    });
    ended.await.unwrap();
    assert_eq!(pass(&fleet, 7).await.added_up, 688);
    fleet.server.shutdown().await;
}
