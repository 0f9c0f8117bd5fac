//! Parquet exports through the API, held against what the drift API says of the same windows.

use super::fixture::{Answer, Bundle, Fleet, bundle_with};
use dunlin_protocol::id::{BootId, Digest};
use dunlin_protocol::sketch::{Histogram, Latency};
use dunlin_protocol::telemetry::{Body, Class, Record, Segment, Window};
use dunlin_server::store::{IncomingSegment, PeriodQuery};
use http::StatusCode;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::RowAccessor as _;
use serde_json::{Value, json};

/// 1 March 2026, in milliseconds since 1970.
pub(crate) const START_MS: i64 = 1_772_323_200_000;

fn profile() -> Vec<u8> {
    let output = json!({"edges": [0.0, 0.5, 1.0], "counts": [200, 800]});
    let profile = json!({
        "schema": "dunlin.profile/1", "rows": 1000,
        "features": [{"name": "x \"0\" <b>", "tensor": "x", "index": 0, "edges": [0.0, 1.0, 2.0, 3.0], "counts": [300, 400, 300]}],
        "outputs": {"classes": ["no", "yes"], "counts": [500, 500]},
        "confidence": output, "entropy": output,
    });
    profile.to_string().into_bytes()
}

/// A published version 1 with a reference profile.
pub(crate) async fn published() -> (Fleet, Bundle) {
    let fleet = Fleet::start().await;
    fleet.set_root().await;
    let bundle = bundle_with(1, 1, Some(&profile()));
    for blob in [&bundle.model, &bundle.golden, &profile()] {
        assert_eq!(fleet.put_blob(blob).await, StatusCode::CREATED);
    }
    let done = fleet.publish(1, std::slice::from_ref(&bundle), 2).await;
    assert_eq!(done.status, StatusCode::CREATED, "{:?}", done.bytes);
    (fleet, bundle)
}

/// A window of 40 inferences a minute.
pub(crate) fn window(bundle: &Bundle, minute: i64, feature: Histogram) -> Window {
    let counted = |counts: &[u64]| Histogram {
        counts: counts.to_vec(),
        ..Histogram::default()
    };
    Window {
        bundle: Digest::of(bundle.manifest.as_bytes()),
        family: "digits".parse().unwrap(),
        version: 1,
        start_ms: START_MS + minute * 60_000,
        end_ms: START_MS + (minute + 1) * 60_000,
        inferences: 40,
        errors: 2,
        confidence_sum_micro: 30_000_000,
        entropy_sum_micro: 10_000_000,
        outputs: vec![30, 10],
        confidence: counted(&[5, 35]),
        entropy: counted(&[36, 4]),
        features: vec![feature],
        profile: Some(Digest::of(&profile())),
        latency: Latency {
            buckets: vec![0, 0, 0, 40],
        },
        segment: None,
        refused: 0,
        expected_confusion_nano: None,
    }
}

pub(crate) fn spread() -> Histogram {
    Histogram {
        counts: vec![8, 16, 8],
        under: 3,
        over: 4,
        nan: 1,
        ..Histogram::default()
    }
}

pub(crate) fn segment(device: &str, number: u64, windows: Vec<Window>) -> IncomingSegment {
    let records = windows.into_iter().map(|window| Record {
        time_ms: window.end_ms,
        body: Body::Window(Box::new(window)),
    });
    IncomingSegment {
        device: device.parse().unwrap(),
        class: Class::Sketch,
        segment: Segment {
            boot: BootId([7; 16]),
            segment: number,
            backfilled: false,
            records: records.collect(),
        },
        received_ms: START_MS + 24 * 3_600_000,
    }
}

