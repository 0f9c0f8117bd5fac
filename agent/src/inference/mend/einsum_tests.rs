//! Expected numbers are ONNX Runtime's (1.32.0).
#![allow(clippy::unwrap_used)]

use crate::inference::tensor::Values;
use crate::inference::written::*;
use dunlin_protocol::bundle::DType;

/// A shape and the elements.
type Operand = (&'static [usize], &'static [f32]);

const SQUARE: Operand = (&[2, 2], &[1.0, 2.0, 3.0, 5.0]);
const WIDE: Operand = (&[2, 3], &[1.0, 0.0, 2.0, 3.0, 1.0, 1.0]);
const ONE: Operand = (&[2], &[1.0, 2.0]);
const OTHER: Operand = (&[2], &[3.0, 5.0]);
const SCALAR: Operand = (&[], &[3.0]);

#[test]
fn an_arrow_with_nothing_behind_it_sums_over_everything() {
    let cases: [(&str, &[Operand], f32); 9] = [
        ("ab->", &[SQUARE], 11.0),
        ("ii->", &[SQUARE], 6.0),
        ("ab,ab->", &[SQUARE, SQUARE], 39.0),
        ("ab,bc->", &[SQUARE, WIDE], 47.0),
        (" ab , bc -> ", &[SQUARE, WIDE], 47.0),
        ("a,a->", &[ONE, OTHER], 13.0),
        (",a->", &[SCALAR, ONE], 9.0),
        (",->", &[SCALAR, SCALAR], 9.0),
        ("ij,i,j->", &[SQUARE, ONE, OTHER], 81.0),
    ];
    for (equation, operands, expected) in cases {
        let names = ["p", "q", "r"];
        let named = || names.iter().zip(operands);
        let inputs = named().map(|(name, (shape, _))| spec(name, DType::FP32, shape));
        let given: Vec<_> = named()
            .map(|(_, (_, v))| Values::FP32(v.to_vec()))
            .collect();
        let sum = node("Einsum", &names[..operands.len()], &["y"]);
        let sum = sum.with(text("equation", equation));
        let y = vec![spec("y", DType::FP32, &[])];
        let written = Written::new(18, inputs.collect(), vec![sum], vec![], y);
        assert_eq!(
            written.answer(&given),
            Values::FP32(vec![expected]),
            "{equation}"
        );
    }
}

#[test]
fn an_equation_without_an_arrow_keeps_its_letters() {
    let (shape, values) = SQUARE;
    let plain = node("Einsum", &["x"], &["y"]).with(text("equation", "ab"));
    let x = vec![spec("x", DType::FP32, shape)];
    let y = vec![spec("y", DType::FP32, shape)];
    let written = Written::new(18, x, vec![plain], vec![], y);
    let values = Values::FP32(values.to_vec());
    assert_eq!(written.answer(std::slice::from_ref(&values)), values);
}
