//! Alerts through the API, told to a webhook that listens on this machine.

use super::fixture::{Answer, Fleet};
use axum::extract::State;
use axum::http::HeaderMap;
use dunlin_protocol::report::Presence;
use dunlin_server::alert::webhook::signature;
use dunlin_server::store::NewDevice;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(30);

struct Hook {
    refuse: AtomicUsize,
    told: mpsc::UnboundedSender<(HeaderMap, String)>,
}

async fn receive(State(hook): State<Arc<Hook>>, headers: HeaderMap, body: String) -> StatusCode {
    let left = hook.refuse.load(Ordering::SeqCst);
    let _ = hook.told.send((headers, body));
    if left > 0 {
        hook.refuse.store(left - 1, Ordering::SeqCst);
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    StatusCode::NO_CONTENT
}

/// A receiver that refuses the first so many messages; its address and what it is told.
pub(crate) async fn listen(
    refuse: usize,
) -> (String, mpsc::UnboundedReceiver<(HeaderMap, String)>) {
    let (told, heard) = mpsc::unbounded_channel();
    let hook = Hook {
        refuse: AtomicUsize::new(refuse),
        told,
    };
    let router = axum::Router::new()
        .route("/hook", axum::routing::post(receive))
        .with_state(Arc::new(hook));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, heard)
}

pub(crate) async fn put_rule(fleet: &Fleet, rule: &Value) -> Answer {
    let body = rule.to_string().into_bytes();
    fleet.call(Method::PUT, "/api/v1/alert-rules", body).await
}

pub(crate) async fn next(
    heard: &mut mpsc::UnboundedReceiver<(HeaderMap, String)>,
) -> (HeaderMap, String, Value) {
    let told = tokio::time::timeout(PATIENCE, heard.recv()).await;
    let (headers, body) = told.expect("told in time").unwrap();
    let json = serde_json::from_str(&body).unwrap();
    (headers, body, json)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers[name].to_str().unwrap()
}

fn silence_rule() -> Value {
    json!({
        "name": "silent", "clear_s": 0, "severity": "critical",
        "when": {"kind": "silence", "after_s": 60, "labels": {"site": "pier"}},
    })
}

/// Enrolled long ago and never heard of.
pub(crate) async fn silent_device(fleet: &Fleet, name: &str, site: &str, key: u8) {
    let device = NewDevice {
        device: name.parse().unwrap(),
        hardware: "generic".to_owned(),
        arch: "x86_64".to_owned(),
        agent_version: "0.1.0".to_owned(),
        cert_sha256: [key; 32],
        public_key_sha256: [key; 32],
    };
    let labels = BTreeMap::from([("site".to_owned(), site.to_owned())]);
    let inserted = fleet.server.store.insert_device(&device, &labels, 1_000);
    inserted.await.unwrap();
}

async fn hear_of(fleet: &Fleet, name: &str) {
    let presence = Presence {
        online: true,
        connection: "00112233".to_owned(),
        agent_version: "0.1.0".to_owned(),
    };
    let heard_ms = jiff::Timestamp::now().as_millisecond();
    let device = name.parse().unwrap();
    let set = fleet
        .server
        .store
        .set_presence(&device, &presence, Some(heard_ms));
    assert!(set.await.unwrap());
}

#[tokio::test]
async fn a_silent_device_is_told_signed_again_until_it_is_taken_and_over_once_it_is_heard() {
    let fleet = Fleet::start_looking_often().await;
    let (url, mut heard) = listen(1).await;
    let hook = json!({"name": "on-call", "url": url});
    let made = fleet.post("/api/v1/webhooks", &hook).await;
    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.bytes);
    let secret = made.json()["secret"].as_str().unwrap().to_owned();
    silent_device(&fleet, "edge-1", "pier", 1).await;
    silent_device(&fleet, "edge-2", "pier", 2).await;
    silent_device(&fleet, "edge-3", "dock", 3).await;
    assert_eq!(
        put_rule(&fleet, &silence_rule()).await.status,
        StatusCode::NO_CONTENT
    );

    // Refused once, then taken: the same message under the same number, signed anew.
    let (first, first_body, told) = next(&mut heard).await;
    let (second, second_body, _) = next(&mut heard).await;
    assert_eq!(first_body, second_body);
    assert_eq!(first["dunlin-delivery"], second["dunlin-delivery"]);
    for headers in [&first, &second] {
        let timestamp_s = header(headers, "dunlin-timestamp").parse().unwrap();
        let expected = signature(&secret, timestamp_s, &first_body);
        assert_eq!(header(headers, "dunlin-signature"), expected);
    }
    assert_eq!(
        (&told["kind"], &told["fleet"]),
        (&json!("alert"), &json!("demo"))
    );
    assert_eq!(
        (&told["rule"], &told["severity"]),
        (&json!("silent"), &json!("critical"))
    );
    let number = |headers: &HeaderMap| header(headers, "dunlin-delivery").parse::<u64>().unwrap();
    let mut numbers = vec![number(&first)];
    let subjects = |list: &Value| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|s| s["subject"].as_str().unwrap().to_owned())
            .collect()
    };
    // One message for both, and none of the other site.
    assert_eq!(subjects(&told["firing"]), ["edge-1", "edge-2"]);

    hear_of(&fleet, "edge-1").await;
    let (headers, _, told) = next(&mut heard).await;
    numbers.push(number(&headers));
    assert_eq!(
        (subjects(&told["resolved"]), told["firing"].clone()),
        (vec!["edge-1".to_owned()], json!([]))
    );
    let alerts = fleet.get("/api/v1/alerts").await.json();
    assert_eq!(alerts["alerts"].as_array().unwrap().len(), 1, "{alerts}");
    let all = fleet.get("/api/v1/alerts?all=true").await.json();
    assert_eq!(all["alerts"].as_array().unwrap().len(), 2, "{all}");

    // A restart tells nothing twice; what goes on goes on.
    let fleet = fleet.restart().await;
    // A rule in this one's place that does not mean the device ends what it said.
    let mut elsewhere = silence_rule();
    elsewhere["when"]["labels"] = json!({"site": "nowhere"});
    put_rule(&fleet, &elsewhere).await;
    let (headers, _, told) = next(&mut heard).await;
    numbers.push(number(&headers));
    assert_eq!(subjects(&told["resolved"]), ["edge-2"]);
    // Though nothing waited any more, no number came twice.
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    fleet.server.shutdown().await;
    assert!(heard.try_recv().is_err(), "nothing else was told");
}

