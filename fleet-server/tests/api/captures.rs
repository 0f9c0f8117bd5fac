//! Captured samples through the API: asked for, taken in within bounds, handed out, audited.

use super::fixture::{Answer, Fleet, HttpClient};
use dunlin_protocol::capture::seal::{Cause, Header, SEALED_MAX_BYTES, SecretKey, seal};
use dunlin_protocol::id::Digest;
use http::{Method, StatusCode};
use rcgen::KeyPair;
use serde_json::{Value, json};

fn batch(device: &str, version: u64, bytes: usize, random: u8) -> Vec<u8> {
    let header = Header {
        fleet: "demo".parse().unwrap(),
        device: device.parse().unwrap(),
        family: "digits".parse().unwrap(),
        version,
        bundle: Digest([1; 32]),
        recipient: SecretKey::derive(&[1; 32]).recipient(),
        start_ms: 1,
        end_ms: 2,
        cause: Cause::Window,
        samples: 1,
        considered: 1,
        too_large: 0,
    };
    seal(&header, &vec![0; bytes], [random; 32]).unwrap()
}

async fn enrolled(fleet: &Fleet, name: &str) -> HttpClient {
    let (secret, key) = (fleet.claim(1).await, KeyPair::generate().unwrap());
    fleet.enrol(&secret, Some(name), &key).await.1.unwrap()
}

async fn ask(fleet: &Fleet, body: &Value) -> Answer {
    fleet.post("/api/v1/capture-requests", body).await
}

async fn upload(fleet: &Fleet, device: &HttpClient, request: u64, sealed: &[u8]) -> Answer {
    let path = format!("/captures/{request}/{}", Digest::of(sealed));
    fleet
        .device_call(device, Method::PUT, &path, &[], sealed.to_vec())
        .await
}

