#![allow(clippy::unwrap_used)]
use super::*;
use crate::drift::query::{DriftQuery, SENSITIVITY, of_windows};
use crate::drift::statistics::range;
use dunlin_protocol::bundle::{ClassProfile, FeatureProfile, OutputProfile};
use dunlin_protocol::distinct::{Distinct, hash};
use dunlin_protocol::sketch::{Edges, Histogram, Latency};
use proptest::prelude::*;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// A multiple of a day.
const START_MS: i64 = 20_717 * DAY_MS;

fn reference() -> Reference {
    let edges = Edges::try_from(vec![0.0, 0.25, 0.5, 1.0]).unwrap();
    let output = OutputProfile {
        edges: edges.clone(),
        counts: vec![100, 100, 100],
    };
    let feature = |name: &str| FeatureProfile {
        name: name.into(),
        tensor: "x".into(),
        after_steps: false,
        categories: None,
        statistic: None,
        axis: None,
        index: 0,
        edges: edges.clone(),
        counts: vec![100, 100, 100],
    };
    Reference {
        profile: Profile {
            schema: "dunlin.profile/1".into(),
            rows: 300,
            features: vec![
                feature("a"),
                feature("b"),
                FeatureProfile {
                    categories: Some(["ash", "elm", "oak"].map(str::to_owned).to_vec()),
                    ..feature("c")
                },
            ],
            outputs: ClassProfile {
                classes: vec!["a".into(), "b".into()],
                counts: vec![150, 150],
            },
            confidence: output.clone(),
            entropy: output,
            calibration: None,
            segments: None,
        },
        digest: Digest::of(b"profile"),
    }
}

fn histogram(counts: [u64; 3], nan: u64) -> Histogram {
    Histogram {
        counts: counts.to_vec(),
        nan,
        ..Histogram::default()
    }
}

/// Categories, of which so many were none, each of the minute's own kind or of all minutes'.
fn categories(counts: [u64; 3], over: u64, minute: i64) -> Histogram {
    let mut sketch = Distinct::default();
    for n in 0..over {
        let name = format!("{}-{n}", if n % 2 == 0 { minute } else { 0 });
        sketch.add(hash(name.as_bytes()));
    }
    Histogram {
        over,
        distinct: Some(sketch),
        ..histogram(counts, 0)
    }
}

/// A window of so many inferences; `kind` says what is wrong with it.
fn window(minute: i64, bins: [u64; 3], kind: u8) -> ReceivedWindow {
    let inferences: u64 = bins.iter().sum();
    let [low, middle, high] = bins;
    let confidence_sum_micro = low * 100_000 + middle * 400_000 + high * 800_000;
    let one = |bin: usize| {
        let mut counts = [0; 3];
        counts[bin] = inferences;
        histogram(counts, 0)
    };
    let mut window = Window {
        bundle: Digest::of(b"bundle"),
        family: "digits".parse().unwrap(),
        version: 2,
        start_ms: START_MS + minute * 60_000,
        end_ms: START_MS + (minute + 1) * 60_000,
        inferences,
        errors: low % 2,
        confidence_sum_micro,
        entropy_sum_micro: confidence_sum_micro,
        outputs: vec![low, middle + high],
        confidence: histogram(bins, 0),
        entropy: histogram(bins, 0),
        features: vec![
            histogram(bins, 0),
            histogram([high, low, middle], 0),
            categories([middle, 0, high], low, minute),
        ],
        profile: Some(Digest::of(b"profile")),
        latency: Latency {
            buckets: vec![0, inferences],
        },
        expected_confusion_nano: None,
        segment: None,
        refused: middle % 3,
    };
    match kind {
        0 => window.features[0] = histogram([0, 0, 0], inferences),
        1 => window.features[1] = one(0),
        2 => window.features[1] = one(2),
        3 => window.bundle = Digest::of(b"other"),
        4 => window.profile = Some(Digest::of(b"another")),
        5 => window.features.truncate(1),
        6 => window.segment = Some("night".into()),
        7 => window.confidence_sum_micro = u64::MAX,
        8 => window.end_ms += 3 * HOUR_MS,
        9 => window.latency.buckets = vec![1; 300],
        10 => window.features[2].distinct = None,
        _ => {}
    }
    let device = format!("dev-{}", minute % 2).parse().unwrap();
    ReceivedWindow::single(device, window.end_ms + 1000, window)
}

