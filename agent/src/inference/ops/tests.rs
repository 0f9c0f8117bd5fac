#![allow(clippy::unwrap_used, clippy::panic)]

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

#[test]
fn floats_become_integers_of_64_bits() {
    let (x, y) = (spec("x", DType::FP32, &[5]), spec("y", DType::INT64, &[5]));
    let nodes = vec![node("Cast", &["x"], &["y"]).with(int("to", 7))];
    let written = Written::new(13, vec![x], nodes, vec![], vec![y]);
    let given = Values::FP32(vec![3e9, -3e9, 1e10, 2.9, -2.9]);
    let expected = vec![3_000_000_000, -3_000_000_000, 10_000_000_000, 2, -2];
    assert_eq!(written.answer(&[given]), Values::INT64(expected));
}

#[test]
fn a_hash_of_a_cast_is_right() {
    let (x, y) = (spec("x", DType::FP32, &[2]), spec("y", DType::INT64, &[2]));
    let modulus = ints("m", &[700]);
    let nodes = vec![
        node("Cast", &["x"], &["c"]).with(int("to", 7)),
        node("Mod", &["c", "m"], &["y"]),
    ];
    let written = Written::new(13, vec![x], nodes, vec![modulus], vec![y]);
    let given = Values::FP32(vec![3e9, 1e10]);
    assert_eq!(written.answer(&[given]), Values::INT64(vec![200, 200]));
}

#[test]
fn logarithms_of_unlikely_classes_are_numbers() {
    for (opset, axis) in [(13, -1), (11, 1)] {
        let (x, y) = (
            spec("x", DType::FP32, &[1, 4]),
            spec("y", DType::FP32, &[1, 4]),
        );
        let nodes = vec![node("LogSoftmax", &["x"], &["y"]).with(int("axis", axis))];
        let written = Written::new(opset, vec![x], nodes, vec![], vec![y]);
        let given = Values::FP32(vec![0.0, 1000.0, 50.0, 10.0]);
        let expected = vec![-1000.0, 0.0, -950.0, -990.0];
        assert_eq!(written.answer(&[given]), Values::FP32(expected));
    }
}

#[test]
fn before_version_13_everything_behind_the_axis_is_one_softmax() {
    let (x, y) = (
        spec("x", DType::FP32, &[1, 2, 2]),
        spec("y", DType::FP32, &[1, 2, 2]),
    );
    let nodes = vec![node("LogSoftmax", &["x"], &["y"])];
    let written = Written::new(11, vec![x], nodes, vec![], vec![y]);
    let answer = written.answer(&[Values::FP32(vec![1.0; 4])]);
    let Values::FP32(answer) = answer else {
        panic!("{answer:?}");
    };
    assert!(
        answer.iter().all(|v| (v + 4f32.ln()).abs() < 1e-6),
        "{answer:?}"
    );
}

/// One axis of as many elements as there are places, whatever their shape; a vector is one row.
#[test]
fn extracted_elements_are_one_axis() {
    for (given, (count, places), expected, made) in [
        (vec![2, 3], (1, vec![]), vec![2.0, 5.0], vec![2, 1]),
        (vec![2, 3], (1, vec![1, 1]), vec![2.0, 5.0], vec![2, 1]),
        (vec![6], (2, vec![2, 1]), vec![2.0, 2.0], vec![1, 2]),
    ] {
        let (x, y) = (
            spec("x", DType::FP32, &given),
            spec("y", DType::FP32, &made),
        );
        let mut at = ints("at", &vec![2; count]);
        at.dims = places;
        let nodes = vec![node("ArrayFeatureExtractor", &["x", "at"], &["y"]).of("ai.onnx.ml")];
        let written = Written::new(13, vec![x], nodes, vec![at], vec![y]);
        let given = Values::FP32((0..6u8).map(f32::from).collect());
        assert_eq!(written.answer(&[given]), Values::FP32(expected));
    }
}

/// Every second value of a convolution, from each of the first ones on.
#[test]
fn a_stride_behind_a_convolution_keeps_its_offset() {
    // Sums of three neighbours of 0, 1, …, 5.
    let sums = [1.0, 3.0, 6.0, 9.0, 12.0, 9.0];
    for (start, padding) in [0, 1, 2, 3]
        .into_iter()
        .flat_map(|start| ["SAME_UPPER", "SAME_LOWER"].map(|padding| (start, padding)))
    {
        let second: Vec<f32> = sums.into_iter().skip(start).step_by(2).collect();
        let (x, y) = (
            spec("x", DType::FP32, &[1, 1, 6]),
            spec("y", DType::FP32, &[1, 1, second.len()]),
        );
        let constants = vec![
            floats("w", &[1, 1, 3], &[1.0, 1.0, 1.0]),
            ints("starts", &[i64::try_from(start).unwrap()]),
            ints("ends", &[1000]),
            ints("axes", &[2]),
            ints("steps", &[2]),
        ];
        let nodes = vec![
            node("Conv", &["x", "w"], &["c"]).with(text("auto_pad", padding)),
            node("Slice", &["c", "starts", "ends", "axes", "steps"], &["y"]),
        ];
        let written = Written::new(13, vec![x], nodes, constants, vec![y]);
        let given = Values::FP32((0..6u8).map(f32::from).collect());
        assert_eq!(
            written.answer(&[given]),
            Values::FP32(second),
            "{padding} from {start}"
        );
    }
}

/// A convolution of single values with a stride chooses as well: every second of what is cut out.
#[test]
fn a_strided_convolution_behind_a_slice_keeps_its_offset() {
    for (start, expected) in [(0, vec![1.0, 6.0, 12.0]), (1, vec![3.0, 9.0, 9.0])] {
        let (x, y) = (
            spec("x", DType::FP32, &[1, 1, 6]),
            spec("y", DType::FP32, &[1, 1, 3]),
        );
        let constants = vec![
            floats("w", &[1, 1, 3], &[1.0, 1.0, 1.0]),
            floats("one", &[1, 1, 1], &[1.0]),
            ints("starts", &[start]),
            ints("ends", &[1000]),
            ints("axes", &[2]),
        ];
        let nodes = vec![
            node("Conv", &["x", "w"], &["c"]).with(text("auto_pad", "SAME_UPPER")),
            node("Slice", &["c", "starts", "ends", "axes"], &["s"]),
            node("Conv", &["s", "one"], &["y"]).with(all_ints("strides", &[2])),
        ];
        let written = Written::new(13, vec![x], nodes, constants, vec![y]);
        let given = Values::FP32((0..6u8).map(f32::from).collect());
        assert_eq!(
            written.answer(&[given]),
            Values::FP32(expected),
            "from {start}"
        );
    }
}
