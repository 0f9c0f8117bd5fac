//! What an operator asks of devices: pins and rollouts.

use super::fixture::bundle;
use super::published;
use http::{Method, StatusCode};
use rcgen::KeyPair;
use serde_json::{Value, json};

#[tokio::test]
async fn a_device_is_pinned_to_what_is_published() {
    let (fleet, first) = published().await;
    let key = KeyPair::generate().unwrap();
    fleet
        .enrol(&fleet.claim(1).await, Some("edge-1"), &key)
        .await;
    let pin = |version: u64| {
        let body = json!({ "family": "digits", "version": version }).to_string();
        fleet.call(Method::PUT, "/api/v1/devices/edge-1/desired", body.into())
    };
    assert_eq!(pin(7).await.status, StatusCode::NOT_FOUND);
    let pinned = pin(1).await;
    assert_eq!(pinned.status, StatusCode::OK, "{:?}", pinned.bytes);
    assert_eq!(pinned.json()["revision"], "1.1");
    assert_eq!(
        pinned.json()["desired"][0]["digest"],
        first.target.sha256().unwrap().to_string()
    );
    let second = bundle(2, 2);
    fleet.put_blob(&second.model).await;
    fleet.put_blob(&second.golden).await;
    let both = fleet.publish(2, &[first, second], 2).await;
    assert_eq!(both.status, StatusCode::CREATED, "{:?}", both.bytes);
    let below = pin(1).await;
    assert_eq!(
        (below.status, below.code().as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, "below_floor")
    );
    let mut one_way = json!({ "family": "digits", "version": 2, "policy": { "gate": null } });
    let refused = fleet.post("/api/v1/rollouts", &one_way).await;
    assert_eq!(refused.code(), "no_way_back", "{:?}", refused.bytes);
    one_way["allow_no_way_back"] = true.into();
    let created = fleet.post("/api/v1/rollouts", &one_way).await;
    assert_eq!(created.status, StatusCode::CREATED, "{:?}", created.bytes);
}

#[tokio::test]
async fn rollouts_are_refused_created_listed_and_aborted() {
    let (fleet, _) = published().await;
    let ungated = json!({ "family": "digits", "version": 1, "policy": { "gate": null } });
    let nobody = fleet.post("/api/v1/rollouts", &ungated).await;
    assert_eq!(
        (nobody.status, nobody.code().as_str()),
        (StatusCode::CONFLICT, "no_devices")
    );
    let secret = fleet.claim(4).await;
    for name in ["a", "b", "c", "d"] {
        let key = KeyPair::generate().unwrap();
        fleet.enrol(&secret, Some(name), &key).await;
    }
    let unknown = json!({ "family": "digits", "version": 9 });
    assert_eq!(
        fleet.post("/api/v1/rollouts", &unknown).await.status,
        StatusCode::NOT_FOUND
    );
    let gated = json!({ "family": "digits", "version": 1 });
    assert_eq!(
        fleet.post("/api/v1/rollouts", &gated).await.code(),
        "gate_without_control"
    );
    let wrong = json!({ "family": "digits", "version": 1, "policy": { "stages": [] } });
    assert_eq!(
        fleet.post("/api/v1/rollouts", &wrong).await.code(),
        "policy"
    );
    let created = fleet.post("/api/v1/rollouts", &ungated).await;
    assert_eq!(created.status, StatusCode::CREATED, "{:?}", created.bytes);
    let id = created.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(
        fleet.post("/api/v1/rollouts", &ungated).await.code(),
        "conflict"
    );
    let shown = fleet.get(&format!("/api/v1/rollouts/{id}")).await.json();
    assert_eq!(shown["devices"].as_array().unwrap().len(), 4);
    assert!(shown["policy"]["seed"].is_u64());
    assert_eq!(shown["created_by"], "admin");
    let list = fleet.get("/api/v1/rollouts").await.json();
    assert_eq!(list["rollouts"][0]["id"], id);
    let running = fleet
        .post(&format!("/api/v1/rollouts/{id}/resume"), &Value::Null)
        .await;
    assert_eq!(running.code(), "not_paused", "{:?}", running.bytes);
    let aborted = fleet
        .post(&format!("/api/v1/rollouts/{id}/abort"), &Value::Null)
        .await;
    assert_eq!(aborted.status, StatusCode::ACCEPTED, "{:?}", aborted.bytes);
    let drift = fleet
        .get(&format!(
            "/api/v1/drift?family=digits&cohort=control&rollout={id}"
        ))
        .await;
    assert_eq!(
        (drift.status, drift.json()),
        (StatusCode::OK, json!({ "drift": [] }))
    );
    for path in [
        "drift?",
        "drift/plot.svg?signal=confidence&",
        "export/windows.parquet?",
    ] {
        let asked =
            |cohort: &str, id: &str| format!("/api/v1/{path}family=digits&rollout={id}{cohort}");
        for cohort in ["", "&cohort=all", "&cohort=canary"] {
            let unknown = fleet.get(&asked(cohort, "ro-000000000000")).await;
            assert_eq!(unknown.status, StatusCode::NOT_FOUND, "{path} {cohort}");
        }
        for cohort in ["", "&cohort=all"] {
            let whose = fleet.get(&asked(cohort, &id)).await;
            assert_eq!(whose.status, StatusCode::BAD_REQUEST, "{path} {cohort}");
            let body = whose.json().to_string();
            assert!(body.contains("expected canary or control"), "{body}");
        }
    }
}
