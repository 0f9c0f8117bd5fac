#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use proptest::prelude::*;

const FIVE_PERCENT: Sensitivity = Sensitivity {
    alpha: 0.05,
    margin: 0.0,
};

/// A bin of width one around each whole number up to 105.
fn unit_edges() -> Edges {
    Edges::try_from((0..=106).map(|e| f64::from(e) - 0.5).collect::<Vec<_>>()).unwrap()
}

fn histogram(edges: &Edges, values: impl IntoIterator<Item = f64>) -> Histogram {
    let mut counts = Histogram::new(edges.bins());
    for value in values {
        counts.add(edges, value);
    }
    counts
}

fn reference() -> Vec<f64> {
    (0..200_u32).map(|i| f64::from(i * i % 97)).collect()
}

fn current() -> Vec<f64> {
    (0..150_u32).map(|i| f64::from(i * i % 97 + 8)).collect()
}

fn std_of(values: &[f64]) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt()
}

fn close(got: f64, expected: f64) {
    assert!(
        (got - expected).abs() < 5e-10,
        "got {got}, expected {expected}"
    );
}

#[test]
fn the_numeric_fixture_over_bins_that_hide_nothing() {
    let edges = unit_edges();
    let (p, q) = (histogram(&edges, reference()), histogram(&edges, current()));
    let scores = OrderedComparison::new(&edges, &p, &q).unwrap();
    let ks = scores.kolmogorov_smirnov(FIVE_PERCENT);
    close(ks.score.value, 22.0 / 150.0);
    assert!(ks.upper >= ks.score.value);
    close(ks.p_value, 0.045_799_412_5);
    let unit = std_of(&reference());
    let wasserstein = scores.wasserstein(unit, FIVE_PERCENT);
    close(wasserstein.estimate * unit, 9.805);
    close(wasserstein.estimate, 0.320_032_406_4);
    // Half a bin's width on either side.
    close((wasserstein.estimate - wasserstein.score.value) * unit, 1.0);
    close(
        (wasserstein.upper.unwrap() - wasserstein.estimate) * unit,
        1.0,
    );
}

#[test]
fn the_numeric_fixture_over_frozen_deciles_is_within_the_interval() {
    let edges = [
        0.0, 4.0, 12.0, 25.0, 34.2, 47.5, 56.8, 67.2, 79.4, 89.2, 96.5,
    ];
    let edges = Edges::try_from(edges.to_vec()).unwrap();
    let (p, q) = (histogram(&edges, reference()), histogram(&edges, current()));
    assert_eq!(p.counts, [16, 22, 21, 21, 20, 20, 20, 20, 20, 20]);
    assert_eq!(q.with_tails(), [0, 11, 21, 12, 18, 12, 12, 18, 18, 28]);
    let scores = OrderedComparison::new(&edges, &p, &q).unwrap();
    let ks = scores.kolmogorov_smirnov(FIVE_PERCENT);
    assert!(
        ks.score.value <= 22.0 / 150.0 && 22.0 / 150.0 <= ks.upper,
        "{ks:?}"
    );
    let wasserstein = scores.wasserstein(std_of(&reference()), FIVE_PERCENT);
    assert!(wasserstein.score.value <= 0.320_032_406_4);
    assert_eq!(
        wasserstein.upper, None,
        "some values lie above the last edge"
    );
}

#[test]
fn atoms_hide_nothing() {
    let atom = 3.0_f64;
    let edges = Edges::try_from(vec![0.0, atom, atom.next_up(), 9.0, 9.0_f64.next_up()]).unwrap();
    let p = histogram(&edges, [[atom; 60], [9.0; 60]].concat());
    let q = histogram(&edges, [[atom; 40], [9.0; 40]].concat());
    let scores = OrderedComparison::new(&edges, &p, &q).unwrap();
    let ks = scores.kolmogorov_smirnov(FIVE_PERCENT);
    close(ks.upper, 0.0);
    close(scores.wasserstein(1.0, FIVE_PERCENT).upper.unwrap(), 0.0);
    close(std_of_middles(&edges, &p.counts), 3.0);
}

