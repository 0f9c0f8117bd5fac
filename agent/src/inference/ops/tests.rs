#![allow(clippy::unwrap_used)]

use crate::inference::tensor::Values;
use crate::inference::written::*;
use dunlin_protocol::bundle::DType;
use tract_onnx::pb::tensor_proto::DataType;

#[test]
fn quantising_rounds_to_even_and_stays_in_range() {
    let scale = floats("s", &[], &[0.5]);
    let zero = bytes("z", &[], DataType::Int8, &[1]);
    let (x, y) = (spec("x", DType::FP32, &[6]), spec("y", DType::INT8, &[6]));
    let nodes = vec![node("QuantizeLinear", &["x", "s", "z"], &["y"])];
    let written = Written::new(13, vec![x], nodes, vec![scale, zero], vec![y]);
    let x = Values::FP32(vec![0.25, 0.75, -0.25, 1e9, -1e9, 5.1]);
    assert_eq!(
        written.answer(&[x]),
        Values::INT8(vec![1, 3, 1, 127, -128, 11])
    );
}

#[test]
fn each_channel_has_a_scale_of_its_own() {
    let weights = || {
        let scales = floats("s", &[2], &[0.5, 2.0]);
        vec![scales, bytes("z", &[2], DataType::Uint8, &[0, 10])]
    };
    let (x, q) = (
        spec("x", DType::FP32, &[1, 2, 2]),
        spec("q", DType::UINT8, &[1, 2, 2]),
    );
    let nodes = vec![node("QuantizeLinear", &["x", "s", "z"], &["q"])];
    let written = Written::new(13, vec![x.clone()], nodes, weights(), vec![q.clone()]);
    let quantised = written.answer(&[Values::FP32(vec![1.0, 2.0, 4.0, -6.0])]);
    assert_eq!(quantised, Values::UINT8(vec![2, 4, 12, 7]));
    let nodes = vec![node("DequantizeLinear", &["q", "s", "z"], &["x"]).with(int("axis", -2))];
    let back = Written::new(13, vec![q], nodes, weights(), vec![x]);
    assert_eq!(
        back.answer(&[quantised]),
        Values::FP32(vec![1.0, 2.0, 4.0, -6.0])
    );
}

#[test]
fn blocks_have_scales_of_their_own() {
    let scales = floats("s", &[2, 1], &[1.0, 10.0]);
    let (x, y) = (
        spec("x", DType::INT8, &[3, 1]),
        spec("y", DType::FP32, &[3, 1]),
    );
    let nodes = vec![
        node("DequantizeLinear", &["x", "s"], &["y"])
            .with(int("axis", 0))
            .with(int("block_size", 2)),
    ];
    let written = Written::new(21, vec![x], nodes, vec![scales], vec![y]);
    let y = written.answer(&[Values::INT8(vec![1, -2, 3])]);
    assert_eq!(y, Values::FP32(vec![1.0, -2.0, 30.0]));
}

#[test]
fn scales_that_do_not_fit_are_refused() {
    let scales = floats("s", &[3], &[1.0, 2.0, 3.0]);
    let (x, y) = (
        spec("x", DType::INT8, &[1, 2]),
        spec("y", DType::FP32, &[1, 2]),
    );
    let nodes = vec![node("DequantizeLinear", &["x", "s"], &["y"])];
    let written = Written::new(13, vec![x], nodes, vec![scales], vec![y]);
    let graph = written.load().unwrap();
    let refused = graph
        .run(&[Values::INT8(vec![1, 2])])
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("scales of shape [3]") && refused.contains("expected [2]"),
        "{refused}"
    );
}

/// `q = quantise(f(dequantise(x)))`, which the engine must not rewrite into something else.
#[test]
fn what_stands_between_the_two_is_computed_in_floats() {
    let weights = vec![
        floats("s", &[], &[0.1]),
        bytes("z", &[], DataType::Int8, &[0x80]),
        floats("t", &[], &[0.004]),
        bytes("u", &[], DataType::Uint8, &[0]),
    ];
    let nodes = vec![
        node("DequantizeLinear", &["x", "s", "z"], &["float"]),
        node("Sigmoid", &["float"], &["sigmoid"]),
        node("QuantizeLinear", &["sigmoid", "t", "u"], &["y"]),
    ];
    let (x, y) = (spec("x", DType::INT8, &[3]), spec("y", DType::UINT8, &[3]));
    let written = Written::new(13, vec![x], nodes, weights, vec![y]);
    // Sigmoids of 0, 1 and 25.5 in steps of 1/250.
    let y = written.answer(&[Values::INT8(vec![-128, -118, 127])]);
    assert_eq!(y, Values::UINT8(vec![125, 183, 250]));
}

