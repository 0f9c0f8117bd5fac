#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]
use super::*;
use proptest::prelude::*;

fn counts(inside: u64, outside: u64) -> Histogram {
    Histogram {
        counts: vec![inside],
        under: outside / 2,
        over: outside - outside / 2,
        ..Histogram::default()
    }
}

fn compare(n_ref: u64, outside_ref: u64, inside: u64, outside: u64) -> RangeComparison {
    let reference = [n_ref - outside_ref];
    RangeComparison::new(&reference, n_ref, &counts(inside, outside), MARGIN)
}

/// Σ of the beta-binomial's terms, each from the one before.
fn beta_binomial_tail(k: u64, m: u64, a: f64, b: f64) -> f64 {
    let ln_beta = |a: f64, b: f64| ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b);
    let mut term = (ln_beta(a, size(m) + b) - ln_beta(a, b)).exp();
    let mut sum = 0.0;
    for j in 0..=m {
        sum += if j >= k { term } else { 0.0 };
        let (j, m) = (size(j), size(m));
        term *= (m - j) * (a + j) / ((j + 1.0) * (m - j - 1.0 + b));
    }
    sum
}

#[test]
fn sampling_is_beta_binomial() {
    for (n_ref, outside_ref, m) in [(300, 0, 200), (1000, 0, 5000), (1000, 40, 700), (50, 5, 50)] {
        for k in [0, 1, 2, 3, 7, 12, 30, 50] {
            let comparison = compare(n_ref, outside_ref, m - k, k);
            let got = comparison.sampling_tail(k);
            let (a, b) = (size(outside_ref) + 2.0, size(n_ref - outside_ref) - 1.0);
            let expected = beta_binomial_tail(k, m, a, b);
            let error = (got - expected).abs();
            assert!(
                error < 1e-12 + 1e-9 * expected,
                "{n_ref} {outside_ref} {m} {k}: {got} for {expected}"
            );
        }
    }
}

#[test]
fn the_reference_itself_is_quiet() {
    for n in [30, 31, 100, 5000, 1 << 40] {
        let score = compare(n, 0, n, 0).score(0.05, None);
        assert_eq!((score.score.status, score.p_value), (Status::Quiet, 1.0));
        assert_eq!((score.score.value, score.lower), (0.0, 0.0));
    }
    // Bins that leave out a tenth of the reference's rows, and rows of which as many are outside.
    let tenth = compare(5000, 500, 4500, 500).score(0.05, None);
    assert_eq!(tenth.score.status, Status::Quiet);
    assert!((tenth.allowed - 0.1).abs() < 0.001);
}

#[test]
fn too_few_values_are_insufficient() {
    for (n, inside, outside) in [(5000, 0, 29), (29, 50, 50), (0, 50, 50), (5000, 0, 0)] {
        let comparison = compare(n, 0, inside, outside);
        assert_eq!(comparison.p_value(), None);
        assert_eq!(
            comparison.score(0.05, None).score.status,
            Status::Insufficient
        );
    }
}

#[test]
fn five_in_a_hundred_are_found_and_two_are_not() {
    let status = |inside, outside| {
        compare(5000, 0, inside, outside)
            .score(0.002, None)
            .score
            .status
    };
    assert_eq!(status(950, 50), Status::Alarm);
    assert_eq!(status(980, 20), Status::Quiet);
    assert_eq!(status(0, 30), Status::Alarm);
    // However many there are: not above what matters.
    assert_eq!(status(98_000_000, 2_000_000), Status::Quiet);
    assert_eq!(status(97_900_000, 2_100_000), Status::Alarm);
    // A small reference says little of its range.
    assert_eq!(
        compare(50, 0, 95, 5).score(0.002, None).score.status,
        Status::Quiet
    );
}

#[test]
fn the_margin_leaves_little_to_chance_where_the_reference_is_large() {
    assert!(compare(5000, 0, 200, 0).chance(0.025) < 1e-9);
    assert!(compare(1000, 0, 1000, 0).chance(0.025) < 1e-6);
    let small = compare(50, 0, 200, 0).chance(0.025);
    assert!((0.015..=0.025).contains(&small), "{small}");
    assert!(compare(50, 0, 1 << 40, 0).chance(0.025) <= 0.025);
}

#[test]
fn a_margin_of_one_leaves_them_aside() {
    let all = RangeComparison::new(&[5000], 5000, &counts(0, 5000), 1.0);
    let score = all.score(0.05, None);
    assert_eq!(
        (score.score.status, score.score.threshold),
        (Status::Quiet, 1.0)
    );
}

/// The extremes of 100 uniform rows, and how often 200 more leave them as the bound says.
#[test]
fn the_level_is_kept_and_used() {
    let mut state = 5_u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut found = 0;
    for _ in 0..4000 {
        let (low, high) = (0..100)
            .map(|_| uniform())
            .fold((1.0_f64, 0.0_f64), |(low, high), u| {
                (low.min(u), high.max(u))
            });
        let outside = (0..200)
            .filter(|_| !(low..=high).contains(&uniform()))
            .count() as u64;
        found += u32::from(compare(100, 0, 200 - outside, outside).sampling_tail(outside) <= 0.05);
    }
    // The level that whole counts reach is .0355 (SciPy 1.17, betabinom(200, 2, 99)).
    assert!((107..=177).contains(&found), "{found} of 4000");
}

proptest! {
    #[test]
    fn more_outside_is_never_less(n_ref in 30_u64..3000, outside_ref in 0_u64..20, inside in 30_u64..3000, outside in 0_u64..300, alpha in 1e-6_f64..0.3) {
        let of = |outside| compare(n_ref + outside_ref, outside_ref, inside, outside).score(alpha, None);
        let (one, more) = (of(outside), of(outside + 1));
        prop_assert!(more.p_value <= one.p_value * (1.0 + 1e-9));
        prop_assert!(more.lower >= one.lower);
        prop_assert!(one.lower <= one.score.value && one.score.bound <= one.score.threshold);
        prop_assert!(one.score.status != Status::Alarm || more.score.status == Status::Alarm);
        prop_assert_eq!(one.score.status == Status::Alarm, one.p_value <= alpha);
        prop_assert_eq!(one.score.status == Status::Alarm, one.score.value > one.score.threshold);
        if one.score.status == Status::Alarm {
            prop_assert!(one.lower > one.allowed + MARGIN - 1e-9);
        }
    }

    #[test]
    fn no_counts_are_too_large(n_ref in any::<u64>(), rows in any::<u64>(), inside in any::<u64>(), under in any::<u64>(), over in any::<u64>()) {
        let current = Histogram { counts: vec![inside], under, over, ..Histogram::default() };
        let score = RangeComparison::new(&[n_ref], rows, &current, MARGIN).score(0.01, None);
        prop_assert!((0.0..=1.0).contains(&score.p_value));
        prop_assert!(score.score.threshold.is_finite() && score.lower.is_finite());
    }
}
