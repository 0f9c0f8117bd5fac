use super::*;
use dunlin_protocol::bundle::Segments;
use dunlin_protocol::bundle::{ClassProfile, OutputProfile};
use dunlin_protocol::calibration::{Calibration, Curve};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn edges(values: &[f64]) -> Edges {
    Edges::try_from(values.to_vec()).unwrap()
}

fn windows(window_ms: i64) -> Windows {
    let output = |values: &[f64]| OutputProfile {
        edges: edges(values),
        counts: vec![0; values.len() - 1],
    };
    let profile = Profile {
        schema: String::new(),
        rows: 1,
        features: vec![FeatureProfile {
            name: "f".to_owned(),
            tensor: "x".to_owned(),
            after_steps: false,
            categories: None,
            statistic: None,
            axis: None,
            index: 0,
            edges: edges(&[0.0, 1.0, 2.0]),
            counts: vec![0, 0],
        }],
        outputs: ClassProfile {
            classes: vec!["a".to_owned(), "b".to_owned()],
            counts: vec![0, 0],
        },
        confidence: output(&[0.0, 0.5, 1.1]),
        entropy: output(&[0.0, 0.3, 0.8]),
        calibration: None,
        segments: None,
    };
    Windows {
        bundle: Digest([1; 32]),
        family: "digits".parse().unwrap(),
        version: 1,
        classes: 2,
        profile: Some(Arc::new((Digest([2; 32]), profile))),
        window_ms,
        open: Vec::new(),
        closed: VecDeque::new(),
        resumed_ms: i64::MIN,
        totals: Totals::default(),
        counted: 0,
        signals: Vec::new(),
    }
}

const NONE: Segment = Segment::NONE;

fn seen(feature: f64, outputs: Vec<f32>) -> Observation {
    let (class, confidence, entropy) = top(&Values::FP32(outputs));
    Observation {
        features: vec![feature],
        unseen: Vec::new(),
        class,
        confidence,
        entropy,
        probabilities: None,
    }
}

#[test]
fn outputs_give_class_confidence_and_entropy() {
    let (class, confidence, entropy) = top(&Values::FP32(vec![0.25, 0.75, 0.0]));
    assert_eq!((class, confidence), (Some(1), 0.75));
    assert!((entropy - 0.562_335_144_618_808_3).abs() < 1e-12);
    assert_eq!(top(&Values::FP32(vec![0.5, 0.5])).0, Some(0));
    let (class, confidence, entropy) = top(&Values::FP32(vec![0.5, f32::NAN]));
    assert!(class.is_none() && confidence.is_nan() && entropy.is_nan());
    assert!(top(&Values::FP32(vec![-1.0, 2.0])).2.is_nan());
}

#[test]
fn windows_are_aligned_and_close_when_their_time_has_passed() {
    let mut w = windows(1000);
    w.answered(1500, NONE, &seen(0.5, vec![0.9, 0.1]), 10);
    w.failed(1999, NONE);
    assert_eq!(w.take_due(1999), []);
    w.answered(2000, NONE, &seen(9.0, vec![0.5, 0.5]), 10);
    let due = w.take_due(2500);
    assert_eq!(due.len(), 1);
    assert_eq!((due[0].start_ms, due[0].end_ms), (1000, 2000));
    assert_eq!((due[0].inferences, due[0].errors), (1, 1));
    assert_eq!(due[0].outputs, [1, 0]);
    assert_eq!(due[0].features[0].counts, [1, 0]);
    assert_eq!(due[0].confidence.counts, [0, 1]);
    assert_eq!(due[0].confidence_sum_micro, 900_000);
    assert_eq!(due[0].profile, Some(Digest([2; 32])));
    // Also without any further request.
    let idle = w.take_due(3000);
    assert_eq!(idle[0].features[0].over, 1);
    assert_eq!(w.take_due(9000), []);
    assert_eq!(w.take_all(9000), []);
    w.was_slow();
    let totals = w.totals();
    assert_eq!((totals.inferences, totals.errors, totals.slow), (2, 1, 1));
    let signals = w.take_signals();
    assert_eq!((signals.len(), signals[1].confidence), (2, 0.5));
    assert_eq!(w.take_signals(), []);
}