#[tokio::test]
async fn what_is_silenced_is_on_the_list_and_told_to_nobody_and_what_nobody_takes_is_kept() {
    let fleet = Fleet::start_looking_often().await;
    let (url, mut heard) = listen(0).await;
    let hook = json!({"name": "on-call", "url": url});
    assert_eq!(
        fleet.post("/api/v1/webhooks", &hook).await.status,
        StatusCode::CREATED
    );
    let again = fleet.post("/api/v1/webhooks", &hook).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    let silence = json!({"rule": "silent", "for_s": 3600, "reason": "pier is being rebuilt"});
    let made = fleet.post("/api/v1/silences", &silence).await;
    assert_eq!(made.json()["made_by"], "admin");
    silent_device(&fleet, "edge-1", "pier", 1).await;
    assert_eq!(
        put_rule(&fleet, &silence_rule()).await.status,
        StatusCode::NO_CONTENT
    );
    let silenced = async || {
        let alerts = fleet.get("/api/v1/alerts").await.json();
        alerts["alerts"].as_array().unwrap().first().cloned()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let alert = loop {
        match silenced().await {
            Some(alert) => break alert,
            None => assert!(tokio::time::Instant::now() < deadline, "no alert"),
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(alert["silenced"], true);
    let id = made.json()["id"].as_i64().unwrap();
    let path = format!("/api/v1/silences/{id}");
    let ended = fleet.call(Method::DELETE, &path, Vec::new()).await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    hear_of(&fleet, "edge-1").await;
    let (_, _, told) = next(&mut heard).await;
    assert_eq!(told["resolved"][0]["subject"], "edge-1");
    fleet.server.shutdown().await;
}

#[tokio::test]
async fn a_receiver_that_never_answers_delays_nobody_else() {
    let fleet = Fleet::start_looking_often().await;
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let deaf_url = format!("http://{}/", deaf.local_addr().unwrap());
    let given_up = tokio::spawn(async move {
        let (mut stream, _) = deaf.accept().await.unwrap();
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    });
    let (url, mut heard) = listen(0).await;
    for (name, url) in [("deaf", &deaf_url), ("on-call", &url)] {
        let hook = json!({"name": name, "url": url});
        let made = fleet.post("/api/v1/webhooks", &hook).await;
        assert_eq!(made.status, StatusCode::CREATED);
    }
    silent_device(&fleet, "edge-1", "pier", 1).await;
    put_rule(&fleet, &silence_rule()).await;
    let (_, _, told) = next(&mut heard).await;
    assert_eq!(told["firing"][0]["subject"], "edge-1");
    hear_of(&fleet, "edge-1").await;
    let (_, _, told) = next(&mut heard).await;
    assert_eq!(told["resolved"][0]["subject"], "edge-1");
    assert!(
        !given_up.is_finished(),
        "the first attempt is still waited for"
    );
    given_up.abort();
    fleet.server.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_a_rule_or_a_webhook_is_told_with_what_was_expected() {
    let fleet = Fleet::start().await;
    let mut rule = silence_rule();
    rule["webhooks"] = json!(["nobody"]);
    for (rule, word) in [
        (rule, "there is no \"nobody\""),
        (
            json!({"name": "x", "when": {"kind": "silence", "after_s": 1}}),
            "60 to",
        ),
        (json!({"name": "x", "when": {"kind": "moon"}}), "moon"),
        (
            json!({"name": "x", "when": {"kind": "silence", "after_s": 60}, "fro_s": 1}),
            "fro_s",
        ),
    ] {
        let answer = put_rule(&fleet, &rule).await;
        let told = answer.json()["error"]["message"].to_string();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{told}");
        assert!(told.replace('\\', "").contains(word), "{told}");
    }
    let hook = json!({"name": "plain", "url": "http://hooks.example/"});
    let answer = fleet.post("/api/v1/webhooks", &hook).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    for path in [
        "/api/v1/alert-rules/none",
        "/api/v1/webhooks/none",
        "/api/v1/silences/7",
    ] {
        let answer = fleet.call(Method::DELETE, path, Vec::new()).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
    }
    let answer = fleet
        .post("/api/v1/dead-letters/7/redeliver", &json!({}))
        .await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}
