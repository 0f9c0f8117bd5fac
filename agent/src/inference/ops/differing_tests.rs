//! Operators that tract computes otherwise than ONNX Runtime, whose answers are what is expected here.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::inference::tensor::Values;
use crate::inference::written::*;
use dunlin_protocol::bundle::DType;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

/// What is left of a tensor where nothing is taken.
const NONE: &[f32] = &[];

fn one(
    version: i64,
    (given, from): (&[f32], &[usize]),
    node: NodeProto,
    weights: Vec<TensorProto>,
    to: &[usize],
) -> Written {
    assert_eq!(given.len(), from.iter().product::<usize>());
    let (x, y) = (spec("x", DType::FP32, from), spec("y", DType::FP32, to));
    Written::new(version, vec![x], vec![node], weights, vec![y])
}

fn assert_close(got: Values, expected: &[f32], what: &str) {
    let Values::FP32(got) = got else {
        panic!("{what}: {got:?}")
    };
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected).abs() <= 1e-5 * expected.abs().max(1.0),
            "{what}: {got}, expected {expected}"
        );
    }
}

fn refused(written: &Written, parts: &[&str]) {
    let refused = written.load().unwrap_err().to_string();
    for part in parts {
        assert!(refused.contains(part), "{refused}: expected {part:?}");
    }
}

fn with(node: NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
    attributes.into_iter().fold(node, With::with)
}

const SQUARES: [f32; 6] = [1.0, 4.0, 9.0, 16.0, 25.0, 36.0];

fn resize(mode: &str, coordinates: &str) -> NodeProto {
    node("Resize", &["x", "", "scales"], &["y"])
        .with(text("mode", mode))
        .with(text("coordinate_transformation_mode", coordinates))
}

#[test]
fn corners_stay_where_they_are() {
    let expected: [(&str, [f32; 14]); 3] = [
        (
            "nearest",
            [
                1.0, 1.0, 4.0, 4.0, 4.0, 9.0, 9.0, 16.0, 16.0, 25.0, 25.0, 25.0, 36.0, 36.0,
            ],
        ),
        (
            "linear",
            [
                1.0, 2.0, 3.0, 4.0, 5.666_667, 7.333_333, 9.0, 16.0, 19.0, 22.0, 25.0, 28.666_668,
                32.333_332, 36.0,
            ],
        ),
        (
            "cubic",
            [
                1.0,
                1.666_664_6,
                2.5,
                4.0,
                5.907_405_4,
                7.592_592,
                9.0,
                16.0,
                18.222_214,
                20.944_45,
                25.0,
                29.462_954,
                33.037_033,
                36.0,
            ],
        ),
    ];
    for (mode, expected) in expected {
        for version in [13, 19] {
            let sizes = ints("sizes", &[1, 1, 2, 7]);
            let node = node("Resize", &["x", "", "", "sizes"], &["y"])
                .with(text("mode", mode))
                .with(text("coordinate_transformation_mode", "align_corners"));
            let given = (&SQUARES[..], &[1, 1, 2, 3][..]);
            let written = one(version, given, node, vec![sizes], &[1, 1, 2, 7]);
            let got = written.answer(&[Values::FP32(SQUARES.to_vec())]);
            assert_close(got, &expected, mode);
        }
    }
}

/// 57 / 7 is rounded; as a length it would be 57.000004, and each whole pixel just missed.
#[test]
fn corners_stay_where_sizes_give_a_rounded_scale() {
    let given: Vec<f32> = (0..7u8).map(f32::from).collect();
    let node = node("Resize", &["x", "", "", "sizes"], &["y"])
        .with(text("nearest_mode", "floor"))
        .with(text("coordinate_transformation_mode", "align_corners"));
    let sizes = vec![ints("sizes", &[1, 57])];
    let written = one(19, (&given, &[1, 7]), node, sizes, &[1, 57]);
    let repeats = [10, 9, 9, 10, 9, 9, 1];
    let expected: Vec<f32> = given
        .iter()
        .zip(repeats)
        .flat_map(|(&value, times)| vec![value; times])
        .collect();
    let got = written.answer(&[Values::FP32(given)]);
    assert_eq!(got, Values::FP32(expected));
}

