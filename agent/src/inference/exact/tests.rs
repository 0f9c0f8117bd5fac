//! Expected values are ONNX Runtime's.
#![allow(clippy::unwrap_used)]

use crate::inference::tensor::Values;
use crate::inference::written::*;
use dunlin_protocol::bundle::{DType, TensorSpec};
use tract_onnx::pb::tensor_proto::DataType;

/// One operator of one or two inputs.
fn of(operator: &str, version: i64, inputs: &[Values], shape: &[usize]) -> Values {
    let names = &["a", "b"][..inputs.len()];
    let given: Vec<TensorSpec> = (names.iter().zip(inputs))
        .map(|(name, values)| spec(name, values.dtype(), &[values.len()]))
        .collect();
    let y = spec("y", inputs[0].dtype(), shape);
    let nodes = vec![node(operator, names, &["y"])];
    Written::new(version, given, nodes, vec![], vec![y]).answer(inputs)
}

#[test]
fn integers_wrap() {
    let (max, min) = (i32::MAX, i32::MIN);
    let i32s = |a: &[i32]| Values::INT32(a.to_vec());
    let binary = |operator, a, b| of(operator, 14, &[a, b], &[3]);
    let (a, b) = (i32s(&[max, min, 46341]), i32s(&[1, 1, 46341]));
    assert_eq!(
        binary("Add", a.clone(), b.clone()),
        i32s(&[min, -2_147_483_647, 92_682])
    );
    assert_eq!(
        binary("Sub", a.clone(), b.clone()),
        i32s(&[max - 1, max, 0])
    );
    assert_eq!(binary("Mul", a, b), i32s(&[max, min, -2_147_479_015]));
    let (a, b) = (
        Values::UINT8(vec![200, 3, 100]),
        Values::UINT8(vec![100, 5, 100]),
    );
    let bytes = |a: [u8; 3]| Values::UINT8(a.to_vec());
    assert_eq!(binary("Add", a.clone(), b.clone()), bytes([44, 8, 200]));
    assert_eq!(binary("Sub", a.clone(), b.clone()), bytes([100, 254, 0]));
    assert_eq!(binary("Mul", a, b), bytes([32, 15, 16]));
    let (a, b) = (
        Values::INT8(vec![100, -128, 50]),
        Values::INT8(vec![100, 1, 50]),
    );
    let bytes = |a: [i8; 3]| Values::INT8(a.to_vec());
    assert_eq!(binary("Add", a.clone(), b.clone()), bytes([-56, -127, 100]));
    assert_eq!(binary("Sub", a, b), bytes([0, 127, 0]));
    assert_eq!(of("Neg", 13, &[i32s(&[min, 5])], &[2]), i32s(&[min, -5]));
    assert_eq!(of("Abs", 13, &[i32s(&[min, -5])], &[2]), i32s(&[min, 5]));
}

#[test]
fn squares_and_powers_of_integers_keep_every_digit() {
    let x = spec("x", DType::INT32, &[2]);
    let y = spec("y", DType::INT32, &[2]);
    let nodes = || {
        vec![
            node("Mul", &["x", "x"], &["square"]),
            node("Add", &["square", "one"], &["y"]),
        ]
    };
    let one = bytes("one", &[], DataType::Int32, &[1, 0, 0, 0]);
    let written = Written::new(14, vec![x], nodes(), vec![one], vec![y]);
    assert_eq!(
        written.answer(&[Values::INT32(vec![46340, 46341])]),
        Values::INT32(vec![2_147_395_601, -2_147_479_014])
    );
    let (x, y) = (spec("x", DType::INT64, &[2]), spec("y", DType::INT64, &[2]));
    for square in [
        node("Mul", &["x", "x"], &["y"]),
        node("Pow", &["x", "two"], &["y"]),
    ] {
        let two = ints("two", &[2]);
        let written = Written::new(
            15,
            vec![x.clone()],
            vec![square],
            vec![two],
            vec![y.clone()],
        );
        assert_eq!(
            written.answer(&[Values::INT64(vec![2_000_000_001, -5])]),
            Values::INT64(vec![4_000_000_004_000_000_001, 25])
        );
    }
    let bases = Values::INT32(vec![2, -1, 0, 46341]);
    let exponents = Values::INT32(vec![-1, -3, -1, 2]);
    assert_eq!(
        of("Pow", 15, &[bases, exponents], &[4]),
        Values::INT32(vec![0, -1, i32::MIN, -2_147_479_015])
    );
}