#[test]
fn calibrated_answers_are_expected_to_be_right_so_often() {
    let mut w = windows(1000);
    let curve = Curve {
        scores: vec![0.0, 1.0],
        probabilities: vec![0.0, 1.0],
    };
    let mut shared = w.profile.as_deref().unwrap().clone();
    shared.1.calibration = Some(Calibration {
        curves: vec![curve.clone(), curve],
        rows: 10,
        right: 9,
    });
    let calibration = shared.1.calibration.clone().unwrap();
    w.profile = Some(Arc::new(shared));
    for scores in [[0.75_f64, 0.25], [0.4, 0.6], [0.9, 0.1]] {
        #[allow(clippy::cast_possible_truncation)]
        let mut seen = seen(0.5, scores.map(|p| p as f32).to_vec());
        seen.probabilities = calibration.probabilities(scores.into_iter());
        w.answered(100, NONE, &seen, 1);
    }
    let window = w.take_all(200).remove(0);
    let cells = [1_650_000_000, 350_000_000, 400_000_000, 600_000_000];
    assert_eq!(window.expected_confusion_nano, Some(cells.to_vec()));
}

#[test]
fn segments_are_counted_apart_over_the_same_span() {
    let mut w = windows(1000);
    let mut shared = w.profile.as_deref().unwrap().clone();
    shared.1.segments = Some(Segments {
        key: "camera".to_owned(),
        values: vec!["north".to_owned(), "south".to_owned()],
    });
    w.profile = Some(Arc::new(shared.clone()));
    let of = |value: &str| {
        let said = serde_json::json!({"camera": value});
        Segment::of(Some(&shared.1), said.as_object(), &BTreeMap::new())
    };
    w.answered(10, of("south"), &seen(0.5, vec![0.9, 0.1]), 1);
    w.answered(20, NONE, &seen(0.5, vec![0.9, 0.1]), 1);
    w.answered(30, of("south"), &seen(0.5, vec![0.9, 0.1]), 1);
    w.failed(40, of("attic"));
    w.refused(50, of("north"));
    let taken = w.take_due(1000);
    let counted: Vec<_> = taken
        .iter()
        .map(|w| (w.segment.as_deref(), w.inferences, w.errors, w.refused))
        .collect();
    let expected = [
        (Some("south"), 2, 0, 0),
        (None, 1, 0, 0),
        (Some("other"), 0, 1, 0),
        (Some("north"), 0, 0, 1),
    ];
    assert_eq!(counted, expected);
    assert!(taken.iter().all(|w| (w.start_ms, w.end_ms) == (0, 1000)));
    // However long the supervisor does not come, no more than these are kept.
    for n in 0..1000_i64 {
        for value in ["north", "south", "west"] {
            w.answered(n * 1000, of(value), &seen(0.5, vec![0.9, 0.1]), 1);
        }
    }
    let taken = w.take_all(2_000_000);
    assert!(taken.len() <= CLOSED_MAX * 4 + 4, "{}", taken.len());
    assert_eq!(taken.iter().map(|w| w.inferences).sum::<u64>(), 3000);
}

#[test]
fn values_that_are_no_category_are_sketched_and_nothing_else_is() {
    let mut w = windows(1000);
    let mut shared = w.profile.as_deref().unwrap().clone();
    let categories = vec!["ash".to_owned(), "elm".to_owned()];
    shared.1.features[0].categories = Some(categories.clone());
    let feature = shared.1.features[0].clone();
    w.profile = Some(Arc::new(shared));
    let texts = ["ash", "yew", "elm", "larch", "yew", "ash"];
    for text in texts {
        let values = Values::BYTES(vec![text.as_bytes().to_vec()]);
        #[allow(clippy::cast_precision_loss)]
        let value = values.category(0, &categories).unwrap() as f64;
        let mut seen = seen(value, vec![0.9, 0.1]);
        if is_unseen(&feature, value) {
            seen.unseen.push((0, values.hash(0).unwrap()));
        }
        w.answered(10, NONE, &seen, 1);
    }
    let window = w.take_all(20).remove(0);
    let mut expected = Distinct::default();
    for text in ["yew", "larch"] {
        expected.add(dunlin_protocol::distinct::hash(text.as_bytes()));
    }
    assert_eq!(
        (&window.features[0].counts[..], window.features[0].over),
        (&[2, 1][..], 3)
    );
    assert_eq!(window.features[0].distinct, Some(expected));
    assert!(window.confidence.distinct.is_none());
    // Numbers are hashed as they are compared: as JSON writes them.
    assert_eq!(
        Values::FP32(vec![7.0]).hash(0),
        Values::INT64(vec![7]).hash(0)
    );
    assert_eq!(
        Values::BOOL(vec![true]).hash(0),
        Values::BYTES(vec![b"true".to_vec()]).hash(0)
    );
    assert_eq!(Values::INT64(vec![7]).hash(1), None);
}

