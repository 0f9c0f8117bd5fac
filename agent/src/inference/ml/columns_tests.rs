use super::*;

#[test]
fn a_zero_row_is_left_alone_and_magnitudes_are_not_what_max_means() {
    let mut rows = [0.0, 0.0, -4.0, 2.0];
    normalize(&mut rows, 2, Norm::Max);
    assert_eq!(rows, [0.0, 0.0, -2.0, 1.0]);
    let mut rows = [0.0, 0.0, -3.0, 4.0];
    normalize(&mut rows, 2, Norm::L2);
    assert_eq!(rows, [0.0, 0.0, -0.6, 0.8]);
}

#[test]
fn one_entry_is_for_all_columns() {
    let mut out = [0.0; 4];
    scale(
        &[1.0_f32, 2.0, 3.0, 4.0],
        2,
        &[1.0],
        &[10.0, 100.0],
        &mut out,
    );
    assert_eq!(out, [0.0, 100.0, 20.0, 300.0]);
    let mut rows = [1_i64, -1, -1, 4];
    impute(&mut rows, 2, &[7, 8], |x| x == -1);
    assert_eq!(rows, [1, 8, 7, 4]);
}

#[test]
fn not_a_number_is_a_key_like_any_other() {
    let places = Places::of([float_key(0.0), float_key(f64::NAN), float_key(0.0)]);
    assert_eq!(places.get(float_key(-0.0)), Some(0));
    assert_eq!(places.get(float_key(-f64::NAN)), Some(1));
    assert_eq!(places.get(float_key(1.0)), None);
}

#[test]
fn an_unknown_category_is_zeros_or_an_error() {
    let places = Places::of_last([integer_key(3), integer_key(5)]);
    let mut out = [0.0; 4];
    let values = || [5_i64, 4].into_iter();
    assert_eq!(one_hot(values(), &places, 2, false, &mut out), Ok(()));
    assert_eq!(out, [0.0, 1.0, 0.0, 0.0]);
    assert_eq!(one_hot(values(), &places, 2, true, &mut out), Err(1));
}

#[test]
fn the_highest_score_wins_before_it_is_rounded_to_a_tie() {
    let linear = Linear {
        coefficients: vec![40.0, 50.0],
        intercepts: vec![0.0, 0.0],
        adds_second: false,
        post_transform: PostTransform::Logistic,
    };
    let (mut raw, mut out) = ([0.0; 2], [0.0; 2]);
    assert_eq!(linear.classify(&[1.0], &mut raw, &mut out), 1);
    assert_eq!(out, [1.0, 1.0]);
}

#[test]
fn tables_stand_side_by_side_cut_or_filled_up_with_zeros() {
    let mut out = [0.0; 8];
    place_columns(&[1.0, 2.0, 3.0, 4.0], 2, 0, 1, &mut out, 4);
    place_columns(&[5.0, 6.0], 1, 1, 3, &mut out, 4);
    assert_eq!(out, [1.0, 5.0, 0.0, 0.0, 3.0, 6.0, 0.0, 0.0]);
}
