#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use proptest::prelude::*;

const FIVE_PERCENT: Sensitivity = Sensitivity {
    alpha: 0.05,
    margin: 0.0,
};

fn close(got: f64, expected: f64) {
    assert!(
        (got - expected).abs() < 5e-11,
        "got {got}, expected {expected}"
    );
}

#[test]
fn the_numeric_fixture_over_frozen_deciles() {
    let reference = [16, 22, 21, 21, 20, 20, 20, 20, 20, 20];
    let current = [0, 11, 21, 12, 18, 12, 12, 18, 18, 28];
    let score = Comparison::new(&reference, &current)
        .unwrap()
        .psi(FIVE_PERCENT);
    close(score.value, 0.639_793_155_3);
    // 16.918977604620448 · (1/200 + 1/150)
    close(score.bound, 0.197_388_072_053_9);
    assert_eq!(
        (score.n_ref, score.n_cur, score.status),
        (200, 150, Status::Alarm)
    );
}

#[test]
fn the_categorical_fixture() {
    let scores = Comparison::new(&[500, 300, 200], &[400, 350, 250]).unwrap();
    close(scores.psi(FIVE_PERCENT).value, 0.041_179_066_7);
    close(scores.jensen_shannon(FIVE_PERCENT).value, 0.007_412_237_7);
    close(
        scores.jensen_shannon(FIVE_PERCENT).value.sqrt(),
        0.086_094_353_4,
    );
    close(scores.l_infinity(FIVE_PERCENT).value, 0.1);
    close(scores.total_variation(FIVE_PERCENT).value, 0.1);
    close(scores.hellinger(FIVE_PERCENT).value, 0.071_711_727_3);
    let chi = scores.chi_squared(FIVE_PERCENT);
    assert!((chi.score.value - 20.512_820_5).abs() < 1e-7, "{chi:?}");
    assert!((chi.p_value / 3.5132e-5 - 1.0).abs() < 2e-5, "{chi:?}");
    assert_eq!(chi.degrees, 2);
    for score in [
        scores.psi(FIVE_PERCENT),
        scores.jensen_shannon(FIVE_PERCENT),
        chi.score,
    ] {
        assert_eq!(score.status, Status::Alarm);
    }
}

#[test]
fn significance_without_effect_is_quiet() {
    let scores = Comparison::new(&[500, 300, 200], &[400, 350, 250]).unwrap();
    let score = scores.psi(Sensitivity {
        alpha: 0.05,
        margin: 0.1,
    });
    assert!(score.value > score.bound);
    assert_eq!((score.threshold, score.status), (0.1, Status::Quiet));
}

#[test]
fn few_data_are_insufficient_and_none_are_no_panic() {
    let few = Comparison::new(&[500, 300, 200], &[20, 20, 5]).unwrap();
    assert_eq!(few.psi(FIVE_PERCENT).status, Status::Insufficient);
    let none = Comparison::new(&[500, 300, 200], &[0, 0, 0]).unwrap();
    let score = none.hellinger(FIVE_PERCENT);
    assert_eq!(
        (score.value, score.bound, score.status),
        (0.0, 0.0, Status::Insufficient)
    );
    assert_eq!(none.chi_squared(FIVE_PERCENT).p_value, 1.0);
    assert_eq!(
        Comparison::new(&[1, 2], &[1]),
        Err(StatisticsError::BinsDiffer {
            reference: 2,
            current: 1
        })
    );
    assert_eq!(
        Comparison::new(&[1], &[1]),
        Err(StatisticsError::BinCount { bins: 1 })
    );
}

#[test]
fn rare_categories_are_pooled() {
    let (reference, current) = pool_rare(&[500, 3, 300, 0, 197], &[400, 9, 340, 1, 250]);
    // 3 + 0 are fewer than 10, so the next smallest joins them.
    assert_eq!(
        (reference, current),
        (vec![500, 300, 200], vec![400, 340, 260])
    );
    let (reference, _) = pool_rare(&[500, 6, 300, 5, 189], &[500, 6, 300, 5, 189]);
    assert_eq!(reference, [500, 300, 189, 11]);
    assert_eq!(pool_rare(&[50, 50], &[50, 50]).0, [50, 50]);
    assert_eq!(pool_rare(&[], &[]).0, Vec::<u64>::new());
}

/// Splits of one sample: the bounds should be exceeded about alpha of the time.
#[test]
fn the_bounds_hold_under_no_drift() {
    let mut state = 1_u64;
    let mut draw = |counts: &mut [u64; 10], size: u32| {
        for _ in 0..size {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let bin = ((state >> 33) % 10) as usize;
            counts[bin] += 1;
        }
    };
    let mut alarms = [0_u32; 6];
    for _ in 0..1000 {
        let (mut reference, mut current) = ([0; 10], [0; 10]);
        draw(&mut reference, 1000);
        draw(&mut current, 500);
        let scores = Comparison::new(&reference, &current).unwrap();
        let all = [
            scores.psi(FIVE_PERCENT),
            scores.jensen_shannon(FIVE_PERCENT),
            scores.hellinger(FIVE_PERCENT),
            scores.chi_squared(FIVE_PERCENT).score,
            scores.total_variation(FIVE_PERCENT),
            scores.l_infinity(FIVE_PERCENT),
        ];
        for (count, score) in alarms.iter_mut().zip(all) {
            *count += u32::from(score.value > score.bound);
        }
    }
    for (at, count) in alarms.into_iter().enumerate().take(4) {
        assert!((30..=75).contains(&count), "score {at}: {count} of 1000");
    }
    assert!(
        alarms[4] <= 10 && alarms[5] <= 60,
        "conservative bounds: {alarms:?}"
    );
}

proptest! {
    #[test]
    fn every_score_is_finite_and_zero_for_equal_shares(counts in prop::collection::vec(0u64..1000, 2..20), times in 1u64..5, other in prop::collection::vec(0u64..1000, 20)) {
        let same: Vec<u64> = counts.iter().map(|count| count * times).collect();
        for current in [&same[..], &other[..counts.len()]] {
            let scores = Comparison::new(&counts, current).unwrap();
            let chi = scores.chi_squared(FIVE_PERCENT);
            for score in [
                scores.psi(FIVE_PERCENT), scores.jensen_shannon(FIVE_PERCENT), scores.hellinger(FIVE_PERCENT),
                scores.total_variation(FIVE_PERCENT), scores.l_infinity(FIVE_PERCENT), chi.score,
            ] {
                prop_assert!(score.value.is_finite() && score.value >= 0.0, "{score:?}");
                prop_assert!(score.bound.is_finite());
            }
            prop_assert!((0.0..=1.0).contains(&chi.p_value));
        }
        let equal = Comparison::new(&counts, &same).unwrap();
        prop_assert!(equal.psi(FIVE_PERCENT).value < 1e-9);
    }
}
