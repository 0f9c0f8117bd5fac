//! The manifest's processing steps. Pure.

use super::tensor::Values;
use dunlin_protocol::bundle::{Step, TensorSpec};

/// Applies every step that names this tensor, in order, in 32-bit floats. The manifest's check has
/// made sure that such tensors are `FP32`; other element types are left as they are.
pub(crate) fn apply(steps: &[Step], spec: &TensorSpec, values: &mut Values) {
    let Values::FP32(values) = values else { return };
    let row = spec.shape.last().copied().unwrap_or(1).max(1);
    for step in steps.iter().filter(|s| s.tensor() == spec.name) {
        match step {
            Step::Scale { mul, add, .. } => {
                for x in values.iter_mut() {
                    *x = *x * *mul + *add;
                }
            }
            Step::Softmax { .. } => values.chunks_mut(row).for_each(softmax),
        }
    }
}

/// exp(xᵢ − max) / Σ exp(xⱼ − max): no overflow for any finite input. A NaN makes the row NaN.
fn softmax(row: &mut [f32]) {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - top).exp();
        sum += *x;
    }
    for x in row {
        *x /= sum;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dunlin_protocol::bundle::DType;
    use proptest::prelude::*;

    fn run(steps: &[Step], shape: &[usize], values: Vec<f32>) -> Vec<f32> {
        let spec = TensorSpec {
            name: "x".to_owned(),
            dtype: DType::FP32,
            shape: shape.to_vec(),
            layout: None,
        };
        let mut values = Values::FP32(values);
        apply(steps, &spec, &mut values);
        let Values::FP32(v) = values else { panic!() };
        v
    }

    fn scale(tensor: &str, mul: f32, add: f32) -> Step {
        Step::Scale {
            tensor: tensor.to_owned(),
            mul,
            add,
        }
    }

    fn soft() -> Step {
        Step::Softmax {
            tensor: "x".to_owned(),
        }
    }

    #[test]
    fn steps_apply_in_order_to_their_own_tensor() {
        let steps = [
            scale("x", 2.0, 1.0),
            scale("y", 9.0, 9.0),
            scale("x", 0.5, 0.0),
        ];
        assert_eq!(run(&steps, &[2], vec![1.0, -1.0]), [1.5, -0.5]);
    }

    #[test]
    fn softmax_works_on_rows_and_does_not_overflow() {
        let out = run(&[soft()], &[2, 2], vec![1000.0, 1000.0, 0.0, 3.0_f32.ln()]);
        for (got, want) in out.iter().zip([0.5, 0.5, 0.25, 0.75]) {
            assert!((got - want).abs() < 1e-6, "{out:?}");
        }
        assert!(run(&[soft()], &[2], vec![f32::NAN, 1.0])[1].is_nan());
    }

    proptest! {
        #[test]
        fn softmax_is_a_distribution(values in prop::collection::vec(-50.0_f32..50.0, 1..40)) {
            let out = run(&[soft()], &[values.len()], values);
            prop_assert!(out.iter().all(|p| (0.0..=1.0).contains(p)));
            prop_assert!((out.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        }
    }
}
