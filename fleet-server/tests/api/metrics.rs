//! `/metrics` as scrapers get it.

use super::export::{published, spread, window};
use super::fixture::{Answer, Fleet, send};
use dunlin_protocol::telemetry::Window;
use dunlin_server::store::{IncomingSegment, Kept, PeriodQuery};
use http::{Request, StatusCode, header};

const PROTOBUF: &str =
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

/// One that arrives now.
fn segment(device: &str, number: u64, windows: Vec<Window>) -> IncomingSegment {
    IncomingSegment {
        received_ms: jiff::Timestamp::now().as_millisecond(),
        ..super::export::segment(device, number, windows)
    }
}

async fn scrape(fleet: &Fleet, accept: &str) -> Answer {
    let request = Request::get(format!("http://{}/metrics", fleet.server.admin));
    let request = request.header(header::ACCEPT, accept);
    let answer = send(&Fleet::plain(), request.body(Default::default()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.bytes);
    answer
}

async fn line(fleet: &Fleet, name: &str) -> Option<String> {
    let answer = scrape(fleet, "text/plain").await;
    let text = String::from_utf8(answer.bytes.to_vec()).unwrap();
    let start = format!("{name} ");
    let found = text.lines().find(|line| line.starts_with(&start))?;
    Some(found[start.len()..].to_owned())
}

#[tokio::test]
async fn counters_of_a_version_never_fall_and_count_a_window_once() {
    let (fleet, bundle) = published().await;
    let inferences = "dunlin_inferences_total{family=\"digits\",version=\"1\"}";
    let count = "dunlin_inference_latency_count{family=\"digits\",version=\"1\"}";
    assert_eq!(line(&fleet, inferences).await, None);
    let sound = |minute| window(&bundle, minute, spread());
    let unknown = Window {
        version: 99,
        ..sound(0)
    };
    let absurd = Window {
        inferences: u64::MAX,
        ..sound(0)
    };
    // Its sums are not those of its histograms, and another has a segment of no profile.
    let summed = Window {
        confidence_sum_micro: u64::MAX,
        ..sound(0)
    };
    let undeclared = Window {
        segment: Some("north".to_owned()),
        ..sound(0)
    };
    let odd = vec![unknown, absurd, summed, undeclared];
    let first = segment("edge-1", 1, [vec![sound(0), sound(1)], odd].concat());
    let store = &fleet.server.store;
    store.ingest(std::slice::from_ref(&first)).await.unwrap();
    assert_eq!(line(&fleet, inferences).await.as_deref(), Some("80"));
    store
        .ingest(&[first, segment("edge-2", 1, vec![sound(5)])])
        .await
        .unwrap();
    assert_eq!(line(&fleet, inferences).await.as_deref(), Some("120"));
    assert_eq!(line(&fleet, count).await.as_deref(), Some("120"));
    // The gate of a rollout looks at windows with the same eyes.
    let period = PeriodQuery {
        device: "edge-1".parse().unwrap(),
        bundle: sound(0).bundle,
        from_ms: i64::MIN,
        until_ms: i64::MAX,
    };
    let family = "digits".parse().unwrap();
    let sums = store.periods(&family, &[period]).await.unwrap();
    assert_eq!(
        (sums[0].inferences, sums[0].confidence_sum_micro),
        (80, 60_000_000)
    );
    // Everything is old, but not the segments' numbers.
    let kept = Kept {
        records_since_ms: i64::MAX,
        windows_since_ms: i64::MAX,
    };
    assert!(store.prune(kept).await.unwrap() > 0);
    assert_eq!(line(&fleet, inferences).await.as_deref(), Some("120"));
    let nobody = "dunlin_inferences_total{family=\"digits\",version=\"99\"}";
    assert_eq!(line(&fleet, nobody).await, None);
    fleet.server.shutdown().await;
}

#[tokio::test]
async fn native_histograms_are_for_those_who_ask_for_them() {
    let (fleet, bundle) = published().await;
    let batch = [segment("edge-1", 1, vec![window(&bundle, 0, spread())])];
    fleet.server.store.ingest(&batch).await.unwrap();
    let text = scrape(&fleet, "*/*").await;
    assert_eq!(
        text.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = String::from_utf8(text.bytes.to_vec()).unwrap();
    // Each name that has values says what it is.
    for name in text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let name = name.split(['{', ' ']).next().unwrap();
        let stem = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        let is_told = |name: &str| text.contains(&format!("# HELP {name} "));
        assert!(is_told(name) || stem.is_some_and(is_told), "{name}");
    }
    let binary = scrape(&fleet, &format!("{PROTOBUF},text/plain;q=0.5")).await;
    let kind = binary.headers["content-type"].to_str().unwrap();
    assert!(
        kind.starts_with("application/vnd.google.protobuf; proto="),
        "{kind}"
    );
    let name = b"dunlin_inference_latency";
    assert!(binary.bytes.windows(name.len()).any(|part| part == name));
    fleet.server.shutdown().await;
}