#[test]
fn a_region_is_cut_out_and_resized() {
    let given = (&SQUARES[..], &[1, 1, 2, 3][..]);
    let crop = node("Resize", &["x", "roi", "", "sizes"], &["y"])
        .with(text("mode", "linear"))
        .with(text("coordinate_transformation_mode", "tf_crop_and_resize"));
    let region = [0.0, 0.0, 0.0, 0.25, 1.0, 1.0, 1.0, 0.75];
    let constants = vec![ints("sizes", &[1, 1, 2, 2]), floats("roi", &[8], &region)];
    let written = one(19, given, crop, constants, &[1, 1, 2, 2]);
    let got = written.answer(&[Values::FP32(SQUARES.to_vec())]);
    // Columns at half a pixel and one and a half.
    assert_eq!(got, Values::FP32(vec![2.5, 6.5, 20.5, 30.5]));
}

#[test]
fn resizing_that_is_not_computed_is_refused() {
    let scales = |by| vec![floats("scales", &[4], &[1.0, 1.0, 1.0, by])];
    let given = (&SQUARES[..], &[1, 1, 2, 3][..]);
    let smooth = resize("linear", "align_corners").with(int("antialias", 1));
    let written = one(19, given, smooth, scales(2.0), &[1, 1, 2, 6]);
    refused(&written, &["Resize (node \"n_y\")", "antialias"]);
    let to_one = resize("cubic", "pytorch_half_pixel");
    let written = one(19, given, to_one, scales(0.4), &[1, 1, 2, 1]);
    refused(&written, &["Resize", "pytorch_half_pixel"]);
}

#[test]
fn resizing_of_version_10_takes_the_pixel_before() {
    let given = (&SQUARES[..], &[1, 1, 2, 3][..]);
    let nearest = || node("Resize", &["x", "scales"], &["y"]);
    let scales = |by| vec![floats("scales", &[4], &[1.0, 1.0, 1.0, by])];
    let written = one(10, given, nearest(), scales(1.5), &[1, 1, 2, 4]);
    let got = written.answer(&[Values::FP32(SQUARES.to_vec())]);
    let expected = vec![1.0, 1.0, 4.0, 9.0, 16.0, 16.0, 25.0, 36.0];
    assert_eq!(got, Values::FP32(expected));
    let written = one(10, given, nearest(), scales(0.7), &[1, 1, 2, 2]);
    refused(&written, &["Resize", "fewer pixels"]);
}

#[test]
fn casts_of_wide_integers_keep_them() {
    let (x, y) = (spec("x", DType::INT64, &[3]), spec("y", DType::INT64, &[3]));
    let nodes = vec![node("Cast", &["x"], &["y"]).with(int("to", 7))];
    let written = Written::new(13, vec![x], nodes, vec![], vec![y]);
    let given = Values::INT64(vec![1 << 40, -(1 << 33), 300]);
    assert_eq!(written.answer(std::slice::from_ref(&given)), given);
}

#[test]
fn slices_beyond_the_tensor_are_clamped() {
    let given: Vec<f32> = (0..5u8).map(f32::from).collect();
    let cases: [(i64, i64, i64, &[f32]); 8] = [
        (-8, -9, -2, &[0.0]),
        (-8, 9, -1, NONE),
        (4, i64::MIN, -2, &[4.0, 2.0, 0.0]),
        (1 << 31, -(1 << 31), -3, &[4.0, 1.0]),
        (i64::MIN, i64::MAX, 2, &[0.0, 2.0, 4.0]),
        (i64::MIN + 1, -1, 2, &[0.0, 2.0]),
        (3, i64::from(i32::MAX), -1, &[3.0, 2.0, 1.0, 0.0]),
        (4, 0, i64::MIN, &[4.0]),
    ];
    for (start, end, step, expected) in cases {
        // A zero at the end, as no output may be empty.
        let nodes = vec![
            node("Slice", &["x", "start", "end", "axis", "step"], &["s"]),
            node("Concat", &["s", "zero"], &["y"]).with(int("axis", 0)),
        ];
        let weights = vec![
            ints("start", &[start]),
            ints("end", &[end]),
            ints("axis", &[-1]),
            ints("step", &[step]),
            floats("zero", &[1], &[0.0]),
        ];
        let x = spec("x", DType::FP32, &[5]);
        let y = spec("y", DType::FP32, &[expected.len() + 1]);
        let written = Written::new(13, vec![x], nodes, weights, vec![y]);
        let got = written.answer(&[Values::FP32(given.clone())]);
        let expected = Values::FP32([expected, &[0.0]].concat());
        assert_eq!(got, expected, "{start}..{end} by {step}");
    }
}

