//! Each kind of rule about a family, from windows that arrive to what the webhook hears.

use super::alerts::{listen, next, put_rule, silent_device};
use super::export::{published, segment, window};
use super::fixture::{Bundle, Fleet};
use dunlin_protocol::id::Digest;
use dunlin_protocol::report::{Installed, Progress, Reported};
use dunlin_protocol::sketch::{Histogram, Latency};
use dunlin_protocol::telemetry::Window;
use dunlin_server::store::IncomingSegment;
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Serves version 1 since now.
async fn serving(fleet: &Fleet, device: &str, bundle: &Bundle) {
    silent_device(fleet, device, "pier", 1).await;
    let reported = Reported {
        sequence: 1,
        revision: Default::default(),
        target: None,
        rollout: None,
        progress: Progress::Idle,
        waiting: None,
        hold: None,
        active: Some(Installed {
            family: "digits".parse().unwrap(),
            version: 1,
            digest: Digest::of(bundle.manifest.as_bytes()),
        }),
        agent_version: "0.1.0".to_owned(),
        trust: None,
        capture: None,
        models: Vec::new(),
    };
    let device = device.parse().unwrap();
    let store = &fleet.server.store;
    assert!(
        store
            .set_reported(&device, &reported, now_ms())
            .await
            .unwrap()
    );
}

fn counts(counts: [u64; 3]) -> Histogram {
    Histogram {
        counts: counts.to_vec(),
        ..Histogram::default()
    }
}

/// Windows of the last minutes, one a second.
fn of_now(bundle: &Bundle, count: i64, make: impl Fn(Window) -> Window) -> Vec<Window> {
    let first_ms = now_ms() - 900_000;
    let at = |n: i64| Window {
        start_ms: first_ms + n * 1000,
        end_ms: first_ms + (n + 1) * 1000,
        ..window(bundle, 0, counts([12, 16, 12]))
    };
    (0..count).map(|n| make(at(n))).collect()
}

/// Of a model that has gone wrong in every way.
fn bad(window: Window) -> Window {
    let mut latency = vec![0; 100];
    latency.push(40);
    Window {
        errors: 2,
        confidence_sum_micro: 24_000_000,
        features: vec![counts([36, 2, 2])],
        latency: Latency { buckets: latency },
        ..window
    }
}

fn good(window: Window) -> Window {
    Window {
        errors: 0,
        confidence_sum_micro: 37_000_000,
        ..window
    }
}

async fn send(fleet: &Fleet, number: u64, windows: Vec<Window>) {
    let incoming = IncomingSegment {
        received_ms: now_ms(),
        ..segment("edge-1", number, windows)
    };
    fleet.server.store.ingest(&[incoming]).await.unwrap();
}

fn rules() -> Vec<Value> {
    let family = "digits";
    [
        json!({"kind": "drift", "family": family, "signals": ["x \"0\" <b>"]}),
        json!({"kind": "confidence", "family": family, "below": 0.8}),
        json!({"kind": "errors", "family": family, "above_permille": 10}),
        json!({"kind": "latency", "family": family, "quantile": "p50", "above_us": 1000.0}),
        json!({"kind": "missing_data", "family": family, "inferences_min": 1000}),
    ]
    .into_iter()
    .map(|when| {
        let name = when["kind"].as_str().unwrap().replace('_', "-");
        json!({"name": name, "clear_s": 0, "when": when})
    })
    .collect()
}

/// Reads messages until each rule has been heard of in this list of one.
async fn all_heard(
    heard: &mut tokio::sync::mpsc::UnboundedReceiver<(axum::http::HeaderMap, String)>,
    list: &str,
) -> BTreeSet<String> {
    let mut rules = BTreeSet::new();
    while rules.len() < 5 {
        let (_, _, told) = next(heard).await;
        for subject in told[list].as_array().unwrap() {
            assert!(
                subject["subject"].as_str().unwrap().contains('1'),
                "version 1: {told}"
            );
            assert!(subject["seen"].is_object(), "{told}");
            rules.insert(told["rule"].as_str().unwrap().to_owned());
        }
    }
    rules
}

#[tokio::test]
async fn every_kind_of_rule_is_told_from_windows_that_arrive_and_over_when_they_are_well_again() {
    let (fleet, bundle) = published().await;
    let (url, mut heard) = listen(0).await;
    let hook = json!({"name": "on-call", "url": url});
    let made = fleet.post("/api/v1/webhooks", &hook).await;
    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.bytes);
    serving(&fleet, "edge-1", &bundle).await;
    send(&fleet, 1, of_now(&bundle, 3, bad)).await;
    for rule in rules() {
        let put = put_rule(&fleet, &rule).await;
        assert_eq!(put.status, StatusCode::NO_CONTENT, "{:?}", put.bytes);
    }
    let kinds = ["confidence", "drift", "errors", "latency", "missing-data"];
    let kinds = kinds.map(str::to_owned);
    assert!(all_heard(&mut heard, "firing").await.iter().eq(&kinds));

    send(&fleet, 2, of_now(&bundle, 800, good)).await;
    assert!(all_heard(&mut heard, "resolved").await.iter().eq(&kinds));
    let alerts = fleet.get("/api/v1/alerts").await.json();
    assert_eq!(alerts["alerts"], json!([]));
    fleet.server.shutdown().await;
}