#[test]
fn empty_few_and_misfitting_are_no_panic() {
    let edges = unit_edges();
    let none = Histogram::new(edges.bins());
    let few = histogram(&edges, [1.0; 29]);
    let scores = OrderedComparison::new(&edges, &few, &none).unwrap();
    let ks = scores.kolmogorov_smirnov(FIVE_PERCENT);
    assert_eq!(ks.score.status, Status::Insufficient);
    assert!(ks.p_value >= 1.0 && ks.upper >= 1.0);
    let scores = OrderedComparison::new(&edges, &few, &few).unwrap();
    let wasserstein = scores.wasserstein(f64::NAN, FIVE_PERCENT);
    assert_eq!(wasserstein.score.status, Status::Insufficient);
    assert!(wasserstein.estimate == 0.0 && wasserstein.score.bound.is_finite());
    assert!(OrderedComparison::new(&edges, &few, &Histogram::new(3)).is_err());
    let huge = Histogram {
        counts: vec![u64::MAX; edges.bins()],
        ..Histogram::default()
    };
    let scores = OrderedComparison::new(&edges, &huge, &few).unwrap();
    assert!(
        scores
            .kolmogorov_smirnov(FIVE_PERCENT)
            .score
            .value
            .is_finite()
    );
}

#[test]
fn both_tails_of_kolmogorov_agree_where_they_meet() {
    // From tables: 1.3581 at .05, 1.6276 at .01, .8276 at .5.
    for (x, p) in [(1.358_098_6, 0.05), (1.627_623_6, 0.01), (0.827_573_6, 0.5)] {
        assert!((kolmogorov_tail(x) - p).abs() < 1e-6, "{x}");
    }
    assert!((kolmogorov_tail(1.0 - 1e-12) - kolmogorov_tail(1.0 + 1e-12)).abs() < 1e-10);
    assert!(kolmogorov_tail(0.01) >= 1.0 && kolmogorov_tail(40.0) <= 0.0);
}

/// Two samples of one distribution, 1000 times: the bounds are exceeded about alpha of the time or less.
#[test]
fn the_bounds_hold_under_no_drift() {
    let edges = Edges::try_from((0..=40).map(|e| f64::from(e) / 40.0).collect::<Vec<_>>()).unwrap();
    let mut state = 5_u64;
    let mut draw = |size: usize| {
        let mut values = Vec::with_capacity(size);
        for _ in 0..size {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            #[allow(clippy::cast_precision_loss)]
            values.push((state >> 11) as f64 / (1_u64 << 53) as f64);
        }
        histogram(&edges, values)
    };
    let (mut ks_alarms, mut wasserstein_alarms) = (0, 0);
    for _ in 0..1000 {
        let (p, q) = (draw(400), draw(200));
        let scores = OrderedComparison::new(&edges, &p, &q).unwrap();
        let ks = scores.kolmogorov_smirnov(FIVE_PERCENT).score;
        ks_alarms += u32::from(ks.value > ks.bound);
        let wasserstein = scores.wasserstein(0.2887, FIVE_PERCENT);
        wasserstein_alarms += u32::from(wasserstein.estimate > wasserstein.score.bound);
    }
    assert!((20..=60).contains(&ks_alarms), "{ks_alarms} of 1000");
    assert!(
        (10..=60).contains(&wasserstein_alarms),
        "{wasserstein_alarms} of 1000"
    );
}

proptest! {
    /// What the raw values give lies within the intervals that the bins give.
    #[test]
    fn raw_values_lie_within_the_intervals(
        p in prop::collection::vec(-1.0_f64..7.0, 1..80),
        q in prop::collection::vec(0.0_f64..8.0, 1..80),
        cuts in prop::collection::btree_set(0_u32..60, 2..20),
    ) {
        let edges: Vec<f64> = cuts.into_iter().map(|cut| f64::from(cut) / 10.0).collect();
        let edges = Edges::try_from(edges).unwrap();
        let scores = OrderedComparison::new(&edges, &histogram(&edges, p.clone()), &histogram(&edges, q.clone())).unwrap();
        let mut all: Vec<f64> = p.iter().chain(&q).copied().collect();
        all.sort_by(f64::total_cmp);
        #[allow(clippy::cast_precision_loss)]
        let share = |of: &[f64], x: f64| of.iter().filter(|v| **v <= x).count() as f64 / of.len() as f64;
        let distance = all.iter().map(|x| (share(&p, *x) - share(&q, *x)).abs()).fold(0.0, f64::max);
        let area: f64 = all.windows(2).map(|x| (share(&p, x[0]) - share(&q, x[0])).abs() * (x[1] - x[0])).sum();
        let ks = scores.kolmogorov_smirnov(FIVE_PERCENT);
        prop_assert!(ks.score.value <= distance + 1e-12 && distance <= ks.upper + 1e-12, "{distance} {ks:?}");
        prop_assert!((0.0..=1.0).contains(&ks.p_value));
        let wasserstein = scores.wasserstein(1.0, FIVE_PERCENT);
        prop_assert!(wasserstein.score.value <= area + 1e-9, "{area} {wasserstein:?}");
        prop_assert!(wasserstein.upper.is_none_or(|upper| area <= upper + 1e-9), "{area} {wasserstein:?}");
    }
}