#[test]
fn slices_of_before_version_10_are_clamped() {
    let given: Vec<f32> = (0..5u8).map(f32::from).collect();
    let bounds = vec![
        all_ints("starts", &[-8]),
        all_ints("ends", &[-3]),
        all_ints("axes", &[0]),
    ];
    let node = with(node("Slice", &["x"], &["y"]), bounds);
    let written = one(9, (&given, &[5]), node, vec![], &[2]);
    assert_eq!(
        written.answer(&[Values::FP32(given)]),
        Values::FP32(vec![0.0, 1.0])
    );
}

#[test]
fn cubic_samples_beyond_the_border_keep_their_place() {
    let grid = [-1.4, 0.2, 0.1, 1.3, 0.6, -0.3, 3.0, 3.0];
    let cases = [
        (0, [11.815_005, 27.670_202, 13.282_803, 36.0]),
        (1, [9.459_422, 28.225_283, 15.634_068, 36.0]),
    ];
    for (align_corners, expected) in cases {
        let node = node("GridSample", &["x", "grid"], &["y"])
            .with(text("mode", "cubic"))
            .with(text("padding_mode", "border"))
            .with(int("align_corners", align_corners));
        let weights = vec![floats("grid", &[1, 2, 2, 2], &grid)];
        let given = (&SQUARES[..], &[1, 1, 2, 3][..]);
        let written = one(20, given, node, weights, &[1, 1, 2, 2]);
        let got = written.answer(&[Values::FP32(SQUARES.to_vec())]);
        assert_close(got, &expected, "GridSample");
    }
}

#[test]
fn pools_without_padding_round_up_if_told_to() {
    for (operator, expected) in [
        ("MaxPool", [2.0, 4.0, 5.0]),
        ("AveragePool", [1.5, 3.5, 5.0]),
    ] {
        let attributes = vec![
            all_ints("kernel_shape", &[2]),
            all_ints("strides", &[2]),
            text("auto_pad", "VALID"),
            int("ceil_mode", 1),
        ];
        let node = with(node(operator, &["x"], &["y"]), attributes);
        let given = [1.0, 2.0, 3.0, 4.0, 5.0];
        let written = one(19, (&given, &[1, 1, 5]), node, vec![], &[1, 1, 3]);
        let got = written.answer(&[Values::FP32(given.to_vec())]);
        assert_eq!(got, Values::FP32(expected.to_vec()), "{operator}");
    }
}

#[test]
fn pads_do_not_count_where_padding_is_automatic() {
    let given = [1.0, 2.0, 3.0, 4.0, 5.0];
    let cases: [(&str, &[f32]); 2] = [
        ("VALID", &[2.0, 3.0, 4.0, 5.0]),
        ("SAME_UPPER", &[2.0, 3.0, 4.0, 5.0, 5.0]),
    ];
    for (auto_pad, expected) in cases {
        let attributes = vec![
            all_ints("kernel_shape", &[2]),
            text("auto_pad", auto_pad),
            all_ints("pads", &[1, 1]),
        ];
        let node = with(node("MaxPool", &["x"], &["y"]), attributes);
        let written = one(
            19,
            (&given, &[1, 1, 5]),
            node,
            vec![],
            &[1, 1, expected.len()],
        );
        let got = written.answer(&[Values::FP32(given.to_vec())]);
        assert_eq!(got, Values::FP32(expected.to_vec()), "{auto_pad}");
    }
}

