#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::pool::Pool;
use super::publish::{group, scores};
use super::*;
use crate::drift::statistics::range;
use dunlin_protocol::bundle::OutputProfile;
use dunlin_protocol::distinct::{Distinct, hash};
use dunlin_protocol::sketch::{Edges, Histogram, Latency};
use dunlin_protocol::telemetry::Window;
use proptest::prelude::*;

const START_MS: i64 = 1_790_000_000_000;

fn reference() -> Reference {
    let edges = Edges::try_from(vec![0.0, 0.25, 0.5, 1.0]).unwrap();
    let output = OutputProfile {
        edges: edges.clone(),
        counts: vec![100, 100, 100],
    };
    let feature = dunlin_protocol::bundle::FeatureProfile {
        name: "pixel".into(),
        tensor: "x".into(),
        after_steps: false,
        categories: None,
        statistic: None,
        axis: None,
        index: 0,
        edges,
        counts: vec![100, 100, 100],
    };
    let profile = Profile {
        schema: "dunlin.profile/1".into(),
        rows: 300,
        features: vec![feature],
        outputs: dunlin_protocol::bundle::ClassProfile {
            classes: vec!["a".into(), "b".into()],
            counts: vec![150, 150],
        },
        confidence: output.clone(),
        entropy: output,
        calibration: None,
        segments: None,
    };
    Reference {
        profile,
        digest: Digest::of(b"profile"),
    }
}

fn window(bins: [u64; 3], outputs: [u64; 2]) -> Window {
    let histogram = Histogram {
        counts: bins.to_vec(),
        ..Histogram::default()
    };
    let inferences = bins.iter().sum();
    Window {
        bundle: Digest::of(b"bundle"),
        family: "digits".parse().unwrap(),
        version: 2,
        start_ms: START_MS,
        end_ms: START_MS + 60_000,
        inferences,
        errors: 1,
        confidence_sum_micro: (bins[0] + 2 * bins[1] + 3 * bins[2]) * 200_000,
        entropy_sum_micro: (bins[0] + 2 * bins[1] + 3 * bins[2]) * 200_000,
        outputs: outputs.to_vec(),
        confidence: histogram.clone(),
        entropy: histogram.clone(),
        features: vec![histogram],
        profile: Some(Digest::of(b"profile")),
        latency: Latency {
            buckets: vec![0, inferences],
        },
        expected_confusion_nano: None,
        segment: None,
        refused: 0,
    }
}

fn query() -> DriftQuery {
    DriftQuery {
        family: "digits".parse().unwrap(),
        version: None,
        cohort: "all".into(),
        devices: None,
        segment: None,
        since_ms: None,
        until_ms: None,
        sensitivity: SENSITIVITY,
        out_of_range_margin: range::MARGIN,
    }
}

fn received(device: &str, window: &Window) -> ReceivedWindow {
    ReceivedWindow::single(
        device.parse().unwrap(),
        START_MS + 3_600_000,
        window.clone(),
    )
}

fn scored(windows: &[(&str, Window)]) -> Drift {
    let windows: Vec<ReceivedWindow> = windows.iter().map(|(d, w)| received(d, w)).collect();
    let reference = reference();
    let pool = Pool::of(
        None,
        &windows,
        Some(Digest::of(b"bundle")),
        Some(&reference),
    );
    scores(&query(), 2, &pool, Some(&reference), None)
}

#[test]
fn the_same_mix_is_quiet_and_another_alarms() {
    let quiet = scored(&[
        ("a", window([30, 30, 30], [45, 45])),
        ("b", window([70, 70, 70], [105, 105])),
    ]);
    assert_eq!(
        (quiet.status, quiet.devices, quiet.windows, quiet.inferences),
        (Status::Quiet, 2, 2, 300)
    );
    assert_eq!((quiet.confidence_mean, quiet.errors), (Some(0.4), 2));
    assert_eq!(quiet.features[0].scores.psi.unwrap().n_cur, 300);
    let alarm = scored(&[("a", window([280, 10, 10], [150, 150]))]);
    assert_eq!(alarm.status, Status::Alarm);
    assert_eq!(alarm.features[0].scores.psi.unwrap().status, Status::Alarm);
    assert_eq!(
        alarm.output_mix.unwrap().scores.psi.unwrap().status,
        Status::Quiet
    );
}