/// Windows of two devices: sound ones, a stuck sensor's, one that no honest device sends, one of
/// another profile.
pub(crate) async fn filled() -> (Fleet, Bundle) {
    let (fleet, bundle) = published().await;
    let sound = |minute| window(&bundle, minute, spread());
    let stuck = Histogram {
        counts: vec![40, 0, 0],
        ..Histogram::default()
    };
    let absurd = Window {
        end_ms: i64::MAX,
        inferences: u64::MAX,
        ..sound(0)
    };
    let foreign = Window {
        profile: Some(Digest::of(b"other")),
        ..sound(3)
    };
    let batch = [
        segment("edge-1", 1, (0..700).map(sound).collect()),
        segment(
            "edge-2",
            1,
            vec![sound(1), window(&bundle, 2, stuck), absurd, foreign],
        ),
    ];
    fleet.server.store.ingest(&batch).await.unwrap();
    (fleet, bundle)
}

pub(crate) fn file(answer: &Answer) -> SerializedFileReader<bytes::Bytes> {
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.bytes);
    assert_eq!(
        answer.headers["content-type"],
        "application/vnd.apache.parquet"
    );
    SerializedFileReader::new(answer.bytes.clone()).unwrap()
}

pub(crate) fn rows(file: &SerializedFileReader<bytes::Bytes>) -> Vec<parquet::record::Row> {
    file.get_row_iter(None)
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

pub(crate) fn at(row: &parquet::record::Row, name: &str) -> usize {
    let mut columns = row.get_column_iter();
    columns.position(|(column, _)| column == name).unwrap()
}

pub(crate) async fn drift(fleet: &Fleet) -> Value {
    let answer = fleet.get("/api/v1/drift?family=digits").await.json();
    answer["drift"][0].clone()
}

#[tokio::test]
async fn windows_add_up_to_what_the_drift_api_says() {
    let (fleet, bundle) = filled().await;
    let file = file(
        &fleet
            .get("/api/v1/export/windows.parquet?family=digits")
            .await,
    );
    let rows = rows(&file);
    assert_eq!(rows.len(), 704);
    let drift = drift(&fleet).await;
    let counted = |row: &&parquet::record::Row| row.get_bool(at(row, "counted")).unwrap();
    let sum = |name: &str| -> u64 {
        let rows = rows.iter().filter(counted);
        rows.map(|row| row.get_ulong(at(row, name)).unwrap()).sum()
    };
    assert_eq!(json!(sum("inferences")), drift["inferences"]);
    assert_eq!(json!(sum("errors")), drift["errors"]);
    assert_eq!(json!(rows.iter().filter(counted).count()), drift["windows"]);
    let left_out = rows.iter().filter_map(|row| {
        let column = at(row, "left_out");
        row.get_string(column).ok().cloned()
    });
    let mut left_out: Vec<String> = left_out.collect();
    left_out.sort();
    let said = drift["left_out"].as_object().unwrap();
    let said: Vec<&String> = said.keys().collect();
    assert_eq!(left_out.iter().collect::<Vec<_>>(), said);
    // No reader chokes on an absurd time: it is not there.
    assert!(
        rows.iter()
            .any(|row| row.get_timestamp_millis(at(row, "window_end")).is_err())
    );
    assert_eq!(
        rows[0].get_string(at(&rows[0], "bundle")).unwrap(),
        &Digest::of(bundle.manifest.as_bytes()).to_string()
    );
    fleet.server.shutdown().await;
}

#[tokio::test]
async fn a_window_over_another_profile_or_other_bins_counts_nowhere() {
    let (fleet, bundle) = published().await;
    let few = |minute| window(&bundle, minute, spread());
    // Made up, so that errors of the others are few among them.
    let loud = |minute, profile| Window {
        inferences: 900_000,
        errors: 0,
        confidence_sum_micro: 0,
        entropy_sum_micro: 0,
        outputs: Vec::new(),
        confidence: Histogram::default(),
        entropy: Histogram::default(),
        features: Vec::new(),
        latency: Latency::default(),
        profile,
        ..few(minute)
    };
    let own = Some(Digest::of(&profile()));
    let other = Some(Digest::of(b"other"));
    let batch = [
        segment("edge-1", 1, vec![few(0), few(1)]),
        segment(
            "edge-2",
            1,
            vec![loud(0, own), loud(1, other), loud(2, None), few(3)],
        ),
    ];
    let store = &fleet.server.store;
    store.ingest(&batch).await.unwrap();
    let drift = drift(&fleet).await;
    assert_eq!(drift["inferences"], 120);
    let left_out = drift["left_out"].as_object().unwrap();
    assert_eq!(left_out.len(), 3, "{left_out:?}");
    let totals = store.version_totals(0).await.unwrap();
    let totals = totals.iter().map(|t| (t.inferences, t.errors));
    assert_eq!(totals.collect::<Vec<_>>(), [(120, 6)]);
    let asked = PeriodQuery {
        device: "edge-2".parse().unwrap(),
        bundle: Digest::of(bundle.manifest.as_bytes()),
        from_ms: START_MS,
        until_ms: START_MS + 3_600_000,
    };
    let periods = store.periods(&"digits".parse().unwrap(), &[asked]).await;
    let periods = periods.unwrap();
    assert_eq!((periods[0].inferences, periods[0].errors), (40, 2));
    fleet.server.shutdown().await;
}

#[tokio::test]
async fn the_file_says_where_its_models_come_from() {
    let (fleet, bundle) = filled().await;
    let path =
        format!("/api/v1/export/windows.parquet?family=digits&version=1&since_ms={START_MS}");
    let file = file(&fleet.get(&path).await);
    let about = file
        .metadata()
        .file_metadata()
        .key_value_metadata()
        .unwrap();
    let value = |key: &str| {
        let pair = about.iter().find(|pair| pair.key == key);
        pair.unwrap().value.clone().unwrap()
    };
    assert_eq!(value("dunlin.format"), "dunlin.windows/1");
    assert_eq!(
        (value("dunlin.fleet"), value("dunlin.family")),
        ("demo".into(), "digits".into())
    );
    let query: Value = serde_json::from_str(&value("dunlin.query")).unwrap();
    assert_eq!(query["since_ms"], START_MS);
    let bundles: Value = serde_json::from_str(&value("dunlin.bundles")).unwrap();
    assert_eq!(
        bundles[0]["bundle"],
        Digest::of(bundle.manifest.as_bytes()).to_string()
    );
    assert_eq!(bundles[0]["model"], Digest::of(&bundle.model).to_string());
    let profile_file = &bundles[0]["files"]["profile.json"];
    assert_eq!(profile_file["sha256"], Digest::of(&profile()).to_string());
    assert_eq!(profile_file["length_bytes"], profile().len());
    fleet.server.shutdown().await;
}

#[tokio::test]
async fn histograms_are_named_and_what_is_isolated_is_marked() {
    let (fleet, _) = filled().await;
    let histograms = fleet
        .get("/api/v1/export/histograms.parquet?family=digits")
        .await;
    let histograms = rows(&file(&histograms));
    assert_eq!(histograms.len(), 3 * 704);
    let drift = drift(&fleet).await;
    let feature = &drift["features"][0];
    let of_feature = |row: &&parquet::record::Row| {
        row.get_string(at(row, "signal")).unwrap() == "feature"
            && row.get_string(at(row, "left_out")).is_err()
    };
    let isolated = |row: &parquet::record::Row| row.get_string(at(row, "isolated")).is_ok();
    let sound = histograms
        .iter()
        .filter(of_feature)
        .filter(|row| !isolated(row));
    let outside: u64 = sound
        .map(|row| {
            let number = |name: &str| row.get_ulong(at(row, name)).unwrap();
            assert_eq!(row.get_string(at(row, "name")).unwrap(), "x \"0\" <b>");
            number("under") + number("over")
        })
        .sum();
    assert_eq!(json!(outside), feature["outside"]);
    let stuck = histograms.iter().filter(|row| isolated(row)).count();
    assert_eq!(json!(stuck), feature["isolated"]["constant_windows"]);
    let reference = fleet
        .get("/api/v1/export/reference.parquet?family=digits")
        .await;
    let reference = rows(&file(&reference));
    // Three bins of the feature, two of confidence and of entropy, two classes.
    assert_eq!(reference.len(), 9);
    fleet.server.shutdown().await;
}

#[tokio::test]
async fn a_selection_that_cannot_be_is_refused_and_an_empty_one_is_a_table() {
    let (fleet, _) = published().await;
    let path = "/api/v1/export/windows.parquet?family=digits";
    assert_eq!(rows(&file(&fleet.get(path).await)).len(), 0);
    for (query, status) in [
        ("", StatusCode::BAD_REQUEST),
        ("?family=Not+A+Family", StatusCode::BAD_REQUEST),
        ("?family=digits&cohort=half", StatusCode::BAD_REQUEST),
        ("?family=digits&cohort=canary", StatusCode::NOT_FOUND),
        ("?family=digits&colour=red", StatusCode::BAD_REQUEST),
    ] {
        let answer = fleet
            .get(&format!("/api/v1/export/windows.parquet{query}"))
            .await;
        assert_eq!(answer.status, status, "{query}");
    }
    fleet.server.shutdown().await;
}

#[tokio::test]
async fn a_signal_is_drawn_with_the_score_that_the_drift_api_gives() {
    let (fleet, _) = filled().await;
    let name = "x+%220%22+%3Cb%3E";
    let path = format!("/api/v1/drift/plot.svg?family=digits&version=1&signal={name}");
    let drawn = fleet.get(&path).await;
    assert_eq!(drawn.status, StatusCode::OK, "{:?}", drawn.bytes);
    assert_eq!(
        drawn.headers["content-type"],
        "image/svg+xml; charset=utf-8"
    );
    let svg = String::from_utf8(drawn.bytes.to_vec()).unwrap();
    assert!(svg.contains("x &quot;0&quot; &lt;b&gt;"), "{svg}");
    let score = &drift(&fleet).await["features"][0]["psi"];
    let live = score["n_cur"].as_u64().unwrap();
    assert!(svg.contains(&format!("live, n = {live}")), "{score} {svg}");
    for (query, status) in [
        ("family=digits&signal=confidence", StatusCode::OK),
        ("family=digits&signal=entropy", StatusCode::OK),
        ("family=digits&signal=output_mix", StatusCode::OK),
        ("family=digits&signal=pixels", StatusCode::NOT_FOUND),
        (
            "family=digits&signal=confidence&version=9",
            StatusCode::NOT_FOUND,
        ),
        ("family=digits", StatusCode::BAD_REQUEST),
    ] {
        let answer = fleet.get(&format!("/api/v1/drift/plot.svg?{query}")).await;
        assert_eq!(answer.status, status, "{query}");
    }
    fleet.server.shutdown().await;
}

#[tokio::test]
async fn a_version_that_was_never_published_is_in_no_list_and_no_plot() {
    let (fleet, bundle) = filled().await;
    let before = drift(&fleet).await;
    let of = |version: u64| Window {
        version,
        ..window(&bundle, 5, spread())
    };
    let batch = [segment("edge-2", 2, vec![of(7), of(u64::MAX), of(1 << 63)])];
    assert_eq!(fleet.server.store.ingest(&batch).await.unwrap().len(), 1);
    let svg = "/api/v1/drift/plot.svg?family=digits&signal=confidence";
    let drawn = fleet.get(svg).await;
    assert_eq!(drawn.status, StatusCode::OK, "{:?}", drawn.bytes);
    let listed = fleet.get("/api/v1/drift?family=digits").await.json();
    assert_eq!(listed["drift"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed["drift"][0], before);
    // Asked for by its number, it is shown for what it is.
    let asked = fleet.get("/api/v1/drift?family=digits&version=7").await;
    let asked = asked.json()["drift"][0].clone();
    assert_eq!(asked["windows"], 1, "{asked}");
    assert!(asked["note"].as_str().unwrap().contains("ever published"));

    let path = "/api/v1/export/windows.parquet?family=digits";
    let answer = fleet.get(path).await;
    let exported = rows(&file(&answer));
    let others: Vec<_> = exported
        .iter()
        .map(|row| {
            let version = row.get_ulong(at(row, "version")).unwrap();
            (version, row.get_bool(at(row, "counted")).unwrap())
        })
        .filter(|(version, _)| *version != 1)
        .collect();
    assert_eq!(others, [(7, false)]);
    fleet.server.shutdown().await;
}
