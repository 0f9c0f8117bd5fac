//! Expected numbers are ONNX Runtime's (1.32.0).
#![allow(clippy::unwrap_used)]

use crate::inference::graph::GraphError;
use crate::inference::tensor::Values;
use crate::inference::written::*;
use dunlin_protocol::bundle::DType;

/// `Pad` of 1 to 12 in three rows.
fn padded(mode: &str, pads: &[i64], to: &[usize]) -> Result<Values, GraphError> {
    let (x, y) = (spec("x", DType::FP32, &[3, 4]), spec("y", DType::FP32, to));
    let nodes = vec![node("Pad", &["x", "pads"], &["y"]).with(text("mode", mode))];
    let written = Written::new(19, vec![x], nodes, vec![ints("pads", pads)], vec![y]);
    Ok(written.load()?.run(&[counting()])?.remove(0))
}

fn counting() -> Values {
    Values::FP32((1..=12u8).map(f32::from).collect())
}

#[test]
fn negative_pads_crop_in_every_mode() {
    for mode in ["constant", "edge", "reflect", "wrap"] {
        let middle = padded(mode, &[0, -1, 0, -1], &[3, 2]).unwrap();
        let expected = vec![2.0, 3.0, 6.0, 7.0, 10.0, 11.0];
        assert_eq!(middle, Values::FP32(expected), "{mode}");
        let one = padded(mode, &[-1, -1, -1, -2], &[1, 1]).unwrap();
        assert_eq!(one, Values::FP32(vec![6.0]), "{mode}");
    }
}

#[test]
fn what_is_cropped_is_not_repeated() {
    let cases = [
        (
            "constant",
            [
                0.0, 0.0, 5.0, 6.0, 7.0, 0.0, 0.0, 9.0, 10.0, 11.0, 0.0, 0.0, 0.0, 0.0, 0.0,
            ],
        ),
        (
            "edge",
            [
                5.0, 5.0, 5.0, 6.0, 7.0, 9.0, 9.0, 9.0, 10.0, 11.0, 9.0, 9.0, 9.0, 10.0, 11.0,
            ],
        ),
        (
            "reflect",
            [
                7.0, 6.0, 5.0, 6.0, 7.0, 11.0, 10.0, 9.0, 10.0, 11.0, 7.0, 6.0, 5.0, 6.0, 7.0,
            ],
        ),
        (
            "wrap",
            [
                6.0, 7.0, 5.0, 6.0, 7.0, 10.0, 11.0, 9.0, 10.0, 11.0, 6.0, 7.0, 5.0, 6.0, 7.0,
            ],
        ),
    ];
    for (mode, expected) in cases {
        let got = padded(mode, &[-1, 2, 1, -1], &[3, 5]).unwrap();
        assert_eq!(got, Values::FP32(expected.to_vec()), "{mode}");
    }
}

#[test]
fn wrapping_goes_around_as_often_as_it_must() {
    let row = |first: f32| {
        let around = [
            4.0, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0,
        ];
        around.map(|v| v + first)
    };
    let expected = [row(0.0), row(4.0), row(8.0)].concat();
    assert_eq!(
        padded("wrap", &[0, 5, 0, 6], &[3, 15]).unwrap(),
        Values::FP32(expected)
    );
}

#[test]
fn more_than_there_is_may_be_cut_off_what_is_filled() {
    for pads in [[0, 2, 0, -5], [0, -5, 0, 2]] {
        let got = padded("constant", &pads, &[3, 1]).unwrap();
        assert_eq!(got, Values::FP32(vec![0.0; 3]), "{pads:?}");
    }
}

#[test]
fn pads_that_have_nothing_to_repeat_are_refused() {
    let cases: [(&str, &[i64], &[usize], &str); 3] = [
        (
            "reflect",
            &[0, -2, 0, 2],
            &[3, 4],
            "Reflect of 0 and 2 at a dimension of 2",
        ),
        (
            "edge",
            &[-3, 0, 1, 0],
            &[1, 4],
            "Edge of 0 and 1 at a dimension of 0",
        ),
        (
            "constant",
            &[-2, 0, -2, 0],
            &[0, 4],
            "-2 and -2 cut more off than a dimension of 3 has",
        ),
    ];
    for (mode, pads, to, reason) in cases {
        let refused = padded(mode, pads, to).unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
    }
}

#[test]
fn pads_of_old_versions_are_an_attribute() {
    let (x, y) = (
        spec("x", DType::FP32, &[3, 4]),
        spec("y", DType::FP32, &[3, 4]),
    );
    let nodes = vec![
        node("Pad", &["x"], &["y"])
            .with(all_ints("pads", &[0, -1, 0, 1]))
            .with(float("value", 7.0)),
    ];
    let written = Written::new(10, vec![x], nodes, vec![], vec![y]);
    let expected = vec![
        2.0, 3.0, 4.0, 7.0, 6.0, 7.0, 8.0, 7.0, 10.0, 11.0, 12.0, 7.0,
    ];
    assert_eq!(written.answer(&[counting()]), Values::FP32(expected));
}

#[test]
fn pads_may_name_their_axes_and_a_value() {
    for dims in [&[][..], &[1]] {
        let (x, y) = (
            spec("x", DType::FP32, &[3, 4]),
            spec("y", DType::FP32, &[3, 5]),
        );
        let nodes = vec![node("Pad", &["x", "pads", "value", "axes"], &["y"])];
        let weights = vec![
            ints("pads", &[-1, 2]),
            floats("value", dims, &[7.0]),
            ints("axes", &[-1]),
        ];
        let written = Written::new(18, vec![x], nodes, weights, vec![y]);
        let expected = vec![
            2.0, 3.0, 4.0, 7.0, 7.0, 6.0, 7.0, 8.0, 7.0, 7.0, 10.0, 11.0, 12.0, 7.0, 7.0,
        ];
        assert_eq!(written.answer(&[counting()]), Values::FP32(expected));
    }
}