#[tokio::test]
async fn a_batch_goes_from_the_device_to_who_asked_and_every_step_is_audited() {
    let fleet = Fleet::start().await;
    fleet.set_root().await;
    let device = enrolled(&fleet, "edge-1").await;
    let sealed = batch("edge-1", 3, 100, 1);
    let unasked = upload(&fleet, &device, 1, &sealed).await;
    assert_eq!(
        (unasked.status, unasked.code().as_str()),
        (StatusCode::NOT_FOUND, "not_wanted")
    );
    let body = json!({"devices": ["edge-1"], "family": "digits", "version": 3, "reason": "drift"});
    let made = ask(&fleet, &body).await;
    assert_eq!(
        (made.status, made.json()),
        (StatusCode::CREATED, json!({"id": 1, "devices": 1}))
    );

    let wanted = fleet.download(&device, "/captures", &[]).await.json();
    assert_eq!(
        wanted,
        json!({"wanted": [{"id": 1, "family": "digits", "version": 3}]})
    );
    assert_eq!(
        upload(&fleet, &device, 1, &sealed).await.status,
        StatusCode::CREATED
    );
    assert_eq!(
        upload(&fleet, &device, 1, &sealed).await.status,
        StatusCode::OK,
        "repeatable"
    );
    let done = json!({"sent": 1}).to_string();
    let path = "/captures/1/done";
    let ended = fleet
        .device_call(&device, Method::POST, path, &[], done.clone())
        .await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    let again = fleet
        .device_call(&device, Method::POST, path, &[], done)
        .await;
    assert_eq!(again.code(), "not_wanted");
    let late = upload(&fleet, &device, 1, &batch("edge-1", 3, 100, 2)).await;
    assert_eq!(late.code(), "not_wanted");
    let wanted = fleet.download(&device, "/captures", &[]).await.json();
    assert_eq!(wanted, json!({"wanted": []}));

    let listed = fleet
        .get("/api/v1/captures?request=1&family=digits")
        .await
        .json();
    let listed = &listed["captures"][0];
    assert_eq!(listed["sha256"], Digest::of(&sealed).to_string());
    assert_eq!(
        (&listed["header"]["device"], &listed["bytes"]),
        (&json!("edge-1"), &json!(sealed.len()))
    );
    let none = fleet.get("/api/v1/captures?device=edge-2").await.json();
    assert_eq!(none, json!({"captures": []}));
    let path = format!("/api/v1/captures/{}", Digest::of(&sealed));
    assert_eq!(fleet.get(&path).await.bytes, sealed);
    let deleted = fleet.call(Method::DELETE, &path, Vec::new()).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    assert_eq!(fleet.get(&path).await.status, StatusCode::NOT_FOUND);

    let requests = fleet.get("/api/v1/capture-requests").await.json();
    let target = &requests["requests"][0]["devices"][0];
    assert_eq!(
        (&target["state"], &target["batches"]),
        (&json!("done"), &json!(1))
    );
    let audit = fleet.get("/api/v1/audit").await.json();
    let audit = audit["audit"].as_array().unwrap();
    let deeds: Vec<_> = audit
        .iter()
        .rev()
        .map(|d| (d["actor"].as_str().unwrap(), d["action"].as_str().unwrap()))
        .collect();
    assert_eq!(
        deeds,
        [
            ("admin:admin", "capture.request"),
            ("device:edge-1", "capture.upload"),
            ("device:edge-1", "capture.answered"),
            ("admin:admin", "capture.download"),
            ("admin:admin", "capture.delete"),
        ]
    );
    assert_eq!(audit[4]["detail"]["reason"], "drift");
    let first = format!("/api/v1/audit?before={}", audit[3]["id"]);
    assert_eq!(
        fleet.get(&first).await.json()["audit"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn what_a_device_may_not_send_is_refused() {
    let fleet = Fleet::start_with_little_room().await;
    fleet.set_root().await;
    let device = enrolled(&fleet, "edge-1").await;
    let other = enrolled(&fleet, "edge-2").await;
    let body = json!({"devices": ["edge-1", "edge-2"], "version": 3, "reason": "drift"});
    assert_eq!(ask(&fleet, &body).await.status, StatusCode::CREATED);

    let mine = batch("edge-1", 3, 100, 1);
    let theirs = upload(&fleet, &other, 1, &mine).await;
    assert_eq!(
        (theirs.status, theirs.code().as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, "bad_batch")
    );
    let another = upload(&fleet, &device, 1, &batch("edge-1", 2, 100, 1)).await;
    assert_eq!(another.code(), "not_wanted");
    assert_eq!(
        upload(&fleet, &device, 1, b"plain").await.code(),
        "bad_batch"
    );
    let path = format!("/captures/1/{}", Digest::of(b"?"));
    let hash = fleet
        .device_call(&device, Method::PUT, &path, &[], mine.clone())
        .await;
    assert_eq!(hash.code(), "hash");
    let long = vec![0; SEALED_MAX_BYTES + 1];
    let long = upload(&fleet, &device, 1, &long).await;
    assert_eq!(long.status, StatusCode::PAYLOAD_TOO_LARGE);
    for path in ["/captures/x/done", "/captures/-1/done"] {
        let bad = fleet
            .device_call(&device, Method::POST, path, &[], "{\"sent\":0}")
            .await;
        assert_eq!(bad.status, StatusCode::BAD_REQUEST, "{path}");
    }
    let nobody = super::fixture::device_client(&fleet.ca().await, None);
    assert_eq!(
        upload(&fleet, &nobody, 1, &mine).await.code(),
        "no_certificate"
    );
    assert_eq!(
        fleet.download(&nobody, "/captures", &[]).await.code(),
        "no_certificate"
    );

    // A MiB a device, and the other one's share stays its own.
    let large = |random| batch("edge-1", 3, 600 << 10, random);
    assert_eq!(
        upload(&fleet, &device, 1, &large(1)).await.status,
        StatusCode::CREATED
    );
    let full = upload(&fleet, &device, 1, &large(2)).await;
    assert_eq!(
        (full.status, full.code().as_str()),
        (StatusCode::INSUFFICIENT_STORAGE, "captures_full")
    );
    let theirs = batch("edge-2", 3, 600 << 10, 1);
    assert_eq!(
        upload(&fleet, &other, 1, &theirs).await.status,
        StatusCode::CREATED
    );
}

#[tokio::test]
async fn bad_requests_are_named_and_open_ones_can_be_ended() {
    let fleet = Fleet::start().await;
    fleet.set_root().await;
    let device = enrolled(&fleet, "edge-1").await;
    for (body, status, word) in [
        (
            json!({"reason": "x"}),
            StatusCode::BAD_REQUEST,
            "devices or a family",
        ),
        (
            json!({"devices": ["edge-1"]}),
            StatusCode::BAD_REQUEST,
            "reason",
        ),
        (
            json!({"devices": ["edge-1"], "reason": ""}),
            StatusCode::BAD_REQUEST,
            "reason",
        ),
        (
            json!({"devices": ["edge-1"], "reason": "x", "expires_in_s": 0}),
            StatusCode::BAD_REQUEST,
            "expires_in_s",
        ),
        (
            json!({"devices": ["edge-1"], "reason": "x", "keys": 1}),
            StatusCode::BAD_REQUEST,
            "keys",
        ),
        (
            json!({"devices": ["edge-9"], "reason": "x"}),
            StatusCode::NOT_FOUND,
            "edge-9",
        ),
        (
            json!({"family": "digits", "reason": "x"}),
            StatusCode::NOT_FOUND,
            "no device runs",
        ),
        (
            json!({"family": "?", "reason": "x"}),
            StatusCode::BAD_REQUEST,
            "family",
        ),
    ] {
        let refused = ask(&fleet, &body).await;
        assert_eq!(refused.status, status, "{body}");
        let message = refused.json()["error"]["message"].to_string();
        assert!(message.contains(word), "{body}: {message}");
    }
    assert_eq!(
        fleet.get("/api/v1/captures?colour=red").await.status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        fleet.get("/api/v1/captures/xyz").await.status,
        StatusCode::BAD_REQUEST
    );

    let body = json!({"devices": ["edge-1", "edge-1"], "reason": "drift"});
    assert_eq!(ask(&fleet, &body).await.json()["devices"], 1);
    let cancel = |id: u32| format!("/api/v1/capture-requests/{id}");
    let ended = fleet.call(Method::DELETE, &cancel(1), Vec::new()).await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    let unknown = fleet.call(Method::DELETE, &cancel(7), Vec::new()).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    let requests = fleet.get("/api/v1/capture-requests").await.json();
    assert_eq!(requests["requests"][0]["devices"][0]["state"], "cancelled");
    let late = upload(&fleet, &device, 1, &batch("edge-1", 3, 100, 1)).await;
    assert_eq!(late.code(), "not_wanted");
    // What was audited stays as it was.
    let store = &fleet.server.store;
    assert_eq!(store.audit(None, 10).await.unwrap().len(), 2);
    assert_eq!(store.prune_captures(i64::MAX, 0).await.unwrap(), 0);
    assert_eq!(store.audit(None, 10).await.unwrap().len(), 2);
}
