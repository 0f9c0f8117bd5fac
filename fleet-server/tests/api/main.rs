//! The server's HTTP interfaces, driven from outside: a real server, real TLS, real signatures.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod alert_kinds;
mod alerts;
mod captures;
mod document;
mod export;
mod fixture;
mod health;
mod metrics;
mod program;
mod retention;
mod rollouts;
mod trust;

use dunlin_protocol::id::Digest;
use dunlin_server::{Server, Settings};
use fixture::{Bundle, Fleet, bundle, device_client, send};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

async fn published() -> (Fleet, Bundle) {
    let fleet = Fleet::start().await;
    fleet.set_root().await;
    let first = bundle(1, 1);
    assert_eq!(fleet.put_blob(&first.model).await, StatusCode::CREATED);
    assert_eq!(fleet.put_blob(&first.golden).await, StatusCode::CREATED);
    let done = fleet.publish(1, std::slice::from_ref(&first), 2).await;
    assert_eq!(done.status, StatusCode::CREATED, "{:?}", done.bytes);
    (fleet, first)
}

#[tokio::test]
async fn only_bearers_of_a_token_get_in() {
    let fleet = Fleet::start().await;
    let client = Fleet::plain();
    for header in [None, Some("Bearer wrong"), Some("Basic x"), Some("Bearer ")] {
        let mut request = fleet.request(Method::GET, "/api/v1/fleet", Vec::new());
        request.headers_mut().remove("authorization");
        if let Some(header) = header {
            request
                .headers_mut()
                .insert("authorization", header.parse().unwrap());
        }
        let answer = send(&client, request).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{header:?}");
        assert_eq!(answer.code(), "unauthorized");
    }
    let seen = fleet.get("/api/v1/fleet").await;
    assert_eq!(seen.status, StatusCode::OK);
    assert_eq!(seen.json()["fleet"], "demo");
    assert_eq!(seen.json()["ca_sha256"], fleet.server.ca_sha256.to_string());
    let open = Request::get(format!("http://{}/healthz", fleet.server.admin));
    let health = send(&client, open.body(Full::default()).unwrap()).await;
    assert_eq!(
        (health.status, health.json()),
        (StatusCode::OK, json!({ "status": "ok" }))
    );
    let fleet = fleet.restart().await;
    assert_eq!(
        fleet.get("/api/v1/fleet").await.status,
        StatusCode::OK,
        "the token outlives a restart"
    );
    fleet.server.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_served_is_said_in_json() {
    let fleet = Fleet::start().await;
    let cases = [
        (Method::GET, "/nope", "", StatusCode::NOT_FOUND),
        (Method::GET, "/api/v1/nope", "", StatusCode::NOT_FOUND),
        (
            Method::DELETE,
            "/api/v1/fleet",
            "",
            StatusCode::METHOD_NOT_ALLOWED,
        ),
        (
            Method::POST,
            "/api/v1/tokens",
            "{\"uses\":",
            StatusCode::BAD_REQUEST,
        ),
        (
            Method::POST,
            "/api/v1/tokens",
            "{\"colour\":1}",
            StatusCode::BAD_REQUEST,
        ),
        (
            Method::POST,
            "/api/v1/tokens",
            "{\"uses\":0}",
            StatusCode::BAD_REQUEST,
        ),
        (
            Method::GET,
            "/api/v1/devices?colour=red",
            "",
            StatusCode::BAD_REQUEST,
        ),
        (
            Method::GET,
            "/api/v1/devices?label=x",
            "",
            StatusCode::BAD_REQUEST,
        ),
        (
            Method::GET,
            "/api/v1/devices/a%20b",
            "",
            StatusCode::BAD_REQUEST,
        ),
        (
            Method::GET,
            "/api/v1/devices/nobody",
            "",
            StatusCode::NOT_FOUND,
        ),
        (Method::GET, "/api/v1/drift", "", StatusCode::BAD_REQUEST),
        (
            Method::GET,
            "/api/v1/drift?family=digits&cohort=x",
            "",
            StatusCode::BAD_REQUEST,
        ),
        (
            Method::GET,
            "/api/v1/rollouts/ro-1",
            "",
            StatusCode::NOT_FOUND,
        ),
        (
            Method::POST,
            "/api/v1/rollouts/ro-1/abort",
            "",
            StatusCode::NOT_FOUND,
        ),
        (
            Method::GET,
            "/api/v1/bundles/digits/1",
            "",
            StatusCode::NOT_FOUND,
        ),
        (
            Method::GET,
            "/api/v1/bundles/digits/x",
            "",
            StatusCode::BAD_REQUEST,
        ),
        (
            Method::GET,
            "/api/v1/trust/metadata/..%2Fx",
            "",
            StatusCode::NOT_FOUND,
        ),
        (
            Method::PUT,
            "/api/v1/trust/root",
            "{}",
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            Method::PUT,
            "/api/v1/blobs/zz",
            "x",
            StatusCode::BAD_REQUEST,
        ),
    ];
    for (method, path, body, status) in cases {
        let answer = fleet.call(method.clone(), path, body.into()).await;
        assert_eq!(answer.status, status, "{method} {path} {:?}", answer.bytes);
        assert!(
            !answer.json()["error"]["message"]
                .as_str()
                .unwrap()
                .is_empty(),
            "{method} {path}"
        );
    }
    let big = vec![b' '; (1 << 20) + 1];
    let answer = fleet.call(Method::POST, "/api/v1/tokens", big).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::PAYLOAD_TOO_LARGE, "too_large")
    );
}