#[test]
fn dilated_pools_with_automatic_padding_are_refused() {
    for operator in ["MaxPool", "AveragePool"] {
        let attributes = vec![
            all_ints("kernel_shape", &[2]),
            all_ints("dilations", &[2]),
            text("auto_pad", "SAME_UPPER"),
            int("ceil_mode", 1),
        ];
        let node = with(node(operator, &["x"], &["y"]), attributes);
        let written = one(19, (&[0.0; 5], &[1, 1, 5]), node, vec![], &[1, 1, 4]);
        let named = format!("{operator} (node \"n_y\")");
        refused(&written, &[&named, "dilations [2]", "SAME_UPPER"]);
    }
}

#[test]
fn doubles_are_computed_as_doubles() {
    let given = vec![-30.0, -2.5, -0.1, 0.5, 1.5, -800.0];
    let cases: [(&str, [f64; 6]); 4] = [
        (
            "Sigmoid",
            [
                9.348_077_867_343_818e-14,
                0.075_858_180_021_243_45,
                0.475_020_812_521_06,
                0.622_459_331_201_854_6,
                0.817_574_476_193_643_7,
                0.0,
            ],
        ),
        (
            "HardSwish",
            [
                0.0,
                -0.208_333_302_289_247_5,
                -0.048_333_333_283_662_794,
                0.291_666_667_908_430_1,
                1.125_000_011_175_871,
                0.0,
            ],
        ),
        (
            "LeakyRelu",
            [
                -0.299_999_993_294_477_46,
                -0.024_999_999_441_206_455,
                -0.000_999_999_977_648_258_3,
                0.5,
                1.5,
                -7.999_999_821_186_066,
            ],
        ),
        ("Round", [-30.0, -2.0, 0.0, 0.0, 2.0, -800.0]),
    ];
    for (operator, expected) in cases {
        let (x, y) = (spec("x", DType::FP64, &[6]), spec("y", DType::FP64, &[6]));
        let nodes = vec![node(operator, &["x"], &["y"])];
        let written = Written::new(18, vec![x], nodes, vec![], vec![y]);
        let Values::FP64(got) = written.answer(&[Values::FP64(given.clone())]) else {
            panic!("{operator}: no doubles")
        };
        for (got, expected) in got.iter().zip(expected) {
            assert!(
                (got - expected).abs() <= 1e-15 * expected.abs().max(1.0),
                "{operator}: {got}, expected {expected}"
            );
        }
    }
}

#[test]
fn doubles_beyond_single_precision_are_finite() {
    let given = vec![f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e300];
    let cases = [
        (node("IsInf", &["x"], &["y"]), [1, 1, 0, 0]),
        (
            node("IsInf", &["x"], &["y"]).with(int("detect_negative", 0)),
            [1, 0, 0, 0],
        ),
        (node("IsNaN", &["x"], &["y"]), [0, 0, 1, 0]),
    ];
    for (node, expected) in cases {
        let (x, y) = (spec("x", DType::FP64, &[4]), spec("y", DType::BOOL, &[4]));
        let written = Written::new(13, vec![x], vec![node], vec![], vec![y]);
        let got = written.answer(&[Values::FP64(given.clone())]);
        assert_eq!(got, Values::BOOL(expected.map(|e| e == 1).to_vec()));
    }
}

#[test]
fn selu_has_all_digits_of_its_constants() {
    let given = [-30.0, -1.0, 2.0];
    let written = one(
        18,
        (&given, &[3]),
        node("Selu", &["x"], &["y"]),
        vec![],
        &[3],
    );
    let got = written.answer(&[Values::FP32(given.to_vec())]);
    let expected = [-1.758_099_3, -1.111_330_7, 2.101_402];
    let Values::FP32(got) = got else {
        panic!("no floats")
    };
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 5e-7, "{got}, expected {expected}");
    }
}