#[test]
fn windows_with_full_sketches_fit_a_segment() {
    let mut w = windows(1000);
    let mut shared = w.profile.as_deref().unwrap().clone();
    shared.1.features[0].categories = Some(vec!["a".to_owned(), "b".to_owned()]);
    shared.1.features = vec![shared.1.features[0].clone(); 4000];
    w.profile = Some(Arc::new(shared));
    w.failed(10, NONE);
    let mut window = w.take_all(20).remove(0);
    let full = (0..100_000_u32).fold(Distinct::default(), |mut full, n| {
        full.add(dunlin_protocol::distinct::hash(&n.to_be_bytes()));
        full
    });
    let mut sketches = window
        .features
        .iter_mut()
        .filter_map(|f| f.distinct.as_mut());
    sketches
        .by_ref()
        .for_each(|sketch| sketch.clone_from(&full));
    let with = window
        .features
        .iter()
        .filter(|f| f.distinct.is_some())
        .count();
    assert!((400..500).contains(&with), "{with}");
    let json = serde_json::to_vec(&window).unwrap();
    assert!(json.len() < SEGMENT_MAX_BYTES, "{}", json.len());
}

#[test]
fn a_flush_splits_the_span() {
    let mut w = windows(1000);
    w.answered(100, NONE, &seen(0.0, vec![1.0, 0.0]), 1);
    let first = w.take_all(200);
    w.answered(300, NONE, &seen(0.0, vec![1.0, 0.0]), 1);
    let second = w.take_due(1000);
    assert_eq!((first[0].start_ms, first[0].end_ms), (0, 201));
    assert_eq!((second[0].start_ms, second[0].end_ms), (200, 1000));
}

#[test]
fn not_a_number_is_counted_as_such() {
    let mut w = windows(1000);
    w.answered(0, NONE, &seen(f64::NAN, vec![f32::NAN, 0.1]), 1);
    let window = w.take_all(1).remove(0);
    assert_eq!(window.inferences, 1);
    assert_eq!((window.confidence.nan, window.entropy.nan), (1, 1));
    assert_eq!(window.features[0].nan, 1);
    assert_eq!(window.outputs, [0, 0]);
    assert_eq!(window.confidence_sum_micro, 0);
}

#[test]
fn a_clock_set_back_closes_the_window() {
    let mut w = windows(1000);
    w.answered(10_000, NONE, &seen(0.0, vec![1.0, 0.0]), 1);
    w.answered(500, NONE, &seen(0.0, vec![1.0, 0.0]), 1);
    let spans: Vec<_> = w
        .take_all(600)
        .iter()
        .map(|w| (w.start_ms, w.end_ms))
        .collect();
    assert_eq!(spans, [(10_000, 11_000), (0, 601)]);
}

#[test]
fn a_slow_supervisor_costs_resolution_but_no_counts() {
    let mut w = windows(10);
    for n in 0..100 {
        w.answered(n * 10, NONE, &seen(0.0, vec![1.0, 0.0]), 1);
    }
    let all = w.take_due(5000);
    assert_eq!(all.len(), CLOSED_MAX + 1);
    assert_eq!(all.iter().map(|w| w.inferences).sum::<u64>(), 100);
    assert_eq!(all.last().unwrap().end_ms, 1000);
}

proptest! {
    #[test]
    fn every_request_is_in_exactly_one_window(
        events in prop::collection::vec((0_i64..5000, 0_u8..6), 0..300),
    ) {
        let mut w = windows(100);
        let mut taken = Vec::new();
        let (mut answered, mut failed) = (0, 0);
        for (now, action) in events {
            match action {
                0 => taken.extend(w.take_due(now)),
                1 => taken.extend(w.take_all(now)),
                2 => { w.failed(now, NONE); failed += 1; }
                _ => { w.answered(now, NONE, &seen(1.5, vec![0.2, 0.8]), 5); answered += 1; }
            }
        }
        taken.extend(w.take_all(5000));
        prop_assert_eq!(taken.iter().map(|w| w.inferences).sum::<u64>(), answered);
        prop_assert_eq!(taken.iter().map(|w| w.errors).sum::<u64>(), failed);
        prop_assert_eq!(taken.iter().map(|w| w.latency.total()).sum::<u64>(), answered);
        prop_assert_eq!(taken.iter().map(|w| w.outputs[1]).sum::<u64>(), answered);
        prop_assert!(taken.iter().all(|w| w.start_ms < w.end_ms && w.inferences + w.errors > 0));
    }
}