#[tokio::test]
async fn claim_tokens_are_issued_listed_and_taken_back() {
    let fleet = Fleet::start().await;
    let secret = fleet.claim(2).await;
    assert_eq!(secret.len(), 64);
    let list = fleet.get("/api/v1/tokens").await;
    assert!(!String::from_utf8_lossy(&list.bytes).contains(&secret));
    let id = list.json()["tokens"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(list.json()["tokens"][0]["uses_left"], 2);
    let path = format!("/api/v1/tokens/{id}");
    assert_eq!(
        fleet.call(Method::DELETE, &path, Vec::new()).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        fleet.call(Method::DELETE, &path, Vec::new()).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_device_enrols_once_and_repeats_for_nothing() {
    let fleet = Fleet::start().await;
    let key = KeyPair::generate().unwrap();
    let secret = fleet.claim(1).await;
    let (early, _) = fleet.enrol(&secret, Some("edge-1"), &key).await;
    assert_eq!(
        (early.status, early.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "no_root")
    );
    fleet.set_root().await;
    let (first, _) = fleet.enrol(&secret, Some("edge-1"), &key).await;
    assert_eq!(first.status, StatusCode::OK, "{:?}", first.bytes);
    let response = first.json();
    assert_eq!(response["device"], "edge-1");
    assert_eq!(response["labels"], json!({ "site": "north" }));
    assert_eq!(response["mqtt_port"], fleet.server.mqtt.unwrap().port());
    let root = fleet.get("/api/v1/trust/metadata/1.root.json").await;
    assert_eq!(
        response["root_json"].as_str().unwrap().as_bytes(),
        &root.bytes[..]
    );
    let (again, client) = fleet.enrol(&secret, Some("edge-1"), &key).await;
    assert_eq!(again.status, StatusCode::OK, "{:?}", again.bytes);
    assert_ne!(again.json()["certificate_pem"], response["certificate_pem"]);
    let metadata = fleet
        .download(&client.unwrap(), "/repository/metadata/1.root.json", &[])
        .await;
    assert_eq!(metadata.status, StatusCode::OK);
    let other = KeyPair::generate().unwrap();
    let (taken, _) = fleet.enrol(&secret, Some("edge-1"), &other).await;
    assert_eq!(
        (taken.status, taken.code().as_str()),
        (StatusCode::CONFLICT, "id_taken")
    );
    let (spent, _) = fleet.enrol(&secret, Some("edge-2"), &other).await;
    assert_eq!(
        (spent.status, spent.code().as_str()),
        (StatusCode::UNAUTHORIZED, "token_spent")
    );
    let (unknown, _) = fleet.enrol("00", None, &other).await;
    assert_eq!(unknown.code(), "token_unknown");
    let secret = fleet.claim(1).await;
    let (server, _) = fleet.enrol(&secret, Some("dunlin-server"), &other).await;
    assert_eq!(server.status, StatusCode::BAD_REQUEST);
    let (chosen, _) = fleet.enrol(&secret, None, &other).await;
    let (same, _) = fleet.enrol(&secret, None, &other).await;
    assert!(
        chosen.json()["device"]
            .as_str()
            .unwrap()
            .starts_with("dev-"),
        "{:?}",
        chosen.bytes
    );
    assert_eq!(chosen.json()["device"], same.json()["device"]);
    let listed = fleet
        .get("/api/v1/devices?label=site=north&online=false")
        .await
        .json();
    assert_eq!(listed["devices"].as_array().unwrap().len(), 2);
    let none = fleet.get("/api/v1/devices?label=site=south").await.json();
    assert_eq!(none, json!({ "devices": [], "next": null }));
}

#[tokio::test]
async fn enrolment_bodies_are_bounded_and_checked() {
    let fleet = Fleet::start().await;
    fleet.set_root().await;
    let client = device_client(&fleet.ca().await, None);
    let post = |body: String| fleet.device_call(&client, Method::POST, "/enroll", &[], body);
    assert_eq!(post("{".to_owned()).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        post(" ".repeat(300_000)).await.status,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    let secret = fleet.claim(1).await;
    let csr = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
    let body = json!({ "secret": secret, "csr_pem": csr, "arch": "a", "hardware": "h", "agent_version": "1" });
    let bad = post(body.to_string()).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    assert!(
        bad.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("signing request")
    );
}

#[tokio::test]
async fn what_devices_would_refuse_is_not_published() {
    let fleet = Fleet::start().await;
    let first = bundle(1, 1);
    let one = std::slice::from_ref(&first);
    assert_eq!(fleet.publish(1, one, 2).await.code(), "no_root");
    fleet.set_root().await;
    assert_eq!(fleet.publish(1, one, 1).await.code(), "threshold");
    let missing = fleet.publish(1, one, 2).await;
    assert_eq!(
        (missing.status, missing.code().as_str()),
        (StatusCode::CONFLICT, "blobs_missing")
    );
    let message = missing.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains(&Digest::of(&first.model).to_string()),
        "{message}"
    );
    fleet.put_blob(&first.model).await;
    fleet.put_blob(&first.golden).await;
    let unsent = fleet
        .post(
            "/api/v1/bundles",
            &json!({ "targets": fleet.targets_json(1, one, 2) }),
        )
        .await;
    assert_eq!(unsent.code(), "manifest_missing");
    let mut flipped = first.clone();
    flipped.manifest = flipped.manifest.replace("0.1.0", "0.1.1");
    assert_eq!(
        fleet.publish(1, &[flipped], 2).await.code(),
        "manifest_missing"
    );
    assert_eq!(
        fleet.get("/api/v1/fleet").await.json()["targets_version"],
        Value::Null
    );
    assert_eq!(fleet.publish(1, one, 2).await.status, StatusCode::CREATED);
    let other = fleet.publish(1, &[], 2).await;
    assert_eq!(other.code(), "targets_version");
}

#[tokio::test]
async fn a_bundle_is_published_and_survives_a_restart() {
    let (fleet, first) = published().await;
    let second = bundle(2, 2);
    fleet.put_blob(&second.model).await;
    fleet.put_blob(&second.golden).await;
    // The first manifest is here already and need not come again.
    let both = [first.clone(), second.clone()];
    let body =
        json!({ "targets": fleet.targets_json(2, &both, 3), "manifests": [second.manifest] });
    let done = fleet.post("/api/v1/bundles", &body).await;
    assert_eq!(done.status, StatusCode::CREATED, "{:?}", done.bytes);
    let fleet = fleet.restart().await;
    let list = fleet.get("/api/v1/bundles").await.json();
    assert_eq!(
        (
            &list["targets_version"],
            list["bundles"].as_array().unwrap().len()
        ),
        (&json!(2), 2)
    );
    let one = fleet.get("/api/v1/bundles/digits/2").await.json();
    assert_eq!(
        one["digest"],
        Digest::of(second.manifest.as_bytes()).to_string()
    );
    assert_eq!(one["manifest"]["version"], 2);
    let timestamp = fleet
        .get("/api/v1/trust/metadata/timestamp.json")
        .await
        .json();
    assert_eq!(timestamp["signed"]["version"], 2);
    assert_eq!(timestamp["signed"]["meta"]["snapshot.json"]["version"], 2);
}

#[tokio::test]
async fn devices_download_with_their_certificate_only() {
    let (fleet, first) = published().await;
    let key = KeyPair::generate().unwrap();
    let (_, client) = fleet
        .enrol(&fleet.claim(1).await, Some("edge-1"), &key)
        .await;
    let client = client.unwrap();
    let blob = format!("/repository/blobs/{}", Digest::of(&first.model));
    let target = format!("/repository/targets/{}", first.target.consistent_path());
    let manifest = fleet.download(&client, &target, &[]).await;
    assert_eq!(manifest.bytes, first.manifest);
    let whole = fleet.download(&client, &blob, &[]).await;
    assert_eq!(
        (whole.status, &whole.bytes[..]),
        (StatusCode::OK, &b"model 1"[..])
    );
    let tag = whole.headers["etag"].to_str().unwrap().to_owned();
    let part = fleet
        .download(&client, &blob, &[("range", "bytes=2-"), ("if-range", &tag)])
        .await;
    assert_eq!(
        (part.status, &part.bytes[..]),
        (StatusCode::PARTIAL_CONTENT, &b"del 1"[..])
    );
    assert_eq!(part.headers["content-range"], "bytes 2-6/7");
    let stale = fleet
        .download(
            &client,
            &blob,
            &[("range", "bytes=2-"), ("if-range", "\"x\"")],
        )
        .await;
    assert_eq!(stale.status, StatusCode::OK);
    let beyond = fleet
        .download(&client, &blob, &[("range", "bytes=7-")])
        .await;
    assert_eq!(beyond.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(beyond.headers["content-range"], "bytes */7");
    let cached = fleet
        .download(&client, &blob, &[("if-none-match", &tag)])
        .await;
    assert_eq!(cached.status, StatusCode::NOT_MODIFIED);
    let unknown = format!("/repository/blobs/{}", Digest::of(b"?"));
    assert_eq!(
        fleet.download(&client, &unknown, &[]).await.status,
        StatusCode::NOT_FOUND
    );
    let nobody = device_client(&fleet.ca().await, None);
    for path in [&blob, &target, "/repository/metadata/timestamp.json"] {
        assert_eq!(
            fleet.download(&nobody, path, &[]).await.code(),
            "no_certificate",
            "{path}"
        );
    }
    assert_eq!(
        fleet
            .call(Method::DELETE, "/api/v1/devices/edge-1", Vec::new())
            .await
            .status,
        StatusCode::NO_CONTENT
    );
    let again = fleet.call(Method::DELETE, "/api/v1/devices/edge-1", Vec::new());
    assert_eq!(again.await.status, StatusCode::NO_CONTENT, "repeatable");
    let revoked = fleet.download(&client, &blob, &[]).await;
    assert_eq!(
        (revoked.status, revoked.code().as_str()),
        (StatusCode::FORBIDDEN, "revoked")
    );
}

#[tokio::test]
async fn patches_are_kept_for_listed_models_while_they_are_listed() {
    let (fleet, first) = published().await;
    let second = bundle(2, 1);
    let path = |from: &[u8], to: &[u8]| format!("{}/{}", Digest::of(from), Digest::of(to));
    let pair = path(&first.model, &second.model);
    let admin = format!("/api/v1/patches/{pair}");
    let early = fleet.call(Method::PUT, &admin, b"patch".to_vec()).await;
    assert_eq!(
        (early.status, early.code().as_str()),
        (StatusCode::CONFLICT, "unknown_model")
    );
    for content in [&second.model, &second.golden] {
        assert_eq!(fleet.put_blob(content).await, StatusCode::CREATED);
    }
    let both = [first.clone(), second.clone()];
    assert_eq!(fleet.publish(2, &both, 2).await.status, StatusCode::CREATED);
    let stranger = format!("/api/v1/patches/{}", path(b"?", &second.model));
    let stranger = fleet.call(Method::PUT, &stranger, b"patch".to_vec()).await;
    assert_eq!(stranger.code(), "unknown_model");
    // The new model has seven bytes.
    let long = fleet.call(Method::PUT, &admin, b"patch..".to_vec()).await;
    assert_eq!(
        (long.status, long.code().as_str()),
        (StatusCode::PAYLOAD_TOO_LARGE, "too_large")
    );
    let head = fleet.call(Method::HEAD, &admin, Vec::new()).await;
    assert_eq!(head.status, StatusCode::NOT_FOUND);
    for (bytes, status) in [(b"patch", StatusCode::CREATED), (b"other", StatusCode::OK)] {
        let put = fleet.call(Method::PUT, &admin, bytes.to_vec()).await;
        assert_eq!(put.status, status);
    }

    let key = KeyPair::generate().unwrap();
    let (_, client) = fleet
        .enrol(&fleet.claim(1).await, Some("edge-1"), &key)
        .await;
    let client = client.unwrap();
    let download = format!("/repository/patches/{pair}");
    let whole = fleet.download(&client, &download, &[]).await;
    assert_eq!(
        (whole.status, &whole.bytes[..]),
        (StatusCode::OK, &b"patch"[..])
    );
    assert_eq!(whole.headers["content-length"], "5");
    let tag = whole.headers["etag"].to_str().unwrap().to_owned();
    let range = [("range", "bytes=3-"), ("if-range", tag.as_str())];
    let part = fleet.download(&client, &download, &range).await;
    assert_eq!(
        (part.status, &part.bytes[..]),
        (StatusCode::PARTIAL_CONTENT, &b"ch"[..])
    );
    assert_eq!(part.headers["content-range"], "bytes 3-4/5");
    let back = format!("/repository/patches/{}", path(&second.model, &first.model));
    let back = fleet.download(&client, &back, &[]).await;
    assert_eq!(
        (back.status, back.code().as_str()),
        (StatusCode::NOT_FOUND, "not_found")
    );
    let nobody = device_client(&fleet.ca().await, None);
    let refused = fleet.download(&nobody, &download, &[]).await;
    assert_eq!(refused.code(), "no_certificate");

    assert_eq!(
        fleet.publish(3, &both[..1], 2).await.status,
        StatusCode::CREATED
    );
    let gone = fleet.download(&client, &download, &[]).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    let blob = format!("/api/v1/blobs/{}", Digest::of(&second.model));
    assert_eq!(fleet.get(&blob).await.bytes, second.model);
}

#[tokio::test]
async fn blobs_are_kept_only_under_their_own_hash() {
    let fleet = Fleet::start().await;
    let path = format!("/api/v1/blobs/{}", Digest::of(b"right"));
    let wrong = fleet.call(Method::PUT, &path, b"wrong".to_vec()).await;
    assert_eq!(
        (wrong.status, wrong.code().as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, "hash")
    );
    assert_eq!(
        fleet.call(Method::HEAD, &path, Vec::new()).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(fleet.put_blob(b"right").await, StatusCode::CREATED);
    assert_eq!(fleet.put_blob(b"right").await, StatusCode::OK);
    let head = fleet.call(Method::HEAD, &path, Vec::new()).await;
    assert_eq!(
        (
            head.status,
            head.headers["content-length"].to_str().unwrap()
        ),
        (StatusCode::OK, "5")
    );
    let large: Vec<u8> = (0..3 << 20).map(|i: u32| (i >> 7) as u8).collect();
    assert_eq!(
        fleet.put_blob(&large).await,
        StatusCode::CREATED,
        "blobs are not bound by the JSON limit"
    );
}

#[tokio::test]
async fn a_holder_of_the_online_keys_can_list_but_not_forge() {
    let (fleet, first) = published().await;
    let under_signed = fleet.targets_json(2, &[first], 1);
    let now = jiff::Timestamp::now();
    fleet
        .server
        .repository
        .sign_snapshot_and_timestamp(under_signed.as_bytes(), now)
        .unwrap();
    let snapshot = fleet
        .get("/api/v1/trust/metadata/2.snapshot.json")
        .await
        .json();
    assert_eq!(snapshot["signed"]["meta"]["targets.json"]["version"], 2);
    // The server starts all the same, and says what is wrong.
    let fleet = fleet.restart().await;
    assert_eq!(
        fleet.get("/api/v1/fleet").await.json()["targets_version"],
        2
    );
}

#[tokio::test]
async fn the_timestamp_is_signed_anew_before_it_ends() {
    let (fleet, _) = published().await;
    let repository = &fleet.server.repository;
    let hours = jiff::SignedDuration::from_hours;
    let now = jiff::Timestamp::now();
    assert!(!repository.resign_online(now + hours(1)).unwrap());
    assert!(repository.resign_online(now + hours(13)).unwrap());
    let timestamp = fleet
        .get("/api/v1/trust/metadata/timestamp.json")
        .await
        .json();
    assert_eq!(timestamp["signed"]["version"], 2);
    assert_eq!(timestamp["signed"]["meta"]["snapshot.json"]["version"], 1);
    assert!(repository.resign_online(now + hours(24 * 4)).unwrap());
    let timestamp = fleet
        .get("/api/v1/trust/metadata/timestamp.json")
        .await
        .json();
    assert_eq!(timestamp["signed"]["meta"]["snapshot.json"]["version"], 2);
}

#[tokio::test]
async fn the_admin_api_speaks_tls_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::loopback("demo".parse().unwrap(), dir.path().join("state"));
    settings.admin.tls = true;
    let server = Server::start(settings).await.unwrap();
    let ca = std::fs::read(dir.path().join("state/pki/ca.pem")).unwrap();
    let ca = CertificateDer::from_pem_slice(&ca).unwrap();
    let uri = format!("https://localhost:{}/healthz", server.admin.port());
    let request = Request::get(uri).body(Full::default()).unwrap();
    assert_eq!(
        send(&device_client(&ca, None), request).await.status,
        StatusCode::OK
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = Settings::loopback("demo".parse().unwrap(), dir.path().join("state"));
    settings.devices.listen = holder.local_addr().unwrap();
    let error = Server::start(settings).await.unwrap_err().to_string();
    assert!(
        error.starts_with("devices.listen: cannot listen on 127.0.0.1:"),
        "{error}"
    );
}

#[tokio::test]
async fn files_left_by_a_cut_publication_are_no_hindrance() {
    let (fleet, first) = published().await;
    let metadata = fleet.dir.path().join("state/repository/metadata");
    std::fs::write(metadata.join("2.targets.json"), "half").unwrap();
    std::fs::write(metadata.join("2.snapshot.json.part"), "half").unwrap();
    std::fs::write(metadata.join("timestamp.json.part"), "half").unwrap();
    let fleet = fleet.restart().await;
    assert_eq!(
        fleet.get("/api/v1/fleet").await.json()["targets_version"],
        1
    );
    let again = fleet.publish(2, &[first], 2).await;
    assert_eq!(again.status, StatusCode::CREATED, "{:?}", again.bytes);
}
