//! Expected numbers are ONNX Runtime's (1.32.0).
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::inference::tensor::Values;
use crate::inference::written::*;
use dunlin_protocol::bundle::DType;
use tract_onnx::pb::{AttributeProto, TensorProto};
use tract_onnx::prelude::f16;

fn singles(values: &Values) -> &[f32] {
    match values {
        Values::FP32(values) => values,
        other => panic!("{other:?}"),
    }
}

/// Equal, or of a relative difference that rounding explains.
fn close(got: f64, expected: f64, relative: f64) -> bool {
    let equal = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
    equal || (got - expected).abs() <= relative * expected.abs()
}

fn check(got: &[f32], expected: &[f32]) {
    let pairs = got.iter().zip(expected);
    assert!(
        got.len() == expected.len()
            && pairs
                .into_iter()
                .all(|(g, e)| g == e || close(f64::from(*g), f64::from(*e), 1e-6)),
        "got {got:?}, expected {expected:?}"
    );
}

fn alone(operator: &str, kind: DType, count: usize) -> Written {
    let (x, y) = (spec("x", kind, &[count]), spec("y", kind, &[count]));
    let nodes = vec![node(operator, &["x"], &["y"])];
    Written::new(18, vec![x], nodes, vec![], vec![y])
}

#[test]
fn softplus_stays_in_the_range_of_floats() {
    let x = vec![
        -1000.0, -40.0, -20.0, -17.0, -1.0, 0.0, 1.0, 20.0, 88.0, 89.0, 1000.0,
    ];
    let expected = [
        0.0,
        4.248_354e-18,
        2.061_153_7e-9,
        4.139_937_8e-8,
        0.313_261_7,
        std::f32::consts::LN_2,
        1.313_261_7,
        20.0,
        88.0,
        89.0,
        1000.0,
    ];
    let written = alone("Softplus", DType::FP32, x.len());
    check(singles(&written.answer(&[Values::FP32(x)])), &expected);
    let written = alone("Softplus", DType::FP32, 3);
    let edges = Values::FP32(vec![f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    check(
        singles(&written.answer(&[edges])),
        &[f32::INFINITY, 0.0, f32::NAN],
    );
}

#[test]
fn softplus_and_mish_take_other_precisions() {
    let halves = |values: &[f32]| Values::FP16(values.iter().map(|v| f16::from_f32(*v)).collect());
    let written = alone("Softplus", DType::FP16, 5);
    let got = written.answer(&[halves(&[-17.0, -1.0, 0.0, 20.0, 1000.0])]);
    assert_eq!(got, halves(&[5.96e-8, 0.3132, 0.6934, 20.0, 1000.0]));
    let written = alone("Mish", DType::FP64, 4);
    let Values::FP64(got) = written.answer(&[Values::FP64(vec![-20.0, -1.0, 1.0, 1000.0])]) else {
        panic!("no doubles");
    };
    // ONNX Runtime's first has seven digits only.
    let expected = [-4.122_307_38e-8, -0.303_401_461_4, 0.865_098_388_3, 1000.0];
    let pairs = got.iter().zip(expected);
    assert!(
        pairs.into_iter().all(|(g, e)| close(*g, e, 1e-7)),
        "{got:?}"
    );
}

#[test]
fn mish_keeps_its_small_values() {
    let written = alone("Mish", DType::FP32, 6);
    let got = written.answer(&[Values::FP32(vec![-20.0, -17.0, -1.0, 0.0, 1.0, 89.0])]);
    let expected = [
        -4.122_306_8e-8,
        -7.037_894e-7,
        -0.303_401_44,
        0.0,
        0.865_098_5,
        89.0,
    ];
    check(singles(&got), &expected);
}

/// `ReduceLogSumExp` of `[[1, 2], [3, 5]]`.
fn reduced(
    version: i64,
    axes: Option<TensorProto>,
    with: Vec<AttributeProto>,
    to: &[usize],
) -> Vec<f32> {
    let (x, y) = (spec("x", DType::FP32, &[2, 2]), spec("y", DType::FP32, to));
    let inputs: &[&str] = if axes.is_some() {
        &["x", "axes"]
    } else {
        &["x"]
    };
    let mut operator = node("ReduceLogSumExp", inputs, &["y"]);
    operator.attribute = with;
    let written = Written::new(
        version,
        vec![x],
        vec![operator],
        axes.into_iter().collect(),
        vec![y],
    );
    singles(&written.answer(&[Values::FP32(vec![1.0, 2.0, 3.0, 5.0])])).to_vec()
}

#[test]
fn sums_of_powers_are_over_the_axes_that_the_file_says() {
    let (all, rows) = ([5.185_182_6], [2.313_261_7, 5.126_928]);
    let keep_none = || int("keepdims", 0);
    let axes = |axes: &[i64]| Some(ints("axes", axes));
    check(&reduced(11, None, vec![], &[1, 1]), &all);
    check(
        &reduced(11, None, vec![all_ints("axes", &[-1]), keep_none()], &[2]),
        &rows,
    );
    check(&reduced(18, None, vec![], &[1, 1]), &all);
    check(&reduced(18, axes(&[]), vec![], &[1, 1]), &all);
    check(&reduced(18, axes(&[1]), vec![], &[2, 1]), &rows);
    check(&reduced(18, axes(&[0, -1]), vec![keep_none()], &[]), &all);
    let noop = || vec![int("noop_with_empty_axes", 1)];
    check(
        &reduced(18, axes(&[]), noop(), &[2, 2]),
        &[1.0, 2.0, 3.0, 5.0],
    );
    check(&reduced(18, None, noop(), &[2, 2]), &[1.0, 2.0, 3.0, 5.0]);
}

#[test]
fn sums_of_powers_stay_in_the_range_of_floats() {
    let (up, down) = (f32::INFINITY, f32::NEG_INFINITY);
    let cases = [
        ([89.0, -89.0], 89.0),
        ([-200.0, -200.0], -199.306_85),
        ([1e30, 1.0], 1e30),
        ([up, 1.0], up),
        ([up, up], up),
        ([up, down], up),
        ([down, 1.0], 1.0),
        ([down, down], down),
        ([f32::NAN, 1.0], f32::NAN),
    ];
    let (x, y) = (spec("x", DType::FP32, &[2]), spec("y", DType::FP32, &[1]));
    let nodes = vec![node("ReduceLogSumExp", &["x"], &["y"])];
    let graph = Written::new(18, vec![x], nodes, vec![], vec![y])
        .load()
        .unwrap();
    for (given, expected) in cases {
        let got = graph.run(&[Values::FP32(given.to_vec())]).unwrap();
        check(singles(&got[0]), &[expected]);
    }
}

#[test]
fn sums_of_powers_take_other_precisions() {
    let of = |kind| {
        let (x, y) = (spec("x", kind, &[2]), spec("y", kind, &[1]));
        let nodes = vec![node("ReduceLogSumExp", &["x"], &["y"])];
        Written::new(18, vec![x], nodes, vec![], vec![y])
    };
    let half = |value: f32| f16::from_f32(value);
    let got = of(DType::FP16).answer(&[Values::FP16(vec![half(89.0), half(-89.0)])]);
    assert_eq!(got, Values::FP16(vec![half(89.0)]));
    let got = of(DType::FP64).answer(&[Values::FP64(vec![-2000.0, -2000.0])]);
    let Values::FP64(got) = got else {
        panic!("{got:?}");
    };
    assert!(close(got[0], -1_999.306_852_819_44, 1e-12), "{got:?}");
}
