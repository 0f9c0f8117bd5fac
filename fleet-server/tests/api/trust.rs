//! The server's side of the key ceremony: its own keys, chains of roots, versions after a backup.

use super::published;
use crate::fixture::Fleet;
use dunlin_protocol::trust::{Envelope, Key, Role, RootMetadata, TIMESTAMP_MAX_BYTES};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::path::Path;

async fn timestamp(fleet: &Fleet) -> (u64, Envelope) {
    let answer = fleet.get("/api/v1/trust/metadata/timestamp.json").await;
    let envelope = Envelope::parse(&answer.bytes, TIMESTAMP_MAX_BYTES).unwrap();
    let version = envelope.signed()["version"].as_u64().unwrap();
    (version, envelope)
}

fn key(keys: &Value, role: &str) -> Key {
    Key::from_json(&keys[role]).unwrap()
}

#[tokio::test]
async fn a_root_must_be_trusted_and_list_the_online_keys() {
    let fleet = Fleet::start().await;
    let put = |root: Vec<u8>| fleet.call(Method::PUT, "/api/v1/trust/root", root);
    let foreign = put(fleet.root_json(1, false).await).await;
    assert_eq!(
        (foreign.status, foreign.code().as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, "online_keys")
    );
    assert!(
        foreign.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("snapshot")
    );
    // The same one twice; another one made a second later would expire later.
    let root = fleet.root_json(1, true).await;
    for _ in 0..2 {
        let set = put(root.clone()).await;
        assert_eq!(set.status, StatusCode::OK, "{:?}", set.bytes);
    }
    let skipped = put(fleet.root_json(3, true).await).await;
    assert_eq!(skipped.code(), "root-chain");
    let mut forged: Value = serde_json::from_slice(&fleet.root_json(2, true).await).unwrap();
    forged["signed"]["expires"] = json!("2199-01-01T00:00:00Z");
    assert_eq!(
        put(forged.to_string().into_bytes()).await.code(),
        "threshold"
    );
    let next = put(fleet.root_json(2, true).await).await;
    assert_eq!(
        (next.status, next.json()),
        (StatusCode::OK, json!({ "version": 2 }))
    );
    assert_eq!(fleet.get("/api/v1/fleet").await.json()["root_version"], 2);
}

#[tokio::test]
async fn new_server_keys_sign_as_soon_as_a_root_lists_them() {
    let (fleet, _) = published().await;
    let before = fleet.get("/api/v1/fleet").await.json();
    assert_eq!(before["next_online_keys"], Value::Null);
    let (version, _) = timestamp(&fleet).await;

    let made = fleet.post("/api/v1/trust/online-keys", &json!({})).await;
    assert_eq!(made.status, StatusCode::OK, "{:?}", made.bytes);
    let next = made.json();
    assert_ne!(next, before["online_keys"]);
    // Asked again, the same ones wait, also after a restart.
    let fleet = fleet.restart().await;
    let again = fleet.post("/api/v1/trust/online-keys", &json!({})).await;
    assert_eq!(again.json(), next);
    let shown = fleet.get("/api/v1/fleet").await.json();
    assert_eq!(shown["next_online_keys"], next);
    assert_eq!(shown["online_keys"], before["online_keys"]);

    let first = fleet.get("/api/v1/trust/metadata/1.root.json").await.bytes;
    let second = fleet.root_with(2, key(&next, "snapshot"), key(&next, "timestamp"));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let chain = json!({ "roots": [text(&first), text(&second)] });
    let put = fleet
        .call(
            Method::PUT,
            "/api/v1/trust/roots",
            chain.to_string().into_bytes(),
        )
        .await;
    assert_eq!(put.json(), json!({ "version": 2 }), "{:?}", put.bytes);

    let fleet = fleet.restart().await;
    let shown = fleet.get("/api/v1/fleet").await.json();
    assert_eq!(shown["online_keys"], next);
    assert_eq!(shown["next_online_keys"], Value::Null);
    let (raised, envelope) = timestamp(&fleet).await;
    assert!(raised > version);
    let root = Envelope::parse(&second, 100_000).unwrap();
    let root = <RootMetadata as dunlin_protocol::trust::Metadata>::read(&root).unwrap();
    root.verify(Role::Timestamp, &envelope).unwrap();
}

#[tokio::test]
async fn what_expires_when_is_in_the_api_and_in_the_metrics() {
    let (fleet, _) = published().await;
    let shown = fleet.get("/api/v1/fleet").await.json();
    let rows = shown["metadata"].as_array().unwrap();
    let roles: Vec<&str> = rows.iter().map(|r| r["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["root", "snapshot", "timestamp", "targets"]);
    assert_eq!(rows[3]["threshold"], 2);
    assert_eq!(
        (&rows[3]["offline"], &rows[2]["offline"]),
        (&json!(true), &json!(false))
    );
    assert!(rows.iter().all(|r| r["warning"].is_null()), "{shown}");
    let metrics = fleet.get("/metrics").await;
    let text = String::from_utf8_lossy(&metrics.bytes).into_owned();
    for role in roles {
        let line = format!("dunlin_metadata_expires_seconds{{role=\"{role}\"}} ");
        let value = text.lines().find_map(|l| l.strip_prefix(&line));
        let seconds: f64 = value
            .unwrap_or_else(|| panic!("{line}: {text}"))
            .parse()
            .unwrap();
        assert!(seconds > 80_000.0, "{line}{seconds}");
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[tokio::test]
async fn a_repository_from_an_old_backup_is_signed_above_what_was_shown() {
    let (fleet, first) = published().await;
    let repository = fleet.dir.path().join("state/repository");
    let backup = fleet.dir.path().join("backup");
    copy(&repository, &backup);
    let bundles = std::slice::from_ref(&first);
    for version in 2..=4 {
        let done = fleet.publish(version, bundles, 2).await;
        assert_eq!(done.status, StatusCode::CREATED, "{:?}", done.bytes);
    }
    // The database learns of what was signed when the server looks, and it looks at every start.
    let fleet = fleet.restart().await;
    let (shown, _) = timestamp(&fleet).await;
    fleet.server.shutdown().await;
    std::fs::remove_dir_all(&repository).unwrap();
    copy(&backup, &repository);

    let fleet = Fleet::resume(fleet.dir, fleet.token).await;
    let (version, _) = timestamp(&fleet).await;
    assert!(version > shown, "{version} after {shown}");
    let targets = fleet.get("/api/v1/fleet").await.json()["targets_version"].clone();
    assert_eq!(targets, 1);
}