fn answer(windows: &[ReceivedWindow]) -> serde_json::Value {
    let query = DriftQuery {
        family: "digits".parse().unwrap(),
        version: None,
        cohort: "all".into(),
        devices: None,
        segment: None,
        since_ms: None,
        until_ms: None,
        sensitivity: SENSITIVITY,
        out_of_range_margin: range::MARGIN,
    };
    let reference = reference();
    let bundle = Some(Digest::of(b"bundle"));
    serde_json::to_value(of_windows(&query, 2, windows, bundle, Some(&reference))).unwrap()
}

/// As the store does it: one device and one unit at a time, in the order of their start.
fn rolled(windows: &[ReceivedWindow], unit_ms: i64) -> Vec<ReceivedWindow> {
    let mut groups: BTreeMap<_, Vec<(i64, ReceivedWindow)>> = BTreeMap::new();
    for (received, id) in windows.iter().zip(0..) {
        let unit = received.window.start_ms.div_euclid(unit_ms);
        let key = (received.device.clone(), received.window.bundle, unit);
        groups.entry(key).or_default().push((id, received.clone()));
    }
    let reference = reference();
    let mut after = Vec::new();
    for rows in groups.into_values() {
        let count = rows.len();
        let all: BTreeMap<i64, ReceivedWindow> = rows.iter().cloned().collect();
        let rolled = roll_up(rows, unit_ms, Digest::of(b"bundle"), Some(&reference));
        assert_eq!(
            rolled.sums.len() + rolled.gone.len() + rolled.left.len(),
            count
        );
        after.extend(rolled.sums.into_iter().map(|(_, sum)| sum));
        after.extend(rolled.left.iter().map(|id| all[id].clone()));
    }
    after
}

#[test]
fn sound_windows_of_an_hour_become_one() {
    let windows: Vec<_> = (0..120).map(|at| window(at, [5, 6, 7], 99)).collect();
    let hours = rolled(&windows, HOUR_MS);
    let parts: Vec<u64> = hours.iter().map(|w| w.parts).collect();
    assert_eq!(parts, [30, 30, 30, 30], "two devices, two hours");
    let first = &hours[0].window;
    assert_eq!((first.start_ms, first.inferences), (START_MS, 30 * 18));
    let new = &answer(&hours)["features"][2]["new_values"];
    assert_eq!(
        (
            new["values"].as_u64(),
            &answer(&windows)["features"][2]["new_values"]
        ),
        (Some(600), new)
    );
    // Three of each minute, and two of all minutes.
    assert!(
        (new["distinct"].as_f64().unwrap() - 362.0).abs() < 36.0,
        "{new}"
    );
    assert_eq!(rolled(&hours, DAY_MS).len(), 2);
}

#[test]
fn a_small_window_that_alone_is_no_constant_stays_none_in_the_sum() {
    // Twenty values in one bin say nothing, six hundred would.
    let windows: Vec<_> = (0..60).map(|at| window(at, [0, 0, 20], 99)).collect();
    let before = answer(&windows);
    assert_eq!(before["features"][1]["isolated"]["constant_windows"], 0);
    let hours = rolled(&windows, HOUR_MS);
    assert_eq!(hours.len(), 2);
    assert_eq!(answer(&hours), before);
}

#[test]
fn a_sum_stops_before_it_counts_more_than_an_honest_window_may() {
    let most = COUNT_MAX / 2 + 1;
    let mut windows = Vec::new();
    for at in 0..2 {
        let mut one = window(at * 2, [1, 0, 0], 99);
        one.soundness = Some(Vec::new());
        one.window.inferences = most;
        windows.push((at, one));
    }
    let rolled = roll_up(windows, HOUR_MS, Digest::of(b"bundle"), None);
    assert_eq!((rolled.sums.len(), rolled.gone.len()), (2, 0));
}

proptest! {
    /// No question for whole units can tell the difference, however often and in whatever steps.
    #[test]
    fn every_answer_stays_the_same(
        given in prop::collection::vec((0_i64..3000, [0_u64..40, 0..40, 0..40], 0_u8..30), 1..150),
    ) {
        let windows: Vec<_> = given.iter().map(|(at, bins, kind)| window(*at, *bins, *kind)).collect();
        let before = answer(&windows);
        let hours = rolled(&windows, HOUR_MS);
        prop_assert!(hours.len() <= windows.len());
        prop_assert_eq!(&answer(&hours), &before);
        let again = rolled(&hours, HOUR_MS);
        prop_assert_eq!(again.len(), hours.len());
        let days = rolled(&again, DAY_MS);
        prop_assert_eq!(&answer(&days), &before);
        let at_once = rolled(&windows, DAY_MS);
        prop_assert_eq!(&answer(&at_once), &before);
    }
}
