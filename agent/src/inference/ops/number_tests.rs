//! Expected numbers are ONNX Runtime's (1.32.0).
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::inference::tensor::Values;
use crate::inference::written::*;
use dunlin_protocol::bundle::DType;
use tract_onnx::pb::{NodeProto, TensorProto};

fn singles(values: Values) -> Vec<f32> {
    match values {
        Values::FP32(values) => values,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn check(got: &[f32], expected: &[f32]) {
    let same = |(got, expected): (&f32, &f32)| {
        got == expected
            || (got.is_nan() && expected.is_nan())
            || (got - expected).abs() <= 1e-6 * expected.abs()
    };
    assert!(
        got.len() == expected.len() && got.iter().zip(expected).all(same),
        "got {got:?}, expected {expected:?}"
    );
}

fn written(
    operator: NodeProto,
    (from, x): (DType, &[usize]),
    weights: Vec<TensorProto>,
    (to, y): (DType, &[usize]),
) -> Written {
    let inputs = vec![spec("x", from, x)];
    Written::new(20, inputs, vec![operator], weights, vec![spec("y", to, y)])
}

/// Of each of these numbers.
fn of_each(operator: NodeProto, x: &[f32]) -> Vec<f32> {
    let kind: (DType, &[usize]) = (DType::FP32, &[x.len()]);
    singles(written(operator, kind, vec![], kind).answer(&[Values::FP32(x.to_vec())]))
}

#[test]
fn celu_multiplies_by_alpha() {
    let celu = |alpha| node("Celu", &["x"], &["y"]).with(float("alpha", alpha));
    let x = [-1e30, -3.0, -1.0, -0.5, 0.0, 1.0, 3.0, f32::NAN];
    let twice = [
        -2.0,
        -1.553_739_7,
        -0.786_938_67,
        -0.442_398_43,
        0.0,
        1.0,
        3.0,
        f32::NAN,
    ];
    check(&of_each(celu(2.0), &x), &twice);
    let halved = [
        -0.5,
        -0.498_760_6,
        -0.432_332_37,
        -0.316_060_27,
        0.0,
        1.0,
        3.0,
        f32::NAN,
    ];
    check(&of_each(celu(0.5), &x), &halved);
}

#[test]
fn gelu_by_tangent_vanishes_far_below_zero() {
    let gelu = |how| node("Gelu", &["x"], &["y"]).with(text("approximate", how));
    let x = [-3e38, -1e30, -10.0, -1.0, -1e-3, 0.0, 1.0, 3.0, 1e30, 3e38];
    let expected = [
        0.0,
        0.0,
        0.0,
        -0.158_807_96,
        -0.000_499_601_07,
        0.0,
        0.841_192,
        2.996_362_7,
        1e30,
        3e38,
    ];
    check(&of_each(gelu("tanh"), &x), &expected);
    check(
        &of_each(gelu("none"), &[-1e30, -1.0, 1.0, 3e38]),
        &[0.0, -0.158_655_26, 0.841_344_7, 3e38],
    );
}

#[test]
fn area_functions_take_the_largest_numbers() {
    let x = [3e38, -3e38, -4.0, 0.0, 1.0, 2.0];
    let sine = [
        89.289_99,
        -89.289_99,
        -2.094_712_5,
        0.0,
        0.881_373_6,
        1.443_635_5,
    ];
    check(&of_each(node("Asinh", &["x"], &["y"]), &x), &sine);
    let no = f32::NAN;
    let cosine = [89.289_99, no, no, no, 0.0, 1.316_957_8];
    check(&of_each(node("Acosh", &["x"], &["y"]), &x), &cosine);
}

#[test]
fn global_pools_take_sums_of_absolute_powers() {
    let x = vec![-1.0, 2.0, -3.0, 4.0, 0.5, -0.5, 0.0, 1.0];
    let of = |p: Option<i64>| {
        let mut pool = node("GlobalLpPool", &["x"], &["y"]);
        pool.attribute = p.map(|p| int("p", p)).into_iter().collect();
        let (from, to): (&[usize], &[usize]) = (&[1, 2, 2, 2], &[1, 2, 1, 1]);
        let pool = written(pool, (DType::FP32, from), vec![], (DType::FP32, to));
        singles(pool.answer(&[Values::FP32(x.clone())]))
    };
    check(&of(Some(1)), &[10.0, 2.0]);
    check(&of(None), &[5.477_226, 1.224_745]);
    check(&of(Some(3)), &[4.641_589, 1.077_217_3]);
}

#[test]
fn logarithms_of_whole_sums_are_cut_off() {
    let sum = || node("ReduceLogSum", &["x"], &["y"]);
    let of = |kind| written(sum(), (kind, &[2, 2]), vec![], (kind, &[1, 1]));
    let got = of(DType::INT32).answer(&[Values::INT32(vec![1, 2, 3, 50])]);
    assert_eq!(got, Values::INT32(vec![4]));
    let got = of(DType::INT64).answer(&[Values::INT64(vec![1, 2, 3, 50])]);
    assert_eq!(got, Values::INT64(vec![4]));
    let got = of(DType::FP32).answer(&[Values::FP32(vec![1.0, 2.0, 3.0, 50.0])]);
    check(&singles(got), &[4.025_351_7]);
}

#[test]
fn one_hot_is_off_for_indices_out_of_range() {
    let hot = || node("OneHot", &["x", "depth", "values"], &["y"]);
    let x = Values::INT64(vec![0, 2, -1, -3, 3, -4, 100]);
    let rows =
        [0, 2, 2, 0, 9, 9, 9].map(|hot| [0, 1, 2].map(|at| if at == hot { 5.0 } else { -1.0 }));
    let weights = vec![ints("depth", &[3]), floats("values", &[2], &[-1.0, 5.0])];
    let (from, to): ((_, &[usize]), (_, &[usize])) = ((DType::INT64, &[7]), (DType::FP32, &[7, 3]));
    let got = written(hot(), from, weights, to).answer(std::slice::from_ref(&x));
    check(&singles(got), rows.as_flattened());
    let weights = vec![ints("depth", &[3]), ints("values", &[2, 7])];
    let first = hot().with(int("axis", 0));
    let got = written(first, from, weights, (DType::INT64, &[3, 7])).answer(&[x]);
    let expected = vec![
        7, 2, 2, 7, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 7, 7, 2, 2, 2, 2,
    ];
    assert_eq!(got, Values::INT64(expected));
    let weights = vec![ints("depth", &[3]), floats("values", &[2], &[0.0, 1.0])];
    let got = written(hot(), (DType::FP32, &[3]), weights, (DType::FP32, &[3, 3]))
        .answer(&[Values::FP32(vec![1.9, -1.0, 7.0])]);
    check(
        &singles(got),
        &[0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
    );
}

#[test]
fn nearest_pixels_keep_all_bits() {
    let resize = node("Resize", &["x", "", "scales"], &["y"]).with(text("mode", "nearest"));
    let scales = vec![floats("scales", &[4], &[1.0, 1.0, 1.0, 2.0])];
    let (from, to): (&[usize], &[usize]) = (&[1, 1, 1, 3], &[1, 1, 1, 6]);
    let resize = written(resize, (DType::INT32, from), scales, (DType::INT32, to));
    let (large, small) = (16_777_217, -2_147_483_647);
    assert_eq!(
        resize.answer(&[Values::INT32(vec![large, small, 5])]),
        Values::INT32(vec![large, large, small, small, 5, 5])
    );
}

fn transposed(to: i64, with: &[tract_onnx::pb::AttributeProto]) -> Vec<f32> {
    let mut operator = node("ConvTranspose", &["x", "w"], &["y"])
        .with(all_ints("strides", &[2]))
        .with(all_ints("output_shape", &[to]));
    operator.attribute.extend_from_slice(with);
    let weights = vec![floats("w", &[1, 1, 3], &[1.0, 10.0, 100.0])];
    let length = usize::try_from(to).unwrap();
    let operator = written(
        operator,
        (DType::FP32, &[1, 1, 3]),
        weights,
        (DType::FP32, &[1, 1, length]),
    );
    singles(operator.answer(&[Values::FP32(vec![1.0, 2.0, 3.0])]))
}

#[test]
fn transposed_convolutions_come_to_the_lengths_of_the_file() {
    let whole = [1.0, 10.0, 102.0, 20.0, 203.0, 30.0, 300.0];
    let auto = |how| [text("auto_pad", how)];
    check(&transposed(4, &[]), &whole[2..6]);
    check(&transposed(4, &auto("SAME_UPPER")), &whole[1..5]);
    check(&transposed(4, &auto("SAME_LOWER")), &whole[2..6]);
    check(&transposed(5, &[]), &whole[1..6]);
    check(&transposed(6, &[all_ints("pads", &[1, 1])]), &whole[1..]);
    check(
        &transposed(6, &[all_ints("output_padding", &[1])]),
        &whole[1..],
    );
    check(&transposed(7, &[]), &whole);
    let longer: Vec<f32> = whole.into_iter().chain([0.0]).collect();
    check(&transposed(8, &[]), &longer);
}