#[test]
fn a_few_values_far_off_are_an_alarm_whatever_the_bins_say() {
    let leaving = |over: u64| {
        let mut window = window([400, 400, 400], [600, 600]);
        window.features[0].counts[2] -= over;
        window.features[0].over = over;
        scored(&[("a", window)])
    };
    let far = leaving(60);
    let feature = &far.features[0];
    let range = feature.out_of_range.unwrap();
    assert_eq!(feature.scores.psi.unwrap().status, Status::Quiet);
    assert_eq!(
        (range.score.status, far.status),
        (Status::Alarm, Status::Alarm)
    );
    assert!(
        (range.score.value - 0.05).abs() < 1e-12 && range.lower > 0.027,
        "{range:?}"
    );
    assert!(range.p_adjusted.unwrap() < 0.01 && range.score.value > range.score.threshold);
    for few in [0, 12, 24] {
        let drift = leaving(few);
        assert_eq!(drift.status, Status::Quiet, "{few}");
        assert_eq!(drift.features[0].outside, few);
    }
    let confidence = far.confidence.unwrap().out_of_range.unwrap();
    assert_eq!(confidence.score.status, Status::Quiet);
}

#[test]
fn too_few_for_bins_stay_too_few_whatever_the_range_says() {
    let mut reference = reference();
    let output = OutputProfile {
        edges: Edges::try_from((0..=10).map(f64::from).collect::<Vec<f64>>()).unwrap(),
        counts: vec![30; 10],
    };
    let profile = &mut reference.profile;
    (profile.confidence, profile.entropy) = (output.clone(), output.clone());
    profile.features[0].edges = output.edges;
    profile.features[0].counts = output.counts;
    profile.outputs.counts = vec![300, 0];
    let of = |inside: u64| {
        let mut window = window([20, 20, 20], [60, 0]);
        let histogram = Histogram {
            counts: vec![6; 10],
            ..Histogram::default()
        };
        (window.confidence, window.entropy) = (histogram.clone(), histogram.clone());
        (window.confidence_sum_micro, window.entropy_sum_micro) = (300_000_000, 300_000_000);
        window.features[0] = Histogram {
            counts: vec![inside; 10],
            over: 60 - 10 * inside,
            ..Histogram::default()
        };
        let windows = [received("a", &window)];
        of_windows(&query(), 2, &windows, None, Some(&reference))
    };
    let range = |drift: &Drift| drift.features[0].out_of_range.unwrap().score.status;
    let quiet = of(6);
    assert_eq!(
        (range(&quiet), quiet.status),
        (Status::Quiet, Status::Insufficient)
    );
    let left = of(4);
    assert_eq!((range(&left), left.status), (Status::Alarm, Status::Alarm));
}