#[test]
fn zeros_are_of_single_precision_unless_the_file_says_otherwise() {
    let nodes = vec![
        node("ConstantOfShape", &["shape"], &["zeros"]),
        node("Add", &["x", "zeros"], &["y"]),
    ];
    let (x, y) = (spec("x", DType::FP32, &[2]), spec("y", DType::FP32, &[2]));
    let written = Written::new(13, vec![x], nodes, vec![ints("shape", &[2])], vec![y]);
    let x = Values::FP32(vec![1.0, 2.0]);
    assert_eq!(written.answer(std::slice::from_ref(&x)), x);
}

#[test]
fn squeeze_without_axes_takes_every_dimension_of_one() {
    let (x, y) = (
        spec("x", DType::FP32, &[1, 2, 1]),
        spec("y", DType::FP32, &[2]),
    );
    for version in [11, 13] {
        let nodes = vec![node("Squeeze", &["x"], &["y"])];
        let written = Written::new(version, vec![x.clone()], nodes, vec![], vec![y.clone()]);
        let values = Values::FP32(vec![1.0, 2.0]);
        assert_eq!(written.answer(std::slice::from_ref(&values)), values);
    }
}

#[test]
fn upsample_repeats_pixels_and_interpolates() {
    let (x, y) = (
        spec("x", DType::FP32, &[1, 1, 1, 2]),
        spec("y", DType::FP32, &[1, 1, 1, 4]),
    );
    let modes = [
        ("nearest", [1.0, 1.0, 3.0, 3.0]),
        ("linear", [1.0, 2.0, 3.0, 3.0]),
    ];
    for (mode, expected) in modes {
        let nodes = vec![node("Upsample", &["x", "scales"], &["y"]).with(text("mode", mode))];
        let scales = floats("scales", &[4], &[1.0, 1.0, 1.0, 2.0]);
        let written = Written::new(9, vec![x.clone()], nodes, vec![scales], vec![y.clone()]);
        let answer = written.answer(&[Values::FP32(vec![1.0, 3.0])]);
        assert_eq!(answer, Values::FP32(expected.to_vec()), "{mode}");
    }
}

#[test]
fn sequences_are_turned_around_as_far_as_they_go() {
    let nodes = vec![node("ReverseSequence", &["x", "lengths"], &["y"])];
    let (x, y) = (
        spec("x", DType::FP32, &[3, 2]),
        spec("y", DType::FP32, &[3, 2]),
    );
    let written = Written::new(10, vec![x], nodes, vec![ints("lengths", &[3, 2])], vec![y]);
    let answer = written.answer(&[Values::FP32(vec![1.0, 10.0, 2.0, 20.0, 3.0, 30.0])]);
    assert_eq!(answer, Values::FP32(vec![3.0, 20.0, 2.0, 10.0, 1.0, 30.0]));
}

#[test]
fn recurrent_operators_of_other_functions_are_refused() {
    let others = [
        strings("activations", &["Relu"]),
        float("clip", 1.0),
        int("input_forget", 1),
    ];
    for attribute in others {
        let named = attribute.name.clone();
        let nodes = vec![node("RNN", &["x", "w", "r"], &["y"]).with(attribute)];
        let one = |name| floats(name, &[1, 1, 1], &[1.0]);
        let x = spec("x", DType::FP32, &[3, 1, 1]);
        let y = spec("y", DType::FP32, &[3, 1, 1, 1]);
        let written = Written::new(14, vec![x], nodes, vec![one("w"), one("r")], vec![y]);
        let refused = written.load().unwrap_err().to_string();
        assert!(
            refused.contains("at RNN (node \"n_y\")") && refused.contains(&named),
            "{refused}"
        );
    }
}