#[test]
fn reductions_of_integers_keep_every_digit() {
    let long = |values: &[i64]| Values::INT64(values.to_vec());
    let large = [1_099_511_627_783, 1_099_511_627_784, 1_099_511_627_787];
    for (operator, given, expected) in [
        ("ReduceSum", &large[..], 3_298_534_883_354),
        ("ReduceMean", &large, 1_099_511_627_784),
        ("ReduceMean", &[-3, -4], -3),
        (
            "ReduceMean",
            &[1_700_000_000_000, 1_700_000_000_001],
            1_700_000_000_000,
        ),
        ("ReduceL1", &large, 3_298_534_883_354),
        ("ReduceMin", &large, 1_099_511_627_783),
        ("ReduceMax", &large, 1_099_511_627_787),
        ("ReduceSumSquare", &[3, -4, -12], 169),
        ("ReduceSumSquare", &large, i64::MAX),
        ("ReduceL2", &[3, -4, -12], 13),
        ("ReduceProd", &[3, -4, -12], 144),
        ("ReduceProd", &large, i64::MAX),
    ] {
        let y = of(operator, 12, &[long(given)], &[1]);
        assert_eq!(y, long(&[expected]), "{operator} of {given:?}");
    }
    for (operator, given, expected) in [
        ("ReduceSum", [i32::MAX, 1, -7], 2_147_483_641),
        ("ReduceSum", [i32::MAX, i32::MAX, 0], i32::MAX),
        ("ReduceMean", [i32::MAX, 1, -7], 715_827_880),
        ("ReduceMean", [i32::MAX; 3], i32::MAX),
        ("ReduceProd", [i32::MAX, 1, -7], i32::MIN),
        ("ReduceSumSquare", [3, -4, -13], 194),
        ("ReduceSumSquare", [46340, 46341, -3], i32::MAX),
        ("ReduceL2", [46340, 46341, -3], 65535),
    ] {
        let y = of(operator, 12, &[Values::INT32(given.to_vec())], &[1]);
        assert_eq!(y, Values::INT32(vec![expected]), "{operator} of {given:?}");
    }
}

#[test]
fn reductions_of_integers_go_along_their_axes() {
    let (x, y) = (
        spec("x", DType::INT64, &[2, 3]),
        spec("y", DType::INT64, &[3]),
    );
    let mean = node("ReduceMean", &["x"], &["y"])
        .with(all_ints("axes", &[0]))
        .with(int("keepdims", 0));
    let written = Written::new(13, vec![x], vec![mean], vec![], vec![y]);
    let large = 1 << 40;
    assert_eq!(
        written.answer(&[Values::INT64(vec![1, 2, large, 3, 5, large + 2])]),
        Values::INT64(vec![2, 3, large + 1])
    );
}

#[test]
fn running_sums_wrap() {
    let (x, y) = (spec("x", DType::INT32, &[3]), spec("y", DType::INT32, &[3]));
    let (max, min) = (i32::MAX, i32::MIN);
    for (reverse, exclusive, expected) in [
        (0, 0, [max, min, min + 5]),
        (0, 1, [0, max, min]),
        (1, 0, [min + 5, 6, 5]),
        (1, 1, [6, 5, 0]),
    ] {
        let sum = node("CumSum", &["x", "axis"], &["y"])
            .with(int("reverse", reverse))
            .with(int("exclusive", exclusive));
        let axis = bytes("axis", &[], DataType::Int64, &[0; 8]);
        let written = Written::new(14, vec![x.clone()], vec![sum], vec![axis], vec![y.clone()]);
        assert_eq!(
            written.answer(&[Values::INT32(vec![max, 1, 5])]),
            Values::INT32(expected.to_vec())
        );
    }
}

/// `c − convolution` and `c ÷ convolution`, a number of `c` for each channel.
#[test]
fn operands_before_a_convolution_stay_before_it() {
    let (x, y) = (
        spec("x", DType::FP32, &[1, 1, 3]),
        spec("y", DType::FP32, &[1, 2, 2]),
    );
    let c = spec("c", DType::FP32, &[2, 1]);
    let weights = || floats("w", &[2, 1, 2], &[1.0, 0.0, 0.0, 1.0]);
    let values = Values::FP32(vec![1.0, 2.0, 3.0]);
    for (operator, expected) in [
        ("Sub", [9.0, 8.0, 18.0, 17.0]),
        ("Div", [10.0, 5.0, 10.0, 20.0 / 3.0]),
    ] {
        let expected = Values::FP32(expected.to_vec());
        let nodes = |shape: &[&str]| {
            let mut nodes = vec![node("Conv", &["x", "w"], &["v"])];
            nodes.extend(
                shape
                    .first()
                    .map(|operator| node(operator, &["v"], &["same"])),
            );
            let v = shape.first().map_or("v", |_| "same");
            nodes.push(node(operator, &["c", v], &["y"]));
            nodes
        };
        for between in [&[][..], &["Identity"]] {
            let known = floats("c", &[2, 1], &[10.0, 20.0]);
            let written = Written::new(
                13,
                vec![x.clone()],
                nodes(between),
                vec![weights(), known],
                vec![y.clone()],
            );
            assert_eq!(written.answer(std::slice::from_ref(&values)), expected);
            let given = vec![x.clone(), c.clone()];
            let written = Written::new(13, given, nodes(between), vec![weights()], vec![y.clone()]);
            let c = Values::FP32(vec![10.0, 20.0]);
            assert_eq!(written.answer(&[values.clone(), c]), expected);
        }
    }
}
