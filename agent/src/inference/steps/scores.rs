//! Steps on scores.

use super::Shaped;
use crate::inference::tensor::Values;

/// `x · mul + add`.
pub(crate) fn scale(mul: f32, add: f32, value: Shaped) -> Result<Shaped, String> {
    let (shape, mut v) = value.floats()?;
    for x in &mut v {
        *x = *x * mul + add;
    }
    Ok(Shaped::new(shape, Values::FP32(v)))
}

/// Softmax of each row.
pub(crate) fn softmax(value: Shaped) -> Result<Shaped, String> {
    let row = value.row().max(1);
    let (shape, mut v) = value.floats()?;
    v.chunks_mut(row).for_each(softmax_row);
    Ok(Shaped::new(shape, Values::FP32(v)))
}

/// exp(xᵢ − max) / Σ exp(xⱼ − max): no overflow for any finite input. A NaN makes the row NaN.
fn softmax_row(row: &mut [f32]) {
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

/// 1 ÷ (1 + e⁻ˣ), from the side on which nothing overflows.
pub(crate) fn sigmoid(value: Shaped) -> Result<Shaped, String> {
    let (shape, mut v) = value.floats()?;
    for x in &mut v {
        *x = if *x >= 0.0 {
            1.0 / (1.0 + (-*x).exp())
        } else {
            let e = x.exp();
            e / (1.0 + e)
        };
    }
    Ok(Shaped::new(shape, Values::FP32(v)))
}

/// Index of each row's largest element, as NumPy's `argmax`: the first one of equals, a NaN before all.
pub(crate) fn arg_max(value: &Shaped) -> Result<Shaped, String> {
    let row = value.row();
    if row == 0 {
        return Err("a row without elements has no largest one".to_owned());
    }
    let mut best: Option<(usize, f64)> = None;
    let mut indices = Vec::with_capacity(value.values.len() / row);
    for (at, x) in value.values.iter_f64().enumerate() {
        let at = at % row;
        let better = |(_, top): (usize, f64)| !top.is_nan() && (x > top || x.is_nan());
        if best.is_none_or(better) {
            best = Some((at, x));
        }
        if at + 1 == row {
            let index = best.take().map_or(0, |(index, _)| index);
            indices.push(i64::try_from(index).unwrap_or(i64::MAX));
        }
    }
    let mut shape = value.shape.clone();
    shape.pop();
    Ok(Shaped::new(shape, Values::INT64(indices)))
}

/// The `k` largest elements of each row and their indices: largest first, of equals the lower index,
/// NaN last.
pub(crate) fn top_k(k: usize, value: Shaped) -> Result<Vec<Shaped>, String> {
    let row = value.row().max(1);
    let (mut shape, v) = value.floats()?;
    let (mut scores, mut indices) = (Vec::new(), Vec::new());
    for row in v.chunks(row) {
        // NaN ranks below everything.
        let rank = |at: usize| (!row[at].is_nan(), row[at]);
        let better = |a: &usize, b: &usize| {
            let ((a_is, a_score), (b_is, b_score)) = (rank(*a), rank(*b));
            let by_score = b_score
                .partial_cmp(&a_score)
                .unwrap_or(std::cmp::Ordering::Equal);
            b_is.cmp(&a_is).then(by_score).then(a.cmp(b))
        };
        let mut order: Vec<usize> = (0..row.len()).collect();
        if k < order.len() {
            order.select_nth_unstable_by(k, better);
            order.truncate(k);
        }
        order.sort_unstable_by(better);
        scores.extend(order.iter().map(|&at| row[at]));
        indices.extend(
            order
                .iter()
                .map(|&at| i64::try_from(at).unwrap_or(i64::MAX)),
        );
    }
    if let Some(last) = shape.last_mut() {
        *last = k;
    }
    Ok(vec![
        Shaped::new(shape.clone(), Values::FP32(scores)),
        Shaped::new(shape, Values::INT64(indices)),
    ])
}

/// Whether each element reaches its bound; a NaN does not.
pub(crate) fn threshold(at: &[f32], value: Shaped) -> Result<Shaped, String> {
    let row = value.row();
    let at = super::numbers::each(at, row)?;
    let (shape, v) = value.floats()?;
    let reached = v.iter().zip(at.iter().cycle()).map(|(x, at)| x >= at);
    Ok(Shaped::new(shape, Values::BOOL(reached.collect())))
}

/// The label of each class index.
pub(crate) fn labels(labels: &[Vec<u8>], value: Shaped) -> Result<Shaped, String> {
    let Values::INT64(indices) = &value.values else {
        let got = value.values.dtype().as_str();
        return Err(format!("expected INT64, got {got}"));
    };
    let named = indices.iter().map(|index| {
        let label = usize::try_from(*index).ok().and_then(|at| labels.get(at));
        label.cloned().ok_or_else(|| {
            format!(
                "expected a class from 0 to {}, got {index}",
                labels.len().saturating_sub(1)
            )
        })
    });
    let named = named.collect::<Result<_, _>>()?;
    Ok(Shaped::new(value.shape, Values::BYTES(named)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn floats(shape: &[usize], values: &[f32]) -> Shaped {
        Shaped::new(shape.to_vec(), Values::FP32(values.to_vec()))
    }

    fn softmaxed(shape: &[usize], values: &[f32]) -> Vec<f32> {
        softmax(floats(shape, values)).unwrap().floats().unwrap().1
    }

    #[test]
    fn softmax_works_on_rows_and_does_not_overflow() {
        let out = softmaxed(&[2, 2], &[1000.0, 1000.0, 0.0, 3.0_f32.ln()]);
        for (got, want) in out.iter().zip([0.5, 0.5, 0.25, 0.75]) {
            assert!((got - want).abs() < 1e-6, "{out:?}");
        }
        assert!(softmaxed(&[2], &[f32::NAN, 1.0])[1].is_nan());
    }

    #[test]
    fn the_largest_come_first_and_nan_last() {
        let nan = f32::NAN;
        let given = top_k(
            3,
            floats(&[2, 4], &[1.0, 3.0, 3.0, nan, nan, nan, nan, 0.5]),
        )
        .unwrap();
        assert_eq!(given[1].values, Values::INT64(vec![1, 2, 0, 3, 0, 1]));
        assert_eq!(given[1].shape, [2, 3]);
        let index = arg_max(&floats(&[2, 3], &[1.0, 2.0, 2.0, 5.0, nan, 9.0])).unwrap();
        assert_eq!(index, Shaped::new(vec![2], Values::INT64(vec![1, 1])));
    }

    #[test]
    fn sigmoid_does_not_overflow() {
        let out = sigmoid(floats(&[3], &[-1e30, 0.0, 1e30])).unwrap();
        assert_eq!(out.values, Values::FP32(vec![0.0, 0.5, 1.0]));
    }

    #[test]
    fn a_class_without_a_label_is_an_error() {
        let names = [b"a".to_vec(), b"b".to_vec()];
        let classes = |v: &[i64]| Shaped::new(vec![v.len()], Values::INT64(v.to_vec()));
        let named = labels(&names, classes(&[1, 0])).unwrap();
        assert_eq!(
            named.values,
            Values::BYTES(vec![b"b".to_vec(), b"a".to_vec()])
        );
        for wrong in [2, -1] {
            let error = labels(&names, classes(&[wrong])).unwrap_err();
            assert_eq!(error, format!("expected a class from 0 to 1, got {wrong}"));
        }
    }

    proptest! {
        #[test]
        fn softmax_is_a_distribution(values in prop::collection::vec(-50.0_f32..50.0, 1..40)) {
            let out = softmaxed(&[values.len()], &values);
            prop_assert!(out.iter().all(|p| (0.0..=1.0).contains(p)));
            prop_assert!((out.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        }
    }
}