#[test]
fn new_values_of_categories_are_counted() {
    let mut reference = reference();
    let names = ["ash", "elm", "oak"].map(str::to_owned);
    let feature = &mut reference.profile.features[0];
    feature.edges = Edges::try_from(vec![0.0, 1.0, 2.0, 3.0]).unwrap();
    feature.categories = Some(names.to_vec());
    let with = |over: u64, names: std::ops::Range<u64>| {
        let mut window = window([100, 100, 100], [150, 150]);
        window.features[0].counts[2] -= over;
        window.features[0].over = over;
        let mut sketch = Distinct::default();
        names.for_each(|n| sketch.add(hash(&n.to_be_bytes())));
        window.features[0].distinct = Some(sketch);
        window
    };
    let mut unsketched = with(10, 0..0);
    unsketched.features[0].distinct = None;
    let sent = [
        ("a", with(60, 0..50)),
        ("b", unsketched),
        ("c", with(80, 30..70)),
        ("d", with(0, 0..0)),
        // More registers than values: not even its counts.
        ("e", with(5, 0..50)),
    ];
    let mut answers = Vec::new();
    for order in [[0, 1, 2, 3, 4], [4, 2, 3, 1, 0]] {
        let windows = order.map(|at: usize| received(sent[at].0, &sent[at].1));
        let drift = of_windows(&query(), 2, &windows, None, Some(&reference));
        let feature = &drift.features[0];
        let range = feature.out_of_range.unwrap();
        assert_eq!(range.score.status, Status::Alarm);
        let new = feature.new_values.unwrap();
        assert!((new.distinct - 70.0).abs() < 4.0, "{new:?}");
        assert_eq!((feature.outside, new.values), (150, 140));
        assert!(drift.confidence.as_ref().unwrap().new_values.is_none());
        answers.push(serde_json::to_vec(&drift).unwrap());
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn windows_that_do_not_fit_are_named_and_left_out() {
    let good = window([100, 100, 100], [150, 150]);
    let strange = Window {
        profile: Some(Digest::of(b"other")),
        ..window([900, 0, 0], [900, 0])
    };
    let nameless = Window {
        profile: None,
        ..strange.clone()
    };
    let misfit = Window {
        outputs: vec![900],
        ..window([900, 0, 0], [900, 0])
    };
    let foreign = Window {
        bundle: Digest::of(b"forged"),
        ..window([900, 0, 0], [900, 0])
    };
    let drift = scored(&[
        ("a", good),
        ("b", strange),
        ("c", nameless),
        ("d", misfit),
        ("e", foreign),
    ]);
    assert_eq!(drift.status, Status::Quiet);
    assert_eq!(drift.features[0].scores.psi.unwrap().n_cur, 300);
    assert_eq!(drift.left_out.values().sum::<u64>(), 4);
    assert_eq!(
        (drift.windows, drift.devices, drift.inferences),
        (1, 1, 300),
        "an honest device names its bundle's profile and bins"
    );
}

#[test]
fn absurd_windows_count_nowhere_and_are_named() {
    let good = || window([100, 100, 100], [150, 150]);
    type Spoil = fn(&mut Window);
    let spoils: [(&str, Spoil); 8] = [
        ("span", |w| w.end_ms = w.start_ms),
        ("more inferences", |w| w.inferences = u64::MAX),
        ("histograms count other", |w| w.outputs[0] = u64::MAX),
        ("histograms count other", |w| w.features[0].nan = 1 << 63),
        ("sums do not fit", |w| w.confidence_sum_micro = u64::MAX),
        ("sums do not fit", |w| w.entropy_sum_micro = 0),
        ("before 2020", |w| (w.start_ms, w.end_ms) = (5000, 65_000)),
        ("a day ahead", |w| {
            (w.start_ms, w.end_ms) = (4_294_967_296_000, 4_294_967_356_000);
        }),
    ];
    let expected = scored(&[("a", good())]);
    for (named, spoil) in spoils {
        let mut spoiled = good();
        spoil(&mut spoiled);
        for order in [
            [("a", good()), ("b", spoiled.clone())],
            [("b", spoiled.clone()), ("a", good())],
        ] {
            let mut drift = scored(&order);
            let left_out = std::mem::take(&mut drift.left_out);
            assert!(
                left_out
                    .iter()
                    .any(|(why, n)| why.contains(named) && *n == 1),
                "{named}: {left_out:?}"
            );
            assert_eq!(drift, expected, "{named}");
        }
    }
}

#[test]
fn a_storm_of_nan_is_kept_out_of_the_scores_and_is_an_alarm() {
    let mut storm = window([100, 100, 100], [150, 150]);
    storm.features[0] = Histogram {
        counts: vec![20, 0, 0],
        nan: 270,
        missing: 10,
        ..Histogram::default()
    };
    let drift = scored(&[
        ("a", window([100, 100, 100], [150, 150])),
        ("b", storm.clone()),
        ("b", storm),
    ]);
    let feature = &drift.features[0];
    let psi = feature.scores.psi.unwrap();
    assert_eq!((psi.n_cur, psi.status), (300, Status::Quiet));
    assert_eq!(feature.unusable, 560);
    assert_eq!(
        feature.isolated,
        Isolated {
            unusable_windows: 2,
            constant_windows: 0,
            devices: 1,
            values: 600,
            status: Status::Alarm
        }
    );
    assert_eq!(drift.status, Status::Alarm);
    assert_eq!(drift.inferences, 900, "the windows are sound otherwise");
}

#[test]
fn a_stuck_sensor_is_kept_out_and_a_model_that_says_the_same_is_not() {
    let stuck = window([0, 300, 0], [300, 0]);
    let drift = scored(&[("a", window([100, 100, 100], [150, 150])), ("b", stuck)]);
    let feature = &drift.features[0];
    assert_eq!(feature.scores.psi.unwrap().n_cur, 300);
    assert_eq!(
        (feature.isolated.constant_windows, feature.isolated.values),
        (1, 300)
    );
    assert_eq!(drift.confidence.unwrap().scores.psi.unwrap().n_cur, 600);
    // Twenty times the same says nothing yet.
    let few = scored(&[("a", window([20, 0, 0], [10, 10]))]);
    assert_eq!(few.features[0].isolated.constant_windows, 0);
    assert_eq!(few.features[0].scores.psi.unwrap().n_cur, 20);
}

#[test]
fn features_are_held_against_each_other() {
    // One of many drifts by a little: enough by itself, not among so many.
    let mut reference = reference();
    let feature = reference.profile.features[0].clone();
    reference.profile.features = vec![feature; 40];
    let one = |bins: [u64; 3]| Histogram {
        counts: bins.to_vec(),
        ..Histogram::default()
    };
    let of = |odd: usize, bins: [u64; 3]| {
        let mut window = window([100, 100, 100], [150, 150]);
        window.features = vec![one([100, 100, 100]); 40];
        window.features[..odd].fill(one(bins));
        let windows = [received("a", &window)];
        let pool = Pool::of(None, &windows, None, Some(&reference));
        let query = DriftQuery {
            sensitivity: Sensitivity {
                margin: 0.0,
                ..SENSITIVITY
            },
            ..query()
        };
        scores(&query, 2, &pool, Some(&reference), None)
    };
    let alarms = |drift: &Drift| {
        let psi = drift.features.iter().filter_map(|f| f.scores.psi);
        psi.filter(|psi| psi.status == Status::Alarm).count()
    };
    let alone = of(1, [130, 95, 75]);
    let p = alone.features[0].p_value.unwrap();
    assert!(
        p < 0.05 && alone.features[0].p_adjusted.unwrap() > 0.05,
        "{p}"
    );
    assert_eq!(alarms(&alone), 0);
    assert_eq!(alarms(&of(40, [130, 95, 75])), 40);
    assert_eq!(alarms(&of(1, [200, 60, 40])), 1);
}

#[test]
fn too_few_values_for_the_bins_are_held_against_a_share_of_alpha() {
    // Six expected in each of ten bins: no PSI, but Kolmogorov–Smirnov, at p of about .009.
    let of = |features: usize| {
        let mut reference = reference();
        let mut feature = reference.profile.features[0].clone();
        feature.edges = Edges::try_from((0..=10).map(f64::from).collect::<Vec<f64>>()).unwrap();
        feature.counts = vec![30; 10];
        reference.profile.features = vec![feature; features];
        let mut window = window([20, 20, 20], [30, 30]);
        let counts = vec![9, 9, 9, 9, 8, 4, 3, 3, 3, 3];
        let current = Histogram {
            counts,
            ..Histogram::default()
        };
        window.features = vec![current; features];
        let windows = [received("a", &window)];
        let pool = Pool::of(None, &windows, None, Some(&reference));
        scores(&query(), 2, &pool, Some(&reference), None)
    };
    let judged = |drift: &Drift| {
        let feature = &drift.features[0];
        let ks = feature.kolmogorov_smirnov.unwrap().score;
        (feature.scores.psi.unwrap().status, ks.status)
    };
    assert_eq!(judged(&of(1)), (Status::Insufficient, Status::Alarm));
    assert_eq!(judged(&of(40)), (Status::Insufficient, Status::Quiet));
}

#[test]
fn accuracy_is_estimated_where_there_is_a_calibration() {
    use dunlin_protocol::calibration::{Calibration, Curve, ONE_NANO};
    let mut reference = reference();
    let curve = Curve {
        scores: vec![0.0, 1.0],
        probabilities: vec![0.0, 1.0],
    };
    reference.profile.calibration = Some(Calibration {
        curves: vec![curve.clone(), curve],
        rows: 1000,
        right: 950,
    });
    let with = |cells: [u64; 4]| Window {
        expected_confusion_nano: Some(cells.map(|n| n * ONE_NANO / 10).to_vec()),
        ..window([100, 100, 100], [150, 150])
    };
    let drift = |windows: &[Window]| {
        let windows: Vec<ReceivedWindow> = windows.iter().map(|w| received("a", w)).collect();
        let pool = Pool::of(None, &windows, None, Some(&reference));
        scores(&query(), 2, &pool, Some(&reference), None)
    };
    let good = drift(&[with([1425, 75, 75, 1425]), with([1425, 75, 75, 1425])]);
    let accuracy = good.estimated_accuracy.unwrap();
    assert!((accuracy.accuracy - 0.95).abs() < 1e-12);
    assert_eq!(
        (accuracy.fall.n_cur, accuracy.fall.status),
        (600, Status::Quiet)
    );
    let bad = drift(&[with([1000, 500, 500, 1000])]);
    assert_eq!(bad.estimated_accuracy.unwrap().fall.status, Status::Alarm);
    assert_eq!(bad.status, Status::Alarm);
    let absurd = drift(&[with([u64::MAX / 10_000_000_000, 0, 0, 0])]);
    assert_eq!((absurd.windows, absurd.estimated_accuracy), (0, None));
}

#[test]
fn answers_of_a_class_that_was_never_seen_are_counted() {
    let mut reference = reference();
    reference.profile.outputs.counts = vec![300, 0];
    let windows = [received("a", &window([100, 100, 100], [260, 40]))];
    let pool = Pool::of(None, &windows, None, Some(&reference));
    let drift = scores(&query(), 2, &pool, Some(&reference), None);
    let mix = drift.output_mix.unwrap();
    let range = mix.out_of_range.unwrap();
    assert_eq!((mix.unseen, range.score.status), (40, Status::Alarm));
    assert_eq!(drift.status, Status::Alarm);
}

/// The pooled rest of both hardly changes its share.
#[test]
fn a_new_category_is_seen_where_it_takes_the_place_of_a_rare_one() {
    let mut reference = reference();
    let feature = &mut reference.profile.features[0];
    feature.categories = Some(["ash", "elm", "oak"].map(str::to_owned).to_vec());
    feature.edges = Edges::try_from(vec![0.0, 1.0, 2.0, 3.0]).unwrap();
    feature.counts = vec![178, 92, 30];
    let drift = |counts: [u64; 3], over: u64| {
        let mut window = window([500, 500, 500], [750, 750]);
        window.features[0].counts = counts.to_vec();
        window.features[0].over = over;
        let windows = [received("a", &window)];
        of_windows(&query(), 2, &windows, None, Some(&reference))
    };
    let usual = drift([890, 460, 150], 0);
    assert_eq!(usual.status, Status::Quiet, "{usual:?}");
    let replaced = drift([890, 460, 0], 150);
    let feature = &replaced.features[0];
    assert_eq!(feature.scores.psi.unwrap().status, Status::Quiet);
    assert_eq!(
        (feature.out_of_range.unwrap().score.status, replaced.status),
        (Status::Alarm, Status::Alarm)
    );
}

#[test]
fn windows_over_another_profile_or_other_bins_count_for_nothing() {
    let honest = window([30, 30, 30], [45, 45]);
    let loud = |spoil: fn(&mut Window)| {
        let mut window = window([30, 30, 30], [45, 45]);
        spoil(&mut window);
        window
    };
    let others = [
        (
            "over another reference profile",
            loud(|w| (w.profile, w.confidence_sum_micro) = (Some(Digest::of(b"other")), u64::MAX)),
        ),
        (
            "no reference profile named",
            loud(|w| (w.profile, w.entropy_sum_micro) = (None, u64::MAX)),
        ),
        (
            "other bins than the reference profile's",
            loud(|w| {
                w.inferences = 59_000_000;
                (w.confidence, w.entropy) = (Histogram::default(), Histogram::default());
                (w.features, w.latency) = (Vec::new(), Latency::default());
                (w.outputs, w.confidence_sum_micro) = (Vec::new(), 0);
            }),
        ),
    ];
    let alone = scored(&[("a", honest.clone())]);
    for (why, other) in others {
        let mut both = scored(&[("a", honest.clone()), ("b", other)]);
        let left_out = std::mem::take(&mut both.left_out);
        assert_eq!(left_out, BTreeMap::from([(why.to_owned(), 1)]));
        assert_eq!(both, alone, "{why}");
    }
}

#[test]
fn without_a_profile_sums_are_given_and_scores_are_not() {
    let windows = [received("a", &window([1, 1, 1], [1, 2]))];
    let pool = Pool::of(None, &windows, None, None);
    let drift = scores(&query(), 2, &pool, None, Some("no profile".into()));
    assert_eq!(
        (drift.status, drift.inferences, drift.features.len()),
        (Status::Insufficient, 3, 0)
    );
    assert_eq!(drift.note.as_deref(), Some("no profile"));
}

#[test]
fn fine_bins_are_joined_to_about_tenths() {
    let reference = vec![25_u64; 40];
    let (groups, current) = group(&reference, &vec![1; 40]);
    assert_eq!((groups, current), (vec![100; 10], vec![4; 10]));
    assert_eq!(
        group(&[0, 500, 0], &[3, 4, 5]).0.len(),
        1,
        "one atom: nothing to compare"
    );
    assert_eq!(group(&[0, 0], &[1, 1]), (vec![0], vec![2]));
    assert_eq!(group(&[], &[]), (vec![], vec![]));
}

proptest! {
    #[test]
    fn grouping_loses_nothing(pairs in prop::collection::vec((0_u64..50, 0_u64..50), 0..60)) {
        let (reference, current): (Vec<u64>, Vec<u64>) = pairs.into_iter().unzip();
        let (groups, grouped) = group(&reference, &current);
        prop_assert_eq!(groups.len(), grouped.len());
        prop_assert_eq!(groups.iter().sum::<u64>(), reference.iter().sum::<u64>());
        prop_assert_eq!(grouped.iter().sum::<u64>(), current.iter().sum::<u64>());
    }

    /// Any partition of the data over devices and windows, in any order, some of it absurd: the same
    /// bytes.
    #[test]
    fn any_partition_in_any_order_gives_the_same_bytes(
        rows in prop::collection::vec((0_usize..3, 0_usize..2, 0_usize..6, 0_u8..30), 1..400),
        order in prop::collection::vec(any::<u32>(), 8),
        absurd in 0_usize..3,
    ) {
        // Rows by bin and by class; of the last bin's, those that lie beyond it.
        let mut parts = vec![([0_u64; 3], [0_u64; 2], 0_u64); 6];
        for (bin, class, part, place) in &rows {
            parts[*part].0[*bin] += 1;
            parts[*part].1[*class] += 1;
            parts[*part].2 += u64::from(*bin == 2 && *place == 0);
        }
        let window_of = |part: &([u64; 3], [u64; 2], u64)| {
            let mut window = window(part.0, part.1);
            window.features[0].counts[2] -= part.2;
            window.features[0].over += part.2;
            window
        };
        let mut windows: Vec<(&str, Window)> = parts
            .iter()
            .filter(|part| part.0.iter().sum::<u64>() > 0)
            .map(|part| ("a", window_of(part)))
            .collect();
        for _ in 0..absurd {
            windows.push(("a", Window { inferences: u64::MAX, ..window([1, 1, 1], [1, 2]) }));
        }
        let in_turn = serde_json::to_vec(&scored(&windows)).unwrap();
        let mut keyed: Vec<_> = windows.iter().cloned().zip(&order).collect();
        keyed.sort_by_key(|(_, key)| **key);
        let shuffled: Vec<(&str, Window)> = keyed.into_iter().map(|(w, _)| w).collect();
        prop_assert_eq!(&serde_json::to_vec(&scored(&shuffled)).unwrap(), &in_turn);
        // As one window, unless a part by itself looked like a stuck sensor.
        let is_split_alike = |drift: &Drift| drift.features[0].isolated == Isolated {
            status: Status::Quiet,
            ..Isolated::default()
        };
        let whole = parts.iter().fold(([0; 3], [0; 2], 0), |sum, part| (
            [0, 1, 2].map(|at| sum.0[at] + part.0[at]),
            [0, 1].map(|at| sum.1[at] + part.1[at]),
            sum.2 + part.2,
        ));
        let mut split = scored(&windows);
        let mut whole = scored(&[("a", window_of(&whole))]);
        if is_split_alike(&split) && is_split_alike(&whole) {
            // Errors and windows are counted by window.
            for drift in [&mut split, &mut whole] {
                (drift.windows, drift.errors) = (0, 0);
                drift.left_out.clear();
            }
            prop_assert_eq!(serde_json::to_vec(&split).unwrap(), serde_json::to_vec(&whole).unwrap());
        }
    }
}

#[test]
fn segments_are_scored_apart_and_only_those_that_are_signed() {
    let mut reference = reference();
    let of = |bins: [u64; 3], segment: Option<&str>| Window {
        segment: segment.map(str::to_owned),
        refused: 2,
        ..window(bins, [45, 45])
    };
    let windows = [
        received("a", &of([30, 30, 30], Some("north"))),
        received("b", &of([90, 0, 0], Some("south"))),
        received("c", &of([30, 30, 30], None)),
        received("d", &of([0, 0, 90], Some("moon"))),
    ];
    let drift = |reference: &Reference, segment: Option<&str>| {
        let query = DriftQuery {
            segment: segment.map(str::to_owned),
            ..query()
        };
        of_windows(&query, 2, &windows, None, Some(reference))
    };
    let undeclared = drift(&reference, None);
    assert_eq!((undeclared.windows, undeclared.segments.len()), (1, 0));
    reference.profile.segments = Some(dunlin_protocol::bundle::Segments {
        key: "camera".to_owned(),
        values: vec!["north".to_owned(), "south".to_owned()],
    });
    let all = drift(&reference, None);
    assert_eq!((all.windows, all.inferences, all.refused), (3, 270, 6));
    assert_eq!(all.left_out.values().sum::<u64>(), 1, "{:?}", all.left_out);
    let north = drift(&reference, Some("north"));
    assert_eq!((north.windows, north.devices, north.inferences), (1, 1, 90));
    assert_eq!(north.segments, all.segments);
    assert_eq!(all.segments["south"], 90);
    assert_eq!(drift(&reference, Some("west")).windows, 0);

    let problem = |asked| no_such_segment(&reference.profile, asked);
    assert_eq!((problem(None), problem(Some("north"))), (None, None));
    let expected = "its profile has no segment \"west\": expected one of north, south";
    assert_eq!(problem(Some("west")).as_deref(), Some(expected));
}
