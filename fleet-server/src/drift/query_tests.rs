#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use dunlin_protocol::sketch::Edges;
use proptest::prelude::*;

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
        start_ms: 10,
        end_ms: 20,
        inferences,
        errors: 1,
        confidence_sum_micro: inferences * 500_000,
        entropy_sum_micro: 0,
        outputs: outputs.to_vec(),
        confidence: histogram.clone(),
        entropy: histogram.clone(),
        features: vec![histogram],
        profile: Some(Digest::of(b"profile")),
        latency: Latency {
            buckets: vec![0, inferences],
        },
    }
}

fn query() -> DriftQuery {
    DriftQuery {
        family: "digits".parse().unwrap(),
        version: None,
        cohort: "all".into(),
        devices: None,
        since_ms: None,
        until_ms: None,
        sensitivity: SENSITIVITY,
    }
}

fn scored(windows: &[(&str, Window)]) -> Drift {
    let windows: Vec<(DeviceId, Window)> = windows
        .iter()
        .map(|(d, w)| (d.parse().unwrap(), w.clone()))
        .collect();
    let reference = reference();
    let pool = pool(&windows, Some(Digest::of(b"bundle")), Some(&reference));
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
    assert_eq!((quiet.confidence_mean, quiet.errors), (Some(0.5), 2));
    assert_eq!(quiet.features[0].psi.unwrap().n_cur, 300);
    let alarm = scored(&[("a", window([280, 10, 10], [150, 150]))]);
    assert_eq!(alarm.status, Status::Alarm);
    assert_eq!(alarm.features[0].psi.unwrap().status, Status::Alarm);
    assert_eq!(alarm.output_mix.unwrap().psi.unwrap().status, Status::Quiet);
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
    assert_eq!(drift.features[0].psi.unwrap().n_cur, 300);
    assert_eq!(drift.left_out.values().sum::<u64>(), 4);
    assert_eq!(
        (drift.windows, drift.devices),
        (4, 4),
        "a forged bundle's window counts nowhere"
    );
}

#[test]
fn without_a_profile_sums_are_given_and_scores_are_not() {
    let windows = [("a".parse().unwrap(), window([1, 1, 1], [1, 2]))];
    let pool = pool(&windows, None, None);
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

    #[test]
    fn any_order_of_windows_gives_the_same_answer(bins in prop::collection::vec([0_u64..300, 0..300, 0..300], 1..8)) {
        let windows: Vec<(&str, Window)> = bins.iter().map(|b| ("a", window(*b, [b[0], b[1]]))).collect();
        let reversed: Vec<(&str, Window)> = windows.iter().rev().cloned().collect();
        prop_assert_eq!(scored(&windows), scored(&reversed));
    }
}
